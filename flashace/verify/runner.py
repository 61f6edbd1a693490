"""What makes a calculator, and a structure, in; what each law says, out."""

from collections.abc import Callable, Sequence

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator

from flashace.errors import FlashACEError
from flashace.verify import answers, comparisons, dynamics, local_energies, outside_data, pairs, slopes, smoothness, symmetry
from flashace.verify.law import PRECISIONS, LawResult, laws_of
from flashace.verify.state import evaluate
from flashace.verify.structures import shaken

# a file per kind of law, and the order of the table: laws that are given a calculator, and laws that are given what makes them
LAWS = laws_of(answers, symmetry, local_energies, slopes, smoothness, pairs, outside_data, dynamics)
LAWS_BETWEEN_CALCULATORS = laws_of(comparisons)


def verify(
    make_calculator: Callable[[str], Calculator], atoms: Atoms, precisions: Sequence[str] = ("float64", "float32")
) -> list[LawResult]:
    """Every law, on a copy of `atoms` that is shaken and strained a little: symmetry would hide what is zero by symmetry.

    `make_calculator` is called with "float64" or "float32" and returns a new calculator. The laws are checked in the first of
    `precisions`; `float32_noise` compares two.

    >>> from ase.build import bulk
    >>> from ase.calculators.lj import LennardJones
    >>> argon = LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0, smooth=True)
    >>> results = verify(lambda dtype: argon, bulk("Ar", a=5.26), precisions=["float64"])
    >>> [result.law for result in results if result.law == "rotation" and result.passed]
    ['rotation']

    Raises FlashACEError where the calculator refuses `atoms` (it may not know the elements).
    """
    structure = shaken(atoms)
    precision = PRECISIONS[precisions[0]]
    calculator = make_calculator(precisions[0])
    _check_accepted(calculator, structure)
    return [
        *(law(calculator, structure, precision) for law in LAWS),
        *(law(make_calculator, structure, precisions) for law in LAWS_BETWEEN_CALCULATORS),
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
