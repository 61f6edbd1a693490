"""Files of labelled structures in; what is wrong with the labels, how sure that is and what mends it out."""

from collections.abc import Sequence
from pathlib import Path

from flashace.check.conventions import MIN_FRAMES, convention_findings, fit_linear
from flashace.check.finding import Finding, sort_findings
from flashace.check.plain_findings import label_findings, neighbour_findings
from flashace.data.frames import LabelKeys, Labelled, LabelSummary, isolated_atom_energies
from flashace.data.lazy import sample
from flashace.data.origin import Fault
from flashace.data.shards import read_data
from flashace.data.statistics import elements_of
from flashace.errors import FlashACEError

QUICK_ATOMS = 20_000  # whose distances are looked at before a fit: a second
QUICK_FRAMES = 20_000  # evenly drawn: some ten seconds
MOST_FRAMES = 100_000  # of shards, evenly drawn: they have to be in memory
TOUCHING = 2.0  # Å: half the covalent radii of most pairs, and short enough to be quick


def check(paths: Sequence[str | Path], keys: LabelKeys) -> tuple[list[Finding], LabelSummary]:
    """All findings, the worst first, and where labels were read. Raises FlashACEError for files that cannot be read at all."""
    faults: list[Fault] = []
    everything, labels = read_data(paths, keys, required=(), complain=faults.append)
    frames = list(everything if isinstance(everything, list) else sample(everything, MOST_FRAMES))
    found = _unreadable(faults)
    if len(frames) < len(everything):
        found.append(Finding("note", "a part was read", f"{len(frames)} of {len(everything)} frames of these shards, evenly drawn"))
    isolated, rest = _isolated(frames)
    found += isolated
    if rest:
        found += label_findings(rest) + neighbour_findings(rest)
        fitted = fit_linear(rest, labels)
        found += convention_findings(fitted) if fitted else [_too_few(rest)]
        if fitted and len(fitted.frames) < sum(len(f.atoms) > 1 for f in rest):
            found.append(
                Finding("note", "a part was tested", f"units, signs and orders: {len(fitted.frames)} of {len(rest)} frames, evenly drawn")
            )
    return sort_findings(found), labels


def quick_check(frames: Sequence[Labelled]) -> list[Finding]:
    """What can be found in seconds, without a fit, in at most QUICK_FRAMES frames, the worst first. Isolated atoms are not among them."""
    frames = list(sample(frames, QUICK_FRAMES))
    step = max(sum(len(f.atoms) for f in frames) // QUICK_ATOMS, 1)
    return sort_findings(label_findings(frames) + neighbour_findings(frames[::step], TOUCHING))


def _unreadable(faults: Sequence[Fault]) -> list[Finding]:
    """What the reader said of single frames, those with the same fault together."""
    groups: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.kind, fault.subject), []).append(fault)
    names = {"contradictory": "labels that contradict each other", "unsymmetric": "unsymmetric stress"}
    return [
        Finding(
            "surely wrong",
            names.get(kind, "labels that cannot be used"),
            f"{first.origin}: {first.text}",
            tuple(fault.origin for fault in (first, *others)),
            first.mend,
        )
        for (kind, _), (first, *others) in groups.items()
    ]


def _isolated(frames: list[Labelled]) -> tuple[list[Finding], Sequence[Labelled]]:
    """What frames of single atoms say, and the other frames."""
    try:
        energies, rest = isolated_atom_energies(frames)
    except FlashACEError as error:
        bad = [f for f in frames if f.is_isolated_atom]
        rest = [f for f in frames if f not in bad]
        return [Finding("surely wrong", "isolated atoms", str(error), tuple(f.origin for f in bad), "Keep the right one.")], rest
    found = []
    isolated = tuple(f.origin for f in frames if f not in rest)
    missing = [s for s in elements_of(rest) if s not in energies]
    listed = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in energies.items())
    if energies and missing:
        mend = "Add these atoms, or say --solve-atomic-energies."
        found.append(Finding("surely wrong", "isolated atoms are missing", f"{', '.join(missing)}; there are {listed} eV", isolated, mend))
    elif energies:
        found.append(Finding("note", "isolated atoms", f"reference energies {listed} eV", isolated))
    alone = [f for f in rest if len(f.atoms) == 1 and (not f.atoms.pbc.any() or f.atoms.cell.lengths().min() > 6)]
    if alone:
        text = "a single atom, too far from its images to see them, but config_type is not IsolatedAtom: it counts as a structure"
        mend = 'Set info["config_type"] = "IsolatedAtom", or move them to a file for --isolated-atoms.'
        found.append(Finding("suspicious", "single atoms", text, tuple(f.origin for f in alone), mend))
    return found, rest


def _too_few(frames: Sequence[Labelled]) -> Finding:
    return Finding(
        "note", "no fit", f"units, signs and orders were not tested: that takes {MIN_FRAMES} frames with forces, of {len(frames)} here"
    )
