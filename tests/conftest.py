"""What every test relies on: a seed, float64 by default, uninitialised memory that shows itself."""

import os
import re
import subprocess
import sys

import pytest
import torch

# Without a GPU the kernels run in Triton's interpreter, which must be chosen before its import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device the tests run on: cpu or cuda")
    parser.addoption(
        "--quick",
        action="store_true",
        help="first and last case of each test, none that takes long",
    )


# By CPU seconds: compilers, several processes, and the command line in processes of its own.
SLOW = re.compile(
    r"kernels/test_(configuration|grid_recurrence)|distributed/|training/test_processes|test_cli"
    r"|test_packaging|test_fuzz|test_onnx|of_the_graph|opcheck|compile|inductor|programs_compute|without_triton"
    r"|test_registered_op|backends_agree|kernels/|test_denormals|test_comparison|test_commands"
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if not config.getoption("--quick"):
        return
    cases = {}
    for item in items:
        if not SLOW.search(item.nodeid):
            cases.setdefault((item.path, item.originalname), []).append(item)
    kept = {id(item) for group in cases.values() for item in (group[0], group[-1])}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def kernel_device():
    """Where kernels run: a GPU natively, the CPU in the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def torchrun():
    """Runs a program in two processes of one thread each; what they print."""

    def run(*arguments, cwd):
        inherited = {
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")
        }
        result = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            + [str(argument) for argument in arguments],
            cwd=cwd,
            env=inherited | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout

    return run


@pytest.fixture
def onnx_program():
    """Exports a model to ONNX: a function that runs it, with its nodes and size as attributes."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    onnxruntime = pytest.importorskip("onnxruntime")

    def export(model, arguments, dynamic_shapes, **options):
        options = {"dynamo": True, "verbose": False, **options}
        program = torch.onnx.export(
            model.eval(), arguments, dynamic_shapes=dynamic_shapes, **options
        )
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        names = [each.name for each in session.get_inputs()]

        def run(*tensors):
            given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            return [torch.from_numpy(result) for result in session.run(None, given)]

        graph = program.model.graph
        run.nodes = [node.op_type for node in graph]
        run.size = sum(each.const_value.size for each in graph.initializers.values())
        return run

    return export


@pytest.fixture(autouse=True)
def _seed_and_dtype():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _nan_filled_empty(monkeypatch):
    """An output cell that nothing writes must fail a test, so torch.empty holds NaN."""

    def poisoned(make):
        def wrapper(*args, **kwargs):
            out = make(*args, **kwargs)
            # Not in a trace: PyTorch 2.14 allocates inside scans, whose graph would hold the fill.
            traced = torch.compiler.is_compiling()
            fillable = out.is_floating_point() and not out.is_meta and not traced
            if fillable:
                with torch.no_grad():  # PyTorch 2.11's checkpoint makes one that requires grad.
                    out.fill_(float("nan"))
            return out

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
