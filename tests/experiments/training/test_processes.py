"""A run shared by two processes gives the numbers of one, and is kept, stopped and resumed once."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.task import Batch, Tally
from spectral_triton.experiments.training.checkpoint import load_checkpoint
from spectral_triton.experiments.training.processes import Processes, joined

PROGRAM = Path(__file__).parent / "two_processes.py"
needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("two_processes", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two(torchrun, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torchrun(PROGRAM, folder, cwd=folder)
    return folder


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"kind"}:
            torch.testing.assert_close(a[name], b[name], rtol=1e-8, atol=1e-10)


@needs_gloo
@pytest.mark.parametrize("name", ["adding", "copying", "ptb"])
def test_numbers_are_those_of_one_process(name, two, program, tmp_path):
    one = program.training(name, tmp_path / "one")
    one.run()
    assert_close(records(two / name), records(tmp_path / "one"))
    summaries = [
        {k: v for k, v in json.loads((f / "summary.json").read_text()).items() if k != "seconds"}
        for f in (two / name, tmp_path / "one")
    ]
    for part in ("test", "last_test"):
        assert_close([summaries[0].pop(part)], [summaries[1].pop(part)])
    values = [summary.pop("validation") for summary in summaries]
    assert math.isclose(*values, rel_tol=1e-8)
    assert summaries[0] == summaries[1]


@needs_gloo
@pytest.mark.parametrize("name", ["adding", "copying", "ptb", "dropout"])
def test_stopped_and_resumed_is_as_if_never_stopped(name, two):
    whole, resumed = two / name, two / f"{name}-stopped"
    # Not to the last bit: sums over shares that begin anywhere in memory may round differently.
    assert_close(records(whole), records(resumed))
    last = [load_checkpoint(folder / "last.pt") for folder in (whole, resumed)]
    for content in last:
        content.pop("clock")
        content.pop("metrics_bytes")
        groups = content["optimizer"].pop("param_groups")
        assert [group["name"] for group in groups]
    leaves = [torch.utils._pytree.tree_flatten(content)[0] for content in last]
    for a, b in zip(*leaves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@needs_gloo
def test_two_processes_go_on_where_one_stopped_and_back(two, program, tmp_path):
    folder = tmp_path / "one"
    (two / "ptb-stopped").rename(folder)
    (folder / "summary.json").unlink()
    resumed = program.training("ptb", folder)
    resumed.run()
    assert resumed.report.begun == program.STEPS
    state = load_checkpoint(folder / "last.pt")["state"]
    assert [tuple(part.shape) for part in state] == [(1, 7, 5)] * 2


@needs_gloo
def test_command_line_runs_unchanged_under_torchrun(torchrun, tmp_path):
    options = "--length 4 --steps 4 --hidden 4 --evaluations 2 --batch-size 6 --output out"
    command = ["-m", "spectral_triton", "train", "adding", *options.split()]
    text = torchrun(*command, cwd=tmp_path)
    assert text.count("step 4/4") == 1
    assert text.count("test mse") == 1
    assert (tmp_path / "out/comparison.png").is_file()
    assert len(list((tmp_path / "out/spectral-seed0/tensorboard").iterdir())) == 1
    again = torchrun(*command, "--resume", cwd=tmp_path)
    assert "step 4/4" not in again
    assert again.count("test mse") == 1


class Last:
    answers_every_step = False
    carries_state = False


class Every:
    answers_every_step = True


@pytest.mark.parametrize("task", [Last, Every])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_shares_make_up_the_batch_and_its_mean(task, count):
    inputs, per_sequence = torch.randn(5, count, 2), torch.randn(count)
    targets = per_sequence.expand(5, count) if task.answers_every_step else per_sequence
    mean, sequences = 0.0, []
    for rank in range(3):
        share, weight = Processes(rank, 3).share(task, Batch(inputs, targets, False))
        assert not share.fresh
        mean += weight * share.targets.mean() / 3
        assert share.inputs.shape[1] == share.targets.shape[-1] > 0
        sequences += [share.inputs] if weight else []
    torch.testing.assert_close(mean, per_sequence.mean())
    assert torch.equal(torch.cat(sequences, 1), inputs)


def test_states_are_shared_as_batches_are():
    state = [torch.randn(2, 7, 3), torch.randn(2, 7, 3)]
    shares = [Processes(rank, 3).share_of_states(state) for rank in range(3)]
    for whole, parts in zip(state, zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.cat(parts, 1), whole)


def test_evaluation_batches_are_divided():
    task = Last()
    task.batches = lambda split: iter(range(5))
    shares = [list(Processes(rank, 2).batches(task, "test")) for rank in (0, 1)]
    assert shares == [[0, 2, 4], [1, 3]]
    task.carries_state = True
    assert list(Processes(1, 2).batches(task, "test")) == [0, 1, 2, 3, 4]


def test_alone_nothing_changes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as processes:
        assert processes == Processes(0, 1) == Processes.current()
        assert not dist.is_initialized()
    model, tally, batch = torch.nn.Linear(2, 2), Tally(1.0, 2.0, 3), Batch(torch.ones(2), None)
    assert processes.parallel(model) is model
    assert processes.total(tally) is tally
    assert processes.share(Last(), batch) == (batch, 1.0)
    assert (processes.any(True), processes.any(False)) == (True, False)
    assert (processes.agreed(4), processes.gathered(4)) == (4, [4])
    assert processes.device("cuda:1") == torch.device("cuda:1")


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(UsageError, match="--batch-size 2 is less than the 3 processes"):
        Processes(0, 3).check_batch_size(2)
    with pytest.raises(UsageError, match="--device cuda:1 names one GPU"):
        Processes(0, 3).device("cuda:1")
    assert Processes(1, 3).device("cpu") == torch.device("cpu")
