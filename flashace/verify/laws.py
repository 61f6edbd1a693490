"""Any ASE calculator and a structure in; the laws of physics that it obeys, and those that it breaks, out.

Each law is one function `(calculator, atoms, precision) -> LawResult`; `history` and `float32_noise` make their own calculators.
`verify` runs them all. Where nothing else is said, `measured` is relative: the largest error of energy per atom, forces and virial per
atom, divided by the largest of force × 1 Å and virial per atom in the structure (and at least by 0.1 eV).
"""

import contextlib
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement, pairwise, product
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import get_distances
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.stress import voigt_6_to_full_3x3_stress
from rich.table import Table
from rich.text import Text

from flashace.errors import FlashACEError
from flashace.structure.neighbors import build_graph
from flashace.verify.sanity import GUESS, Usual, bonds, guessed_distances, hard_structures, judge, short_distances

P = ParamSpec("P")
C = TypeVar("C")

SEED = 0
LONGEST = 12.0  # Å; how far a cutoff is looked for where the calculator does not tell it
FARTHEST_PAIR = 6.0  # Å; of the structures of `sanity`, where the calculator does not tell its cutoff
SHORTEST = 0.5  # Å; where the curves of two atoms begin
# What a calculator that is not ours may raise for a structure; a law then says what, and the next law goes on.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Precision(NamedTuple):
    """What can be asked of a calculator that computes with so many digits."""

    eps: float  # relative spacing of its numbers
    symmetry: float  # tolerance of what should be equal
    difference: float  # tolerance of derivatives taken by differences
    step: float  # Å; for differences of energies
    force_step: float  # Å; for differences of forces: shorter, since their second derivative jumps at the cutoff
    jump: float  # smallest jump of a force, relative to it, that is told from a slope
    drift: float  # meV/atom/ns per eV of the structure's scale


PRECISIONS = {
    "float64": Precision(eps=2.2e-16, symmetry=1e-10, difference=1e-6, step=3e-4, force_step=1e-5, jump=1e-3, drift=10.0),
    "float32": Precision(eps=1.2e-7, symmetry=1e-3, difference=2e-2, step=1e-2, force_step=3e-3, jump=5e-2, drift=1e4),
}
FLOAT64 = PRECISIONS["float64"]


class LawResult(NamedTuple):
    """One row of the table. `passed` and the numbers are None where the law says nothing about the structure; `detail` says why."""

    law: str
    passed: bool | None
    measured: float | None
    tolerance: float | None
    unit: str
    meaning: str
    detail: str = ""


class Finding(NamedTuple):
    """What the body of a law returns; it holds when `measured` ≤ `tolerance` (NaN is not)."""

    measured: float
    tolerance: float
    unit: str = "relative"
    detail: str = ""


class NotApplicable(Exception):
    """The law says nothing about this structure or calculator; the message is the reason."""


class State(NamedTuple):
    """Results for one structure of N atoms."""

    energy: float  # eV
    forces: np.ndarray  # [N, 3] eV/Å, constraints not applied
    virial: np.ndarray | None  # [3, 3] eV, stress times volume; None where there is no stress


def law(body: Callable[Concatenate[C, Atoms, P], Finding]) -> Callable[Concatenate[C, Atoms, P], LawResult]:
    """The function's name is the law's name, the first line of its docstring is what the law means."""
    name, meaning = body.__name__.replace("_", " "), inspect.getdoc(body).splitlines()[0]  # type: ignore[union-attr]

    @functools.wraps(body)
    def checked(subject: C, atoms: Atoms, *args: P.args, **kwargs: P.kwargs) -> LawResult:
        try:
            found = body(subject, atoms, *args, **kwargs)
        except NotApplicable as reason:
            return LawResult(name, None, None, None, "", meaning, str(reason))
        except CalculationFailed as error:
            return LawResult(name, False, None, None, "", meaning, f"the calculator failed: {error}")
        passed = bool(found.measured <= found.tolerance)
        return LawResult(name, passed, float(found.measured), float(found.tolerance), found.unit, meaning, found.detail)

    return checked


def verify(
    make_calculator: Callable[[str], Calculator], atoms: Atoms, precisions: Sequence[str] = ("float64", "float32")
) -> list[LawResult]:
    """Every law, on a copy of `atoms` that is shaken and strained a little: symmetry would hide what is zero by symmetry.

    `make_calculator` is called with "float64" or "float32" and returns a new calculator. The laws are checked in the first of
    `precisions`; where there are two, `float32_noise` compares them.

        results = verify(lambda dtype: EMT(), bulk("Cu"), precisions=["float64"])
        assert all(result.passed is not False for result in results)

    Raises FlashACEError where the calculator refuses `atoms` (it may not know the elements).
    """
    structure = shaken(atoms)
    precision = PRECISIONS[precisions[0]]
    calculator = make_calculator(precisions[0])
    _check_accepted(calculator, structure)
    return [
        *(check(calculator, structure, precision) for check in LAWS),
        history(lambda: make_calculator(precisions[0]), structure, precision),
        float32_noise(make_calculator, structure, precisions),
    ]


def _check_accepted(calculator: Calculator, atoms: Atoms) -> None:
    try:
        evaluate(calculator, atoms)
    except CalculationFailed as error:  # its own is a finding of the laws
        if error.__cause__ is not None:
            raise FlashACEError(
                f"structure: expected one that the calculator can evaluate, got {atoms.symbols} with pbc={atoms.pbc.tolist()} ({error}); "
                "use a structure of the elements and the kind that the model was made for"
            ) from error


def shaken(atoms: Atoms) -> Atoms:
    """A copy without constraints and calculator, every atom moved by about 0.05 Å, everything strained by about 1 %."""
    random = np.random.default_rng(SEED)
    copy = atoms.copy()
    copy.set_constraint()
    copy.positions += random.normal(scale=0.05, size=copy.positions.shape)
    strain = random.normal(scale=0.01, size=(3, 3))
    return _deformed(copy, (strain + strain.T) / 2)


def calculator_factory(
    name: str, model: str, device: str | None = None, arguments: Sequence[str] = ()
) -> tuple[Callable[[str], Calculator], bool]:
    """`make_calculator` for `verify` from "module:Class", and whether the class lets one choose its precision.

    The class (or function) is called with `model` unless that is "-"; by keyword with each of `arguments` ("name=value", the value as
    JSON or else as text), with `device` if given, and with `dtype` or `default_dtype` if it has one that `arguments` leave open.
    Raises FlashACEError for a name that cannot be imported, for arguments of another form, and where the call fails.
    """
    module, _, attribute = name.partition(":")
    try:
        build = getattr(importlib.import_module(module), attribute)
        accepted = inspect.signature(build).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise FlashACEError(
            f"calculator: expected module:Class, such as mace.calculators:MACECalculator, got {name!r} ({error}); "
            "install its package, or put the folder of your file on PYTHONPATH"
        ) from error
    given = _keywords(arguments) | ({} if device is None else {"device": device})
    dtype = next((word for word in ("dtype", "default_dtype") if word in accepted and word not in given), None)

    def make(precision: str) -> Calculator:
        keywords = given | ({dtype: precision} if dtype else {})
        try:
            return build(*([] if model == "-" else [model]), **keywords)
        except FlashACEError:
            raise
        except FAILURES as error:
            raise FlashACEError(
                f"calculator: expected arguments that {name} takes, got MODEL={model} and {keywords} ({type(error).__name__}: {error}); "
                "give others with --arg name=value, and MODEL as - where it takes none"
            ) from error

    return make, dtype is not None


def _keywords(arguments: Sequence[str]) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for argument in arguments:
        word, equals, value = argument.partition("=")
        if not equals or not word.isidentifier():
            raise FlashACEError(f"arg: expected name=value, such as enable_cueq=true, got {argument!r}")
        try:
            keywords[word] = json.loads(value)
        except ValueError:
            keywords[word] = value
    return keywords


def law_table(results: Sequence[LawResult]) -> Table:
    """The results for the terminal; numbers without a unit are relative."""
    verdicts = {True: Text("holds", "green"), False: Text("BROKEN", "bold red"), None: Text("not\napplicable", "dim")}
    table = Table("law and its meaning", "verdict", title="Laws", title_justify="left")
    for column in ("measured", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in results:
        text = Text.assemble((r.law, "bold"), f"\n{r.meaning}", (f"\n{r.detail}" if r.detail else "", "dim"))
        numbers = ["–" if x is None else f"{x:.1e}" for x in (r.measured, r.tolerance)]
        unit = "" if r.unit == "relative" else f"\n{r.unit}"
        table.add_row(text, verdicts[r.passed], numbers[0], numbers[1] + unit, end_section=True)
    return table


@law
def rotation(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """A turned structure has the same energy; its forces and stress turn with it."""
    return _turned(calculator, atoms, precision, _random_rotation())


@law
def reflection(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The mirror image has the same energy; its forces and stress are mirrored."""
    return _turned(calculator, atoms, precision, -_random_rotation())


@law
def translation(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Moving everything together changes nothing."""
    moved = atoms.copy()
    moved.positions += [3.1, -7.3, 11.7]
    return _same(calculator, atoms, precision, moved)


@law
def permutation(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The order of the atoms in the file does not matter."""
    if len(atoms) < 2:
        raise NotApplicable("one atom has one order")
    order = np.roll(np.random.default_rng(SEED).permutation(len(atoms)), 1)
    return _same(calculator, atoms, precision, atoms[order], lambda s: s._replace(forces=s.forces[order]))


@law
def wrapping(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Moving single atoms by whole lattice vectors changes nothing."""
    if not atoms.pbc.any():
        raise NotApplicable("no periodic direction")
    moved = atoms.copy()
    shifts = np.random.default_rng(SEED).integers(-2, 3, size=(len(atoms), 3))
    moved.positions += np.where(atoms.pbc, shifts, 0) @ np.asarray(atoms.cell)
    return _same(calculator, atoms, precision, moved)


@law
def lattice_vectors(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The same lattice told by other vectors, skewed or left-handed, is the same crystal."""
    if not atoms.pbc.any():
        raise NotApplicable("no periodic direction")
    first, *further = np.flatnonzero(atoms.pbc)
    mirrored, skewed = np.eye(3), np.eye(3)
    mirrored[first, first] = -1
    for n, row in enumerate(further):
        skewed[row, first] = 2 - 3 * n
    others = [atoms.copy() for _ in range(2)]
    for other, change in zip(others, (mirrored, skewed), strict=True):
        other.set_cell(change @ np.asarray(atoms.cell))
    return _worst([_same(calculator, atoms, precision, other) for other in others])


@law
def open_directions(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Along a direction that is not periodic, the cell's length means nothing: no image is there, no atom is folded back."""
    base = atoms.copy()
    if atoms.pbc.all():
        base.pbc = (True, True, False)
    base.set_cell(base.cell.complete())
    found = []
    for factor in (0.4, 3.0):
        other = base.copy()
        other.set_cell(np.where(base.pbc, 1.0, factor)[:, None] * np.asarray(base.cell))
        found.append(_same(calculator, base, precision, other))
    return _worst(found)


@law
def supercell(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """A repeated cell has n times the energy, the same forces and the same stress."""
    if not atoms.pbc.any():
        raise NotApplicable("no periodic direction")
    repeats = np.where(np.eye(3, dtype=bool), 2, 1)[atoms.pbc]
    return _worst([_same(calculator, atoms, precision, atoms.repeat(n), _doubled) for n in repeats])


@law
def additivity(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Parts beyond each other's cutoff do not feel each other: energies add up, forces stay."""
    whole, r_max = _cluster(atoms), _cutoff(calculator, atoms)
    part = whole[: (len(whole) + 1) // 2]
    a, b = evaluate(calculator, whole), evaluate(calculator, part)
    apart = State(a.energy + b.energy, np.concatenate([a.forces, b.forces]), None)
    scale = _scale(evaluate(calculator, atoms))
    found = []
    for gap in (1.001 * r_max, 3 * r_max, 100.0):
        far = part.copy()
        far.positions[:, 0] += whole.positions[:, 0].max() - part.positions[:, 0].min() + gap
        both = evaluate(calculator, whole + far)._replace(virial=None)
        tolerance = precision.symmetry + _round_off(both, precision) / scale
        found.append(Finding(_error(both, apart) / scale, tolerance, detail=f"{gap:.2f} Å apart"))
    return _worst(found)


@law
def locality(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """An atom's own energy knows nothing beyond the cutoff, not even through an atom between (message passing does)."""
    r_max, worst, size = _cutoff(calculator, atoms), 0.0, 1.0
    for a, b in product(np.unique(atoms.numbers), repeat=2):
        energies = []
        for away in ([0.0, 0.0, 0.0], [-0.1 * r_max, 0.2, 0.0], [100.0, 0.0, 0.0]):
            chain = Atoms([a, b, a], [[0, 0, 0], [0.6 * r_max, 0, 0], [1.2 * r_max, 0, 0]])
            chain.positions[2] += away
            energies.append(_energies(calculator, chain)[0])
        worst = max(worst, float(np.ptp(energies)))
        size = max(size, float(np.abs(energies).max()))
    return Finding(worst, 100 * precision.eps * size, "eV")


@law
def sums_over_atoms(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The energies of the atoms add up to the energy, their stresses to the stress."""
    state = evaluate(calculator, atoms)
    energy, virial = _energies(calculator, atoms).sum(), None
    if state.virial is not None and "stresses" in calculator.implemented_properties:
        stresses = np.asarray(calculator.get_property("stresses", atoms)).sum(axis=0)
        virial = stresses.reshape(3, 3) if stresses.size == 9 else voigt_6_to_full_3x3_stress(stresses)
        virial = virial * atoms.get_volume()
    return _compared(State(float(energy), state.forces, virial), state, precision)


@law
def isolated_atom(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Two atoms beyond the cutoff are two lone atoms: without force, each with its reference energy where the model has one."""
    gap = 1.001 * _cutoff(calculator, atoms)
    worst, total = 0.0, 0.0
    for a, b in _species_pairs(atoms):
        pair = evaluate(calculator, _dimer(a, b, gap))
        lone = [evaluate(calculator, Atoms([z])) for z in (a, b)]
        reference = [_reference_energy(calculator, z, state.energy) for z, state in zip((a, b), lone, strict=True)]
        deviations = [state.energy - e0 for state, e0 in zip(lone, reference, strict=True)]
        worst = max(worst, abs(pair.energy - sum(reference)), *np.abs(deviations), *(np.abs(x.forces).max() for x in (pair, *lone)))
        total = max(total, abs(pair.energy))
    return Finding(worst, 10 * precision.eps * max(total, 1.0), "eV, eV/Å")


@law
def forces(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Forces are minus the slope of the energy (central differences along random directions)."""
    return _forces_against_slopes(calculator, atoms, precision, 4)


@law
def atoms_in_a_line(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Where three atoms stand exactly in a line, along whichever axis, forces are minus the slope of the energy and do not jump."""
    found = []
    for (a, b), axis in product(_species_pairs(atoms), np.eye(3)):
        bond = covalent_radii[a] + covalent_radii[b]
        line = Atoms([a, b, a], [-bond * axis, 0 * axis, bond * axis])
        slopes = _forces_against_slopes(calculator, line, precision, num_directions=1)
        jumps = _jumps(calculator, line, 1, np.roll(axis, 1), precision.force_step)
        found.append(slopes._replace(measured=max(slopes.measured, jumps.max() / _scale(evaluate(calculator, line)))))
    return _worst(found)


@law
def stress(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Stress is the slope of the energy along each of the six strains, per volume (central differences)."""
    state = evaluate(calculator, atoms)
    if not atoms.pbc.any():
        raise NotApplicable("no periodic direction")
    if atoms.cell.rank < 3:
        raise NotApplicable("the cell has no volume")
    if state.virial is None:
        raise NotApplicable("the calculator has no stress")
    h, worst = precision.step, 0.0
    for a, b in combinations_with_replacement(range(3), 2):
        strain = np.zeros((3, 3))
        strain[a, b] = strain[b, a] = 1.0 if a == b else 0.5
        energies = [evaluate(calculator, _deformed(atoms, n * h * strain)).energy for n in STENCIL]
        worst = max(worst, abs(_slope(energies, h) - (state.virial * strain).sum()))
    detail = f"largest component {np.abs(state.virial).max() / atoms.get_volume() / units.GPa:.3g} GPa"
    return Finding(worst / len(atoms) / _scale(state), _difference_tolerance(state, precision), detail=detail)


@law
def hessian_symmetry(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Second derivatives commute: how one atom's force answers to another's move goes both ways."""
    if len(atoms) < 2:
        raise NotApplicable("one atom has no second derivatives")
    directions = _directions(atoms, 4)
    answers = np.array([_force_slope(calculator, atoms, u, precision.force_step) for u in directions])
    matrix = np.tensordot(directions, answers, axes=([1, 2], [1, 2]))
    return Finding(np.abs(matrix - matrix.T).max() / np.abs(answers).max(), precision.difference)


@law
def cutoff_with_a_lone_neighbour(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Energy, force and force derivative do not jump when the only neighbour crosses the cutoff."""
    found = []
    for a, b in _species_pairs(atoms):
        for r in _cutoffs(calculator, a, b):
            found += [(_dimer(a, b, r), 1, way) for way in _ways([1.0, 0.0, 0.0])]
    return _largest_jump(calculator, atoms, found, precision)


@law
def cutoff_in_the_structure(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Energy, forces and force derivatives do not jump when an atom of the structure crosses the cutoff of another."""
    found = []
    for a, b in _species_pairs(atoms):
        for r in _cutoffs(calculator, a, b):
            start, moving, outwards = _about_to_cross(atoms, a, b, r)
            found += [(start, moving, way) for way in _ways(outwards)]
    return _largest_jump(calculator, atoms, found, precision)


@law
def force_jumps_of_a_pair(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Two atoms alone: the force does not jump anywhere between 0.5 Å and beyond the cutoff."""
    found = []
    for a, b in _species_pairs(atoms):

        def forces(r: float, pair: tuple[int, int] = (a, b)) -> np.ndarray:
            return evaluate(calculator, _dimer(*pair, r)).forces

        jump, r = _first_jump(forces, *_span(calculator, atoms), precision)
        found.append(Finding(jump, precision.jump, detail=f"{_named(a, b)} at {r:.3f} Å" if jump else ""))
    return _worst(found)


@law
def force_jumps_in_the_structure(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Forces do not jump anywhere while all atoms move along a straight path (inner cutoffs, tables, angles)."""
    direction = _directions(atoms, 1)[0]
    jump, t = _first_jump(lambda t: evaluate(calculator, _moved(atoms, t * direction)).forces, -0.5, 0.5, precision)
    return Finding(jump, precision.jump, detail=f"after {t:.3f} Å" if jump else "")


@law
def pair_repulsion(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Two atoms alone push each other apart, from 0.5 Å to 0.7 of the sum of their covalent radii (a model has to be taught that)."""
    found = []
    for a, b in _species_pairs(atoms):
        for r in np.linspace(SHORTEST, max(SHORTEST, 0.7 * (covalent_radii[a] + covalent_radii[b])), 11):
            push = evaluate(calculator, _dimer(a, b, r)).forces[1, 0]
            found.append(Finding(-push, -1.0, "eV/Å inwards", f"{_named(a, b)} at {r:.2f} Å"))
    return _worst(found)


@law
def pair_tortuosity(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Two atoms alone: the energy goes down and up once, 1 is a curve with one minimum (a model has to be taught that)."""
    found, (start, stop) = [], _span(calculator, atoms)
    for a, b in _species_pairs(atoms):
        energy = np.array([evaluate(calculator, _dimer(a, b, r)).energy for r in np.arange(start, stop, 0.1)])
        direct = energy[0] + energy[-1] - 2 * energy.min()
        found.append(Finding(np.abs(np.diff(energy)).sum() / max(direct, 1e-3), 1.5, "path / direct", _named(a, b)))
    return _worst(found)


@law
def energy_conservation(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Molecular dynamics (NVE) does not drift, in the limit of a short time step."""
    state = evaluate(calculator, atoms)
    acceleration = (np.linalg.norm(state.forces, axis=1) / atoms.get_masses()).max()
    steps, step = 20, min(0.5 * units.fs, (0.002 / max(acceleration, 1e-9)) ** 0.5)
    time = step * np.arange(steps + 1) / (1e6 * units.fs)  # ns
    extrapolated: list[np.ndarray] = []
    slope, tolerance = np.inf, precision.drift * _scale(state)
    for n in (1, 2, 4, 8, 16):
        # Verlet's own error is even in the step, so Richardson's extrapolation to step 0 leaves over what is not the integrator's
        coarser, extrapolated = extrapolated, [_drift(calculator, atoms, step / n, steps * n)[::n]]
        for order, other in enumerate(coarser, start=1):
            extrapolated.append(extrapolated[-1] + (extrapolated[-1] - other) / (4**order - 1))
        slope = 1e3 * abs(np.polyfit(time, extrapolated[-1], 1)[0]) / len(atoms)
        if n > 2 and slope <= tolerance:
            break
    return Finding(slope, tolerance, "meV/atom/ns", f"{1e6 * time[-1]:.1f} fs from 300 K")


@law
def repeatability(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Asked twice, it answers the same."""
    state = evaluate(calculator, atoms)
    evaluate(calculator, _moved(atoms, 0.3 * _directions(atoms, 1)[0]))
    found = _compared(evaluate(calculator, atoms), state, precision)
    return found._replace(tolerance=1e3 * precision.eps + _round_off(state, precision) / _scale(state))


@law
def chunked_equals_whole(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Computed one atom at a time, in little memory, the result is that of all atoms at once."""
    if "max_edges" not in getattr(calculator, "parameters", {}):
        raise NotApplicable("the calculator has no `max_edges`: it takes a structure as a whole")
    if len(atoms) < 2:
        raise NotApplicable("one atom cannot be divided")
    usual = calculator.parameters["max_edges"]
    try:
        calculator.set(max_edges=1)
        chunked = evaluate(calculator, atoms)
        calculator.set(max_edges=sys.maxsize)
        return _compared(chunked, evaluate(calculator, atoms), precision)
    finally:
        calculator.set(max_edges=usual)


@law
def finite_results(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Results are numbers, for the structure squeezed to 80 % and drawn out to 150 % of its lengths as well."""
    for strain in (0.0, -0.2, 0.5):
        evaluate(calculator, _deformed(atoms, strain * np.eye(3)))
    return Finding(0, 0, "numbers")


@law
def sanity(calculator: Calculator, atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """Pairs, trimers, surfaces, holes, a gas and packings have energies and forces of a size that matter can have."""
    model: Any = getattr(calculator, "model", None)
    known = getattr(model, "shortest_distances", None)
    short = guessed_distances(atoms)
    if isinstance(known, dict):  # but no closer than bonds are: how hard atoms push there is not known without the training forces
        told = short_distances(set(atoms.symbols), known)
        short = {pair: max(told[pair], GUESS * bond) for pair, bond in bonds(set(atoms.symbols)).items()}
    state = evaluate(calculator, atoms)
    free_atoms = {int(z): evaluate(calculator, Atoms([z])).energy for z in np.unique(atoms.numbers)}
    energy = (state.energy - sum(free_atoms[z] for z in atoms.numbers)) / len(atoms)
    usual = Usual(energy, energy, float(np.linalg.norm(state.forces, axis=1).max()))
    structures = hard_structures([atoms], short, _told(calculator) or FARTHEST_PAIR)
    results = []
    for name, structure in structures:
        try:
            state = evaluate(calculator, structure, with_stress=False)
        except CalculationFailed as error:
            raise CalculationFailed(f"{name}: {error}") from error
        results.append((state.energy, state.forces))
    found = judge(structures, results, free_atoms, usual, short)
    return Finding(found.worst, 1.0, "of the bars", found.in_words())


@law
def history(make_calculator: Callable[[], Calculator], atoms: Atoms, precision: Precision = FLOAT64) -> Finding:
    """The result depends on the structure alone, not on what was computed before."""
    used, all_found = make_calculator(), []
    for name, steps in _changes(atoms):
        for before in (atoms, *steps[:-1]):
            evaluate(used, before)
        found = _compared(evaluate(used, steps[-1]), evaluate(make_calculator(), steps[-1]), precision)
        all_found.append(found._replace(detail=f"after {name}"))
    worst = _worst(all_found)
    return worst._replace(detail=worst.detail if worst.measured > worst.tolerance else "")


def _changes(atoms: Atoms) -> Iterator[tuple[str, list[Atoms]]]:
    """What is done between two calls, and the structures that a calculator is shown one after the other."""
    direction = np.random.default_rng(SEED).normal(scale=0.5, size=atoms.positions.shape)
    yield "moving far", [_moved(atoms, direction)]
    yield "creeping", [_moved(atoms, 0.1 * n * direction) for n in range(1, 11)]
    yield "straining", [_deformed(atoms, np.diag([0.3, -0.1, 0.1]))]
    if len(atoms) > 1:
        yield "removing an atom", [atoms[1:]]
    if len(np.unique(atoms.numbers)) > 1:
        exchanged = atoms.copy()
        exchanged.numbers = exchanged.numbers[::-1]
        yield "exchanging elements", [exchanged]
    if atoms.pbc.any() and atoms.cell.rank == 3:
        opened, resized = atoms.copy(), atoms.copy()
        opened.pbc = False
        yield "switching pbc off", [opened]
        resized.set_cell(1.1 * np.asarray(atoms.cell))
        yield "resizing the cell around the atoms", [resized]


@law
def float32_noise(
    make_calculator: Callable[[str], Calculator], atoms: Atoms, precisions: Sequence[str] = ("float64", "float32")
) -> Finding:
    """Computed in float32, forces and energy follow those in float64."""
    if len(precisions) < 2:
        raise NotApplicable("the calculator was made in one precision")
    double, single = (evaluate(make_calculator(name), atoms) for name in precisions)  # one after the other: some set a global dtype
    energy = abs(single.energy - double.energy) / len(atoms)
    force = np.abs(single.forces - double.forces).max()
    detail = f"energy {1e3 * energy:.1e} meV/atom, force {1e3 * force:.1e} meV/Å"
    return Finding(_error(single, double) / _scale(double), 1e-4, detail=detail)


LAWS = (
    finite_results,
    repeatability,
    chunked_equals_whole,
    rotation,
    reflection,
    translation,
    permutation,
    wrapping,
    lattice_vectors,
    open_directions,
    supercell,
    additivity,
    locality,
    isolated_atom,
    sums_over_atoms,
    forces,
    atoms_in_a_line,
    stress,
    hessian_symmetry,
    cutoff_with_a_lone_neighbour,
    cutoff_in_the_structure,
    force_jumps_of_a_pair,
    force_jumps_in_the_structure,
    pair_repulsion,
    pair_tortuosity,
    sanity,
    energy_conservation,
)


def evaluate(calculator: Calculator, atoms: Atoms, with_stress: bool = True) -> State:
    """Energy, forces and, for a periodic structure whose cell has a volume, stress times volume.

    Raises CalculationFailed for what is not finite, so that no comparison meets a NaN, and for whatever the calculator raises.
    """
    atoms, virial = atoms.copy(), None
    try:
        atoms.calc = calculator
        energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces(apply_constraint=False))
        if with_stress and atoms.pbc.any() and atoms.cell.rank == 3:
            with contextlib.suppress(NotImplementedError):
                virial = atoms.get_stress(voigt=False, apply_constraint=False) * atoms.get_volume()
    except CalculationFailed:
        raise
    except FAILURES as error:
        raise CalculationFailed(f"{type(error).__name__}: {error}") from error
    for name, x in (("energy", energy), ("forces", forces), ("stress", virial)):
        if x is not None and not np.isfinite(x).all():
            raise CalculationFailed(f"{name} of {atoms.symbols} is not finite")
    return State(energy, forces, virial)


def _energies(calculator: Calculator, atoms: Atoms) -> np.ndarray:
    """[N] eV: the energy of each atom. Raises NotApplicable where the calculator has none."""
    if "energies" not in calculator.implemented_properties:
        raise NotApplicable("the calculator has no energies of single atoms")
    evaluate(calculator, atoms)  # what it raises is told in one way
    return np.array(calculator.get_property("energies", atoms))


# --- what should be equal ---


def _same(
    calculator: Calculator,
    atoms: Atoms,
    precision: Precision,
    other: Atoms,
    expected: Callable[[State], State] = lambda state: state,
) -> Finding:
    """`other` against what the law makes of the results for `atoms`."""
    return _compared(evaluate(calculator, other), expected(evaluate(calculator, atoms)), precision)


def _compared(got: State, expected: State, precision: Precision) -> Finding:
    scale = _scale(expected)
    return Finding(_error(got, expected) / scale, precision.symmetry + _round_off(expected, precision) / scale)


def _error(got: State, expected: State) -> float:
    """Largest of energy per atom, force (× 1 Å) and virial per atom, in eV."""
    num_atoms = len(expected.forces)
    errors = [abs(got.energy - expected.energy) / num_atoms, np.abs(got.forces - expected.forces).max()]
    if got.virial is not None and expected.virial is not None:
        errors.append(np.abs(got.virial - expected.virial).max() / num_atoms)
    return float(np.max(errors))  # NaN where one of them is


def _scale(state: State) -> float:
    """eV: what errors of this structure are measured by."""
    virial = 0.0 if state.virial is None else np.abs(state.virial).max() / len(state.forces)
    return float(max(np.abs(state.forces).max(), virial, 0.1))


def _round_off(state: State, precision: Precision) -> float:
    """eV per atom: the last digits of a total energy, whose zero can be far away."""
    return 10 * precision.eps * abs(state.energy) / len(state.forces)


def _turned(calculator: Calculator, atoms: Atoms, precision: Precision, Q: np.ndarray) -> Finding:
    """Against the structure with x -> Q x. The cell is turned, never mirrored: a lattice is its own image under inversion."""
    other = atoms.copy()
    other.set_cell(np.asarray(atoms.cell) @ (Q * np.linalg.det(Q)).T)
    other.positions = atoms.positions @ Q.T

    def expected(state: State) -> State:
        return State(state.energy, state.forces @ Q.T, None if state.virial is None else Q @ state.virial @ Q.T)

    return _same(calculator, atoms, precision, other, expected)


def _doubled(state: State) -> State:
    return State(2 * state.energy, np.tile(state.forces, (2, 1)), None if state.virial is None else 2 * state.virial)


def _worst(found: Sequence[Finding]) -> Finding:
    """The one that is farthest beyond its tolerance, in units of that; NaN goes before all."""
    return max(found, key=lambda finding: np.nan_to_num(finding.measured / abs(finding.tolerance), nan=np.inf))


def _random_rotation() -> np.ndarray:
    Q, _ = np.linalg.qr(np.random.default_rng(SEED).normal(size=(3, 3)))
    return Q * np.linalg.det(Q)


# --- derivatives by differences ---

STENCIL = (-2, -1, 1, 2)


def _slope(values: Sequence[float], h: float) -> float:
    """f'(0) to order h⁴ from f at -2h, -h, h, 2h."""
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)


def _difference_tolerance(state: State, precision: Precision) -> float:
    return precision.difference + precision.eps * abs(state.energy) / precision.step / _scale(state)


def _forces_against_slopes(calculator: Calculator, atoms: Atoms, precision: Precision, num_directions: int) -> Finding:
    state = evaluate(calculator, atoms)
    h, worst = precision.step, 0.0
    for direction in _directions(atoms, num_directions):
        energies = [evaluate(calculator, _moved(atoms, n * h * direction)).energy for n in STENCIL]
        worst = max(worst, abs(_slope(energies, h) + (state.forces * direction).sum()))
    return Finding(worst / _scale(state), _difference_tolerance(state, precision))


def _force_slope(calculator: Calculator, atoms: Atoms, direction: np.ndarray, h: float) -> np.ndarray:
    """[N, 3] eV/Å²: change of the forces along `direction`."""
    plus, minus = (evaluate(calculator, _moved(atoms, sign * h * direction)).forces for sign in (1, -1))
    return (plus - minus) / (2 * h)


def _directions(atoms: Atoms, count: int) -> np.ndarray:
    """[count, N, 3]: random directions of length √N, so that an atom moves by about 1."""
    return np.random.default_rng(SEED).normal(scale=3**-0.5, size=(count, len(atoms), 3))


def _moved(atoms: Atoms, displacement: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.positions += displacement
    return copy


def _deformed(atoms: Atoms, strain: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + strain))
    copy.positions = atoms.positions @ (np.eye(3) + strain)
    return copy


def _drift(calculator: Calculator, atoms: Atoms, step: float, steps: int) -> np.ndarray:
    """[steps + 1] eV: total energy along a run from 300 K, less that at the start."""
    moving = atoms.copy()
    moving.calc = calculator
    thermalize_momenta(moving, 300, rng=np.random.default_rng(SEED))
    energies: list[float] = []
    dynamics = VelocityVerlet(moving, timestep=step)
    dynamics.attach(lambda: energies.append(moving.get_total_energy()))
    dynamics.run(steps)
    return np.array(energies) - energies[0]


# --- the cutoff ---


def _cutoff(calculator: Calculator, atoms: Atoms) -> float:
    """Å: what the calculator tells, or else where no pair feels anything any more."""
    told = _told(calculator)
    if told is not None:
        return told
    return max([r for a, b in _species_pairs(atoms) for r in _cutoffs(calculator, a, b)], default=LONGEST)


def _cutoffs(calculator: Calculator, a: int, b: int) -> list[float]:
    """Å: the cutoff that the calculator tells, and that of a lone pair of these species, if it is another."""
    told = _told(calculator)
    reach = _reach(calculator, a, b, told)
    return [r for r in (told, reach if reach != told else None) if r is not None]


def _told(calculator: Calculator) -> float | None:
    told = getattr(calculator, "r_max", None)
    return None if told is None else float(told)


def _reach(calculator: Calculator, a: int, b: int, told: float | None) -> float | None:
    """Å: the largest distance at which a lone pair feels anything; None where it does still at the longest or not at all."""
    width, longest = 0.2, LONGEST if told is None else told + 1.0
    far = evaluate(calculator, _dimer(a, b, longest)).energy

    def feels(r: float) -> bool:
        state = evaluate(calculator, _dimer(a, b, r))
        return bool(state.forces.any() or abs(state.energy - far) > 1e-9 + 1e-12 * abs(far))

    lowest = 1.0 if told is None else told
    inside = next((r for r in np.arange(longest, lowest, -width) if feels(r)), None)
    if told is not None and inside is None and feels(told - 1e-3):
        return told
    inside = inside or next((r for r in np.arange(lowest, 1.0, -width) if feels(r)), None)
    if inside is None or inside == longest:
        return None
    outside = inside + width
    while outside - inside > 1e-9:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if feels(middle) else (inside, middle)
    return float(inside)


def _largest_jump(calculator: Calculator, atoms: Atoms, starts: list[tuple[Atoms, int, np.ndarray]], precision: Precision) -> Finding:
    """Over crossings: a structure with a pair exactly at the cutoff, the atom that moves, and the direction it takes."""
    if not starts:
        raise NotApplicable(f"no cutoff found up to {LONGEST:.0f} Å")
    usual = evaluate(calculator, atoms)
    found = []
    for start, moving, direction in starts:
        state = evaluate(calculator, start)
        scale = max(_scale(usual), _scale(state))
        jumps = _jumps(calculator, start, moving, direction, precision.force_step)
        detail = "jumps by {:.1e} eV, {:.1e} eV/Å and {:.1e} eV/Å²".format(*jumps)
        tolerance = precision.difference + 10 * precision.eps * abs(state.energy) / scale
        found.append(Finding(jumps.max() / scale, tolerance, detail=detail))
    return _worst(found)


def _jumps(calculator: Calculator, start: Atoms, moving: int, direction: np.ndarray, h: float) -> np.ndarray:
    """[3]: jump of energy (eV), force (eV/Å) and force derivative (eV/Å²) where `start` is on a path; parabolas through h, 2h, 3h."""
    sides = []
    for sign in (1, -1):
        states = []
        for n in (1, 2, 3):
            at = start.copy()
            at.positions[moving] += sign * n * h * direction
            states.append(evaluate(calculator, at))
        energy, F = np.array([s.energy for s in states]), np.array([s.forces for s in states])
        value, slope = np.array([3, -3, 1]), sign * np.array([-2.5, 4, -1.5]) / h
        sides.append((value @ energy, np.tensordot(value, F, 1), np.tensordot(slope, F, 1)))
    return np.array([np.abs(plus - minus).max() for plus, minus in zip(*sides, strict=True)])


def _ways(outwards: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """Unit vectors: straight across the cutoff, and at 70° to that, so that the direction changes too."""
    outwards = np.asarray(outwards)
    sideways = np.cross(outwards, np.eye(3)[np.abs(outwards).argmin()])
    sideways /= np.linalg.norm(sideways)
    return [outwards, np.cos(np.radians(70)) * outwards + np.sin(np.radians(70)) * sideways]


def _about_to_cross(atoms: Atoms, a: int, b: int, r: float) -> tuple[Atoms, int, np.ndarray]:
    """A structure in which an atom of species b is exactly r from one of species a, the index of b, and the unit vector from a to it.

    The pair of `atoms` that is closest to this distance, or else an atom more, placed where it has most room.
    """
    most = 0.5  # Å that an atom may be moved to get there
    graph = build_graph(atoms, r + most)
    (i, j), vec = graph.edge_index.numpy(), graph.edge_vec.numpy()
    distance = np.linalg.norm(vec, axis=1)
    off = np.where((i != j) & (atoms.numbers[i] == a) & (atoms.numbers[j] == b), np.abs(distance - r), np.inf)
    if len(off) and off.min() < most:
        e = off.argmin()
        outwards = vec[e] / distance[e]
        start = atoms.copy()
        start.positions[j[e]] += (r - distance[e]) * outwards
        return start, int(j[e]), outwards
    random = np.random.default_rng(SEED).normal(size=(100, 3))
    ways = random / np.linalg.norm(random, axis=1, keepdims=True)
    places = [(centre + r * way, way) for centre in atoms.positions[atoms.numbers == a][:10] for way in ways]
    place, outwards = max(places, key=lambda p: get_distances(p[0], atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1].min())
    return atoms + Atoms([b], [place]), len(atoms), outwards


# --- jumps anywhere ---


NODES = np.linspace(0, 1, 5)
BETWEEN = np.vander((NODES[1:] + NODES[:-1]) / 2, 5) @ np.linalg.inv(np.vander(NODES, 5))  # [4, 5]: the quartic through values at NODES


def _first_jump(force: Callable[[float], np.ndarray], start: float, stop: float, precision: Precision) -> tuple[float, float]:
    """Size, relative to the forces there, and place of a jump of `force` between `start` and `stop` Å; the size is 0 where there is none.

    An interval where the force does not follow the quartic through five of its values is halved, until it does or is too narrow for
    anything but a jump.
    """
    edges = np.linspace(start, stop, int(np.ceil((stop - start) / 0.4)) + 1)
    waiting = [(a, b, [force(x) for x in a + (b - a) * NODES]) for a, b in pairwise(edges)]
    while waiting:
        a, b, known = waiting.pop()
        values = np.array(known)
        scale = max(0.1, float(np.abs(values).max()))
        if b - a < precision.force_step / 10:
            jump = float(np.abs(np.diff(values, axis=0)).max()) / scale
            if jump > precision.jump:
                return jump, (a + b) / 2
            continue
        found = [force(x) for x in a + (b - a) * (NODES[1:] + NODES[:-1]) / 2]
        if np.abs(found - np.tensordot(BETWEEN, values, 1)).max() > precision.jump / 2 * scale:
            finer = [known[0], *(x for pair in zip(found, known[1:], strict=True) for x in pair)]
            waiting += [(a, (a + b) / 2, finer[:5]), ((a + b) / 2, b, finer[4:])]
    return 0.0, start


def _span(calculator: Calculator, atoms: Atoms) -> tuple[float, float]:
    """Å: from where two atoms nearly sit on each other to where they feel nothing."""
    return SHORTEST, _cutoff(calculator, atoms) + 0.5


def _named(a: int, b: int) -> str:
    return f"{chemical_symbols[a]}-{chemical_symbols[b]}"


# --- small structures ---


def _species_pairs(atoms: Atoms) -> Iterator[tuple[int, int]]:
    return combinations_with_replacement(np.unique(atoms.numbers).tolist(), 2)


def _dimer(a: int, b: int, r: float) -> Atoms:
    return Atoms([a, b], positions=[[0, 0, 0], [r, 0, 0]])


def _cluster(atoms: Atoms) -> Atoms:
    """The atoms without cell and periodicity."""
    return Atoms(atoms.numbers, atoms.positions)


def _reference_energy(calculator: Calculator, number: int, otherwise: float) -> float:
    """eV: `calculator.model.e0[symbol]` where there is such a thing, as in FlashACE."""
    references: Any = getattr(getattr(calculator, "model", None), "e0", None)
    return references[Atoms([number]).symbols[0]] if isinstance(references, dict) else otherwise
