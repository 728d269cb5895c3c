"""python accelerate_training.py [no | bf16]: a training loop of accelerate, saved and gone on with

Run with accelerate 1.15.0 on a CPU.
"""

import sys
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spectral_triton import SpectralLSTM, SVDLinear, parameter_groups


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = SpectralLSTM(3, 16, batch_first=True), SVDLinear(16, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def prepared(mixed_precision):
    set_seed(0)
    accelerator = Accelerator(
        cpu=True, mixed_precision=mixed_precision, gradient_accumulation_steps=2
    )
    model = Network()
    x = torch.randn(64, 8, 3)
    rows = TensorDataset(x, (x.sum((1, 2)) > 0).long())
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-2))
    return accelerator, *accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=8))


def epoch(accelerator, model, optimizer, loader):
    losses = []
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def main(precision="bf16"):
    accelerator, *parts = prepared(precision)
    with tempfile.TemporaryDirectory() as folder:
        losses = [epoch(accelerator, *parts) for _ in range(3)]
        accelerator.save_state(folder)
        losses.append(epoch(accelerator, *parts))
        trained = accelerator.unwrap_model(parts[0]).state_dict()
        trained = {name: tensor.clone() for name, tensor in trained.items()}

        accelerator, *parts = prepared(precision)
        accelerator.load_state(folder)
        epoch(accelerator, *parts)
        again = accelerator.unwrap_model(parts[0]).state_dict()
        torch.testing.assert_close(dict(again), trained)
    print(precision, "losses", losses)
    assert losses[-1] < losses[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
