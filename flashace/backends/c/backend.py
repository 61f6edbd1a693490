"""Model in; on a CPU, the same energies and slopes from compiled C out. `evaluate.c` is the other half of this file."""

import copy
import ctypes
import os
import platform
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flashace.backends.backend import Backend
from flashace.backends.compiler import cached_library, find_compiler, processor
from flashace.backends.layout import c_header, pack
from flashace.backends.splines import splines_of
from flashace.backends.trial import check_kernel
from flashace.errors import FlashACEError
from flashace.potential.derivatives import Prediction, Slopes, added, predict
from flashace.potential.model import AttentionACE
from flashace.potential.repulsion import Repulsion
from flashace.potential.term import Term
from flashace.structure.graph import Graph

SOURCE = Path(__file__).with_name("evaluate.c")
LAYOUT = "layout.h"  # what evaluate.c includes beside the headers in its folder
# as -ffast-math, but numbers that are not finite stay what they are
FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math"),
)
ATOMS_PER_THREAD = 64  # fewer are not worth a thread
ALIGNMENT = 64  # bytes

_POINTER = ctypes.c_void_p


class CpuKernel(Backend):
    """`Graph` → energies, their slopes and last-layer features, as the model and autograd give them.

    Edge functions come from splines (`splines_of`), which is the one approximation. The neighbours of 16 atoms are in memory at a time.
    Raises FlashACEError, with the reason, where the model is not on a CPU, or C cannot be compiled or gives something else than the plain
    path.
    """

    bounds_memory = True
    device = torch.device("cpu")

    def __init__(self, model: AttentionACE) -> None:
        if model.embedding.device.type != "cpu":
            raise FlashACEError(f"kernel: expected a model on a CPU, got one on {model.embedding.device}; use the plain path there")
        self._library = _library(model)
        self._dtype, self._element_index, self._num_features = model.dtype, model.element_index, model.num_features
        self._lent = threading.local()
        self._held: list[Tensor] = []  # C knows their addresses alone
        self._model: Any = pack(model, splines_of(model), self._hold)
        e0, scale, per_energy = self._model.e0, self._model.scale, self._model.per_energy
        self._model.e0, self._model.scale, self._model.per_energy = self._model.alone, 1.0, 0.0  # what the network gives, bare
        elements = torch.arange(len(model.e0))
        edges = torch.zeros(len(elements) + 1, dtype=torch.int64), elements[:0], torch.zeros(0, 3, dtype=torch.float64)
        alone, _, self.features_alone = self._run(*edges, elements, 1, True)
        self._model.alone, self._model.e0, self._model.scale, self._model.per_energy = self._hold(alone), e0, scale, per_energy
        self._other_terms = [cast(Term, term) for term in model.terms if not isinstance(term, Repulsion)]
        check_kernel(model, self.evaluate)

    def as_c(self, data: str) -> tuple[str, bytes]:
        """The weights for a file of their own: the value of a `Model` of evaluate.c as C, and the bytes that `data` is the C name of."""
        blob, places = bytearray(), {}
        tensors = {tensor.data_ptr(): tensor for tensor in self._held}

        def value(of: Any) -> str:
            if isinstance(of, ctypes.Structure):
                fields = [(getattr(of, name), kind) for name, kind in of._fields_]  # type: ignore[misc]
                return f"{{{', '.join(pointer(x) if kind is _POINTER else value(x) for x, kind in fields)}}}"
            if isinstance(of, ctypes.Array):
                return f"{{{', '.join(map(value, of))}}}"
            return of.hex() if isinstance(of, float) else str(of)

        def pointer(address: int | None) -> str:
            if address is None:
                return "NULL"
            if address not in places:
                places[address] = len(blob)
                content = tensors[address].numpy().tobytes()
                blob.extend(content + bytes(-len(content) % ALIGNMENT))
            return f"(const void *)({data} + {places[address]})"

        return value(self._model), bytes(blob)

    def from_file(self, library: Path, name: str) -> "CpuKernel":
        """This kernel with code and weights from a file: the `Model` in it is called `name`."""
        other = copy.copy(self)
        other._library = _open(library)
        other._model = type(self._model).in_dll(other._library, name)
        return other

    def __call__(self, graph: Graph, features: bool = False) -> Slopes:
        """Energies [C] eV, slopes [E, 3] eV/Å and, where asked for, features [C, D]."""
        return self._slopes(graph, features)[0]

    def evaluate(self, graph: Graph, features: bool = False) -> Prediction:
        found = self._network_and_repulsion(graph, features)
        if not self._other_terms:
            return found
        element = self._element_index[graph.numbers]
        others = predict(lambda graph: torch.stack([term(graph, element) for term in self._other_terms]).sum(0), graph, torch.float64)
        return added(found, others)

    def _network_and_repulsion(self, graph: Graph, features: bool) -> Prediction:
        """What `derivatives.assemble` makes of the slopes, faster."""
        (energies, g, found), (first, neighbour, edge_vec, _) = self._slopes(graph, features)
        shapes = (graph.num_structures,), (len(graph.numbers), 3), (graph.num_structures, 3, 3), (graph.num_centres, 3, 3)
        energy, forces, stress, stresses = sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        arrays = first, neighbour, edge_vec, g, energies, graph.structure, graph.cell.contiguous(), *sums
        self._library.assemble(graph.num_centres, *(x.data_ptr() for x in arrays))
        return Prediction(energies, energy, forces, stress, stresses, found)

    def _slopes(self, graph: Graph, features: bool) -> tuple[Slopes, tuple[Tensor, Tensor, Tensor, Tensor]]:
        element = self._element_index[graph.numbers]
        arrays = graph.first, graph.edge_index[1].contiguous(), graph.edge_vec.double().contiguous(), element
        energies, slopes, found = self._run(*arrays, graph.max_neighbors, features)
        return Slopes(energies, slopes, found - self.features_alone[element[: graph.num_centres]] if features else None), arrays

    def _run(
        self, first: Tensor, neighbour: Tensor, edge_vec: Tensor, element: Tensor, most: int, features: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_centres = len(first) - 1
        energies, slopes = torch.empty(num_centres, dtype=torch.float64), torch.empty_like(edge_vec)
        found = torch.empty(num_centres, self._num_features if features else 0, dtype=self._dtype)
        arrays = [x.data_ptr() for x in (first, neighbour, edge_vec, element, energies, slopes)]
        arrays.append(found.data_ptr() if features else 0)

        def part(start: int, end: int) -> None:
            self._library.evaluate(ctypes.addressof(self._model), self._memory_for(most).data_ptr(), most, start, end, *arrays)

        threads = max(min(torch.get_num_threads(), num_centres // ATOMS_PER_THREAD), 1)
        bounds = [num_centres * k // threads for k in range(threads + 1)]
        if threads == 1:
            part(0, num_centres)
        else:
            list(_pool().map(part, bounds[:-1], bounds[1:]))
        return energies, slopes, found

    def _memory_for(self, most: int) -> Tensor:
        """Room for the neighbours of a block of atoms, which a thread keeps: new pages are what a small molecule would wait for."""
        size = self._library.memory_for(most)
        if getattr(self._lent, "size", 0) < size:
            self._lent.memory, self._lent.size = torch.empty(size, dtype=torch.uint8, device="cpu"), size
        return cast(Tensor, self._lent.memory)

    def _hold(self, tensor: Tensor, dtype: torch.dtype = torch.float64) -> int:
        """Always a copy: what the model has, PyTorch moves into shared memory when it is sent to another process."""
        self._held.append(tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format))
        return self._held[-1].data_ptr()


@cache
def _pool() -> ThreadPoolExecutor:
    """Its threads are made as they are needed, and stay, with the memory that they hold."""
    return ThreadPoolExecutor(os.cpu_count(), "flashace")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not come along


_kernels: "WeakKeyDictionary[AttentionACE, CpuKernel]" = WeakKeyDictionary()


def kernel_of(model: AttentionACE) -> CpuKernel:
    """The kernel of a model, made once. Raises as `CpuKernel` does."""
    if model not in _kernels:
        _kernels[model] = CpuKernel(model)
    return _kernels[model]


def compile_command(march: str = "native") -> list[str]:
    """What compiles evaluate.c, but for source, layout.h and output. Raises FlashACEError without a compiler."""
    command = [find_compiler("C"), *FLAGS, f"-march={march}"]
    if platform.machine() in ("x86_64", "AMD64"):
        command.append("-mprefer-vector-width=512")
    return command


def sources() -> list[Path]:
    """evaluate.c and the headers that it includes."""
    return [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]


def _library(model: AttentionACE) -> ctypes.CDLL:
    """evaluate.c for the sizes of this model, compiled on this machine once and kept in the user's cache."""
    try:
        library = cached_library(compile_command(), sources(), "evaluate-{}.so", [processor()], {LAYOUT: c_header(model)})
        return _open(library)
    except FlashACEError as error:
        raise FlashACEError(f"kernel: {error}, or use the plain path") from error
    except OSError as error:
        raise FlashACEError(
            f"kernel: expected a folder to run compiled code from: {error}; set XDG_CACHE_HOME to another, or use the plain path"
        ) from error


def _open(library: Path) -> ctypes.CDLL:
    """With the types of what is called in it."""
    opened = ctypes.CDLL(str(library))
    for name, integers in (("evaluate", (2, 3, 4)), ("assemble", (0,))):  # which of their twelve arguments; the others are addresses
        getattr(opened, name).argtypes = [ctypes.c_int64 if i in integers else _POINTER for i in range(12)]
    opened.memory_for.argtypes, opened.memory_for.restype = [ctypes.c_int64], ctypes.c_int64
    return opened
