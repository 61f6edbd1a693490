"""Frames in; those to fit and those held out, the same for the same seed, out."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from flashace.data.frames import Labelled, content_hash
from flashace.data.lazy import take
from flashace.data.origin import Origin
from flashace.errors import FlashACEError


def split(frames: Sequence[Labelled], valid_fraction: float, seed: int) -> tuple[Sequence[Labelled], Sequence[Labelled]]:
    """Training and validation frames, drawn at random: the same seed draws the same frames.

    Of each kind (config_type and elements) about the same part is held out, and never all: what training has never seen, nothing learns.
    Only where kinds are so small that too few would be held out, they do not count. Each part keeps the order of `frames` and has at least
    one. Raises FlashACEError for a fraction outside (0, 1) and for fewer than two frames.
    """
    num_valid = _num_valid(frames, valid_fraction)
    order = np.random.default_rng(seed).permutation(len(frames))
    known: dict[Any, int] = {}
    kinds = [known.setdefault((frame.config_type, frozenset(frame.atoms.numbers.tolist())), len(known)) for frame in frames]
    left = _shares(Counter(kinds), num_valid)
    drawn = []
    for i in order.tolist():
        if left[kinds[i]] > 0:
            left[kinds[i]] -= 1
            drawn.append(i)
    taken = set(drawn)
    drawn += [i for i in order.tolist() if i not in taken][: num_valid - len(drawn)]
    return _parted(frames, drawn)


def random_split(frames: Sequence[Labelled], valid_fraction: float, seed: int) -> tuple[Sequence[Labelled], Sequence[Labelled]]:
    """`split` without a look at the kinds of frames, as fits did it before: their models are calibrated with it still."""
    drawn = np.random.default_rng(seed).permutation(len(frames))[: _num_valid(frames, valid_fraction)]
    return _parted(frames, drawn.tolist())


def split_of(
    frames: Sequence[Labelled], valid_fraction: float, seed: int, train_hash: str
) -> tuple[Sequence[Labelled], Sequence[Labelled]]:
    """The split, today's or the one of earlier versions, whose training frames have this `content_hash`; today's where neither has."""
    splits = [drawn(frames, valid_fraction, seed) for drawn in (split, random_split)]
    return next((parts for parts in splits if content_hash(parts[0]) == train_hash), splits[0])


def _num_valid(frames: Sequence[Labelled], valid_fraction: float) -> int:
    if not 0 < valid_fraction < 1:
        raise FlashACEError(f"valid_fraction: expected a number between 0 and 1, got {valid_fraction}; 0.1 is usual")
    if len(frames) < 2:
        raise FlashACEError(
            f"expected at least 2 frames to split into training and validation, got {len(frames)}; "
            "add frames or name validation data with --valid"
        )
    return min(max(round(valid_fraction * len(frames)), 1), len(frames) - 1)


def _shares(sizes: Mapping[int, int], num_valid: int) -> Counter[int]:
    """How many of each kind are held out: its part, rounded so that the sum is right as far as one of each kind stays."""
    fraction = num_valid / sum(sizes.values())
    shares = Counter({kind: min(int(fraction * size), size - 1) for kind, size in sizes.items()})
    nearest = sorted(sizes, key=lambda kind: shares[kind] - fraction * sizes[kind])  # stable: of equal ones the first in the data
    while shares.total() < num_valid and any(shares[kind] < sizes[kind] - 1 for kind in nearest):
        for kind in nearest:
            if shares.total() < num_valid and shares[kind] < sizes[kind] - 1:
                shares[kind] += 1
    return shares


def _parted(frames: Sequence[Labelled], drawn: Sequence[int]) -> tuple[Sequence[Labelled], Sequence[Labelled]]:
    valid = np.zeros(len(frames), dtype=bool)
    valid[drawn] = True
    return take(frames, np.flatnonzero(~valid)), take(frames, np.flatnonzero(valid))


def frames_in_both(train: Sequence[Labelled], valid: Sequence[Labelled]) -> list[Origin]:
    """Origins of the validation frames whose structure, atom for atom, is that of a training frame. Frames of shards are not looked at."""
    if not (isinstance(train, list) and isinstance(valid, list)):
        return []
    known = {_structure_of(frame.atoms) for frame in train}
    return [frame.origin for frame in valid if _structure_of(frame.atoms) in known]


def _structure_of(atoms: Atoms) -> bytes:
    parts = (np.asarray([*atoms.numbers, *atoms.pbc], dtype="<i8"), atoms.positions, atoms.cell.array)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()
