"""A pool of structures and a model in; the frames that are worth a label, and what they are expected to bring, out.

A frame is worth what its label is expected to take off the uncertainty of the whole pool. In the linear last layer of the model, a label of
atoms with features X turns the covariance F of the training data into F + XᵀX, whatever the label says: a frame makes those like it certain
before anybody has computed it. Frames are chosen one by one, each for the largest fall of the mean variance over all atoms of the pool (Yu,
Bi and Tresp, Active learning via transductive experimental design, ICML 2006). F is in the model file, so the training data need not be
read, and what it has is not chosen again.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write

from flashace.calculator import FlashACE
from flashace.data.origin import Origin
from flashace.data.sound import check_structure
from flashace.errors import FlashACEError
from flashace.files import whole_file
from flashace.structure.graph import Graph
from flashace.structure.neighbors import build_graph
from flashace.teach.carving import carve, near_centre
from flashace.teach.similar import Unlike

MOST_ATOMS = 500_000  # of frames to choose from: 0.6 GB of features of the medium model
DRAWS = 5  # of random frames, to compare with
ENERGY = "energies_uncertainty"  # array of a frame: eV


@dataclass(eq=False)
class Candidate:
    """A frame of the pool, or what was cut out of one."""

    place: int  # in the pool
    atoms: Atoms  # bare, with the uncertainty of each atom; once it is chosen, what was carved out of it
    rows: np.ndarray  # [R, D] float32: whitened features of the atoms that its label makes known
    centre: int  # the most uncertain atom


@dataclass(eq=False)
class Pool:
    """What is known of all frames together, and those that can be chosen."""

    candidates: list[Candidate] = field(default_factory=list)
    frames: int = 0
    atoms: int = 0
    gram: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # [D, D]: sum of rowsᵀ rows over all atoms of all frames
    largest: float = 0.0  # eV: of an atom
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> frames
    not_kept: int = 0  # frames, the least uncertain ones, for which there was no room


@dataclass(frozen=True)
class Choice:
    """Which frames, in the order of the pool, and the root mean square of the uncertainty of the pool's atoms (eV)."""

    chosen: list[Candidate]
    before: float
    after: tuple[float, ...]  # each of the chosen, in the order in which they were chosen
    random: float  # after as many random frames
    alike: int  # frames that were passed over since they are nearly the same as others


class Selector:
    """A model that looks at structures; what it knows of its training data it has from its file."""

    def __init__(self, calculator: FlashACE, max_force: float, cut: float | None = None) -> None:
        """Frames where the model has a force above `max_force` (eV/Å) are left out; `cut` (Å) is the radius that `carve` keeps.

        Raises FlashACEError for a committee, and for a model without an uncertainty.
        """
        if calculator.members:
            raise FlashACEError("model: expected a single model, got a committee; name one of its models")
        name = calculator.parameters["model"]
        if calculator.model.uncertainty is None:
            raise FlashACEError(
                f"{name}: expected a model that knows its uncertainty, this one does not; `flashace calibrate {name} DATA` adds it, from "
                "the data of its fit"
            )
        self.calculator, self.max_force, self.cut = calculator, max_force, cut
        self.rigidity = calculator.model.uncertainty.atoms

    def look(self, structures: Iterable[tuple[Atoms, Origin]], keep: bool = True, advance: Any = lambda: None) -> Pool:
        """The pool of these structures; without `keep` nothing to choose from. Raises FlashACEError, which names the frame, for what is no
        structure and for elements that the model does not know."""
        D = len(self.rigidity.covariance)
        pool = Pool(gram=np.zeros((D, D)))
        kept: list[tuple[float, Candidate]] = []  # with the largest uncertainty of an atom
        held = 0  # rows of these
        for place, (atoms, features, force) in enumerate(self._evaluated(structures)):
            advance()
            if not force <= self.max_force:  # NaN, too
                pool.left_out[f"a force above {self.max_force:g} eV/Å, as the model has it (--max-force)"] += 1
                continue
            rows = features @ self.rigidity.whitening.cpu().numpy() / self.rigidity.alpha
            sigma = self.rigidity.alpha * np.linalg.norm(rows, axis=1)
            pool.frames, pool.atoms, pool.largest = pool.frames + 1, pool.atoms + len(atoms), max(pool.largest, float(sigma.max()))
            pool.gram += rows.T @ rows
            if keep:
                kept.append((float(sigma.max()), self._candidate(place, atoms, rows, sigma)))
                held += len(kept[-1][1].rows)
                if held > MOST_ATOMS:
                    kept.sort(key=lambda each: -each[0])
                    pool.not_kept += len(kept) - len(kept) // 2
                    kept = kept[: len(kept) // 2]
                    held = sum(len(candidate.rows) for _, candidate in kept)
        pool.candidates = sorted((candidate for _, candidate in kept), key=lambda candidate: candidate.place)
        return pool

    def _evaluated(self, structures: Iterable[tuple[Atoms, Origin]]) -> Iterator[tuple[Atoms, np.ndarray, float]]:
        """Each frame, bare, with the features [N, D] of its atoms and the largest force (eV/Å)."""
        waiting: list[Atoms] = []

        def graphs() -> Iterator[Graph]:
            for atoms, origin in structures:
                check_structure(atoms, origin)
                bare = _bare(atoms, origin)
                try:
                    self.calculator.set_atoms(bare)
                    graph = build_graph(bare, self.calculator.r_max)
                except FlashACEError as error:
                    raise FlashACEError(f"{origin}: {error}") from error
                waiting.append(bare)
                yield graph

        for _, prediction in self.calculator.predict(graphs()):
            atoms = waiting.pop(0)
            assert prediction.features is not None  # since there is an uncertainty
            force = float(prediction.forces.norm(dim=1).max())
            yield atoms, prediction.features.double().cpu().numpy(), force

    def _candidate(self, place: int, atoms: Atoms, rows: np.ndarray, sigma: np.ndarray) -> Candidate:
        atoms.arrays[ENERGY] = sigma
        centre = int(sigma.argmax())
        if self.cut is not None and len(near_centre(atoms, centre, self.cut)) < len(atoms):  # what lies farther out will not be intact
            rows = rows[near_centre(atoms, centre, self.cut - self.calculator.r_max)]
        return Candidate(place, atoms, rows.astype(np.float32), centre)

    def choose(self, pool: Pool, num: int, known: Pool | None = None, others: Sequence[Atoms] = ()) -> Choice:
        """At most `num` frames, none of which is nearly another, or one of `others`.

        `known` are frames that have labels, or are on order, and that the model was not fitted to.
        """
        covariance = np.linalg.inv(np.eye(len(pool.gram)) + (0 if known is None else known.gram))
        unlike = Unlike()
        for atoms in others:
            unlike.takes(atoms)
        before = unlike.refused
        chosen, traces = self._greedy(pool, num, covariance, unlike)
        scale = self.rigidity.alpha / max(pool.atoms, 1) ** 0.5
        return Choice(
            chosen=sorted(chosen, key=lambda candidate: candidate.place),
            before=scale * _trace(pool.gram, covariance) ** 0.5,
            after=tuple(scale * trace**0.5 for trace in traces),
            random=scale * _after_random(pool, len(chosen), covariance) ** 0.5,
            alike=unlike.refused - before,
        )

    def _greedy(self, pool: Pool, num: int, covariance: np.ndarray, unlike: Unlike) -> tuple[list[Candidate], list[float]]:
        """The chosen, in this order, and the trace of the pool's variance after each.

        A frame is worth less the more others are chosen, so only the one that seems best is looked at anew (Minoux 1978).
        """
        chosen: list[Candidate] = []
        traces: list[float] = []
        C = covariance
        weights = C @ pool.gram @ C
        waiting = [(-_gain(candidate.rows, C, weights), i, 0) for i, candidate in enumerate(pool.candidates)]
        heapq.heapify(waiting)
        while waiting and len(chosen) < num:
            _, i, seen = heapq.heappop(waiting)
            candidate = pool.candidates[i]
            if seen < len(chosen):
                heapq.heappush(waiting, (-_gain(candidate.rows, C, weights), i, len(chosen)))
                continue
            if self.cut is not None:
                candidate.atoms = carve(candidate.atoms, candidate.centre, self.cut, self.calculator.r_max)
            if unlike.takes(candidate.atoms):
                chosen.append(candidate)
                C = _after(C, candidate.rows)
                weights = C @ pool.gram @ C
                traces.append(_trace(pool.gram, C))
                candidate.atoms.info["chosen"] = len(chosen)
        return chosen, traces


def write_choice(path: str | Path, choice: Choice) -> None:
    """Extended XYZ, in the order of the pool: `chosen` in `info` is the rank, from 1 on."""
    with whole_file(path) as aside:
        write(aside, [candidate.atoms for candidate in choice.chosen], format="extxyz")


def _bare(atoms: Atoms, origin: Origin) -> Atoms:
    """What a label depends on, and where the frame is from; labels and results that it came with stay behind."""
    info = {name: atoms.info[name] for name in ("config_type", "charge", "total_charge") if name in atoms.info}
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info={**info, "origin": str(origin)})
    for name in ("initial_magmoms", "initial_charges"):
        if name in atoms.arrays:
            bare.arrays[name] = atoms.arrays[name].copy()
    return bare


def _gain(rows: np.ndarray, C: np.ndarray, weights: np.ndarray) -> float:
    """What the trace of C · gram falls by when the rows [R, D] are known: tr[(1 + X C Xᵀ)⁻¹ X weights Xᵀ], weights being C · gram · C."""
    X = rows.astype(float)
    if len(X) > len(C):
        A = X.T @ X
        return float(np.einsum("ij,ji->", weights, np.linalg.solve(np.eye(len(C)) + A @ C, A)))
    return float(np.trace(np.linalg.solve(np.eye(len(X)) + X @ C @ X.T, X @ weights @ X.T)))


def _after(C: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(C⁻¹ + XᵀX)⁻¹."""
    X = rows.astype(float)
    known = np.linalg.solve(np.eye(len(C)) + C @ (X.T @ X), C)
    return np.asarray((known + known.T) / 2)


def _trace(gram: np.ndarray, C: np.ndarray) -> float:
    return float(np.einsum("ij,ji->", gram, C))


def _after_random(pool: Pool, num: int, covariance: np.ndarray) -> float:
    """The mean trace after so many frames drawn by chance."""
    rng, traces = np.random.default_rng(0), []
    for _ in range(DRAWS):
        drawn = rng.choice(len(pool.candidates), min(num, len(pool.candidates)), replace=False)
        A = sum((X.T @ X for X in (pool.candidates[i].rows.astype(float) for i in drawn)), np.zeros_like(covariance))
        traces.append(_trace(pool.gram, np.linalg.solve(np.eye(len(A)) + covariance @ A, covariance)))
    return float(np.mean(traces))
