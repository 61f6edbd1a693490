"""`Atoms` in, ASE results out: energy, forces and stress of a fitted model."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes, external_calculators, register_calculator_class
from ase.cell import Cell
from ase.data import chemical_symbols

from flashace.backends.c import backend as cpu
from flashace.backends.c.backend import CpuKernel
from flashace.errors import CoordinationWarning, FlashACEError, FreeAtomsWarning, ShortDistanceWarning, UncertaintyWarning
from flashace.potential.derivatives import EdgeBudget, Prediction, add_parts, predict_in_parts, split
from flashace.potential.model import AttentionACE, Interaction
from flashace.potential.model_file import NO_FREE_ATOMS, pack_model, share_model, unpack_model
from flashace.structure.coordination import count_neighbours
from flashace.structure.graph import Graph, VerletList, batch_graphs
from flashace.surroundings import exact_products, undisturbed

DTYPES = {"float32": torch.float32, "float64": torch.float64}
KERNELS = "auto", "compiled", "plain"
VOIGT = [0, 4, 8, 5, 2, 1]  # xx, yy, zz, yz, xz, xy of the nine of a symmetric tensor
CLEARLY_SHORTER = 0.95  # of the shortest distance in training; a shade below it is no news, and the one warning would be spent on it
_told_of_free_atoms: set[str] = set()  # models whose FreeAtomsWarning was given; there are calculators by the hundred


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises FlashACEError for a device that is not here."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        if chosen.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{chosen.type} holds no numbers that can be computed with here")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise FlashACEError(
            f"device: expected auto, cpu or a CUDA device of this machine, got {device!r} ({str(error).splitlines()[0]}); "
            "leave it out, or say cpu"
        ) from error
    return chosen


def choose_dtype(dtype: str) -> torch.dtype:
    """float32 or float64 by name. Raises FlashACEError for any other."""
    if dtype not in DTYPES:
        raise FlashACEError(f"dtype: expected float32 or float64, got {dtype!r}; float32 is fast, float64 for phonons and tests")
    return DTYPES[dtype]


class EnergyUncertainty(NamedTuple):
    """Standard deviations in eV."""

    energy: float  # of the energy of the structure
    energies: np.ndarray  # [N] of what each atom contributes to it


class Evaluation(NamedTuple):
    """What is known of a structure."""

    results: dict[str, Any]  # with ASE's names
    uncertainty: EnergyUncertainty | None  # where the model file has statistics for it


def check_max_edges(max_edges: int | None) -> int | None:
    """Raises FlashACEError unless it is a whole number from 1 on, or None."""
    if max_edges is not None and (not isinstance(max_edges, int) or isinstance(max_edges, bool) or max_edges < 1):
        raise FlashACEError(f"max_edges: expected a whole number of neighbour pairs, at least 1, or None, got {max_edges!r}")
    return max_edges


def check_kernel(kernel: str) -> str:
    """Raises FlashACEError unless it is one of `KERNELS`."""
    if kernel not in KERNELS:
        raise FlashACEError(f"kernel: expected {', '.join(KERNELS[:-1])} or {KERNELS[-1]}, got {kernel!r}; leave it out")
    return kernel


def check_skin(skin: float) -> float:
    """Raises FlashACEError unless it is a number from 0 to 10."""
    if not isinstance(skin, int | float) or isinstance(skin, bool) or not 0 <= skin <= 10:
        raise FlashACEError(f"skin: expected a number of Å from 0 to 10, got {skin!r}; leave it out")
    return skin


class FlashACE(Calculator):
    """ASE calculator of a fitted model.

    ::

        atoms.calc = FlashACE("model.pt")
        atoms.get_potential_energy()  # eV
        atoms.get_forces()            # [N, 3] eV/Å
        atoms.get_stress()            # [6] eV/Å³, ASE's sign and Voigt order

    All results come from one backward pass. Stress is there when the cell has three vectors, and divided by that cell's volume.
    `model` is a model file, or a run folder that holds a `model.pt`. `device` is auto, cpu, cuda, cuda:1, …; `dtype` is the precision
    inside the network, float32 or float64: energies are summed in float64.
    `get_uncertainty` says how uncertain the energies are. Where that of an atom is above `warn_uncertainty` (eV) a warning is given, once;
    above `stop_uncertainty` (eV) the structure counts as a failed calculation.

    Calculators of one model file, precision and device share their weights, and so do copies (`copy.deepcopy`): one per image of a path, or
    per thread, costs no memory. What surrounds a calculator in a program (inference mode, autocast, another default device or precision)
    does not change its numbers. The first structure with a pair of atoms clearly closer than any in training (by more than 5 %) gives a
    `ShortDistanceWarning`, and so does the first with an atom that has far fewer or far more neighbours of an element than any in training
    (a `CoordinationWarning`); with `stop_uncertainty` such a structure counts as a failed calculation. A model that was
    fitted without isolated atoms gives a `FreeAtomsWarning`, once for all its calculators.

    `kernel` says what evaluates the model: "compiled" code with edge functions from splines, or "plain" torch, many times slower and exact
    to the last digits. On a CPU it is C, compiled by the C compiler of this machine at the first structure (some seconds, once;
    ~/.cache/flashace keeps it); on a GPU, kernels of Triton (`pip install triton`). "auto" takes it for float32 where it can be
    had, and the plain path for float64.

    Neighbours are looked for within `skin` Å more than the cutoff, and again when atoms have moved so far that one may be missing. Results
    are the same for any skin; a large one pays where atoms move little between calls.

    Large structures are evaluated in parts of `max_edges` neighbour pairs, which bounds the memory and changes nothing else; None leaves
    the size to the device (compiled C goes through a few atoms at a time by itself), and where memory runs out it is halved.

    Raises FlashACEError for elements the model does not know (at `atoms.calc = …`) and structures that cannot be evaluated, and
    CalculationFailed for results that are not finite, or too uncertain.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]
    batch: Callable[[Atoms, "FlashACE"], Evaluation | None] | None = (
        None  # results of structures that are evaluated together: `flashace.batched`
    )
    nolabel = True  # `ase run` hands none to the constructor then
    default_parameters = {
        "device": "auto",
        "dtype": "float32",
        "max_edges": None,
        "warn_uncertainty": None,
        "stop_uncertainty": None,
        "kernel": "auto",
        "skin": 0.5,
    }

    def __init__(
        self,
        model: str | Path,
        device: str | torch.device | None = "auto",
        dtype: str | torch.dtype = "float32",
        max_edges: int | None = None,
        warn_uncertainty: float | None = None,
        stop_uncertainty: float | None = None,
        kernel: str = "auto",
        skin: float = 0.5,
    ) -> None:
        thresholds = {"warn_uncertainty": warn_uncertainty, "stop_uncertainty": stop_uncertainty}
        super().__init__(model=model, device=device, dtype=dtype, max_edges=max_edges, kernel=kernel, skin=skin, **thresholds)

    @undisturbed
    def set(self, **parameters: Any) -> dict[str, Any]:
        """Change `model` or an option; returns what changed. Raises FlashACEError for any other name."""
        names = ["model", *self.default_parameters]
        unknown = sorted(set(parameters) - set(names))
        if unknown:
            raise FlashACEError(f"parameters: expected {', '.join(names[:-1])} or {names[-1]}, got {', '.join(unknown)}; leave it out")
        parameters = {name: _plain(name, value) for name, value in parameters.items()}
        p = {**self.parameters, **parameters}
        if p == self.parameters:
            return {}
        device, max_edges = choose_device(p["device"]), check_max_edges(p["max_edges"])
        check_kernel(p["kernel"])
        check_skin(p["skin"])
        model = self._model_for(p, device)  # before anything is noted down
        for name in ("warn_uncertainty", "stop_uncertainty"):
            if p[name] is not None:
                _check_threshold(name, p[name])
                _check_has_uncertainty(model, name, p["model"])
        if not model.free_atoms and p["model"] not in _told_of_free_atoms:
            _told_of_free_atoms.add(p["model"])
            warnings.warn(f"{p['model']}: {NO_FREE_ATOMS} (said once for each model)", FreeAtomsWarning, stacklevel=5)
        self.model, self.device, self.budget = model, model.embedding.device, EdgeBudget.of(device, max_edges)
        self.verlet_list = VerletList(model.config.r_max, p["skin"])
        self._warned_of_uncertainty = self._warned_of_distance = self._warned_of_coordination = False
        self._species, self._shortest = (table.cpu().numpy().copy() for table in (model.element_index, model.shortest))
        self._falls_back, self._stresses = False, None
        self._known_numbers: np.ndarray | None = None  # of the last structure; elements rarely change
        changed = super().set(**parameters)
        self.reset()
        return changed

    def _model_for(self, p: dict[str, Any], device: torch.device) -> AttentionACE:
        """The model at hand, unless what it is made of changes: then the file is read."""
        if all(p[name] == self.parameters.get(name) for name in ("model", "device", "dtype")):
            return self.model
        return share_model(p["model"], choose_dtype(p["dtype"]), device)

    @property
    def r_max(self) -> float:
        """Cutoff in Å."""
        return self.model.config.r_max

    def set_atoms(self, atoms: Atoms) -> None:
        """Called by ASE at `atoms.calc = …`: an unknown element is named there, before any run starts."""
        self._check_elements(atoms)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FlashACE":
        """A calculator of its own, with the same weights: nothing ever changes them."""
        memo[id(self.model)] = self.model
        other = memo[id(self)] = type(self).__new__(type(self))
        other.__dict__ = copy.deepcopy({**self.__dict__, "batch": None}, memo)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """As multiprocessing and files have it: with the weights, since the model file may be out of reach where it arrives."""
        return {**self.__dict__, "batch": None, "model": pack_model(self.model)}

    @undisturbed
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        p = self.parameters
        self.model = unpack_model(state["model"], choose_dtype(p["dtype"]), choose_device(p["device"]))
        if self.model.embedding.device != self.device:  # "auto" on another machine
            self.device = self.model.embedding.device
            self.budget = EdgeBudget.of(self.device, p["max_edges"])

    @undisturbed
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results` with everything at once: a second property costs nothing.

        But for `stresses`, which files would keep with every structure: they are there when they have been asked for, at no cost either.
        """
        if "stresses" in properties and not system_changes and self.results and self._stresses is not None:
            self.results["stresses"] = self._stresses
            return
        self.results = {}  # whatever happens below, nothing old is handed out
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        if atoms is None:
            raise FlashACEError("structure: expected Atoms, got None; say `atoms.calc = calculator`, or hand the atoms to the function")
        found = None if self.batch is None else self.batch(atoms, self)
        if found is None:
            ((graph, prediction),) = self.predict([self.graph(atoms)])
            found = self.evaluation(graph, prediction)
        results = found.results if self.batch is None else copy.deepcopy(found.results)
        self._stresses = results.pop("stresses", None)
        if "stresses" in properties and self._stresses is not None:
            results["stresses"] = self._stresses
        self.results, self._uncertainty = results, found.uncertainty

    def graph(self, atoms: Atoms) -> Graph:
        """Who is whose neighbour, from the Verlet list where it still holds. Raises FlashACEError as `calculate` does."""
        self._check_elements(atoms)
        return self.verlet_list(atoms)

    def predict(self, graphs: Iterable[Graph]) -> Iterator[tuple[Graph, Prediction]]:
        """Each graph, whose elements the model knows, and what follows from it; as many are evaluated at once as make up `max_edges`."""
        for batch in self.budget.batches(graphs):
            yield from zip(batch, split(self._predict(batch_graphs(batch)), batch), strict=True)

    def evaluation(self, graph: Graph, prediction: Prediction) -> Evaluation:
        """What a user is told of one structure. Warns and raises as `calculate` does."""
        self._warn_of_short_distances(graph)
        self._check_coordination(graph)
        energies, forces, stresses = (x.cpu().numpy() for x in (prediction.energies, prediction.forces, prediction.stresses))
        energy = float(prediction.energy)
        results: dict[str, Any] = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        if graph.cell.any() and Cell(graph.cell[0].numpy()).rank == 3:
            results["stresses"] = stresses.reshape(-1, 9)[:, VOIGT]
            results["stress"] = prediction.stress.cpu().numpy().reshape(9)[VOIGT]
        _check_finite(results, graph)
        uncertainty = None
        if self.model.uncertainty is not None and prediction.features is not None:
            whole, each = self.model.uncertainty(prediction.features)
            uncertainty = EnergyUncertainty(whole.item(), each.cpu().numpy())
            self._check_certain(uncertainty.energies)
        return Evaluation(results, uncertainty)

    def _predict(self, graph: Graph) -> Prediction:
        kernel, features = self._kernel(), self.model.uncertainty is not None
        if isinstance(kernel, CpuKernel):
            if self.parameters["max_edges"] is None:
                return kernel.predict(graph, features)  # a few atoms at a time by itself
            return add_parts(lambda part: kernel.predict(part, features), graph, self.budget)
        model = self.model.with_features if features else self.model
        if kernel is not None:
            model = partial(model, interaction=kernel)
        with exact_products():
            return predict_in_parts(model, graph.to(self.device), self.model.dtype, self.budget)

    def _kernel(self) -> CpuKernel | Interaction | None:
        """What `kernel` asks for; None is the plain path."""
        asked = self.parameters["kernel"]
        if self._falls_back or asked == "plain" or (asked == "auto" and self.model.dtype != torch.float32):
            return None
        try:
            return compiled_kernel(self.model)
        except FlashACEError as error:
            if asked == "compiled":
                raise
            warnings.warn(f"{error}. This calculator takes the plain path, which is many times slower", stacklevel=2)
            self._falls_back = True
            return None

    def get_uncertainty(self, atoms: Atoms | None = None) -> EnergyUncertainty:
        """How far the energy and each atom's part of it may be off, in eV (standard deviations), for `atoms` or those of the last results.

        Comes from the same evaluation as the results. That of the energy is calibrated on validation frames. No label tells an atom's
        energy: compare those of atoms with each other and with `model.uncertainty.largest`. See docs/uncertainty.md.
        Raises FlashACEError where the model file has no statistics for it, and otherwise as `calculate`.
        """
        _check_has_uncertainty(self.model, "get_uncertainty", self.parameters["model"])
        if atoms is None and self.atoms is None:
            raise FlashACEError("get_uncertainty: expected a structure, got none; give atoms, or compute their energy before")
        self.get_property("energy", atoms)
        return cast(EnergyUncertainty, self._uncertainty)

    def _check_certain(self, energies: np.ndarray) -> None:
        for name in ("stop_uncertainty", "warn_uncertainty"):
            threshold = self.parameters[name]
            above = [] if threshold is None else np.flatnonzero(~(energies <= threshold)).tolist()  # NaN, too
            if not above:
                continue
            message = (
                f"{name}: {len(above)} of {len(energies)} atoms have energies uncertain by more than {threshold:g} eV: "
                f"atoms {above[:10]}{'…' if len(above) > 10 else ''}, most of all {energies.argmax()} ({energies.max():.3g} eV). Their "
                "neighbourhoods are unlike those that the model was fitted to: label this structure and add it to the data"
            )
            if name == "stop_uncertainty":
                raise CalculationFailed(message)
            if not self._warned_of_uncertainty:
                self._warned_of_uncertainty = True
                warnings.warn(message, UncertaintyWarning, stacklevel=2)

    def _check_elements(self, atoms: Atoms) -> None:
        if self._known_numbers is None or not np.array_equal(atoms.numbers, self._known_numbers):
            self.model.check_elements(torch.from_numpy(np.unique(atoms.numbers)).long())
            self._known_numbers = atoms.numbers.copy()

    def _warn_of_short_distances(self, graph: Graph) -> None:
        """Once; and never for a model file that does not tell the distances of its training data."""
        if self._warned_of_distance or not len(graph.edge_vec):
            return
        i, j = graph.edge_index.numpy()
        species, vec = self._species[graph.numbers.numpy()], graph.edge_vec.numpy()
        shortest = self._shortest[species[i], species[j]]
        squares = np.einsum("ec,ec->e", vec, vec)
        shorter = np.flatnonzero(squares < (CLEARLY_SHORTER * shortest) ** 2)
        if not len(shorter):
            return
        closest = shorter[(squares[shorter] / shortest[shorter] ** 2).argmin()]
        distance, known = float(squares[closest]) ** 0.5, float(shortest[closest])
        a, b = sorted(graph.edge_index[:, closest].tolist())
        names = "-".join(chemical_symbols[z] for z in graph.numbers[[a, b]].tolist())
        seen = f"{known:.3f} Å is the shortest distance of such a pair"
        if known >= self.r_max:
            seen = f"no such pair is closer than {self.r_max:g} Å (r_max)"
        warnings.warn(
            f"{names}: atoms {a} and {b} are {distance:.3f} Å apart; in the training data {seen}. Energy and forces are a guess here: look "
            "whether the structure is meant to be like this, or add such frames to the training data (this calculator warns once)",
            ShortDistanceWarning,
            stacklevel=2,
        )
        self._warned_of_distance = True

    def _check_coordination(self, graph: Graph) -> None:
        """Warns once of an atom with far fewer or far more neighbours than in training; each time, `stop_uncertainty` makes it an error.

        A model file that does not tell the range of its training data knows of none.
        """
        known, stops = self.model.coordination, self.parameters["stop_uncertainty"] is not None
        if known is None or (self._warned_of_coordination and not stops):
            return
        i, j = graph.edge_index.numpy()
        species, vec, c = self._species[graph.numbers.numpy()], graph.edge_vec.numpy(), self.model.config
        squares = np.einsum("ec,ec->e", vec, vec)
        numbers = count_neighbours(i, species[j], squares, len(species), len(known.least), c.r_max, c.envelope_exponent)
        outside = known.far_outside(numbers, species)
        if not len(outside):
            return
        found = known.farthest(outside[0], numbers[outside[0]], species[outside[0]])
        centre, neighbour = self.model.symbols[species[found.atom]], self.model.symbols[found.neighbour]
        message = (
            f"{len(outside)} of {len(species)} atoms have far fewer or far more neighbours than any in the training data, most of all atom "
            f"{found.atom} ({centre}): {found.number:.2f} neighbours {neighbour}, counted by the envelope, and {found.least:.2f} to "
            f"{found.most:.2f} in training. Energy and forces are a guess here: look whether the structure is meant to be like this, or "
            "add such frames to the training data"
        )
        if stops:
            raise CalculationFailed(f"stop_uncertainty: {message}")
        warnings.warn(f"{message} (this calculator warns once)", CoordinationWarning, stacklevel=2)
        self._warned_of_coordination = True


if "flashace" not in external_calculators:  # a module may be imported twice, and ASE takes a name once
    register_calculator_class("flashace", FlashACE)


def _plain(name: str, value: Any) -> Any:
    """A parameter as JSON has it, which is what files of ASE keep: names instead of torch's objects, Python's numbers for numpy's."""
    if name == "model":
        return str(Path(value, "model.pt")) if Path(str(value)).is_dir() else str(value)  # a run folder
    if name == "device":
        return "auto" if value is None else str(value) if isinstance(value, torch.device) else value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value.item() if isinstance(value, np.generic) else value


def compiled_kernel(model: AttentionACE) -> CpuKernel | Interaction:
    """C for a model on a CPU, Triton for one on a GPU. Raises FlashACEError where that cannot be had."""
    if model.embedding.device.type == "cpu":
        return cpu.kernel_of(model)
    try:
        from flashace.backends.triton.backend import kernel_of
    except ImportError as error:
        raise FlashACEError(f"kernel: expected Triton, got {error}; `pip install triton`, or use the plain path") from error
    return kernel_of(model)


def _check_threshold(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise FlashACEError(f"{name}: expected None or a number above zero, in eV, got {value!r}")


def _check_has_uncertainty(model: AttentionACE, asked: str, path: str) -> None:
    if model.uncertainty is None:
        raise FlashACEError(
            f"{asked}: {path} has no statistics of its last layer; `flashace calibrate {path} DATA` adds them, from the data of its fit"
        )


def _check_finite(results: dict[str, Any], graph: Graph) -> None:
    broken = [name for name, value in results.items() if not np.isfinite(value).all()]
    if broken:
        atoms = np.flatnonzero(~np.isfinite(results["energies"]))  # forces spread the NaN to all neighbours
        distances = graph.edge_vec.norm(dim=1)
        shortest = f"{distances.min():.3g} Å" if len(distances) else "none"
        raise CalculationFailed(
            f"{', '.join(broken)}: expected finite numbers, got NaN or infinity "
            f"(first atoms {atoms[:5].tolist()}; shortest distance {shortest}). "
            "The structure is outside what a model can describe: look for atoms on top of each other, or a time step that is too long"
        )
