"""What a law says, and which of its findings counts."""

import numpy as np
import pytest

from flashace.verify import PRECISIONS, Finding
from flashace.verify.law import worst_of


def test_tolerances_are_as_tight_as_promised() -> None:
    assert (PRECISIONS["float64"].symmetry, PRECISIONS["float64"].difference) == (1e-10, 1e-6)


def test_the_worst_finding_is_the_one_farthest_beyond_its_own_tolerance() -> None:
    """A larger value may be within a larger tolerance; and NaN, which compares with nothing, must not be passed over."""
    fine, broken = Finding(2.0, 3.0, detail="fine"), Finding(1.0, 0.5, detail="broken")
    assert [worst_of(found).detail for found in ([fine, broken], [broken, fine])] == ["broken"] * 2
    assert worst_of([fine, Finding(np.nan, 1.0, detail="NaN"), broken]).detail == "NaN"
    assert worst_of([Finding(-2.0, -1.0), Finding(-0.5, -1.0, detail="pulls")]).detail == "pulls"


def test_findings_have_no_order_but_that_of_their_tolerances() -> None:
    with pytest.raises(TypeError, match="not supported"):
        max(Finding(2.0, 3.0), Finding(1.0, 0.5))
