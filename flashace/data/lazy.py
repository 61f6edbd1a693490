"""Long sequences in; parts, samples and sums of them out, in memory only where they were before."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, overload

import numpy as np

T = TypeVar("T")


class MadeOnDemand(Sequence[T]):
    """A sequence that keeps nothing: each access calls `make` with the index."""

    def __init__(self, make: Callable[[int], T], length: int) -> None:
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        indices = range(self._length)[index]
        return self._make(indices) if isinstance(indices, int) else [self._make(i) for i in indices]


def take(items: Sequence[T], indices: np.ndarray) -> Sequence[T]:
    """Those items in this order: a list from a list, otherwise each one when it is asked for."""
    if isinstance(items, list):
        return [items[i] for i in indices.tolist()]
    return MadeOnDemand(partial(_taken, items, indices), len(indices))


def chained(one: Sequence[T], other: Sequence[T]) -> Sequence[T]:
    """All of `one` and then all of `other`."""
    if isinstance(one, list) and isinstance(other, list):
        return [*one, *other]
    return MadeOnDemand(partial(_of_both, one, other), len(one) + len(other))


def sample(items: Sequence[T], most: int) -> Sequence[T]:
    """The items themselves, or `most` of them, evenly drawn."""
    return items if len(items) <= most else take(items, np.arange(most) * len(items) // most)


# by name, so that what they are in can be pickled for another process


def _taken(items: Sequence[T], indices: np.ndarray, i: int) -> T:
    return items[indices[i]]


def _of_both(one: Sequence[T], other: Sequence[T], i: int) -> T:
    return one[i] if i < len(one) else other[i - len(one)]
