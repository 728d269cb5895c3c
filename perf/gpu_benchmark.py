"""Times the kernels against cuDNN, cuSOLVER and torch's orthogonal maps, and writes what it found.

    python perf/gpu_benchmark.py OUT [--minutes 4]       on a GPU
    TRITON_INTERPRET=1 python perf/gpu_benchmark.py OUT --rehearse    tiny sizes on a CPU

Every result is checked against float64 before it is timed. Times are medians of single calls,
between CUDA events, after warm-up, from a cold L2 cache. Forward and backward of a recurrence hold
the input projection and all weight gradients, as those of ``nn.RNN`` do; the kernels' own times
leave out folding the factors, which is in those of the module, ``SpectralRNN``. The floor is the
larger of the arithmetic at the GPU's float32 rate and the sequences' traffic at its memory
bandwidth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_clock import Clock, Seconds
from large_recurrence import INPUTS, TOLERANCE, bench_routes
from spectral_triton.kernels import compact_wy, recurrence
from spectral_triton.kernels.configuration import preferred_block_size, recurrence_form
from torch import Tensor, nn

from spectral_triton import SpectralRNN, reference

PEAK_FLOPS, PEAK_BYTES = 67e12, 4.3e12  # H200: float32 outside tensor cores; measured copy


class FoldedRNN:
    """One layer with W h = scale ∘ h - P (Qᵀ h) or dense W, and its gradients by hand."""

    def __init__(self, steps: int, batch: int, n: int, r: int, device: torch.device) -> None:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device)

        self.form = recurrence_form(n, r, torch.float32)
        self.inputs = draw(steps, batch, INPUTS)
        self.weight_in, self.bias = draw(n, INPUTS) / INPUTS**0.5, draw(n) * 0.1
        self.h0, self.grad_y = torch.zeros(batch, n, device=device), draw(steps, batch, n)
        self.scale = torch.ones(n, device=device)
        self.p, self.q = draw(n, r) / (n * r) ** 0.5, draw(n, r) / (n * r) ** 0.5
        self.weight = torch.diag(self.scale) - self.p @ self.q.mT

    def forward(self) -> Tensor:
        x = nn.functional.linear(self.inputs, self.weight_in, self.bias)
        options = ("tanh", 0.0, None, None, False)
        if self.form == "dense":
            return recurrence.dense_fwd(x, self.h0, self.weight, *options)
        return recurrence.folded_fwd(x, self.h0, self.scale, self.p, self.q, *options)

    def forward_backward(self) -> tuple[Tensor, ...]:
        y = self.forward()
        options = ("tanh", 0.0, None, None, False)
        if self.form == "dense":
            dz, dh0 = recurrence.dense_bwd(self.grad_y, y, self.h0, self.weight, *options)
        else:
            weights = self.scale, self.p, self.q
            dz, dh0 = recurrence.folded_bwd(self.grad_y, y, self.h0, *weights, *options)
        rows = dz.flatten(0, 1)
        grad_in, grad_bias = rows.mT @ self.inputs.flatten(0, 1), rows.sum(0)
        before = torch.cat((self.h0[None], y[:-1])).flatten(0, 1)
        if self.form == "dense":
            return y, dz, dh0, grad_in, grad_bias, rows.mT @ before
        grad_p, grad_q = -rows.mT @ (before @ self.q), -before.mT @ (rows @ self.p)
        return y, dz, dh0, grad_in, grad_bias, (rows * before).sum(0), grad_p, grad_q

    def error(self, steps: int) -> float:
        """Relative to float64, over the first steps."""
        y = self.forward()[:steps].double()
        x = nn.functional.linear(self.inputs[:steps], self.weight_in, self.bias).double()
        oracle = reference.recurrence(x, self.h0.double(), self.weight.double())
        return ((y - oracle).norm() / oracle.norm()).item()


@torch.no_grad()
def module_error(module: nn.Module, inputs: Tensor) -> float:
    """Relative to the plain RNN of the same weights in float64."""
    oracle = module.to_rnn().double()(inputs.double())[0]
    return ((module(inputs)[0].double() - oracle).norm() / oracle.norm()).item()


def bench_recurrence(
    clock: Clock, steps: int, batch: int, n: int, r: int, device: torch.device
) -> dict[str, Any]:
    ours = FoldedRNN(steps, batch, n, r, device)
    result: dict[str, Any] = {"name": f"recurrence n={n} r={r} T={steps} B={batch} {ours.form}"}
    layers = {
        "cudnn": nn.RNN(INPUTS, n).to(device),
        "module": SpectralRNN(INPUTS, n, num_reflectors=min(n, r // 2), device=device),
    }

    def backward(layer: nn.Module) -> object:
        # Not into .grad: what a call before has left there would hide what this one holds.
        y = layer(ours.inputs)[0]
        return torch.autograd.grad(y, list(layer.parameters()), ours.grad_y)

    result["module error"] = module_error(layers["module"], ours.inputs[:64])
    if not result["module error"] < TOLERANCE:
        return result | {"skipped": "wrong result of the module"}
    times = {}
    for name, layer in layers.items():
        with torch.no_grad():
            times[f"{name} forward"] = clock(lambda layer=layer: layer(ours.inputs))
        times[f"{name} both"] = clock(lambda layer=layer: backward(layer))
    result |= {"seconds": times}
    result["ratio"] = {
        f"module {what}": times[f"cudnn {what}"] / times[f"module {what}"]
        for what in ("forward", "both")
    }
    if ours.form is None:
        return result | {"skipped": "no kernel serves these sizes"}
    result["error"] = ours.error(min(steps, 64))
    if not result["error"] < TOLERANCE:
        return result | {"skipped": "wrong result"}
    with torch.no_grad():
        times |= {"forward": clock(ours.forward), "both": clock(ours.forward_backward)}
    for what in ("forward", "both"):
        result["ratio"][what] = times[f"cudnn {what}"] / times[what]
    flops = 2 * steps * batch * n * (n if ours.form == "dense" else 2 * r)
    floor = max(flops / PEAK_FLOPS, 8 * steps * batch * n / PEAK_BYTES)
    result["microseconds per step"] = times["forward"] / steps * 1e6
    return result | {"share of floor": floor / times["forward"]}


def bench_reflectors(
    clock: Clock, n: int, k: int, vectors: int, device: torch.device
) -> dict[str, Any]:
    reflectors = torch.randn(k, n, device=device).triu()
    unit = torch.nn.functional.normalize(reflectors, dim=-1)[None].contiguous()
    x, grad = torch.randn(2, 1, vectors, n, device=device)
    block_size = preferred_block_size(n, k, torch.float32, vectors)

    def forward() -> Tensor:
        t_factors = compact_wy.t_factor_fwd(unit, block_size)
        return compact_wy.apply_fwd(x, unit, t_factors, False)

    def both() -> tuple[Tensor, Tensor]:
        t_factors = compact_wy.t_factor_fwd(unit, block_size)
        y = compact_wy.apply_fwd(x, unit, t_factors, False)
        return compact_wy.apply_bwd(y, grad, unit, t_factors, False)

    label = f"reflectors n={n} k={k} vectors={vectors}"
    # LAPACK's form of the same reflectors: columns with a leading one, and their factors
    diagonal = reflectors.diagonal()[:, None]
    columns = (reflectors / diagonal).mT.contiguous()
    tau = 2 / columns.square().sum(0)
    oracle = x[0].double() @ torch.linalg.householder_product(columns.double(), tau.double()).mT
    error = ((forward()[0].double() - oracle).norm() / oracle.norm()).item()
    if not error < TOLERANCE:
        return {"name": label, "error": error, "skipped": "wrong result"}

    leaf, x_leaf = columns.clone().requires_grad_(), x[0].clone().requires_grad_()
    linear = {
        name: nn.utils.parametrizations.orthogonal(
            nn.Linear(n, n, bias=False, device=device),
            orthogonal_map=name,
            use_trivialization=False,
        )
        for name in ("cayley", "matrix_exp")
    }
    rivals: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "householder_product": (
            lambda: x_leaf @ torch.linalg.householder_product(leaf, tau).mT,
            [leaf],
        ),
        "ormqr": (lambda: torch.ormqr(leaf, tau, x_leaf.mT, transpose=False).mT, [leaf]),
    }
    for name, layer in linear.items():
        rivals[name] = (lambda layer=layer: layer(x_leaf)), list(layer.parameters())

    def backward(rival: Callable[[], Tensor], leaves: list[Tensor]) -> object:
        return torch.autograd.grad(rival(), [x_leaf, *leaves], grad[0])

    times = {"forward": clock(forward), "both": clock(both)}
    for name, (rival, leaves) in rivals.items():
        with torch.no_grad():
            times[f"{name} forward"] = clock(rival)
        times[f"{name} both"] = clock(partial(backward, rival, leaves))
    flops = 4 * vectors * n * k
    return {
        "name": label,
        "error": error,
        "seconds": times,
        "ratio": {key: t / times[key.split()[-1]] for key, t in times.items() if " " in key},
        "TFLOP/s": flops / times["forward"] / 1e12,
        "share of floor": flops / PEAK_FLOPS / times["forward"],
    }


def norm_drift(steps: int, n: int, r: int, device: torch.device) -> dict[str, Any]:
    """How far linear steps with an orthogonal W move the norm of a state in float32."""
    # Unit to float32's rounding of each entry, not to that of a float32 norm: its error would
    # repeat at every step.
    q = torch.linalg.qr(torch.randn(n, r, dtype=torch.float64, device=device))[0]
    q = q.float().contiguous()
    h0, x = torch.randn(4, n, device=device), torch.zeros(steps, 4, n, device=device)
    scale, options = torch.ones(n, device=device), ("identity", 0.0, None, None, False)
    y = recurrence.folded_fwd(x, h0, scale, 2 * q, q, *options)
    drift = (y[-1].norm(dim=-1) / h0.norm(dim=-1) - 1).abs().max().item()
    return {"name": f"norm after {steps} orthogonal steps, n={n}", "drift": drift}


def with_spread(result: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with what else is known of each time."""
    seconds: dict[str, Seconds] = result.get("seconds", {})
    if not seconds:
        return result
    return result | {
        "quartiles": {key: t.quartiles for key, t in seconds.items()},
        # A graph that is replayed has its memory already.
        "peak MiB": {k: t.peak_bytes / 2**20 for k, t in seconds.items() if "CUDA graph" not in k},
    }


def _milliseconds(result: dict[str, Any], key: str) -> str:
    low, high = (1e3 * bound for bound in result["quartiles"][key])
    return f"{1e3 * result['seconds'][key]:.3f} ({low:.3f} to {high:.3f})"


def table(results: list[dict[str, Any]]) -> str:
    head = "| what | forward ms (quartiles) | both ms (quartiles) | peak MiB of both |"
    lines = [f"{head} ratios to rivals (rival / ours) | note |", "|---|---:|---:|---:|---|---|"]
    columns = ("forward", "both")
    for result in results:
        note = result.get("skipped") or ", ".join(
            f"{key} {result[key]:.3g}"
            for key in ("microseconds per step", "TFLOP/s", "share of floor", "drift", "error")
            if key in result
        )
        seconds = result.get("seconds", {})
        times = [_milliseconds(result, key) if key in seconds else "" for key in columns]
        times.append(f"{result['peak MiB']['both']:.1f}" if "both" in seconds else "")
        ratios = ", ".join(f"{key} {value:.2f}" for key, value in result.get("ratio", {}).items())
        lines.append(f"| {result['name']} | {' | '.join(times)} | {ratios} | {note} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0, help="start nothing after this")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.rehearse else "cuda")
    torch.manual_seed(0)
    clock = Clock(device, options.minutes, seconds_each=0.01 if options.rehearse else 0.5)
    if options.rehearse:
        recurrences, reflectors, drift = [(6, 2, 8, 4), (6, 2, 40, 90)], [(12, 12, 3)], (20, 16, 2)
        large = [(2, 2, 65)]
    else:
        sizes = [(64, 16), (128, 32), (128, 256), (256, 32), (256, 512), (512, 32), (1024, 16)]
        sizes += [(512, 64), (1024, 32), (512, 1024)]
        recurrences = [(784, 64, n, r) for n, r in sizes] + [(784, 256, 512, 32)]
        reflectors = [(n, n, 64) for n in (256, 512, 1024)] + [(1024, 1024, 1024), (512, 16, 64)]
        drift = (10_000, 512, 16)
        large = [(784, 64, n) for n in (512, 1024, 2048)]
    work: list[Callable[[], dict[str, Any]]] = [lambda: norm_drift(*drift, device)]
    work += [lambda size=size: bench_recurrence(clock, *size, device) for size in recurrences]
    work += [lambda size=size: bench_routes(clock, *size, device) for size in large]
    work += [lambda size=size: bench_reflectors(clock, *size, device) for size in reflectors]
    machine = {
        "device": "cpu" if options.rehearse else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn may use TF32": torch.backends.cudnn.allow_tf32,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    failed = False
    for number, unit in enumerate(work):
        expired = clock.expired
        try:
            rest = {"name": "the rest", "skipped": "out of time"}
            results.append(rest if expired else with_spread(unit()))
        except Exception as error:  # One that fails takes none of the others with it.
            failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            results.append({"name": f"unit {number}", "skipped": f"failed: {reason}"})
        print(json.dumps(results[-1]), flush=True)
        report = {"machine": machine, "results": results}
        (options.out / "benchmark.json").write_text(json.dumps(report, indent=1))
        (options.out / "benchmark.md").write_text(f"{machine}\n\n{table(results)}")
        if expired:
            break
    print(table(results))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
