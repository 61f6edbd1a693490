"""A model in, one file out, and back: tensors and JSON in safetensors' layout. Nothing in it is ever executed."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Annotated, Any
from weakref import WeakValueDictionary

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from flashace.errors import FlashACEError
from flashace.files import whole_file
from flashace.potential.model import AttentionACE, ModelConfig
from flashace.potential.uncertainty import Uncertainty
from flashace.structure.coordination import Coordination
from flashace.surroundings import undisturbed

FORMAT = 2  # from 2 on models can be bounded
UNCERTAINTY = "uncertainty."  # begins the names of the statistics of `Uncertainty`


NO_FREE_ATOMS = (
    "The data has no isolated atoms, so energies and forces at low density mean nothing: dissociation, evaporation, gases. To mend it, "
    "fit with --isolated-atoms FILE, which has one frame with a single atom and its energy for each element"
)


def told_free_atoms(told: bool | None, origin: str) -> bool:
    """Whether reference energies are those of atoms alone; where a file does not tell (`told` is None), the words on their origin do."""
    return not origin.startswith(("least squares", "from energy_shift_per_atom")) if told is None else told


Positive = Annotated[FiniteFloat, Field(gt=0)]


class TrainingData(BaseModel):
    """The frames that a model was fitted to."""

    files: list[str] = []
    frames: int = 0
    sha256: str = ""


class ErrorRow(BaseModel):
    """Of one config_type: mean absolute and root mean square errors (meV/atom, meV/Å, meV/Å³), None where there was no label. Every file
    has these; those of further labels have names of the same kind."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]
    config_type: str
    frames: int
    energy_mae: float | None
    energy_rmse: float | None
    forces_mae: float | None
    forces_rmse: float | None
    stress_mae: float | None
    stress_rmse: float | None


class SanityFound(BaseModel):
    """`flashace.verify.outside_data.Sanity` at the end of the fit; infinite where something was not finite."""

    energy: float
    energy_bar: float
    energy_of: str
    force: float
    force_bar: float
    force_of: str


class CertificateRow(BaseModel):
    """One thing that was measured of a student, or was not: then `number` is None. `passed` is None where no bound was asked."""

    key: str
    what: str
    number: FiniteFloat | None
    unit: str
    words: str
    bound: FiniteFloat | None
    passed: bool | None


class CertificateFound(BaseModel):
    """`flashace.teach.certificate.Certificate` of a student of `teacher`; `licence` is that of the teacher's method or weights."""

    teacher: str
    licence: str
    rows: list[CertificateRow]
    errors: dict[str, list[ErrorRow]]


class Provenance(BaseModel):
    """Where a model comes from. Nothing has to be known, anything may be added, and what is read somewhere is of the right kind."""

    training_data: TrainingData = TrainingData()
    reference_energies: str = ""
    errors: dict[str, list[ErrorRow]] = {}
    sanity: SanityFound | None = None
    certificate: CertificateFound | None = None
    seed: int = 0
    versions: dict[str, str] = {}


class Description(BaseModel):
    """What `describe` gives; what is in `config`, `ModelConfig` checks."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)
    config: dict[str, Any]
    atomic_energies: Annotated[dict[str, FiniteFloat], Field(min_length=1)]
    scale: FiniteFloat
    avg_num_neighbors: Positive
    shortest_distances: dict[str, Positive] | None = None
    energy_bound: Positive | None = None
    coordination: dict[str, list[FiniteFloat]] | None = None  # least and most of each ordered pair, which `Coordination` checks
    free_atoms: bool | None = None


class Header(Description):
    """What every model file has in its header."""

    provenance: Provenance


def save_model(path: str | Path, model: AttentionACE, provenance: Mapping[str, Any]) -> None:
    """Write weights, configuration, reference energies and `provenance` (anything JSON: data hash, errors, versions).

    The file appears whole or not at all.
    """
    header, tensors = _contents(model, provenance)
    with whole_file(path) as file:
        file.write_bytes(save(tensors, metadata={"flashace": json.dumps(header)}))


def _contents(model: AttentionACE, provenance: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    header = {
        "format": FORMAT,
        **describe(model),
        "provenance": dict(provenance),
    }
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    if model.uncertainty is not None:
        header["uncertainty"] = model.uncertainty.describe()
        tensors |= {UNCERTAINTY + name: tensor for name, tensor in model.uncertainty.tensors().items()}
    header["sha256"] = _digest(header, tensors)
    return header, tensors


def describe(model: AttentionACE) -> dict[str, Any]:
    """What the weights of a model mean nothing without."""
    return {
        "config": asdict(model.config),
        "atomic_energies": model.e0,
        "scale": model.scale,
        "avg_num_neighbors": model.avg_num_neighbors,
        "shortest_distances": model.shortest_distances,
        "energy_bound": None if model.energy_bound == math.inf else model.energy_bound,
        "coordination": None if model.coordination is None else model.coordination.of_pairs,
        "free_atoms": model.free_atoms,
    }


def config_of(described: Mapping[str, Any]) -> ModelConfig:
    """The configuration of what `describe` gave; models from before there were bounds have none. Raises what `ModelConfig` raises."""
    return ModelConfig(**{"bounded": False, **described["config"]})


def bound_of(described: Mapping[str, Any]) -> float:
    """The `energy_bound` of what `describe` gave, in eV."""
    return described.get("energy_bound") or math.inf


def load_model(path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> AttentionACE:
    """The model, ready for inference (weights do not require gradients).

    Raises FileNotFoundError, and FlashACEError for a file that is truncated, not ours, newer than this version, or does not fit itself.
    """
    return _build(Path(path), *_read(Path(path)), dtype, device)


def share_model(path: str | Path, dtype: torch.dtype, device: str | torch.device) -> AttentionACE:
    """The model as by `load_model`; as long as anybody holds one of the same content, precision and device, it is that one.

    So nobody may change it.
    """
    return _share(Path(path), *_read(Path(path)), dtype, device)


def pack_model(model: AttentionACE) -> tuple[dict[str, Any], bytes]:
    """The model for another process: what a model file has, without provenance. `unpack_model` shares it there as `share_model` does.

    PyTorch's own way would move the weights into memory of both processes, away from where others look at them.
    """
    header, tensors = _contents(model, {})
    return header, save(tensors)


def unpack_model(packed: tuple[dict[str, Any], bytes], dtype: torch.dtype, device: str | torch.device) -> AttentionACE:
    """The model that was packed, to the last bit where `dtype` is that of its weights."""
    header, weights = packed
    return _share(Path("model"), header, load(weights), dtype, device)


_shared: WeakValueDictionary[tuple[str, torch.dtype, str], AttentionACE] = WeakValueDictionary()
_sharing = Lock()  # calculators are made in threads too
os.register_at_fork(before=_sharing.acquire, after_in_parent=_sharing.release, after_in_child=_sharing.release)


def _share(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype, device: Any) -> AttentionACE:
    key = header["sha256"], dtype, str(device)
    with _sharing:
        model = _shared.get(key)
        if model is None:
            built = _build(path, header, tensors, dtype, device)
            packed = _contents(built, {})[0]["sha256"], dtype, str(device)  # the same weights may come back from another process
            model = _shared[key] = _shared.setdefault(packed, built)
    return model


@undisturbed
def _build(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype, device: Any) -> AttentionACE:
    try:
        described = header.get("uncertainty")
        statistics = {name: tensors.pop(name) for name in list(tensors) if described is not None and name.startswith(UNCERTAINTY)}
        config = config_of(header)
        check_weights(tensors, config, header["atomic_energies"])
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights, which are replaced below
            e0, scale, shortest = header["atomic_energies"], header["scale"], header.get("shortest_distances")
            free_atoms = told_free_atoms(header.get("free_atoms"), header["provenance"].get("reference_energies", ""))
            model = AttentionACE(config, e0, scale, header["avg_num_neighbors"], dtype, shortest, bound_of(header), free_atoms)
        model.load_state_dict(tensors, strict=True)
        if header.get("coordination") is not None:
            model.coordination = Coordination(header["coordination"], model.symbols)
        if described is not None:
            by_name = {name.removeprefix(UNCERTAINTY): tensor for name, tensor in statistics.items()}
            model.uncertainty = Uncertainty.restore(described, by_name, model.num_features)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, ValidationError) as error:
        raise _unfit(path, error) from error
    return model.requires_grad_(False).eval().to(device)


def check_weights(tensors: Mapping[str, torch.Tensor], config: ModelConfig, atomic_energies: Mapping[str, float]) -> None:
    """Raises ValueError for weights that are not those of the configuration, before a model of its size takes memory and time."""
    if config.num_layers + config.correlation > len(tensors):
        raise ValueError(f"{config.num_layers} layers of correlation {config.correlation}, but {len(tensors)} tensors")
    with torch.device("meta"):
        expected = {name: p.shape for name, p in AttentionACE(config, atomic_energies).named_parameters()}
    got = {name: tensor.shape for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            shapes = [list(found[name]) if name in found else "none" for found in (expected, got)]
            raise ValueError(f"weights {name}: expected shape {shapes[0]}, got {shapes[1]}")
        if tensors[name].dtype not in (torch.float32, torch.float64) or not tensors[name].isfinite().all():
            raise ValueError(f"weights {name}: expected finite numbers of float32 or float64, got {tensors[name].dtype}")


def read_header(path: str | Path) -> dict[str, Any]:
    """Everything in the file but the weights, their number as `num_parameters` and their `dtype`. Raises as `load_model` does."""
    header, tensors = _read(Path(path))
    weights = [tensor for name, tensor in tensors.items() if not name.startswith(UNCERTAINTY)]
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in weights}
    return header | {"num_parameters": sum(tensor.numel() for tensor in weights), "dtype": ", ".join(sorted(dtypes))}


def _unfit(path: Path, error: Exception) -> FlashACEError:
    return FlashACEError(f"{path}: header and weights of this model file do not fit together ({error}); write it anew with `flashace fit`")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if path.is_dir():
        inside = path / "model.pt"
        mend = f"name {inside}" if inside.is_file() else "`flashace fit` leaves one as model.pt in the run folder"
        raise FlashACEError(f"{path}: expected a model file, got a folder; {mend}")
    if not path.is_file():
        raise FileNotFoundError(f"model file {path}: no such file; `flashace fit` leaves one as model.pt in the run folder")
    if _is_pickled(path):
        raise FlashACEError(
            f"{path}: expected a FlashACE model file, got a file of torch.save, such as a checkpoint; name the model.pt of the run folder "
            "(a fit that was stopped: `flashace fit --resume` ends it)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("flashace", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise FlashACEError(
            f"{path}: expected a FlashACE model file, but it is truncated or of another kind ({error}); copy or fit it again"
        ) from error
    if not isinstance(header, dict) or type(header.get("format")) is not int or header["format"] < 1:
        raise FlashACEError(
            f"{path}: expected a FlashACE model file, got a safetensors file of another program; name the model.pt of a run folder"
        )
    if header["format"] > FORMAT:
        raise FlashACEError(
            f"{path}: this file has format {header['format']}, and this version of FlashACE reads up to format {FORMAT}; "
            "pip install -U flashace"
        )
    try:
        json.dumps(header, ensure_ascii=False).encode()  # half a surrogate pair could not be printed
        whole = header.get("sha256") == _digest(header, tensors)
    except (RuntimeError, ValueError):  # nested too deeply to be written again, among others
        whole = False
    if not whole:
        raise FlashACEError(f"{path}: this model file is damaged: its content is not what was written; copy or fit it again")
    try:
        Header.model_validate(header)
    except ValidationError as error:
        raise _unfit(path, error) from error
    return header, tensors


def _is_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"  # an archive; a model file starts with the length of its header


def _digest(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the header (but for this number) as it reads back from JSON, and of names, shapes and bytes of all tensors."""
    rest = {name: value for name, value in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
