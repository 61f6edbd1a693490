"""FlashACE as one of the peers of `bench_infer.py`, `bench_train.py` and `speed.py`: untrained weights, the sizes of the defaults.

PYTHONPATH=benchmarks python bench_infer.py --label "FlashACE" --calc peers_flashace:make
PYTHONPATH=benchmarks python bench_train.py --label "FlashACE" --train peers_flashace:train --batch 5
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from flashace import FlashACE
from flashace.calculator import DTYPES
from flashace.data.frames import Labelled
from flashace.data.origin import Origin
from flashace.data.statistics import loss_units
from flashace.potential.model import AttentionACE, ModelConfig
from flashace.potential.model_file import save_model
from flashace.structure.neighbors import build_graph
from flashace.train.config import SIZES, TrainConfig
from flashace.train.loss import collate, make_item
from flashace.train.optim.average import make_average
from flashace.train.optim.schedule import loss_weights
from flashace.train.optim.update import make_optimizers
from flashace.train.step import TrainStep


def make(
    dtype: str, cutoff: float, symbols: Sequence[str], size: str = "medium", kernel: str = "auto", device: str = "cpu", **sizes: Any
) -> FlashACE:
    """The calculator with random weights. `size` is one of SIZES, `sizes` are options of ModelConfig that go before it."""
    model = _model(dtype, cutoff, symbols, **{**SIZES[size], **sizes})
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model.pt", model, {})
        calculator = FlashACE(Path(folder) / "model.pt", device=device, dtype=dtype, kernel=kernel)
    calculator.bench_nparams = sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    calculator.bench_graph = lambda atoms: build_graph(atoms, cutoff)  # type: ignore[attr-defined]
    return calculator


def train(
    dtype: str, cutoff: float, frames: Sequence[Atoms], batch_size: int, compiled: bool = True, **sizes: Any
) -> Callable[[int], None]:
    """`step(k)`: one whole training step (loss, gradients, clipping, both optimizers, averaging) on the k-th batch."""
    model = _model(dtype, cutoff, sorted({s for atoms in frames for s in atoms.symbols}), **sizes)
    labelled = [Labelled(a, a.get_potential_energy(), a.get_forces(), None, "", Origin("", i)) for i, a in enumerate(frames)]
    items = [make_item(build_graph(f.atoms, cutoff), f, DTYPES[dtype]) for f in labelled]
    config, average = TrainConfig(), make_average(model, 0.999)
    compute, optimizers = TrainStep(model, loss_units(labelled), compiled), make_optimizers(model, config)
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]

    def step(k: int) -> None:
        batch = collate(batches[k % len(batches)])
        terms = compute(batch, loss_weights(0.5, config).to(batch.counts))
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update_parameters(model)
        step.loss = float(terms.sum())  # type: ignore[attr-defined]

    step.nbatches, step.nparams = len(batches), sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    return step


def _model(dtype: str, cutoff: float, symbols: Sequence[str], **sizes: Any) -> AttentionACE:
    torch.manual_seed(0)
    config = ModelConfig(r_max=cutoff, **sizes)
    return AttentionACE(config, dict.fromkeys(symbols, 0.0), scale=1.0, avg_num_neighbors=12.0, dtype=DTYPES[dtype])
