"""Last-layer features in, standard deviations of energies and forces out: uncertainty without a second model (LLPR).

Bigi, Chong, Ceriotti and Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024): the last layer is linear, so the curvature F of its loss
says how far its weights can be off, and with them what has the features f: σ² = α² fᵀ (F + ς² I)⁻¹ f. What α and ς² are, the errors of
structures tell that were not fitted.
"""

import math
from dataclasses import asdict, astuple, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flashace.errors import FlashACEError

MIN_FRAMES = 10  # held out, to calibrate with them alone: α is then known to 1 / √(2 · 10), some 20 %
RIDGES = 10.0 ** torch.arange(-10, 2.1, 0.5, dtype=torch.float64, device="cpu")  # ς² that are tried, in units of the mean eigenvalue of F
EXPONENTS = [x / 50 for x in range(25, 76)]  # that are tried for forces
SHARP = 4  # of RIDGES: for atoms where frames are too few to choose by; no model looked at had forces that spoke against it
AS_LIKELY = 1.0  # the smallest ς² whose log likelihood is that close to the best: 10 or 50 frames cannot tell them apart


class Rigidity(nn.Module):
    """Features [..., D] -> standard deviations [...] in eV.

    `covariance` is F [D, D], `ridge` ς² and `alpha` α in eV. Raises ValueError for numbers that no calibration gives.
    """

    covariance: Tensor
    whitening: Tensor  # [D, D] eV; σ = |f @ whitening|
    whitening_single: Tensor  # the same, for features in float32: twice as fast, and no worse than those are

    def __init__(self, covariance: Tensor, ridge: float, alpha: float) -> None:
        super().__init__()
        self.ridge, self.alpha = float(ridge), float(alpha)
        if not (0 < self.ridge < math.inf and 0 < self.alpha < math.inf and covariance.isfinite().all()):
            raise ValueError(f"uncertainty: expected a finite covariance, and a ridge and an alpha above zero, got {ridge} and {alpha}")
        self.register_buffer("covariance", covariance.double(), persistent=False)
        self.register_buffer("whitening", self.alpha * _whitening(self.covariance, self.ridge), persistent=False)
        self.register_buffer("whitening_single", self.whitening.float(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """As float64. Zero where the features are: the energy of an atom alone does not depend on the weights."""
        whitening = self.whitening_single if features.dtype == torch.float32 else self.whitening
        return (features @ whitening).norm(dim=-1).double()


@dataclass(frozen=True)
class ForceLaw:
    """σ of what an atom contributes to the energy [N], in eV -> σ of each component of the force on it [N], in eV/Å: scale · σ ** exponent.

    `largest` is the largest one in the frames that it is calibrated on. Raises ValueError for numbers that no calibration gives.
    """

    scale: float
    exponent: float
    largest: float

    def __post_init__(self) -> None:
        if not all(type(x) is float and 0 < x < math.inf for x in astuple(self)):
            raise ValueError(f"uncertainty of forces: expected numbers above zero, got {self}")

    def __call__(self, energies: Tensor) -> Tensor:
        """Zero where they are: an atom alone has no force, whatever the weights are."""
        return self.scale * energies**self.exponent


class Uncertainty(nn.Module):
    """Features of atoms -> standard deviations of the energy of their structure, and of what each of them contributes.

    `energy` knows the features of whole training structures and is calibrated on energies of `frames` others. `atoms` knows those of the
    single atoms; no label tells an atom's energy, so its scale is that with which the squares of independent atoms would add up to the same
    errors. `largest` is the largest σ of an atom in these frames (eV), to choose thresholds by. Where `frames` are few, `left_out` fitted
    ones stood in for others, each as if it were left out. `force_law` makes σ of forces of those of `atoms`, calibrated on the errors of
    forces; it is None in files of older versions and where no force is known. `largest_mean` is the largest `mean` in the same frames.
    """

    def __init__(
        self,
        energy: Rigidity,
        atoms: Rigidity,
        frames: int,
        largest: float,
        left_out: int = 0,
        force_law: ForceLaw | None = None,
        largest_mean: float | None = None,
    ) -> None:
        super().__init__()
        self.energy, self.atoms, self.force_law = energy, atoms, force_law
        self.frames, self.largest, self.left_out = int(frames), float(largest), int(left_out)
        self.largest_mean = None if largest_mean is None else float(largest_mean)
        if largest_mean is not None and not 0 < largest_mean < math.inf:
            raise ValueError(f"uncertainty: expected a largest mean above zero, got {largest_mean}")

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of the atoms [N, D] of one structure: σ of its energy, and of each atom's [N], in eV."""
        return self.energy(features.sum(0, dtype=torch.float64).to(features.dtype)), self.atoms(features)

    def forces(self, features: Tensor) -> Tensor:
        """Of atoms [N, D]: σ of each component of the force on them [N], in eV/Å. Needs a `force_law`."""
        assert self.force_law is not None
        return self.force_law(self.atoms(features))

    def mean(self, features: Tensor) -> float:
        """σ of the mean atom of [N, D], in eV: what single atoms have by chance of their motion averages out, and what all have in common
        stays. So it tells a structure that is unlike the training as a whole, as an expanded or molten one, long before σ of any atom does.
        """
        return self.atoms(features.mean(0, dtype=torch.float64).to(features.dtype)).item()

    def describe(self) -> dict[str, Any]:
        """All numbers but the covariances."""
        parts = {name: {"ridge": part.ridge, "alpha": part.alpha} for name, part in (("energy", self.energy), ("atoms", self.atoms))}
        of_forces: dict[str, Any] = {} if self.force_law is None else {"forces": asdict(self.force_law)}
        of_forces |= {} if self.largest_mean is None else {"largest_mean": self.largest_mean}
        return {**parts, **of_forces, "frames": self.frames, "largest": self.largest, "left_out": self.left_out}

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
        law = ForceLaw(**described["forces"]) if "forces" in described else None
        energy, atoms = parts["energy"], parts["atoms"]
        return cls(
            energy, atoms, described["frames"], described["largest"], described.get("left_out", 0), law, described.get("largest_mean")
        )


def calibrate(
    F: Tensor, features: Tensor, structure: Tensor, errors: Tensor, weights: Tensor | None = None, ridge: float | None = None
) -> Rigidity:
    """α and ς² for which `errors` [B] (eV), of the energies of structures that were not fitted, are likely: normal deviates of width σ.

    σ² of a structure is the sum over those of the features [R, D] that `structure` [R] says are its own: a single row for LLPR as
    published, or a row per atom. For each ς², the most likely α² is the mean of error² / Σ fᵀ (F + ς² I)⁻¹ f. A small ς² keeps σ alert to
    what no training frame has, so the smallest is taken that these errors do not speak against. Isolated atoms, which have no error, do
    not count. `weights` [B] say that a structure counts as more or less than one, `ridge` that ς² is known.
    Raises FlashACEError where there is no error at all.
    """
    ridges = _ridges(F) if ridge is None else F.new_tensor([ridge])
    each = _squares(F, ridges, features)
    squares = each.new_zeros(len(errors), len(ridges)).index_add(0, structure, each)
    weights = torch.ones_like(errors) if weights is None else weights
    return _most_likely(F, ridges, squares, errors.double().unsqueeze(1).expand_as(squares), weights)


def calibrate_with_fitted(
    F: Tensor, held_out: tuple[Tensor, Tensor], fitted: tuple[Tensor, Tensor, Tensor]
) -> tuple[Rigidity, Tensor, Tensor]:
    """`calibrate` for fewer held-out structures than MIN_FRAMES: fitted ones stand in for the missing ones, each as if it were left out.

    `held_out`: features [A, D], each the sum over a structure, and errors [A] (eV). `fitted`: the same [B, D] and [B], and the numbers of
    atoms [B]. F is a sum of gᵀg over the fitted structures, g being features per atom; without one of them, whose leverage is
    h = gᵀ (F + ς² I)⁻¹ g, the last layer errs there by error / (1 - h) and σ² is α² n² h / (1 - h) (Sherman and Morrison 1950). What lies
    before the last layer has seen the structure all the same, so this is too small rather than too large; what was held out counts in full,
    and all stand-ins together as the rest of MIN_FRAMES.
    Returns also errors [A + B] and weights [A + B] of all, for `calibrate` with the features of single atoms.
    """
    ridges = _ridges(F)
    features, errors, sizes = fitted
    h = _squares(F, ridges, features / sizes.unsqueeze(1))
    rest = (1 - h).clamp(min=1e-6)
    squares = torch.cat([_squares(F, ridges, held_out[0]), sizes.unsqueeze(1).square() * h / rest])
    all_errors = torch.cat([held_out[1].unsqueeze(1).expand(-1, len(ridges)), errors.unsqueeze(1) / rest])
    missing = MIN_FRAMES - len(held_out[1])
    weights = torch.cat([torch.ones_like(held_out[1]), torch.full_like(errors, missing / max(len(errors), 1))])
    found = _most_likely(F, ridges, squares, all_errors, weights)
    return found, all_errors[:, (ridges - found.ridge).abs().argmin()], weights


class ForceCalibration(NamedTuple):
    """σ = scale · (fᵀ (F + ridge I)⁻¹ f) ** (exponent / 2) in eV/Å, and the largest that it was in the frames of the calibration."""

    ridge: float
    scale: float
    exponent: float
    largest: float


def calibrate_forces(F: Tensor, held_out: tuple[Tensor, Tensor], fitted: tuple[Tensor, Tensor], frames: int) -> ForceCalibration | None:
    """For which the errors of forces are likely: normal deviates of width σ. None where there is no error at all.

    `held_out` and `fitted` atoms: features [R, D] and the mean square of the three components of the error [R] (eV²/Å²). From MIN_FRAMES
    held-out `frames` on, these alone count; of the ridges, the smallest that they do not speak against is taken, as for energies. Fewer
    cannot tell more than the scale: the exponent is 1 then, the ridge SHARP, and all fitted atoms count as much as those of one frame
    more, since a fit makes their errors several times smaller.
    """
    enough = frames >= MIN_FRAMES
    features, squares = (torch.cat(pair) for pair in zip(held_out, (x[:0] if enough else x for x in fitted), strict=True))
    weights = torch.ones_like(squares)
    if not enough and frames:
        weights[len(held_out[1]) :] = len(held_out[1]) / frames / max(len(fitted[1]), 1)
    ridges = _ridges(F) if enough else _ridges(F)[SHARP : SHARP + 1]
    exponents = EXPONENTS if enough else [1.0]
    q2 = _squares(F, ridges, features)
    bound = q2[:, 0] > 0
    q2, squares, weights = q2[bound], squares[bound].unsqueeze(1), weights[bound].unsqueeze(1)
    if not squares.any():
        return None
    scale2 = torch.stack([(weights * squares / q2**exponent).sum(0) / weights.sum() for exponent in exponents])  # [exponents, ridges]
    logs = (weights * q2.log()).sum(0)
    spreads = torch.stack([weights.sum() * each.log() + exponent * logs for each, exponent in zip(scale2, exponents, strict=True)])
    best, chosen = (-1.5 * spreads).max(0)  # log likelihood but for a constant, of three components; [ridges]
    r = int((best > best.max() - AS_LIKELY).nonzero()[0])
    exponent, scale = exponents[chosen[r]], scale2[chosen[r], r].sqrt().item()
    return ForceCalibration(ridges[r].item(), scale, exponent, scale * q2[:, r].max().item() ** (exponent / 2))


def _whitening(F: Tensor, ridge: float) -> Tensor:
    """W [D, D] with W Wᵀ = (F + ridge I)⁻¹."""
    one = torch.eye(len(F), dtype=torch.float64, device=F.device)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(F + ridge * one), one, upper=False).T


def _ridges(F: Tensor) -> Tensor:
    return RIDGES.to(F) * torch.linalg.eigvalsh(F).mean()


def _squares(F: Tensor, ridges: Tensor, features: Tensor) -> Tensor:
    """fᵀ (F + ς² I)⁻¹ f of features [R, D] and ridges: [R, ridges]."""
    eigenvalues, vectors = torch.linalg.eigh(F)
    return (features.double() @ vectors).square() @ (1 / (eigenvalues.clamp(min=0.0).unsqueeze(1) + ridges))


def _most_likely(F: Tensor, ridges: Tensor, squares: Tensor, errors: Tensor, weights: Tensor) -> Rigidity:
    """squares and errors [B, ridges], weights [B]."""
    bound = squares[:, 0] > 0
    squares, errors, weights = squares[bound], errors[bound], weights[bound].unsqueeze(1)
    if not errors.any():
        raise FlashACEError("uncertainty: expected frames with energies that differ from the predicted ones, got none")
    alpha2 = (weights * errors.square() / squares).sum(0) / weights.sum()
    log_likelihood = -0.5 * (weights * (alpha2 * squares).log()).sum(0)  # but for a constant
    chosen = int((log_likelihood > log_likelihood.max() - AS_LIKELY).nonzero()[0])
    return Rigidity(F, ridges[chosen].item(), alpha2[chosen].sqrt().item())


def _triangle(size: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(size, size)
    return rows, columns
