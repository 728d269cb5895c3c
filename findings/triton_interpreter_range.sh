#!/usr/bin/env bash
# triton 3.6.0: loops with a run-time bound in the interpreter, with NumPy 2.4
#
# Guess: the interpreter runs whatever compiles, slowly.
# Seen: `for t in range(T)` with an integer argument T fails with NumPy 2.4 (an InterpreterError); with NumPy 2.3 it runs.
# For users: our tests of kernels without a GPU need Triton 3.7.1, or an older NumPy.
source "$(dirname "$0")/environment.bash"
install torch==2.13.0 triton==3.6.0 numpy==2.4.6
cat > "$folder/loop.py" <<'PYTHON'
import os

os.environ["TRITON_INTERPRET"] = "1"
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def count_kernel(out_ptr, T):
    total = 0.0
    for _ in range(T):
        total += 1.0
    tl.store(out_ptr, total)


out = torch.zeros(1)
try:
    count_kernel[(1,)](out, 5)
    outcome = f"counted to {out.item()}"
except Exception as error:
    outcome = f"{type(error).__name__} in the loop"
print("triton", triton.__version__, "NumPy", numpy.__version__, "->", outcome)
PYTHON
new=$("$folder/venv/bin/python" "$folder/loop.py")
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 2>"$folder/pip.log"
old=$("$folder/venv/bin/python" "$folder/loop.py")
printf '%s\n%s\n' "$new" "$old"
[[ $new == *"in the loop"* && $old == *"counted to 5.0"* ]] || { echo "this has changed"; exit 1; }
