"""Labelled frames in; units, signs and orders of components that fit together better than the ones in the file out.

A linear ACE is fitted to energies and forces. Energies must be the integral of the forces, so their units and signs can be told from each
other; the stress plays no part in the fit and is predicted, so each convention of it can be compared with the prediction, also frame by
frame. Every prediction comes from a fit that has not seen the frame, and is taken as exactly as the other frames determine it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple

import numpy as np
from ase import units as ase_units
from ase.stress import full_3x3_to_voigt_6_stress

from flashace.check.finding import Finding
from flashace.check.linear_ace import LinearACE, Predicted, Ridge, Rows, Spread
from flashace.check.mend import mend_script
from flashace.check.plain_findings import relative_energies, robust_z
from flashace.data.frames import Labelled, LabelSummary
from flashace.data.sources import lookup
from flashace.structure.neighbors import build_graph

MIN_FRAMES = 20
MAX_EDGES, EDGES_PER_SECOND = 400_000, 15_000  # half a minute of one core
R_MAX = 5.0
SURE = 30.0  # nats, and 0.3 more per frame, by which another convention has to be better: a linear model has errors of its own
SURE_OF_FRAME = 9.2  # nats: odds of 10⁴ to 1, after what was tried is paid for
FREEDOM = 4  # degrees of freedom of Student's t: errors of a frame as a whole have heavy tails
COUNTED = 6  # force components of a frame, as many as a stress has: the others have the same errors again
WITNESSES = 10  # frames that speak for a convention of all: the others have the same errors again
EXPLAINED = 0.3  # the part that a fit may leave unexplained of labels that it judges
FORCE_FLOOR, STRESS_FLOOR = 1e-3, 1e-5  # eV/Å, eV/Å³: no prediction is better
LEAST_MISSED = 1e-6  # share of energies and of forces, squared: less is rounding, where symmetry leaves them few ways to be
CAP = 12  # no model is so good that larger powers of ten would mean anything

ENERGY_UNITS = {
    "eV": 1.0,
    "Hartree": ase_units.Hartree,
    "Rydberg": ase_units.Rydberg,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "kJ/mol": ase_units.kJ / ase_units.mol,
    "meV": 1e-3,
}
FORCE_UNITS = {
    "eV/Å": 1.0,
    "Hartree/Bohr": ase_units.Hartree / ase_units.Bohr,
    "Rydberg/Bohr": ase_units.Rydberg / ase_units.Bohr,
    "kcal/mol/Å": ase_units.kcal / ase_units.mol,
    "kJ/mol/Å": ase_units.kJ / ase_units.mol,
    "kJ/mol/nm": ase_units.kJ / ase_units.mol / ase_units.nm,
    "Hartree/Å": ase_units.Hartree,
    "eV/Bohr": 1 / ase_units.Bohr,
    "meV/Å": 1e-3,
}
STRESS_UNITS = {"eV/Å³": 1.0, "GPa": ase_units.GPa, "kbar": 0.1 * ase_units.GPa, "Hartree/Bohr³": ase_units.Hartree / ase_units.Bohr**3}
COMPONENTS = ("xx", "yy", "zz", "yz", "xz", "xy")
KNOWN_ORDERS: dict[tuple[int, ...], str] = {(4, 5, 3): ", the order of VASP", (5, 4, 3): ", the order of LAMMPS"}


class StressConvention(NamedTuple):
    """What the numbers in the file would mean: the label times `sign` and the unit, `order` says where ASE's components stand."""

    sign: int
    unit: str  # of STRESS_UNITS, or "virial"
    order: tuple[int, ...]

    def factor(self, volume: float) -> float:
        """What turns the number in the file into eV/Å³ of ASE's sign."""
        return self.sign * (1 / volume if self.unit == "virial" else STRESS_UNITS[self.unit])

    def words(self) -> str:
        """What is wrong about the label, if this is what it means."""
        words = [] if self.sign > 0 else ["of the opposite sign"]
        if self.unit != "eV/Å³":
            words.append("times the volume (a virial)" if self.unit == "virial" else f"in {self.unit}")
        moved = [i for i in range(3, 6) if self.order[i] != i]
        if len(moved) == 2:
            words.append(f"with {COMPONENTS[moved[0]]} and {COMPONENTS[moved[1]]} swapped{KNOWN_ORDERS.get(self.order[3:], '')}")
        elif moved:
            place = [self.order.index(i) for i in range(6)]
            words.append(f"in the order {', '.join(COMPONENTS[i] for i in place)}{KNOWN_ORDERS.get(self.order[3:], '')}")
        return "stress " + ", ".join(words)

    def code(self) -> str:
        """Python for the mended value of `x`, Voigt's six numbers; `a` is the frame."""
        moved = "x" if self.order == tuple(range(6)) else f"x[{list(self.order)}]"
        factor = "/ a.get_volume()" if self.unit == "virial" else "" if self.unit == "eV/Å³" else f"* {STRESS_UNITS[self.unit]:.9g}"
        return f"{'-' if self.sign < 0 else ''}{moved} {factor}".strip()


AS_IT_IS = StressConvention(1, "eV/Å³", tuple(range(6)))
STRESS_CONVENTIONS = [
    StressConvention(sign, unit, (0, 1, 2, *order))
    for sign in (1, -1)
    for unit in (*STRESS_UNITS, "virial")
    for order in permutations((3, 4, 5))
]


@dataclass(frozen=True)
class Fitted:
    """The frames with forces or energies that the fit took, and the fit."""

    frames: list[Labelled]
    ridge: Ridge
    energy: np.ndarray  # [B] eV/atom above the reference energies, NaN where there is none
    atoms: np.ndarray  # [B]
    labels: LabelSummary


def fit_linear(frames: Sequence[Labelled], labels: LabelSummary, max_edges: int = MAX_EDGES) -> Fitted | None:
    """A linear ACE on as many frames, evenly drawn, as can be fitted in seconds; None where fewer than 20 of them have forces."""
    chosen = _sample([f for f in frames if len(f.atoms) > 1 and _has_a_sound_cell(f)], max_edges)
    if sum(f.forces is not None and bool(f.forces.any()) for f in chosen) < MIN_FRAMES:
        return None
    numbers = sorted({int(z) for f in chosen for z in set(f.atoms.numbers)})
    ace = LinearACE(numbers, R_MAX)
    rows = [ace.rows(build_graph(f.atoms, R_MAX)) for f in chosen]
    return fit_rows(chosen, labels, rows)


def fit_rows(frames: list[Labelled], labels: LabelSummary, rows: Sequence[Rows]) -> Fitted:
    """The same from rows that were made before; frames whose forces are far from the others' have no part in the fit."""
    numbers = sorted({int(z) for f in frames for z in set(f.atoms.numbers)})
    counts = np.array([[np.count_nonzero(f.atoms.numbers == z) for z in numbers] for f in frames], float)
    known = np.array([f.energy is not None for f in frames])
    energy = np.full(len(frames), np.nan)
    if known.any():
        energy[known] = relative_energies([f for f in frames if f.energy is not None])
    size = np.array([0.0 if f.forces is None else np.sqrt(np.mean(f.forces**2)) for f in frames])
    used = size < 20 * np.median(size[size > 0])
    used[known] &= robust_z(energy[known]) < 50
    forces = [f.forces for f in frames]
    ridge = Ridge(rows, counts, forces, used)
    for _ in range(3):
        fits = _fits(ridge, forces)
        if (ridge.used == (used & fits)).all():
            break
        ridge = ridge.using(used & fits)
    return Fitted(frames, ridge, energy, counts.sum(1), labels)


def _fits(ridge: Ridge, forces: Sequence[np.ndarray | None]) -> np.ndarray:
    """[B]: whether the forces of a frame, if it has any, are what the other frames lead to expect."""
    no_energy = np.full(len(forces), np.nan)
    test = ForceTest.of(forces, ridge.predict(no_energy).forces, ridge.spread(no_energy, SHAPE_AND_PRESSURE).forces)
    fits = np.ones(len(forces), bool)
    fits[test.places] = (test.unexplained(1.0) < 0.5) | (test.error(1.0) < 16)
    return fits


def convention_findings(fitted: Fitted) -> list[Finding]:
    """Everything that the fit can tell, and last a note of how good it is."""
    spread = fitted.ridge.spread(fitted.energy, SHAPE_AND_PRESSURE)
    found, units = _energy_and_forces(fitted, spread)
    energy = _energies(fitted, units)
    predicted = fitted.ridge.predict(energy)
    forces = ForceTest.of([f.forces for f in fitted.frames], predicted.forces, spread.forces)
    return [
        *(found or _absolute_unit(fitted)),
        *_free_energy(fitted, predicted),
        *_forces_of_frames(fitted, forces),
        *_stress(fitted, energy, predicted, spread, forces.scale, units.force_factor),
        _quality(fitted, energy, predicted),
    ]


def percent(part: float) -> str:
    """ "2.4 %", "more than 1000 %"."""
    return "more than 1000 %" if part > 10 else f"{100 * part:.2g} %" if part < 1 else f"{100 * part:.0f} %"


def odds(nats: float) -> str:
    """ "odds of 10⁷ to 1" of a logarithmic likelihood ratio."""
    power = int(min(nats / np.log(10), CAP))
    return f"odds of {'more than ' if power == CAP else ''}10^{power} to 1"


def _sample(frames: Sequence[Labelled], max_edges: int) -> list[Labelled]:
    """Frames evenly over the data, with at most so many neighbour pairs, as a few of them foretell."""
    step = max(len(frames) // 20, 1)
    probes = [build_graph(f.atoms, R_MAX).edge_vec.shape[0] for f in frames[::step]]
    share = max_edges / max(len(frames) * float(np.mean(probes or [1])), 1.0)
    return list(frames) if share >= 1 else [frames[int(i / share)] for i in range(int(len(frames) * share))]


def _has_a_sound_cell(frame: Labelled) -> bool:
    periodic = np.asarray(frame.atoms.cell)[frame.atoms.pbc]
    return bool(np.linalg.matrix_rank(periodic) == len(periodic))


def _unexplained(label: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the labels that is left unexplained; 1 is no better than zero everywhere."""
    return float(((label - predicted) ** 2).sum() / max(float((label**2).sum()), 1e-30))


# --- energies against forces ---


class Units(NamedTuple):
    """What the numbers in the file would mean, energies against forces."""

    energy: str = "eV"  # of ENERGY_UNITS, or "per atom"
    forces: str = "eV/Å"  # of FORCE_UNITS
    sign: int = 1  # of the forces

    @property
    def force_factor(self) -> float:
        """What turns a force in the file into eV/Å."""
        return self.sign * FORCE_UNITS[self.forces]

    @property
    def ratio(self) -> float:
        """What turns an energy in the file into the unit that belongs to its forces."""
        return ENERGY_UNITS.get(self.energy, 1.0) / self.force_factor

    @property
    def looks_like(self) -> tuple[bool, float]:
        """The same for all that cannot be told apart."""
        return self.energy == "per atom", round(self.ratio, 9)

    def words(self) -> str:
        """What is wrong about the labels, if this is what they mean."""
        words = {"eV": [], "per atom": ["energies are per atom"]}.get(self.energy, [f"energies are in {self.energy}"])
        if self.sign < 0:
            words = [*words, "forces have the opposite sign (gradients)"]
        if self.forces != "eV/Å":
            words = [*words, f"forces are in {self.forces}"]
        return " and ".join(words)

    def codes(self) -> dict[str, str]:
        """Label -> Python for its mended value."""
        codes = {}
        if self.energy != "eV":
            codes["energy"] = "x * len(a)" if self.energy == "per atom" else f"x * {ENERGY_UNITS[self.energy]:.9g}"
        if self.force_factor != 1:
            codes["forces"] = ("-x" if self.sign < 0 else "x") + ("" if self.forces == "eV/Å" else f" * {FORCE_UNITS[self.forces]:.9g}")
        return codes


# The likelier of those with one ratio first.
UNITS = [
    Units(),
    Units("per atom"),
    *(Units(energy) for energy in ENERGY_UNITS if energy != "eV"),
    Units("Hartree", "Hartree/Bohr"),
    Units("Hartree", "Hartree/Bohr", -1),
    Units("Rydberg", "Rydberg/Bohr"),
    *(Units("eV", forces, sign) for forces in FORCE_UNITS for sign in (1, -1) if (forces, sign) != ("eV/Å", 1)),
    *(Units(energy, "eV/Å", -1) for energy in ENERGY_UNITS if energy != "eV"),
]


def _energy_and_forces(fitted: Fitted, spread: Spread) -> tuple[list[Finding], Units]:
    """Which units energies and forces have if they belong together."""
    known = np.isfinite(fitted.energy) & fitted.ridge.used
    if known.sum() < MIN_FRAMES or np.ptp(fitted.energy[known]) < 1e-9:
        return [], Units()
    distinct = list({u.looks_like: u for u in reversed(UNITS)}.values())
    predicted = fitted.ridge.predict_each([_energies(fitted, units) for units in distinct])
    weight = 1 / np.sqrt(1 + spread.energy)
    scores = {units: _score(fitted, _energies(fitted, units), weight, known, p) for units, p in zip(distinct, predicted, strict=True)}
    usual, best = scores[Units()], max(scores, key=lambda units: scores[units][0])
    margin = scores[best][0] - usual[0]
    if margin < SURE + 0.3 * known.sum():
        return [], Units()
    near = 0.3 * known.sum() + 5  # so far the errors of the linear model may have moved the ratio
    rivals = [u for u in UNITS if u != best and any(u.looks_like == r.looks_like for r in scores if scores[best][0] - scores[r][0] < near)]
    text = (
        f"forces and energies do not belong together: a fit to both leaves {percent(usual[1])} of the energy differences unexplained as "
        f"they are, {percent(scores[best][1])} if {best.words()}; {odds(margin)}"
    )
    if rivals:
        text += f"; as likely: {'; '.join(units.words() for units in rivals)}"
    frames = tuple(f.origin for f in fitted.frames if any(getattr(f, label) is not None for label in best.codes()))
    mend = mend_script(fitted.frames, fitted.labels, best.codes(), "every")
    sure = max(scores[best][1:]) < EXPLAINED
    return [Finding("surely wrong" if sure else "suspicious", best.words(), text, frames, mend)], best


def _energies(fitted: Fitted, units: Units) -> np.ndarray:
    """[B] eV/atom above the reference energies, in the unit of the forces in the file."""
    if units.energy != "per atom":
        return units.ratio * fitted.energy
    energy = np.full(len(fitted.frames), np.nan)
    whole = [replace(f, energy=f.energy * len(f.atoms)) for f in fitted.frames if f.energy is not None]
    energy[np.isfinite(fitted.energy)] = relative_energies(whole)
    return energy


def _score(fitted: Fitted, energy: np.ndarray, weight: np.ndarray, known: np.ndarray, predicted: Predicted) -> tuple[float, float, float]:
    """Log-likelihood of energies and forces, each with its own error, and the unexplained parts of both. A frame counts as one energy and
    three forces: its other forces say the same again. `weight` [B]: a frame whose energy the others leave open says little.
    """
    missed = _unexplained((weight * energy)[known], (weight * predicted.energy)[known])
    pairs = [
        (f.forces, p) for f, p, u in zip(fitted.frames, predicted.forces, fitted.ridge.used, strict=True) if u and f.forces is not None
    ]
    missed_forces = _unexplained(np.concatenate([f for f, _ in pairs]), np.concatenate([p for _, p in pairs]))
    likelihood = -0.5 * known.sum() * np.log(max(missed, LEAST_MISSED)) - 1.5 * len(pairs) * np.log(max(missed_forces, LEAST_MISSED))
    return likelihood, missed, missed_forces


def _absolute_unit(fitted: Fitted) -> list[Finding]:
    """Energies and forces in one wrong unit belong together. Energies of all electrons still tell their unit: atoms of atomic number Z have
    about -0.7687 Z^(7/3) + Z²/2 - 0.2699 Z^(5/3) Hartree (Englert and Schwinger, Phys. Rev. A 29, 2331, 1984)."""
    known = [f for f in fitted.frames if f.energy is not None]
    if not known:
        return []
    Z = [f.atoms.numbers.astype(float) for f in known]
    expected = ase_units.Hartree * np.array([(-0.768745 * z ** (7 / 3) + z**2 / 2 - 0.269900 * z ** (5 / 3)).sum() for z in Z])
    ratio = np.array([f.energy for f in known]) / expected
    for unit, factor in ENERGY_UNITS.items():
        if unit not in ("eV", "meV") and np.all(np.abs(ratio * factor - 1) < 0.05):
            first = known[0]
            text = (
                f"total energies of all electrons are expected near {expected[0]:.0f} eV for {first.origin}, which has {first.energy:.2f}"
            )
            code = f"x * {factor:.9g}"
            mend = mend_script(fitted.frames, fitted.labels, {"energy": code, "forces": code}, "every")
            return [Finding("suspicious", f"energies in {unit}, forces in {unit}/Å", text, tuple(f.origin for f in known), mend)]
    return []


def _free_energy(fitted: Fitted, predicted: Predicted) -> list[Finding]:
    """Which of `energy` and `free_energy` the forces belong to, where a file has both and they differ: the error of the one, as a multiple
    of their difference, is 0 or 1."""
    if "calculator free_energy" not in fitted.labels.counts["energy"].used:
        return []
    pair = [(lookup(f.atoms, "calculator energy"), lookup(f.atoms, "calculator free_energy")) for f in fitted.frames]
    both = np.array([e is not None and f is not None for e, f in pair]) & fitted.ridge.used & np.isfinite(fitted.energy)
    if both.sum() < MIN_FRAMES:
        return []
    gap = np.array([e - f if e is not None and f is not None else np.nan for e, f in pair])[both] / fitted.atoms[both]
    error = (predicted.energy - fitted.energy)[both]
    gap, error = gap - np.median(gap), error - np.median(error)
    if (gap**2).sum() < 1e-16:
        return []
    slope = float(gap @ error / (gap @ gap))
    spread = float(np.sqrt(((error - slope * gap) ** 2).mean() / (gap @ gap)))
    text = f"(predicted − free_energy) / (energy − free_energy) = {slope:.2f} ± {spread:.2f}; 0 is free_energy, 1 is energy"
    if spread > 0.2 or min(abs(slope), abs(slope - 1)) > 4 * spread:
        return [Finding("note", "energy or free_energy: cannot tell", text)]
    if abs(slope) < abs(slope - 1):
        return [Finding("note", "free_energy belongs to the forces", text + "; it is the one that is used")]
    sure = (1 - 2 * abs(slope - 1)) / (2 * spread**2)
    origins = tuple(f.origin for f, b in zip(fitted.frames, both, strict=True) if b)
    severity = "surely wrong" if sure > SURE else "suspicious"
    return [Finding(severity, "energy, not free_energy, belongs to the forces", f"{text}; {odds(sure)}", origins, "--energy-key energy")]  # type: ignore[arg-type]


# --- single frames ---


def e_bh(odds_of: np.ndarray) -> dict[int, int]:
    """Frame -> reading, for those of the log odds [R, B] of R readings of B frames that are beyond doubt.

    The k largest are, where each exceeds SURE_OF_FRAME by the logarithm of how many were tried for each that is believed: the e-BH
    procedure, which holds whatever depends on what (Wang and Ramdas, J. R. Stat. Soc. B 84, 822, 2022). Of readings of one frame that
    differ by less than a nat (components that are zero may stand anywhere), the one that suits most of the others is taken.
    """
    best = odds_of.max(0)
    ordered = np.sort(best[np.isfinite(best)])[::-1]
    enough = np.flatnonzero(ordered > SURE_OF_FRAME + np.log(odds_of.size / np.arange(1, len(ordered) + 1)))
    if not len(enough):
        return {}
    sure = best >= ordered[enough[-1]]
    alike = sure & (odds_of > np.where(np.isfinite(best), best, np.inf) - 1)
    reading = np.where(alike, alike.sum(1, keepdims=True), 0).argmax(0)
    return {int(i): int(reading[i]) for i in np.flatnonzero(sure)}


def student(q: np.ndarray, k: np.ndarray | int) -> np.ndarray:
    """Log-likelihood of Student's t for k components that share one scale, from the sum q of their squares; but for a constant."""
    return -(FREEDOM + k) / 2 * np.log1p(q / FREEDOM)


class ForceTest(NamedTuple):
    """Forces of the frames that have any, and predictions. However many atoms, a frame counts as COUNTED components."""

    places: np.ndarray  # [B'] of the frames
    label: list[np.ndarray]
    predicted: list[np.ndarray]
    noise: np.ndarray  # [B'] eV/Å: what may be expected as error
    scale: float  # eV/Å: error of forces whose prediction is not open

    @classmethod
    def of(cls, forces: Sequence[np.ndarray | None], predicted: Sequence[np.ndarray], openness: np.ndarray) -> "ForceTest":
        """`openness` [B] is `Spread.forces`. Frames whose forces vanish by symmetry do not tell the scale."""
        index = np.array([i for i, f in enumerate(forces) if f is not None])
        label, p = [f for f in forces if f is not None], [predicted[i] for i in index]
        size, error = (np.sqrt([np.mean(x**2) for x in rows]) for rows in (p, [a - b for a, b in zip(label, p, strict=True)]))
        of_scale = error / np.sqrt(1 + openness[index])
        moving = size > FORCE_FLOOR
        scale = max(float(np.median(of_scale[moving if moving.any() else slice(None)])), FORCE_FLOOR)
        return cls(index, label, p, np.sqrt(scale**2 * (1 + openness[index]) + (0.05 * size) ** 2), scale)

    def error(self, factor: float) -> np.ndarray:
        """[B'] mean square of the error, over what may be expected, if labels are multiplied by the factor."""
        pairs = zip(self.label, self.predicted, strict=True)
        return np.array([np.mean((factor * f - p) ** 2) for f, p in pairs]) / self.noise**2

    def unexplained(self, factor: float) -> np.ndarray:
        """[B'] as a part of what is predicted or labelled, whichever is less."""
        pairs = zip(self.label, self.predicted, strict=True)
        return np.array([_unexplained(factor * f, p) for f, p in pairs])

    def signal(self) -> np.ndarray:
        """[B'] size of the prediction, over its error."""
        return np.sqrt([np.mean(p**2) for p in self.predicted]) / self.noise


def _forces_of_frames(fitted: Fitted, test: ForceTest) -> list[Finding]:
    """Single frames whose forces are those of the prediction in another unit or sign, or fit nothing."""
    readings = [(u, s) for u in FORCE_UNITS for s in (1, -1) if (u, s) != ("eV/Å", 1)]
    factors = np.array([s * FORCE_UNITS[u] for u, s in readings])
    missed, strange = test.unexplained(1.0), test.error(1.0)
    usual = float(np.median(missed[test.signal() > 1])) if (test.signal() > 1).any() else 1.0
    if usual > EXPLAINED:
        return []
    errors, after = np.array([test.error(f) for f in factors]), np.array([test.unexplained(f) for f in factors])
    k = COUNTED
    gain = student(k * errors, k) - student(k * strange, k) + k * np.minimum(np.log(np.abs(factors)), 0)[:, None]
    doubtful = (missed > 0.5) & (strange > 36) & (test.signal() > 3)
    gain[:, ~doubtful] = -np.inf
    gain[(after > 0.25) | (after > 0.2 * missed) | (errors > 9)] = -np.inf
    sure = e_bh(gain)
    groups: dict[tuple[str, int] | None, list[int]] = {}
    for i in np.flatnonzero(doubtful).tolist():
        groups.setdefault(readings[sure[i]] if i in sure else None, []).append(i)
    found = []
    for name, members in groups.items():
        if name is None:
            members = [i for i in members if student(k * strange[i], 0) < -SURE_OF_FRAME]
            if not members:
                continue
        chosen = [fitted.frames[test.places[i]] for i in members]
        worst = percent(float(missed[members].max()))
        text = f"a fit to the other frames misses up to {worst} of them (squared); of the median frame {percent(usual)}"
        origins = tuple(f.origin for f in chosen)
        if name is None:
            mend = "Were atoms reordered or positions changed without their forces? Remove these frames, or compute them again."
            found.append(Finding("suspicious", "forces that do not fit their structure", text, origins, mend))
            continue
        unit, sign = name
        what = "forces of the opposite sign" if unit == "eV/Å" else f"forces in {unit}" + (", of the opposite sign" if sign < 0 else "")
        code = ("-x" if sign < 0 else "x") + ("" if unit == "eV/Å" else f" * {FORCE_UNITS[unit]:.9g}")
        mend = mend_script(chosen, fitted.labels, {"forces": code}, "these")
        found.append(Finding("surely wrong", f"{what} in some frames", text, origins, mend, "forces"))
    return found


# --- stress against the prediction ---


# an orthonormal basis of Voigt's six: two of shape, three of shear, and the pressure (but for its sign) apart from the rest, for at fixed
# volume energies and forces hardly know it
SHAPE_AND_PRESSURE = np.zeros((6, 6))
SHAPE_AND_PRESSURE[0, :2] = np.array([1, -1]) / np.sqrt(2)
SHAPE_AND_PRESSURE[1, :3] = np.array([1, 1, -2]) / np.sqrt(6)
SHAPE_AND_PRESSURE[[2, 3, 4], [3, 4, 5]] = 1.0
SHAPE_AND_PRESSURE[5, :3] = 1 / np.sqrt(3)
PARTS = (slice(0, 2), slice(2, 5), slice(5, 6))  # shape, shear, pressure


class StressTest(NamedTuple):
    """Labels as they are in the file, and predictions."""

    frames: list[Labelled]
    volume: np.ndarray
    label: np.ndarray  # [B, 6] Voigt
    predicted: np.ndarray  # [B, 6] Voigt
    openness: np.ndarray  # [B, 6] eV/Å³, of shape and pressure: error by coefficients that the other frames leave open

    def read(self, convention: StressConvention) -> np.ndarray:
        """[B, 6] eV/Å³: what the labels are if they follow this convention."""
        return np.array([convention.factor(v) for v in self.volume])[:, None] * self.label[:, convention.order]

    def active(self) -> np.ndarray:
        """[B, 6] the parts of shape, shear and pressure that are there at all: others vanish by symmetry and tell nothing."""
        label, p = (np.abs(_shape(x)) for x in (self.label, self.predicted))
        there = [
            np.repeat(
                (label[:, part].max(1) > 0.01 * label.max(1)) | (p[:, part].max(1) > 0.01 * p.max(1)), part.stop - part.start
            ).reshape(len(label), -1)
            for part in PARTS
        ]
        return np.concatenate(there, axis=1)

    def noise(self, convention: StressConvention) -> np.ndarray:
        """[B, 6] of shape and pressure: what may be expected as error, as the typical frame tells it for shape and for pressure."""
        p = _shape(self.predicted)
        error, active = np.abs(_shape(self.read(convention)) - p), self.active()
        least = 0.02 * float(np.abs(self.predicted).mean()) + STRESS_FLOOR
        # a pressure that is far off says nothing about the error of the shape
        size = 0.1 * np.sqrt([(p[:, part] ** 2).mean(1) for part in (slice(0, 5), slice(0, 6))])[[0] * 5 + [1]].T
        scale = np.sqrt(self.openness**2 + np.median(self.openness, axis=0) ** 2) + 1e-12
        for part in (slice(0, 5), slice(5, 6)):
            there = active[:, part].any(1)
            ratio = np.sqrt(((error / scale)[:, part] ** 2).sum(1)[there] / active[there, part].sum(1))
            scale[:, part] *= float(np.median(ratio)) if there.any() else 1.0
        return np.sqrt(scale**2 + size**2 + least**2)

    def log_likelihood(self, convention: StressConvention, noise: np.ndarray) -> np.ndarray:
        """[B]: Student's t around the prediction."""
        z, active = (_shape(self.read(convention)) - _shape(self.predicted)) / noise, self.active()
        k = active.sum(1)
        factor = np.array([abs(convention.factor(v)) for v in self.volume])
        return student((z**2 * active).sum(1), k) - (np.log(noise) * active).sum(1) + k * np.log(factor)

    def no_relation(self, convention: StressConvention) -> np.ndarray:
        """[B]: the same if labels have nothing to do with the prediction, whatever their unit: so much a convention has to beat."""
        blind = self._replace(predicted=np.zeros_like(self.predicted))
        return blind.log_likelihood(convention, blind.noise(convention))

    def unexplained(self, convention: StressConvention, noise: np.ndarray) -> np.ndarray:
        """[B]: the part of each label that the prediction misses; what is badly known counts the less."""
        label, p = (_shape(x) / noise for x in (self.read(convention), self.predicted))
        return ((label - p) ** 2).sum(1) / np.maximum((p**2).sum(1), 1e-12)

    def gain(self, usual: StressConvention) -> tuple[list[StressConvention], np.ndarray]:
        """The conventions that differ from the usual one in one respect, and by how many nats they are better: [conventions, B]. That small
        numbers in a large unit would be a rare coincidence is not counted: they are no coincidence where forces nearly vanish."""
        others = [c for c in STRESS_CONVENTIONS if sum(a != b for a, b in zip(c, usual, strict=True)) == 1]
        noise, k = self.noise(usual), self.active().sum(1)
        before = np.array([abs(usual.factor(v)) for v in self.volume])
        larger = np.array([np.maximum(np.log([abs(c.factor(v)) for v in self.volume] / before), 0) for c in others])
        likelihood = np.array([self.log_likelihood(c, noise) for c in others])
        return others, likelihood - k * larger - self.log_likelihood(usual, noise)

    def doubtful(self, usual: StressConvention) -> np.ndarray:
        """[B]: frames that had better not be fitted yet: another convention suits them better."""
        return self.gain(usual)[1].max(0) > 2.0


def _shape(stress: np.ndarray) -> np.ndarray:
    """[B, 6] Voigt -> [B, 6] shape and pressure."""
    return stress @ SHAPE_AND_PRESSURE.T


def _stress(fitted: Fitted, energy: np.ndarray, predicted: Predicted, spread: Spread, force_error: float, factor: float) -> list[Finding]:
    """`factor` turns what is predicted, in the unit of the forces in the file, into eV."""
    chosen = [i for i, f in enumerate(fitted.frames) if f.stress is not None and f.stress.any() and np.isfinite(predicted.stress[i]).all()]
    if len(chosen) < MIN_FRAMES:
        return []
    frames = [fitted.frames[i] for i in chosen]
    label = np.array([full_3x3_to_voigt_6_stress(f.stress) for f in frames])
    unit = abs(factor) * force_error
    openness = unit * np.sqrt(spread.stress[chosen])
    test = StressTest(frames, np.array([f.atoms.get_volume() for f in frames]), label, factor * predicted.stress[chosen], openness)
    scores = {c: float(test.log_likelihood(c, test.noise(c)).mean()) for c in STRESS_CONVENTIONS}
    best = max(scores, key=lambda c: scores[c])
    blind = float(test.no_relation(AS_IT_IS).mean())
    margin = min(len(frames), WITNESSES) * (scores[best] - max(scores[AS_IT_IS], blind))
    before, after = (float(np.median(test.unexplained(c, test.noise(best)))) for c in (AS_IT_IS, best))
    found = []
    if best != AS_IT_IS and margin > SURE_OF_FRAME + np.log(len(scores)):
        text = (
            f"the median frame misses the prediction of a fit to energies and forces by {percent(before)} (squared), "
            f"so read by {percent(after)}; {odds(margin)}"
        )
        rivals = [c for c in scores if c != best and min(len(frames), WITNESSES) * (scores[best] - scores[c]) < np.log(10)]
        if rivals:
            text += f"; as likely: {'; '.join(c.words() for c in rivals)}"
        mend = mend_script(frames, fitted.labels, {"stress": best.code()}, "every")
        severity = "surely wrong" if after < min(0.5, before / 1.5) else "suspicious"
        found.append(Finding(severity, best.words(), text, tuple(f.origin for f in frames), mend, "stress"))  # type: ignore[arg-type]
    else:
        best = AS_IT_IS
    stress = np.full((len(fitted.frames), 6), np.nan)
    stress[chosen] = test.read(best) / factor
    stress[[i for i, doubted in zip(chosen, test.doubtful(best), strict=True) if doubted]] = np.nan
    if not np.isfinite(stress).any():
        return found
    with_stress = fitted.ridge.with_stress(stress)
    openness = unit * np.sqrt(with_stress.spread(energy, SHAPE_AND_PRESSURE).stress[chosen])
    refined = factor * with_stress.predict(energy).stress[chosen]
    return found + _stress_of_frames(fitted, test._replace(predicted=refined, openness=openness), best)


def _other_conventions(test: StressTest, usual: StressConvention) -> dict[StressConvention, list[int]]:
    """Convention -> frames that follow it rather than the usual one; it differs in one respect only."""
    noise, (others, gain) = test.noise(usual), test.gain(usual)
    fits, missed = np.array([test.unexplained(c, noise) for c in others]), test.unexplained(usual, noise)
    if np.median(missed) > EXPLAINED:
        return {}
    z = (_shape(test.read(usual)) - _shape(test.predicted)) / noise
    gain[:, np.abs(z).max(1) < 4] = -np.inf
    gain[(fits > 0.3) | (missed < 3 * fits)] = -np.inf
    groups: dict[StressConvention, list[int]] = {}
    for i, reading in e_bh(gain).items():
        groups.setdefault(others[reading], []).append(i)
    return groups


def _stress_of_frames(fitted: Fitted, test: StressTest, usual: StressConvention) -> list[Finding]:
    """Single frames that follow another convention than the rest; `test` predicts them from a fit to stresses too."""
    found = []
    noise = test.noise(usual)
    missed, tried = test.unexplained(usual, noise), len(test.gain(usual)[0])
    for convention, members in _other_conventions(test, usual).items():
        chosen = [test.frames[i] for i in members]
        kinds = ", ".join(sorted({f.config_type for f in chosen} - {""}))
        before, after = np.median(missed[members]), np.median(test.unexplained(convention, noise)[members])
        gain = (test.log_likelihood(convention, noise) - test.log_likelihood(usual, noise))[members]
        text = (
            f"{f'config_type {kinds}: ' if kinds else ''}they miss the prediction of a fit to the other frames by "
            f"{percent(float(before))} (squared), so read by {percent(float(after))}; "
            f"{odds(float(gain.min()))} for the least of them, from {len(test.frames)} frames read in {tried} ways"
        )
        mend = mend_script(chosen, fitted.labels, {"stress": convention.code()}, "these")
        found.append(Finding("surely wrong", f"{convention.words()} in some frames", text, tuple(f.origin for f in chosen), mend, "stress"))
    return found


def _quality(fitted: Fitted, energy: np.ndarray, predicted: Predicted) -> Finding:
    known = np.isfinite(energy) & fitted.ridge.used
    forces = [
        _unexplained(f.forces, p) for f, p in zip(fitted.frames, predicted.forces, strict=True) if f.forces is not None and f.forces.any()
    ]
    words = [f"forces {100 * np.median(forces):.1f} %"]
    if known.any():
        words.insert(0, f"energies {100 * _unexplained(energy[known], predicted.energy[known]):.1f} %")
    text = f"a linear ACE with a cutoff of {R_MAX:g} Å leaves unexplained, in frames that it has not seen: {', '.join(words)}"
    return Finding("note", f"fit to {len(fitted.frames)} frames", text)
