"""A fitted model and frames with other labels in; the same network with their elements and their zero of energy, to start from, out."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from ase.data import atomic_numbers, covalent_radii

from flashace.data import statistics
from flashace.data.frames import Labelled
from flashace.data.graphs import build_graphs
from flashace.data.lazy import sample
from flashace.data.statistics import ReferenceEnergies
from flashace.errors import FlashACEError
from flashace.evaluate.predict import predict_each
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import bound_of, config_of, told_free_atoms
from flashace.structure.graph import Graph
from flashace.train.checkpoint import Start
from flashace.train.config import FitConfig, TrainConfig
from flashace.train.references import are_free_atoms, given_energies

FRAMES_TO_ALIGN = 500  # evenly drawn
ELEMENT_ROWS = "embedding", ".centre", ".neighbour"  # ends of the names of the weights that have a row for each element


def start_for(start: Start, t: TrainConfig, isolated: dict[str, float], frames: Sequence[Labelled]) -> tuple[Start, ReferenceEnergies]:
    """The model to finish on `frames`, and the reference energies of the fit: those of the elements of both.

    Where the options or the data give energies (`isolated`, in eV, are those of atoms alone there), these hold, and the network has to make
    up for what they leave (`Start.adapts`). Where nothing gives any, each element has that of the model, changed by least squares over what
    the energies of the frames are off: nothing is left then, and no force changes. An element that the data lacks, and for which nothing
    gives an energy, keeps that of the model.
    """
    elements = statistics.elements_of(frames)
    extended, began_as = with_elements(start, elements)
    own, model_knows = extended.model["atomic_energies"], told_free_atoms(start.model.get("free_atoms"), start.reference_energies)
    way, given = given_energies(t, isolated, frames, None)
    if given:
        found = statistics.reference_energies(frames, given, f"from {way}")
        free_atoms = are_free_atoms(t, isolated)
    else:
        found = zero_of(extended, frames)
        free_atoms = model_knows and not began_as
    kept = {symbol: given.get(symbol, energy) for symbol, energy in own.items() if symbol not in elements}
    origin = found.origin
    unknown = [symbol for symbol in kept if symbol not in given]
    if unknown:
        origin += f"; of {', '.join(unknown)}, which the data lacks, those of the model"
        free_atoms = free_atoms and model_knows
    if began_as:
        new = ", ".join(f"{symbol} (begins as {like})" for symbol, like in began_as.items())
        extended = replace(extended, told=f"; new elements: {new}")
    values = {symbol: (found.values | kept)[symbol] for symbol in own}
    description = {**extended.model, "atomic_energies": values}
    return replace(extended, model=description, adapts=bool(given), uncertainty=None), ReferenceEnergies(values, origin, free_atoms)


def take_shape(config: FitConfig, start: Start) -> FitConfig:
    """The options with the shape of the model. Raises FlashACEError where somebody asked for another."""
    theirs = config_of(start.model)
    other = [
        f"{name} {getattr(theirs, name)} there and {getattr(config.model, name)} here"
        for name in sorted(config.asked)
        if getattr(theirs, name) != getattr(config.model, name)
    ]
    if other:
        raise FlashACEError(f"pretrained: {start.path}: the shape is that of the model, got {'; '.join(other)}; leave these options out")
    return replace(config, model=theirs)


def weights_of_end(start: Start) -> Start:
    """Averaged weights to begin with, and nothing else of a checkpoint."""
    return replace(start, weights=start.average, state=None)


def with_elements(start: Start, elements: Sequence[str]) -> tuple[Start, dict[str, str]]:
    """The model with these elements too, and of each new one which old one it begins as: the one with the nearest covalent radius.

    Only weights with a row for each element change. The energy of a new element is 0 eV.
    """
    own = start.model["atomic_energies"]
    before = sorted(own, key=atomic_numbers.__getitem__)
    after = sorted({*before, *elements}, key=atomic_numbers.__getitem__)
    began_as = {symbol: _nearest(symbol, before) for symbol in after if symbol not in before}
    if not began_as:
        return start, {}
    rows = [before.index(began_as.get(symbol, symbol)) for symbol in after]
    average = {name: weight[rows] if name.endswith(ELEMENT_ROWS) else weight for name, weight in start.average.items()}
    description = {**start.model, "atomic_energies": {symbol: own.get(symbol, 0.0) for symbol in after}}
    return replace(start, model=description, weights=average, average=average), began_as


def _nearest(symbol: str, known: Sequence[str]) -> str:
    radius = covalent_radii[atomic_numbers[symbol]]
    return min(known, key=lambda other: abs(covalent_radii[atomic_numbers[other]] - radius))


def zero_of(start: Start, frames: Sequence[Labelled]) -> ReferenceEnergies:
    """The reference energies with which the model has the energies of `frames` right, by least squares: its own, changed as little as can
    be. Of at most FRAMES_TO_ALIGN frames; elements that none of them has keep their energy."""
    known = [frame for frame in sample(frames, FRAMES_TO_ALIGN) if frame.energy is not None]
    own = start.model["atomic_energies"]
    graphs = build_graphs(known, config_of(start.model).r_max)
    found = predict_each(_network(start, graphs), graphs)
    off = [replace(f, energy=float(f.energy or 0.0) - p["energy"]) for f, p in zip(known, found, strict=True)]
    if not off:
        return ReferenceEnergies(dict(own), f"those of {start.path}: the data has no energies")
    change = statistics.reference_energies(off, {}, "")
    values = {symbol: energy + change.values.get(symbol, 0.0) for symbol, energy in own.items()}
    return ReferenceEnergies(values, f"those of {start.path}, changed by {change.origin}", free_atoms=False)


def _network(start: Start, graphs: Sequence[Graph]) -> AttentionACE:
    """In float64, with the shortest distances that it will have in a fit to these graphs."""
    d = start.model
    shortest = d.get("shortest_distances")
    if shortest is not None:
        c = config_of(d)
        shortest = statistics.neighbour_statistics(graphs, list(d["atomic_energies"]), c.r_max, c.envelope_exponent, shortest, {}).shortest
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights, which are replaced below
        model = AttentionACE(config_of(d), d["atomic_energies"], d["scale"], d["avg_num_neighbors"], torch.float64, shortest, bound_of(d))
    model.load_state_dict(start.average, strict=True)
    return model.requires_grad_(False).eval()
