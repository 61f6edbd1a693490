"""Model on a GPU in; its network with attention and products fused by Triton out. The linear maps between them stay those of the model.

Nothing of size edges × channels reaches the memory: a program goes through the neighbours of its atom some at a time, makes what they
contribute from splines and keeps sums. Scores are weighed on the way, with the largest so far as the shift (Milakov and Gimelshein,
arXiv:1805.02867); backwards, the weights come from the logarithm of the denominator that the way forwards left behind (Dao et al.,
arXiv:2205.14135).
"""

import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary, proxy

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from triton.errors import TritonError

from flashace.backends.backend import Backend
from flashace.backends.layout import couplings_of, sizes_of, split_columns, with_offsets
from flashace.backends.splines import DEGREE, splines_of
from flashace.backends.trial import check_kernel
from flashace.backends.triton.programs import attend, attend_back, contract
from flashace.errors import FlashACEError
from flashace.nn.attention import NeighbourAttention
from flashace.nn.bounds import bounded
from flashace.nn.layer import Layer
from flashace.nn.product import Contraction
from flashace.nn.readout import Readout
from flashace.potential.derivatives import Prediction, predict
from flashace.potential.model import AttentionACE
from flashace.structure.graph import Graph
from flashace.surroundings import exact_products

TILE = 64  # numbers that one warp holds side by side, neighbours (or atoms) × channels: 128 do not fit into the registers of an H100


class CudaKernel(Backend):
    """The `Interaction` of a model, to be handed to it: `model(graph, kernel)`. Energies then carry slopes along the edge vectors.

    Edge functions come from splines (`splines_of`), which is the one approximation. Once differentiable, and not along the weights:
    for inference. On a CPU it runs in Triton's interpreter (TRITON_INTERPRET=1), for tests.
    Raises FlashACEError, with the reason, where the model is not on a GPU, the kernels cannot be compiled, or give something else than the
    plain path.
    """

    def __init__(self, model: AttentionACE) -> None:
        device = model.embedding.device
        if device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise FlashACEError(f"kernel: expected a model on a CUDA device, got one on {device}; use the plain path there")
        self.device = device
        self.model = cast(AttentionACE, proxy(model))  # the cache of `kernel_of` lets go of models
        layers = [cast(Layer, layer) for layer in model.layers]
        self._attentions = [FusedAttention(model, layer, table) for layer, table in zip(layers, splines_of(model).tables, strict=True)]
        self._products = [fused_product(layer) for layer in layers]
        self._try(model)

    def __call__(self, graph: Graph, element: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Energies [C + S] of the centres and of one atom without neighbours per element, and what each readout read."""
        model, centre, num_elements = self.model, graph.edge_index[0], len(self.model.e0)
        own, neighbour = element[: graph.num_centres], element[graph.edge_index[1]]
        pair = element[centre] * num_elements + neighbour
        r, Y, envelope = model.geometry(graph.edge_vec, model.shortest.flatten()[pair] if model.config.zbl else None)
        own = torch.cat([own, torch.arange(num_elements, device=own.device)])
        first = torch.cat([graph.first, graph.first[-1:].expand(num_elements)])  # atoms without neighbours end where they begin
        edges = Edges(first, pair.int(), r.contiguous(), envelope.contiguous(), Y.contiguous())
        s, t = model.embedding.detach()[own], None
        energy, states = torch.zeros_like(s[:, 0]), []
        for layer, readout, attention, product in zip(model.layers, model.readouts, self._attentions, self._products, strict=True):
            s, t = cast(Layer, layer).update(s, t, *attention(s, t, edges), product)
            energy = energy + cast(Readout, readout)(s)
            states.append(s)
        return energy, states

    def evaluate(self, graph: Graph, features: bool = False) -> Prediction:
        model = partial(self.model.with_features if features else self.model, interaction=self)
        with exact_products():
            return predict(model, graph, self.model.dtype)

    def _try(self, model: AttentionACE) -> None:
        """Everything is compiled here, at a few atoms, and compared with the plain path."""
        try:
            check_kernel(model, self.evaluate)
        except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise FlashACEError(
                f"kernel: Triton {triton.__version__} could not compile for {model.embedding.device}: {str(error).strip()[-500:]}; "
                "use the plain path"
            ) from error


_kernels: "WeakKeyDictionary[AttentionACE, CudaKernel]" = WeakKeyDictionary()


def kernel_of(model: AttentionACE) -> CudaKernel:
    """The kernel of a model, made once. Raises as `CudaKernel` does."""
    if model not in _kernels:
        _kernels[model] = CudaKernel(model)
    return _kernels[model]


class Edges(NamedTuple):
    """N atoms, E edges, those of atom i from first[i] to before first[i + 1]."""

    first: Tensor  # [N + 1]
    pair: Tensor  # [E], which of the S² pairs of elements
    r: Tensor  # [E], as the network sees it
    envelope: Tensor  # [E]
    Y: Tensor  # [E, (l_max+1)²]


class FusedAttention:
    """`EdgeFunctions` and `NeighbourAttention` of a layer in one step: state and edges in, what the attention returns out.

    Every channel gets a head of its own: where heads serve several channels, queries are repeated, and the values of a head are shared out
    among its channels (and filled up with zeros where that does not come out even).
    """

    def __init__(self, model: AttentionACE, layer: Layer, table: Tensor) -> None:
        c = model.config
        self._attention: NeighbourAttention = layer.attention
        self._heads, self._repeats = c.heads, c.num_channels // c.heads
        self._per_head = c.hidden_dim // c.heads
        self._values = -(-self._per_head // self._repeats)  # of a channel
        self._table = self._per_channel(table, sizes_of(model)).to(model.embedding).contiguous()
        self._sizes = {
            **program_sizes(c.num_channels, self._values, c.key_dim, c.l_max),
            "COEFFICIENTS": table.shape[1],
            "INTERVALS": table.shape[1] - DEGREE,
            "R_MAX": c.r_max,
            "PLAIN_SCALE": self._attention.plain_scale,
            **_tile(c.num_channels),
        }

    def _per_channel(self, table: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """The same table for one head per channel, with V values each: `COLUMNS` with the sizes of `program_sizes`."""
        keys, direction_keys, values, radial = split_columns(table, sizes)
        direction_keys = direction_keys.repeat_interleave(self._repeats, dim=-1)
        values = pad(values.mT, (0, self._missing))  # [..., heads, of a head]
        values = values.unflatten(-1, (self._repeats, self._values)).flatten(-3, -2).mT
        return torch.cat([keys, *(part.flatten(-2) for part in (direction_keys, values, radial))], dim=-1)

    @property
    def _missing(self) -> int:
        """Zeros among the values of a head."""
        return self._repeats * self._values - self._per_head

    def __call__(self, s: Tensor, t: Tensor | None, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        """s [N, hidden_dim], t [N, (l_max+1)² - 1, K] or None -> attended values [N, hidden_dim], attended and plain basis [N, L, K]."""
        attention = self._attention
        query = attention.query(s).unflatten(-1, (self._heads, -1)).mT.repeat_interleave(self._repeats, dim=-1)
        look = None
        if attention.direction_query is not None and t is not None:
            look = attention.direction_query(t).repeat_interleave(self._repeats, dim=-1).contiguous()
        values, attended, plain = _Attend.apply(query.contiguous(), look, *edges[2:], edges, self._table, attention.own_weight, self._sizes)
        values = values.mT.flatten(1).unflatten(1, (self._heads, -1))[:, :, : self._per_head].flatten(1)
        return values, attended, plain


def program_sizes(num_channels: int, values: int, key_dim: int, l_max: int) -> dict[str, int]:
    """What the programs of the attention are compiled for: every channel has a head of its own, with so many values."""
    sizes = with_offsets({"K": num_channels, "H": num_channels, "V": values, "D": key_dim, "LM": l_max})
    return {name: size for name, size in sizes.items() if name != "H"}


def _tile(num_channels: int) -> dict[str, int]:
    """Channels in the lanes, filled up to a power of two, and as many rows as fit beside each other."""
    lanes = triton.next_power_of_2(num_channels)
    return {"LANES": lanes, "ROWS": max(1, min(TILE // lanes, 32))}


class _Attend(torch.autograd.Function):
    """query [N, D, K], look [N, L - 1, K] or None -> attended values [N, V, K], attended and plain basis [N, L, K]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        look: Tensor | None,
        r: Tensor,
        envelope: Tensor,
        Y: Tensor,
        edges: Edges,
        table: Tensor,
        own_weight: float,
        sizes: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_atoms, num_channels = len(query), sizes["K"]
        values = query.new_empty(num_atoms, sizes["V"], num_channels)
        attended, plain = query.new_empty(2, num_atoms, Y.shape[-1], num_channels)
        log_sum = query.new_empty(num_atoms, num_channels)
        inputs = (query, query if look is None else look, r, envelope, Y, edges.pair, edges.first, table)
        with torch.cuda.device_of(query):
            found = values, attended, plain, log_sum
            attend[(num_atoms,)](*inputs, *found, LOOKS=look is not None, OWN_WEIGHT=own_weight, num_warps=1, **sizes)
        ctx.save_for_backward(*inputs, values, attended, log_sum)
        ctx.looks, ctx.sizes = look is not None, sizes
        return values, attended, plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_values: Tensor, g_attended: Tensor, g_plain: Tensor) -> tuple[Tensor | None, ...]:
        query, look, r, envelope, Y = ctx.saved_tensors[:5]
        queries = ctx.needs_input_grad[0]  # not in the first layer
        g_query, g_look = torch.empty_like(query) if queries else None, torch.empty_like(look) if ctx.looks else None
        g_r, g_envelope, g_Y = torch.empty_like(r), torch.empty_like(envelope), torch.empty_like(Y)
        slopes = [x.contiguous() for x in (g_values, g_attended, g_plain)]
        found = (query if g_query is None else g_query, query if g_look is None else g_look, g_r, g_envelope, g_Y)
        with torch.cuda.device_of(query):
            attend_back[(len(query),)](*ctx.saved_tensors, *slopes, *found, LOOKS=ctx.looks, QUERIES=queries, num_warps=1, **ctx.sizes)
        return g_query, g_look, g_r, g_envelope, g_Y, None, None, None, None


class Terms(NamedTuple):
    """x_m = Σ c w_path y_i z_j over n terms, those of component m from first[m] to before first[m + 1]."""

    first: Tensor  # [L + 1]
    factors: Tensor  # [n, 3]: i, j, path
    coefficient: Tensor  # [n]


def fused_product(layer: Layer) -> Callable[[Tensor], Tensor]:
    """The product basis of a layer, with each order in one step, forwards and backwards."""
    contractions = [cast(Contraction, contraction) for contraction in layer.product.contractions]
    orders = [(contraction.weight.detach().contiguous(), terms_of(contraction)) for contraction in contractions]

    def product(A: Tensor) -> Tensor:
        A = A.contiguous()
        found = [A]
        for weight, terms in orders:
            found.append(bounded(_Contract.apply(found[-1], A, weight, terms), layer.product.limit))
        return torch.cat(found, dim=-1)

    return product


def terms_of(contraction: Contraction) -> tuple[Terms, Terms, Terms]:
    """Nonzero Clebsch-Gordan coefficients: for the components of the result, of a and of b."""
    size = contraction.collect.shape[0]
    path, i, j, m, coefficient = couplings_of(contraction)

    def into(target: Tensor, y: Tensor, z: Tensor) -> Terms:
        order = target.argsort(stable=True)
        first = torch.searchsorted(target[order], torch.arange(size + 1, device=target.device))
        return Terms(first.int(), torch.stack([y, z, path], dim=1)[order].int().contiguous(), coefficient[order].contiguous())

    return into(m, i, j), into(i, j, m), into(j, i, m)


class _Contract(torch.autograd.Function):
    """a, b [N, L, K], path weights [paths, K] -> [a ⊗ b] [N, L, K], as `Contraction`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor, terms: tuple[Terms, Terms, Terms]) -> Tensor:
        ctx.save_for_backward(a, b, weight)
        ctx.terms = terms
        return _contracted(a, b, weight, terms[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        a, b, weight = ctx.saved_tensors
        g = g.contiguous()
        return _contracted(b, g, weight, ctx.terms[1]), _contracted(a, g, weight, ctx.terms[2]), None, None


def _contracted(y: Tensor, z: Tensor, weight: Tensor, terms: Terms) -> Tensor:
    x = torch.empty_like(y)
    num_atoms, size, num_channels = y.shape
    tile = _tile(num_channels)
    grid = (triton.cdiv(num_atoms, tile["ROWS"]),)
    with torch.cuda.device_of(y):
        contract[grid](y, z, weight, *terms, x, num_atoms, L=size, K=num_channels, num_warps=1, **tile)
    return x
