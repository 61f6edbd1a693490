"""Last-layer features in, standard deviations of energies out: uncertainty without a second model (LLPR).

Bigi, Chong, Ceriotti and Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024): the last layer is linear, so the curvature F of its loss
says how far its weights can be off, and with them what has the features f: σ² = α² fᵀ (F + ς² I)⁻¹ f. What α and ς² are, the errors of
structures tell that were not fitted.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from flashace.errors import FlashACEError

MIN_FRAMES = 10  # to calibrate with: α is then known to 1 / √(2 · 10), some 20 %
RIDGES = 10.0 ** torch.arange(-10, 2.1, 0.5, dtype=torch.float64, device="cpu")  # ς² that are tried, in units of the mean eigenvalue of F
AS_LIKELY = 1.0  # the smallest ς² whose log likelihood is that close to the best: 10 or 50 frames cannot tell them apart


class Rigidity(nn.Module):
    """Features [..., D] -> standard deviations [...] in eV.

    `covariance` is F [D, D], `ridge` ς² and `alpha` α in eV. Raises ValueError for numbers that no calibration gives.
    """

    covariance: Tensor
    whitening: Tensor  # [D, D] eV; σ = |f @ whitening|

    def __init__(self, covariance: Tensor, ridge: float, alpha: float) -> None:
        super().__init__()
        self.ridge, self.alpha = float(ridge), float(alpha)
        if not (0 < self.ridge < math.inf and 0 < self.alpha < math.inf and covariance.isfinite().all()):
            raise ValueError(f"uncertainty: expected a finite covariance, and a ridge and an alpha above zero, got {ridge} and {alpha}")
        self.register_buffer("covariance", covariance.double(), persistent=False)
        one = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        factor = torch.linalg.cholesky(self.covariance + self.ridge * one)
        self.register_buffer("whitening", self.alpha * torch.linalg.solve_triangular(factor, one, upper=False).T, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """In float64. Zero where the features are: the energy of an atom alone does not depend on the weights."""
        return (features.double() @ self.whitening).norm(dim=-1)


class Uncertainty(nn.Module):
    """Features of atoms -> standard deviations of the energy of their structure, and of what each of them contributes.

    `energy` knows the features of whole training structures and is calibrated on energies of `frames` others. `atoms` knows those of the
    single atoms; no label tells an atom's energy, so its scale is that with which the squares of independent atoms would add up to the same
    errors. `largest` is the largest σ of an atom in these frames (eV), to choose thresholds by.
    """

    def __init__(self, energy: Rigidity, atoms: Rigidity, frames: int, largest: float) -> None:
        super().__init__()
        self.energy, self.atoms = energy, atoms
        self.frames, self.largest = int(frames), float(largest)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of the atoms [N, D] of one structure: σ of its energy, and of each atom's [N], in eV."""
        return self.energy(features.double().sum(0)), self.atoms(features)

    def describe(self) -> dict[str, Any]:
        """All numbers but the covariances."""
        parts = {name: {"ridge": part.ridge, "alpha": part.alpha} for name, part in (("energy", self.energy), ("atoms", self.atoms))}
        return {**parts, "frames": self.frames, "largest": self.largest}

    def tensors(self) -> dict[str, Tensor]:
        """The covariances by name, each as its lower triangle row by row."""
        return {
            name: part.covariance.cpu()[_triangle(part.covariance.shape[0])]
            for name, part in (("energy", self.energy), ("atoms", self.atoms))
        }

    @classmethod
    def restore(cls, described: dict[str, Any], tensors: dict[str, Tensor], num_features: int) -> "Uncertainty":
        """What `describe` and `tensors` gave. Raises KeyError, TypeError, ValueError or RuntimeError for what they cannot have given."""
        parts = {}
        if tensors.keys() != {"energy", "atoms"}:
            raise ValueError(f"uncertainty: expected statistics of energy and atoms, got {', '.join(sorted(tensors)) or 'none'}")
        for name in ("energy", "atoms"):
            F = torch.zeros(num_features, num_features, dtype=torch.float64)
            F[_triangle(num_features)] = tensors[name]
            parts[name] = Rigidity(F + F.tril(-1).T, **described[name])
        return cls(**parts, frames=described["frames"], largest=described["largest"])


def calibrate(F: Tensor, features: Tensor, structure: Tensor, errors: Tensor) -> Rigidity:
    """α and ς² for which `errors` [B] (eV), of the energies of structures that were not fitted, are likely: normal deviates of width σ.

    σ² of a structure is the sum over those of the features [R, D] that `structure` [R] says are its own: a single row for LLPR as
    published, or a row per atom. For each ς², the most likely α² is the mean of error² / Σ fᵀ (F + ς² I)⁻¹ f. A small ς² keeps σ alert to
    what no training frame has, so the smallest is taken that these errors do not speak against. Isolated atoms, which have no error, do
    not count.
    Raises FlashACEError for fewer than MIN_FRAMES structures, and where there is no error at all.
    """
    eigenvalues, vectors = torch.linalg.eigh(F)
    ridges = RIDGES.to(F) * eigenvalues.mean()
    each = (features.double() @ vectors).square() @ (1 / (eigenvalues.clamp(min=0.0).unsqueeze(1) + ridges))  # [R, ridges]
    squares = each.new_zeros(len(errors), len(ridges)).index_add(0, structure, each)
    bound = squares[:, 0] > 0
    squares, errors = squares[bound], errors[bound].double()
    if len(errors) < MIN_FRAMES or not errors.any():
        raise FlashACEError(
            f"uncertainty: expected {MIN_FRAMES} validation frames or more, with energies that differ from the predicted ones, "
            f"got {len(errors)}"
        )
    alpha2 = (errors.square().unsqueeze(1) / squares).mean(0)
    log_likelihood = -0.5 * (alpha2 * squares).log().sum(0)  # but for a constant
    chosen = int((log_likelihood > log_likelihood.max() - AS_LIKELY).nonzero()[0])
    return Rigidity(F, ridges[chosen].item(), alpha2[chosen].sqrt().item())


def _triangle(size: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(size, size)
    return rows, columns
