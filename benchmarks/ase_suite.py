"""Tests of ASE that use its EMT potential, with FlashACE in its place: what they ask of any calculator holds, energies of EMT aside.

python benchmarks/ase_suite.py MODEL ase.test.constraints.test_external_force ase.test.calculator
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import pytest
from ase.calculators import emt

from flashace import FlashACE

WARNINGS = "CoordinationWarning", "FreeAtomsWarning", "PrecisionWarning", "ShortDistanceWarning", "UnfamiliarWarning"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model that knows the elements of these tests, best fitted to EMT")
    parser.add_argument("tests", nargs="+", help="modules of ase.test")
    arguments = parser.parse_args()
    with patch.object(emt, "EMT", lambda **_: FlashACE(arguments.model.resolve(), dtype="float64")):
        quiet = [f"-Wignore::flashace.errors.{kind}" for kind in WARNINGS]  # which ASE's own settings would turn into errors
        raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", *quiet, "--pyargs", *arguments.tests]))


if __name__ == "__main__":
    main()
