"""How far singular values stray from their band in each precision: writes reports/precision.md.

python perf/precision.py [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from spectral_triton import (
    FixedSpectrum,
    SpectralRNN,
    SpectralRNNCell,
    SVDLinear,
    SVDWeight,
    parametrizations,
)

N, K, STEPS, BATCH = 512, 16, 784, 16
BAND = (0.99, 1.01)
MODES = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "float32 module under bfloat16 autocast": (torch.float32, torch.bfloat16),
    "bfloat16 module": (torch.bfloat16, None),
    "float16 module": (torch.float16, None),
}


def autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def spread_(weight: SVDWeight) -> None:
    """σ over the whole band, both ends included up to rounding."""
    with torch.no_grad():
        weight.raw_singular_values.copy_(torch.linspace(-20, 20, N))


def excess(apply: Callable[[Tensor], Tensor], dtype: torch.dtype, device: str) -> float:
    """How far the singular values of the applied map lie outside the band, in float64."""
    with torch.no_grad():
        image = apply(torch.eye(N, dtype=dtype, device=device)).double()
    sigma = torch.linalg.svdvals(image)
    return max(0.0, float(sigma.max() - BAND[1]), float(BAND[0] - sigma.min()))


def layers(dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    full = SVDLinear(N, N, bias=False, device=device, dtype=dtype)
    thin = SVDLinear(N, N, bias=False, num_reflectors=K, device=device, dtype=dtype)
    dense = nn.Linear(N, N, bias=False, device=device)
    dense = parametrizations.svd(dense, out_of_bounds="clip").to(dtype)
    spread_(full.svd)
    spread_(thin.svd)
    with torch.no_grad():
        dense.parametrizations.weight.original2.copy_(torch.linspace(-20, 20, N).unsqueeze(0))
    found = {f"SVDLinear, {N} reflectors": full, f"SVDLinear, {K} reflectors": thin}
    found["parametrizations.svd"] = dense
    return found


def norm_after_steps(dtype: torch.dtype, cast: torch.dtype | None, device: str) -> float:
    """Norm of the state after linear steps with σ = 1, of a state of norm 1 before, in float64."""
    torch.manual_seed(0)
    options = {"num_reflectors": K, "spectrum": FixedSpectrum(1.0), "init": "haar"}
    rnn = SpectralRNN(1, N, 1, "identity", False, device=device, dtype=dtype, **options)
    x = torch.zeros(STEPS, BATCH, 1, dtype=dtype, device=device)
    h = nn.functional.normalize(torch.randn(1, BATCH, N, dtype=torch.float64), dim=-1)
    h = h.to(device=device, dtype=dtype)
    with torch.no_grad(), autocast(device, cast):
        _, last = rnn(x, h)
    return worst_ratio(last, h)


def norm_of_dense_steps(dtype: torch.dtype, cast: torch.dtype | None, device: str) -> float:
    """The same of an orthogonal matrix rounded to the precision and multiplied with 784 times."""
    torch.manual_seed(0)
    w = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0].to(device=device, dtype=dtype)
    h = nn.functional.normalize(torch.randn(BATCH, N, dtype=torch.float64), dim=-1)
    h = start = h.to(device=device, dtype=dtype)
    with torch.no_grad(), autocast(device, cast):
        for _ in range(STEPS):
            h = nn.functional.linear(h, w)
    return worst_ratio(h, start)


def norm_of_slow_states(dtype: torch.dtype, cast: torch.dtype | None, device: str) -> list[float]:
    """Of the last state of a layer and of a cell in a loop that take in a little at each step.

    A state in half precision stops growing where a step adds less than half of its last place.
    """
    torch.manual_seed(0)
    options = {"nonlinearity": "relu", "spectrum": FixedSpectrum(1.0), "device": device}
    layer = SpectralRNN(1, 32, **options)
    with torch.no_grad():
        layer.weight_ih_l0.abs_()
    cell = SpectralRNNCell(1, 32, **options)
    cell.load_state_dict({k.replace("_l0", ""): v for k, v in layer.state_dict().items()})
    layer, cell = layer.to(dtype), cell.to(dtype)
    x = torch.full((2000, 1, 1), 0.1, dtype=dtype, device=device)
    h = torch.zeros(1, 32, dtype=torch.promote_types(dtype, torch.float32), device=device)
    with torch.no_grad(), autocast(device, cast):
        of_layer = layer(x)[1]
        for step in x:
            h = cell(step, h)
    return [float(a.double().norm()) for a in (of_layer, h)]


def worst_ratio(last: Tensor, first: Tensor) -> float:
    ratio = last.double().norm(dim=-1) / first.double().norm(dim=-1)
    return float(ratio.flatten()[(ratio - 1).abs().argmax()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    kind = torch.device(device).type
    names = list(layers(torch.float32, device))
    lines = [
        "# Singular values in each precision",
        "",
        f"Made by `perf/precision.py` with PyTorch {torch.__version__} on {kind}: n = {N}, "
        f"the band {BAND[0]} to {BAND[1]} (the default margin) filled to both ends.",
        "",
        "How far a singular value of the map that is applied, output rounding included, lies "
        "outside the band (0 is inside):",
        "",
        f"| precision | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for mode, (dtype, cast) in MODES.items():
        found, row = layers(dtype, device), []
        for name in names:
            with autocast(kind, cast):
                value = excess(found[name], dtype, device)
            row.append(f"{value:.1e}")
        lines.append(f"| {mode} | {' | '.join(row)} |")
    lines += [
        "",
        f"Norm of the state after {STEPS} linear steps with σ = 1, relative to the norm before "
        f"(the worst of {BATCH} sequences; 1 is kept):",
        "",
        f"| precision | SpectralRNN, {K} reflectors | an orthogonal matrix in that precision |",
        "|---|---|---|",
    ]
    for mode, (dtype, cast) in MODES.items():
        ours = norm_after_steps(dtype, cast, kind)
        dense = norm_of_dense_steps(dtype, cast, kind)
        lines.append(f"| {mode} | {ours:.6f} | {dense:.6f} |")
    lines += [
        "",
        "Norm of the last state of a ReLU network that takes in a little at each of 2,000 steps, "
        "where rounding the state would stop it: the layer, and the cell in a loop, begun with a "
        "state in float32, which it then keeps (under autocast it does by itself):",
        "",
        "| precision | SpectralRNN | SpectralRNNCell in a loop |",
        "|---|---|---|",
    ]
    for mode, (dtype, cast) in MODES.items():
        of_layer, of_cell = norm_of_slow_states(dtype, cast, kind)
        lines.append(f"| {mode} | {of_layer:.3f} | {of_cell:.3f} |")
    lines += [
        "",
        "The factors are multiplied in float32 at least in every mode, so what is left in half "
        "precision is the rounding of the output, once. A dense weight (`parametrizations.svd`, "
        "`bake`) is rounded itself where the module or autocast is in half precision, and has the "
        "band only up to that rounding.",
    ]
    name = "precision.md" if kind == "cpu" else f"precision-{kind}.md"
    path = Path(__file__).parent / "reports" / name
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
