"""The examples of README and documentation run as they stand, one after another on each page."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def examples(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=lambda page: page.name)
def test_examples_of_a_page_run(page):
    torch.set_default_dtype(torch.float32)
    names: dict[str, object] = {}
    for block in examples(page):
        exec(compile(block, str(page), "exec"), names)


def test_every_page_of_a_task_has_examples_and_is_listed():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.stem == "index" or f"\n{page.stem}\n" in index
        text = page.read_text(encoding="utf-8")
        if page.stem not in ("index", "mathematics", "reference"):
            assert examples(page) or "literalinclude" in text


def test_examples_run():
    torch.set_default_dtype(torch.float32)
    blocks = examples(README)
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


def test_speeds_are_those_of_the_report():
    text = README.read_text(encoding="utf-8")
    section = text[text.index("## How fast") :]
    page = re.search(r"^\| \[report\]\(([^)]+)\) \| measured \|$", section, re.MULTILINE)
    printed = (README.parent / page.group(1)).read_text(encoding="utf-8")
    measured = dict(re.findall(r"^\| (.+?) \| [≥≤] \S+ \| (\S+) \|", printed, re.MULTILINE))
    rows = re.findall(r"^\| (.+) \| ([\d.]+) \|$", section, re.MULTILINE)
    assert len(rows) >= 5
    for what, figure in rows:
        assert measured.get(what) == figure, what
