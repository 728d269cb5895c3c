"""Programs that take modules as they are: what each needs of a layer, tried on all kinds at once.

Those that are heavy to install have a script each in docs/examples.
"""

import warnings

import pytest
import torch
from torch import nn

from spectral_triton import (
    SigmoidSpectrum,
    SpectralLSTM,
    SpectralRNN,
    SVDConv1d,
    SVDLinear,
    bake,
    parametrizations,
)


class Network(nn.Module):
    """One layer of each kind; (batch, time, 4) -> (batch, 2)."""

    def __init__(self, width=8, margin=0.1):
        super().__init__()
        self.linear = SVDLinear(4, width, margin=margin)
        self.conv = SVDConv1d(width, width, 3, padding=1, margin=margin)
        self.rnn = SpectralRNN(width, width, batch_first=True, margin=margin)
        self.lstm = SpectralLSTM(width, width, batch_first=True, num_reflectors=2, margin=margin)
        spectrum = SigmoidSpectrum(margin=1)
        self.head = parametrizations.svd(nn.Linear(width, 2), spectrum=spectrum)

    def forward(self, x):
        y = self.conv(torch.tanh(self.linear(x)).mT).mT
        return self.head(self.lstm(self.rnn(y)[0])[0][:, -1])


def perturbed(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors(tmp_path, dtype):
    safetensors = pytest.importorskip("safetensors.torch")
    network, x = perturbed(Network()).to(dtype), torch.randn(3, 5, 4, dtype=dtype)
    path = tmp_path / "model.safetensors"
    safetensors.save_model(network, path)
    by_model, by_state = Network().to(dtype), Network().to(dtype)
    assert safetensors.load_model(by_model, path) == (set(), [])
    same(by_model(x), network(x))
    safetensors.save_file(network.state_dict(), path)
    by_state.load_state_dict(safetensors.load_file(path))
    same(by_state(x), network(x))


def test_mixin_of_the_hub(tmp_path):
    hub = pytest.importorskip("huggingface_hub")

    class Stored(Network, hub.PyTorchModelHubMixin):
        def __init__(self, width: int = 8, margin: float = 0.1):
            super().__init__(width, margin)

    network, x = perturbed(Stored(6, margin=0.3)), torch.randn(3, 5, 4)
    network.save_pretrained(tmp_path)
    again = Stored.from_pretrained(tmp_path)
    assert again.linear.svd.spectrum == SigmoidSpectrum(margin=0.3)
    same(again(x), network(x))


def test_checkpoints_of_torch_distributed(tmp_path):
    from torch.distributed import checkpoint

    network, x = perturbed(Network()), torch.randn(3, 5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That no processes are started.
        checkpoint.save(network.state_dict(), checkpoint_id=tmp_path)
        again = Network()
        state = again.state_dict()
        checkpoint.load(state, checkpoint_id=tmp_path)
    again.load_state_dict(state)
    same(again(x), network(x))


def test_skorch_trains_and_scikit_learn_searches():
    skorch = pytest.importorskip("skorch")
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    x = torch.randn(40, 5, 4)
    y = (x[:, -1, 0] > 0).long()
    net = skorch.NeuralNetClassifier(
        Network,
        criterion=nn.CrossEntropyLoss,
        module__width=6,
        max_epochs=2,
        verbose=0,
        train_split=None,
    )
    net.fit(x.numpy(), y.numpy())
    losses = net.history[:, "train_loss"]
    assert losses[1] < losses[0]
    copy = base.clone(net)
    assert copy.module__width == 6
    assert not hasattr(copy, "module_")
    grid = {"module__margin": [0.1, 0.5]}
    search = selection.GridSearchCV(copy, grid, cv=2, scoring="accuracy").fit(x.numpy(), y.numpy())
    margin = search.best_params_["module__margin"]
    sigma = search.best_estimator_.module_.linear.singular_values
    assert (sigma - 1).abs().max() <= margin


def test_scikit_learn_clones_a_spectrum():
    base = pytest.importorskip("sklearn.base")
    spectrum = SigmoidSpectrum(margin=0.2)
    assert base.clone(spectrum, safe=False) == spectrum


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantize_per")
def test_dynamic_quantisation_of_a_baked_model():
    network, x = perturbed(Network()).eval(), torch.randn(20, 5, 4)
    kinds = {nn.Linear, nn.LSTM, nn.RNN}
    quantised = torch.ao.quantization.quantize_dynamic(bake(network), kinds, dtype=torch.qint8)
    for name in ("linear", "lstm", "head"):
        assert "quantized" in type(getattr(quantised, name)).__module__
    with torch.no_grad():
        error = (quantised(x) - network(x)).norm() / network(x).norm()
    assert 0 < error < 0.1


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_graph_for_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(Network(), torch.randn(3, 5, 4))
    (events,) = tmp_path.iterdir()
    assert b"SVDLinear[linear]" in events.read_bytes()


def test_attributions_of_captum():
    attr = pytest.importorskip("captum.attr")
    network = perturbed(Network())
    x, zero = torch.randn(3, 5, 4), torch.zeros(3, 5, 4)
    _, delta = attr.IntegratedGradients(network).attribute(
        x, zero, target=1, n_steps=100, return_convergence_delta=True
    )
    # What inputs contribute sums up to the difference of the outputs.
    assert delta.abs().max() < 1e-3
    conductance = attr.LayerConductance(network, network.linear).attribute(x, zero, target=1)
    total = (network(x) - network(zero))[:, 1]
    torch.testing.assert_close(conductance.sum((1, 2)), total, rtol=0.02, atol=0.02)


def test_captum_reads_single_layers_after_bake():
    attr = pytest.importorskip("captum.attr")
    network = nn.Sequential(SVDLinear(4, 8, bias=False), nn.ReLU(), SVDLinear(8, 2, bias=False))
    x = torch.randn(3, 4)
    with pytest.raises(TypeError, match="SVDWeight"):
        attr.LRP(network).attribute(x, target=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        relevance = attr.LRP(bake(network)).attribute(x, target=1)
        _, delta = attr.DeepLift(network).attribute(
            x, torch.zeros_like(x), target=1, return_convergence_delta=True
        )
    torch.testing.assert_close(relevance.sum(1), network(x)[:, 1], rtol=1e-4, atol=1e-4)
    assert delta.abs().max() < 1e-5


def test_fx_takes_our_layers_as_leaves_and_plain_ones_through_and_through():
    network, x = nn.Sequential(SVDLinear(4, 4), nn.ReLU()), torch.randn(3, 4)

    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            ours = type(module).__module__.startswith("spectral_triton")
            return ours or super().is_leaf_module(module, name)

    graph = Leaves().trace(network)
    same(torch.fx.GraphModule(network, graph)(x), network(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(bake(network))(x), network(x))


def test_ensembles_of_torch_func():
    networks = [nn.Sequential(SVDLinear(4, 4), nn.ReLU(), SVDLinear(4, 2)) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(networks)
    x = torch.randn(5, 4)

    def one(parameters, buffers):
        return torch.func.functional_call(networks[0], (parameters, buffers), (x,))

    y = torch.func.vmap(one)(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([network(x) for network in networks]))


def test_gradients_of_each_sample():
    # What Opacus in its "no_op" mode is given; see docs/examples/opacus_private.py.
    rnn = perturbed(Network()).rnn
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}
    samples = torch.randn(4, 5, 8)

    def loss(parameters, sample):
        y = torch.func.functional_call(rnn, parameters, (sample.unsqueeze(0),))[0]
        return y.square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        own = rnn(sample.unsqueeze(0))[0].square().sum()
        expected = torch.autograd.grad(own, list(rnn.parameters()))
        actual = tuple(gradients[name][i] for name in parameters)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
