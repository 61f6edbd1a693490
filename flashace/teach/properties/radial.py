"""Which distances atoms have in hot molecular dynamics: student and teacher, each by its own run."""

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.geometry.rdf import get_rdf
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from flashace.teach.locality import heights_of, repeat_to
from flashace.teach.properties.property import DoesNotApply, Measured, Panel, Subject, is_crystal, is_molecule

SETTLE, STEPS, APART = 150, 300, 5  # steps of the run before and while distances are taken, every fifth step
BOX, MOST_ATOMS = 4.0, 64  # Å, half of the heights of the supercell; and atoms of it
FARTHEST, WIDTH = 6.0, 0.1  # Å


def radial(subject: Subject) -> Measured:
    """Distribution functions from Langevin dynamics of some 0.5 to 1 ps at the hot temperature, from the same start."""
    if is_molecule(subject.atoms):
        start, farthest = subject.atoms, FARTHEST
    elif is_crystal(subject.atoms):
        start = repeat_to(subject.atoms, BOX, MOST_ATOMS)
        farthest = min(FARTHEST, heights_of(start).min() / 2 - 1e-3)
    else:
        raise DoesNotApply
    student, teacher = (_run(calculator, start, subject.temperature) for calculator in subject.both)
    half = len(teacher) // 2
    (own, r), (of_teacher, _), (first, _), (second, _) = (
        _distribution(images, farthest) for images in (student, teacher, teacher[:half], teacher[half:])
    )
    words = f"at {subject.temperature:.0f} K; halves of the teacher's run are {_apart(first, second):.2g} % apart"
    panel = Panel(f"Distances at {subject.temperature:.0f} K", "r, Å", "g(r)", r, own, of_teacher)
    return Measured(_apart(own, of_teacher), "%", "area between the curves, of the teacher's", words, (panel,))


def _run(calculator: Calculator, start: Atoms, temperature: float) -> list[Atoms]:
    atoms = start.copy()
    atoms.calc = calculator
    random = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature, rng=random)
    dynamics = Langevin(atoms, time_step(atoms), temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=random)
    images: list[Atoms] = []
    dynamics.run(SETTLE)
    dynamics.attach(lambda: images.append(atoms.copy()), interval=APART)
    dynamics.run(STEPS)
    return images


def time_step(atoms: Atoms) -> float:
    """1 fs with hydrogen, else 2 fs, in ASE's unit."""
    return float((1.0 if 1 in atoms.numbers else 2.0) * units.fs)


def _distribution(images: list[Atoms], farthest: float) -> tuple[np.ndarray, np.ndarray]:
    """g and r; of a molecule as if it had 1000 Å³."""
    volume = None if images[0].pbc.all() else 1000.0
    g, r = get_rdf(images, farthest, round(farthest / WIDTH), volume=volume)
    return np.asarray(g), np.asarray(r)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """%: area between, over that of the other."""
    return 100 * float(np.abs(one - other).sum() / other.sum())
