"""`flashace calibrate`: a model learns how uncertain it is."""

import itertools
from typing import Any

import click

from flashace.cli.fields import LABEL_KEYS, WithFields
from flashace.cli.shared import check_output, device_option, graphs_of, label_keys
from flashace.cli.terminal import console


@click.command(cls=WithFields, fields=LABEL_KEYS)
@click.argument("model", type=click.Path())
@click.argument("data", nargs=-1, required=True)
@click.option("--valid", multiple=True, help="Frames that were not fitted; those of DATA that the fit held out, where not given.")
@click.option("-o", "--output", help="Model file to write; MODEL itself where not given.")
@device_option
def calibrate(model: str, data: tuple[str, ...], valid: tuple[str, ...], output: str | None, device: str, **keys: Any) -> None:
    """Give MODEL, fitted to DATA, what it needs to say how uncertain its energies and forces are. A fit does this itself where it can."""
    from flashace.calculator import choose_device, choose_dtype
    from flashace.evaluate import report
    from flashace.evaluate.calibrate import calibration_sets, estimate_uncertainty
    from flashace.potential.model_file import load_model, read_header, save_model

    check_output("--output", output or model, *data, *valid)
    header = read_header(model)
    network = load_model(model, choose_dtype(header["dtype"]), choose_device(device))
    sets = calibration_sets(data, valid, label_keys(keys), header["provenance"])
    graphs = [graphs_of(frames, network.config.r_max) for frames in sets]
    for graph in itertools.chain(*graphs):
        network.check_elements(graph.numbers)
    train, held_out = zip(sets, graphs, strict=True)
    network.uncertainty = estimate_uncertainty(network, train, held_out)
    save_model(output or model, network, header["provenance"])
    console.print(f"uncertainty {report.uncertainty_in_words(network.uncertainty.describe())}\nmodel  {output or model}", soft_wrap=True)
