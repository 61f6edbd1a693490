"""A fit that began with a teacher, and is over, in; its certificate, of what is known and of what is measured in minutes, out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator

from flashace.potential.model_file import read_header
from flashace.teach.before_fit import comparison_in
from flashace.teach.certificate import SETS, Certificate, Row, error_rows, property_rows, to_json
from flashace.teach.config import PLACE
from flashace.teach.properties.table import PROPERTIES
from flashace.teach.teacher_errors import KindErrors

PART, LEAST, USUAL = 0.1, 60.0, 300.0  # of `max_time`, but so many seconds at least; and where there is no `max_time`
# what needs no teacher, then what a few calls of it tell, then what takes thousands
ORDER = "laws", "drift", "dihedral_scan", "bond_scan", "energy_volume", "elastic", "phonons", "radial"
VALIDATION = "your validation frames, which the fit has not learned"
OF_STUDENT = "held-out frames of the teacher, by the student before it met your labels"


def seconds_for(max_time: float | None) -> float:
    """How long the certificate of a fit of so many minutes may measure."""
    return USUAL if max_time is None else max(PART * 60 * max_time, LEAST)


def certificate_of_fit(
    folder: Path,
    teacher: Calculator,
    seeds: Sequence[Atoms],
    seconds: float,
    name: str,
    licence: str,
    say: Callable[[str], Any] = lambda text: None,
) -> Certificate:
    """Of the model in the run `folder`: errors as the closing tables of the fit and of its student have them, what the quick fits told of
    the teacher, and properties of the seeds as far as `seconds` go, the cheap ones first. certificate.json and pictures go into the folder.
    """
    own, students = (_validation(path) for path in (folder / "model.pt", folder / PLACE / "student" / "model.pt"))
    rows = [
        *error_rows("dft", VALIDATION, own),
        *error_rows("teacher", OF_STUDENT, students),
        Row(
            "trajectory_forces",
            SETS["trajectory"],
            None,
            "",
            "not measured: `flashace distill` runs its student, a fit does not",
        ),
        _quick(comparison_in(folder)),
        Row(
            "from_scratch",
            "the same fit without the teacher",
            None,
            "",
            "not measured: that is a fit of its own; `flashace fit` without --teacher, given the same time, tells",
        ),
    ]
    chosen = {key: PROPERTIES[key] for key in ORDER}
    rows += property_rows(folder / "model.pt", teacher, seeds, folder, chosen, seconds=seconds, say=say)
    errors = {name: table for name, table in (("dft", own), ("teacher", students)) if table}
    return to_json(Certificate(name, licence, rows, errors), folder)


def _validation(model: Path) -> list[dict[str, Any]]:
    """The rows of its closing table for validation frames; none where it had none, or is gone."""
    return list(read_header(model)["provenance"].get("errors", {}).get("validation", [])) if model.exists() else []


def _quick(kinds: Sequence[KindErrors]) -> Row:
    """What was told of the teacher before it was asked for labels."""
    what = "forces of your training frames, by a quick fit that starts from the teacher"
    if not kinds or kinds[-1].alone is None or kinds[-1].helped is None:
        why = "too few frames with forces" if kinds else "the lesson does not tell"
        return Row("quick_fit", what, None, "meV/Å", f"not measured: {why}")
    pairs = {kind.kind or "(none)": f"{kind.alone:.3g} → {kind.helped:.3g}" for kind in kinds if None not in (kind.alone, kind.helped)}
    whole = pairs.pop("all")
    each = f" ({', '.join(f'{kind} {pair}' for kind, pair in pairs.items())})" if pairs else ""
    words = f"alone → with the teacher: {whole}{each}; the teacher as it is {kinds[-1].forces:.3g}"
    return Row("quick_fit", what, kinds[-1].helped, "meV/Å", words)
