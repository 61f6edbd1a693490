"""Model in; on a CPU, the same energies and slopes from compiled C out. `evaluate.c` is the other half of this file."""

import copy
import ctypes
import os
import platform
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flashace.backends.backend import Backend
from flashace.backends.compiler import cached_library, find_compiler, processor
from flashace.backends.splines import splines_of
from flashace.backends.trial import check_kernel
from flashace.errors import FlashACEError
from flashace.nn.layer import Layer
from flashace.nn.linear import Linear, TensorLinear
from flashace.nn.product import Contraction
from flashace.nn.readout import Readout
from flashace.potential.derivatives import Prediction, Slopes, added, predict
from flashace.potential.model import TRUSTED, AttentionACE
from flashace.potential.repulsion import Repulsion
from flashace.potential.term import Term
from flashace.structure.graph import Graph

SOURCE = Path(__file__).with_name("evaluate.c")
# as -ffast-math, but numbers that are not finite stay what they are
FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math"),
)
ATOMS_PER_THREAD = 64  # fewer are not worth a thread
ALIGNMENT = 64  # bytes

_POINTER = ctypes.c_void_p
_LIMITS = "per_basis", "per_product", "per_feed_forward"  # in the order of `Limits`


class _Layer(ctypes.Structure):
    """`Layer` of evaluate.c."""

    _fields_ = [
        (name, _POINTER)
        for name in (
            *("table", "query", "query_bias", "look"),
            *("mix_basis", "mix_scalars", "mix_scalars_bias", "mix_tensors", "path_weights"),
            *("scalars_out", "values_out", "tensors_out", "gate_and_value", "gate_and_value_bias", "out", "scale_scalars", "scale_tensors"),
            *("readout_linear", "readout_hidden", "readout_hidden_bias", "readout_out"),
        )
    ]


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
        self._model = self._packed(model)
        elements = torch.arange(len(model.e0))
        edges = torch.zeros(len(elements) + 1, dtype=torch.int64), elements[:0], torch.zeros(0, 3, dtype=torch.float64)
        alone, _, self._features_alone = self._run(*edges, elements, 1, True)
        self._model.alone, self._model.e0, self._model.scale = self._hold(alone), self._hold(model.atomic_energies), model.scale
        self._model.per_energy = 1 / model.energy_bound
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
        return Slopes(energies, slopes, found - self._features_alone[element[: graph.num_centres]] if features else None), arrays

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

    def _packed(self, model: AttentionACE) -> ctypes.Structure:
        """The weights in the order in which C goes through them."""
        c, dtype = model.config, model.dtype
        packed = _model_struct(c.num_layers, c.correlation)()

        def hold(tensor: Tensor, dtype: torch.dtype = dtype) -> int:
            return self._hold(tensor, dtype)

        tables = splines_of(model).tables
        for layer, readout, target, table in zip(model.layers, model.readouts, packed.layers, tables, strict=True):
            for name, tensor in _layer_weights(cast(Layer, layer), cast(Readout, readout), c.heads, table).items():
                setattr(target, name, None if tensor is None else hold(tensor))
        packed.layers[0].query = hold(_queries(model))
        packed.embedding, packed.knots, packed.r_max = hold(model.embedding), tables[0].shape[1] - 5, c.r_max
        none = torch.zeros(len(model.e0))  # as long as it is not known what the network gives for an atom alone
        packed.elements, packed.e0, packed.alone, packed.scale = len(none), hold(none, torch.float64), hold(none, torch.float64), 1.0
        first = cast(Layer, model.layers[0])
        packed.plain_scale, packed.own_weight = first.attention.plain_scale, first.attention.own_weight
        for name, limit in zip(_LIMITS, first.limits, strict=True):
            setattr(packed, name, limit**-2)
        terms, coupling, ends = _terms([cast(Contraction, order) for order in first.product.contractions])
        packed.start[:] = [0, *ends]
        packed.term, packed.coupling = hold(terms, torch.int32), hold(coupling)
        monomials, coefficients = model.harmonics.polynomials()
        packed.monomials, packed.harmonics = hold(monomials, torch.int32), hold(coefficients, torch.float64)
        if c.zbl:
            packed.shortest = hold(model.shortest, torch.float64)
        if model.repulsion is not None:
            for name in ("strength", "length", "end"):
                setattr(packed, f"zbl_{name}", hold(getattr(model.repulsion, name), torch.float64))
        return packed


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


def _model_struct(num_layers: int, correlation: int) -> type[ctypes.Structure]:
    """`Model` of evaluate.c."""
    names = "term coupling monomials harmonics shortest zbl_strength zbl_length zbl_end"
    fields: Sequence[tuple[str, Any]] = [
        ("layers", _Layer * num_layers),
        ("embedding", _POINTER),
        ("elements", ctypes.c_int64),
        ("e0", _POINTER),
        ("alone", _POINTER),
        ("scale", ctypes.c_double),
        ("knots", ctypes.c_int64),
        ("r_max", ctypes.c_double),
        *((name, ctypes.c_double) for name in ("plain_scale", "own_weight", *_LIMITS, "per_energy")),
        ("start", ctypes.c_int64 * correlation),
        *((name, _POINTER) for name in names.split()),
    ]
    return type("_Model", (ctypes.Structure,), {"_fields_": fields})


def _layer_weights(layer: Layer, readout: Readout, heads: int, table: Tensor) -> dict[str, Tensor | None]:
    attention, feed_forward = layer.attention, layer.feed_forward
    look = None if layer.mix_tensors is None or attention.direction_query is None else _stack(attention.direction_query)
    path_weights: list[Tensor] = [cast(Contraction, order).weight for order in layer.product.contractions]
    # values go through the vector lanes head by head: [V, H] instead of [H, V]
    values_out = _matrix(layer.values_out).unflatten(0, (heads, -1)).transpose(0, 1).flatten(0, 1)
    return {
        "table": table,
        "query": attention.query.weight.permute(1, 2, 0).flatten(1),
        "query_bias": cast(Tensor, attention.query.bias).unflatten(0, (heads, -1)).T,
        "look": look,
        "mix_basis": _stack(layer.mix_basis),
        "mix_scalars": _matrix(layer.mix_scalars),
        "mix_scalars_bias": layer.mix_scalars.bias,
        "mix_tensors": None if layer.mix_tensors is None else _stack(layer.mix_tensors),
        "path_weights": torch.cat(path_weights) if path_weights else None,
        "scalars_out": _matrix(layer.scalars_out),
        "values_out": values_out,
        "tensors_out": _stack(layer.tensors_out),
        "gate_and_value": _matrix(feed_forward.gate_and_value),
        "gate_and_value_bias": feed_forward.gate_and_value.bias,
        "out": _matrix(feed_forward.out),
        "scale_scalars": layer.scale_scalars,
        "scale_tensors": layer.scale_tensors,
        "readout_linear": readout.linear.weight,
        "readout_hidden": _matrix(readout.hidden),
        "readout_hidden_bias": readout.hidden.bias,
        "readout_out": readout.out.weight,
    }


def _queries(model: AttentionACE) -> Tensor:
    """[elements, D, H] of the first layer, whose state is that of the element."""
    attention = cast(Layer, model.layers[0]).attention
    return attention.query(model.embedding).unflatten(-1, (model.config.heads, -1)).mT


def _matrix(linear: Linear) -> Tensor:
    return linear.weight.movedim(0, 1).flatten(1)


def _stack(linear: TensorLinear) -> Tensor:
    return torch.stack(list(linear.weights))


def _terms(orders: Sequence[Contraction]) -> tuple[Tensor, Tensor, list[int]]:
    """For each nonzero Clebsch-Gordan coefficient of all orders: path, component of a, component of b and component of the result [n, 4].

    Also the coefficients [n], and where each order ends.
    """
    terms, couplings, ends, paths = [torch.zeros(0, 4)], [torch.zeros(0)], [], 0
    for order in orders:
        row, product = order.coupling.nonzero(as_tuple=True)
        size, target = order.collect.shape[0], order.collect.argmax(0)
        terms.append(torch.stack([paths + order.path_of_row[row], product // size, product % size, target[row]], dim=1))
        couplings.append(order.coupling[row, product])
        ends.append(sum(map(len, couplings)))
        paths += len(order.weight)
    return torch.cat(terms), torch.cat(couplings), ends


def compile_command(model: AttentionACE, march: str = "native") -> list[str]:
    """What compiles evaluate.c for the sizes of this model, but for source and output. Raises FlashACEError without a compiler."""
    c = model.config
    sizes = {
        "REAL": "float" if model.dtype == torch.float32 else "double",
        "F": c.hidden_dim,
        "K": c.num_channels,
        "H": c.heads,
        "D": c.key_dim,
        "LM": c.l_max,
        "NU": c.correlation,
        "P": c.num_layers,
        "RW": cast(Readout, model.readouts[0]).hidden.weight.shape[-1],
        "TRUSTED": TRUSTED,
        "ENVELOPE": c.envelope_exponent,
    }
    command = [find_compiler("C"), *FLAGS, f"-march={march}", *(f"-D{name}={value}" for name, value in sizes.items())]
    if platform.machine() in ("x86_64", "AMD64"):
        command.append("-mprefer-vector-width=512")
    return command


def _library(model: AttentionACE) -> ctypes.CDLL:
    """evaluate.c for the sizes of this model, compiled on this machine once and kept in the user's cache."""
    try:
        library = cached_library(compile_command(model), [SOURCE], "evaluate-{}.so", [processor()])
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
