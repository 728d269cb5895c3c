"""Lipschitz constants, against Jacobians, slopes, and networks that attain them."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from spectral_triton import parametrizations
from spectral_triton.layers.conv import SVDConv1d, SVDConv2d, SVDConv3d
from spectral_triton.layers.conv_transpose import SVDConvTranspose2d
from spectral_triton.layers.linear import SVDLinear
from spectral_triton.layers.mlp import SVDMLP
from spectral_triton.layers.residual import SVDResidualBlock
from spectral_triton.layers.transposed_linear import SVDTransposedLinear
from spectral_triton.models.lipschitz import CONSTANTS, RULES, lipschitz_constant
from spectral_triton.spectra.spectrum import FixedSpectrum, SignedSpectrum, SoftplusSpectrum
from spectral_triton.svd.weight import SVDWeight


def largest_stretch(module, x):
    """The norm of the Jacobian at x."""
    flat = torch.func.jacrev(lambda x: module(x).flatten())(x).reshape(-1, x.numel())
    return torch.linalg.matrix_norm(flat.detach(), 2)


def batch_norm(kind, size):
    norm = kind(size).eval()
    norm.running_var.uniform_(0.1, 2)
    norm.weight.data.normal_()
    return norm


SVD = parametrizations.svd
EXACT = [
    (lambda: SVDLinear(4, 3, spectrum=SignedSpectrum(3)), (4,)),
    (lambda: SVDLinear(4, 4, spectrum=FixedSpectrum(0.3)), (4,)),
    (lambda: SVDTransposedLinear(4, 3, spectrum=SignedSpectrum(3)), (4,)),
    (lambda: SVDWeight(4, 3, spectrum=SoftplusSpectrum()), (3,)),
    (lambda: nn.Linear(4, 3), (4,)),
    (lambda: SVD(nn.Linear(4, 3), spectrum=SoftplusSpectrum()), (4,)),
    (lambda: SVDConv1d(2, 3, 2, stride=2, spectrum=SoftplusSpectrum()), (1, 2, 6)),
    (lambda: nn.Conv1d(4, 6, 3, stride=3, groups=2), (1, 4, 9)),
    (lambda: nn.Conv2d(2, 3, (1, 2), stride=(1, 2)), (1, 2, 3, 4)),
    (lambda: nn.ConvTranspose1d(4, 6, 3, stride=3, groups=2), (1, 4, 3)),
    (lambda: nn.AvgPool1d(3), (1, 2, 9)),
    (lambda: nn.AvgPool2d(2, divisor_override=3), (1, 2, 4, 6)),
    (lambda: nn.MaxPool2d(2), (1, 2, 4, 6)),
    (lambda: batch_norm(nn.BatchNorm1d, 4), (1, 4)),
    (lambda: batch_norm(nn.BatchNorm2d, 2), (1, 2, 3, 3)),
    (lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 4)), nn.Dropout().eval()), (1, 2, 4)),
    (lambda: nn.Sequential(), (3,)),
    (lambda: nn.PixelShuffle(2), (1, 4, 3, 3)),
]
BOUNDS = [
    (lambda: nn.Conv1d(2, 3, 3), (1, 2, 9)),
    (lambda: nn.Conv1d(2, 3, 3, padding="same", padding_mode="reflect"), (1, 2, 5)),
    (lambda: nn.Conv2d(2, 3, 3, padding=(0, 2), padding_mode="replicate"), (1, 2, 4, 2)),
    (lambda: nn.Conv2d(2, 2, 3, stride=2, dilation=2, padding=2), (1, 2, 5, 6)),
    (lambda: nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3)),
    (lambda: SVDConv2d(2, 3, 3, padding="same"), (1, 2, 4, 4)),
    (lambda: SVDConv3d(1, 2, 2, padding=1), (1, 1, 2, 3, 2)),
    (lambda: SVDConvTranspose2d(2, 3, 3, stride=2), (1, 2, 3, 3)),
    (lambda: nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1, output_padding=1), (1, 2, 5)),
    (lambda: nn.ConvTranspose2d(1, 2, 3, dilation=2, stride=2), (1, 1, 3, 3)),
    (lambda: nn.AvgPool1d(3, stride=1), (1, 1, 9)),
    (lambda: nn.AvgPool1d(3, padding=1, count_include_pad=False), (1, 1, 4)),
    (lambda: nn.AvgPool2d(2, ceil_mode=True), (1, 1, 3, 3)),
    (lambda: nn.AdaptiveAvgPool2d(1), (1, 2, 1, 2)),
    (lambda: nn.MaxPool1d(3, stride=1), (1, 1, 7)),
    (lambda: nn.MaxPool1d(2, dilation=2, stride=2), (1, 1, 8)),
    (lambda: nn.Softmax(-1), (3,)),
    (lambda: SVDResidualBlock(4), (4,)),
    (lambda: SVDMLP([4, 5, 5, 2], activation=nn.GELU), (4,)),
    (lambda: nn.Sequential(SVDConv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2)), (1, 1, 3, 3)),
]


def randomize(module):
    for part in module.modules():
        raw = getattr(part, "raw_singular_values", None)
        if raw is not None:
            nn.init.normal_(raw)
    return module


@pytest.mark.parametrize(("make", "shape"), EXACT)
def test_exact(make, shape):
    module = randomize(make())
    torch.testing.assert_close(
        lipschitz_constant(module).detach(), largest_stretch(module, torch.randn(shape))
    )


@pytest.mark.parametrize(("make", "shape"), BOUNDS)
def test_bounds(make, shape):
    module = randomize(make())
    bound = lipschitz_constant(module)
    stretch = max(largest_stretch(module, torch.randn(shape)) for _ in range(20))
    assert bound / 5 < stretch <= bound * (1 + 1e-12)


ELEMENTWISE = set(map(nn.__dict__.get, nn.modules.activation.__all__)) - {nn.Softmax, nn.Softmin}
ACTIVATIONS = [
    *(kind() for kind in CONSTANTS if kind in ELEMENTWISE),
    *(nn.Softplus(), nn.Softplus(2.0, 30.0)),
    *(nn.GELU(), nn.GELU("tanh"), nn.LeakyReLU(0.1), nn.LeakyReLU(-2.0), nn.ELU(0.5), nn.ELU(3.0)),
    *(nn.CELU(0.7), nn.PReLU(init=0.3), nn.PReLU(init=-1.5), nn.RReLU(1.5, 1.5), nn.Hardtanh(0, 9)),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_activations(activation):
    x = torch.linspace(-40, 40, 1_600_001, requires_grad=True)
    activation = activation.double()
    slope = torch.autograd.grad(activation(x).sum(), x)[0].abs().max()
    bound = lipschitz_constant(activation)
    # Rounding of the slope itself, and steps of 5e-5 between its samples.
    assert bound * (1 - 1e-6) <= slope <= bound * (1 + 1e-7)


@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_a_module_that_stands_several_times_counts_as_often(repeat):
    linear = nn.Linear(3, 3, bias=False)
    linear.weight.data = 2 * torch.eye(3)
    assert lipschitz_constant(nn.Sequential(*[linear, nn.Identity()] * repeat)) == 2**repeat
    steep = nn.PReLU(init=3.0)
    mlp = SVDMLP([3, 4, 5, 2], activation=lambda: steep, spectrum=FixedSpectrum())
    assert lipschitz_constant(mlp) == 9


def test_wrapped_modules_count_as_what_they_wrap():
    linear = nn.Linear(3, 3)
    assert lipschitz_constant(nn.DataParallel(linear)) == lipschitz_constant(linear)


def test_pooling_to_the_size_that_is_there():
    assert lipschitz_constant(nn.AdaptiveAvgPool2d((None, 1))) == 1
    assert lipschitz_constant(nn.AdaptiveAvgPool1d(None)) == 1


def test_softmax_attains_its_bound():
    x = torch.tensor([0.0, 0.0, -1e9])
    torch.testing.assert_close(largest_stretch(nn.Softmax(-1), x), torch.tensor(0.5))


def test_a_network_that_attains_its_bound():
    eye = nn.Linear(3, 3)
    eye.weight.data = torch.diag(torch.tensor([2.0, 1.0, 0.5]))
    linear = SVDLinear.from_linear(eye, spectrum=SoftplusSpectrum())
    block = SVDResidualBlock(3, spectrum=SoftplusSpectrum())
    block.linear = SVDLinear.from_linear(eye, spectrum=SoftplusSpectrum())
    network = nn.Sequential(linear, nn.LeakyReLU(), nn.Sequential(block, eye))
    bound = lipschitz_constant(network)
    torch.testing.assert_close(bound.detach(), torch.tensor(2.0 * (1 + 2.0) * 2.0))
    with torch.no_grad():
        for part in (linear, block.linear, eye):
            part.bias.fill_(1)
    x = torch.zeros(3)
    y = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close((network(x) - network(y)).norm(), bound)


def test_dropout_in_training():
    dropout = nn.Dropout(0.75)
    assert lipschitz_constant(dropout) == 4
    assert dropout(torch.ones(99)).max() == 4
    assert lipschitz_constant(dropout.eval()) == 1
    assert lipschitz_constant(nn.Dropout(1.0)) == 0
    assert lipschitz_constant(nn.AlphaDropout().eval()) == 1


def test_differentiable():
    model = nn.Sequential(SVDLinear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    lipschitz_constant(model).backward()
    assert (model[0].svd.raw_singular_values.grad != 0).any()
    assert (model[2].weight.grad != 0).any()


def test_half_precision_and_autocast():
    linear = nn.Linear(8, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = lipschitz_constant(linear)
    expected = torch.linalg.svdvals(linear.weight.double())[0]
    torch.testing.assert_close(bound.double(), expected, rtol=1e-6, atol=0)


class Doubled(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor


def test_constants_of_ones_own():
    model = nn.Sequential(Doubled(), nn.Sigmoid(), Doubled(3.0))
    assert lipschitz_constant(model, known={Doubled: 2}) == 1
    assert lipschitz_constant(model, known={Doubled: lambda module: module.factor}) == 1.5
    # They go before those that are known.
    assert lipschitz_constant(nn.LayerNorm(3), known={nn.LayerNorm: 7.0}) == 7


@pytest.mark.parametrize("constant", [-2, math.nan, None, torch.ones(2), lambda module: "3"])
def test_constants_of_ones_own_are_numbers(constant):
    with pytest.raises(ValueError, match=r"0 \(Doubled\): known gives .* no number that is 0 or"):
        lipschitz_constant(nn.Sequential(Doubled()), known={Doubled: constant})


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d])
@pytest.mark.parametrize("norm", [False, True])
def test_weights_that_hooks_compute_are_those_of_the_next_call(kind, norm):
    layer = kind(*(3, 3) if kind is nn.Linear else (3, 3, 1))
    layer = weight_norm(layer) if norm else prune.l1_unstructured(layer, "weight", 2)
    with torch.no_grad():
        (layer.weight_g if norm else layer.weight_orig).mul_(10)
    bound = lipschitz_constant(layer)
    x, y = torch.randn(2, 1, 3, 1)
    x, y = (x[..., 0], y[..., 0]) if kind is nn.Linear else (x, y)
    layer(x)
    assert torch.equal(bound, lipschitz_constant(layer))
    torch.testing.assert_close(bound, torch.linalg.matrix_norm(layer.weight.flatten(1), 2))


def test_pruned_singular_values_are_those_of_the_next_call():
    layer = SVDLinear(3, 3, spectrum=SoftplusSpectrum())
    prune.l1_unstructured(layer.svd, "raw_singular_values", 1)
    layer.svd.raw_singular_values_orig.data.add_(10)
    assert lipschitz_constant(layer) > 10


def test_numbers_of_any_type_make_a_floating_constant():
    for module in (nn.LeakyReLU(2), nn.ELU(2), nn.RReLU(1, 2)):
        constant = lipschitz_constant(module)
        assert constant == 2
        assert constant.is_floating_point()
    one, both = nn.MaxPool2d((2,), (1,)), nn.MaxPool2d(2, 1)
    assert lipschitz_constant(one) == lipschitz_constant(both)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.ReLU(), nn.Sequential(Doubled())), r"1\.0 \(Doubled\): its constant is"),
        (Doubled(), "for Doubled: its constant is not known, give it by known="),
        (nn.LayerNorm(3), "LayerNorm: it divides by the deviation"),
        (nn.Sequential(nn.BatchNorm1d(3)), r"0 \(BatchNorm1d\): statistics of the batch"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), "statistics of the batch"),
        (nn.MultiheadAttention(4, 2), "product of its inputs"),
        (nn.Hardshrink(), "not continuous"),
        (nn.AlphaDropout(), "known in eval mode only"),
        (nn.CELU(-1.0), "positive alpha"),
        (nn.Softplus(threshold=0), "jumps at its threshold"),
        (nn.AdaptiveAvgPool2d((None, 2)), "windows depend on the input"),
        (nn.AdaptiveAvgPool1d(2), "windows depend on the input"),
        (nn.LSTM(2, 2), "LSTM: its constant is not known"),
        (SVDWeight(2, 2, num_blocks=2), "several matrices"),
        (nn.Sequential(SVDResidualBlock(3, activation=Doubled)), r"0\.activation \(Doubled\)"),
    ],
)
def test_what_has_no_constant_is_named(module, message):
    with pytest.raises(ValueError, match=message):
        lipschitz_constant(module)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"module must be .* got float"):
        lipschitz_constant(1.0)


def test_every_rule_is_tested():
    tested = {type(part) for make, _ in EXACT + BOUNDS for part in make().modules()}
    tested |= {type(activation) for activation in ACTIVATIONS}
    families = {"".join(c for c in kind.__name__ if not c.isdigit()) for kind in RULES}
    names = {"".join(c for c in kind.__name__ if not c.isdigit()) for kind in tested}
    assert families - names <= {"AlphaDropout", "FeatureAlphaDropout", "Dropoutd"}
    assert math.isclose(lipschitz_constant(nn.GELU()).item(), 1.1289041451825208, rel_tol=1e-9)
