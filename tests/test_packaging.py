"""What is installed: package list, test mirror, import without Triton, public names."""

import importlib
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from torch import nn

import spectral_triton

pytestmark = pytest.mark.xdist_group("packaging")
ROOT = Path(__file__).parents[1]
# Each folder of modules, and the folder of its tests.
FOLDERS = {
    folder.relative_to(ROOT).as_posix(): ("tests" / folder.relative_to(ROOT / "spectral_triton"))
    for folder in sorted({path.parent for path in ROOT.glob("spectral_triton/**/*.py")})
} | {"kernels": Path("tests/kernels")}
MODULES = [
    (module.relative_to(ROOT).as_posix(), (tests / f"test_{module.name}").as_posix())
    for folder, tests in FOLDERS.items()
    for module in sorted((ROOT / folder).glob("[!_]*.py"))
]
# DESIGN.md, public names.
NAMES = (
    "FixedSpectrum",
    "HouseholderSVD",
    "SVDConv1d",
    "SVDConv2d",
    "SVDLinear",
    "SigmoidSpectrum",
    "SoftplusSpectrum",
    "SpectralGRU",
    "SpectralGRUCell",
    "SpectralLSTM",
    "SpectralLSTMCell",
    "SpectralRNN",
    "SpectralRNNCell",
    "apply_reflectors",
    "backend_info",
    "householder_product",
    "parametrizations",
    "reflectors_from_orthogonal",
    "spectral_recurrence",
    "use_backend",
)


@pytest.fixture(scope="module")
def pyproject():
    # pytest brings tomli where the standard library has no tomllib yet.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python(code, folder, **environment):
    """Standard output of a fresh interpreter in an empty folder."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
    result = subprocess.run(
        [sys.executable, *(("-c", code) if isinstance(code, str) else code)],
        cwd=folder,
        env=variables | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("module", "tests"), MODULES, ids=[module for module, _ in MODULES])
def test_every_module_has_its_tests(module, tests):
    assert "def test_" in (ROOT / tests).read_text(encoding="utf-8")


def test_every_folder_of_modules_is_in_the_mirror():
    assert {"spectral_triton", "spectral_triton/svd", "kernels"} < FOLDERS.keys()
    assert {p.parent.name for p in ROOT.glob("kernels/**/*.py")} == {"kernels"}
    assert not list(ROOT.glob("tests/**/__init__.py"))


def test_top_of_the_package_is_a_table_of_contents():
    assert len(list(ROOT.glob("spectral_triton/*.py"))) <= 14


def test_nothing_imports_upward():
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [command, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_kernels_import_nothing_of_the_package_but_kernels():
    for path in ROOT.glob("kernels/*.py"):
        for name in re.findall(r"(?:from|import) (spectral_triton\S*)", path.read_text("utf-8")):
            assert name.startswith("spectral_triton.kernels"), path


def test_every_package_is_listed(pyproject):
    on_disk = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for init in ROOT.glob("spectral_triton/**/__init__.py")
    }
    settings = pyproject["tool"]["setuptools"]
    assert len(set(settings["packages"])) == len(settings["packages"])
    assert set(settings["packages"]) == on_disk | {"spectral_triton.kernels"}
    assert settings["package-dir"] == {
        "spectral_triton": "spectral_triton",
        "spectral_triton.kernels": "kernels",
    }
    assert (ROOT / "kernels/__init__.py").exists()
    assert (ROOT / "spectral_triton/py.typed").exists()
    assert settings["package-data"]["spectral_triton"] == ["py.typed"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with wheel and sdist, built by what pip calls, without the network."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    for name in ("spectral_triton", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = """
from setuptools import build_meta
print(build_meta.build_wheel("out"), build_meta.build_sdist("out"), sep="\\n")
"""
    python(code, folder)
    return folder / "out"


def test_wheel_holds_the_package_alone_and_works(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "target")
    folders = {name.split("/")[0] for name in names}
    assert folders == {
        "spectral_triton",
        f"spectral_triton-{spectral_triton.__version__}.dist-info",
    }
    modules = {
        path.relative_to(ROOT).as_posix().replace("kernels/", "spectral_triton/kernels/", 1)
        for folder in ("spectral_triton", "kernels")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    assert "spectral_triton/py.typed" in names
    code = """
import torch, spectral_triton, spectral_triton.kernels
print(spectral_triton.__file__)
print(spectral_triton.SVDLinear(3, 2)(torch.ones(3)).isfinite().all().item())
"""
    location, finite = python(code, tmp_path, PYTHONPATH=str(tmp_path / "target")).splitlines()
    assert Path(location).is_relative_to(tmp_path / "target")
    assert finite == "True"


def test_sdist_can_be_built_again(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in ("spectral_triton", "kernels")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sources | {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= names
    # All of the tests would need what is around them, some are no use.
    assert not any(name.startswith("tests/") for name in names)


def test_one_version(pyproject):
    assert pyproject["project"]["dynamic"] == ["version"]
    assert importlib.metadata.version("spectral-triton") == spectral_triton.__version__


def test_core_dependencies_are_light(pyproject):
    names = {
        entry.split(">")[0].split(";")[0].strip() for entry in pyproject["project"]["dependencies"]
    }
    assert names == {"torch", "numpy", "triton"}


def test_kernels_are_ours_only_under_our_name(tmp_path):
    code = """
import importlib.util, spectral_triton.kernels
print(spectral_triton.kernels.__name__)
found = importlib.util.find_spec("kernels")
print(found.origin if found else None)
"""
    name, origin = python(code, tmp_path).splitlines()
    assert name == "spectral_triton.kernels"
    assert origin == "None" or not Path(origin).is_relative_to(ROOT)


def break_triton(folder, error):
    (folder / "triton").mkdir()
    (folder / "triton/__init__.py").write_text(f"raise {error}('no driver')\n", encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def test_works_where_triton_is_absent(tmp_path):
    code = """
import torch, spectral_triton
rnn = spectral_triton.SpectralRNN(2, 70, num_reflectors=1)
y, _ = rnn(torch.randn(3, 2, 2))
y.sum().backward()
print(rnn.weight_ih_l0.grad.isfinite().all().item())
print(spectral_triton.backend_info())
try:
    import triton
except ImportError as error:
    print(error)
"""
    output = python(code, tmp_path, **break_triton(tmp_path, "ImportError"))
    assert output.startswith("True\nEverything runs in PyTorch")
    assert output.endswith("no driver\n")


def test_imports_where_triton_is_broken(tmp_path):
    # torch._dynamo, which torch loads with the first registered op, does not bear this.
    code = """
import torch, spectral_triton
q = spectral_triton.householder_product(torch.randn(2, 3))
torch.testing.assert_close(spectral_triton.apply_reflectors(q, torch.zeros(2, 3)), q)
print(spectral_triton.SVDLinear(3, 2)(torch.ones(3)).isfinite().all().item())
"""
    assert python(code, tmp_path, **break_triton(tmp_path, "RuntimeError")) == "True\n"


def test_import_is_light_and_without_side_effects(tmp_path):
    code = """
import os, sys, torch, warnings
warnings.simplefilter("error")
state, environment = torch.get_rng_state(), dict(os.environ)
settings = lambda: (
    torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
    torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
)
before, loaded = settings(), set(sys.modules)
import spectral_triton
heavy = ("triton", "matplotlib", "typer", "rich", "tensorboard", "pooch", "torch._dynamo")
loaded = set(sys.modules) - loaded
assert not [n for n in heavy if any(m == n or m.startswith(n + ".") for m in loaded)]
assert torch.equal(state, torch.get_rng_state())
assert settings() == before
assert dict(os.environ) == environment
"""
    # How long it takes is measured in perf/bench_import.py.
    python(code, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_designed_names_are_public(name):
    assert name in spectral_triton.__all__


@pytest.mark.parametrize("name", spectral_triton.__all__)
def test_public_names_are_documented(name):
    value = getattr(spectral_triton, name)
    assert value.__doc__
    # Inherited text documents something else.
    assert not inspect.isclass(value) or "__doc__" in vars(value)


def test_public_names_are_sorted_and_complete():
    assert spectral_triton.__all__ == sorted(spectral_triton.__all__)
    own = {
        name
        for name, value in vars(spectral_triton).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert own <= set(spectral_triton.__all__)
    assert callable(spectral_triton.parametrizations.svd)


def test_signatures_are_those_of_torch():
    for own, plain in (
        (spectral_triton.SVDConv1d, nn.Conv1d),
        (spectral_triton.SVDConv2d, nn.Conv2d),
        (spectral_triton.SVDConv3d, nn.Conv3d),
        (spectral_triton.SVDLinear, nn.Linear),
        (spectral_triton.SpectralRNNCell, nn.RNNCell),
        (spectral_triton.SpectralLSTMCell, nn.LSTMCell),
        (spectral_triton.SpectralGRUCell, nn.GRUCell),
    ):
        theirs = list(inspect.signature(plain).parameters)
        assert list(inspect.signature(own).parameters)[: len(theirs)] == theirs
        # Callers name what they pass as torch does.
        names = [list(inspect.signature(kind.forward).parameters) for kind in (own, plain)]
        assert names[0] == names[1]
    # nn.RNN, nn.LSTM and nn.GRU themselves take (*args, **kwargs).
    shared = "num_layers bias batch_first dropout bidirectional device dtype"
    for own, expected in (
        (spectral_triton.SpectralRNN, shared.replace(" bias", " nonlinearity bias")),
        (spectral_triton.SpectralLSTM, shared.replace(" device", " proj_size device")),
        (spectral_triton.SpectralGRU, shared),
    ):
        *arguments, lengths = inspect.signature(own.forward).parameters.values()
        assert [argument.name for argument in arguments] == ["self", "input", "hx"]
        assert lengths.kind is inspect.Parameter.KEYWORD_ONLY
        parameters = inspect.signature(own).parameters.values()
        positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
        assert positional == ["input_size", "hidden_size", *expected.split()]


def test_command_line_starts(tmp_path):
    text = python(["-m", "spectral_triton", "--help"], tmp_path)
    assert "train" in text
    assert "info" in text
