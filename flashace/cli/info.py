"""`flashace info`: what a model file says of itself."""

import click
from rich.table import Table

from flashace.cli.terminal import console


@click.command()
@click.argument("model", type=click.Path())
def info(model: str) -> None:
    """What MODEL is: elements, sizes, reference energies, what it was fitted to and how well."""
    from flashace.evaluate import report
    from flashace.potential.model_file import NO_FREE_ATOMS, read_header, told_free_atoms
    from flashace.teach.certificate import Certificate, certificate_table
    from flashace.verify.outside_data import Sanity

    header = read_header(model)
    provenance = header["provenance"]
    table = Table(show_header=False, title=str(model), title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # a hash is shown whole
    table.add_row("elements", ", ".join(header["atomic_energies"]))
    energies = ", ".join(f"{s} {e:.6f}" for s, e in header["atomic_energies"].items())
    origin = provenance.get("reference_energies", "origin unknown")
    table.add_row("reference energies", f"{energies} eV, {origin}")
    if not told_free_atoms(header.get("free_atoms"), origin):
        table.add_row("", NO_FREE_ATOMS)
    table.add_row("parameters", f"{header['num_parameters']:,}")
    if header.get("shortest_distances") is not None:
        distances = ", ".join(f"{pair} {r:.3f}" for pair, r in header["shortest_distances"].items())
        table.add_row("shortest distances", f"{distances} Å; other pairs never within r_max")
    if header.get("coordination") is not None:
        ranges = ", ".join(f"{pair} {least:.2f} to {most:.2f}" for pair, (least, most) in header["coordination"].items())
        table.add_row("neighbours in training", f"{ranges} (the centre first, each neighbour counted by the envelope)")
    if header.get("energy_bound") is not None:
        table.add_row("bound of the network", f"{header['energy_bound']:.4g} eV per atom, beyond its reference energy")
    for name, value in header["config"].items():
        table.add_row(name, str(value))
    table.add_row("uncertainty", report.uncertainty_in_words(header.get("uncertainty")))
    if provenance.get("sanity") is not None:
        table.add_row("outside the data", Sanity(*(provenance["sanity"][name] for name in Sanity._fields)).in_words())
    table.add_row("format", str(header["format"]))
    if "check" in provenance:
        table.add_row("check of the labels", provenance["check"])
    for name in ("training_data", "teacher", "versions"):
        for key, value in provenance.get(name, {}).items():
            table.add_row(f"{name.replace('_', ' ')}: {key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    console.print(table)
    if "errors" in provenance:
        console.print(report.error_table(provenance["errors"]))
    if provenance.get("certificate") is not None:
        found = Certificate.from_dict(provenance["certificate"])
        console.print(certificate_table(found))
        if found.errors:
            console.print(report.error_table(found.errors))
