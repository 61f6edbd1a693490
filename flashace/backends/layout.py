"""Model in; what compiled kernels read of it out: sizes, numbers and weights, in which order, with which axes. No layout stands elsewhere.

From the rows of `LAYER` and `MODEL` come the structs of C (`c_header`) and of ctypes (`structures`) and the packing of weights (`pack`);
from `COLUMNS` come the offsets in a row of curves, in C and in Triton (`with_offsets`). Fields have the names of the parts of nn/.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flashace.backends.splines import Splines
from flashace.nn.edge_functions import EdgeFeatures
from flashace.nn.layer import Layer
from flashace.nn.product import Contraction
from flashace.nn.readout import Readout
from flashace.potential.model import TRUSTED, AttentionACE

# What an edge contributes, side by side in the rows of the table, in this order; values have their heads last (`tabulate`).
COLUMNS = dict(zip(EdgeFeatures._fields, ("D", "LM H", "V H", "DEGREES K"), strict=True))


class Row(NamedTuple):
    """A field of a struct."""

    name: str
    kind: str  # in C: real (the precision of the model), double, int32_t or int64_t
    axes: str  # in memory, the last is the fastest; none where the number itself stands in the struct
    of: Callable[[Any], Any]  # `Block` or `Whole` -> number, tensor or tensors one after the other; None, or none of them, is NULL in C
    note: str = ""
    stored: str = ""  # the axes in torch, where they are others
    later: bool = False  # not in the first layer, which has no tensors and gets its queries by element


class Block(NamedTuple):
    """What the fields of a layer are made of."""

    layer: Layer
    readout: Readout
    table: Tensor
    is_first: bool


class Whole(NamedTuple):
    """What the fields of the model are made of, but for its layers."""

    model: AttentionACE
    splines: Splines

    @property
    def first(self) -> Layer:
        """Whose constants are those of all layers."""
        return cast(Layer, self.model.layers[0])

    @property
    def orders(self) -> list[Contraction]:
        """Of the products."""
        return contractions_of(self.first)


LAYER = (
    Row("table", "real", "S S COEFFICIENTS 2 W", lambda b: b.table, "of B-splines, and the step from each to the next (`tabulate`)"),
    Row("query", "real", "F D H", lambda b: b.layer.attention.query.weight, stored="H F D", later=True),
    Row("query_bias", "real", "D H", lambda b: b.layer.attention.query.bias, stored="H D", later=True),
    Row("direction_query", "real", "LM K H", lambda b: b.layer.attention.direction_query.weights, "gives the looks", later=True),
    Row("mix_basis", "real", "DEGREES 2 K K", lambda b: b.layer.mix_basis.weights, "attended and plain"),
    Row("mix_scalars", "real", "F K", lambda b: b.layer.mix_scalars.weight),
    Row("mix_scalars_bias", "real", "K", lambda b: b.layer.mix_scalars.bias),
    Row("mix_tensors", "real", "LM K K", lambda b: b.layer.mix_tensors.weights, later=True),
    Row("path_weights", "real", "PATHS K", lambda b: [order.weight for order in contractions_of(b.layer)], "all orders in turn"),
    Row("scalars_out", "real", "NU K F", lambda b: b.layer.scalars_out.weight),
    Row("values_out", "real", "V H F", lambda b: b.layer.values_out.weight, stored="H V F"),
    Row("tensors_out", "real", "LM NU K K", lambda b: b.layer.tensors_out.weights),
    Row("gate_and_value", "real", "X 2 F", lambda b: b.layer.feed_forward.gate_and_value.weight, stored="2 X F"),
    Row("gate_and_value_bias", "real", "2 F", lambda b: b.layer.feed_forward.gate_and_value.bias),
    Row("out", "real", "F X", lambda b: b.layer.feed_forward.out.weight),
    Row("scale_scalars", "real", "2 F", lambda b: b.layer.scale_scalars),
    Row("scale_tensors", "real", "2 K", lambda b: b.layer.scale_tensors),
    Row("readout_linear", "real", "F", lambda b: b.readout.linear.weight),
    Row("readout_hidden", "real", "F RW", lambda b: b.readout.hidden.weight),
    Row("readout_hidden_bias", "real", "RW", lambda b: b.readout.hidden.bias),
    Row("readout_out", "real", "RW", lambda b: b.readout.out.weight),
)

MODEL = (
    Row("embedding", "real", "S F", lambda w: w.model.embedding),
    Row("element_query", "real", "S D H", lambda w: w.first.attention.query(w.model.embedding), "of the first layer", stored="S H D"),
    Row("elements", "int64_t", "", lambda w: len(w.model.e0), "S"),
    Row("intervals", "int64_t", "", lambda w: w.splines.intervals, "of the splines, from 0 to r_max"),
    Row("coefficients", "int64_t", "", lambda w: w.splines.tables[0].shape[1], "of a spline"),
    Row("r_max", "double", "", lambda w: w.model.config.r_max, "A"),
    Row("plain_scale", "double", "", lambda w: w.first.attention.plain_scale),
    Row("own_weight", "double", "", lambda w: w.first.attention.own_weight, "what an atom weighs beside its neighbours"),
    Row("per_basis", "double", "", lambda w: w.first.limits.basis**-2, "1 / limit^2 of nn/bounds.py, 0 where nothing is bounded"),
    Row("per_product", "double", "", lambda w: w.first.limits.product**-2),
    Row("per_feed_forward", "double", "", lambda w: w.first.limits.feed_forward**-2),
    Row("start", "int64_t", "NU", lambda w: ends_of(w.orders), "the terms of order o + 1 stand from start[o - 1] to before start[o]"),
    Row("term", "int32_t", "TERMS 4", lambda w: paths_and_components(w.orders), "path, counted through all orders, i, j, m"),
    Row("coupling", "real", "TERMS", lambda w: [couplings_of(order).coefficient for order in w.orders]),
    Row("monomials", "int32_t", "MONOMIALS 3", lambda w: w.model.harmonics.polynomials()[0], "powers of x, y, z; all degrees in turn"),
    Row("harmonics", "double", "POLYNOMIALS", lambda w: w.model.harmonics.polynomials()[1], "per degree [monomials, 2l+1]"),
    Row("shortest", "double", "S S", lambda w: w.model.shortest if w.model.config.zbl else None, "A; NULL without ZBL, as the next three"),
    Row("zbl_strength", "double", "S S", lambda w: w.model.repulsion and w.model.repulsion.strength, "eV A"),
    Row("zbl_length", "double", "S S", lambda w: w.model.repulsion and w.model.repulsion.length, "A"),
    Row("zbl_end", "double", "S S", lambda w: w.model.repulsion and w.model.repulsion.end, "A"),
    Row("scale", "double", "", lambda w: w.model.scale, "eV"),
    Row("per_energy", "double", "", lambda w: 1 / w.model.energy_bound, "1/eV"),
    Row("e0", "double", "S", lambda w: w.model.atomic_energies, "eV"),
    Row("alone", "double", "S", lambda w: 0 * w.model.atomic_energies, "what the network gives for an atom alone; backend.py asks it"),
)


def sizes_of(model: AttentionACE) -> dict[str, int]:
    """All that the compiler knows; the number S of elements, and what depends on it, it does not know."""
    c = model.config
    sizes = {
        "F": c.hidden_dim,
        "K": c.num_channels,
        "H": c.heads,
        "V": c.hidden_dim // c.heads,  # values of a head
        "D": c.key_dim,
        "LM": c.l_max,
        "NU": c.correlation,
        "P": c.num_layers,
        "RW": cast(Readout, model.readouts[0]).hidden.weight.shape[-1],
        "X": c.hidden_dim + c.l_max * c.num_channels,  # invariants
        "ENVELOPE": c.envelope_exponent,
    }
    return with_offsets(sizes)


def with_offsets(sizes: Mapping[str, int]) -> dict[str, int]:
    """Also the numbers of degrees, components L and tensor components T; where each of `COLUMNS` begins, and the width W of all."""
    found = {**sizes, "DEGREES": sizes["LM"] + 1, "L": (sizes["LM"] + 1) ** 2, "T": (sizes["LM"] + 1) ** 2 - 1, "W": 0}
    for name, axes in COLUMNS.items():
        found[f"AT_{name.upper()}"] = found["W"]
        found["W"] += torch.Size(_shape(axes, found)).numel()
    return found


def split_columns(table: Tensor, sizes: Mapping[str, int]) -> list[Tensor]:
    """[..., W] -> one tensor for each of `COLUMNS`, with the axes that it has there."""
    shapes = [_shape(axes, sizes) for axes in COLUMNS.values()]
    parts = table.split([torch.Size(shape).numel() for shape in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


# C


def c_header(model: AttentionACE) -> str:
    """layout.h: the sizes as constants, which no header of the system can meet as macros, and the structs."""
    layer, whole = structures(model.config.num_layers)
    sizes = ", ".join(f"{name} = {size}" for name, size in sizes_of(model).items())
    lines = (
        "/* Written by layout.py for the sizes of a model. */",
        f"typedef {'float' if model.dtype == torch.float32 else 'double'} real;",
        f"enum {{ {sizes} }};",
        f"static const double TRUSTED = {TRUSTED.hex()}; /* potential/model.py */",
        *("typedef struct {", *map(_declaration, LAYER), "} Layer;"),
        *("typedef struct {", "    Layer layers[P];", *map(_declaration, MODEL), "} Model;"),
        f'_Static_assert(sizeof(Layer) == {ctypes.sizeof(layer)} && sizeof(Model) == {ctypes.sizeof(whole)}, "as ctypes lays them out");',
    )
    return "\n".join(lines) + "\n"


def _declaration(row: Row) -> str:
    declared = f"const {row.kind} *{row.name};" if row.axes else f"{row.kind} {row.name};"
    notes = [f"[{', '.join(row.axes.split())}]"] * bool(row.axes) + [row.note] * bool(row.note) + ["NULL in the first layer"] * row.later
    return f"    {declared}" + (f" /* {'; '.join(notes)} */" if notes else "")


def structures(num_layers: int) -> tuple[type[ctypes.Structure], type[ctypes.Structure]]:
    """`Layer` and `Model` of C."""
    layer: Any = type("Layer", (ctypes.Structure,), {"_fields_": [_field(row) for row in LAYER]})
    return layer, type("Model", (ctypes.Structure,), {"_fields_": [("layers", layer * num_layers), *map(_field, MODEL)]})


def _field(row: Row) -> tuple[str, Any]:
    return row.name, ctypes.c_void_p if row.axes else {"int64_t": ctypes.c_int64, "double": ctypes.c_double}[row.kind]


def pack(model: AttentionACE, splines: Splines, hold: Callable[[Tensor, torch.dtype], int]) -> ctypes.Structure:
    """A `Model` of C with the weights of this model. `hold` keeps a contiguous copy of a tensor and tells its address."""
    packed = structures(model.config.num_layers)[1]()
    sizes = {**sizes_of(model), "S": len(model.e0)}
    dtypes = {"real": model.dtype, "double": torch.float64, "int32_t": torch.int32, "int64_t": torch.int64}

    def fill(struct: Any, rows: Sequence[Row], source: Block | Whole) -> None:
        for row in rows:
            value = None if row.later and cast(Block, source).is_first else row.of(source)
            if row.axes:
                value = None if value is None or not len(value) else hold(_arranged(value, row, sizes), dtypes[row.kind])
            setattr(struct, row.name, value)

    parts = zip(packed.layers, model.layers, model.readouts, splines.tables, strict=True)
    for p, (struct, layer, readout, table) in enumerate(parts):
        fill(struct, LAYER, Block(cast(Layer, layer), cast(Readout, readout), table, p == 0))
    fill(packed, MODEL, Whole(model, splines))
    return packed


def _arranged(value: Any, row: Row, sizes: Mapping[str, int]) -> Tensor:
    """With the axes of its row, in their order."""
    stored, axes = (row.stored or row.axes), row.axes.split()
    tensor = value if isinstance(value, Tensor) else torch.cat(list(value))
    tensor = tensor.detach().reshape(_shape(stored, sizes))
    return tensor.permute([stored.split().index(axis) for axis in axes]) if row.stored else tensor


def _shape(axes: str, sizes: Mapping[str, int]) -> list[int]:
    """A size that nobody has told is whatever is left."""
    return [int(axis) if axis.isdigit() else sizes.get(axis, -1) for axis in axes.split()]


# Products


class Couplings(NamedTuple):
    """x_m = Σ c w_path a_i b_j over the n nonzero Clebsch-Gordan coefficients of one order; [n] each."""

    path: Tensor
    i: Tensor
    j: Tensor
    m: Tensor
    coefficient: Tensor


def couplings_of(order: Contraction) -> Couplings:
    """Of the rows of its matrix in turn."""
    row, product = order.coupling.nonzero(as_tuple=True)
    size, target = order.collect.shape[0], order.collect.argmax(0)
    return Couplings(order.path_of_row[row], product // size, product % size, target[row], order.coupling[row, product])


def contractions_of(layer: Layer) -> list[Contraction]:
    """Of the orders of its products from the second on."""
    return [cast(Contraction, order) for order in layer.product.contractions]


def paths_and_components(orders: Sequence[Contraction]) -> list[Tensor]:
    """[n, 4] for each order: path, counted through all orders, i, j and m."""
    found, paths = [], 0
    for order in orders:
        path, i, j, m, _ = couplings_of(order)
        found.append(torch.stack([paths + path, i, j, m], dim=1))
        paths += len(order.weight)
    return found


def ends_of(orders: Sequence[Contraction]) -> Tensor:
    """[NU]: where the terms of each order end, from the first on, which has none."""
    return torch.tensor([0, *(len(couplings_of(order).path) for order in orders)]).cumsum(0)
