import functools

import pytest
import torch
from spectral_triton.kernels import recurrence as kernels
from spectral_triton.kernels.configuration import DENSE, FOLDED
from triton import knobs

DTYPES = [torch.float32, torch.float64]
NONLINEARITIES = ["identity", "tanh", "relu", "leaky_relu", "modrelu"]
FORMS = ["folded", "dense"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_every_mode(
    recurrence_problem, nonlinearity, reverse, packed, form, dtype, device, assert_accurate
):
    sizes = [3, 3, 2, 1, 1] if packed else [3, 3, 3, 3]
    problem = recurrence_problem(17, 6, sizes, nonlinearity, reverse, packed)
    problem.check(form, dtype, device, assert_accurate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "r"), [(1, 0), (1, 2), (3, 3), (17, 0), (17, 32), (63, 1), (65, 17), (100, 32)]
)
def test_folded_sizes(recurrence_problem, n, r, dtype, device, assert_accurate):
    recurrence_problem(n, r, [2] * 3).check("folded", dtype, device, assert_accurate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 63, 65, 100])
def test_dense_sizes(recurrence_problem, n, dtype, device, assert_accurate):
    recurrence_problem(n, 2, [2] * 3).check("dense", dtype, device, assert_accurate)


@pytest.mark.parametrize("entry", [*FOLDED, *DENSE], ids=str)
def test_every_entry_of_the_table(recurrence_problem, entry, device, assert_accurate):
    dtype, n, r = (*entry, 2)[:3]
    form = "folded" if entry in FOLDED else "dense"
    recurrence_problem(n - 1, r, [2, 1], packed=True).check(form, dtype, device, assert_accurate)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", [[1], [4], [1, 1, 1]])
def test_one_step_or_one_sequence(
    recurrence_problem, sizes, packed, reverse, form, device, assert_accurate
):
    problem = recurrence_problem(5, 2, sizes, "tanh", reverse, packed)
    problem.check(form, torch.float64, device, assert_accurate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [[3, 3, 3], [5, 4, 4, 1], [3, 2, 1]])
def test_two_sequences_per_program(
    recurrence_problem, sizes, reverse, form, dtype, device, assert_accurate, monkeypatch
):
    for name in ("folded_config", "dense_config"):
        choose = getattr(kernels, name)
        pair = functools.partial(lambda choose, *a: choose(*a)._replace(block_b=2), choose)
        monkeypatch.setattr(kernels, name, pair)
    problem = recurrence_problem(17, 6, sizes, "relu", reverse, packed=True)
    problem.check(form, dtype, device, assert_accurate)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("sizes", "packed"), [([], False), ([], True), ([0, 0], False)])
def test_no_steps_or_no_sequences(recurrence_problem, sizes, packed, form, device):
    problem = recurrence_problem(5, 2, sizes, packed=packed)
    y, grad_z, grad_h0 = problem.kernels(form, torch.float64, device)
    assert y.shape == grad_z.shape == problem.x.shape
    # Without steps the last state is h0, which y does not hold: no gradient passes.
    assert torch.equal(grad_h0.cpu(), torch.zeros_like(problem.h0))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_beyond_one_tile_of_offsets(
    recurrence_problem, index_dtype, reverse, device, assert_accurate
):
    sizes = [2] * 3 + [1] * 127
    problem = recurrence_problem(4, 2, sizes, "tanh", reverse, packed=True)
    problem.check("folded", torch.float64, device, assert_accurate, index_dtype=index_dtype)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_accurate_everywhere(dtype, device):
    magnitude = [*torch.logspace(-12, 2.1, 500).tolist(), 0.25, 0.2499999, 0.0, float("inf")]
    x = torch.tensor(magnitude, dtype=dtype)
    x = torch.cat((x, -x)).reshape(1, -1, 12).contiguous().to(device)
    zero = torch.zeros(12, 2, dtype=dtype, device=device)
    options = ("tanh", 0.0, None, None, False)
    y = kernels.folded_fwd(x, torch.zeros_like(x[0]), zero[:, 0].clone(), zero, zero, *options)
    torch.testing.assert_close(
        y.double(), x.double().tanh(), rtol=8 * torch.finfo(dtype).eps, atol=0
    )


@pytest.mark.parametrize("form", FORMS)
def test_modrelu_of_zero_is_zero(recurrence_problem, form, device, assert_accurate):
    problem = recurrence_problem(5, 2, [2] * 2, "modrelu")
    problem.x.zero_()
    problem.h0.zero_()
    problem.bias.fill_(0.5)
    problem.check(form, torch.float64, device, assert_accurate)
    assert (problem.kernels(form, torch.float64, device)[0] == 0).all()


@pytest.mark.gpu
def test_new_lengths_do_not_recompile(recurrence_problem, device):
    compiled = []
    knobs.runtime.jit_post_compile_hook = lambda **event: compiled.append(event["key"])
    try:
        for steps, batch, n, r in (
            (5, 3, 40, 7),
            (1, 1, 64, 16),
            (16, 16, 33, 1),
            (784, 64, 48, 9),
        ):
            recurrence_problem(n, r, [batch] * steps, "identity").kernels(
                "folded", torch.float32, device
            )
    finally:
        knobs.runtime.jit_post_compile_hook = None
    assert len(compiled) == len(set(compiled)) <= 2  # forward and backward, once each


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "leaky_relu", "identity", "modrelu"])
def test_nan_passes_through(recurrence_problem, nonlinearity, form, device):
    problem = recurrence_problem(5, 2, [2] * 3, nonlinearity)
    problem.x[1, 0, 2] = float("nan")
    y, grad_x, _ = problem.kernels(form, torch.float64, device)
    oracle = problem.oracle()
    assert torch.equal(y.isnan().cpu(), oracle[0].isnan())
    assert y[1, 0, 2].isnan()
    assert y[2, 0].isnan().all()
    assert y[:, 1].isfinite().all()
    assert y[0].isfinite().all()
    assert grad_x[:, 1].isfinite().all()


def test_orthogonal_steps_keep_the_norm(device):
    # scale 1 and p = 2 q with unit q is one reflector, applied 16 times to fp32 states
    q = torch.nn.functional.normalize(torch.randn(65, 1, dtype=torch.float32), dim=0).to(device)
    h0 = torch.randn(2, 65, dtype=torch.float32, device=device)
    x = torch.zeros(16, 2, 65, dtype=torch.float32, device=device)
    scale = torch.ones(65, dtype=torch.float32, device=device)
    y = kernels.folded_fwd(x, h0, scale, 2 * q, q, "identity", 0.0, None, None, False)
    torch.testing.assert_close(y[-1].norm(dim=-1), h0.norm(dim=-1), rtol=2e-6, atol=0)
    assert (y[0] - h0).abs().max() > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_runs_are_bit_equal(recurrence_problem, form, device):
    problem = recurrence_problem(33, 4, [3] * 3)
    first = problem.kernels(form, torch.float32, device)
    second = problem.kernels(form, torch.float32, device)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_unserved_sizes_name_the_limit(recurrence_problem, device):
    problem = recurrence_problem(2049, 2, [1])
    with pytest.raises(ValueError, match="registers"):
        problem.kernels("folded", torch.float32, device)
    with pytest.raises(ValueError, match="registers"):
        problem.kernels("dense", torch.float32, device)


@pytest.mark.gpu
def test_ten_thousand_orthogonal_steps_keep_the_norm(device):
    q = torch.linalg.qr(torch.randn(512, 16))[0].to(device, torch.float32).contiguous()
    h0 = torch.randn(4, 512, dtype=torch.float32, device=device)
    x = torch.zeros(10_000, 4, 512, dtype=torch.float32, device=device)
    scale = torch.ones(512, dtype=torch.float32, device=device)
    y = kernels.folded_fwd(x, h0, scale, 2 * q, q, "identity", 0.0, None, None, False)
    torch.testing.assert_close(y[-1].norm(dim=-1), h0.norm(dim=-1), rtol=1e-5, atol=0)


@pytest.mark.gpu
def test_rows_beyond_int32_addresses(device):
    steps, batch, n = 4100, 512, 1024  # T B n is just above 2³¹
    x = torch.ones(steps, batch, n, dtype=torch.bfloat16, device=device)
    scale = torch.zeros(n, dtype=torch.float32, device=device)
    p = torch.zeros(n, 2, dtype=torch.float32, device=device)
    h0 = torch.zeros(batch, n, dtype=torch.bfloat16, device=device)
    y = kernels.folded_fwd(x, h0, scale, p, p, "identity", 0.0, None, None, False)
    assert torch.equal(y[-1], x[-1])
