"""Structures and a teacher in; a file with the teacher's energies, forces and stresses, and a file of what has none and why, out."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from flashace.data.files import structures
from flashace.data.labels import LABELS
from flashace.data.origin import FrameError, Origin
from flashace.data.shards import Shards, is_shards
from flashace.data.sound import check_structure
from flashace.data.sources import sources_in
from flashace.errors import FlashACEError
from flashace.files import undone_by_signals
from flashace.teach.journal import Journal
from flashace.teach.task import APART, Label
from flashace.teach.workers import Cluster, Workers, failure

DECIMALS = 8  # of positions and cells, as extended XYZ has them: a structure is the same before and after it was written
MAX_FORCE = 100.0  # eV/Å; atoms of a hot melt feel 30, those of an SCF that went wrong thousands


@dataclass
class Summary:
    """What a run has met and made."""

    frames: int = 0  # that were given
    twice: int = 0  # of which are copies of others
    had_labels: int = 0  # of which came with labels of their own, which are left behind
    charged: int = 0  # of which have charges or magnetic moments, which the teacher does not hear of
    already: int = 0  # structures that were labelled before
    aside_before: int = 0  # structures that were put aside before
    labelled: int = 0
    aside: Counter[str] = field(default_factory=Counter)  # kind of reason -> structures
    apart: float = 0.0  # eV/atom; the largest difference of free energy and energy

    @property
    def structures(self) -> int:
        """Different ones that were given."""
        return self.frames - self.twice


def label(
    paths: Sequence[str | Path],
    workers: Workers | Cluster,
    output: str | Path,
    max_force: float = MAX_FORCE,
    plan: Callable[[Summary, int], Any] = lambda summary, left: None,
    progress: Callable[[int], Any] = lambda done: None,
) -> Summary:
    """Append the labels of all structures that `output` does not have yet, as they are made; `Journal` says how that file looks.

    Of a structure go elements, positions, cell, periodicity and `config_type` to the teacher and to the file, besides `origin`, the place
    that it was read from. Charges, magnetic moments, other arrays and labels of its own stay behind. A force above `max_force` (eV/Å) is no
    label. A file is read twice, structure by structure. `plan` hears how many structures are left to label before the first of them is,
    `progress` how many are done.
    Raises FlashACEError for files that cannot be read, a teacher that cannot be made, and for an `output` of another teacher.
    """
    if Path(output).suffix not in (".extxyz", ".xyz"):
        raise FlashACEError(f"output {output}: expected a name that ends in .extxyz, since that is what is written; correct it")
    with undone_by_signals(), Journal(output, workers.teacher.source) as journal:
        summary = Summary()
        before = set(journal.failed)
        left = _survey(paths, journal, summary)
        given = ...
        plan(summary, len(left))
        with closing(workers.run(_tasks(paths, left))) as results:
            for done, (task, result) in enumerate(results, 1):
                if not isinstance(result, Failure) and (force := _largest_force(result)) > max_force:
                    result = failure(task, f"a force of {force:.4g} eV/Å is more than {max_force:g} (--max-force)")
                if isinstance(result, Failure):
                    journal.put_aside(result)
                    summary.aside[kind_of(result.reason)] += 1
                else:
                    journal.append(task.key, result)
                    summary.labelled += 1
                    summary.apart = max([summary.apart, *(abs(frame.info.get(APART, 0.0)) / len(frame) for frame in result)])
                progress(done)
    return summary
