"""Options, data and the model to start from in; one reference energy per element, by the one way that holds, out."""

from collections.abc import Sequence
from dataclasses import replace

from flashace.data import statistics
from flashace.data.frames import LabelKeys, Labelled, isolated_atom_energies
from flashace.data.shards import read_data
from flashace.errors import FlashACEError
from flashace.potential.model_file import told_free_atoms
from flashace.train.checkpoint import Start
from flashace.train.config import TrainConfig


def reference_energies(
    t: TrainConfig, isolated: dict[str, float], frames: Sequence[Labelled], start: Start | None
) -> statistics.ReferenceEnergies:
    """E0 in the one way that holds; no way at all means least squares. `isolated` are those of atoms alone in the data, in eV.

    Raises as `given_energies` does.
    """
    first, given = given_energies(t, isolated, frames, start)
    found = statistics.reference_energies(frames, given, f"from {first}")
    if not isolated and not t.isolated_atoms and start is not None and t.use_checkpoint_energy_shift:
        return replace(found, free_atoms=told_free_atoms(start.model.get("free_atoms"), start.reference_energies))
    return replace(found, free_atoms=found.free_atoms and are_free_atoms(t, isolated))


def are_free_atoms(t: TrainConfig, isolated: dict[str, float]) -> bool:
    """Whether energies that are given are those of atoms alone."""
    return t.energy_shift_per_atom is None or bool(isolated or t.isolated_atoms)


def given_energies(
    t: TrainConfig, isolated: dict[str, float], frames: Sequence[Labelled], start: Start | None
) -> tuple[str, dict[str, float]]:
    """The name of the way that holds, and its energies in eV: none of no way, and where least squares are asked for.

    Raises FlashACEError where two ways say different things.
    """
    ways: dict[str, dict[str, float]] = {}
    of_start = start is not None and t.use_checkpoint_energy_shift
    if start is not None and of_start:
        ways[f"{start.path} (use_checkpoint_energy_shift)"] = start.model["atomic_energies"]
    if t.energy_shift_per_atom is not None:
        ways["energy_shift_per_atom"] = dict.fromkeys(statistics.elements_of(frames), t.energy_shift_per_atom)
    if t.atomic_energies:
        ways["atomic_energies"] = t.atomic_energies
    if t.isolated_atoms:
        ways[t.isolated_atoms] = _energies_of_file(t.isolated_atoms, t.energy_key)
    if t.solve_atomic_energies:
        ways["solve_atomic_energies"] = {}
    elif isolated:
        ways["isolated atoms in the data"] = isolated
    first, *others = ways or {"": {}}
    for other in others:
        _same_energies(first, ways[first], other, ways[other], of_start)
    return first, ways.get(first, {})


def _same_energies(one: str, energies: dict[str, float], other: str, other_energies: dict[str, float], of_start: bool) -> None:
    """`of_start`: one of them are the energies of the model that the fit starts from."""
    tolerance = 1e-4  # eV; the same numbers, printed with fewer digits
    mend = "give the reference energies in one way"
    if of_start:
        mend = (
            f"to take those of `{other}`, to which the model then adapts, say --no-use-checkpoint-energy-shift "
            f"(use_checkpoint_energy_shift: false); to keep those of the model, leave out `{other}`"
        )
    if not energies or not other_energies:
        raise FlashACEError(f"`{one}` and `{other}` contradict each other: {mend}")
    for symbol in energies.keys() & other_energies.keys():
        if abs(energies[symbol] - other_energies[symbol]) > tolerance:
            raise FlashACEError(
                f"`{one}` and `{other}` contradict each other: {energies[symbol]} and {other_energies[symbol]} eV for {symbol}; {mend}"
            )


def _energies_of_file(path: str, energy_key: str | None) -> dict[str, float]:
    lone = [f for f in read_data(path, LabelKeys(energy=energy_key), required=("energy",))[0] if len(f.atoms) == 1]
    if not lone:
        raise FlashACEError(f"{path}: expected frames with one atom and its energy, got none")
    return isolated_atom_energies([replace(f, config_type="isolated_atom") for f in lone])[0]
