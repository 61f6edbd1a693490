"""The processes that torchrun started in; sums over all of them, the word of the first, and shares of the work out."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from flashace.errors import FlashACEError
from flashace.structure.graph import Graph

LONGEST_WAIT = timedelta(hours=1)  # for a rank that lives and says nothing, while it reads data, say; the death of one is seen at once

T = TypeVar("T")


class LostRank(FlashACEError):
    """Another process of this fit has ended, or no longer answers."""


class Ranks:
    """This process among all that share a fit. One that is alone gets back what it gives.

    All ranks call the same methods in the same order; each of them that talks to the others raises LostRank where one is gone.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """The one rank that writes files and talks to the user."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """`chosen`, and of several GPUs the one that belongs to this rank. Raises FlashACEError where there are too few."""
        if self.size == 1 or chosen.type != "cuda":
            return chosen
        own, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if chosen.index is not None or own >= found:
            raise FlashACEError(
                f"device: expected a GPU for each rank, got {chosen} and {found} on this machine for rank {self.rank} of {self.size}; "
                "say --device cuda, and --nproc-per-node the number of GPUs"
            )
        torch.cuda.set_device(own)
        return torch.device("cuda", own)

    def from_first(self, value: T) -> T:
        """What the first rank gives here; whatever the others give is ignored."""
        held = [value]
        self._together(dist.broadcast_object_list, held)
        return held[0]

    def gather(self, own: T) -> list[T]:
        """What each rank gives, in the order of ranks, on the first; nothing on the others."""
        if self.size == 1:
            return [own]
        found: list[Any] | None = [None] * self.size if self.first else None
        self._together(dist.gather_object, own, found)
        return found or []

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype and device by their sums over all ranks, to the same bits on each."""
        self._flat(dist.all_reduce, tensors)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype and device by those of the first rank."""
        self._flat(lambda flat: dist.broadcast(flat, 0), tensors)

    def first_does(self, work: Callable[[], object]) -> bool:
        """The first rank works, the others wait. Where it fails, it raises what went wrong, the others get False, and all have left."""
        done = False
        try:
            if self.first:
                work()
                done = True
        finally:
            done = self.from_first(done)
            if not done:
                self.leave()
        return done

    def leave(self) -> None:
        """Wait for all ranks, and talk to none of them from then on."""
        if self.size > 1:
            self._together(dist.barrier)
            dist.destroy_process_group()

    def build_once(self, build: Callable[[T], Sequence[Graph]], frames: T) -> Sequence[Graph]:
        """`build(frames)`, called on one rank of each machine only; all ranks of the machine have the result in the same memory."""
        if self.size == 1:
            return build(frames)
        with tempfile.TemporaryDirectory(prefix="flashace-") as folder:
            path = Path(folder) / "graphs.pt" if os.environ["LOCAL_RANK"] == "0" else None
            if path is not None:
                _save_graphs(path, build(frames))
            machine, paths = os.environ["GROUP_RANK"], [None] * self.size
            self._together(dist.all_gather_object, paths, (machine, path))
            graphs = _load_graphs(next(there for owner, there in cast(Any, paths) if owner == machine and there))
            self._together(dist.barrier)
        return graphs  # what is mapped into memory outlives the name of the file

    def _flat(self, call: Callable[[Tensor], object], tensors: Sequence[Tensor]) -> None:
        """One call for all tensors: many small ones would each wait for the network."""
        if self.size == 1:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self._together(call, flat)
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def _together(self, call: Callable[..., object], *arguments: object) -> None:
        if self.size == 1:
            return
        try:
            call(*arguments)
        except RuntimeError as error:
            raise LostRank(
                f"rank {self.rank} of {self.size}: another rank has ended, or has not answered for {LONGEST_WAIT} "
                f"({str(error).split('. ')[0]}); `flashace fit --resume` with the run folder goes on from the newest checkpoint"
            ) from error


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun started with it, or alone."""
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # its threads would abort a process that ends


def shares(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Which pieces of work go to which of `parts` workers: the largest first, each to the one with least so far (Graham, SIAM J. Appl.
    Math. 17, 416, 1969). Every list is sorted; one is empty where pieces are fewer than workers."""
    taken: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = loads.index(min(loads))
        taken[least].append(i)
        loads[least] += sizes[i]
    return [sorted(share) for share in taken]


def _save_graphs(path: Path, graphs: Sequence[Graph]) -> None:
    """One array per field: a file of many small tensors is slow."""
    tensors = {f.name: [getattr(graph, f.name) for graph in graphs] for f in fields(Graph)}
    torch.save({name: (torch.cat([t.reshape(-1) for t in all_]), [t.shape for t in all_]) for name, all_ in tensors.items()}, path)


def _load_graphs(path: Path) -> list[Graph]:
    """Views of one file in memory, of which all processes of a machine share the pages."""
    saved = cast(dict[str, tuple[Tensor, list[torch.Size]]], torch.load(path, mmap=True, weights_only=True))
    columns = {
        name: [part.view(shape) for part, shape in zip(flat.split([shape.numel() for shape in shapes]), shapes, strict=True)]
        for name, (flat, shapes) in saved.items()
    }
    return [Graph(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
