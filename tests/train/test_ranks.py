"""Several processes fit as one: the same curve to rounding, whoever computes what, and none waits for one that is gone."""

import csv
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from flashace.data.frames import read_labelled
from flashace.data.statistics import LossUnits
from flashace.errors import FlashACEError
from flashace.potential.derivatives import EdgeBudget
from flashace.potential.model_file import load_model
from flashace.structure.neighbors import build_graph
from flashace.train import ranks
from flashace.train.checkpoint import checkpoints_in
from flashace.train.loss import collate, label_counts, make_item
from flashace.train.micro import MicroBatches
from flashace.train.ranks import ALONE, Ranks, joined, shares
from flashace.train.step import TrainStep

SAME = 1e-9  # relative, in float64: sums in another order
LONG = 120  # s in which a fit of seconds surely ends; a hang takes longer
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(make_frames, tmp_path_factory):
    """Nine frames of 2 or 4 atoms, each label missing somewhere, and three for validation: batches of 4, 4 and 1."""
    frames = make_frames(12)
    for i in range(0, 12, 3):
        energy, forces = frames[i].get_potential_energy(), frames[i].get_forces()
        frames[i] = frames[i].repeat((1, 1, 2))
        frames[i].calc = SinglePointCalculator(frames[i], energy=2 * energy, forces=[*forces] * 2)
    frames[1].calc.results.pop("forces")
    frames[4].calc.results.pop("energy")
    folder = tmp_path_factory.mktemp("data")
    write(folder / "train.extxyz", frames[:9])
    write(folder / "valid.extxyz", frames[9:])
    return {"data": [str(folder / "train.extxyz")], "valid": [str(folder / "valid.extxyz")]}


@pytest.fixture(scope="module")
def whole(data, write_yaml, flashace, tmp_path_factory):
    """The run folder of a fit by one rank that nobody stopped; options.yaml beside it."""
    folder = tmp_path_factory.mktemp("whole")
    calm = {"learning_rate": 1e-3}  # at the default one such a small model lets differences of rounding grow a hundredfold every ten epochs
    options = {"epochs": 40, "checkpoint_interval": 2, "random_rotation": True, "max_edges_per_step": 150, "compile": False}
    path = write_yaml(folder / "options.yaml", **data, **options, **calm)
    assert flashace("fit", "-c", path, "-o", folder / "run").exit_code == 0
    return folder / "run"


@pytest.fixture
def options(whole, tmp_path, monkeypatch):
    """The file of the options of `whole`. Fits run in tmp_path."""
    monkeypatch.chdir(tmp_path)
    return whole.with_name("options.yaml")


class Fit:
    """`flashace fit` on two ranks, started by torchrun."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flashace", "fit"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self):
        """Exit status and output."""
        try:
            output = self.process.communicate(timeout=LONG)[0]
        finally:
            self.process.kill()
        return self.process.returncode, " ".join(output.split())

    def wait_for_checkpoint(self, run):
        begin = time.monotonic()
        while not checkpoints_in(run / "checkpoints") and self.process.poll() is None and time.monotonic() - begin < LONG:
            time.sleep(0.01)

    def rank(self, rank):
        """Its process id."""
        me = self.process.pid
        children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
        return next(int(pid) for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text())


def same_fit(one, other):
    """All numbers of metrics.csv but the seconds, and the weights of the model."""
    rows = [list(csv.DictReader((run / "metrics.csv").open())) for run in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 1
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            assert a[name] == b[name] == "" or float(a[name]) == pytest.approx(float(b[name]), rel=SAME), name
    weights = [dict(load_model(run / "model.pt", torch.float64).named_parameters()) for run in (one, other)]
    assert all((p - weights[1][name]).abs().max() <= SAME * p.abs().max() for name, p in weights[0].items())
    return True


# Fits


@pytest.mark.slow
def test_two_ranks_give_the_fit_of_one(options, whole, tmp_path):
    status, output = Fit("-c", options, "-o", "two").end()
    assert status == 0, output
    assert output.count("Decisions") == output.count("model two/model.pt") == 1
    assert "2 ranks share each batch" in output
    assert same_fit(whole, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
def test_a_killed_rank_ends_the_fit_and_one_rank_ends_it_well(options, whole, flashace, tmp_path):
    fit = Fit("-c", options, "-o", "parts")
    fit.wait_for_checkpoint(tmp_path / "parts")
    os.kill(fit.rank(1), signal.SIGKILL)
    status, output = fit.end()
    assert status == 1
    assert "Error: rank 0 of 2: another rank has ended" in output
    assert not (tmp_path / "parts/model.pt").exists()
    assert flashace("fit", "--resume", "parts").exit_code == 0
    assert same_fit(whole, tmp_path / "parts")


@pytest.mark.slow
def test_a_signal_to_torchrun_is_heard_and_two_ranks_go_on(options, whole, tmp_path):
    fit = Fit("-c", options, "-o", "parts")
    fit.wait_for_checkpoint(tmp_path / "parts")
    fit.process.send_signal(signal.SIGTERM)
    status, output = fit.end()
    assert status != 0
    assert output.count("interrupted; everything is saved. To go on: flashace fit --resume parts") == 1
    status, output = Fit("--resume", "parts").end()
    assert status == 0, output
    assert same_fit(whole, tmp_path / "parts")


@pytest.mark.slow
def test_ranks_agree_on_the_end_of_their_time(data, write_yaml, tmp_path, monkeypatch):
    """Each has its own clock; lists of neighbours are built by whoever needs them."""
    monkeypatch.chdir(tmp_path)
    options = write_yaml(tmp_path / "options.yaml", **data, epochs=None, max_time=0.05, precompute_neighbors=False)
    status, output = Fit("-c", options, "-o", "run").end()
    assert status == 0, output
    assert (tmp_path / "run/model.pt").is_file()


@pytest.mark.slow
def test_a_mistake_of_the_user_is_told_once():
    status, output = Fit("no.extxyz").end()
    assert status == 1
    assert output.count("Error: no.extxyz: expected a file of structures") == 1
    assert "another rank" not in output


# Parts


@pytest.fixture
def items(data):
    frames = read_labelled(data["data"])[0]
    return [make_item(build_graph(frame.atoms, 4.0), frame, torch.float64) for frame in frames]


class OneOfMany(Ranks):
    """A rank that knows what all of them have counted; gradients are left to add up in the model."""

    def __init__(self, counts):
        super().__init__(1, 12)
        self.counts = counts

    def add(self, tensors):
        if len(tensors) == 1:
            tensors[0].copy_(self.counts)


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_shares_of_a_batch_add_up_to_its_gradient(make_model, items, size):
    """With unequal shares, and empty ones."""
    model, weights = make_model(num_layers=1), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    step = TrainStep(model, LossUnits(energy=0.1, forces=2.0, stress=0.05), compiled=False)
    errors = step(collate(items), weights)
    whole = [g.clone() for g in step.gradients()]
    model.zero_grad()
    parts = MicroBatches(step, 4, EdgeBudget(10**9), torch.device("cpu"), lambda text: None, OneOfMany(label_counts(items)))
    found = [parts([items[i] for i in share], weights) for share in shares([int(item.num_atoms) for item in items], size)]
    torch.testing.assert_close(torch.stack(found).sum(0), errors)
    largest = max(float(g.abs().max()) for g in whole)
    assert all((g - w).abs().max() <= SAME * largest for g, w in zip(step.gradients(), whole, strict=True))


def test_shares_are_whole_sorted_and_balanced():
    sizes = [90, 10, 40, 50, 5, 5]
    found = shares(sizes, 2)
    assert sorted(i for share in found for i in share) == list(range(6))
    assert all(a < b for share in found for a, b in pairwise(share))
    assert [sum(sizes[i] for i in share) for share in found] == [100, 100]
    assert shares([7, 7], 3) == [[0], [1], []]
    assert shares(sizes, 1) == [list(range(6))]


def test_graphs_come_back_from_their_file(structure, tmp_path):
    graphs = [build_graph(structure(name), 4.0) for name in ("crystal", "atom", "wire")]
    ranks._save_graphs(tmp_path / "g.pt", graphs)
    found = ranks._load_graphs(tmp_path / "g.pt")
    (tmp_path / "g.pt").unlink()
    for one, other in zip(graphs, found, strict=True):
        assert all(torch.equal(value, getattr(other, name)) for name, value in vars(one).items())


def test_each_rank_has_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Ranks(3, 4).device(torch.device("cuda")) == torch.device("cuda:1")
    assert Ranks(3, 4).device(torch.device("cpu")) == torch.device("cpu")
    assert ALONE.device(torch.device("cuda:5")) == torch.device("cuda:5")
    with pytest.raises(FlashACEError, match="expected a GPU for each rank, got cuda:0 and 2 on this machine for rank 3 of 4"):
        Ranks(3, 4).device(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(FlashACEError, match="got cuda and 1 on this machine"):
        Ranks(3, 4).device(torch.device("cuda"))


def test_without_torchrun_a_process_is_alone():
    with joined() as found:
        assert (found.first, found.size) == (True, 1)
