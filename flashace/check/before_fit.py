"""The frames of a fit in; what is surely wrong with their labels, and the frames without those labels, out."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from flashace.check import QUICK_FRAMES, quick_check
from flashace.check.conventions import EDGES_PER_SECOND, MAX_EDGES, convention_findings, fit_linear
from flashace.check.finding import Finding
from flashace.data.frames import Labelled, LabelSummary
from flashace.data.lazy import MadeOnDemand, sample, take
from flashace.data.origin import Origin
from flashace.errors import FlashACEError

PART = 0.1  # of the time that a fit may take


@dataclass(frozen=True)
class Looked:
    """What a look at the data of a fit has found, and what the fit does without. `left_out`: origin -> label, "" for the whole frame."""

    frames: int
    tested: int  # of these, by a linear fit; 0 where they were too few
    seconds: float
    wrong: tuple[Finding, ...]
    left_out: Mapping[Origin, str] = field(default_factory=dict)

    def words(self) -> str:
        """One line for tables and the model file."""
        tested = f"a linear fit to {self.tested} of {self.frames} frames" if self.tested else "too few frames with forces for a linear fit"
        found = "; ".join(f"{f.what} ({len(f.frames)} frames)" for f in self.wrong) or "nothing surely wrong"
        counts = Counter(self.left_out.values())
        parts = [f"the {label} of {n} frames" if label else f"{n} frames" for label, n in counts.items()]
        return f"{found}{'; left out: ' + ', '.join(parts) if parts else ''} ({tested}; {self.seconds:.1f} s)"

    def without(self, frames: Sequence[Labelled]) -> Sequence[Labelled]:
        """These frames without what is left out."""
        if "" in self.left_out.values():
            frames = take(frames, np.array([i for i, f in enumerate(frames) if self.left_out.get(f.origin) != ""], int))
        if not any(self.left_out.values()):
            return frames
        if isinstance(frames, list):
            return [_bereft(frames, self.left_out, i) for i in range(len(frames))]
        return MadeOnDemand(partial(_bereft, frames, self.left_out), len(frames))


def look(frames: Sequence[Labelled], labels: LabelSummary, leave_out: bool, max_time: float | None = None) -> Looked:
    """Plain findings and the linear fit, in at most QUICK_FRAMES frames and seconds. Isolated atoms are not among the frames.

    A fit of `max_time` minutes has as many tested as a tenth of them is enough for; one that leaves labels out does not, since it has to
    leave out the same ones when it is made longer.

    Raises FlashACEError where so much is wrong that leaving it out would leave too little.
    """
    started = time.perf_counter()
    some = list(sample(frames, QUICK_FRAMES))
    if not some:
        return Looked(0, 0, 0.0, ())
    affordable = MAX_EDGES if max_time is None or leave_out else int(PART * 60 * max_time * EDGES_PER_SECOND)
    fitted = fit_linear(some, labels, min(affordable, MAX_EDGES))
    wrong = [f for f in quick_check(some) + (convention_findings(fitted) if fitted else []) if f.severity == "surely wrong"]
    left_out: dict[Origin, str] = {}
    for finding in wrong if leave_out else []:
        having = sum(finding.label == "" or f.label(finding.label) is not None for f in some)
        if not finding.frames or 2 * len(finding.frames) > having:
            raise FlashACEError(
                f"check: leave_out: {finding.what}, in {len(finding.frames)} of {having} frames; too many to be left out. "
                "Mend them (`flashace check` says how), or fit all the same with check: warn"
            )
        for origin in finding.frames:
            left_out[origin] = finding.label if left_out.get(origin, finding.label) == finding.label else ""
    tested = 0 if fitted is None else len(fitted.frames)
    return Looked(len(frames), tested, time.perf_counter() - started, tuple(wrong), left_out)


def _bereft(frames: Sequence[Labelled], left_out: Mapping[Origin, str], i: int) -> Labelled:
    label = left_out.get(frames[i].origin)
    return frames[i].without(label) if label else frames[i]
