"""A student, its teacher, seeds and labelled frames in; what was measured of the student, and whether asked bounds hold, out."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from rich.table import Table

from flashace.calculator import FlashACE, choose_dtype
from flashace.data.frames import Labelled
from flashace.errors import FlashACEError
from flashace.evaluate.metrics import ErrorTable
from flashace.files import whole_file
from flashace.guards import on_purpose
from flashace.potential.model_file import load_model, read_header, save_model
from flashace.teach.limited import Limited
from flashace.teach.pictures import draw
from flashace.teach.properties.property import DoesNotApply, Measured, Property, Subject, is_crystal
from flashace.teach.properties.table import PROPERTIES
from flashace.teach.teacher_errors import add_errors, align
from flashace.verify.state import FAILURES, evaluate

MOST_SEEDS = 3  # one of each composition
REST, STEPS = 0.01, 100  # eV/Å, and steps at most, of the seeds' relaxation by the teacher
SECONDS = 600.0  # of a property; a teacher that needs longer is not asked further
LABELS = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}
SETS = {
    "teacher": "held-out frames of the teacher",
    "trajectory": "the student's own trajectories, labelled by the teacher",
    "dft": "test frames with your labels",
}
BOUNDS = (*(f"{name}_{label}" for name in SETS for label in LABELS), *PROPERTIES)  # what a bound can be asked of


@dataclass(frozen=True)
class Row:
    """One thing that was measured, or was not. `number` is None then, and `words` says why not."""

    key: str  # one of BOUNDS, where a bound can be asked of it
    what: str
    number: float | None
    unit: str
    words: str = ""
    bound: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether it is within its bound; None where none was asked. What was not measured has not passed."""
        if self.bound is None:
            return None
        return self.number is not None and self.number <= self.bound


@dataclass(frozen=True)
class Certificate:
    """What a model file keeps of it is `to_dict`."""

    teacher: str
    licence: str
    rows: list[Row]
    errors: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # set of frames -> rows of `ErrorTable`, by config_type

    def passed(self, bounds: Mapping[str, float] | None = None) -> bool:
        """Whether all asked bounds hold, those that it was made with where none are given. A bound that no row has is not held."""
        if bounds is None:
            return all(row.passed is not False for row in self.rows)
        check_bounds(bounds)
        rows = [replace(row, bound=bounds.get(row.key)) for row in self.rows]
        return bounds.keys() <= {row.key for row in rows} and all(row.passed is not False for row in rows)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        rows = [asdict(row) | {"passed": row.passed} for row in self.rows]
        return {"teacher": self.teacher, "licence": self.licence, "rows": rows, "errors": self.errors}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Certificate":
        """From what `to_dict` gave."""
        rows = [Row(**{name: value for name, value in row.items() if name != "passed"}) for row in found["rows"]]
        return cls(found["teacher"], found["licence"], rows, dict(found["errors"]))


def check_bounds(bounds: Mapping[str, float]) -> None:
    """Raises FlashACEError for a name that nothing is measured by, and for what is no number above or at zero."""
    for name, bound in bounds.items():
        if name not in BOUNDS:
            raise FlashACEError(f"bounds: expected names of {', '.join(BOUNDS)}, got {name!r}; correct it")
        if not isinstance(bound, int | float) or isinstance(bound, bool) or not 0 <= bound < math.inf:
            raise FlashACEError(f"bounds: {name}: expected a number of zero or more, got {bound!r}; correct it")


def certificate(
    student: str | Path | Calculator,
    teacher: Calculator,
    seeds: Sequence[Atoms],
    held_out: Sequence[Labelled] = (),
    trajectories: Sequence[Labelled] = (),
    dft: Sequence[Labelled] = (),
    scratch: str | Path | Calculator | None = None,
    bounds: Mapping[str, float] | None = None,
    folder: str | Path | None = None,
    name: str = "teacher",
    licence: str = "",
    temperature: float = 1000.0,
    properties: Mapping[str, Property] = PROPERTIES,
    say: Callable[[str], Any] = lambda text: None,
) -> Certificate:
    """Errors on the three sets of frames (`held_out` and `trajectories` have the teacher's labels), and each property of up to three seeds.

    `scratch` is a fit to the user's labels alone, shown beside the student on `dft`. Where there are `dft` frames, the student has their
    zero of energy, and the teacher's is moved there before energies are compared. Into `folder` go certificate.json and a picture of each
    property; `properties` are some of the table. `say` hears what is measured next.
    Raises FlashACEError for bounds of unknown names and a model file that cannot be loaded.
    """
    bounds = {} if bounds is None else bounds
    check_bounds(bounds)
    calculator = _student(student)[0]
    rows: list[Row] = []
    errors: dict[str, list[dict[str, Any]]] = {}
    for key, frames in zip(SETS, (held_out, trajectories, dft), strict=True):
        say(f"errors on {SETS[key]}")
        table, failure = _errors(calculator, frames, aligned=bool(dft) and key != "dft")
        beside = _errors(_student(scratch)[0], frames, aligned=False)[0] if key == "dft" and scratch is not None and frames else []
        errors |= {key: table} if table else {}
        errors |= {"dft, from scratch": beside} if beside else {}
        rows += error_rows(key, SETS[key], table, beside, failure)
    rows += property_rows(student, teacher, seeds, folder, properties, temperature, say=say)
    missing = [Row(key, key.replace("_", " "), None, "", "not measured: there is nothing to measure it on") for key in bounds]
    rows += [row for row in missing if row.key not in {found.key for found in rows}]
    return to_json(Certificate(name, licence, [replace(row, bound=bounds.get(row.key)) for row in rows], errors), folder)


def to_json(found: Certificate, folder: str | Path | None) -> Certificate:
    """The same, which stands in certificate.json of the folder now, where one is given."""
    if folder is not None:
        with whole_file(Path(folder) / "certificate.json") as file:
            file.write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
    return found


def certify(model: str | Path, found: Certificate) -> None:
    """Write the certificate into the model file, and who taught it."""
    header = read_header(model)
    network = load_model(model, choose_dtype(header["dtype"]))
    taught = {"teacher": {"name": found.teacher, "licence": found.licence}, "certificate": found.to_dict()}
    save_model(model, network, header["provenance"] | taught)


def certificate_table(found: Certificate) -> Table:
    """For the terminal."""
    verdicts = {True: "holds", False: "NOT HELD", None: ""}
    title = f"Certificate: student of {found.teacher}" + (f"\nlicence of the teacher: {found.licence}" if found.licence else "")
    table = Table(title=title, title_justify="left")
    table.add_column("what", overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("bound", justify="right")
    table.add_column("student (teacher)", overflow="fold")
    before = ""
    for row in found.rows:
        if row.key != before and before:
            table.add_section()
        before = row.key
        number = "not measured" if row.number is None else f"{row.number:.3g} {row.unit}"
        bound = "" if row.bound is None else f"{row.bound:g}: {verdicts[row.passed]}"
        table.add_row(row.what, number, bound, row.words.removeprefix("not measured: "))
    return table


# --- what is compared ---


def _student(student: Any) -> tuple[Calculator, Callable[[str], Calculator], tuple[str, ...]]:
    """Its calculator in float64, what makes others, and of which precisions."""
    if isinstance(student, Calculator):
        return student, lambda precision: student, ("float64",)
    make = lambda precision: FlashACE(str(student), dtype=precision)  # noqa: E731
    return make("float64"), make, ("float64", "float32")


def representatives(seeds: Sequence[Atoms], most: int = MOST_SEEDS) -> list[Atoms]:
    """The smallest seed of each composition and periodicity, so many of them."""
    kinds: dict[tuple[str, tuple[bool, ...]], Atoms] = {}
    for atoms in sorted(seeds, key=len):
        kinds.setdefault((atoms.get_chemical_formula(empirical=True), tuple(atoms.pbc.tolist())), atoms)
    return list(kinds.values())[:most]


def at_rest(atoms: Atoms, teacher: Calculator, seconds: float = SECONDS) -> Atoms:
    """A copy relaxed by the teacher, the cell of a crystal too where it has stress."""
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    copy.calc = Limited(teacher, seconds)
    free: Any = FrechetCellFilter(copy) if is_crystal(copy) and "stress" in teacher.implemented_properties else copy
    BFGS(free, logfile=None).run(fmax=REST, steps=STEPS)
    copy.calc = None
    return copy


# --- rows ---


def _errors(calculator: Calculator, frames: Sequence[Labelled], aligned: bool) -> tuple[list[dict[str, Any]], str]:
    """Rows of `ErrorTable`, or none and what failed. `aligned`: the labels have another zero of energy, which is taken out."""
    evaluated = []
    for frame in frames:
        try:
            evaluated.append((frame, evaluate(calculator, frame.atoms, with_stress=frame.stress is not None)))
        except CalculationFailed as error:
            return [], f"the student failed at {frame.origin}: {error}"
    table = ErrorTable()
    for frame, state in align(evaluated)[1] if aligned else evaluated:
        add_errors(table, frame, state)
    return table.rows() if frames else [], ""


def error_rows(
    key: str, what: str, table: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]] = (), failure: str = ""
) -> list[Row]:
    """A row for each label of the frames `what`, whose `ErrorTable` is given; `beside` is that of a fit from scratch."""
    if not table and not failure:
        return [Row(f"{key}_forces", what, None, "", "not measured: no such frames were given")]
    if not table:
        return [Row(f"{key}_{label}", f"{label}, {what}", None, unit, f"not measured: {failure}") for label, unit in LABELS.items()]
    rows = []
    for label, unit in LABELS.items():
        number = table[-1][f"{label}_rmse"]
        kinds = {row["config_type"]: row[f"{label}_rmse"] for row in table[:-1] if row[f"{label}_rmse"] is not None}
        words = f"RMSE of {table[-1]['frames']} frames"
        if kinds:
            worst = max(kinds, key=kinds.__getitem__)
            words += f"; worst {worst or '(none)'}: {kinds[worst]:.3g}"
        if beside and beside[-1][f"{label}_rmse"] is not None:
            words += f"; from scratch {beside[-1][f'{label}_rmse']:.3g}"
        if number is None and label == "stress":
            continue  # molecules have none
        rows.append(Row(f"{key}_{label}", f"{label}, {what}", number, unit, words if number is not None else "not measured: no labels"))
    return rows


def property_rows(
    student: str | Path | Calculator,
    teacher: Calculator,
    seeds: Sequence[Atoms],
    folder: str | Path | None = None,
    properties: Mapping[str, Property] = PROPERTIES,
    temperature: float = 1000.0,
    seconds: float = math.inf,
    say: Callable[[str], Any] = lambda text: None,
) -> list[Row]:
    """Each property of up to three seeds; of those that come after `seconds`, the row says that there was no time."""
    calculator, make_student, precisions = _student(student)
    end, rows = time.monotonic() + seconds, list[Row]()
    for seed in representatives(seeds):
        formula = seed.get_chemical_formula()
        try:
            atoms = at_rest(seed, teacher, min(SECONDS, end - time.monotonic()))
        except (CalculationFailed, *FAILURES) as error:
            rows += [Row(key, f"{key}, {formula}", None, "", f"not measured: the teacher failed: {error}") for key in properties]
            continue
        for key, measure in properties.items():
            left = end - time.monotonic()
            if left <= 0:
                rows.append(Row(key, f"{key.replace('_', ' ')}, {formula}", None, "", f"not measured: the {seconds:.0f} s were over"))
                continue
            say(f"{key.replace('_', ' ')} of {formula}")
            of_student = calculator if left == math.inf else Limited(calculator, left)
            subject = Subject(of_student, Limited(teacher, min(SECONDS, left)), atoms, make_student, precisions, temperature)
            rows += _property_rows(key, measure, subject, folder)
    return rows


def _property_rows(key: str, measure: Property, subject: Subject, folder: str | Path | None) -> list[Row]:
    """One row, or none where the property does not apply."""
    formula = subject.atoms.get_chemical_formula()
    what = f"{key.replace('_', ' ')}, {formula}"
    try:
        with on_purpose():  # laws and scans leave the data
            found: Measured = measure(subject)
    except DoesNotApply:
        return []
    except (CalculationFailed, FlashACEError, NotImplementedError, *FAILURES) as error:
        return [Row(key, what, None, "", f"not measured: {type(error).__name__}: {error}")]
    if not math.isfinite(found.number):
        return [Row(key, what, None, found.unit, f"not measured: got {found.number}")]
    if folder is not None and found.panels:
        draw(found.panels, Path(folder) / f"certificate_{key}_{formula}.png")
    return [Row(key, f"{what}: {found.meaning}", found.number, found.unit, found.words)]
