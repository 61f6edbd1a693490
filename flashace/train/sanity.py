"""A fitted model and its training frames in; how it behaves where it has no data, out."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from flashace.data.frames import Labelled
from flashace.evaluate.predict import predict_graphs
from flashace.potential.model import AttentionACE
from flashace.structure.neighbors import build_graph
from flashace.verify.hard_structures import hard_structures, short_distances
from flashace.verify.outside_data import Sanity, Usual, judge


def sanity_of_fit(model: AttentionACE, frames: Sequence[Labelled]) -> Sanity:
    """Of structures made from two of the frames and all elements of the model; what is usual, the labels of all frames say."""
    short = short_distances(model.symbols, model.shortest_distances or {})
    structures = hard_structures(_two_kinds(frames), short, model.config.r_max)
    predictions = predict_graphs(model, [build_graph(atoms, model.config.r_max) for _, atoms in structures])
    free_atoms = {int(Atoms(symbol).numbers[0]): energy for symbol, energy in model.e0.items()}
    return judge(structures, [(p["energy"], p["forces"]) for p in predictions], free_atoms, _usual(model, frames), short)


def in_a_sentence(found: Sanity) -> str:
    """For the end of a fit."""
    if found.worst <= 1:
        return f"outside the data: {found.in_words()}"
    return (
        f"NOT SANE outside the data: {found.in_words()}. Do not let a simulation leave the data: watch its warnings, or add frames with "
        "surfaces, holes and broken bonds (docs/verify.md)"
    )


def _two_kinds(frames: Sequence[Labelled]) -> list[Atoms]:
    """The first frame, and the first one of another composition."""
    first = frames[0].atoms
    formula = first.get_chemical_formula(empirical=True)
    others = (frame.atoms for frame in frames if frame.atoms.get_chemical_formula(empirical=True) != formula)
    return [first, *[atoms for atoms in [next(others, None)] if atoms is not None]]


def _usual(model: AttentionACE, frames: Sequence[Labelled]) -> Usual:
    energies, force = [0.0], 0.0  # free atoms are known always
    for frame in frames:
        if frame.energy is not None:
            energies.append((frame.energy - sum(model.e0[symbol] for symbol in frame.atoms.symbols)) / len(frame.atoms))
        if frame.forces is not None:
            force = max(force, float(np.linalg.norm(frame.forces, axis=1).max()))
    return Usual(min(energies), max(energies), force)
