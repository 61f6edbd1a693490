"""The whole state of a fit in, one file out, and back. A file appears whole or not at all, and the newest whole one is found."""

import errno
import hashlib
import io
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from flashace.errors import FlashACEError
from flashace.files import whole_file
from flashace.potential.model_file import Description, check_weights, config_of, describe, load_model
from flashace.potential.uncertainty import Uncertainty
from flashace.train.course import Tally

BEST = "best.pt"
FORMAT = 2  # 1 had no number, no checksum and no `ended`
SEAL = b"FlashACE checkpoint, sha256 "  # and 64 digits: the comment that ends the zip file of torch.save


@dataclass(frozen=True)
class Start:
    """What a fit starts from: the model and its averaged weights; of a checkpoint also `state`, all that `save_checkpoint` was given."""

    path: Path
    model: dict[str, Any]  # config, atomic_energies, scale, avg_num_neighbors: see `describe`
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    reference_energies: str  # where they came from
    state: dict[str, Any] | None  # None of a model file
    uncertainty: Uncertainty | None = None  # of a model file that has it
    told: str = ""  # what else a user should know of it
    adapts: bool = False  # the network has yet to make up for what other reference energies leave


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise ValueError("expected a dense tensor with numbers in it")
    return tensor


def _random_state(tensor: torch.Tensor) -> torch.Tensor:
    try:
        torch.Generator().set_state(tensor)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected the state of a random generator ({error})") from error
    return tensor


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError(f"expected a row of bytes, got {tensor.dtype}, {list(tensor.shape)}")
    return tensor


def _row(row: dict[str, float | None]) -> dict[str, float | None]:
    lacking = [name for name in ("epoch", "seconds", "learning_rate", "loss") if not isinstance(row.get(name), int | float)]
    if lacking:
        raise ValueError(f"expected a row of metrics.csv, got one without {', '.join(lacking)}")
    return row


def _not_nan(score: float) -> float:
    if math.isnan(score):
        raise ValueError("expected a number, got NaN")
    return score


Tensor = Annotated[torch.Tensor, AfterValidator(_plain)]
Count = Annotated[int, Field(ge=0, lt=10**9)]  # the digits of `checkpoint_name`
Score = Annotated[float, AfterValidator(_not_nan)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True, hide_input_in_errors=True)


class _Order(_Part):
    training_frames: str = Field(alias="training frames")
    batch_size: int
    grad_accum_steps: int
    seed: int


class _LearningRate(_Part):
    """`Schedule` of optim/schedule.py."""

    best: Score
    not_better: Count
    borne: Count
    factor: Annotated[FiniteFloat, Field(gt=0, le=1)]


class _Length(_Part):
    epochs: Annotated[int, Field(ge=1)] | None
    max_time: Annotated[FiniteFloat, Field(gt=0)] | None


class _Schedule(_Part):
    order: _Order
    epoch: Count
    position: Count
    elapsed: Annotated[FiniteFloat, Field(ge=0)]
    sums: Tensor
    best_score: Score
    best: dict[str, Tensor]
    rows: list[Annotated[dict[str, float | None], AfterValidator(_row)]]
    compiled: bool
    learning_rate: _LearningRate
    max_edges: Annotated[int, Field(ge=1)]
    random: Annotated[Tensor, AfterValidator(_random_state)]
    random_cuda: Annotated[list[Annotated[Tensor, AfterValidator(_bytes)]], Field(max_length=1)]
    ended: bool = False
    length: _Length = Field(default_factory=lambda: _Length(epochs=None, max_time=None))


class State(_Part):
    """All that a checkpoint has; `Session` writes and reads it."""

    format: Literal[1, 2] = 1
    model: Description
    reference_energies: str
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    averaged_steps: Count
    optimizers: dict[str, dict[Count, dict[str, Tensor]]]
    scaler: dict[str, float]
    schedule: _Schedule
    replay: dict[str, dict[str, FiniteFloat]] = Field(default_factory=dict)  # `Shifts` of replay.py


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and text; the file of the same name is replaced in one step, once the new one is on the disk.

    Raises FlashACEError where it cannot be written, a full disk among others; the file of the same name is then the one before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    content = _sealed(buffer.getvalue())
    try:
        with whole_file(path) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise _not_written(path, len(content), error) from error


def _not_written(path: Path, size: int, error: OSError) -> FlashACEError:
    before = checkpoints_in(path.parent)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    room = f" ({shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free on the disk)" if full else ""
    safe = f"the checkpoints before it are whole, the newest is {before[-1].name}" if before else "no checkpoint was written before it"
    mend = "make room, then go on with `flashace fit --resume` and the run folder" if full else "mend that, then `flashace fit --resume`"
    return FlashACEError(f"{path}: expected to write a checkpoint of {size / 1e6:.1f} MB, got: {error.strerror}{room}; {safe}. {mend}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU. Raises FlashACEError where there is none, or it cannot be read."""
    if not path.is_file():
        raise FlashACEError(f"expected a checkpoint at {path}, found none; name the run folder of an interrupted fit")
    content, sealed = _opened(path)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises what its parser happens to raise
        raise _unreadable(path, str(error).partition("\n")[0]) from error
    if not isinstance(state, dict):
        raise FlashACEError(f"{path}: expected a checkpoint of FlashACE, got a file of another program")
    if state.get("format", 1) != 1 and not sealed:
        raise _unreadable(path, "it lacks its checksum")
    return state


def _sealed(content: bytes) -> bytes:
    """A zip file with its SHA-256 as its comment: other readers of zip files take it as it is."""
    comment = SEAL + hashlib.sha256(content).hexdigest().encode()
    if content[-2:] != bytes(2):
        raise ValueError("expected a zip file without a comment")  # of a version of torch that we do not know
    return content[:-2] + len(comment).to_bytes(2, "little") + comment


def _opened(path: Path) -> tuple[bytes, bool]:
    """The zip file as torch wrote it, and whether it had a checksum. Raises FlashACEError for a checksum of something else."""
    content = path.read_bytes()
    whole, seal, digest = content.rpartition(SEAL)
    if not seal:
        return content, False
    whole = whole[:-2] + bytes(2)
    if hashlib.sha256(whole).hexdigest().encode() != digest:
        raise _unreadable(path, "its content is not what was written")
    return whole, True


def _unreadable(path: Path, why: str) -> FlashACEError:
    return FlashACEError(f"{path}: this checkpoint cannot be read, it is damaged or of another kind ({why}); name another")


def _check(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The state itself. Raises FlashACEError where anything in it is missing or of another kind than `Session` writes."""
    if "weights" not in state:
        raise FlashACEError(f"{path}: expected a checkpoint of FlashACE, got a file of another program")
    if isinstance(state.get("format"), int) and state["format"] > FORMAT:
        raise FlashACEError(
            f"{path}: this checkpoint has format {state['format']}, and this version of FlashACE reads up to format {FORMAT}; "
            "pip install -U flashace"
        )
    try:
        State.model_validate(state)
        config, energies = config_of(state["model"]), state["model"]["atomic_energies"]
        for tensors in (state["weights"], state["average"], state["schedule"]["best"]):
            check_weights(tensors, config, energies)
        if state["schedule"]["sums"].shape != (Tally.SIZE,):
            raise ValueError(f"sums: expected {Tally.SIZE} numbers, got {list(state['schedule']['sums'].shape)}")
    except (ValueError, TypeError, KeyError) as error:  # pydantic's ValidationError is a ValueError
        why = _first(error) if isinstance(error, ValidationError) else str(error)
        raise FlashACEError(
            f"{path}: expected a checkpoint of this version of FlashACE, got one that is damaged or of another version ({why}); "
            "name another, or start from the model.pt of that run with --resume-from"
        ) from error
    return state


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def checkpoint_name(steps: int) -> str:
    """The file of the state after so many steps; names sort by steps."""
    return f"step-{steps:09d}.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """All but the best, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{9}\.pt", path.name))


def keep_newest(folder: Path, keep: int) -> None:
    """Delete all checkpoints but the newest ones and the best, and what an interrupted writer left."""
    for path in [*checkpoints_in(folder)[:-keep], *folder.glob("*.partial")]:
        path.unlink(missing_ok=True)


def read_start(path: Path, tell: Callable[[str], Any] = lambda message: None) -> Start:
    """A checkpoint, the newest whole one of a folder of checkpoints, or a model file.

    `tell` hears of newer checkpoints that cannot be read. Raises FlashACEError where there is nothing to start from.
    """
    if path.is_dir():
        path, state = _newest(path, tell)
    elif path.is_file() and path.open("rb").read(2) == b"PK":  # torch.save writes a zip file
        state = _check(path, load_checkpoint(path))
    else:
        model = load_model(path, torch.float64)
        weights: dict[str, torch.Tensor] = {**dict(model.named_parameters())}
        return Start(
            path, model=describe(model), weights=weights, average=weights, reference_energies="", state=None, uncertainty=model.uncertainty
        )
    parts = {name: state[name] for name in ("model", "weights", "average", "reference_energies")}
    return Start(path, **parts, state=state)


def _newest(folder: Path, tell: Callable[[str], Any]) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that can be read."""
    paths = checkpoints_in(folder)
    for path in reversed(paths):
        try:
            return path, _check(path, load_checkpoint(path))
        except FlashACEError as error:
            tell(f"{error}; trying the one before")
    raise FlashACEError(
        f"{folder}: expected a checkpoint, found {len(paths)} that cannot be read; name another folder, a checkpoint or a model.pt"
    )
