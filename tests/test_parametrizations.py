"""parametrizations.svd on modules of torch: bounds, what is kept, assignment, life cycle."""

import copy
import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_triton.models.bake import bake
from spectral_triton.parametrizations import remove_svd, svd, svd_names
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum, SoftplusSpectrum

# module, name of the tensor, blocks
MODULES = {
    "linear": (lambda: nn.Linear(5, 3), "weight", 1),
    "conv": (lambda: nn.Conv2d(3, 4, 3), "weight", 1),
    "transposed conv": (lambda: nn.ConvTranspose1d(4, 6, 5), "weight", 2),
    "embedding": (lambda: nn.Embedding(10, 4), "weight", 1),
    "rnn": (lambda: nn.RNN(3, 6), "weight_hh_l0", 1),
    "gru": (lambda: nn.GRU(3, 4, bidirectional=True), "weight_hh_l0_reverse", 3),
    "lstm": (lambda: nn.LSTM(3, 4, num_layers=2), "weight_hh_l1", 4),
    "cell": (lambda: nn.LSTMCell(3, 4), "weight_ih", 4),
}
every_module = pytest.mark.parametrize("case", MODULES)


def sample_input(case):
    if case == "embedding":
        return torch.tensor([[1, 2], [3, 9]])
    shapes = {"linear": (7, 5), "conv": (2, 3, 8, 8), "transposed conv": (2, 4, 9), "cell": (2, 3)}
    return torch.randn(shapes.get(case, (6, 2, 3)))


def output(module, case):
    torch.manual_seed(3)
    out = module(sample_input(case))
    while isinstance(out, tuple):
        out = out[0]
    return out


def singular_values(module, name, num_blocks=1):
    w = getattr(module, name).detach().double().flatten(1)
    return torch.linalg.svdvals(w.unflatten(0, (num_blocks, -1)))


def within(module, name, num_blocks=1, center=1.0, margin=0.01):
    return ((singular_values(module, name, num_blocks) - center).abs() <= margin + 1e-13).all()


@every_module
def test_the_weight_is_projected_onto_the_bounds(case):
    make, name, blocks = MODULES[case]
    module = make()
    before = getattr(module, name).detach().clone()
    assert not within(module, name, blocks)
    assert svd(module, name, num_blocks=blocks, out_of_bounds="clip") is module
    assert within(module, name, blocks)
    u, sigma, vh = torch.linalg.svd(
        before.flatten(1).unflatten(0, (blocks, -1)), full_matrices=False
    )
    nearest = ((u * sigma.clamp(0.99, 1.01).unsqueeze(-2)) @ vh).reshape(before.shape)
    # A thousandth of the width inside, at most.
    difference = (getattr(module, name) - nearest).flatten(1).unflatten(0, (blocks, -1))
    assert (torch.linalg.matrix_norm(difference, 2) <= 2.001e-5).all()


@every_module
def test_a_weight_within_the_bounds_is_kept(case):
    make, name, blocks = MODULES[case]
    module = make()
    expected = output(module, case)
    svd(module, name, num_blocks=blocks, spectrum=SoftplusSpectrum(), out_of_bounds="clip")
    torch.testing.assert_close(output(module, case), expected, rtol=1e-12, atol=1e-13)


@every_module
def test_training_uses_the_weight_and_keeps_the_bounds(case):
    make, name, blocks = MODULES[case]
    module = svd(
        make(),
        name,
        num_blocks=blocks,
        spectrum=SigmoidSpectrum(center=1.0, margin=0.05),
        out_of_bounds="clip",
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    before = getattr(module, name).detach().clone()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (output(module, case) - 0.3).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert within(module, name, blocks, margin=0.05)
    assert losses[-1] < losses[0]
    assert (getattr(module, name) - before).abs().max() > 0.01


@every_module
def test_gradients_are_those_through_the_dense_weight(case):
    make, name, blocks = MODULES[case]
    module = svd(make(), name, num_blocks=blocks, out_of_bounds="clip")
    parameters = list(module.parametrizations[name].parameters())
    actual = torch.autograd.grad(output(module, case).square().sum(), parameters)
    w = getattr(module, name)
    leaf = w.detach().clone().requires_grad_()
    plain = make()
    plain.load_state_dict(
        {key: value for key, value in module.state_dict().items() if "parametrizations" not in key}
        | {name: leaf.detach()}
    )
    torch.manual_seed(3)
    out = torch.func.functional_call(plain, {name: leaf}, (sample_input(case),))
    while isinstance(out, tuple):
        out = out[0]
    (grad_w,) = torch.autograd.grad(out.square().sum(), leaf)
    expected = torch.autograd.grad(w, parameters, grad_w)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@every_module
def test_assignment_round_trips(case):
    make, name, blocks = MODULES[case]
    module = svd(make(), name, num_blocks=blocks, out_of_bounds="clip")
    other = svd(make(), name, num_blocks=blocks, out_of_bounds="clip")
    w = getattr(other, name).detach()
    parameters = [id(p) for p in module.parameters()]
    setattr(module, name, w)
    torch.testing.assert_close(getattr(module, name), w, rtol=0, atol=1e-13)
    assert [id(p) for p in module.parameters()] == parameters


@every_module
def test_copies_and_state_dicts(case):
    make, name, blocks = MODULES[case]
    module = svd(make(), name, num_blocks=blocks, out_of_bounds="clip")
    expected = output(module, case)
    twin = copy.deepcopy(module)
    assert torch.equal(output(twin, case), expected)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.1).add_(0.01)
    assert torch.equal(output(module, case), expected)
    loaded = svd(make(), name, num_blocks=blocks, out_of_bounds="clip")
    loaded.load_state_dict(module.state_dict())
    assert torch.equal(output(loaded, case), expected)


@every_module
def test_removal_leaves_a_plain_module(case):
    make, name, blocks = MODULES[case]
    module = svd(make(), name, num_blocks=blocks, out_of_bounds="clip")
    expected = output(module, case)
    parametrize.remove_parametrizations(module, name)
    assert type(module) is type(make())
    assert isinstance(getattr(module, name), nn.Parameter)
    assert module.state_dict().keys() == make().state_dict().keys()
    torch.testing.assert_close(output(module, case), expected, rtol=0, atol=0)
    assert within(module, name, blocks)


def test_signature_begins_like_torchs_orthogonal():
    parameters = list(inspect.signature(svd).parameters.values())
    assert [p.name for p in parameters[:2]] == ["module", "name"]
    assert parameters[1].default == "weight"
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])


def test_blocks_have_singular_values_of_their_own():
    lstm = nn.LSTM(3, 4)
    gates = torch.linalg.qr(torch.randn(4, 4, 4)).Q * torch.linspace(0.991, 1.009, 4)[:, None, None]
    lstm.weight_hh_l0.data = gates.reshape(16, 4)
    svd(lstm, "weight_hh_l0", num_blocks=4, out_of_bounds="clip")
    torch.testing.assert_close(lstm.weight_hh_l0.unflatten(0, (4, 4)), gates, rtol=0, atol=1e-13)


@pytest.mark.parametrize("spectrum", [None, FixedSpectrum(2.0), SoftplusSpectrum(0.5)], ids=repr)
def test_few_reflectors_start_from_a_base(spectrum):
    plain = nn.Linear(6, 5)
    U, sigma, Vh = torch.linalg.svd(plain.weight.detach(), full_matrices=False)
    module = svd(plain, num_reflectors=(2, 3), spectrum=spectrum, out_of_bounds="clip")
    originals = module.parametrizations.weight
    assert originals.original0.shape == (1, 2, 5)
    assert originals.original1.shape == (1, 3, 6)
    assert hasattr(originals, "original2") == (not isinstance(spectrum, FixedSpectrum))
    low, high = (0.99, 1.01) if spectrum is None else spectrum.bounds
    inset = 0.0 if low == high else 1e-3 * (min(high, 1.02) - low if high < 2 else 1.0)
    clipped = sigma.clamp(low + inset, high - inset)
    torch.testing.assert_close(module.weight, U @ clipped.diag() @ Vh, rtol=0, atol=1e-13)
    module.weight.sum().backward()
    assert (originals.original0.grad.norm(dim=-1) > 1e-6).all()
    assert not any(p.requires_grad for n, p in module.named_parameters() if n.endswith("_base"))
    given = torch.linalg.qr(torch.randn(5, 6).mT).Q.mT * (2.0 if low == 2 else 1.0)
    module.weight = given
    torch.testing.assert_close(module.weight, given, rtol=0, atol=1e-13)
    module = nn.Linear(4, 4)
    module.weight.data = torch.diag(torch.tensor([1.004, 1.002, 1.0, 0.998]))
    expected = module.weight.detach().clone()
    svd(module, num_reflectors=1, out_of_bounds="clip")
    torch.testing.assert_close(module.weight, expected, rtol=0, atol=1e-14)


def test_assignment_out_of_bounds():
    module = svd(nn.Linear(3, 3), out_of_bounds="clip")
    module.weight = 5 * torch.eye(3)
    torch.testing.assert_close(module.weight, 1.01 * torch.eye(3), rtol=0, atol=2.1e-5)
    strict = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="outside the bounds"):
        svd(strict, out_of_bounds="raise")
    assert not parametrize.is_parametrized(strict)
    nn.init.orthogonal_(strict.weight)
    expected = strict.weight.detach().clone()
    svd(strict, out_of_bounds="raise")
    torch.testing.assert_close(strict.weight, expected, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match=r"outside the bounds \(0\.99, 1\.01\)"):
        strict.weight = 5 * torch.eye(3)
    torch.testing.assert_close(strict.weight, expected, rtol=0, atol=1e-14)


def test_caching_forms_the_weight_once():
    module = svd(nn.Linear(3, 3), out_of_bounds="clip")
    with parametrize.cached():
        first = module.weight
        assert module.weight is first
    assert module.weight is not first


def test_an_rnn_that_reads_a_cached_weight_twice_has_its_gradient_twice():
    module = svd(nn.LSTM(3, 4), "weight_hh_l0", num_blocks=4, out_of_bounds="clip")
    x = torch.randn(5, 2, 3)
    wanted = list(module.parametrizations.parameters())

    def gradients(calls):
        return torch.autograd.grad(sum(module(x)[0].sum() for _ in range(calls)), wanted)

    expected = [2 * grad for grad in gradients(1)]
    with parametrize.cached():
        torch.testing.assert_close(list(gradients(2)), expected)


def test_default_adamw_never_zeroes_the_weight():
    module = svd(nn.Linear(8, 8, dtype=torch.float32), out_of_bounds="clip")
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.ones(2, 8, dtype=torch.float32)).sum().backward()
        optimizer.step()
        assert within(module, "weight", margin=0.010001)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes(dtype):
    module = svd(nn.Linear(12, 12, dtype=dtype), out_of_bounds="clip")
    assert module.weight.dtype == dtype
    eps = torch.finfo(dtype).eps
    # The bound, and the rounding of W itself: half a unit for each of 144 entries.
    assert within(module, "weight", margin=0.01 + 6 * eps)
    module.double()
    assert module.weight.dtype == torch.float64
    assert within(module, "weight", margin=0.01)


def test_buffers_and_frozen_parameters():
    module = nn.Linear(3, 3)
    module.register_buffer("fixed", torch.randn(3, 4))
    svd(module, "fixed", out_of_bounds="clip")
    assert within(module, "fixed")
    assert not module.fixed.requires_grad
    module.weight.requires_grad_(False)
    svd(module, out_of_bounds="clip")
    assert not any(p.requires_grad for p in module.parametrizations.weight.parameters())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: svd(torch.ones(3, 3), out_of_bounds="clip"), TypeError, "module must be .*Tensor"),
        (
            lambda: svd(nn.Linear(3, 3), "weights", out_of_bounds="clip"),
            ValueError,
            "name must be .*'weights'",
        ),
        (
            lambda: svd(nn.Linear(3, 3), "bias", out_of_bounds="clip"),
            ValueError,
            r"bias .*two dimensions.*\(3,\)",
        ),
        (lambda: svd(nn.ReLU(), out_of_bounds="clip"), ValueError, "name must be .*'weight'"),
        (
            lambda: svd(nn.Linear(3, 3), num_blocks=2, out_of_bounds="clip"),
            ValueError,
            "num_blocks .*3, got 2",
        ),
        (
            lambda: svd(nn.Linear(3, 3), num_blocks=0, out_of_bounds="clip"),
            ValueError,
            "num_blocks .*got 0",
        ),
        (
            lambda: svd(nn.Linear(3, 3), num_blocks=1.0, out_of_bounds="clip"),
            TypeError,
            r"num_blocks .*1\.0",
        ),
        (
            lambda: svd(nn.Linear(3, 5), num_reflectors=4, out_of_bounds="clip"),
            ValueError,
            "num_reflectors .*3, got 4",
        ),
        (
            lambda: svd(svd(nn.Linear(3, 3), out_of_bounds="clip"), out_of_bounds="clip"),
            ValueError,
            "weight of Parametrized.* is in SVD form already; remove_svd",
        ),
        (
            lambda: svd(
                nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), out_of_bounds="clip"
            ),
            ValueError,
            "parametrized already",
        ),
        (
            lambda: svd(nn.Linear(3, 3), spectrum=0.5, out_of_bounds="clip"),
            TypeError,
            r"spectrum .*0\.5",
        ),
        (lambda: svd(nn.Linear(3, 3), out_of_bounds="x"), ValueError, "out_of_bounds .*'x'"),
        (
            lambda: svd(nn.Linear(3, 3, dtype=torch.complex64), out_of_bounds="clip"),
            TypeError,
            r"weight must be .*complex64",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bad_assignment_is_named():
    module = svd(nn.Linear(3, 4), out_of_bounds="clip")
    with pytest.raises(ValueError, match=r"weight must have shape \(4, 3\), got \(3, 4\)"):
        module.weight = torch.ones(3, 4)
    with pytest.raises(TypeError, match=r"weight must be .*int64"):
        module.weight = torch.ones(4, 3, dtype=torch.int64)


def test_says_what_it_is():
    text = repr(
        svd(nn.LSTM(3, 4), "weight_hh_l0", num_blocks=4, num_reflectors=2, out_of_bounds="clip")
    )
    assert "num_reflectors=(2, 2), spectrum=SigmoidSpectrum(" in text
    assert "num_blocks=4" in text


def test_remove_leaves_the_weight_and_all_copies_alone():
    module = svd(
        svd(nn.LSTM(3, 4), "weight_hh_l0", num_blocks=4, out_of_bounds="clip"),
        "weight_ih_l0",
        num_blocks=4,
        out_of_bounds="clip",
    )
    twin, x = copy.deepcopy(module), torch.randn(5, 2, 3)
    expected = module(x)[0]
    weight = twin.weight_hh_l0
    assert svd_names(twin) == ["weight_hh_l0", "weight_ih_l0"]
    remove_svd(twin, "weight_hh_l0")
    assert svd_names(twin) == ["weight_ih_l0"]
    assert isinstance(twin.weight_hh_l0, nn.Parameter)
    assert torch.equal(twin.weight_hh_l0, weight)
    torch.testing.assert_close(twin(x)[0], expected, rtol=0, atol=1e-14)
    remove_svd(twin, "weight_ih_l0")
    assert type(twin) is nn.LSTM
    assert not twin._forward_hooks
    torch.testing.assert_close(twin(x)[0], expected, rtol=0, atol=1e-14)
    assert torch.equal(module(x)[0], expected)
    assert svd_names(module) == ["weight_hh_l0", "weight_ih_l0"]


def test_remove_keeps_frozen_weights_and_buffers_what_they_are():
    layer = svd(nn.Linear(3, 3), out_of_bounds="clip").requires_grad_(False)
    remove_svd(layer)
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad
    holder = nn.Module()
    holder.register_buffer("weight", torch.eye(3))
    remove_svd(svd(holder, out_of_bounds="clip"))
    assert list(dict(holder.named_buffers())) == ["weight"]
    assert not list(holder.parameters())


def test_remove_names_what_it_cannot():
    with pytest.raises(
        ValueError,
        match=r"name must be a tensor that svd keeps in SVD form in Linear, got 'weight'",
    ):
        remove_svd(nn.Linear(2, 2))
    layer = nn.utils.parametrizations.spectral_norm(svd(nn.Linear(2, 2), out_of_bounds="clip"))
    with pytest.raises(ValueError, match="weight has further parametrizations, SpectralNorm"):
        remove_svd(layer)
    assert parametrize.is_parametrized(layer, "weight")


@pytest.mark.parametrize("num_reflectors", [None, 2])
def test_on_the_meta_device_shapes_are_made_and_a_state_dict_fills_them(num_reflectors):
    options = {"num_reflectors": num_reflectors, "spectrum": SigmoidSpectrum(center=1, margin=0.9)}
    whole = svd(nn.Linear(4, 6), **options)
    hollow = svd(nn.Linear(4, 6, device="meta"), **options)
    assert {tensor.device.type for tensor in hollow.state_dict().values()} == {"meta"}
    assert hollow.weight.shape == (6, 4)
    hollow.load_state_dict(whole.state_dict(), assign=True)
    assert torch.equal(hollow.weight, whole.weight)
    gates = svd(nn.LSTM(3, 4, device="meta"), "weight_hh_l0", num_blocks=4, out_of_bounds="clip")
    gates.to_empty(device="cpu").load_state_dict(
        svd(nn.LSTM(3, 4), "weight_hh_l0", num_blocks=4, out_of_bounds="clip").state_dict()
    )
    x = torch.randn(5, 2, 3)
    assert gates(x)[0].isfinite().all()


def test_a_state_without_bases_loads_where_there_were_some():
    spectrum = SigmoidSpectrum(center=1, margin=0.9)
    based = svd(nn.Linear(4, 6), num_reflectors=2, spectrum=spectrum, out_of_bounds="clip")
    assert based.parametrizations.weight[0].left_base is not None
    state = based.state_dict()
    plain = {key: value for key, value in state.items() if not key.endswith("_base")}
    based.load_state_dict(plain)
    assert based.parametrizations.weight[0].left_base is None
    based.load_state_dict(state)
    assert torch.equal(based.weight, svd_of(state, spectrum))


def svd_of(state, spectrum):
    module = svd(nn.Linear(4, 6), num_reflectors=2, spectrum=spectrum, out_of_bounds="clip")
    module.load_state_dict(state)
    return module.weight


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_weights_have_the_strides_of_torch(shape):
    module = svd(nn.Linear(*shape), out_of_bounds="clip")
    assert module.weight.is_contiguous()
    assert remove_svd(module).weight.is_contiguous()
    assert (
        len(torch.nn.utils.parameters_to_vector(module.parameters()))
        == shape[0] * shape[1] + (shape[1])
    )
    convolution = svd(nn.ConvTranspose2d(*shape, 2), out_of_bounds="clip")
    assert bake(convolution).weight.stride() == nn.ConvTranspose2d(*shape, 2).weight.stride()


def test_a_changed_weight_is_said():
    with pytest.warns(UserWarning, match=r"weight of Linear .* changed it by [\d.]+%") as got:
        svd(nn.Linear(6, 6), out_of_bounds="clip")
    assert got[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear = nn.Linear(6, 4)
        svd(
            linear,
            spectrum=SigmoidSpectrum.around(torch.linalg.svdvals(linear.weight)),
            out_of_bounds="clip",
        )
        svd(nn.Linear(6, 4, device="meta"), out_of_bounds="clip")


def test_a_base_stays_where_a_weight_is_assigned():
    layer = svd(nn.Linear(6, 6), num_reflectors=2, spectrum=SoftplusSpectrum())
    assert layer.parametrizations.weight[0].left_base is not None
    layer.weight = torch.eye(6)  # Two reflectors alone would do.
    assert layer.parametrizations.weight[0].left_base is not None
    torch.testing.assert_close(layer.weight, torch.eye(6), rtol=0, atol=1e-12)
