"""Distances in; how many neighbours of each element an atom has, counted by the envelope, and whether training data had such atoms, out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

SPARE = 0.2  # neighbours beyond the range of the training data that are no news
SPARE_SHARE = 0.05  # the same as a part of the number at the end of the range, where that is more
MADE_UP = 0.5  # of what an atom has of one element beyond the middle of the range; a smaller change of all its neighbours is another order


def count_neighbours(
    centre: np.ndarray, species: np.ndarray, squares: np.ndarray, num_atoms: int, num_species: int, r_max: float, exponent: int
) -> np.ndarray:
    """[N, S]: n = Σ_j f(r_ij) over the neighbours of each species, f being the envelope of `nn/radial/` with this exponent.

    Of E edges: the centre of each, the species of its neighbour, and the square of its length in Å²; no edge is longer than `r_max`.
    """
    p, x2 = exponent, squares * (1 / r_max**2)
    x = np.sqrt(x2)
    power = x2 ** (p // 2) if p % 2 == 0 else x2 ** (p // 2) * x  # a whole power is multiplications
    f = 1.0 - power * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * (p * (p + 1) / 2)))
    return np.bincount(centre * num_species + species, f, num_atoms * num_species).reshape(num_atoms, num_species)


class Outside(NamedTuple):
    """The atom whose number of neighbours of one element is farthest outside the range of the training data."""

    atom: int
    neighbour: int  # index of the element of the neighbours
    number: float
    least: float  # in the training data
    most: float


class Coordination:
    """What training had: `least` and `most` [S, S] neighbours of the second species that an atom of the first one has.

    `of_pairs` {"C-Si": [1.0, 4.5]}, the centre first, has both for every ordered pair of `symbols`. Raises ValueError where it has not.
    """

    def __init__(self, of_pairs: Mapping[str, Sequence[float]], symbols: Sequence[str]) -> None:
        names = [f"{a}-{b}" for a in symbols for b in symbols]
        if of_pairs.keys() != set(names):
            raise ValueError(f"coordination: expected {', '.join(names)}, got {', '.join(of_pairs)}")
        ends = np.array([of_pairs[name] for name in names], dtype=float)
        if ends.shape != (len(names), 2) or not (ends[:, 0] >= 0).all() or not (ends[:, 0] <= ends[:, 1]).all():
            raise ValueError(f"coordination: expected the least and the most neighbours of each pair, got {dict(of_pairs)}")
        self.of_pairs = {name: [float(least), float(most)] for name, (least, most) in zip(names, ends.tolist(), strict=True)}
        self.least, self.most = ends.T.reshape(2, len(symbols), len(symbols))
        self._low = self.least - np.maximum(SPARE, SPARE_SHARE * self.least)
        self._high = self.most + np.maximum(SPARE, SPARE_SHARE * self.most)

    def far_outside(self, numbers: np.ndarray, species: np.ndarray) -> np.ndarray:
        """[A]: those atoms, of N with `numbers` [N, S] of neighbours, that are far outside the range, the farthest first.

        Far is more than 0.2 neighbours and more than 5 %; where neighbours of other elements make up for it, so that the order is new and
        the number is not, also more than the width of the range: an alloy has more orders than a few frames show. An atom without any
        neighbour is none of them: it has its reference energy.
        """
        outside = (numbers < self._low[species]) | (numbers > self._high[species])
        if not outside.any():
            return np.empty(0, dtype=int)
        atoms = np.flatnonzero(outside.any(axis=1) & numbers.any(axis=1))
        excess = self._excess(numbers[atoms], species[atoms]).max(axis=1)
        order = np.argsort(-excess, kind="stable")
        return atoms[order[excess[order] > 1]]

    def farthest(self, atom: int, numbers: np.ndarray, species: int) -> Outside:
        """In which of its `numbers` [S] of neighbours this atom of `species` is farthest outside."""
        b = int(self._excess(numbers[None], np.array([species]))[0].argmax())
        return Outside(atom, b, float(numbers[b]), float(self.least[species, b]), float(self.most[species, b]))

    def _excess(self, numbers: np.ndarray, species: np.ndarray) -> np.ndarray:
        """[N, S]: how far outside the range, in units of what is no news."""
        least, most, low, high = (table[species] for table in (self.least, self.most, self._low, self._high))
        moved = numbers - (least + most) / 2
        reordered = np.where(moved * moved.sum(axis=1, keepdims=True) < MADE_UP * moved**2, most - least, 0.0)
        return np.maximum((least - numbers) / np.maximum(least - low, reordered), (numbers - most) / np.maximum(high - most, reordered))
