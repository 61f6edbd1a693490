"""`Atoms` in, ASE results out: energy, forces and stress of a fitted model."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes, external_calculators, register_calculator_class
from ase.cell import Cell
from torch import Tensor

from flashace.backends.choice import KERNELS, backend_of
from flashace.errors import (
    FlashACEError,
    FreeAtomsWarning,
)
from flashace.guards import ENERGY, Guards, check_finite
from flashace.potential.committee import CommitteeSpread, mean, spread
from flashace.potential.derivatives import EdgeBudget, Prediction, split
from flashace.potential.hessian import hessian
from flashace.potential.model import AttentionACE
from flashace.potential.model_file import NO_FREE_ATOMS, pack_model, unpack_model
from flashace.potential.model_source import Given, ModelSource
from flashace.structure.graph import Graph, batch_graphs
from flashace.structure.verlet import VerletList
from flashace.surroundings import exact_products, undisturbed

DTYPES = {"float32": torch.float32, "float64": torch.float64}
VOIGT = [0, 4, 8, 5, 2, 1]  # xx, yy, zz, yz, xz, xy of the nine of a symmetric tensor
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
    """Standard deviations."""

    energy: float  # eV, of the energy of the structure
    energies: np.ndarray  # [N] eV, of what each atom contributes to it
    forces: np.ndarray | None  # [N] eV/Å, of each component of the force on an atom; None where the model file does not tell


class Evaluation(NamedTuple):
    """What is known of a structure."""

    results: dict[str, Any]  # with ASE's names
    uncertainty: EnergyUncertainty | None  # where the model file has statistics for it
    spread: CommitteeSpread | None  # of a committee


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

    >>> from ase import Atoms
    >>> from flashace.potential.config import ModelConfig
    >>> model = AttentionACE(ModelConfig(num_channels=8, hidden_dim=16), {"H": -13.6})  # untrained
    >>> Atoms("H", calculator=FlashACE(model, kernel="plain")).get_potential_energy()  # an atom alone
    -13.6

    All results come from one backward pass. Stress is there when the cell has three vectors, and divided by that cell's volume.
    `model` is a model file, a run folder that holds a `model.pt`, or an `AttentionACE` with its weights as they are now. `device` is auto,
    cpu, cuda, cuda:1, …; `dtype` is the precision inside the network, float32 or float64: energies are summed in float64.
    A list of models is a committee: its results are their mean, `get_committee_spread` says how far they differ, and `members` has a
    calculator of each. What is said below of warnings and of `stop_uncertainty`, each member does by itself.
    `get_descriptors`, `get_hessian` and `get_node_energies` give what ASE has no name for (docs/calculator.md).
    `get_uncertainty` says how uncertain the energies are. Where that of an atom is above `warn_uncertainty` (eV) a warning is given, once;
    above `stop_uncertainty` (eV) the structure counts as a failed calculation.

    Calculators of one model file, precision and device share their weights, and so do copies (`copy.deepcopy`): one per image of a path, or
    per thread, costs no memory. What surrounds a calculator in a program (inference mode, autocast, another default device or precision)
    does not change its numbers. The first structure with a pair of atoms clearly closer than any in training (by more than 5 %) gives a
    `ShortDistanceWarning`, and so does the first with an atom that has far fewer or far more neighbours of an element than any in training
    (a `CoordinationWarning`), and the first that is unlike the training as a whole (an `UnfamiliarWarning`); with `stop_uncertainty` these
    two are failed calculations. A `PrecisionWarning` hints, once, at difference quotients of energies in float32. A model that was fitted
    without isolated atoms gives a `FreeAtomsWarning`, once for all its calculators.

    `kernel` says what evaluates the model: "compiled" code with edge functions from splines, or "plain" torch, many times slower and exact
    to the last digits. On a CPU it is C, compiled by the C compiler of this machine at the first structure (some seconds, once;
    ~/.cache/flashace keeps it); on a GPU, kernels of Triton (`pip install triton`). "auto" takes it where it can be had.

    Neighbours are looked for within `skin` Å more than the cutoff, and again when atoms have moved so far that one may be missing. Results
    are the same for any skin; a large one pays where atoms move little between calls.

    Large structures are evaluated in parts of `max_edges` neighbour pairs, which bounds the memory and changes nothing else; None leaves
    the size to the device (compiled C goes through a few atoms at a time by itself), and where memory runs out it is halved.

    `label`, `directory` and `atoms` are those of every calculator of ASE: `atoms` get this one as their calculator, and no file is written.

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

    model: AttentionACE  # of a committee the first
    members: Sequence["FlashACE"] = ()  # of a committee, each a calculator of its own
    _sources: Sequence[ModelSource] = ()

    def __init__(
        self,
        model: Given | Sequence[Given],
        device: str | torch.device | None = "auto",
        dtype: str | torch.dtype = "float32",
        max_edges: int | None = None,
        warn_uncertainty: float | None = None,
        stop_uncertainty: float | None = None,
        kernel: str = "auto",
        skin: float = 0.5,
        *,
        label: str | None = None,
        directory: str | PathLike[str] = ".",
        atoms: Atoms | None = None,
    ) -> None:
        options = {"device": device, "dtype": dtype, "max_edges": max_edges, "kernel": kernel, "skin": skin}
        options |= {"warn_uncertainty": warn_uncertainty, "stop_uncertainty": stop_uncertainty}
        super().__init__(label=label, directory=directory, model=model, **options)
        if atoms is not None:  # ASE would attach this before there is a model
            atoms.calc = self

    @undisturbed
    def set(self, **parameters: Any) -> dict[str, Any]:
        """Change `model` or an option; returns what changed. Raises FlashACEError for any other name."""
        names = ["model", *self.default_parameters]
        unknown = sorted(set(parameters) - set(names))
        if unknown:
            raise FlashACEError(f"parameters: expected {', '.join(names[:-1])} or {names[-1]}, got {', '.join(unknown)}; leave it out")
        sources = self._sources
        if "model" in parameters:
            sources = _sources(parameters["model"])
            names = [source.name for source in sources]
            parameters["model"] = names if len(names) > 1 else names[0]
        parameters = {name: _plain(name, value) for name, value in parameters.items()}
        p = {**self.parameters, **parameters}
        if p == self.parameters:
            return {}
        device, max_edges = choose_device(p["device"]), check_max_edges(p["max_edges"])
        check_kernel(p["kernel"])
        check_skin(p["skin"])
        for name in ("warn_uncertainty", "stop_uncertainty"):
            if p[name] is not None:
                _check_threshold(name, p[name])
        members = self._members_for(p, sources)  # before anything is noted down
        model = members[0].model if members else self._model_for(p, sources[0], device)
        if not members:
            for name in ("warn_uncertainty", "stop_uncertainty"):
                if p[name] is not None:
                    _check_has_uncertainty(model, name, p["model"])
            if not model.free_atoms and str(p["model"]) not in _told_of_free_atoms:
                warnings.warn(f"{p['model']}: {NO_FREE_ATOMS} (said once for each model)", FreeAtomsWarning, stacklevel=5)
                _told_of_free_atoms.add(str(p["model"]))  # not where the user has made an error of it
        self.model, self.device, self.budget = model, model.embedding.device, EdgeBudget.of(device, max_edges)
        self.members, self._sources = members, sources
        self.verlet_list = VerletList(self.r_max, p["skin"])
        self.guards, self._stresses = Guards(model), None
        self._known_numbers: np.ndarray | None = None  # of the last structure; elements rarely change
        changed = super().set(**parameters)
        self.reset()
        return changed

    def _model_for(self, p: dict[str, Any], source: ModelSource, device: torch.device) -> AttentionACE:
        """The model at hand, unless what it is made of changes: then the file is read."""
        if all(p[name] == self.parameters.get(name) for name in ("model", "device", "dtype")):
            return self.model
        return source.model(choose_dtype(p["dtype"]), device)

    def _members_for(self, p: dict[str, Any], sources: Sequence[ModelSource]) -> Sequence["FlashACE"]:
        """Of a committee. Others than those at hand, which would be changed too early; with the same weights where these do not change."""
        if len(sources) == 1:
            return ()
        options = {name: p[name] for name in self.default_parameters}
        if p["model"] != self.parameters.get("model"):
            return [FlashACE(source, **options) for source in sources]
        members = copy.deepcopy(self.members)
        for member in members:
            member.set(**options)
        return members

    @property
    def models(self) -> tuple[AttentionACE, ...]:
        """The model, or those of a committee."""
        return tuple(member.model for member in self.members) or (self.model,)

    @property
    def r_max(self) -> float:
        """Cutoff in Å; the largest of a committee."""
        return max(model.config.r_max for model in self.models)

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
        return {**self.__dict__, "batch": None, "model": None if self.members else pack_model(self.model)}

    @undisturbed
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        p = self.parameters
        if self.members:
            self.model = self.members[0].model
        else:
            self.model = unpack_model(state["model"], choose_dtype(p["dtype"]), choose_device(p["device"]))
        if self.model.embedding.device != self.device:  # "auto" on another machine
            self.device = self.model.embedding.device
            self.budget = EdgeBudget.of(self.device, p["max_edges"])

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As ASE has it. Who asks for more than the energy makes no difference quotients of energies."""
        if name not in ENERGY:
            self.guards.energy_of = None
        return super().get_property(name, atoms, allow_calculation)

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
        self.guards.precision(self.model, atoms, properties)
        found = None if self.batch is None else self.batch(atoms, self)
        if found is None:
            ((graph, prediction),) = self.predict([self.graph(atoms)])
            found = self.evaluation(graph, prediction)
        results = found.results if self.batch is None else copy.deepcopy(found.results)
        self._stresses = results.pop("stresses", None)
        if "stresses" in properties and self._stresses is not None:
            results["stresses"] = self._stresses
        self.results, self._uncertainty, self._spread = results, found.uncertainty, found.spread

    def graph(self, atoms: Atoms) -> Graph:
        """Who is whose neighbour, from the Verlet list where it still holds. Raises FlashACEError as `calculate` does."""
        self._check_elements(atoms)
        return self.verlet_list(atoms)

    def predict(self, graphs: Iterable[Graph]) -> Iterator[tuple[Graph, Prediction]]:
        """Each graph, whose elements the model knows, and what follows from it; as many are evaluated at once as make up `max_edges`."""
        for batch in self.budget.batches(graphs):
            whole = batch_graphs(batch)
            of_members = [member._predict(whole.within(member.r_max)) for member in self.members]
            yield from zip(batch, split(mean(of_members) if of_members else self._predict(whole), batch), strict=True)

    def evaluation(self, graph: Graph, prediction: Prediction) -> Evaluation:
        """What a user is told of one structure. Warns and raises as `calculate` does."""
        for member, its in zip(self.members, prediction.of_members or (), strict=True):
            member.evaluation(graph.within(member.r_max), its)
        if not self.members:
            self.guards.distances(self.model, graph)
            self.guards.coordination(self.model, graph, self.parameters["stop_uncertainty"] is not None)
        energies, forces, stresses = (x.cpu().numpy() for x in (prediction.energies, prediction.forces, prediction.stresses))
        energy = float(prediction.energy)
        results: dict[str, Any] = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        if graph.cell.any() and Cell(graph.cell[0].numpy()).rank == 3:
            results["stresses"] = stresses.reshape(-1, 9)[:, VOIGT]
            results["stress"] = prediction.stress.cpu().numpy().reshape(9)[VOIGT]
        check_finite(results, graph)
        uncertainty = None
        if self.model.uncertainty is not None and prediction.features is not None:
            whole, each = self.model.uncertainty(prediction.features)
            law = self.model.uncertainty.force_law
            uncertainty = EnergyUncertainty(whole.item(), each.cpu().numpy(), None if law is None else law(each).cpu().numpy())
            self.guards.certain(uncertainty.energies, self.parameters)  # first: it names the atoms
            stops = self.parameters["stop_uncertainty"] is not None
            self.guards.familiar(self.model.uncertainty.mean(prediction.features), self.model.uncertainty.largest_mean, stops)
        return Evaluation(results, uncertainty, spread(prediction) if self.members else None)

    def _predict(self, graph: Graph) -> Prediction:
        backend = backend_of(self.model, self.parameters["kernel"])
        whole = backend.bounds_memory and self.parameters["max_edges"] is None
        return backend.predict(graph, None if whole else self.budget, self.model.uncertainty is not None)

    def get_uncertainty(self, atoms: Atoms | None = None) -> EnergyUncertainty:
        """How far the energy and each atom's part of it (eV) and the force on each atom (eV/Å) may be off: standard deviations, for `atoms`
        or those of the last results.

        Comes from the same evaluation as the results. Those of energy and forces are calibrated on validation frames. No label tells an
        atom's energy: compare those of atoms with each other and with `model.uncertainty.largest`. See docs/uncertainty.md.
        Raises FlashACEError where the model file has no statistics for it, and otherwise as `calculate`.
        """
        if self.members:
            raise FlashACEError(
                "get_uncertainty: expected a single model, got a committee; take get_committee_spread, or ask one of calc.members"
            )
        _check_has_uncertainty(self.model, "get_uncertainty", self.parameters["model"])
        self.get_property("energy", self._asked(atoms, "get_uncertainty"))
        return cast(EnergyUncertainty, self._uncertainty)

    def get_committee_spread(self, atoms: Atoms | None = None) -> CommitteeSpread:
        """How far the members of a committee differ, for `atoms` or those of the last results: standard deviations of the energy (eV), of
        what each atom contributes to it [N] (eV), and of each component of the forces [N, 3] (eV/Å).

        Comes from the same evaluation as the results. Raises FlashACEError for a single model, and otherwise as `calculate`.
        """
        if not self.members:
            raise FlashACEError('get_committee_spread: expected a committee, got one model; make it with FlashACE(["a.pt", "b.pt", …])')
        self.get_property("energy", self._asked(atoms, "get_committee_spread"))
        return cast(CommitteeSpread, self._spread)

    def get_node_energies(self, atoms: Atoms | None = None) -> np.ndarray:
        """[N] eV: what each atom contributes to the energy, beyond the reference energy of its element; for `atoms` or those of the last
        results, from the evaluation that gives them. An atom alone has zero. Raises as `calculate`.
        """
        atoms = self._asked(atoms, "get_node_energies")
        energies = self.get_property("energies", atoms)
        alone = torch.stack([model.atomic_energies[model.element_index[torch.from_numpy(atoms.numbers)]].cpu() for model in self.models])
        return cast(np.ndarray, energies - alone.mean(0).numpy())

    @undisturbed
    def get_descriptors(self, atoms: Atoms | None = None, layer: int | None = None, invariants_only: bool = True) -> np.ndarray:
        """[N, hidden_dim]: numbers that say what surroundings each atom has, for `atoms` or those of the last results.

        They are the scalars that the readout of a layer reads: the last one, or `layer`, counted from 0 (from the end where negative).
        Turned, mirrored or shifted structures have the same; they are smooth in the positions, have no unit, and depend on nothing beyond
        the cutoff. From the plain path, in `dtype`; `results` stay as they are. Programs made for MACE say `invariants_only`; there is
        nothing else. Raises FlashACEError for a committee, whose members have their own, and for structures as `calculate`.
        """
        atoms = self._asked(atoms, "get_descriptors")
        if not invariants_only:
            raise FlashACEError("invariants_only: expected True, got False; descriptors of FlashACE are invariants, so leave it out")
        if self.members:
            raise FlashACEError("get_descriptors: expected a single model, got a committee; ask one of calc.members")
        num_layers = self.model.config.num_layers
        layer = num_layers - 1 if layer is None else layer
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or not -num_layers <= layer < num_layers:
            raise FlashACEError(f"layer: expected a whole number from {-num_layers} to {num_layers - 1}, got {layer!r}; leave it out")
        model, graph = self.model, self.graph(atoms).to(self.device)
        with torch.no_grad(), exact_products():
            graph = graph.with_edge_vec(graph.edge_vec.to(model.dtype))
            found = [s for _, s in self.budget.each_part(graph, lambda part: model.scalars(part.graph)[layer])]
        descriptors = torch.cat(found).cpu().numpy()
        check_finite({"descriptors": descriptors}, graph)
        return descriptors

    @undisturbed
    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """[3N, 3N] eV/Å²: the second derivatives of the energy by the positions, for `atoms` or those of the last results.

        Rows and columns go through x, y and z of atom after atom. Exact derivatives, not differences: in float32 to about six digits. Rows
        add up to zero (a translation costs nothing). From the plain path, in `dtype`; `results` stay as they are. The memory is that of the
        matrix, 72 N² bytes and as much again for a moment, and of parts of the structure. Raises FlashACEError as `calculate`.
        """
        graph = self.graph(self._asked(atoms, "get_hessian")).to(self.device)
        members = self.members or [self]
        with exact_products():
            H = sum(hessian(m.model, graph.within(m.r_max), m.model.dtype, m.budget) for m in members)
        found = cast(Tensor, H / len(members)).numpy()
        check_finite({"Hessian": found}, graph)
        return found

    def _asked(self, atoms: Atoms | None, name: str) -> Atoms:
        """`atoms`, or those of the last results."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise FlashACEError(f"{name}: expected a structure, got none; give atoms, or compute their energy before")
        return atoms

    def _check_elements(self, atoms: Atoms) -> None:
        if self._known_numbers is None or not np.array_equal(atoms.numbers, self._known_numbers):
            for model in self.models:
                model.check_elements(torch.from_numpy(np.unique(atoms.numbers)).long())
            self._known_numbers = atoms.numbers.copy()


if "flashace" not in external_calculators:  # a module may be imported twice, and ASE takes a name once
    register_calculator_class("flashace", FlashACE)


def _sources(model: Any) -> list[ModelSource]:
    """One for each model of a list, or of the only one. Raises FlashACEError for an empty list, and as `ModelSource.of`."""
    listed = model if isinstance(model, Sequence) and not isinstance(model, str | ModelSource) else [model]
    if not listed:
        raise FlashACEError("model: expected one model or more, got an empty list; look at how the list was made")
    return [ModelSource.of(each) for each in listed]


def _plain(name: str, value: Any) -> Any:
    """A parameter as JSON has it, which is what files of ASE keep: names instead of torch's objects, Python's numbers for numpy's."""
    if name == "device":
        return "auto" if value is None else str(value) if isinstance(value, torch.device) else value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type):  # np.float64
        return value.__name__
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0):
        return value.item()
    return value


def _check_threshold(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise FlashACEError(f"{name}: expected None or a number above zero, in eV, got {value!r}")


def _check_has_uncertainty(model: AttentionACE, asked: str, path: str) -> None:
    if model.uncertainty is None:
        raise FlashACEError(
            f"{asked}: {path} has no statistics of its last layer; `flashace calibrate {path} DATA` adds them, from the data of its fit"
        )
