"""Each calculator that the tests break on purpose in, the laws that catch it out, as the table of docs/verify.md.

    python benchmarks/broken_models.py

Laws about a pair's whole curve are slow; they are asked only where the tests expect them to bite.
"""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/verify"))
import test_laws as tests

from flashace import verify

SLOW = tests.named(*tests.OF_PAIRS, *tests.LEARNED, verify.force_jumps_in_the_structure, verify.energy_conservation)


def main() -> None:
    path = str(Path(tempfile.mkdtemp()) / "model.pt")
    tests.write_model(path)
    atoms = verify.shaken(tests.crystal())
    print("| broken model | caught by (measured, tolerance) |\n|---|---|", flush=True)
    for name, (break_it, expected, _) in tests.BROKEN.items():
        with pytest.MonkeyPatch.context() as monkeypatch:
            break_it(monkeypatch)
            asked = [law for law in tests.ALL_LAWS if law not in SLOW or law in expected]
            caught = [result for result in (tests.check(law, path, atoms) for law in asked) if result.passed is False]
        numbers = [f"{r.law} ({r.detail[:60] if r.measured is None else f'{r.measured:.1e}, {r.tolerance:.0e}'})" for r in caught]
        print(f"| {name} | {'; '.join(numbers)} |", flush=True)
        missed = expected - {r.law for r in caught}
        if missed:
            print(f"MISSED by {', '.join(sorted(missed))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
