"""SVDLinear: nn.Linear to its caller, with singular values that stay within bounds."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from spectral_triton import reference
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.spectra.spectrum import (
    FixedSpectrum,
    SigmoidSpectrum,
    SignedSpectrum,
    SoftplusSpectrum,
)


def dense(layer):
    """W of the parameters by the oracle, in float64."""
    svd = layer.svd
    left, right = svd.left.detach().double().triu(), svd.right.detach().double().triu()
    return reference.svd_to_dense(
        left, svd.singular_values.detach().double(), right, svd.signs.sign().double()
    )


def test_signature_is_that_of_linear():
    ours = list(inspect.signature(SVDLinear).parameters.values())
    theirs = list(inspect.signature(nn.Linear).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [
        (p.name, p.default, p.kind) for p in theirs
    ]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (5, 3), (64, 65), (100, 63)])
@pytest.mark.parametrize("num_reflectors", [None, 0, 1])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (2, 3), (2, 0, 3), (300,)])
def test_output_is_that_of_the_dense_weight(sizes, num_reflectors, shape):
    layer = SVDLinear(*sizes, num_reflectors=num_reflectors)
    x = torch.randn(*shape, sizes[0])
    expected = nn.functional.linear(x, dense(layer), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.weight, dense(layer), rtol=0, atol=1e-13)


def test_without_bias():
    layer = SVDLinear(3, 4, False)
    assert layer.bias is None
    x = torch.randn(2, 3)
    torch.testing.assert_close(layer(x), x @ dense(layer).mT)
    assert list(layer.state_dict()) == ["svd." + name for name in layer.svd.state_dict()]
    assert layer.to_linear().bias is None
    assert SVDLinear.from_linear(nn.Linear(3, 4, False), out_of_bounds="clip").bias is None


def test_start():
    torch.manual_seed(0)
    layer = SVDLinear(400, 300, spectrum=SigmoidSpectrum(center=0.5, margin=0.1))
    torch.testing.assert_close(layer.singular_values, torch.full((300,), 0.5))
    assert layer.bias.abs().max() <= 1 / 400**0.5
    assert layer.bias.std() > 0.4 / 400**0.5
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not torch.equal(layer.bias, before["bias"])
    assert not torch.equal(layer.svd.left, before["svd.left"])


@pytest.mark.parametrize("num_vectors", [2, 60])
@pytest.mark.parametrize("num_reflectors", [None, 2])
def test_gradients_are_those_of_the_dense_weight(num_vectors, num_reflectors):
    layer = SVDLinear(5, 4, num_reflectors=num_reflectors)
    x = torch.randn(num_vectors, 5, requires_grad=True)
    target = torch.randn(num_vectors, 4)
    parameters = dict(layer.named_parameters())
    actual = torch.autograd.grad((layer(x) * target).sum(), [x, *parameters.values()])
    svd = layer.svd
    w = reference.svd_to_dense(
        svd.left.triu(), svd.singular_values, svd.right.triu(), svd.signs.sign()
    )
    loss = (nn.functional.linear(x, w, layer.bias) * target).sum()
    expected = torch.autograd.grad(loss, [x, *parameters.values()])
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_weight_and_singular_values_are_differentiable():
    layer = SVDLinear(3, 3)
    layer.weight[0, 0].backward()
    assert layer.svd.left.grad.abs().sum() > 0
    assert layer.svd.raw_singular_values.grad.abs().sum() > 0
    layer.zero_grad()
    layer.singular_values.sum().backward()
    torch.testing.assert_close(layer.svd.raw_singular_values.grad, torch.full((3,), 0.005))


def test_linear_round_trip():
    layer = SVDLinear(6, 4, dtype=torch.float32)
    with torch.no_grad():
        layer.svd.raw_singular_values.normal_(std=3)
    linear = layer.eval().to_linear()
    assert type(linear) is nn.Linear
    assert not linear.training
    x = torch.randn(5, 6, dtype=torch.float32)
    torch.testing.assert_close(linear(x), layer(x), rtol=0, atol=4e-6)
    again = SVDLinear.from_linear(linear)
    assert not again.training
    torch.testing.assert_close(again(x), linear(x), rtol=0, atol=8e-6)
    again.bias.data.zero_()
    assert linear.bias.abs().sum() > 0
    assert linear.weight.is_leaf
    assert linear.weight.requires_grad


def test_from_linear_raises_or_clips():
    linear = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"outside the bounds \(0\.99, 1\.01\)"):
        SVDLinear.from_linear(linear)
    clipped = SVDLinear.from_linear(linear, out_of_bounds="clip")
    u, _, vh = torch.linalg.svd(linear.weight)
    torch.testing.assert_close(clipped.weight, u @ vh, rtol=0, atol=0.011)
    exact = SVDLinear.from_linear(linear, spectrum=SoftplusSpectrum())
    torch.testing.assert_close(exact.weight, linear.weight.detach(), rtol=0, atol=1e-13)
    few = SVDLinear.from_linear(linear, spectrum=SoftplusSpectrum(), num_reflectors=1)
    torch.testing.assert_close(few.weight, linear.weight.detach(), rtol=0, atol=1e-13)
    assert few.svd.left.shape == (1, 4)
    with pytest.raises(TypeError, match=r"linear must be .*Conv1d"):
        SVDLinear.from_linear(nn.Conv1d(1, 1, 1))


def test_loads_dense_checkpoints():
    q = torch.linalg.qr(torch.randn(4, 4)).Q
    linear = nn.Linear(4, 4)
    linear.weight.data = q
    network = nn.Sequential(nn.ReLU(), SVDLinear(4, 4))
    state = nn.Sequential(nn.ReLU(), linear).state_dict()
    result = network.load_state_dict(state)
    assert not result.missing_keys
    assert not result.unexpected_keys
    torch.testing.assert_close(network[1].weight, q, rtol=0, atol=1e-14)
    assert torch.equal(network[1].bias, linear.bias)
    assert list(state) == ["1.weight", "1.bias"]
    linear.weight.data = 2 * q
    with pytest.raises(RuntimeError, match=r"dense 1\.weight: .* outside the bounds"):
        network.load_state_dict(nn.Sequential(nn.ReLU(), linear).state_dict())
    with pytest.raises(RuntimeError, match=r"dense weight: w must have shape \(4, 4\)"):
        SVDLinear(4, 4).load_state_dict(nn.Linear(4, 3).state_dict())
    with pytest.raises(RuntimeError, match="bias"):
        SVDLinear(4, 4, bias=False).load_state_dict({"weight": q, "bias": torch.zeros(4)})


def test_loads_its_own_checkpoints():
    layer, other = SVDLinear(3, 4), SVDLinear(3, 4)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.weight, layer.weight)
        assert twin.svd.left is not layer.svd.left
    with pytest.raises(RuntimeError, match=r"svd\.left"):
        other.load_state_dict({"bias": torch.zeros(4)})


def test_meta_device():
    layer = SVDLinear(3, 4, device="meta", dtype=torch.float32)
    assert layer(torch.ones(2, 3, device="meta", dtype=torch.float32)).shape == (2, 4)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.weight), torch.ones(3, dtype=torch.float32)
    )
    assert layer.bias.isfinite().all()


def test_a_layer_without_memory_takes_a_dense_checkpoint_over():
    linear = nn.Linear(3, 4)
    layer = SVDLinear(3, 4, device="meta", spectrum=SoftplusSpectrum())
    layer.load_state_dict(linear.state_dict(), assign=True)
    x = torch.randn(5, 3)
    torch.testing.assert_close(layer(x), linear(x), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="w must have values, got a tensor on the meta device"):
        SVDLinear.from_linear(nn.Linear(3, 4, device="meta"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_vectors", [3, 400])
def test_half_precision_is_more_exact_than_linear(dtype, num_vectors):
    layer = SVDLinear(48, 48).to(dtype)
    x = torch.randn(num_vectors, 48).to(dtype)
    exact = nn.functional.linear(x.double(), dense(layer), layer.bias.double())
    y = layer(x)
    assert y.dtype == layer.weight.dtype == dtype
    plain = nn.functional.linear(x, dense(layer).to(dtype), layer.bias)
    assert (y.double() - exact).abs().max() <= (plain.double() - exact).abs().max()
    assert layer.singular_values.dtype == torch.float32


def test_half_precision_input_to_other_modules():
    x = torch.randn(5, 8)
    for dtype in (torch.float32, torch.float64):
        layer = SVDLinear(8, 8, dtype=dtype)
        y = layer(x.bfloat16())
        assert y.dtype == torch.bfloat16
        exact = nn.functional.linear(x.bfloat16().double(), dense(layer), layer.bias.double())
        assert torch.equal(y, exact.bfloat16())


def test_autocast_keeps_the_singular_values():
    layer = SVDLinear(32, 32, bias=False, dtype=torch.float32)
    x = torch.eye(32, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        w = layer(x).mT
    sigma = torch.linalg.svdvals(w.detach().double())
    assert (sigma - 1).abs().max() < 2e-6
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).square().sum().backward()
    inside = layer.svd.left.grad.clone()
    layer.zero_grad()
    y.square().sum().backward()
    torch.testing.assert_close(inside, layer.svd.left.grad, rtol=0, atol=1e-6)


def test_default_optimizers_keep_the_bounds():
    layer = SVDLinear(6, 5, dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    x, target = torch.randn(20, 6).float(), torch.randn(20, 5).float()
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    sigma = torch.linalg.svdvals(dense(layer))
    assert (sigma - 1).abs().max() <= 0.01 + 1e-13


def test_compiles_in_one_graph():
    for num_reflectors, dynamic in [(None, None), (2, True)]:
        layer = SVDLinear(6, 4, num_reflectors=num_reflectors, dtype=torch.float32)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        x = torch.randn(3, 6, requires_grad=True, dtype=torch.float32)
        y = compiled(x)
        torch.testing.assert_close(y, layer(x), rtol=0, atol=2e-6)
        (ours,) = torch.autograd.grad(y.square().sum(), x)
        (theirs,) = torch.autograd.grad(layer(x).square().sum(), x)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=4e-6)


def test_ensembles_by_vmap():
    layers = [SVDLinear(5, 4, num_reflectors=3) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    x = torch.randn(7, 5)
    y = torch.func.vmap(
        lambda p, b: torch.func.functional_call(base, (p, b), (x,)), randomness="error"
    )(parameters, buffers)
    expected = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SVDLinear(0, 3), ValueError, "in_features must be at least 1, got 0"),
        (lambda: SVDLinear(3, 0), ValueError, "out_features must be at least 1, got 0"),
        (lambda: SVDLinear(3, 4, torch.device("cpu")), TypeError, "bias must be True or False"),
        (lambda: SVDLinear(3, 4, num_reflectors=5), ValueError, "num_reflectors .* 3, got 5"),
        (lambda: SVDLinear(3, 4, spectrum="sigmoid"), TypeError, "spectrum .*'sigmoid'"),
        (lambda: SVDLinear(3, 4)(torch.ones(2, 4)), ValueError, r"in_features = 3, got \(2, 4\)"),
        (lambda: SVDLinear(3, 4)(torch.tensor(1.0)), ValueError, r"in_features = 3, got \(\)"),
        (lambda: SVDLinear(3, 4)(torch.ones(3).long()), TypeError, "input .*int64"),
        (lambda: SVDLinear(3, 4)(torch.ones(3).cfloat()), TypeError, "input .*complex64"),
        (lambda: SVDLinear(3, 4)(torch.ones(3).float()), TypeError, "input .*float64.*float32"),
        (lambda: SVDLinear(3, 4)([1.0, 2.0, 3.0]), TypeError, "input .*list"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_says_what_it_is():
    text = repr(SVDLinear(3, 4, bias=False, spectrum=FixedSpectrum()))
    assert "in_features=3, out_features=4, bias=False" in text
    assert "num_reflectors=(3, 3), spectrum=FixedSpectrum(value=1.0)" in text


def test_factors_solve_what_the_layer_did():
    layer = SVDLinear(5, 5, bias=False)
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer.factors.inverse().apply(layer(x)), x)
    sign, logabsdet = layer.factors.slogdet()
    expected = torch.linalg.slogdet(layer.weight)
    assert sign == expected.sign
    torch.testing.assert_close(logabsdet, expected.logabsdet)


@pytest.mark.parametrize("bias", [False, True])
def test_in_place_activation_may_follow(bias):
    layer = SVDLinear(6, 5, bias)
    x = torch.randn(3, 6, requires_grad=True)
    torch.relu_(layer(x)).sum().backward()
    expected = torch.autograd.grad(torch.relu(layer(x)).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spectrum", [None, SignedSpectrum(2.0)])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 50)])
def test_inverse(bias, spectrum, shape):
    layer = SVDLinear(6, 6, bias, spectrum=spectrum)
    with torch.no_grad():
        layer.svd.raw_singular_values.normal_()
    y = torch.randn(*shape, 6, requires_grad=True)
    shifted = y if layer.bias is None else y - layer.bias
    expected = torch.linalg.solve(dense(layer), shifted.unsqueeze(-1)).squeeze(-1)
    x = layer.inverse(y)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(out.pow(3).sum(), y)[0] for out in (x, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


def test_logabsdet():
    layer = SVDLinear(5, 5, spectrum=SoftplusSpectrum())
    with torch.no_grad():
        layer.svd.raw_singular_values.normal_()
    torch.testing.assert_close(layer.logabsdet(), torch.linalg.slogdet(dense(layer)).logabsdet)
    layer.logabsdet().backward()
    assert (layer.svd.raw_singular_values.grad > 0).all()
    assert layer.svd.left.grad is None


def test_inverse_in_half_precision_is_rounded_once():
    layer = SVDLinear(16, 16).bfloat16()
    y = torch.randn(7, 16).bfloat16()
    exact = torch.linalg.solve(dense(layer), (y.double() - layer.bias.double()).mT).mT
    x = layer.inverse(y)
    assert x.dtype == torch.bfloat16
    assert ((x.double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-5).all()


def test_what_has_no_inverse():
    with pytest.raises(ValueError, match="inverse needs a square weight, got in_features = 3 and"):
        SVDLinear(3, 4).inverse(torch.ones(4))
    with pytest.raises(ValueError, match="logabsdet needs a square weight"):
        SVDLinear(3, 4).logabsdet()
    layer = SVDLinear(3, 3, spectrum=SigmoidSpectrum(center=0, margin=1))
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        layer.inverse(torch.ones(3))
    with pytest.raises(ValueError, match=r"out_features = 3, got \(4,\)"):
        layer.inverse(torch.ones(4))
    with pytest.raises(TypeError, match=r"y must be .*int64"):
        layer.inverse(torch.ones(3).long())


# W is formed, or its factors are applied.
@pytest.mark.parametrize(("out_features", "num_reflectors"), [(6, None), (6, 3), (60, 1)])
def test_exports_with_any_batch(out_features, num_reflectors):
    layer = SVDLinear(8, out_features, num_reflectors=num_reflectors)
    sizes = torch.export.Dim("batch", min=2, max=4096)
    example = (torch.randn(4, 8),)
    program = torch.export.export(layer, example, dynamic_shapes=({0: sizes},)).module()
    for size in (2, 9, 3000):
        x = torch.randn(size, 8)
        torch.testing.assert_close(program(x), layer(x), rtol=0, atol=1e-13)


def test_compiles_once_for_each_side_of_the_rule():
    torch._dynamo.reset()
    layer, counter = SVDLinear(8, 6), CompileCounter()
    compiled = torch.compile(layer, backend=counter, dynamic=True, fullgraph=True)
    for size in (2, 3, 5, 8, 50, 51, 3000):
        x = torch.randn(size, 8)
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-13)
    assert counter.frame_count == 2
