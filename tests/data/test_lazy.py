import numpy as np
import pytest

from flashace.data.lazy import MadeOnDemand, chained, sample, take

TEN = list(range(10))


def lazily(items):
    return MadeOnDemand(lambda i: items[i], len(items))


@pytest.mark.parametrize("kind", [list, lazily])
def test_parts_of_lists_are_lists_and_parts_of_others_are_made_on_demand(kind):
    items = kind(TEN)
    for part, expected in [
        (take(items, np.array([7, 2, 2])), [7, 2, 2]),
        (chained(items, kind([10, 11])), [*TEN, 10, 11]),
        (sample(items, 4), [0, 2, 5, 7]),
        (sample(items, 10), TEN),
    ]:
        assert list(part) == expected
        assert len(part) == len(expected)
        assert isinstance(part, list) is (kind is list)


def test_nothing_is_made_before_it_is_asked_for_and_nothing_kept():
    made = []
    items = MadeOnDemand(lambda i: made.append(i) or i, 5)
    part = chained(take(items, np.array([4, 3])), take(items, np.array([0])))
    assert made == []
    assert (part[-1], part[1], part[1]) == (0, 3, 3)
    assert made == [0, 3, 3]
    assert part[:2] == [4, 3]
    with pytest.raises(IndexError):
        part[3]
