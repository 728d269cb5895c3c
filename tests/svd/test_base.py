"""Bases: W is what it was given as, exactly, with gradients in every reflector."""

import copy
import pickle

import pytest
import torch
from torch import nn

from spectral_triton import (
    FixedSpectrum,
    HouseholderSVD,
    SigmoidSpectrum,
    SoftplusSpectrum,
    SpectralRNN,
    SVDLinear,
    SVDWeight,
    cached,
    reference,
)
from spectral_triton.svd.base import draw_base, draw_pairs_, orthonormalized, rebased

SHAPES = [(5, 5), (7, 4), (4, 7), (1, 1), (1, 5), (6, 2)]
COUNTS = [0, 1, 2, (3, 0), (1, 3), None]


def counts(shape, k):
    p = min(shape)
    return None if k is None else tuple(min(n, p) for n in ((k, k) if isinstance(k, int) else k))


def operator(shape, k, batch=()):
    """Factors with a base and reflectors that do not cancel, and the dense matrix in float64."""
    w = torch.randn(*batch, *shape)
    p = min(shape)
    k_u, k_v = counts(shape, k) or (p, p)
    left, right = torch.randn(*batch, k_u, shape[0]), torch.randn(*batch, k_v, shape[1])
    sigma = torch.rand(*batch, p) + 0.5
    u, v = (orthonormalized(torch.randn(*batch, n, p)) for n in shape)
    factors = HouseholderSVD(left, sigma, right, left_base=u, right_base=v)
    q_u, q_v = reference.householder_product(left), reference.householder_product(right)
    w = (q_u @ u * sigma.unsqueeze(-2)) @ (q_v @ v).mT
    return factors, w


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("k", COUNTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_algebra_is_that_of_the_dense_matrix(shape, k, batch):
    f, w = operator(shape, k, batch)
    m, n = shape
    close(f.to_dense(), w)
    close(f.mT.to_dense(), w.mT)
    x = torch.randn(*batch, 3, n)
    close(f.apply(x), x @ w.mT)
    close(f @ x.mT, w @ x.mT)
    close(torch.randn(0, n).new_ones(*batch, 2, m) @ f, torch.ones(*batch, 2, m) @ w)
    close(f.pinv().to_dense(), torch.linalg.pinv(w))
    U, S, Vh = f.svd()
    close(U @ (S.unsqueeze(-1) * Vh), w)
    close(S, torch.linalg.svdvals(w))
    close(U.mT @ U, torch.eye(min(shape)).expand(*batch, -1, -1))
    close(f.gram().to_dense(), w.mT @ w)
    close(f.mT.gram().to_dense(), w @ w.mT)
    close(f.frobenius_norm(), torch.linalg.matrix_norm(w))
    close(f.spectral_norm(), torch.linalg.matrix_norm(w, 2))
    close(f.cond(), torch.linalg.cond(w) if m == n else S[..., 0] / S[..., -1], 1e-9)
    rank = min(shape) // 2
    error = torch.linalg.matrix_norm(f.truncate(rank).to_dense() - w)
    close(error, f.truncation_error(rank))
    if m >= n:
        q, p = f.polar()
        close(q.to_dense() @ p.to_dense(), w)
        close(q.to_dense().mT @ q.to_dense(), torch.eye(n).expand(*batch, n, n))
    if m == n:
        close(f.inverse().to_dense(), torch.linalg.inv(w), 1e-9)
        sign, logabsdet = f.slogdet()
        expected = torch.linalg.slogdet(w)
        close(sign, expected.sign)
        close(logabsdet, expected.logabsdet)
        b = torch.randn(*batch, n, 2)
        close(f.solve(b.mT).mT, torch.linalg.solve(w, b), 1e-9)
        close(f.apply_power(x, 2), x @ w.mT @ w.mT)


@pytest.mark.parametrize("num_vectors", [1, 2, 40])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (2, 4)])
def test_derivatives(shape, num_vectors):
    f, _ = operator(shape, (2, 1))
    parts = [f.left, f.singular_values, f.right, torch.randn(num_vectors, shape[1])]
    parts = [part.clone().requires_grad_() for part in parts]
    bases = {"left_base": f.left_base, "right_base": f.right_base}

    def product(left, sigma, right, x):
        return HouseholderSVD(left, sigma, right, **bases).apply(x)

    assert torch.autograd.gradcheck(product, parts, check_forward_ad=True)
    if num_vectors == 2:
        assert torch.autograd.gradgradcheck(product, parts)


def test_no_gradient_reaches_a_base():
    f, _ = operator((4, 4), 2)
    bases = [b.clone().requires_grad_() for b in (f.left_base, f.right_base)]
    left = f.left.clone().requires_grad_()
    made = HouseholderSVD(left, f.singular_values, f.right, left_base=bases[0], right_base=bases[1])
    made.to_dense().sum().backward()
    assert left.grad is not None
    assert bases[0].grad is bases[1].grad is None


@pytest.mark.parametrize("init", ["haar", "identity", "henaff", "cayley"])
@pytest.mark.parametrize("k", COUNTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_start_has_its_singular_values_and_a_gradient_in_every_row(shape, k, init):
    weight = SVDWeight(*shape, num_reflectors=counts(shape, k), base="haar", init=init)
    w = weight.to_dense()
    close(torch.linalg.svdvals(w), torch.ones(min(shape)))
    if init == "identity":
        close(w, torch.eye(*shape))
    (w * torch.randn(*shape)).sum().backward()
    for rows in (weight.left, weight.right):
        if rows.shape[-1] > 1:
            assert (rows.grad.norm(dim=-1) > 1e-9).all()


@pytest.mark.parametrize("k", [0, 1, 4, 5])
def test_pairs_cancel_on_the_base(k):
    base = orthonormalized(torch.randn(2, 6, 3))
    rows, before = torch.empty(2, k, 6), base.clone()
    draw_pairs_(rows, base)
    close(reference.householder_product(rows) @ base, before, 1e-14)
    assert torch.equal(base, before) == (k % 2 == 0)
    assert (rows.norm(dim=-1) > 0).all()


def test_uniform_bases_are_uniform():
    u, _ = draw_base((4000, 2, 2), torch.empty(0), "haar")
    angle = torch.atan2(u[:, 1, 0], u[:, 0, 0]) / (2 * torch.pi) + 0.5
    steps = torch.arange(1, 4001) / 4000
    assert (angle.sort().values - steps).abs().max() < 1.95 / 4000**0.5
    assert 1800 < (torch.linalg.det(u) > 0).sum() < 2200


def test_errors_do_not_add_up_over_rebases():
    base = orthonormalized(torch.randn(12, 12, dtype=torch.float32))
    rows = torch.empty(4, 12, dtype=torch.float32)
    draw_pairs_(rows, base)
    first = base.clone()
    for _ in range(10_000):
        base = rebased(rows, base)
    assert (base.mT @ base - torch.eye(12)).abs().max() < 1e-6
    # W itself moves by rounding at each, as a sum of so many roundings may.
    assert (base - first).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_base(dtype):
    weight = SVDWeight(6, 6, num_reflectors=2, base="haar", dtype=torch.float32).to(dtype)
    assert weight.left.dtype == dtype
    assert weight.left_base.dtype == torch.float32
    assert not weight.left_base.requires_grad
    sigma = torch.linalg.svdvals(weight.to_dense().double())
    assert ((sigma - 1).abs() < 1e-5).all()
    made = SVDWeight(6, 6, num_reflectors=2, base="haar", dtype=dtype)
    assert made.left_base.dtype == torch.float32
    assert (torch.linalg.svdvals(made.to_dense().double()) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("k", [0, 3, (1, 4)])
def test_states_and_copies(k):
    weight = SVDWeight(5, 5, num_reflectors=k, spectrum=SoftplusSpectrum())
    weight.set_dense_(torch.randn(5, 5))
    for again in (
        copy.deepcopy(weight),
        pickle.loads(pickle.dumps(weight)),
        SVDWeight(5, 5, num_reflectors=k, spectrum=SoftplusSpectrum(), base="haar"),
        SVDWeight(5, 5, num_reflectors=k, spectrum=SoftplusSpectrum()),
    ):
        again.load_state_dict(weight.state_dict())
        assert torch.equal(again.to_dense(), weight.to_dense())
    assert repr(weight).endswith("with a base)")


def test_bounds_hold_whatever_the_optimizer_does():
    torch.manual_seed(3)
    layer = SVDLinear.from_linear(
        nn.Linear(6, 8),
        num_reflectors=2,
        spectrum=SigmoidSpectrum(center=0.5, margin=0.2),
        out_of_bounds="clip",
    )
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.3, weight_decay=0.5)
    bases = layer.svd.left_base.clone(), layer.svd.right_base.clone()
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.randn(4, 6)).square().sum().neg().backward()
        optimizer.step()
    sigma = torch.linalg.svdvals(layer.weight)
    assert ((sigma > 0.3 - 1e-9) & (sigma < 0.7 + 1e-9)).all()
    assert torch.equal(bases[0], layer.svd.left_base)
    assert torch.equal(bases[1], layer.svd.right_base)


def test_cached_and_vmapped():
    layer = SVDLinear(5, 4, num_reflectors=2, base="haar")
    x = torch.randn(3, 5)
    with torch.no_grad(), cached():
        first = layer(x)
        torch.testing.assert_close(first, layer(x))
        layer.svd.left_base.neg_()
        torch.testing.assert_close(layer(x) - layer.bias, layer.bias - first)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))


@pytest.mark.parametrize("trained", [True, False], ids=["σ trained", "σ frozen"])
def test_compiles_and_exports_with_any_batch(trained):
    layer = SVDLinear(6, 4, num_reflectors=2, base="haar")
    layer.svd.raw_singular_values.requires_grad_(trained)
    leaves = [p for p in layer.parameters() if p.requires_grad]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    program = torch.export.export(
        layer, (torch.randn(3, 6),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    ).module()
    for size in (3, 50):
        x = torch.randn(size, 6)
        y = layer(x)
        torch.testing.assert_close(program(x), y, rtol=0, atol=1e-13)
        torch.testing.assert_close(compiled(x), y, rtol=0, atol=1e-13)
        ours = torch.autograd.grad(compiled(x).square().sum(), leaves)
        theirs = torch.autograd.grad(y.square().sum(), leaves)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_ensembles_by_vmap():
    layers = [SVDLinear(5, 4, num_reflectors=2, base="haar") for _ in range(3)]
    state = torch.func.stack_module_state(layers)
    x = torch.randn(7, 5)
    y = torch.vmap(lambda *s: torch.func.functional_call(layers[0], s, (x,)))(*state)
    expected = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_a_recurrence_with_a_base_is_that_of_the_dense_matrix():
    rnn = SpectralRNN(3, 80, num_reflectors=2, base="haar", spectrum=FixedSpectrum(), init="haar")
    x = torch.randn(6, 2, 3)
    plain = rnn.to_rnn()
    torch.testing.assert_close(rnn(x)[0], plain(x)[0], rtol=0, atol=1e-12)
    rnn(x)[0].sum().backward()
    assert (rnn.svd_hh_l0.left.grad.norm(dim=-1) > 0).all()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: SVDWeight(3, 3, base="orthogonal"), ValueError, r"base must be one of 'haar'"),
        (
            lambda: HouseholderSVD(
                torch.randn(1, 3), torch.ones(3), torch.randn(1, 3), left_base=torch.eye(4, 3)
            ),
            ValueError,
            r"left_base must have shape \(\.\.\., 3, 3\).*\(4, 3\)",
        ),
        (
            lambda: HouseholderSVD(
                torch.randn(1, 3),
                torch.ones(3),
                torch.randn(1, 3),
                right_base=torch.eye(3, dtype=torch.float32),
            ),
            TypeError,
            r"right_base must have the dtype of left",
        ),
        (
            lambda: SVDWeight(3, 3, num_reflectors=1).set_dense_(torch.full((3, 3), float("nan"))),
            ValueError,
            "w must be finite",
        ),
        (
            lambda: SVDWeight(3, 3, num_reflectors=1).set_dense_(torch.randn(3, 3)),
            ValueError,
            "outside the bounds",
        ),
    ],
)
def test_bad_input_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()
