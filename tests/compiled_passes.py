"""Whether any pass of the compiler changes what a kernel computes, for sm_90 and without a GPU.

    python tests/compiled_passes.py [--report FILE.md] [--only KERNEL]

Each kernel is launched at two sizes. ttsem executes the module that the compiler's front end makes
(TTIR), and then the module that every later pass receives, down to the conversion to LLVM, and
compares the values. ``make test-compiled`` compares the first of these with the oracle.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).parent))
import torch
from compiled_form import NEEDED, missing

DTYPE = torch.float32


def launches() -> Iterator[tuple[str, object]]:
    """A title, and a function whose last launch is that of the kernel."""
    from spectral_triton.kernels import compact_wy, grid_recurrence, recurrence, t_factor
    from spectral_triton.kernels.configuration import GridConfig

    def unit(k, n):
        return torch.nn.functional.normalize(torch.randn(1, k, n, dtype=DTYPE), dim=-1)

    for k, n in ((3, 17), (20, 100)):
        yield (
            f"t_factor_fwd_kernel, k={k}, n={n}",
            lambda k=k, n=n: t_factor.t_factor_fwd(unit(k, n), 16),
        )
    for rows, k, n in ((3, 5, 17), (5, 20, 100)):

        def apply(rows=rows, k=k, n=n, tiled=False):
            v = unit(k, n)
            config = compact_wy.apply_config
            if tiled:
                compact_wy.apply_config = lambda n, *a: config(64, *a)._replace(resident=False)
            try:
                t = compact_wy.t_factor_fwd(v, 8)
                compact_wy._apply(torch.randn(1, rows, n, dtype=DTYPE), v, t, True, True)
            finally:
                compact_wy.apply_config = config

        yield f"apply_resident_kernel, {rows} vectors, k={k}, n={n}", apply
        yield f"apply_tiled_kernel, {rows} vectors, k={k}, n={n}", lambda f=apply: f(tiled=True)

    for n, r, packed in ((17, 3, True), (100, 20, False)):
        rows = torch.tensor([0, 2, 3, 4]) if packed else None
        shape = (4, n) if packed else (3, 2, n)
        x, dy, h0 = torch.randn(shape), torch.randn(shape), torch.randn(2, n)
        p, q = torch.randn(2, n, r) / n**0.5
        options = ("tanh", 0.0, None, rows, packed)
        single = [a.to(DTYPE) for a in (x, h0, torch.ones(n), p, q, torch.eye(n) - p @ q.mT, dy)]
        x, h0, scale, p, q, dense, dy = single
        what = f"n={n}, " + ("packed, reverse" if packed else "padded")
        for form, forward, backward, weight in (
            ("folded", recurrence.folded_fwd, recurrence.folded_bwd, (scale, p, q)),
            ("dense", recurrence.dense_fwd, recurrence.dense_bwd, (dense,)),
            ("grid", grid_recurrence.grid_fwd, grid_recurrence.grid_bwd, (dense,)),
        ):
            kernel = "grid" if form == "grid" else "recurrence"
            extra = (False,) if form == "grid" else ()

            def forwards(f=forward, x=x, h0=h0, w=weight, o=(*options, *extra)):
                return f(x, h0, *w, *o)

            def backwards(f=forwards, b=backward, dy=dy, h0=h0, w=weight, o=(*options, *extra)):
                return b(dy, f(), h0, *w, *o)

            if form == "grid":
                small = GridConfig(128, 32, num_warps=4, lanes_n=4)
                forwards = with_grid_config(forwards, grid_recurrence, small)
                backwards = with_grid_config(backwards, grid_recurrence, small)
            yield f"{kernel}_fwd_kernel, {form}, {what}", forwards
            yield f"{kernel}_bwd_kernel, {form}, {what}", backwards


def with_grid_config(function, module, config):
    def call():
        own = module.grid_config
        module.grid_config = lambda n, dtype: config
        try:
            return function()
        finally:
            module.grid_config = own

    return call


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="write the table to this file")
    parser.add_argument("--only", default="", help="kernels whose title contains this")
    options = parser.parse_args()
    if problems := missing():
        sys.exit("tests/compiled_passes.py: " + "; ".join(problems))

    from triton.runtime.jit import JITFunction
    from ttsem import _fakedriver, harness, mlir, sanitize, validate

    mlir.enable_generic_printing()
    torch.manual_seed(0)
    target = harness.target_for("cpu", 90)
    lines, status = [], 0
    with sanitize.session(cuda_is_cpu=False):
        _fakedriver.unstub_torch_cuda()
        from spectral_triton.kernels import _launch

        _launch.INTERPRETED = True
        execute, last = JITFunction.run, {}

        def run(self, *args, grid, warmup, **kwargs):
            def launch(kernel, *a, **k):
                return execute(kernel, *a, **k)

            last[0] = harness.record_launch(self, args, kwargs, grid, launch, "").record

        JITFunction.run = run
        for title, function in launches():
            if options.only not in title:
                continue
            started = time.monotonic()
            function()
            record = last[0]
            assert title.startswith(record.fn_name), (title, record.fn_name)
            stages = validate.split_dump(harness.dump_for_launch(record, target))
            report = validate.validate_stages(record, stages, name=title)
            counts = collections.Counter(r.verdict for r in report.passes)
            unread = sorted({u for r in report.passes for u in r.unsupported})
            # Text that ttsem's parser does not know is no verdict; a value that differs is one.
            unread += [
                f"what `{r.pass_name}` receives"
                for r in report.passes
                if r.verdict == "error" and r.message.startswith("parse failed")
            ]
            counts["error"] -= sum(r.message.startswith("parse failed") for r in report.passes)
            changed = report.changed_by or report.first_bad_pass
            notes = {r.message for r in report.passes if r.verdict in ("approx", "error", "poison")}
            status |= bool(changed or counts["error"] or counts["poison"])
            numbers = " | ".join(str(counts[v]) for v in ("match", "approx", "mismatch"))
            lines.append(
                f"| {title} | {numbers} | {', '.join(unread) or 'none'} | {changed or 'none'} |"
            )
            seconds = time.monotonic() - started
            print(lines[-1], dict(counts), *notes, f"{seconds:.0f} s", flush=True)
    if options.report:
        versions = ", ".join(f"{name} {NEEDED[name]}" for name in ("ttsem", "torch", "triton"))
        head = [
            "# What the compiler's passes do to the kernels",
            "",
            f"Written by `tests/compiled_passes.py` with {versions}, for sm_90, in float32. The"
            " numbers are modules that passes receive whose values are those of the first module:"
            " bit for bit (match), or up to the order of sums that a reduction leaves open"
            " (approx). What could not be read is named: the LLVM dialect is where ttsem ends.",
            "",
            "| kernel | match | approx | mismatch | not read | pass that changes a value |",
            "|---|---:|---:|---:|---|---|",
        ]
        options.report.write_text("\n".join(head + lines) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
