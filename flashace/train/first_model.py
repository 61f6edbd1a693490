"""A prepared fit and the graphs of its training frames in; the model that training starts with out."""

from collections.abc import Sequence
from itertools import islice

import torch

from flashace.data import statistics
from flashace.data.frames import Labelled
from flashace.errors import FlashACEError
from flashace.nn.readout import Readout
from flashace.potential.derivatives import EdgeBudget
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import bound_of
from flashace.structure.coordination import Coordination
from flashace.structure.graph import Graph, Part
from flashace.train.prepare import Prepared
from flashace.train.ranks import Ranks

MAX_FRAMES_TO_START, RIDGE = 500, 1e-4


def first_model(prepared: Prepared, graphs: Sequence[Graph], ranks: Ranks) -> AttentionACE:
    """The same on every rank. Its readouts know the energies, unless it comes from a checkpoint."""
    model = make_model(prepared, graphs)
    if prepared.start is None and ranks.first:
        start_readouts(model, graphs, prepared.train)
    ranks.copy_first(list(model.parameters()))
    return model


def make_model(prepared: Prepared, graphs: Sequence[Graph]) -> AttentionACE:
    """The model that training starts with, without the energies of `start_readouts`; a fit that resumes has the weights of its checkpoint.

    The seed of the configuration draws the others, and torch's own random state is left alone.
    Raises FlashACEError where no atom has a neighbour.
    """
    if not any(graph.edge_vec.shape[0] for graph in graphs):
        raise FlashACEError(
            f"r_max={prepared.config.model.r_max:g} Å: no atom of the training frames has a neighbour within it; raise --r-max"
        )
    start = prepared.start
    c = prepared.config.model
    # None of a model that does not know its own
    before = {} if start is None else start.model.get("shortest_distances")
    counted = {} if start is None else start.model.get("coordination")
    bound = statistics.energy_bound(prepared.train, prepared.references.values)
    elements = list(prepared.references.values)
    found = statistics.neighbour_statistics(graphs, elements, c.r_max, c.envelope_exponent, before or {}, counted or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(prepared.config.train.seed)
        model = AttentionACE(
            c,
            prepared.references.values,
            scale=prepared.units["forces"] if start is None else start.model["scale"],
            avg_num_neighbors=found.average if start is None else start.model["avg_num_neighbors"],
            dtype=prepared.dtype,
            shortest_distances=None if before is None else found.shortest,
            energy_bound=bound if start is None else max(bound, bound_of(start.model)),
            free_atoms=prepared.references.free_atoms,
        )
    if counted is not None:
        model.coordination = Coordination(found.coordination, model.symbols)
    if start is not None:
        model.load_state_dict(start.weights, strict=True)
    return model.to(prepared.device)


def start_readouts(model: AttentionACE, graphs: Sequence[Graph], frames: Sequence[Labelled]) -> None:
    """Let the linear readouts of the untrained network meet the energies of the training frames as well as they can (ridge regression).

    With true isolated-atom energies as reference, frames are bound by several eV per atom: the fit would spend its first epochs on that
    constant, with gradients far larger than any that follow.
    """
    known = ((i, len(f.atoms), f.energy) for i, f in enumerate(frames) if f.energy is not None)
    chosen = list(islice(known, MAX_FRAMES_TO_START))
    features, targets = [], []
    states: list[torch.Tensor] = []
    linears = [readout.linear for readout in model.readouts if isinstance(readout, Readout)]
    hooks = [linear.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0])) for linear in linears]
    for linear in linears:
        linear.weight.data.zero_()
    budget = EdgeBudget.of(model.embedding.device)

    def energy_and_features(part: Part) -> torch.Tensor:
        states.clear()
        energies = model(part.graph)
        n, s = energies.shape[0], torch.cat(states, dim=-1).double()
        element = model.element_index[part.graph.numbers[:n]]
        return torch.cat([energies.sum().unsqueeze(0), (s[:n] - s[n:][element]).sum(0)])

    with torch.no_grad():
        for i, n, energy in chosen:
            graph = graphs[i]
            on_device = graph.with_edge_vec(graph.edge_vec.to(model.dtype)).to(model.embedding.device)
            total = torch.stack([found for _, found in budget.each_part(on_device, energy_and_features)]).sum(0)
            features.append(total[1:] / n)
            targets.append((energy - total[0].item()) / n / model.scale)
    for hook in hooks:
        hook.remove()
    if not any(feature.any() for feature in features):
        return
    X, y = torch.stack(features).cpu(), torch.tensor(targets, dtype=torch.float64)
    gram = X @ X.T
    weights = X.T @ torch.linalg.solve(gram + RIDGE * gram.trace() / len(y) * torch.eye(len(y), dtype=torch.float64), y)
    for linear, weight in zip(linears, weights.split(model.config.hidden_dim), strict=True):
        linear.weight.data.copy_(weight.reshape_as(linear.weight))
