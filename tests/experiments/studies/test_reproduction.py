import inspect

import pytest

from spectral_triton.experiments.studies.recipes import REPRODUCTIONS
from spectral_triton.experiments.studies.reproduction import BudgetLine, Reproduction, Selection

MEMBERS = [name for name in vars(Reproduction) if not name.startswith("_")]


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_everything_registered_is_a_reproduction(name):
    found = REPRODUCTIONS[name]
    for member in MEMBERS:
        declared = inspect.getattr_static(Reproduction, member)
        if isinstance(declared, property):
            assert isinstance(getattr(found, member), str)
            continue
        asked = list(inspect.signature(declared).parameters)[1:]
        assert list(inspect.signature(getattr(found, member)).parameters) == asked
    assert found.name == name
    for line in found.budget(Selection()):
        assert isinstance(line, BudgetLine)
        assert line.runs > 0
        assert line.minutes > 0
