"""TorchSim states in; energies, forces and stresses of a fitted model out. The only file that imports torch_sim."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from ase import Atoms
from torch import Tensor

from flashace.calculator import FlashACE
from flashace.potential.model_source import Given
from flashace.structure.graph import Graph
from flashace.structure.verlet import VerletList
from flashace.surroundings import undisturbed

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ImportError as error:
    raise ImportError(f"flashace.engines.torchsim: expected TorchSim, got {error}; `pip install 'flashace[torchsim]'`") from error


class FlashACEModel(ModelInterface):
    """TorchSim model of a fitted model.

    ::

        model = FlashACEModel("model.pt")
        state = torch_sim.optimize(system=[atoms_1, atoms_2], model=model, optimizer=torch_sim.optimizers.fire)

    All systems of a state (N atoms, B systems) are evaluated together. The options are those of `FlashACE`, and so are the numbers, the
    warnings and the errors. `dtype` is the precision inside the network; states and sums are float64 in any case, because float32 resolves
    positions to 1e-6 Å and a total energy of some thousand eV to 1e-3 eV.
    """

    def __init__(
        self,
        model: Given | Sequence[Given],
        device: str | torch.device | None = "auto",
        dtype: str = "float32",
        max_edges: int | None = None,
        kernel: str = "auto",
        skin: float = 0.5,
        warn_uncertainty: float | None = None,
        stop_uncertainty: float | None = None,
    ) -> None:
        super().__init__()
        self.calculator = FlashACE(model, device, dtype, max_edges, warn_uncertainty, stop_uncertainty, kernel, skin)
        self._device, self._dtype = self.calculator.device, torch.float64
        self._compute_forces = self._compute_stress = True
        self._lists: list[VerletList] = []

    @undisturbed
    def forward(self, state: SimState) -> dict[str, Tensor]:
        """`energy` [B] eV, `forces` [N, 3] eV/Å, and `stress` [B, 3, 3] eV/Å³, which is NaN for a system whose cell has no volume.

        And what `get_uncertainty` of the calculator says of single atoms, where the model file has statistics for it:
        `energies_uncertainty` [N] eV and `forces_uncertainty` [N] eV/Å. All have the dtype and the device of the positions. Raises
        FlashACEError for elements the model does not know and structures that cannot be evaluated, and CalculationFailed for results that
        are not finite, or too uncertain.
        """
        found: dict[str, list[Tensor]] = defaultdict(list)
        for graph, prediction in self.calculator.predict(self._graphs(state)):
            uncertainty = self.calculator.evaluation(graph, prediction).uncertainty
            for name in ("energy", "forces", "stress"):
                found[name].append(getattr(prediction, name))
            if uncertainty is not None:
                found["energies_uncertainty"].append(torch.from_numpy(uncertainty.energies))
                if uncertainty.forces is not None:
                    found["forces_uncertainty"].append(torch.from_numpy(uncertainty.forces))
        return {name: torch.cat(each).to(state.positions) for name, each in found.items()}

    def _graphs(self, state: SimState) -> Iterator[Graph]:
        """One Verlet list for each place in the batch: where another system takes the place, the list is made anew."""
        structures, skin = list(_structures(state)), self.calculator.parameters["skin"]
        self._lists += [VerletList(self.calculator.r_max, skin) for _ in structures[len(self._lists) :]]
        for atoms, pairs in zip(structures, self._lists, strict=False):
            self.calculator.set_atoms(atoms)
            yield pairs(atoms)


def _structures(state: SimState) -> Iterator[Atoms]:
    tensors = state.atomic_numbers, state.positions.double(), state.row_vector_cell.double()
    numbers, positions, cells = (x.detach().cpu().numpy() for x in tensors)
    pbc = torch.as_tensor(state.pbc).cpu().numpy()  # one flag in TorchSim 0.3, three from 0.6 on
    last = 0
    for cell, count in zip(cells, state.system_idx.bincount().tolist(), strict=True):
        first, last = last, last + count
        yield Atoms(numbers[first:last], positions[first:last], cell=cell, pbc=pbc)
