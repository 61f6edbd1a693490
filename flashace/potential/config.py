"""What decides the shape of a model, in one dataclass; without PyTorch, since the command line makes flags of it."""

from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ModelConfig:
    """What decides the shape of the model. The same names stand in the YAML file and in the model file."""

    r_max: float = Field(5.0, ge=0.1, le=100, description="cutoff in Å: what an atom sees")
    l_max: int = Field(2, ge=1, le=6, description="highest degree of the spherical harmonics")
    num_radial: int = Field(8, ge=1, description="radial basis functions")
    hidden_dim: int = Field(128, ge=1, description="scalars per atom")
    num_channels: int = Field(32, ge=1, description="tensors per atom and degree l")
    num_heads: int | None = Field(None, ge=1, description="attention heads; one per channel where not given")
    key_dim: int = Field(16, ge=1, description="width of keys and queries")
    num_layers: int = Field(2, ge=1, description="layers: how deeply a neighbourhood is read, never how far")
    correlation: int = Field(3, ge=1, description="highest order of the product basis")
    edge_hidden_dim: int = Field(64, ge=1, description="width of the MLP behind the edge functions")
    radial_basis_type: Literal["bessel", "gaussian"] = Field("bessel", description="radial basis")
    radial_trainable: bool = Field(False, description="frequencies, or centres and widths, are learned")
    gaussian_width: float | None = Field(None, gt=0, description="width of the Gaussians in Å; r_max / num_radial where not given")
    envelope_exponent: int = Field(6, ge=2, le=100, description="exponent p of the polynomial envelope")
    zbl: bool = Field(True, description="add the ZBL repulsion of the nuclei below 0.9 of the shortest distance in training")
    bounded: bool = Field(True, description="bound what the network computes, so that it stays sane where it has no data")

    @property
    def heads(self) -> int:
        """The number of heads in use."""
        return self.num_heads or self.num_channels

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        for name in ("num_channels", "hidden_dim"):
            if getattr(self, name) % self.heads:
                raise ValueError(f"{name}={getattr(self, name)} must be a multiple of num_heads={self.heads}")
        return self
