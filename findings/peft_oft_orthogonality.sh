#!/usr/bin/env bash
# peft 0.21.2: how orthogonal its orthogonal adapters are after training (OFT; HRA with and without apply_GS)
#
# Guess: all three stay orthogonal to rounding, as their names say.
# Seen: HRA, with Gram-Schmidt or without, stays orthogonal to 2e-7. OFT does not: after 100 steps of Adam with a rate of 0.01 the
# largest entry of the defect RᵀR - I was 0.90, with the defaults.
# For users: a truncated series for the Cayley map is orthogonal near the start only. Reflectors are, whatever their values.
source "$(dirname "$0")/environment.bash"
install torch==2.13.0 peft==0.21.2 transformers==5.24.0 numpy==2.4.6
run <<'PYTHON'
import torch
from peft import HRAConfig, OFTConfig, get_peft_model
from torch import nn

defects = {}
for name, config in {
    "HRA": HRAConfig(r=8, target_modules=["0"]),
    "HRA, apply_GS": HRAConfig(r=8, apply_GS=True, target_modules=["0"]),
    "OFT": OFTConfig(r=0, oft_block_size=32, target_modules=["0"]),
}.items():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        base[0].weight.copy_(torch.eye(64))
    model = get_peft_model(base, config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        x = torch.randn(64, 64)
        (model(x) - x.flip(-1)).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        r = model(torch.eye(64)).double()
    defects[name] = (r @ r.mT - torch.eye(64, dtype=torch.float64)).abs().max().item()
    print(name, "largest entry of the defect:", defects[name])
assert max(defects["HRA"], defects["HRA, apply_GS"]) < 1e-5
assert defects["OFT"] > 1e-2, "OFT stays orthogonal now: this has changed"
PYTHON
