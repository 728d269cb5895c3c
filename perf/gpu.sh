#!/usr/bin/env bash
# Everything a GPU machine is needed for, in two commands of under ten minutes each and without network:
#
#     perf/gpu.sh OUT              installs, runs the GPU tests, then the benchmarks
#     perf/gpu.sh OUT sanitize     installs, runs some tests under compute-sanitizer
#     perf/gpu.sh OUT rehearse     the first on a CPU, interpreted and tiny
#
# OUT receives summary.md, tests.log, benchmark.json and benchmark.md, or sanitizer.log. PYTHON
# names the interpreter (python3), which must hold torch, triton, setuptools and pytest.
set -uo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
mode=${2:-gpu}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
status=0

section() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

section "machine"
command -v nvidia-smi >/dev/null && nvidia-smi -L
"$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)' || exit 1

section "install"
if [ "$mode" != rehearse ]; then
    # The checkout alone will do, where setuptools is too old for it.
    "$python" -m pip install --quiet --no-deps --no-build-isolation --no-index -e . || {
        [ -e spectral_triton/kernels ] || ln -s ../kernels spectral_triton/kernels
        export PYTHONPATH=$PWD
    }
fi

# The entry point, not python -m pytest: that would put the folder kernels/ itself on sys.path.
pytest_main='import sys, pytest; sys.path = [p for p in sys.path if p]; sys.exit(pytest.main())'

if [ "$mode" = sanitize ]; then
    section "compute-sanitizer"
    sanitized="test_two_sequences_per_program and sizes2 and dtype0 or 65-12-4-False-dtype0"
    sanitized+=" or test_own_choice_of_blocks"
    for tool in memcheck racecheck; do
        echo "-- $tool"
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 250 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$python" -c "$pytest_main" -q -p no:cacheprovider --device cuda \
            tests/kernels/test_{recurrence,grid_recurrence,compact_wy}.py -k "$sanitized" 2>&1
        sanitizer_status=$?
        echo "-- $tool exit status $sanitizer_status"
        # 124 is the timeout: the tool is slow, which is no verdict.
        [ "$sanitizer_status" -eq 0 ] || [ "$sanitizer_status" -eq 124 ] || status=1
    done >"$out/sanitizer.log"
    grep -E '^--|ERROR SUMMARY|RACECHECK SUMMARY' "$out/sanitizer.log"
    section "done, status $status; everything is in $out"
    exit $status
fi

section "tests"
tests=(tests/kernels tests/runtime/test_backend.py tests/test_backends_agree.py tests/householder/test_op.py)
tests+=(tests/recurrent/test_fused.py::test_cudnn_gives_what_the_cpu_gives)
options=(-q -p no:cacheprovider)
if [ "$mode" = rehearse ]; then
    export TRITON_INTERPRET=1
    tests=(tests/kernels/test_compact_wy.py -k "3-3-2 or bit_equal")
else
    options+=(--device cuda)
    # Compiles for all architectures, which needs no GPU and takes as long as all the rest.
    options+=(--ignore tests/kernels/test_configuration.py)
    # Most of the time goes into compiling, which parallelizes.
    "$python" -c 'import xdist' 2>/dev/null && options+=(-n 8)
fi
# The oracles run on the CPU, in several processes: with more threads than cores they would crawl.
OMP_NUM_THREADS=1 timeout 300 "$python" -c "$pytest_main" "${options[@]}" "${tests[@]}" 2>&1 | tee "$out/tests.log" | tail -n 25
tests_status=${PIPESTATUS[0]}
[ "$tests_status" -eq 0 ] || status=1
{
    echo "# perf/gpu.sh, $mode, $(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD 2>/dev/null)"
    echo
    echo "tests: exit status $tests_status, $(tail -n 1 "$out/tests.log")"
    echo
} >"$out/summary.md"

section "benchmarks"
if [ "$mode" = rehearse ]; then
    timeout 120 "$python" perf/gpu_benchmark.py "$out" --rehearse | tail -n 8 || status=1
else
    timeout 225 "$python" perf/gpu_benchmark.py "$out" --minutes 3 | tail -n 24 || status=1
fi

cat "$out/benchmark.md" >>"$out/summary.md"
section "done, status $status; everything is in $out"
exit $status
