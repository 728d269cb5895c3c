"""The examples of the README run as they stand, one after another."""

import re
from pathlib import Path

import torch

README = Path(__file__).parent.parent / "README.md"


def test_examples_run():
    torch.set_default_dtype(torch.float32)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for index, block in enumerate(blocks):
        exec(compile(block, str(README), "exec"), names)
        if index == 0:
            # What the comment at `solve` claims: the layer takes the solution to its output.
            output = names["layer"](names["x"].mT)
            torch.testing.assert_close(output, names["y"], rtol=1e-3, atol=1e-4)


def test_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (README.parent / target).exists(), target


def test_results_are_those_of_the_pages_they_link_to():
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[[^]]+\]\((perf/experiments/\S+)\)[^|]*\|(.*)\|$", text, re.MULTILINE)
    assert rows
    for page, cells in rows:
        printed = re.split(r"\s*\|\s*", (README.parent / page).read_text(encoding="utf-8"))
        for cell in cells.split("|"):
            assert cell.strip() in (*printed, "-"), (page, cell)
