"""The examples in docstrings run as a user would run them: in float32, from the public names."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import spectral_triton

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(spectral_triton.__path__, "spectral_triton.")
    if not info.name.startswith("spectral_triton.kernels") and "__main__" not in info.name
)
PUBLIC = {name: getattr(spectral_triton, name) for name in spectral_triton.__all__}


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in ("spectral_triton", *MODULES):
        module = importlib.import_module(name)
        names = {"torch": torch, "nn": nn} | PUBLIC | vars(module)
        for test in finder.find(module, name, module, globs=names):
            if test.examples:
                yield pytest.param(test, id=test.name.removeprefix("spectral_triton."))


EXAMPLES = list(examples())


@pytest.mark.parametrize("test", EXAMPLES)
def test_example(test):
    torch.set_default_dtype(torch.float32)
    output = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.DocTestRunner(optionflags=flags).run(test, out=output.append)
    assert results.attempted == len(test.examples)
    assert results.failed == 0, "".join(output)


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if callable(value)])
def test_public_name_has_an_example(name):
    value = PUBLIC[name]
    home = f"{value.__module__}.{name}".removeprefix("spectral_triton.")
    assert home in {parameter.id for parameter in EXAMPLES}
    assert inspect.getdoc(value).count(">>>") >= 1
