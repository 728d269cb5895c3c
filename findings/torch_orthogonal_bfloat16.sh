#!/usr/bin/env bash
# torch 2.13.0: parametrizations.orthogonal in bfloat16
#
# Guess: an error at registration, or a weight that is orthonormal to the 8 bits of bfloat16.
# Seen: registering a float32 layer and converting it with .bfloat16() is accepted; what comes of the first forward and backward is
# printed below for every map.
# For users: factors of half precision are converted to float32 before use here, and the result is rounded once.
source "$(dirname "$0")/environment.bash"
install torch==2.13.0 numpy==2.4.6
run <<'PYTHON'
import torch
from torch import nn
from torch.nn.utils import parametrizations

outcomes = {}
for name in ("matrix_exp", "cayley", "householder"):
    torch.manual_seed(0)
    layer = parametrizations.orthogonal(nn.Linear(32, 32, bias=False), orthogonal_map=name).bfloat16()
    try:
        weight = layer.weight
        defect = (weight.float().mT @ weight.float() - torch.eye(32)).abs().max().item()
        layer(torch.randn(4, 32).bfloat16()).float().square().mean().backward()
        grads = [p.grad for p in layer.parameters()]
        outcomes[name] = f"defect {defect:.3g}, gradient finite: {all(g.isfinite().all() for g in grads)}"
    except Exception as error:
        outcomes[name] = f"{type(error).__name__}: {error}"
    print(name, "->", outcomes[name])
assert not all("finite: True" in o for o in outcomes.values()), "all maps work now: this has changed"
PYTHON
