import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_triton import SigmoidSpectrum, SpectralRNN, SVDLinear
from spectral_triton.analysis.spectra import quantiles, spectra, spectra_of_checkpoints
from spectral_triton.parametrizations import svd
from spectral_triton.svd.weight import SVDWeight


def svdvals(matrix):
    return torch.linalg.svdvals(matrix.detach())


def test_values_of_factored_matrices_are_those_of_the_dense_ones():
    net = nn.Sequential(
        SVDLinear(4, 6, spectrum=SigmoidSpectrum(center=0.0, margin=0.5)), SpectralRNN(6, 5)
    )
    with torch.no_grad():
        net[0].svd.raw_singular_values.normal_(std=3)
        net[1].svd_weight().raw_singular_values.normal_(std=3)
    found = spectra(net)
    assert list(found) == ["0.svd", "1.svd_hh_l0"]
    # Values of either sign: a singular value is their absolute value.
    torch.testing.assert_close(found["0.svd"], svdvals(net[0].weight))
    torch.testing.assert_close(found["1.svd_hh_l0"], svdvals(net[1].weight_hh_l0))


@pytest.mark.parametrize(
    "make",
    [
        nn.Linear,
        lambda m, n: SVDLinear(m, n),
        lambda m, n: svd(nn.Linear(m, n), out_of_bounds="clip"),
    ],
)
def test_a_matrix_with_one_singular_value(make):
    layer = make(3, 1)
    (values,) = spectra(layer).values()
    torch.testing.assert_close(values, svdvals(layer.weight))


def test_blocks_are_apart(monkeypatch):
    values = torch.tensor([[1.0, -3.0], [2.0, 1.5]])
    monkeypatch.setattr(SVDWeight, "singular_values", property(lambda self: values))
    found = spectra(SVDWeight(2, 2))
    assert {k: v.tolist() for k, v in found.items()} == {"weight[0]": [3, 1], "weight[1]": [2, 1.5]}


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_gates_are_apart(kind, gates):
    net = kind(3, 4, num_layers=2)
    found = spectra(net)
    assert len(found) == 2 * gates
    for layer in range(2):
        weight = getattr(net, f"weight_hh_l{layer}")
        for gate in range(gates):
            label = f"[{gate}]" if gates > 1 else ""
            block = weight[4 * gate : 4 * gate + 4]
            torch.testing.assert_close(found[f"weight_hh_l{layer}{label}"], svdvals(block))


@pytest.mark.parametrize(
    ("make", "name", "blocks"),
    [
        (lambda: nn.LSTM(3, 8), "weight_hh_l0", 4),
        (lambda: nn.RNN(3, 8), "weight_hh_l0", 1),
        (lambda: nn.LSTM(3, 8), "weight_ih_l0", 1),
        (lambda: nn.Linear(3, 8), "weight", 1),
        (lambda: nn.Conv2d(2, 8, 3), "weight", 1),
    ],
)
@pytest.mark.parametrize("further", [False, True])
def test_parametrized_weights(make, name, blocks, further):
    net = svd(
        make(),
        name,
        num_blocks=blocks,
        spectrum=SigmoidSpectrum(center=1.0, margin=0.5),
        out_of_bounds="clip",
    )
    with torch.no_grad():
        net.parametrizations[name].original2.normal_()
    if further:
        parametrize.register_parametrization(net, name, nn.Softshrink(0.1))
    found = spectra(net)
    for block, matrix in enumerate(getattr(net, name).flatten(1).chunk(blocks)):
        values = found[f"{name}[{block}]" if blocks > 1 else name]
        torch.testing.assert_close(values, svdvals(matrix))


def test_half_precision_and_empty_weights():
    assert spectra(nn.Linear(4, 8).bfloat16())["weight"].dtype == torch.float32
    assert spectra(nn.Linear(0, 8))["weight"].shape == (0,)


def test_checkpoints():
    net = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    doubled = {name: 2 * value for name, value in before.items()}
    history = spectra_of_checkpoints(net, [before, doubled])["weight"]
    expected = svdvals(before["weight"])
    torch.testing.assert_close(history, torch.stack([expected, 2 * expected]))
    assert torch.equal(net.weight, before["weight"])
    with pytest.raises(ValueError, match="states must not be empty"):
        spectra_of_checkpoints(net, [])


def test_quantiles():
    history = torch.tensor([[4.0, 1.0, 2.0, 3.0, 5.0], [0.0, 0.0, 0.0, 0.0, 10.0]])
    expected = torch.tensor([[1.0, 3.0, 5.0], [0.0, 0.0, 10.0]])
    torch.testing.assert_close(quantiles(history, [0, 0.5, 1]), expected)
    with pytest.raises(ValueError, match="history must have shape"):
        quantiles(history[0])
