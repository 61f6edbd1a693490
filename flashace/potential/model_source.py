"""A model as a user names it, by a file, a run folder or an object, in; its name for files, and the model itself, out."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flashace.errors import FlashACEError
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import pack_model, share_model, unpack_model

OBJECT = "<AttentionACE "  # begins the name of a model that no file holds


class ModelSource(NamedTuple):
    """`name` is an absolute path, or says that there is none: then `packed` is the model, as `pack_model` gives it."""

    name: str
    packed: tuple[dict[str, Any], bytes] | None = None

    @classmethod
    def of(cls, given: Any) -> "ModelSource":
        """Of a model file, a run folder that holds a `model.pt`, an AttentionACE as it is now, or a source.

        Raises FlashACEError for anything else, and for the name of an object.
        """
        if isinstance(given, ModelSource):
            return given
        if isinstance(given, AttentionACE):
            packed = pack_model(given)
            return cls(f"{OBJECT}{packed[0]['sha256'][:16]}>", packed)
        if not isinstance(given, str | os.PathLike):
            raise FlashACEError(
                f"model: expected a model file, a run folder, an AttentionACE or a list of these, got {given!r}; "
                "`flashace fit` leaves a model.pt"
            )
        if str(given).startswith(OBJECT):
            raise FlashACEError(f"model: {given} was an object of the program that wrote this, not a file; give the model itself")
        path = Path(os.path.abspath(given))
        return cls(str(path / "model.pt" if path.is_dir() else path))

    def model(self, dtype: torch.dtype, device: torch.device) -> AttentionACE:
        """The model, shared by all that ask for the same; nobody may change it. Raises as `share_model` does."""
        return share_model(self.name, dtype, device) if self.packed is None else unpack_model(self.packed, dtype, device)


Given = str | os.PathLike[str] | AttentionACE | ModelSource
