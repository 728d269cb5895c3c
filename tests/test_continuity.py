"""No start, conversion or loading leaves W at a point where the smallest change turns it over.

A reflector of zeros is the identity, and with noise of any size it is a reflection: W then moves by
twice a singular value. Noise on all parameters, as Langevin dynamics, averaging over samples,
evolution strategies or differential privacy add it, must move W in proportion.
"""

import copy

import pytest
import torch
from torch import nn

from spectral_triton import (
    SVDMLP,
    FixedSpectrum,
    SoftplusSpectrum,
    SpectralGRU,
    SpectralGRUCell,
    SpectralLSTM,
    SpectralLSTMCell,
    SpectralRNN,
    SpectralRNNCell,
    SVDConv1d,
    SVDConv2d,
    SVDConv3d,
    SVDLinear,
    SVDResidualBlock,
    SVDWeight,
    convert,
    parametrizations,
    rebase_,
)
from spectral_triton.init import flip_zero_rows_, haar_, identity_
from spectral_triton.parametrizations import svd_names
from spectral_triton.reference import svd_to_dense
from spectral_triton.svd.weight import INITIALIZERS

WIDE = SoftplusSpectrum()


def with_dense_state(module, plain):
    module.load_state_dict(plain.state_dict())
    return module


MADE = {
    "linear": lambda: SVDLinear(8, 8),
    "linear, few": lambda: SVDLinear(8, 5, num_reflectors=(3, 2)),
    "linear, fixed": lambda: SVDLinear(3, 3, spectrum=FixedSpectrum()),
    "linear, one": lambda: SVDLinear(1, 1),
    "conv1d": lambda: SVDConv1d(2, 6, 3),
    "conv2d": lambda: SVDConv2d(1, 4, 2),
    "conv3d": lambda: SVDConv3d(1, 8, 2),
    "mlp": lambda: SVDMLP((8, 8, 8)),
    "residual": lambda: SVDResidualBlock(6),
    "rnn": lambda: SpectralRNN(3, 8, 2, bidirectional=True),
    "rnn, all": lambda: SpectralRNN(3, 8, num_reflectors=(5, 8)),
    "rnn cell": lambda: SpectralRNNCell(3, 8),
    "lstm": lambda: SpectralLSTM(3, 8),
    "lstm cell": lambda: SpectralLSTMCell(3, 4),
    "gru": lambda: SpectralGRU(3, 5),
    "gru cell": lambda: SpectralGRUCell(3, 5),
    "parametrization": lambda: parametrizations.svd(nn.Linear(6, 6), out_of_bounds="clip"),
    "parametrization, wide band": lambda: parametrizations.svd(
        nn.Linear(6, 4), spectrum=WIDE, out_of_bounds="clip"
    ),
    "parametrization, few": lambda: parametrizations.svd(
        nn.Linear(5, 5), num_reflectors=(5, 2), out_of_bounds="clip"
    ),
    "gates": lambda: parametrizations.svd(
        nn.LSTM(2, 4), "weight_hh_l0", num_blocks=4, out_of_bounds="clip"
    ),
    "from_linear": lambda: SVDLinear.from_linear(nn.Linear(12, 8), spectrum=WIDE),
    "from_linear, few": lambda: SVDLinear.from_linear(
        nn.Linear(6, 9), spectrum=WIDE, num_reflectors=(3, 2)
    ),
    "linear, base": lambda: SVDLinear(7, 5, num_reflectors=3, base="haar"),
    "rebased": lambda: rebase_(SVDLinear(7, 5, num_reflectors=(3, 2), base="haar")),
    "rnn, base": lambda: SpectralRNN(3, 6, num_reflectors=(2, 5), base="haar"),
    "lstm, base": lambda: SpectralLSTM(3, 6, num_reflectors=2, base="haar"),
    "from_conv": lambda: SVDConv2d.from_conv(nn.Conv2d(2, 3, 3), spectrum=WIDE),
    "from_lstm": lambda: SpectralLSTM.from_lstm(nn.LSTM(3, 5), spectrum=WIDE),
    "from_gru": lambda: SpectralGRU.from_gru(nn.GRU(3, 5), spectrum=WIDE),
    "from_rnn": lambda: SpectralRNN.from_rnn(nn.RNN(3, 5), spectrum=WIDE),
    "convert": lambda: convert(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)),
        spectrum=WIDE,
        out_of_bounds="clip",
    )[0],
    "dense state": lambda: with_dense_state(SVDLinear(5, 5, spectrum=WIDE), nn.Linear(5, 5)),
    "set to the identity": lambda: SVDWeight(4, 4).set_dense_(torch.eye(4)),
    "set to signs": lambda: SVDWeight(3, 5).set_dense_(-torch.eye(3, 5)),
} | {
    f"{init}, {k}": lambda init=init, k=k: SVDWeight(6, 6, num_reflectors=k, init=init)
    for init in INITIALIZERS
    for k in (None, (3, 2), (4, 1), (6, 5), 1)
}


def matrices(module):
    """Every W of the module, by name."""
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, SVDWeight):
            found[name] = part.to_dense().detach().clone()
        for tensor in svd_names(part):
            found[f"{name}.{tensor}"] = getattr(part, tensor).detach().clone()
    return found


@pytest.mark.parametrize("name", MADE)
def test_noise_on_all_parameters_moves_w_in_proportion(name):
    for seed in range(4):
        torch.manual_seed(seed)
        module = MADE[name]()
        before = matrices(module)
        assert before
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.add_(1e-8 * torch.randn_like(parameter))
        for key, w in matrices(moved).items():
            change = torch.linalg.matrix_norm(w - before[key]).max()
            # A row of length l turns by noise / l, and nothing is shorter than one entry of size 1.
            assert change < 1e-6, (name, seed, key)


@pytest.mark.parametrize("name", MADE)
def test_no_row_is_zero(name):
    module = MADE[name]()
    rows = [p for n, p in module.named_parameters() if n.endswith(("left", "right"))]
    rows += [p for n, p in module.named_parameters() if n.endswith(("original0", "original1"))]
    assert rows
    for parameter in rows:
        # With a base whole rows act.
        based = any(n.endswith("_base") for n, _ in module.named_parameters())
        length = torch.linalg.vector_norm(parameter if based else parameter.triu(), dim=-1)
        usual = torch.arange(parameter.shape[-1], 0, -1).sqrt()[: parameter.shape[-2]]
        assert (length > 0.49 * usual).all()


def test_a_full_start_reaches_both_determinants():
    torch.manual_seed(0)
    signs = {SVDLinear(2, 2).factors.slogdet().sign.item() for _ in range(20)}
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize(("k_u", "k_v"), [(4, 4), (3, 4), (0, 2), (4, 0)])
def test_flipping_changes_nothing(k_u, k_v):
    left, right = haar_(torch.empty(3, k_u, 4)), haar_(torch.empty(3, k_v, 6))
    left[0, k_u // 2 :] = 0
    right[1, :1] = 0
    # What stands before the diagonal is no part of the row.
    if k_u == 4:
        left[2, 3] = torch.tensor([1.0, 2, 3, 0])
    signs, sigma = torch.tensor([1.0, -1, 1, -1]).repeat(3, 1), torch.rand(3, 4) + 0.5
    before = svd_to_dense(left.triu(), sigma, right.triu(), signs)
    flip_zero_rows_(left, right, signs)
    torch.testing.assert_close(svd_to_dense(left.triu(), sigma, right.triu(), signs), before)
    assert (signs.abs() == 1).all()
    assert (left.triu() != 0).any(-1).all()
    assert (right.triu() != 0).any(-1).all()


def test_an_identity_start_of_odd_rows_is_the_identity():
    left, right, signs = torch.empty(4, 4), torch.empty(1, 4), torch.ones(4)
    identity_(left, right)
    flip_zero_rows_(left, right, signs)
    torch.testing.assert_close(svd_to_dense(left, torch.ones(4), right, signs), torch.eye(4))
    assert (left != 0).any(-1).all()


def test_a_row_that_is_set_to_zero_stays_the_identity_without_a_gradient():
    weight = SVDWeight(4, 4)
    with torch.no_grad():
        weight.left[1] = 0
    weight.to_dense().square().sum().backward()
    assert (weight.left[1] == 0).all()
    assert (weight.left.grad[1] == 0).all()
    loaded = SVDWeight(4, 4)
    loaded.load_state_dict(weight.state_dict())
    assert torch.equal(loaded.to_dense(), weight.to_dense())
