"""Graphs in; an ordinary linear ACE, one row per label and one column per coefficient, and its ridge regression out. It takes seconds."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import cho_solve, cholesky, solve_triangular
from torch import Tensor, nn

from flashace.nn.harmonics import SphericalHarmonics
from flashace.nn.product import ProductBasis
from flashace.nn.radial import BesselBasis, polynomial_envelope
from flashace.structure.graph import Graph

MAX_COEFFICIENTS = 600
VOIGT = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
MAX_ROWS = 30  # of the forces of a frame, evenly drawn, that tell how open they are
RIDGE = 1e-6  # of the diagonal; between 1e-4 and 1e-10 the errors of four data sets changed by a few per cent


class Rows(NamedTuple):
    """What each coefficient (P) contributes to the labels of one structure of N atoms, as float64 arrays."""

    energy: np.ndarray  # [P] eV
    forces: np.ndarray  # [3N, P] eV/Å
    stress: np.ndarray | None  # [6, P] eV/Å³, Voigt; None without a cell


class LinearACE(nn.Module):
    """Product basis of fixed random mixtures of the atomic basis; energies are linear in it, with coefficients per element of the centre.

    Channel k mixes neighbour elements and radial functions with fixed random weights, so that few channels span the products of many
    (Darby et al., Phys. Rev. Lett. 131, 028001, 2023). In energies and forces, 100 to 500 frames are met within 1 to 3 % of the variance.
    """

    def __init__(self, numbers: Sequence[int], r_max: float, l_max: int = 2, num_radial: int = 8, correlation: int = 3) -> None:
        super().__init__()
        self.numbers, self.r_max = torch.tensor(sorted(set(numbers))), r_max
        num_elements = len(self.numbers)
        num_channels = max(min(MAX_COEFFICIENTS // (correlation * num_elements), 32), 2)
        self.degree = torch.tensor([l for l in range(l_max + 1) for _ in range(2 * l + 1)])
        self.basis, self.harmonics = BesselBasis(r_max, num_radial, False), SphericalHarmonics(l_max)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.product = ProductBasis(num_channels, l_max, correlation)
            self.mix = nn.Parameter(torch.randn(num_elements, num_radial, (l_max + 1) * num_channels) * num_radial**-0.5)
        self.double().requires_grad_(False)

    def rows(self, graph: Graph) -> Rows:
        """The rows of one structure with the elements given at the start; P = elements · correlation · channels."""
        element = torch.searchsorted(self.numbers, graph.numbers)
        padded = torch.cat([graph.edge_vec, graph.edge_vec.new_tensor([[self.r_max, 0.0, 0.0]])])
        vec = padded[graph.slots]
        neighbour = torch.cat([graph.edge_index[1], torch.zeros(1, dtype=torch.int64)])[graph.slots]
        B, g = self._features(vec, element[neighbour])
        N, num_features, S = *B.shape, len(self.numbers)
        energy = B.new_zeros(S, num_features).index_add(0, element, B)
        forces = B.new_zeros(N * S, num_features, 3)
        forces.index_add_(0, torch.arange(N) * S + element, g.sum(1))
        forces.index_add_(0, (neighbour * S + element.unsqueeze(1)).flatten(), -g.flatten(0, 1))
        virial = torch.einsum("nmpc,nmd->npcd", g, vec)
        virial = virial.new_zeros(S, num_features, 3, 3).index_add(0, element, virial).flatten(0, 1)
        volume = float(torch.linalg.det(graph.cell[0]).abs())
        stress = ((virial + virial.mT) / 2)[:, VOIGT[0], VOIGT[1]].T / volume if volume > 0 else None
        by_component = forces.view(N, S * num_features, 3).transpose(1, 2).reshape(3 * N, -1)
        return Rows(energy.flatten().numpy(), by_component.numpy(), None if stress is None else stress.numpy())

    def _features(self, vec: Tensor, neighbour: Tensor) -> tuple[Tensor, Tensor]:
        """Invariants B [N, F] of each atom and their derivatives g [N, M, F, 3] with respect to its neighbour vectors [N, M, 3]."""
        r = vec.norm(dim=-1)
        (R, dR), (Y, dY) = self._radial(r, neighbour), self._angular(vec)
        A = torch.einsum("nma,nmak->nak", Y, R[:, :, self.degree]).requires_grad_()
        with torch.enable_grad():
            orders = self.product(A)[:, 0].unflatten(-1, (-1, R.shape[-1]))
            # channels do not mix, so one backward pass per order holds the derivatives of all of them
            J = torch.stack([torch.autograd.grad(B.sum(), A, retain_graph=True)[0] for B in orders.unbind(1)], dim=1)
        unit, directions = vec / r.unsqueeze(-1), torch.cat([dY, Y.unsqueeze(-1)], dim=-1)
        g = Y.new_zeros(*orders.shape, vec.shape[1], 3)
        for l in range(R.shape[2]):
            of_l = self.degree == l
            H = J[:, :, of_l].movedim(2, -1).flatten(1, 2) @ directions[:, :, of_l].transpose(1, 2).flatten(2)
            H = H.view(*orders.shape, vec.shape[1], 4)
            R_l, dR_l = (x[:, :, l].mT[:, None, :, :, None] for x in (R, dR))
            g += R_l * H[..., :3] + dR_l * H[..., 3:] * unit[:, None, None]
        return orders.detach().flatten(1), g.flatten(1, 2).transpose(1, 2)

    def _radial(self, r: Tensor, neighbour: Tensor) -> tuple[Tensor, Tensor]:
        """R [N, M, l, K] and dR/dr."""

        def basis(r: Tensor) -> Tensor:
            return self.basis(r[..., 0]) * polynomial_envelope(r, self.r_max, exponent=6)

        parts = _with_slopes(basis, r.unsqueeze(-1))
        value, slope = (torch.einsum("nmb,nmbk->nmk", part, self.mix[neighbour]) for part in (parts[0], parts[1][..., 0]))
        shape = (int(self.degree.max()) + 1, -1)
        return value.unflatten(-1, shape), slope.unflatten(-1, shape)

    def _angular(self, vec: Tensor) -> tuple[Tensor, Tensor]:
        """Y [N, M, L] of the directions and its gradient [N, M, L, 3]."""

        def harmonics(vec: Tensor) -> Tensor:
            return self.harmonics(vec / vec.norm(dim=-1, keepdim=True))

        return _with_slopes(harmonics, vec)


def _with_slopes(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) [..., L] and its gradients [..., L, D] for x [..., D], where each row of f depends on the same row of x."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        columns = function(x).unbind(-1)
        slopes = [torch.autograd.grad(c.sum(), x, retain_graph=True)[0] if c.requires_grad else torch.zeros_like(x) for c in columns]
    return torch.stack(columns, dim=-1).detach(), torch.stack(slopes, dim=-2)


class Predicted(NamedTuple):
    """For each of B frames, from a fit that has not seen it: energy [B] (eV/atom), forces [N, 3], stress [B, 6] (NaN without a cell)."""

    energy: np.ndarray
    forces: list[np.ndarray]
    stress: np.ndarray


class Spread(NamedTuple):
    """How far the coefficients, known as well as the other frames tell them, leave a prediction open: variances over that of the noise of
    one label of that kind (the leverage of the frame). Structures unlike all others have large ones."""

    energy: np.ndarray  # [B]
    forces: np.ndarray  # [B], mean over the components
    stress: np.ndarray  # [B, 6] of `transform @ stress`, Å⁻⁴; NaN without a cell


class Ridge:
    """Regression of energies and forces with cross-validation: a fifth of the frames at a time is predicted from the others.

    An energy of 0.1 Å times the root mean square of the forces weighs as much as a force of that size. `used` [B] says which frames are
    fitted; all of them are predicted. Counts [B, S] of the elements let the reference energies move.
    """

    folds = 5

    def __init__(self, rows: Sequence[Rows], counts: np.ndarray, forces: Sequence[np.ndarray | None], used: np.ndarray) -> None:
        self.rows, self.used, self.targets = rows, used, forces
        self.fold = np.arange(len(rows)) % self.folds
        atoms = counts.sum(1, keepdims=True)
        self.X = np.concatenate([counts, np.stack([row.energy for row in rows])], axis=1) / atoms
        self.S, P = counts.shape[1], self.X.shape[1]
        self.force_scale = float(
            np.sqrt(np.mean(np.concatenate([f.ravel() for f, u in zip(forces, used, strict=True) if u and f is not None]) ** 2))
        )
        self.G, self.b = np.zeros((self.folds, P, P)), np.zeros((self.folds, P))
        self._add_forces(used, 1)

    def _add_forces(self, frames: np.ndarray, sign: int) -> None:
        for i in np.flatnonzero(frames).tolist():
            f = self.targets[i]
            if f is not None:
                F, fold = self.rows[i].forces / self.force_scale, self.fold[i]
                self.G[fold, self.S :, self.S :] += sign * (F.T @ F)
                self.b[fold, self.S :] += sign * (F.T @ f.ravel()) / self.force_scale

    def using(self, used: np.ndarray) -> "Ridge":
        """The same regression, fitted to these frames [B]; only what changes is computed."""
        other = copy(self)
        other.G, other.b, other.used = self.G.copy(), self.b.copy(), used
        other._add_forces(used & ~self.used, 1)
        other._add_forces(self.used & ~used, -1)
        return other

    def with_stress(self, stress: np.ndarray) -> "Ridge":
        """The same regression, fitted also to these stresses [B, 6] (eV/Å³; NaN where there is none), each component as weighty as one of
        an atom's force when both have their usual size."""
        other = copy(self)
        known = self.used & np.isfinite(stress).all(1)
        scale = float(np.sqrt(np.mean(stress[known] ** 2)))
        other.G, other.b = self.G.copy(), self.b.copy()
        for i in np.flatnonzero(known).tolist():
            S = np.asarray(self.rows[i].stress) / scale
            other.G[self.fold[i], self.S :, self.S :] += S.T @ S
            other.b[self.fold[i], self.S :] += S.T @ stress[i] / scale
        return other

    def predict(self, energy: np.ndarray) -> Predicted:
        """From a fit to these energies [B] (eV/atom above the reference energies; NaN where there is none) and the forces."""
        return self.predict_each([energy])[0]

    def predict_each(self, energies: Sequence[np.ndarray]) -> list[Predicted]:
        """The same for several readings of the energies, which are NaN in the same frames: one factorization does for all."""
        Y = np.stack(energies, axis=1)
        known, scale = self._known(energies[0]), 0.1 * self.force_scale
        size, factors = self._factors(known)
        moments = [self.X[k].T @ Y[k] / scale**2 for k in (known & (self.fold == f) for f in range(self.folds))]
        b = self.b[:, :, None] + np.stack(moments)
        c = [cho_solve((L, True), (b.sum(0) - b[f]) / size[:, None]) / size[:, None] for f, L in enumerate(factors)]
        of_fold = [(c[f], c[f][self.S :]) for f in self.fold]
        energy = np.array([x @ whole for x, (whole, _) in zip(self.X, of_fold, strict=True)])
        forces = [row.forces @ ci for row, (_, ci) in zip(self.rows, of_fold, strict=True)]
        nothing = np.full((6, Y.shape[1]), np.nan)
        stress = np.array([nothing if r.stress is None else r.stress @ ci for r, (_, ci) in zip(self.rows, of_fold, strict=True)])
        return [Predicted(energy[:, u], [f[:, u].reshape(-1, 3) for f in forces], stress[:, :, u]) for u in range(Y.shape[1])]

    def spread(self, energy: np.ndarray, transform: np.ndarray) -> Spread:
        """How open the predictions are, each from a fit that has not seen the frame; of the stress in the basis of `transform` [6, 6]."""
        size, factors = self._factors(self._known(energy))
        h_energy, h_forces, h_stress = np.zeros(len(self.rows)), np.zeros(len(self.rows)), np.full((len(self.rows), 6), np.nan)
        for i, row in enumerate(self.rows):
            some = row.forces[:: -(-len(row.forces) // MAX_ROWS)]
            of_frame = some if row.stress is None else np.concatenate([some, transform @ row.stress])
            padded = np.concatenate([np.zeros((len(of_frame), self.S)), of_frame], axis=1) / self.force_scale
            scaled = np.concatenate([self.X[i : i + 1] / (0.1 * self.force_scale), padded]) / size
            h = (solve_triangular(factors[self.fold[i]], scaled.T, lower=True) ** 2).sum(0)
            h_energy[i], h_forces[i] = h[0], h[1 : 1 + len(some)].mean()
            if row.stress is not None:
                h_stress[i] = h[1 + len(some) :]
        return Spread(h_energy, h_forces, h_stress)

    def _known(self, energy: np.ndarray) -> np.ndarray:
        return self.used & np.isfinite(energy)

    def _factors(self, known: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Scale [P] of the coefficients, and for each fold the Cholesky factor of the scaled normal matrix of the others."""
        scale = 0.1 * self.force_scale
        G = self.G + np.stack([self.X[k].T @ self.X[k] / scale**2 for k in (known & (self.fold == f) for f in range(self.folds))])
        size = np.sqrt(np.diag(G.sum(0)))
        size[size == 0] = 1.0
        shrink = np.full(len(size), RIDGE)
        shrink[: self.S] = 1e-3 * RIDGE
        factors = []
        for f in range(self.folds):
            A = (G.sum(0) - G[f]) / size / size[:, None]
            A[np.diag_indices_from(A)] += shrink
            factors.append(cholesky(A, lower=True))
        return size, factors
