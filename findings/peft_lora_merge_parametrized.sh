#!/usr/bin/env bash
# peft 0.21.2: merge_and_unload of a LoRA adapter on a layer whose weight is parametrized
#
# Guess: get_peft_model refuses such a layer, or merging does.
# Seen: the adapter is put on and works, for torch's orthogonal, weight_norm and spectral_norm alike. merge_and_unload then returns the
# layer without the adapter's change, and says nothing: it adds to weight.data, which is computed anew at the next call.
# For users: remove the parametrization first (parametrizations.remove_svd, parametrize.remove_parametrizations), then merge.
source "$(dirname "$0")/environment.bash"
install torch==2.13.0 peft==0.21.2 transformers==5.24.0 numpy==2.4.6
run <<'PYTHON'
from collections import OrderedDict

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

kept = {}
for way in (None, orthogonal, weight_norm, spectral_norm):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    network = nn.Sequential(OrderedDict(layer=layer if way is None else way(layer)))
    config = LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)
    model, x = get_peft_model(network, config).eval(), torch.randn(4, 8)
    with torch.no_grad():
        adapted = model(x)
        with model.disable_adapter():
            base = model(x)
        merged = model.merge_and_unload().eval()(x)
    kept[way] = ((merged - base).norm() / (adapted - base).norm()).item()
    print("plain" if way is None else way.__name__, "share of the adapter's change after merging:", kept[way])
assert abs(kept.pop(None) - 1) < 1e-3
assert all(share < 1e-3 for share in kept.values()), "merging reaches parametrized layers: this has changed"
PYTHON
