"""python opacus_private.py: DP-SGD by Opacus, on gradients of each sample from torch.func

Run with opacus 1.6.0. Its GradSampleModule refuses modules with buffers, ours among them (the signs
of the singular values, which nothing changes in training), with strict=False too. What takes
gradients that are there already, grad_sample_mode="no_op", works.
"""

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spectral_triton import SpectralRNN, SVDConv1d, SVDLinear, parametrizations


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = SVDConv1d(3, 8, 3, padding=1)
        self.rnn = SpectralRNN(8, 16, batch_first=True)
        self.hidden = SVDLinear(16, 16, num_reflectors=4, base="haar")
        self.head = parametrizations.svd(nn.Linear(16, 2), margin=0.9)

    def forward(self, x):
        states = self.rnn(self.conv(x.mT).mT)[0]
        return self.head(torch.tanh(self.hidden(states[:, -1])))


def set_sample_gradients(model, x, y):
    """p.grad_sample of all trained parameters: the gradient of each sample's own loss."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters, x, y):
        logits = torch.func.functional_call(model, parameters, (x.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, y.unsqueeze(0))

    values = {name: p.detach() for name, p in trained.items()}
    losses = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(None, 0, 0))
    gradients, value = losses(values, x, y)
    for name, p in trained.items():
        # Two biases that are added have one tensor for both gradients; Opacus marks those it used.
        p.grad_sample = gradients[name].clone()
    return value.mean()


def check_one_by_one(model, x, y):
    set_sample_gradients(model, x, y)
    worst = 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        for p, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            torch.testing.assert_close(p.grad_sample[i], gradient, rtol=1e-4, atol=1e-5)
            worst = max(worst, (p.grad_sample[i] - gradient).abs().max().item())
    for p in trained:
        p.grad_sample = None
    print("gradients of each sample differ from those one by one by at most", worst)


def main():
    torch.manual_seed(0)
    model = Network()
    x = torch.randn(256, 10, 3)
    y = (x[:, -3:].sum((1, 2)) > 0).long()
    check_one_by_one(model, x[:8], y[:8])

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode="no_op",
    )
    with torch.no_grad():
        before = nn.functional.cross_entropy(model(x), y).item()
    for _ in range(10):
        for batch, labels in loader:
            if not len(batch):  # Poisson sampling may draw none.
                continue
            optimizer.zero_grad()
            set_sample_gradients(private._module, batch, labels)
            optimizer.step()
    with torch.no_grad():
        after = nn.functional.cross_entropy(model(x), y).item()
    print(f"loss {before:.3f} -> {after:.3f} with epsilon = {engine.get_epsilon(1e-5):.2f}")
    assert after < before
    assert (model.rnn.singular_values - 1).abs().max() <= 0.01


if __name__ == "__main__":
    main()
