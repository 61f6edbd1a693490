"""`flashace export`: a model for another program."""

from pathlib import Path

import click

from flashace.cli.terminal import console


@click.command()
@click.argument("model", type=click.Path())
@click.option("--for", "engine", type=click.Choice(["lammps"]), required=True, help="The program that is to run it.")
@click.option("-o", "--output", help="File to write; MODEL with .so for its ending where not given.")
@click.option("--dtype", default="float32", show_default=True, help="Precision inside the network: float32 or float64.")
@click.option("--march", default="native", show_default=True, help="Kind of processor, as gcc names it: x86-64-v3 for any with AVX2.")
def export(model: str, engine: str, output: str | None, dtype: str, march: str) -> None:
    """One file of MODEL, compiled and with its weights, for another program (docs/lammps.md)."""
    from flashace.calculator import choose_dtype
    from flashace.engines.lammps.export import export_for_lammps
    from flashace.potential.model_file import NO_FREE_ATOMS, load_model

    target = Path(output or Path(model).with_suffix(".so"))
    network = load_model(model, choose_dtype(dtype))
    lacking = export_for_lammps(network, target, model, march)
    tried = f"not tried: this processor lacks {', '.join(lacking)}" if lacking else "gives the energies and forces of the plain path"
    console.print(f"{engine}  {target}  {dtype}, {march}, {target.stat().st_size / 1e6:.1f} MB; {tried}", soft_wrap=True)
    if network.uncertainty is None or network.uncertainty.force_law is None:
        console.print("without uncertainty of forces: `flashace calibrate` adds it to the model, then export again", soft_wrap=True)
    if not network.free_atoms:
        console.print(NO_FREE_ATOMS, soft_wrap=True)
    console.print(f"in the input: pair_style flashace\n              pair_coeff * * {target} {' '.join(network.symbols)}", soft_wrap=True)
