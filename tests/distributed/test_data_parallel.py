"""DDP and FSDP2 on two processes compute what one process does with the same global batch."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from spectral_triton import lipschitz_constant
from spectral_triton.analysis.spectra import spectra

pytestmark = [
    pytest.mark.xdist_group("data parallel"),
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
    ),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
]
PROGRAM = Path(__file__).parent / "program.py"
EXAMPLES = PROGRAM.parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(torchrun, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torchrun(PROGRAM, folder, cwd=folder)
    return folder


@pytest.fixture
def two(folder):
    return torch.load(folder / "results.pt")


@pytest.fixture
def one(program):
    model = program.build()
    optimizer = program.optimizer_of(model)
    program.train(model, optimizer, range(program.STEPS))
    return model


def assert_same(first, second, atol):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_to_the_weights_of_one(way, one, two, program):
    start = program.build().state_dict()
    moved = [
        (value - start[name]).abs().max()
        for name, value in one.state_dict().items()
        if not name.endswith(("signs", "_base"))
    ]
    assert min(moved) > 1e-3
    for side in ("left_base", "right_base"):
        torch.testing.assert_close(
            two[way][f"middle.svd.{side}"], start[f"middle.svd.{side}"], rtol=0, atol=0
        )
    # Where a gradient is tiny AdamW makes much of its rounding.
    assert_same(two[way], one.state_dict(), atol=1e-9)


def test_parameters_were_sharded(two):
    assert two["rows"]["rnn.svd_hh_l0.left"] == (3, 2)
    assert two["rows"]["rnn.weight_ih_l0"] == (9, 5)
    assert two["rows"]["middle.svd.left_base"] == (10, 5)
    # Blocks come first in a parametrised tensor, and there is one.
    assert two["rows"]["head.parametrizations.weight.original0"] == (1, 1)


def test_sharded_checkpoint_resumes_bit_equal(two):
    assert_same(two["resumed"], two["fsdp"], atol=0)


def test_sharded_checkpoint_continues_in_one_process(folder, two, one, program):
    torch.manual_seed(3)
    model = program.Model()
    optimizer = program.optimizer_of(model)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder / "half")
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    assert_same(model.state_dict(), two["half"], atol=0)
    program.train(model, optimizer, range(program.STEPS // 2, program.STEPS))
    assert_same(model.state_dict(), one.state_dict(), atol=1e-9)


def test_factors_are_whole_outside_of_forward(one, two):
    expected = {
        "linear": one.encoder.weight,
        "with a base": one.middle.weight,
        "bias": one.encoder.bias,
        "singular_values": one.rnn.singular_values,
        "sign": one.rnn.factors[0].slogdet().sign,
        "head": one.head.weight,
        "lipschitz": lipschitz_constant(nn.Sequential(one.encoder, nn.Tanh(), one.head)),
        "spectrum": spectra(one)["head.weight"],
    }
    assert_same(two["read"], expected, atol=1e-9)
    for actual, wanted in zip(two["outside"], two["outside, expected"], strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-12)


def test_what_sharded_modules_cannot_do_is_refused(two):
    assert len(two["refused"]) == 4
    assert all(
        "is sharded by fully_shard: gather its state dict" in text for text in two["refused"]
    )


def test_gradients_outside_of_forward_are_means_over_the_processes(one, two, program):
    one.zero_grad()
    local = (program.local_loss(one, 0) + program.local_loss(one, 1)) / 2
    (program.penalty(one) + local).backward()
    expected = program.gradients(one)
    assert expected["rnn.svd_hh_l0.left"].abs().max() > 1e-3
    assert_same(two["gradients"], expected, atol=1e-8)


def test_penalty_adds_to_the_gradient_of_a_loss(one, two, program):
    one.zero_grad()
    x = torch.randn(7, program.BATCH, 6, generator=torch.Generator().manual_seed(9))
    (one(x).square().mean() + program.penalty(one)).backward()
    assert_same(two["gradients with a penalty"], program.gradients(one), atol=1e-8)


def test_the_program_of_data_parallel_training_runs(torchrun, tmp_path):
    output = torchrun(EXAMPLES / "data_parallel.py", cwd=tmp_path)
    assert re.fullmatch(r"loss \d+\.\d+, singular values (0\.99|1).* to 1\.0\d+\n", output)


def test_the_program_of_sharded_training_learns_and_writes_where_it_is_told(torchrun, tmp_path):
    output = torchrun(EXAMPLES / "fully_sharded.py", tmp_path / "there", cwd=tmp_path)
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", output)]
    assert losses[-1] < losses[0] / 4
    assert re.search(r"singular values (0\.99|1)\S* to 1\.0\d+\n", output)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_dense_matrix_goes_into_shards(two):
    torch.testing.assert_close(two["set"], torch.eye(10, 6), rtol=0, atol=1e-14)


def test_sharded_on_the_meta_device_and_initialised_later(two):
    torch.testing.assert_close(two["late"], torch.ones(3), rtol=0, atol=1e-14)
    every = two["late, all processes"]
    assert torch.equal(every[0], every[1])
