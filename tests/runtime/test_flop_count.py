"""Floating point operations as FlopCounterMode counts them, against counts by hand."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from spectral_triton import SpectralRNN, SVDLinear, apply_reflectors, householder_product
from spectral_triton.householder import compact_wy_inplace
from spectral_triton.householder import op as householder_op
from spectral_triton.recurrence.op import recurrence_fwd
from spectral_triton.runtime import use_backend
from spectral_triton.runtime.flop_count import flops_are_counted

STEPS, BATCH, FEATURES = 5, 3, 4
ROWS = STEPS * BATCH
N = 72  # Enough for few reflectors to be folded.


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def recurrent_flops(rank, inputs_too):
    """Forward, and forward with backward, of a layer whose W is dense (rank None) or folded."""
    step = 2 * N * N if rank is None else 4 * N * rank
    project = 2 * N * FEATURES
    # Backward: W transposed, the gradient of what makes W, those of weight_ih and of the input.
    return ROWS * (project + step), ROWS * (2 * project + 3 * step + inputs_too * project)


def forming_flops(rnn, backward=False):
    """What it takes to make W of its factors."""
    x = torch.zeros(0, 1, FEATURES, requires_grad=True)
    return count(lambda: rnn(x)[0].sum().backward() if backward else rnn(x))


@pytest.mark.parametrize("num_reflectors", [None, 1])
@pytest.mark.parametrize("inputs_too", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrence(num_reflectors, inputs_too, packed):
    rnn = SpectralRNN(FEATURES, N, num_reflectors=num_reflectors)
    x = torch.randn(STEPS, BATCH, FEATURES, requires_grad=inputs_too)
    given = pack_padded_sequence(x, [STEPS] * BATCH) if packed else x
    recurrence = torch.ops.spectral_triton.recurrence_fwd
    with FlopCounterMode(display=False) as counter:
        y = rnn(given)[0]
    counts = counter.get_flop_counts()["Global"]
    assert recurrence in counts
    # One reflector a side: W = diag(scale) - P Qᵀ with P and Q of two columns.
    rank = None if num_reflectors is None else 2
    forward, both = recurrent_flops(rank, inputs_too)
    assert counts[recurrence] == forward
    with FlopCounterMode(display=False) as counter:
        (y.data if packed else y).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.spectral_triton.recurrence_bwd] == both - forward


def test_recurrence_is_as_that_of_torch_beside_the_making_of_w():
    ours, theirs = SpectralRNN(FEATURES, N), nn.RNN(FEATURES, N)
    x = torch.randn(STEPS, BATCH, FEATURES)
    h = torch.zeros(1, BATCH, N)
    assert count(lambda: ours(x, h)) - forming_flops(ours) == count(lambda: theirs(x, h))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("num_rows", [3, 100])
def test_reflectors_of_one_block(grad, num_rows):
    n, k = 32, 5
    v = torch.randn(k, n, requires_grad=grad)
    x = torch.randn(num_rows, n)
    gram, solved_apply = 2 * k * k * n, 4 * num_rows * k * n
    # Without gradients few rows go to LAPACK, which no counter sees: counted, they do not.
    assert count(lambda: apply_reflectors(x, v, triangular=True)) == gram + solved_apply


def test_forward_and_backward_of_reflectors():
    n, k, num = 32, 5, 100
    v = torch.randn(k, n, requires_grad=True)
    x = torch.randn(num, n, requires_grad=True)
    forward = 2 * k * k * n + 4 * num * k * n
    # D_y, D_g, two products for the gradient, one for that of x, and the triangle twice.
    backward = 10 * num * k * n + 4 * k * k * n
    assert count(lambda: apply_reflectors(x, v).sum().backward()) == forward + backward


@pytest.mark.parametrize("triangular", [False, True])
def test_results_and_gradients_are_the_same_while_counted(triangular):
    v = torch.randn(150, 200, requires_grad=True)
    x = torch.randn(70, 200, requires_grad=True)

    def product():
        y = apply_reflectors(x, v, triangular=triangular) @ householder_product(v)
        return y.detach(), *torch.autograd.grad(y.square().sum() + y.sum(), (x, v))

    plain = product()
    with FlopCounterMode(display=False) as counter:
        counted = product()
    torch.testing.assert_close(counted, plain)
    # Every product of matrices was seen: twice the vectors at least, forward and backward.
    assert counter.get_total_flops() > 3 * 4 * 70 * 150 * 200 / (2 if triangular else 1)


def test_a_linear_layer_of_few_reflectors_takes_what_its_documentation_says():
    layer = SVDLinear(64, 48, num_reflectors=4)
    x = torch.randn(500, 64)
    grams = 2 * 16 * (64 + 48)
    assert count(lambda: layer(x)) == 500 * 4 * 4 * (64 + 48) + grams


@pytest.mark.parametrize("shape", [(150, 30), (2, 150, 30)])
def test_ops_for_kernels_take_what_the_plain_algebra_takes(shape):
    *batch, n, num = shape
    v = nn.functional.normalize(torch.randn(*batch, 3, 16, n), dim=-1)
    t = householder_op.t_factor(v)
    x, g = torch.randn(2, *batch, num, n)

    def by_ops():
        assert flops_are_counted()
        y = householder_op.apply_fwd(x, v, t, False, False)
        householder_op.apply_bwd(y, g, v, t, False, False)
        householder_op.t_factor(v)

    def plainly():
        y, _ = compact_wy_inplace.apply_fwd(x, v, t, False, False)
        compact_wy_inplace.apply_bwd(y, g, v, t, False, False)
        v @ v.mT

    assert count(by_ops) == count(plainly) > 0


def test_kernels_are_counted():
    x, v = torch.randn(10, 20), torch.randn(4, 20, requires_grad=True)
    with FlopCounterMode(display=False) as counter, use_backend("triton"):
        apply_reflectors(x, v).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    ops = torch.ops.spectral_triton
    assert counts[ops.apply_reflectors_fwd] == 4 * 10 * 4 * 20 + 2 * 10 * 4 * 4
    assert counts[ops.apply_reflectors_bwd] == 12 * 10 * 4 * 20 + 8 * 10 * 4 * 4 + 2 * 4 * 4 * 20
    assert counts[ops.t_factor] == 2 * 4 * 4 * 20


def test_own_formulas_stay():
    op = torch.ops.spectral_triton.recurrence_fwd
    mode = FlopCounterMode(display=False, custom_mapping={op: lambda *args, **kwargs: 1})
    rnn = SpectralRNN(FEATURES, N)
    with mode:
        rnn(torch.randn(STEPS, BATCH, FEATURES))
    assert mode.get_flop_counts()["Global"][op] == 1


def test_no_mode_and_other_modes_count_nothing():
    class Other(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    assert not flops_are_counted()
    with Other():
        assert not flops_are_counted()
        with FlopCounterMode(display=False):
            assert flops_are_counted()
    assert recurrence_fwd._overloadpacket in torch.utils.flop_counter.flop_registry


def test_importing_the_package_does_not_import_the_counter(tmp_path):
    code = (
        "import sys, torch, spectral_triton; "
        "spectral_triton.SpectralRNN(2, 3)(torch.randn(4, 1, 2)); "
        "assert 'torch.utils.flop_counter' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_a_counter_that_is_imported_last_counts_the_first_call(tmp_path):
    code = (
        "import torch, spectral_triton\n"
        "rnn = spectral_triton.SpectralRNN(2, 3)\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    rnn(torch.randn(4, 1, 2))\n"
        "counts = counter.get_flop_counts()\n"
        "op = torch.ops.spectral_triton.recurrence_fwd\n"
        "assert counts['Global'][op] == counts['SpectralRNN'][op] == 4 * 2 * (3 * 2 + 3 * 3)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
