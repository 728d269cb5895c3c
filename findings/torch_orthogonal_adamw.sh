#!/usr/bin/env bash
# torch 2.13.0: parametrizations.orthogonal with the householder map, and weight decay
#
# Guess: weight decay shrinks the reflectors, whose length means nothing, so the weight stays orthonormal.
# Seen: one step of AdamW with its default decay of 0.01 turns the weight into zeros, to the last entry, whether the layer is square,
# wide or tall. The diagonal of the parameter holds the signs, and whole numbers stand for them: 1 - 1e-5 is cut to 0.
# For users: weight decay on a parameter that is read as a sign is never harmless. Here signs are a buffer.
source "$(dirname "$0")/environment.bash"
install torch==2.13.0 numpy==2.4.6
run <<'PYTHON'
import torch
from torch import nn
from torch.nn.utils import parametrizations

for shape in ((64, 32), (32, 64), (48, 48)):
    torch.manual_seed(0)
    layer = parametrizations.orthogonal(nn.Linear(*shape, bias=False), orthogonal_map="householder")
    before = torch.linalg.svdvals(layer.weight.detach())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    layer(torch.randn(8, shape[0])).square().mean().backward()
    optimizer.step()
    after = torch.linalg.svdvals(layer.weight.detach())
    print(shape, "singular values before", before.min().item(), before.max().item())
    print(shape, "singular values after one step of AdamW", after.min().item(), after.max().item())
    assert abs(before.min().item() - 1) < 1e-4
    assert after.max().item() < 1e-3, "the weight is no longer lost: this has changed"
PYTHON
