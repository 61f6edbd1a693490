"""`flashace evaluate`: errors of a model."""

from typing import Any

import click

from flashace.cli.fields import LABEL_KEYS, WithFields
from flashace.cli.shared import check_output, device_option, dtype_option, graphs_of, label_keys
from flashace.cli.terminal import console


@click.command(cls=WithFields, fields=LABEL_KEYS)
@click.argument("model", type=click.Path())
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", default="predictions.extxyz", show_default=True, help="Frames with their predictions.")
@device_option
@dtype_option
def evaluate(model: str, data: tuple[str, ...], output: str, device: str, dtype: str, **keys: Any) -> None:
    """Errors of MODEL on labelled structures; predictions go to a file."""
    from flashace.backends.choice import backend_of
    from flashace.calculator import choose_device, choose_dtype
    from flashace.data.shards import read_data
    from flashace.evaluate import report
    from flashace.evaluate.calibrate import calibration_rows, force_calibration_rows
    from flashace.evaluate.predict import error_rows, predict_graphs
    from flashace.potential.model_file import load_model

    check_output("--output", output, model, *data)
    report.check_name_of_predictions(output)
    network = load_model(model, choose_dtype(dtype), choose_device(device))
    frames, labels = read_data(data, label_keys(keys), required=("energy",))
    graphs = graphs_of(frames, network.config.r_max)
    for graph in graphs:
        network.check_elements(graph.numbers)
    predictions = predict_graphs(network, graphs, backend=backend_of(network))
    report.write_predictions(output, frames, predictions)
    console.print(report.label_table(labels))
    console.print(report.error_table({"data": error_rows(frames, predictions)}))
    if network.uncertainty is not None:
        console.print(report.calibration_table(calibration_rows(frames, predictions)))
        if network.uncertainty.force_law is not None:
            console.print(report.calibration_table(force_calibration_rows(frames, predictions), "forces"))
    console.print(f"predictions  {output}", soft_wrap=True)
