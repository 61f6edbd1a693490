"""Model and frames in, predictions and errors out."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flashace.backends.backend import Backend
from flashace.backends.plain import Plain
from flashace.data.frames import Labelled
from flashace.evaluate.metrics import ErrorTable
from flashace.potential.derivatives import EdgeBudget
from flashace.potential.model import AttentionACE
from flashace.structure.graph import Graph, batch_graphs


def predict_graphs(
    model: AttentionACE, graphs: Iterable[Graph], advance: Callable[[int], Any] = lambda done: None, backend: Backend | None = None
) -> list[dict[str, Any]]:
    """What `predict_each` gives, of all graphs at once."""
    return list(predict_each(model, graphs, advance, backend))


def predict_each(
    model: AttentionACE, graphs: Iterable[Graph], advance: Callable[[int], Any] = lambda done: None, backend: Backend | None = None
) -> Iterator[dict[str, Any]]:
    """Energy (eV), forces [N, 3] (eV/Å) and stress [3, 3] (eV/Å³, None without a cell) of each graph, as numpy in float64.

    Where the model knows it, also the standard deviation of the energy and of those of the atoms [N] (eV): `energy_uncertainty` and
    `energies_uncertainty`; and of a component of the force on each atom [N] (eV/Å): `forces_uncertainty`.
    `advance` is called with the number of graphs just done. `backend` evaluates the model; the plain path where none is given, since a fit,
    whose weights change, has no time to compile them.
    """
    backend = backend or Plain(model)
    budget = EdgeBudget.of(backend.device)
    for chunk in budget.batches(graphs):
        result = backend.predict(batch_graphs(chunk), budget, model.uncertainty is not None)
        predictions: list[dict[str, Any]] = []
        forces = result.forces.cpu().split([g.numbers.shape[0] for g in chunk])
        for graph, energy, f, stress in zip(chunk, result.energy.tolist(), forces, result.stress.cpu(), strict=True):
            has_cell = bool(graph.cell.det().abs() > 0)
            predictions.append({"energy": energy, "forces": f.numpy(), "stress": stress.numpy() if has_cell else None})
        if model.uncertainty is not None and result.features is not None:
            for prediction, features in zip(predictions, result.features.split([len(g.numbers) for g in chunk]), strict=True):
                whole, each = model.uncertainty(features)
                prediction |= {"energy_uncertainty": whole.item(), "energies_uncertainty": each.cpu().numpy()}
                if model.uncertainty.force_law is not None:
                    prediction["forces_uncertainty"] = model.uncertainty.force_law(each).cpu().numpy()
        advance(len(chunk))
        yield from predictions


def error_rows(frames: Iterable[Labelled], predictions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `ErrorTable` for these frames."""
    table = ErrorTable()
    for frame, prediction in zip(frames, predictions, strict=True):
        table.add(frame, prediction)
    return table.rows()
