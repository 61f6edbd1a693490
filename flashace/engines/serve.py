"""A calculator and the address of a server in; the server's structures evaluated, over sockets and the i-PI protocol."""

import time

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.socketio import IPIProtocol, SocketClient, actualunixsocketname

from flashace.errors import FlashACEError

PORT = 31415  # that of i-PI and of ASE
PAUSE = 0.2  # s between two attempts to reach the server


def serve(
    calculator: Calculator, template: Atoms, unixsocket: str | None = None, host: str = "localhost", port: int = PORT, wait: float = 30.0
) -> int:
    """Evaluate what the server sends until it says EXIT or closes the connection; returns how many structures that were.

    The protocol (Ceriotti, More and Manolopoulos, Comput. Phys. Commun. 185, 1019, 2014) sends positions and a cell; elements, order of
    the atoms and periodic directions are those of `template`. Energy, forces and, where the cell has three vectors, the virial go back;
    where it has not, the virial is zero. `unixsocket` is the server's name for it (the file is /tmp/ipi_NAME) and goes before `host` and
    `port`. A server that is not there yet is waited for, `wait` seconds.

    Raises FlashACEError where no server listens, the number of atoms is not that of the template, or the connection breaks; and as the
    calculator does, which closes the connection.
    """
    # without constraints: forces go to the server as they are
    atoms = Atoms(template.numbers, template.positions, cell=template.cell, pbc=template.pbc)
    atoms.calc = calculator
    where = f"{host}:{port}" if unixsocket is None else actualunixsocketname(unixsocket)
    client = _connect(where, wait, {"host": host, "port": port} if unixsocket is None else {"unixsocket": unixsocket})
    client.protocol = _Protocol(client.protocol.socket, len(atoms))
    evaluated = 0
    try:
        for _ in client.irun(atoms):
            evaluated += 1
    except OSError as error:
        raise FlashACEError(
            f"{where}: the connection broke within a message, after {evaluated} structures ({str(error) or 'closed by the server'}); "
            "look at what the server says"
        ) from error
    return evaluated


class _Client(SocketClient):
    def calculate(self, atoms: Atoms, use_stress: bool) -> tuple[float, np.ndarray, np.ndarray]:
        """ASE takes any periodic direction for a volume; a cell from the server may have one where the template has none."""
        return super().calculate(atoms, atoms.cell.rank == 3)


class _Protocol(IPIProtocol):
    def __init__(self, socket: object, num_atoms: int) -> None:
        super().__init__(socket)
        self.num_atoms = num_atoms

    def recv(self, shape: object, dtype: object) -> np.ndarray:
        try:
            return super().recv(shape, dtype)
        except AssertionError as error:
            raise FlashACEError(
                "structure: expected finite numbers from the server, got NaN or infinity; look for a time step that is too long"
            ) from error

    def recvposdata(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A single atom would be taken for all of them."""
        cell, inverse, positions = super().recvposdata()
        if len(positions) != self.num_atoms:
            raise FlashACEError(
                f"structure: expected {self.num_atoms} atoms, as the template has, got {len(positions)} from the server; give both the "
                "same structure"
            )
        return cell, inverse, positions


def _connect(where: str, wait: float, address: dict[str, object]) -> _Client:
    end = time.monotonic() + wait
    while True:
        try:
            return _Client(**address)
        except OSError as error:
            if time.monotonic() > end:
                raise FlashACEError(
                    f"{where}: expected a server of the i-PI protocol, found none in {wait:g} s ({error}); start it, or give its address"
                ) from error
        time.sleep(PAUSE)
