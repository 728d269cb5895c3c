"""How tight the bounds of convolutions are, and what they cost: writes reports/conv_norms.md.

python perf/conv_norms.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from spectral_triton import FixedSpectrum, SoftplusSpectrum, SVDConv2d, lipschitz_constant

SIZE = 20
CASES = [
    (16, 16, 3, {}),
    (64, 64, 3, {}),
    (64, 32, 3, {}),
    (3, 16, 3, {}),
    (16, 16, 5, {}),
    (16, 16, 3, {"dilation": 2, "padding": 2}),
    (16, 16, 3, {"groups": 4}),
    (16, 16, 3, {"padding_mode": "circular"}),
    (16, 16, 3, {"stride": 2}),
    (16, 32, 4, {"stride": 2}),
]
ROUNDS = 15


def norm(conv: nn.Module, channels: int) -> float:
    """The largest stretch that 300 power iterations find, in float64: from below."""
    x = torch.randn(1, channels, SIZE, SIZE, dtype=torch.float64)
    for _ in range(300):
        x = (x / x.norm()).requires_grad_(True)
        y = conv(x)
        x = torch.autograd.grad(y, x, y)[0].detach()
    return conv(x / x.norm()).norm().item()


def seconds(work: Callable[[], object]) -> float:
    # Of this thread: others on the machine do not count.
    start = time.thread_time()
    work()
    return time.thread_time() - start


def tightness() -> list[str]:
    lines = [
        "| convolution | norm | patches | fourier | fourier, size given |",
        "|---|---|---|---|---|",
    ]
    for channels, out, kernel, options in CASES:
        torch.manual_seed(0)
        settings = {"padding": kernel // 2, "bias": False} | options
        conv = SVDConv2d(channels, out, kernel, spectrum=FixedSpectrum(1.0), **settings)
        exact = norm(conv.double(), channels)
        conv = conv.float()
        bounds = [
            conv.operator_norm_bound(method="patches"),
            conv.operator_norm_bound(),
            conv.operator_norm_bound(SIZE),
        ]
        ratios = " | ".join(f"{bound.item() / exact:.5f}" for bound in bounds)
        shown = ", ".join(f"{name} {value}" for name, value in options.items())
        lines.append(
            f"| {channels} → {out}, {kernel} x {kernel} {shown} | {exact:.3f} | {ratios} |"
        )
    return lines


def cost() -> list[str]:
    lines = ["| convolution | bound and its gradient, times a training step |", "|---|---|"]
    torch.set_num_threads(1)
    for channels in (16, 64):
        torch.manual_seed(0)
        conv = SVDConv2d(channels, channels, 3, padding=1, spectrum=SoftplusSpectrum())
        x = torch.randn(16, channels, 16, 16, requires_grad=True)

        def step(conv: nn.Module = conv, x: torch.Tensor = x) -> None:
            conv.zero_grad()
            conv(x).square().sum().backward()

        def bound(conv: SVDConv2d = conv) -> None:
            conv.zero_grad()
            conv.operator_norm_bound().backward()

        step(), bound()
        ratios = []
        for _ in range(ROUNDS):
            before = seconds(step)
            ratios.append(seconds(bound) / before)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {channels} → {channels}, 3 x 3, batch 16, 16 x 16 | {spread} |")
    return lines


def stretch(network: nn.Module) -> float:
    """The largest stretch that a search over inputs and directions finds: from below."""
    x, v = torch.randn(2, 1, 16, 10, 10)
    largest = 0.0
    for _ in range(60):
        _, stretched = torch.func.jvp(network, (x,), (v / v.norm(),))
        largest = max(largest, stretched.norm().item())
        x = x.detach().requires_grad_(True)
        v = torch.autograd.grad(network(x), x, stretched.detach())[0].detach()
        x = x.detach() + 0.5 * v / v.norm() * x.detach().norm()
    return largest


def ten_layers() -> list[str]:
    """A product of norms is the norm of a network only where its layers stretch alike."""
    lines = [
        "| ten layers 16 → 16, 3 x 3, before training | bound | stretch found | ratio |",
        "|---|---|---|---|",
    ]
    for activation in (nn.Identity, nn.ReLU, nn.Tanh):
        torch.manual_seed(0)
        options = {"padding": 1, "bias": False, "spectrum": FixedSpectrum(1.0)}
        pairs = [(SVDConv2d(16, 16, 3, **options), activation()) for _ in range(10)]
        network = nn.Sequential(*(module for pair in pairs for module in pair))
        with torch.no_grad():
            bound = lipschitz_constant(network).item()
        found = stretch(network)
        lines.append(f"| {activation.__name__} | {bound:.0f} | {found:.3g} | {bound / found:.0f} |")
    return lines


def main() -> None:
    text = [
        "# Bounds of convolutions as operators",
        "",
        f"Made by `perf/conv_norms.py` with PyTorch {torch.__version__}, {torch.get_num_threads()} "
        "threads. Every flattened kernel has σ = 1; the norm is that of power iteration on an "
        f"input of {SIZE} x {SIZE}, the columns after it are bounds over that norm. "
        "Costs are processor time of one thread.",
        "",
        *tightness(),
        "",
        *cost(),
        "",
        *ten_layers(),
    ]
    path = Path(__file__).parent / "reports" / "conv_norms.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
