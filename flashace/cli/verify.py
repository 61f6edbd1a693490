"""`flashace verify`: the laws that a calculator obeys."""

import click

from flashace.cli.shared import check_output, write_json
from flashace.cli.terminal import console


@click.command()
@click.argument("model")
@click.argument("structure", type=click.Path())
@click.option(
    "--calculator",
    default="flashace.calculator:FlashACE",
    show_default=True,
    help="module:Class of any ASE calculator; it is given MODEL, unless that is -.",
)
@click.option("--arg", "arguments", multiple=True, help="name=value: a further argument of the calculator; as often as needed.")
@click.option("--json", "json_file", type=click.Path(), help="File for the results.")
@click.option("--device", help="Handed to the calculator; its own choice where not given.")
@click.option("--dtype", type=click.Choice(["float64", "float32"]), default="float64", show_default=True, help="Precision to check in.")
def verify(
    model: str, structure: str, calculator: str, arguments: tuple[str, ...], json_file: str | None, device: str | None, dtype: str
) -> None:
    """Does MODEL obey the laws that a potential has to obey, on STRUCTURE (the last frame)? Exit status 1 where it does not."""
    from flashace.data.shards import read_data
    from flashace.verify import calculator_factory, law_table
    from flashace.verify import verify as verify_laws

    check_output("--json", json_file, model, structure)
    frames, _ = read_data(structure, required=())
    make_calculator, choosable = calculator_factory(calculator, model, device, arguments)
    precisions = ("float64", "float32") if choosable and dtype == "float64" else (dtype,)
    results = verify_laws(make_calculator, frames[-1].atoms, precisions)
    if json_file is not None:
        write_json(json_file, [result._asdict() for result in results])
    console.print(law_table(results))
    broken = [result.law for result in results if result.passed is False]
    if broken:
        console.print(f"broken: {', '.join(broken)}")
        raise SystemExit(1)
