"""A fit that is over in; its model, what it is worth, and the pictures out."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashace.errors import FlashACEError
from flashace.evaluate import report
from flashace.evaluate.calibrate import estimate_uncertainty
from flashace.evaluate.predict import error_rows
from flashace.evaluate.suspects import NAME, in_words, suspects, write_suspects
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import save_model
from flashace.train.batches import FrameSet
from flashace.train.log import Log
from flashace.train.prepare import Prepared
from flashace.train.sanity import in_a_sentence, sanity_of_fit
from flashace.verify.outside_data import Sanity

PACKAGES = ("flashace", "torch", "e3nn", "ase", "matscipy", "numpy")


@dataclass(frozen=True)
class Outcome:
    """What all ranks together have found out at the end of a fit; the first one does the rest alone."""

    train: FrameSet  # as many as the closing table looks at
    valid: FrameSet
    replay: dict[str, FrameSet]  # held-out frames of each old source, by the name of their rows
    predictions: dict[str, list[dict[str, Any]]]  # of "train", "validation" and those of `replay`, where these have frames
    weights: str  # which were chosen, and why
    offset: float  # eV/atom; it was taken out
    steps: int
    epochs: float
    seconds: float  # of training
    data_hash: str  # of all training frames


def close(prepared: Prepared, model: AttentionACE, outcome: Outcome, folder: Path, log: Log) -> None:
    """Leave model.pt and the pictures in `folder`, and the closing table in the log."""
    sets = {"train": outcome.train, "validation": outcome.valid, **outcome.replay}
    predicted = {name: (sets[name].frames, predictions) for name, predictions in outcome.predictions.items()}
    rows = {name: error_rows(*each) for name, each in predicted.items()}
    sanity = sanity_of_fit(model, outcome.train.frames)
    _add_uncertainty(prepared, model, outcome, log)
    save_model(folder / "model.pt", model, _provenance(prepared, outcome, rows, sanity))
    report.learning_curve(folder / "metrics.csv", folder / "learning_curve.png")
    own = {name: each for name, each in predicted.items() if name not in outcome.replay}
    found = suspects(own)
    write_suspects(folder / NAME, found)
    report.parity(own, folder / "parity.png")
    _tell(prepared, model, outcome, rows, log)
    log.say(in_words(found, folder / NAME))
    log.say(in_a_sentence(sanity))


def _add_uncertainty(prepared: Prepared, model: AttentionACE, outcome: Outcome, log: Log) -> None:
    before = None if prepared.start is None else prepared.start.uncertainty
    try:
        model.uncertainty = estimate_uncertainty(model, outcome.train, outcome.valid, before)
    except FlashACEError as error:
        log.say(f"{error}; the model is saved without. `flashace calibrate` adds it")


def _provenance(prepared: Prepared, outcome: Outcome, rows: dict[str, Any], sanity: Sanity) -> dict[str, Any]:
    t = prepared.config.train
    return {
        "training_data": {"files": list(t.data), "frames": len(prepared.train), "sha256": outcome.data_hash},
        **({"replay": {"files": list(t.replay), "frames": len(prepared.replay.train)}} if t.replay else {}),
        "reference_energies": prepared.references.origin,
        "check": "off" if prepared.looked is None else prepared.looked.words(),
        "errors": rows,
        "epochs": outcome.epochs,
        "minutes": outcome.seconds / 60,
        "seed": t.seed,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "weights": outcome.weights,
        "sanity": sanity._asdict(),
    }


def _tell(prepared: Prepared, model: AttentionACE, outcome: Outcome, rows: dict[str, Any], log: Log) -> None:
    log.console.print(report.error_table(rows))
    if prepared.looked is not None:
        log.say(f"check: {prepared.looked.words()}")
    log.say(f"weights: {outcome.weights}")
    log.say(f"energies: a constant offset of {1e3 * outcome.offset:.2g} meV/atom was taken out")
    if model.uncertainty is not None:
        log.say(f"uncertainty: {report.uncertainty_in_words(model.uncertainty.describe())}")
    log.console.print(f"{outcome.steps} steps, {outcome.epochs:.1f} epochs, {outcome.seconds / 60:.1f} minutes of training")
