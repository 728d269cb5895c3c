#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode and what is not in its table
#
# Guess: nn.LSTM on a CPU counts as 4/3 of nn.GRU, and a product in place (addmm_) as the one that is not.
# Seen: nn.LSTM counts as 0, forward and backward, since it is one operation (mkldnn_rnn_layer) that has no formula. addmm_, baddbmm_
# and a matrix times a vector count as 0 as well. The guess had nn.RNN and nn.GRU right: they come apart into products.
# For users: a model with an LSTM looks cheaper than it is. spectral_triton works out of place while a counter looks.
source "$(dirname "$0")/environment.bash"
install torch==2.13.0 numpy==2.4.6
run <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


n, rows = 64, 40
x = torch.randn(10, 4, n)
flops = {}
for kind, gates in ((nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)):
    layer = kind(n, n)
    with torch.no_grad():
        flops[kind] = count(lambda layer=layer: layer(x))
    training = count(lambda layer=layer: layer(x)[0].sum().backward())
    print(kind.__name__, "forward", flops[kind], "training", training, "expected", gates * rows * 4 * n * n)
a, b = torch.randn(n, n), torch.randn(n, n)
products = {
    "a @ b": count(lambda: a @ b),
    "addmm": count(lambda: torch.addmm(a, a, b)),
    "addmm_": count(lambda: a.clone().addmm_(a, b)),
    "baddbmm_": count(lambda: a.clone()[None].baddbmm_(a[None], b[None])),
    "a @ vector": count(lambda: a @ b[0]),
}
print(products)
assert flops[nn.RNN] == rows * 4 * n * n
assert flops[nn.GRU] == 3 * rows * 4 * n * n
assert products["a @ b"] == products["addmm"] == 2 * n**3
zero = (flops[nn.LSTM], products["addmm_"], products["baddbmm_"], products["a @ vector"])
assert zero == (0, 0, 0, 0), "some of these are counted now: this has changed"
PYTHON
