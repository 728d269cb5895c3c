"""The lists of faults belong to the source as it is; running them is ``make test-mutations``."""

import shlex
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LISTS = sorted((ROOT / "tests" / "mutations").glob("*.toml"))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_every_fault_can_be_put_in_and_names_its_tests(path):
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    faults = content["fault"]
    assert len({fault["name"] for fault in faults}) == len(faults)
    for fault in faults:
        text = (ROOT / fault["file"]).read_text(encoding="utf-8")
        assert fault["old"] in text, fault["name"]
        assert fault["old"] != fault["new"]
        tests = shlex.split(content["tests"].get(fault["tests"], fault["tests"]))
        files = [word for word in tests if word.startswith("tests/")]
        assert files
        assert all((ROOT / file).is_file() for file in files), fault["name"]
