import functools
import itertools
import multiprocessing
import os

import pytest
import torch
from spectral_triton.kernels import grid_recurrence
from spectral_triton.kernels._grid_barrier import COUNTER_STRIDE
from spectral_triton.kernels._launch import recurrence_options
from spectral_triton.kernels.configuration import GRID, GridConfig
from triton.runtime import interpreter

from spectral_triton import reference

DTYPES = [torch.float32, torch.float64]


@pytest.fixture
def small(monkeypatch):
    """Sets a configuration in which a few features already take several programs."""

    def use(processors=4, rows=16):
        config = GridConfig(64, rows, num_warps=2, lanes_n=4)
        monkeypatch.setattr(grid_recurrence, "grid_config", lambda n, dtype: config)
        monkeypatch.setattr(grid_recurrence, "num_processors", lambda device: processors)

    return use


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_every_mode(recurrence_problem, small, reverse, packed, dtype, device, assert_accurate):
    small(processors=2)
    # Two programs along features, one along sequences, which takes two rounds.
    sizes = [3, 2, 1] if packed else [3, 3]
    problem = recurrence_problem(17, 6, sizes, "tanh", reverse, packed)
    problem.check("grid", dtype, device, assert_accurate, False)


@pytest.mark.parametrize("nonlinearity", ["identity", "relu", "leaky_relu", "modrelu"])
def test_every_nonlinearity(recurrence_problem, small, nonlinearity, device, assert_accurate):
    small()
    problem = recurrence_problem(17, 6, [2, 2], nonlinearity)
    problem.check("grid", torch.float64, device, assert_accurate, False)


@pytest.mark.parametrize(
    ("n", "dtype"), [(1, torch.float32), (16, torch.float64), (47, torch.float32)]
)
def test_sizes(recurrence_problem, small, n, dtype, device, assert_accurate):
    small()
    recurrence_problem(n, 2, [2] * 2).check("grid", dtype, device, assert_accurate, False)


@pytest.mark.parametrize("processors", [1, 100])
@pytest.mark.parametrize("sizes", [[7, 6, 2], [4, 1, 1]])
def test_any_share_of_the_sequences(
    recurrence_problem, small, sizes, processors, device, assert_accurate
):
    small(processors)
    problem = recurrence_problem(20, 2, sizes, "tanh", True, packed=True)
    problem.check("grid", torch.float64, device, assert_accurate, False)


@pytest.mark.parametrize("entry", GRID, ids=str)
def test_every_entry_of_the_table(entry, device, assert_accurate, monkeypatch):
    dtype, n = entry
    monkeypatch.setattr(GridConfig, "grid", lambda *sizes: (1, 1))
    x, h0, weight = torch.randn(1, 2, n), torch.randn(2, n), torch.randn(n, n) / n**0.5
    operands = [a.to(device, dtype) for a in (x, h0, weight)]
    y = grid_recurrence.grid_fwd(*operands, "relu", 0.0, None, None, False, False)
    rows = GRID[entry].rows  # the outputs of the one program there is
    oracle, plain = (
        reference.recurrence(x.to(d), h0.to(d), weight.to(d), nonlinearity="relu")
        for d in (torch.float64, dtype)
    )
    assert_accurate(y[..., :rows], oracle[..., :rows], plain[..., :rows])
    assert y[..., rows:].isnan().all()


@pytest.mark.parametrize(("n", "dtype"), [(257, torch.float32), (130, torch.float64)])
def test_own_choice_of_blocks(recurrence_problem, n, dtype, device, assert_accurate):
    recurrence_problem(n, 2, [2]).check("dense", dtype, device, assert_accurate)


def run_program(index, grid, kernel, arguments, options):
    """One program of a cooperative launch, in a process of its own and in shared memory."""
    torch.set_num_threads(1)
    builder = interpreter.interpreter_builder
    builder.set_grid_dim = lambda *sizes: setattr(builder, "grid_dim", (*grid, 1))
    builder.set_grid_idx = lambda *zeros: setattr(builder, "grid_idx", (*index, 0))
    # It copies all arguments onto themselves, over what other programs store meanwhile.
    interpreter.GridExecutor._restore_args_dev = lambda *arguments: None

    def wait_for(counter_ptr, arrivals):
        while grid_recurrence.tl.load(counter_ptr).handle.data < arrivals.handle.data:
            os.sched_yield()

    grid_recurrence.wait_for = wait_for
    kernel[(1, 1)](*arguments, **options, BARRIER=True)


def run_grid(grid, *arguments):
    """All programs at once, with the interpreter's atomics and a wait in Python."""
    fork = multiprocessing.get_context("fork")
    indices = itertools.product(*map(range, grid))
    programs = [fork.Process(target=run_program, args=(i, grid, *arguments)) for i in indices]
    for program in programs:
        program.start()
    for program in programs:
        program.join(60)
        program.kill()
    assert [program.exitcode for program in programs] == [0] * len(programs)


@pytest.mark.parametrize(("sizes", "reverse"), [([3, 3, 3], False), ([5, 3, 1], True)])
def test_all_steps_in_one_launch(recurrence_problem, small, sizes, reverse, device):
    """The form with the barrier gives the bits of a launch for each step."""
    if device.type != "cpu":
        pytest.skip("the barrier itself is tested here")
    small()
    n, grid = 17, (2, 2)
    config = grid_recurrence.grid_config(n, torch.float64)
    packed = len(set(sizes)) > 1
    problem = recurrence_problem(n, 6, sizes, "tanh", reverse, packed)
    y, grad_z, grad_h0 = problem.kernels("grid", torch.float64, device, False)
    weight = torch.diag(problem.scale) - problem.p @ problem.q.mT
    offsets = torch.tensor([0, *itertools.accumulate(sizes)]) if packed else None
    options = recurrence_options(device, config, "tanh", 0.0, offsets, reverse)

    shared_y, shared_z, shared_h0 = (torch.full_like(a, torch.nan) for a in (y, grad_z, grad_h0))
    arrivals = torch.zeros(2, 2, COUNTER_STRIDE.value, dtype=torch.int32)
    for tensor in (shared_y, shared_z, shared_h0, arrivals):
        tensor.share_memory_()
    steps, batch = len(sizes), sizes[0]
    forward = problem.x, problem.h0, weight, None, offsets, shared_y, arrivals[0]
    run_grid(
        grid,
        grid_recurrence.grid_fwd_kernel,
        (*forward, 0, steps, steps, batch, n),
        options,
    )
    backward = problem.grad_y, shared_y, weight.mT.contiguous(), offsets, shared_z, shared_h0
    run_grid(
        grid,
        grid_recurrence.grid_bwd_kernel,
        (*backward, arrivals[1], 0, steps + 1, steps, batch, n),
        options,
    )
    assert torch.equal(shared_y, y)
    assert torch.equal(shared_z, grad_z)
    assert torch.equal(shared_h0, grad_h0)
    assert arrivals[:, :, 0].tolist() == [[2 * steps] * 2, [2 * steps + 2] * 2]


@pytest.mark.parametrize(("sizes", "packed"), [([], False), ([], True), ([0, 0], False)])
def test_no_steps_or_no_sequences(recurrence_problem, sizes, packed, device):
    problem = recurrence_problem(5, 2, sizes, packed=packed)
    y, grad_z, grad_h0 = problem.kernels("grid", torch.float64, device, False)
    assert y.shape == grad_z.shape == problem.x.shape
    assert torch.equal(grad_h0.cpu(), torch.zeros_like(problem.h0))


def test_runs_are_bit_equal(recurrence_problem, small, device):
    small()
    problem = recurrence_problem(20, 4, [3] * 2)
    first = problem.kernels("grid", torch.float32, device, False)
    second = problem.kernels("grid", torch.float32, device, False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_states_of_another_dtype_are_rejected(device):
    x, h0 = torch.ones(1, 1, 3, device=device, dtype=torch.bfloat16), torch.ones(1, 3).to(device)
    with pytest.raises(ValueError, match=r"must be torch\.bfloat16"):
        grid_recurrence.grid_fwd(x, h0, torch.eye(3).to(device), "relu", 0.0, None, None, False)


def check_cooperative(problem, dtype, device, assert_accurate):
    """Hundreds of barriers: a state read too early would differ from a launch for each step."""
    # A contraction: else the steps amplify roundings, also those of the oracle.
    problem.scale, problem.p = problem.scale / 2, problem.p / 2
    runs = [problem.kernels("grid", dtype, device, form) for form in (True, True, True, False)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
    problem.check("grid", dtype, device, assert_accurate, True)


@pytest.mark.gpu
@pytest.mark.parametrize("entry", GRID, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_cooperative_launches(recurrence_problem, entry, reverse, device, assert_accurate):
    dtype, n = entry
    batch = 9 if n >= 1024 else 70
    problem = recurrence_problem(n - 1, 8, [batch] * 300, "tanh", reverse)
    check_cooperative(problem, dtype, device, assert_accurate)


@pytest.mark.gpu
@pytest.mark.parametrize("entry", [(torch.float32, 512), (torch.float64, 256)], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_cooperative_launches_of_packed_batches(
    recurrence_problem, entry, reverse, device, assert_accurate
):
    dtype, n = entry
    sizes = [70] * 100 + [33] * 60 + [1] * 40
    problem = recurrence_problem(n, 8, sizes, "tanh", reverse, packed=True)
    check_cooperative(problem, dtype, device, assert_accurate)


@pytest.mark.gpu
def test_cooperative_launches_keep_the_norm(device):
    n, steps = 1024, 2000
    weight = torch.linalg.qr(torch.randn(n, n))[0].to(device, torch.float32)
    h0 = torch.randn(9, n, dtype=torch.float32, device=device)
    x = torch.zeros(steps, 9, n, dtype=torch.float32, device=device)
    launch = functools.partial(grid_recurrence.grid_fwd, x, h0, weight.contiguous(), "identity")
    y = launch(0.0, None, None, False, True)
    torch.testing.assert_close(y[-1].norm(dim=-1), h0.norm(dim=-1), rtol=1e-4, atol=0)
