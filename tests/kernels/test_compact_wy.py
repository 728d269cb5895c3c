import pytest
import torch
from spectral_triton.kernels.compact_wy import apply_bwd, apply_fwd, t_factor_fwd

from spectral_triton import reference

DTYPES = [torch.float32, torch.float64]
# n, k, block size: odd sizes, no and all reflectors, blocks that do and do not divide, one too wide
SIZES = [
    (1, 1, 1),
    (3, 0, 4),
    (3, 3, 2),
    (17, 1, 8),
    (17, 17, 8),
    (63, 5, 5),
    (65, 12, 4),
    (100, 100, 32),
    (600, 5, 32),
]


def _unit(reflectors, dtype):
    length = reflectors.norm(dim=-1, keepdim=True)
    return (reflectors / length.masked_fill(length == 0, 1)).to(dtype), length


def _problem(n, k, matrices=2, vectors=3):
    reflectors = torch.randn(matrices, k, n) * torch.rand(matrices, k, 1).add(0.1)
    if k > 2 and matrices:
        reflectors[0, 1] = 0
        reflectors[-1, -1] = 0
    return torch.randn(matrices, vectors, n), reflectors, torch.randn(matrices, vectors, n)


def _oracle(x, reflectors, grad_y, transpose, dtype=torch.float64):
    x, reflectors = (a.to(dtype).requires_grad_() for a in (x, reflectors))
    y = reference.apply_reflectors(x, reflectors, transpose=transpose)
    grads = torch.autograd.grad(y, (x, reflectors), grad_y.to(dtype), allow_unused=True)
    return y, grads[0], torch.zeros_like(reflectors) if grads[1] is None else grads[1]


def _kernels(x, reflectors, grad_y, transpose, block_size, dtype, device):
    unit, length = _unit(reflectors, dtype)
    unit, x, grad_y = unit.to(device), x.to(device, dtype), grad_y.to(device, dtype)
    t_factors = t_factor_fwd(unit, block_size)
    y = apply_fwd(x, unit, t_factors, transpose)
    grad_x, grad_unit = apply_bwd(y, grad_y, unit, t_factors, transpose)
    return y, grad_x, grad_unit.cpu() / length.masked_fill(length == 0, float("inf"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("n", "k", "block_size"), SIZES)
def test_value_and_gradients(n, k, block_size, transpose, dtype, device, assert_accurate):
    problem = _problem(n, k)
    results = _kernels(*problem, transpose, block_size, dtype, device)
    oracles = _oracle(*problem, transpose)
    plain = _oracle(*problem, transpose, dtype)
    for triple in zip(results, oracles, plain, strict=True):
        assert_accurate(*triple)


@pytest.mark.parametrize(("matrices", "vectors"), [(0, 3), (2, 0), (1, 1)])
def test_empty_and_single(matrices, vectors, device, assert_accurate):
    problem = _problem(5, 3, matrices, vectors)
    results = _kernels(*problem, False, 2, torch.float64, device)
    oracles = _oracle(*problem, False)
    for result, oracle in zip(results, oracles, strict=True):
        assert_accurate(result, oracle, oracle)


def test_several_vectors_per_program(device, assert_accurate):
    # 300 vectors make every program own two; the last program of each matrix owns one.
    x, reflectors, grad_y = _problem(4, 3, matrices=3, vectors=101)
    results = _kernels(x, reflectors, grad_y, True, 2, torch.float64, device)
    oracles = _oracle(x, reflectors, grad_y, True)
    for result, oracle in zip(results, oracles, strict=True):
        assert_accurate(result, oracle, oracle)


def test_gradient_is_orthogonal_to_the_reflectors(device):
    x, reflectors, grad_y = _problem(33, 7)
    unit, _ = _unit(reflectors, torch.float64)
    unit = unit.to(device)
    t_factors = t_factor_fwd(unit, 4)
    y = apply_fwd(x.to(device), unit, t_factors, False)
    _, grad_unit = apply_bwd(y, grad_y.to(device), unit, t_factors, False)
    assert grad_unit.abs().max() > 0.1
    assert (grad_unit * unit).sum(-1).abs().max() < 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_undoes_and_keeps_norms(dtype, device):
    x, reflectors, _ = _problem(65, 65)
    unit, x = _unit(reflectors, dtype)[0].to(device), x.to(device, dtype)
    t_factors = t_factor_fwd(unit, 16)
    y = apply_fwd(x, unit, t_factors, False)
    back = apply_fwd(y, unit, t_factors, True)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(back, x, rtol=0, atol=64 * eps)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=16 * eps, atol=0)


def test_runs_are_bit_equal(device):
    problem = _problem(65, 9)
    first = _kernels(*problem, False, 4, torch.float32, device)
    second = _kernels(*problem, False, 4, torch.float32, device)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _half_precision(dtype, device):
    x, reflectors, _ = _problem(40, 6)
    x, (unit, _) = x.to(device, dtype), _unit(reflectors, torch.float32)
    t_factors = t_factor_fwd(unit.to(device), 4)
    y = apply_fwd(x, unit.to(device), t_factors, False)
    exact = reference.apply_reflectors(x.cpu().double(), reflectors)
    assert y.dtype == dtype
    # float32 arithmetic leaves the rounding of the result, at most half an ulp of each entry
    torch.testing.assert_close(
        y.cpu().double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6
    )


def test_float16_vectors_float32_arithmetic(device):
    _half_precision(torch.float16, device)


@pytest.mark.gpu  # the interpreter truncates when it casts to bfloat16
def test_bfloat16_vectors_float32_arithmetic(device):
    _half_precision(torch.bfloat16, device)
