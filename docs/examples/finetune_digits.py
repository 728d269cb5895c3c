"""python finetune_digits.py FOLDER, where FOLDER holds the four files of MNIST (*-ubyte.gz)

A network that has learned 0 to 4 learns 5 to 9: all weights, LoRA and few reflectors from a base.
"""

import copy
import gzip
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn

from spectral_triton import SigmoidSpectrum, convert, parameter_groups

RANK = 8
ROOM = 1.2  # What each singular value of the converted layers may grow by.
STEPS, BATCH, SEEDS = (
    400,
    100,
    (0, 1, 2),
)  # Rates: the best of five for each, on 5,000 images held out.


def read(folder, prefix):
    images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    x = torch.frombuffer(bytearray(images[16:]), dtype=torch.uint8).view(-1, 784) / 255
    return x, torch.frombuffer(bytearray(labels[8:]), dtype=torch.uint8).long()


def half(data, first):
    x, y = data
    chosen = (y >= first) & (y < first + 5)
    return x[chosen], y[chosen] - first


class LoRA(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(RANK, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, RANK))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    @property
    def weight(self):
        return self.linear.weight + self.b @ self.a

    def forward(self, x):
        return self.linear(x) + x @ self.a.T @ self.b.T


def all_weights(model):
    return model, 5e-3


def lora(model):
    # The head is trained as it is, here and with reflectors.
    return nn.Sequential(LoRA(model[0]), model[1], LoRA(model[2]), model[3], model[4]), 2e-2


def reflectors(model):
    bound = lambda name, sigma: SigmoidSpectrum.around(sigma, ROOM)  # noqa: E731
    adapted, _ = convert(
        model, lambda name, layer: name != "4", num_reflectors=RANK, spectrum=bound
    )
    adapted[0].bias.requires_grad_(False)
    adapted[2].bias.requires_grad_(False)
    return adapted, 2e-2


def train(model, rate, data, seed):
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(parameter_groups(model, rate))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    began = time.perf_counter()
    for _ in range(STEPS):
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        schedule.step()
    return (time.perf_counter() - began) / STEPS


@torch.no_grad()
def accuracy(model, data):
    return (model(data[0]).argmax(1) == data[1]).float().mean().item()


@torch.no_grad()
def norms(model):
    return [torch.linalg.matrix_norm(model[i].weight, 2) for i in (0, 2)]


def main(folder):
    training, test = read(folder, "train"), read(folder, "t10k")
    rows = {adapt.__name__: [] for adapt in (all_weights, lora, reflectors)}
    for seed in SEEDS:
        torch.manual_seed(seed)
        first = nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5)
        )
        train(first, 1e-3, half(training, 0), seed)
        for adapt in (all_weights, lora, reflectors):
            model, rate = adapt(copy.deepcopy(first))
            seconds = train(model, rate, half(training, 5), seed + 1)
            growth = max(
                float(after / before)
                for after, before in zip(norms(model), norms(first), strict=True)
            )
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            result = accuracy(model, half(test, 5)), 1000 * seconds, growth
            rows[adapt.__name__].append((trained, *result))
    print("5 to 9 after 0 to 4    trained   accuracy            ms a step   norm grew at most")
    for name, runs in rows.items():
        _, right, times, growths = zip(*runs, strict=True)
        print(
            f"{name:20} {runs[0][0]:9,}   {100 * sum(right) / len(right):.2f} "
            f"({100 * min(right):.2f} to {100 * max(right):.2f})   {sorted(times)[1]:8.2f}   "
            f"{max(growths):9.2f} times"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
