"""Model in; on a CPU, the same energies and slopes from compiled C out. `evaluate.c` is the other half of this file."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flashace.derivatives import Slopes
from flashace.errors import FlashACEError
from flashace.graph import Graph
from flashace.model import TRUSTED, AttentionACE
from flashace.nn.edge_functions import KNOTS, tabulate
from flashace.nn.layer import Layer
from flashace.nn.linear import Linear, TensorLinear
from flashace.nn.product import Contraction
from flashace.nn.readout import Readout

SOURCE = Path(__file__).with_name("evaluate.c")
# as -ffast-math, but numbers that are not finite stay what they are
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math"),
)
ATOMS_PER_THREAD = 64  # fewer are not worth a thread
MOST_FOR_TABLES = 1e9  # bytes; some 14 elements with the default sizes

_POINTER = ctypes.c_void_p


class _Layer(ctypes.Structure):
    """`Layer` of evaluate.c."""

    _fields_ = [
        (name, _POINTER)
        for name in (
            *("table", "query", "query_bias", "look", "mix_basis", "mix_scalars", "mix_scalars_bias", "mix_tensors", "path_weights"),
            *("scalars_out", "values_out", "tensors_out", "gate_and_value", "gate_and_value_bias", "out", "scale_scalars", "scale_tensors"),
            *("readout_linear", "readout_hidden", "readout_hidden_bias", "readout_out"),
        )
    ]


class CpuKernel:
    """`Graph` → energies, their slopes and last-layer features, as the model and autograd give them.

    Edge functions come from cubic splines (`tabulate`), which is the one approximation. The neighbours of 16 atoms are in memory at a time.
    Raises FlashACEError, with the reason, where the model is not on a CPU or C cannot be compiled.
    """

    def __init__(self, model: AttentionACE) -> None:
        if model.embedding.device.type != "cpu":
            raise FlashACEError(f"kernel: expected a model on a CPU, got one on {model.embedding.device}; use the plain path there")
        check_tables(model)
        self._library = _library(model)
        self._dtype, self._scale = model.dtype, model.scale
        self._atomic_energies, self._element_index = model.atomic_energies, model.element_index
        self._num_features = model.num_features
        self._held: list[Tensor] = []  # C knows their addresses alone
        self._model = self._packed(model)
        elements = torch.arange(len(model.e0))
        first = torch.zeros(len(elements) + 1, dtype=torch.int64)
        self._alone, _, _, self._features_alone = self._run(
            first, torch.zeros(0, 3, dtype=torch.float64), elements[:0].int(), elements, True
        )

    def __call__(self, graph: Graph, features: bool = False) -> Slopes:
        """Energies [C] eV, slopes [E, 3] eV/Å and, where asked for, features [C, D]."""
        num_centres = graph.num_centres
        element = self._element_index[graph.numbers]
        centre, neighbour = graph.edge_index
        pair = (element[centre] * len(self._alone) + element[neighbour]).int()
        own = element[:num_centres].contiguous()
        first = torch.searchsorted(centre, torch.arange(num_centres + 1))
        network, zbl, slopes, found = self._run(first, graph.edge_vec.double().contiguous(), pair, own, features)
        energies = self._atomic_energies[own] + self._scale * (network - self._alone[own]) + zbl
        return Slopes(energies, slopes, found - self._features_alone[own] if features else None)

    def _run(self, first: Tensor, edge_vec: Tensor, pair: Tensor, element: Tensor, features: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_atoms, width = len(element), self._num_features if features else 0
        network, zbl = torch.empty(2, num_atoms, dtype=torch.float64)
        slopes = torch.empty_like(edge_vec)
        found = torch.empty(num_atoms, width, dtype=self._dtype)
        most = int((first[1:] - first[:-1]).max()) if num_atoms else 0

        def part(start: int, end: int) -> None:
            if self._library.evaluate(
                ctypes.byref(self._model),
                ctypes.c_double(self._scale),
                ctypes.c_int64(end - start),
                ctypes.c_int64(most),
                _address(first[start:]),
                _address(edge_vec),
                _address(pair),
                _address(element[start:]),
                _address(network[start:]),
                _address(zbl[start:]),
                _address(slopes),
                _address(found[start:]) if features else None,
            ):
                raise MemoryError(f"no memory for the {most} neighbours of an atom")

        threads = max(min(torch.get_num_threads(), num_atoms // ATOMS_PER_THREAD), 1)
        bounds = [num_atoms * k // threads for k in range(threads + 1)]
        if threads == 1:
            part(0, num_atoms)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(part, bounds[:-1], bounds[1:]))
        return network, zbl, slopes, found

    def _packed(self, model: AttentionACE) -> ctypes.Structure:
        """The weights in the order in which C goes through them."""
        c, dtype = model.config, model.dtype
        packed = _model_struct(c.num_layers, c.correlation)()

        def hold(tensor: Tensor, dtype: torch.dtype = dtype) -> int:
            self._held.append(tensor.detach().to(dtype).contiguous())
            return self._held[-1].data_ptr()

        tables = [tabulate(cast(Layer, layer).edge_functions, model.radial_basis, c.r_max, c.envelope_exponent) for layer in model.layers]
        for layer, readout, target, table in zip(model.layers, model.readouts, packed.layers, tables, strict=True):
            for name, tensor in _layer_weights(cast(Layer, layer), cast(Readout, readout), c.heads, table).items():
                setattr(target, name, None if tensor is None else hold(tensor))
        packed.embedding, packed.knots, packed.r_max = hold(model.embedding), tables[0].shape[1], c.r_max
        packed.plain_scale = cast(Layer, model.layers[0]).attention.plain_scale
        orders = [_terms(cast(Contraction, order)) for order in cast(Layer, model.layers[0]).product.contractions]
        for i, (paths, _) in enumerate(orders, start=1):
            packed.terms[i] = len(paths)
        packed.term = hold(torch.cat([paths for paths, _ in orders] or [torch.zeros(0, 4)]), torch.int32)
        packed.coupling = hold(torch.cat([coupling for _, coupling in orders] or [torch.zeros(0)]))
        monomials, coefficients = model.harmonics.polynomials()
        packed.monomials, packed.harmonics = hold(monomials, torch.int32), hold(coefficients, torch.float64)
        if c.zbl:
            packed.shortest = hold(model.shortest, torch.float64)
        if model.repulsion is not None:
            for name in ("strength", "length", "end"):
                setattr(packed, f"zbl_{name}", hold(getattr(model.repulsion, name), torch.float64))
        return packed


_kernels: "WeakKeyDictionary[AttentionACE, CpuKernel]" = WeakKeyDictionary()


def kernel_of(model: AttentionACE) -> CpuKernel:
    """The kernel of a model, made once. Raises as `CpuKernel` does."""
    if model not in _kernels:
        _kernels[model] = CpuKernel(model)
    return _kernels[model]


def check_tables(model: AttentionACE) -> None:
    """Raises FlashACEError where the splines of all pairs of elements would not fit."""
    pairs, width = len(model.e0) ** 2, sum(cast(Layer, model.layers[0]).edge_functions.sizes)
    size = pairs * KNOTS * 4 * width * model.config.num_layers * model.embedding.element_size()
    if size > MOST_FOR_TABLES:
        raise FlashACEError(
            f"kernel: the splines of {pairs} pairs of elements would take {size / 1e9:.1f} GB, more than {MOST_FOR_TABLES / 1e9:g}; "
            "use the plain path, or a model of fewer elements"
        )


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return _POINTER(tensor.data_ptr())


def _model_struct(num_layers: int, correlation: int) -> type[ctypes.Structure]:
    """`Model` of evaluate.c."""
    names = "term coupling monomials harmonics shortest zbl_strength zbl_length zbl_end"
    fields: Sequence[tuple[str, Any]] = [
        ("layers", _Layer * num_layers),
        ("embedding", _POINTER),
        ("knots", ctypes.c_int64),
        ("r_max", ctypes.c_double),
        ("plain_scale", ctypes.c_double),
        ("terms", ctypes.c_int64 * correlation),
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


def _matrix(linear: Linear) -> Tensor:
    return linear.weight.movedim(0, 1).flatten(1)


def _stack(linear: TensorLinear) -> Tensor:
    return torch.stack(list(linear.weights))


def _terms(order: Contraction) -> tuple[Tensor, Tensor]:
    """Nonzero Clebsch-Gordan coefficients [n] and, for each, path, component of a, component of b and component of the result [n, 4]."""
    row, product = order.coupling.nonzero(as_tuple=True)
    size = order.collect.shape[0]
    target = order.collect.argmax(0)
    return torch.stack([order.path_of_row[row], product // size, product % size, target[row]], dim=1), order.coupling[row, product]


def _library(model: AttentionACE) -> ctypes.CDLL:
    """evaluate.c for the sizes of this model, compiled on this machine once and kept in the user's cache."""
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
    compiler = next((found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise FlashACEError("kernel: expected a C compiler (CC, cc, gcc or clang), found none; install one, or use the plain path")
    command = [compiler, *FLAGS, *(f"-D{name}={value}" for name, value in sizes.items())]
    if platform.machine() in ("x86_64", "AMD64"):
        command.append("-mprefer-vector-width=512")
    try:
        made_of = "\0".join([*command, SOURCE.read_text(), _processor(), _version(compiler)])
        library = _cache() / f"evaluate-{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.so"
        if not library.is_file():
            _compile([*command, str(SOURCE), "-lm"], library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise FlashACEError(
            f"kernel: expected a C compiler and a folder to write to and to run from, got {compiler} and {_cache()}: {error}; "
            "set CC, or XDG_CACHE_HOME, to another, or use the plain path"
        ) from error


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashace"
    except RuntimeError as error:  # a user without a home
        raise FlashACEError(f"kernel: {error} Set XDG_CACHE_HOME to a folder to write to, or use the plain path") from error


def _compile(command: Sequence[str], library: Path) -> None:
    """Into a folder of its own first: others may be looking for the same file."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        fresh = Path(scratch) / library.name
        done = subprocess.run([*command, "-o", str(fresh)], capture_output=True, text=True)
        if done.returncode:
            raise FlashACEError(f"kernel: {command[0]} could not compile {SOURCE}: {done.stderr[-500:].strip()}; use the plain path")
        fresh.replace(library)


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def _processor() -> str:
    """What tells one kind of processor from another: code for this one may not run on another that shares the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
