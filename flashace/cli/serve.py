"""`flashace serve`: a model for programs that speak the i-PI protocol."""

import click

from flashace.cli.shared import device_option, dtype_option
from flashace.cli.terminal import console
from flashace.engines.serve import PORT
from flashace.engines.serve import serve as serve_sockets
from flashace.errors import FlashACEError


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--atoms", "structure", required=True, help="File with the server's atoms in its order (the last frame): the server sends none."
)
@click.option("--unixsocket", help="Name of the server's socket, the file being /tmp/ipi_NAME.")
@click.option("--host", help="Where the server runs; localhost where not given.")
@click.option("--port", type=int, help=f"Its port; {PORT} where not given.")
@click.option("--wait", default=30.0, show_default=True, help="Seconds to wait for a server that is not there yet.")
@device_option
@dtype_option
def serve(
    model: str, structure: str, unixsocket: str | None, host: str | None, port: int | None, wait: float, device: str, dtype: str
) -> None:
    """Evaluate MODEL for a program that speaks the i-PI protocol, such as i-PI or ASE's SocketIOCalculator, until that ends."""
    from flashace.calculator import FlashACE
    from flashace.data.shards import read_data

    if unixsocket is not None and (host, port) != (None, None):
        raise FlashACEError("address: expected --unixsocket, or --host and --port, got both; leave one out")
    frames, _ = read_data(structure, required=())
    evaluated = serve_sockets(FlashACE(model, device, dtype), frames[-1].atoms, unixsocket, host or "localhost", port or PORT, wait)
    console.print(f"the server has ended; structures evaluated: {evaluated}")
