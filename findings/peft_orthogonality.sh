#!/usr/bin/env bash
# peft 0.21.2: how orthogonal the orthogonal adapters are after training (HRA, HRA with apply_GS, OFT)
#
# Guess: all three stay orthogonal to rounding, as their names say.
# Seen: printed below, as the largest entry of RᵀR - I for the matrix R that multiplies the frozen weight, after 100 steps of Adam.
# For users: reflectors are exactly orthogonal whatever their values; orthonormalised columns are one reflection of rank r only
# while the process behind them is exact, and a truncated Neumann series of the Cayley map is not.
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
assert defects["HRA"] < 1e-5
assert max(defects["HRA, apply_GS"], defects["OFT"]) > 1e-3, "both are orthogonal now: this has changed"
PYTHON
