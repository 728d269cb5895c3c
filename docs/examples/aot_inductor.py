"""python aot_inductor.py: a program that AOTInductor compiled, for any batch and length

Run with torch 2.13.0 on a CPU; it needs a C++ compiler.
"""

import tempfile

import torch
from torch import nn
from torch.export import Dim, export

from spectral_triton import SpectralRNN, SVDLinear, bake


class Network(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.rnn, self.head = SpectralRNN(4, width), SVDLinear(width, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@torch.no_grad()
def main():
    torch.manual_seed(0)
    x, other = torch.randn(6, 2, 4), torch.randn(17, 5, 4)
    shapes = {0: Dim("time", min=2), 1: Dim("batch", min=2)}
    model = Network().eval()
    # The linear layer becomes code. The recurrence stays one op of this library: what loads the
    # package imports spectral_triton first.
    compiled(model, x, (shapes,), other, "any length")
    # nn.RNN is unrolled, for the length it was exported with.
    compiled(bake(model), x, ({1: shapes[1]},), torch.randn(6, 5, 4), "baked, one length")


def compiled(model, x, shapes, other, title):
    program = export(model, (x,), dynamic_shapes=shapes)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.pt2"
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        loaded = torch._inductor.aoti_load_package(path)
        for given in (x, other):
            torch.testing.assert_close(loaded(given), model(given))
    print(title, "agrees")


if __name__ == "__main__":
    main()
