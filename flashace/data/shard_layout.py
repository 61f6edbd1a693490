"""What a folder of shards has in it: its arrays, and the manifest that says what they hold. docs/data.md describes it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flashace.data.labels import EVER, LABELS, Label
from flashace.errors import FlashACEError

FORMAT = 1
MANIFEST = "manifest.json"
# type and shape of one row. NaN is a label that a frame does not have
Shapes = dict[str, tuple[str, tuple[int, ...]]]
OF_ATOMS: Shapes = {"numbers": ("|u1", ()), "positions": ("<f8", (3,))}
OF_FRAMES: Shapes = {
    "cell": ("<f8", (3, 3)),
    "pbc": ("|b1", (3,)),
    "config_type": ("<i4", ()),  # place in the manifest's list
    "origin": ("<i8", (2,)),  # place of the file in the manifest's list, and of the frame in the file
}
UNITS = {"positions": "Å", "cell": "Å", **{name: label.unit for name, label in LABELS.items()}}


def rows_of(labels: Iterable[Label]) -> tuple[Shapes, Shapes]:
    """Type and shape of one row of the arrays that have a row per atom, and of those that have one per frame."""
    of_atoms, of_frames = OF_ATOMS.copy(), OF_FRAMES.copy()
    for label in labels:
        (of_atoms if label.per_atom else of_frames)[label.name] = "<f8", label.shape
    return of_atoms, of_frames


def shapes_of(frames: int, atoms: int, labels: Iterable[Label]) -> Shapes:
    """Type and shape of every array."""
    of_atoms, of_frames = rows_of(labels)
    return {
        "offsets": ("<i8", (frames + 1,)),
        **{name: (dtype, (atoms, *row)) for name, (dtype, row) in of_atoms.items()},
        **{name: (dtype, (frames, *row)) for name, (dtype, row) in of_frames.items()},
    }


def labels_of(manifest: Mapping[str, Any]) -> list[Label]:
    """Those of the table that these shards have: earlier versions knew fewer."""
    return [label for name, label in LABELS.items() if name in manifest["labels"]]


Number = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Count(_Strict):
    used: dict[str, Number]
    ignored: dict[str, Number]


def _with_those_of_every_version(of_labels: dict[str, Any]) -> dict[str, Any]:
    lacking = [name for name in EVER if name not in of_labels]
    if lacking:
        raise ValueError(f"expected {', '.join(EVER)}, got nothing of {', '.join(lacking)}")
    return of_labels


class _Manifest(_Strict):
    """What is read of a manifest."""

    frames: Annotated[int, Field(ge=1, lt=2**48)]
    atoms: Annotated[int, Field(ge=1, lt=2**48)]
    keys: Annotated[dict[str, str | None], AfterValidator(_with_those_of_every_version)]
    labels: Annotated[dict[str, _Count], AfterValidator(_with_those_of_every_version)]
    config_types: list[str]
    files: list[str]
    crc32: dict[str, Number] = {}  # none in shards of earlier versions


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        json.dumps(manifest, ensure_ascii=False).encode()  # half a surrogate pair could not be printed
        number = manifest["format"] if isinstance(manifest, dict) and "format" in manifest else "none"
    except (ValueError, RecursionError) as error:
        raise FlashACEError(f"{path}: expected the manifest of shards, got {error}; convert the files again") from error
    if type(number) is not int or number != FORMAT:
        raise FlashACEError(
            f"{path}: expected the manifest of shards of format {FORMAT}, got format {str(number)[:50]}; "
            "convert the files again with `flashace convert`"
        )
    try:
        _Manifest.model_validate(manifest)
        unknown = manifest.get("crc32", {}).keys() - shapes_of(0, 0, labels_of(manifest)).keys()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FlashACEError(
            f"{path}: expected the manifest of shards, got {'.'.join(map(str, first['loc']))}: {first['msg']}; convert the files again"
        ) from error
    if unknown:
        raise FlashACEError(f"{path}: expected checksums of arrays, got one of {', '.join(sorted(unknown))}; convert the files again")
    return dict(manifest)
