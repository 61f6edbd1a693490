"""Many structures in, their ASE results out, evaluated at once: as a list, or behind ASE's own NEB, Vibrations and Phonons."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.phonons import Displacement

from flashace.calculator import Evaluation, FlashACE
from flashace.errors import FlashACEError
from flashace.potential.model_source import Given
from flashace.structure.graph import Graph
from flashace.structure.neighbors import build_graph
from flashace.surroundings import undisturbed

Key = tuple[bytes, ...]


@undisturbed
def evaluate_many(structures: Iterable[Atoms], calculator: FlashACE | Given | Sequence[Given]) -> list[dict[str, Any]]:
    """ASE's results of each structure, as `calculator.results` has them after a calculation: energy, free_energy, energies, forces; with a
    cell, stress and stresses. In eV and Å.

    As many structures are evaluated at once as make up `max_edges` neighbour pairs, which gains most where they are small. `calculator` may
    be whatever `FlashACE` takes as a model; what it has computed before stays as it is. Raises what the calculator would raise for one of
    them, with its place.
    """
    if isinstance(structures, Atoms):
        raise FlashACEError("structures: expected a list of Atoms, got one Atoms; say [atoms]")
    if not isinstance(calculator, FlashACE):
        calculator = FlashACE(calculator)
    evaluated = []
    for n, (graph, prediction) in enumerate(calculator.predict(_graphs(structures, calculator))):
        with _about(n):
            evaluated.append(calculator.evaluation(graph, prediction).results)
    return evaluated


@contextmanager
def batched(work: Any) -> Iterator[None]:
    """Within it, ASE's NEB, Vibrations and Phonons (unchanged, and what is derived from them) have their structures evaluated at once.

    ::

        with batched(neb):
            BFGS(neb).run(fmax=0.05)

    `work` is one of these or a list of `Atoms` with calculators. When a calculator is asked for one of the structures, all of them are
    evaluated that have moved since: images of a path where they are by then, displaced structures as they follow from the equilibrium at
    the start. Results are the same to rounding. Any other structure is evaluated as always, by itself.

    Raises FlashACEError where there is no `FlashACE` among the calculators, or where they differ in the model or in an option.
    """
    members = [(atoms, calculator) for atoms, calculator in _members(work) if isinstance(calculator, FlashACE)]
    calculators = list({id(calculator): calculator for _, calculator in members}.values())
    if not calculators:
        raise FlashACEError(
            "batched: expected NEB, Vibrations, Phonons or a list of Atoms with calculators of FlashACE, got none of these; "
            "set the calculators before"
        )
    first = calculators[0]
    for other in calculators[1:]:
        if other.models != first.models or other.parameters != first.parameters:
            raise FlashACEError(
                f"batched: expected calculators with one model and the same options, got {first.parameters} and {other.parameters}; make "
                "them alike"
            )
    batch, before = _Batch(members), [calculator.batch for calculator in calculators]
    for calculator in calculators:
        calculator.batch = batch
    try:
        yield
    finally:
        for calculator, outer in zip(calculators, before, strict=True):
            calculator.batch = outer


class _Batch:
    """Results of structures, by what they are now."""

    def __init__(self, members: Sequence[tuple[Atoms, FlashACE]]) -> None:
        self._members = members
        self._models, self._parameters = members[0][1].models, dict(members[0][1].parameters)
        self._known: dict[Key, Evaluation] = {}
        self._lock = threading.Lock()  # a NEB with parallel=True has a thread per image

    def __call__(self, atoms: Atoms, calculator: FlashACE) -> Evaluation | None:
        """None for a structure, or a calculator with a model or options, that is not among them; and where one of them cannot be evaluated:
        each is then asked for by itself, and tells its own error."""
        asked = _key(atoms)
        with self._lock:
            if not self._serves(calculator):
                return None
            if asked not in self._known:
                now = {_key(member): (member, its) for member, its in self._members if self._serves(its)}
                if asked not in now:
                    return None
                self._known = {key: self._known[key] for key in now if key in self._known}
                try:
                    self._evaluate({key: now[key] for key in now if key not in self._known})
                except (FlashACEError, CalculationFailed):
                    return self._known.get(asked)
            return self._known[asked]

    def _serves(self, calculator: FlashACE) -> bool:
        """Options may be changed within the block."""
        return calculator.models == self._models and calculator.parameters == self._parameters

    def _evaluate(self, wanted: dict[Key, tuple[Atoms, FlashACE]]) -> None:
        calculator = next(iter(wanted.values()))[1]
        predictions = calculator.predict(each.graph(atoms) for atoms, each in wanted.values())
        for key, (graph, prediction) in zip(wanted, predictions, strict=True):
            self._known[key] = calculator.evaluation(graph, prediction)


def _members(work: Any) -> Iterator[tuple[Atoms, Any]]:
    """The structures that will be asked for, and whom."""
    if isinstance(work, Displacement):  # Phonons
        supercell = work.atoms * work.supercell
        yield supercell, work.calc
        first = len(work.atoms) * work.offset
        for a in work.indices:
            for axis in range(3):
                for sign in (-1, 1):
                    displaced = supercell.copy()
                    displaced.positions[first + a, axis] = supercell.positions[first + a, axis] + sign * work.delta
                    yield displaced, work.calc
    elif hasattr(work, "iterdisplace"):  # Vibrations; to import them takes half a second
        yield from ((atoms, work.calc) for _, atoms in work.iterdisplace())
    else:  # NEB, or a list
        images = getattr(work, "images", work)
        if not isinstance(images, Iterable) or isinstance(images, Atoms):
            images = []
        yield from ((atoms, atoms.calc) for atoms in images)


def _key(atoms: Atoms) -> Key:
    return tuple(x.tobytes() for x in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc))


def _graphs(structures: Iterable[Atoms], calculator: FlashACE) -> Iterator[Graph]:
    for n, atoms in enumerate(structures):
        with _about(n):
            calculator.set_atoms(atoms)
            graph = build_graph(atoms, calculator.r_max)
        yield graph


@contextmanager
def _about(n: int) -> Iterator[None]:
    try:
        yield
    except (FlashACEError, CalculationFailed) as error:
        raise type(error)(f"structure {n}: {error}") from error
