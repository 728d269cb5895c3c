"""python torchao_int8.py: int8 weights by torchao for a baked model

Run with torchao 0.18.0 on a CPU.
"""

import torch
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

from spectral_triton import SpectralRNN, SVDLinear, bake


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = SpectralRNN(8, 64)
        self.hidden, self.head = SVDLinear(64, 64), SVDLinear(64, 16)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.rnn(x)[0])))


@torch.no_grad()
def main():
    torch.manual_seed(0)
    model, x = Network().eval(), torch.randn(20, 4, 8)
    exact = model(x)
    for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
        plain = bake(model)
        quantize_(plain, config)
        assert type(plain.hidden.weight) is not nn.Parameter
        error = (plain(x) - exact).norm() / exact.norm()
        print(type(config).__name__, "relative error", error.item())
        assert 0 < error < 0.03
    # Of a model in SVD form it quantises nothing: there are no nn.Linear layers.
    quantize_(model, Int8WeightOnlyConfig())
    torch.testing.assert_close(model(x), exact)


if __name__ == "__main__":
    main()
