"""The place of a frame, and what is wrong with it, as records that print what users know."""

import pickle

import pytest

from flashace.data.origin import Fault, FrameError, Origin
from flashace.errors import FlashACEError


def test_a_place_prints_as_file_and_position():
    origin = Origin("odd#name.xyz", 17)
    assert f"{origin}" == str(origin) == "odd#name.xyz#17"
    assert pickle.loads(pickle.dumps(origin)) == origin
    assert sorted([Origin("a.xyz", 10), Origin("a.xyz", 9)])[0].index == 9


def test_an_error_of_a_frame_carries_its_fault():
    fault = Fault(Origin("a.xyz", 3), "shape", "REF_energy", "expected one number, got shape (2,)", "correct it")
    with pytest.raises(FlashACEError, match=r"a.xyz#3: expected one number, got shape \(2,\); correct it") as caught:
        raise FrameError(fault)
    assert caught.value.fault == fault
    assert pickle.loads(pickle.dumps(caught.value)).fault == fault
