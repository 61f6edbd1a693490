"""YAML and flags in, one checked `FitConfig` out; every option, its default and its meaning stand in a dataclass."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, PlainValidator, ValidationError
from pydantic.dataclasses import dataclass

from flashace.errors import FlashACEError
from flashace.files import whole_file
from flashace.potential.config import ModelConfig


def _weight(value: Any) -> float | dict[float, float]:
    try:
        weights = {float(start): float(weight) for start, weight in (value if isinstance(value, dict) else {0.0: value}).items()}
    except (TypeError, ValueError):
        weights = {}
    if 0.0 not in weights or not all(0 <= start < 1 and 0 <= weight < math.inf for start, weight in weights.items()):
        raise ValueError("expected a weight, or {progress: weight} from progress 0.0 on, such as {0.0: 0.1, 0.9: 1000}")
    return dict(sorted(weights.items())) if isinstance(value, dict) else weights[0.0]


Weight = Annotated[float | dict[float, float], PlainValidator(_weight)]

# defaults of a fit that starts from the weights of another: at the usual rate it forgets before it learns, and energies that count little
# at first drift away. A fit that goes on with its schedule (resume_load_scheduler) has the defaults of any
FROM_WEIGHTS: dict[str, Any] = {"learning_rate": 3e-4, "energy_weight": {0.0: 3.0, 0.9: 1000.0}}
# and of one that finishes a model on other labels, of which it has to learn more
PRETRAINED: dict[str, Any] = {"learning_rate": 2e-3}
STARTS = {"resume_from": FROM_WEIGHTS, "pretrained": PRETRAINED}

# what `size` sets; medium is what the fields of ModelConfig have. docs/model.md has their errors and costs
SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_dim": 64, "num_channels": 16, "num_layers": 1},
    "medium": {},
    "large": {"l_max": 3, "correlation": 4, "num_layers": 3},
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class TrainConfig:
    """Everything about a fit but the shape of the model."""

    size: Literal["small", "medium", "large"] = Field("medium", description="sizes of the model, where no option gives them")
    data: tuple[str, ...] = Field((), description="files of labelled structures, folders of VASP runs, or one folder of shards")
    valid: tuple[str, ...] = Field((), description="files, or shards, for validation; where none is given, a part of `data`")
    valid_fraction: float = Field(
        0.1, ge=0, lt=1, description="part of `data` kept for validation, of each kind of frames alike; 0: all frames are fitted"
    )
    isolated_atoms: str | None = Field(None, description="file with one single-atom frame per element, for E0")
    atomic_energies: dict[str, float] | None = Field(None, description="E0 per element in eV")
    energy_shift_per_atom: float | None = Field(None, description="one E0 in eV for all elements")
    solve_atomic_energies: bool = Field(False, description="E0 by least squares, even if the data has isolated atoms")
    energy_key: str | None = Field(None, description="name of the energy; found by itself where not given")
    forces_key: str | None = Field(None, description="name of the forces; found by itself where not given")
    stress_key: str | None = Field(None, description="name of the stress or virial; found by itself where not given; none leaves it out")
    check: Literal["stop", "leave_out", "warn", "off"] = Field(
        "stop", description="labels that are surely wrong: stop, leave them out, warn, or do not look (off)"
    )
    output: str | None = Field(None, description="run folder; runs/<name of the data>, numbered from the second on, where not given")
    seed: int = Field(0, ge=0, description="seed of split, weights and order of the frames")
    device: str = Field("auto", description="auto, cpu or cuda")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of network and gradients")
    epochs: int | None = Field(None, ge=1, description="passes over the data; from its size where not given")
    max_time: float | None = Field(None, gt=0, description="minutes; the schedule is fitted to it")
    batch_size: int | None = Field(None, ge=1, description="structures per step, on all ranks together; from their size where not given")
    grad_accum_steps: int = Field(1, ge=1, description="batches whose gradients are added up for one step")
    max_edges_per_step: int = Field(100_000, ge=1, description="batches, and structures, with more neighbour pairs are computed in parts")
    random_rotation: bool = Field(False, description="turn each training structure at random, anew in every epoch")
    use_amp: bool = Field(True, description="mixed precision on a GPU; no effect on a CPU")
    amp_dtype: Literal["bfloat16", "float16"] = Field("bfloat16", description="lower precision of use_amp")
    learning_rate: float = Field(6e-3, gt=0, description="peak of the schedule; 0.002 with pretrained, 0.0003 with resume_from")
    warmup: float = Field(0.02, ge=0, lt=1, description="part of the fit in which the learning rate rises")
    lr_scheduler: Literal["cosine", "plateau", "constant"] = Field("cosine", description="learning rate after the warm-up")
    lr_patience: int = Field(10, ge=0, description="plateau: validations without a better score that are borne")
    lr_factor: float = Field(0.5, gt=0, lt=1, description="plateau: the learning rate is then multiplied by this")
    early_stopping: int | None = Field(None, ge=1, description="end after so many validations without a better score")
    optimizer: Literal["muon", "adamw"] = Field("muon", description="for weight matrices; AdamW takes the rest")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of the matrices")
    clip_grad_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="averaging of the weights, per step")
    loss: Literal["mse", "huber"] = Field(
        "huber", description="Huber's loss, which outliers and wrong labels disturb less, or squared errors"
    )
    huber_delta: float = Field(0.03, gt=0, description="huber: errors above it count linearly; 1 is the size of the labels (loss units)")
    energy_weight: Weight = Field(
        {0.0: 0.1, 0.5: 3.0, 0.9: 1000.0},
        description="weight of the energy per atom, or {progress: weight}; {0.0: 3.0, 0.9: 1000.0} with resume_from",
    )
    forces_weight: Weight = Field(1.0, description="weight of the forces, or {progress: weight}")
    stress_weight: Weight = Field(1.0, description="weight of the stress, or {progress: weight}")
    free_atoms_weight: float = Field(
        1.0,
        ge=0,
        description="where E0 are those of free atoms: weight of made-up structures of a few atoms too far apart to be bound; 0: none",
    )
    compile: Literal["auto"] | bool = Field("auto", description="compile the training step: true, false, or auto, when it pays")
    precompute_neighbors: bool = Field(True, description="build neighbour lists once; false, and always for shards: again for every batch")
    checkpoint_interval: int = Field(10, ge=1, description="epochs between checkpoints")
    checkpoint_dir: str = Field("checkpoints", description="folder for them; inside the run folder unless absolute")
    keep_checkpoints: int = Field(3, ge=1, description="so many of the newest are kept, and the best")
    resume_from: str | None = Field(None, description="checkpoint, run folder or model file to start from: its weights")
    resume_load_optimizer: bool = Field(False, description="also the state of the optimizer")
    resume_load_scheduler: bool = Field(False, description="also epoch, learning rate, best score and random states")
    resume_load_scaler: bool = Field(False, description="also the state of the gradient scaler")
    use_checkpoint_energy_shift: bool = Field(
        True, description="with resume_from: E0 of the checkpoint, not of this data; false: the readouts are fitted to the new E0"
    )
    pretrained: str | None = Field(
        None,
        description="model file, run folder or checkpoint to finish on this data: its weights and shape, with E0 and elements of the data",
    )
    replay: tuple[str, ...] = Field((), description="with pretrained: files of old data to mix in, each source with its own zero of energy")
    replay_fraction: float = Field(0.5, gt=0, lt=1, description="part of the frames of an epoch that is old data, drawn anew in each")
    tensorboard: bool = Field(False, description="write the columns of metrics.csv for TensorBoard too")

    @property
    def linear_above(self) -> float | None:
        """In loss units: errors that count linearly, as in Huber's loss; None: all are squared."""
        return self.huber_delta if self.loss == "huber" else None


@dataclass(frozen=True)
class FitConfig:
    """The two halves of a fit; in YAML they are one flat list of options."""

    model: ModelConfig
    train: TrainConfig
    asked: frozenset[str] = field(default=frozenset(), compare=False)  # options of the model that somebody gave


def load_config(path: str | Path | None, flags: Mapping[str, Any]) -> FitConfig:
    """The options of a YAML file, overruled by `flags` that are not None; and by what such a flag sets beside itself.

    Raises FlashACEError for unknown names (with the nearest known one) and values of the wrong kind.
    """
    options = {} if path is None else _read_yaml(Path(path))
    named = {name: value for name, value in flags.items() if value is not None and value != ()}
    if "size" in named:  # the file of a run has all sizes
        options = {name: value for name, value in options.items() if not any(name in sizes for sizes in SIZES.values())}
    for start, own in STARTS.items():
        if start in named and start not in options:  # and the rate of a fit from scratch
            usual = make_config({}).train
            options = {name: v for name, v in options.items() if name not in own or v != getattr(usual, name)}
    return make_config(options | named)


def make_config(options: Mapping[str, Any]) -> FitConfig:
    """A checked configuration from a flat mapping. Raises as `load_config` does."""
    model_names = {f.name for f in fields(ModelConfig)}
    if "force" in options and "check" not in options:  # its name in configurations of older fits
        options = {name: value for name, value in options.items() if name != "force"} | ({"check": "warn"} if options["force"] else {})
    if options.get("check") is False:  # YAML's word for `off` without quotes
        options = {**options, "check": "off"}
    known = sorted(model_names | {f.name for f in fields(TrainConfig)})
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(known)}"
            raise FlashACEError(f"unknown key `{name}`{hint}")
    options = {n: [v] if n in ("data", "valid", "replay") and isinstance(v, str) else v for n, v in options.items()}
    if options.get("resume_from") is not None and not options.get("resume_load_scheduler"):
        options = FROM_WEIGHTS | options
    if options.get("pretrained") is not None:
        if options.get("resume_from") is not None:
            raise FlashACEError(
                "`pretrained` and `resume_from` are two ways to start: the first takes energies and elements of the data, the second keeps "
                "those of the model; leave one out"
            )
        options = PRETRAINED | options
    elif options.get("replay"):
        raise FlashACEError(
            "`replay` mixes old data into the fit of a model that knew it: name the model with `pretrained`, or leave it out"
        )
    try:
        train = TrainConfig(**{name: value for name, value in options.items() if name not in model_names})
        sizes = SIZES[train.size] | {name: value for name, value in options.items() if name in model_names}
        asked = {name for name in options if name in model_names}.union(*(SIZES.values() if "size" in options else ()))
        return FitConfig(ModelConfig(**sizes), train, frozenset(asked))
    except ValidationError as error:
        raise FlashACEError("; ".join(_explain(e) for e in error.errors())) from error


def write_config(path: Path, config: FitConfig) -> None:
    """A YAML file that `load_config` reads back to the same configuration, but for the run folder."""
    options = asdict(config.train) | asdict(config.model)
    del options["output"]  # so that it runs as it stands, into a new folder
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    with whole_file(path) as aside:
        aside.write_text(yaml.safe_dump({name: v for name, v in plain.items() if v is not None}, sort_keys=False), "utf-8")


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FlashACEError(f"--config {path}: no such file")
    try:
        options = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # dates and numbers that are none, text that is not UTF-8
        raise FlashACEError(f"{path}: expected YAML, got {error}") from error
    if not isinstance(options, dict | None):
        raise FlashACEError(f"{path}: expected `name: value` lines, got a {type(options).__name__}")
    return options or {}


def _explain(error: Mapping[str, Any]) -> str:
    name = ".".join(map(str, error["loc"]))
    return f"`{name}`: {error['msg']}, got {error['input']!r}" if name else str(error["msg"])
