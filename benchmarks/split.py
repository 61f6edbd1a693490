"""Two splits of a file of labelled frames: a random one, and one that keeps the hardest frames from training.

    python benchmarks/split.py train_300K.xyz splits/ --angle dihedral_angle

`splits/random/` has train.xyz and valid.xyz (a tenth), `splits/hard/` also hard.xyz: the twentieth with the highest energies
per atom and, with `--angle`, the twentieth for which the angle of that name in `info` (degrees) is farthest from 0.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="labelled frames of one composition")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--angle", help="name of an angle in info, in degrees")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    frames = read(arguments.data, ":")
    hard = hardest(frames, arguments.angle)
    save(arguments.folder / "random", frames, arguments.seed)
    save(arguments.folder / "hard", [frame for i, frame in enumerate(frames) if i not in hard], arguments.seed)
    write(arguments.folder / "hard" / "hard.xyz", [frames[i] for i in sorted(hard)])


def hardest(frames: Sequence[Atoms], angle: str | None) -> set[int]:
    """Places of the frames that are kept from training."""
    count = max(1, len(frames) // 20)
    measures = [[frame.get_potential_energy() / len(frame) for frame in frames]]
    if angle is not None:
        measures.append([abs((frame.info[angle] + 180) % 360 - 180) for frame in frames])
    return {int(i) for values in measures for i in np.argsort(values)[-count:]}


def save(folder: Path, frames: Sequence[Atoms], seed: int) -> None:
    """train.xyz and valid.xyz, a random tenth."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(frames))
    held = len(frames) // 10
    write(folder / "valid.xyz", [frames[i] for i in order[:held]])
    write(folder / "train.xyz", [frames[i] for i in order[held:]])


if __name__ == "__main__":
    main()
