"""README and documentation: examples run, links lead somewhere, figures are those of reports."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted(
    # Without the reference, which a build writes.
    page
    for page in (ROOT / "docs").glob("*.md")
    if not page.stem.startswith("reference")
)
RESULTS = ROOT / "docs/results.md"
REPORT = ROOT / "perf/reports/amd-epyc-2-cores/README.md"
WITHOUT_EXAMPLES = (
    "architecture",
    "command_line",
    "conventions",
    "compatibility",
    "index",
    "mathematics",
    "tuning",
)


def examples(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=lambda page: page.name)
def test_examples_of_a_page_run_one_after_another_in_a_process_of_their_own(page, tmp_path):
    if "torch.onnx.export(" in page.read_text(encoding="utf-8"):
        pytest.importorskip("onnxruntime")
    run_alone("\n".join(examples(page)), tmp_path)


def test_every_page_of_a_task_has_examples_and_is_listed():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.stem == "index" or f"\n{page.stem}\n" in index
        text = page.read_text(encoding="utf-8")
        if page.stem not in WITHOUT_EXAMPLES:
            assert examples(page) or "literalinclude" in text


@pytest.mark.parametrize("block", examples(README), ids=lambda block: block.split("\n")[-2][:30])
def test_a_block_of_the_readme_runs_in_a_process_of_its_own(block, tmp_path):
    run_alone(block, tmp_path)


def run_alone(block, folder):
    """Runs what a reader would paste, in an empty folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1300


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target


def test_results_are_those_of_the_pages_they_link_to():
    text = RESULTS.read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \[[^]]+\]\((\.\./perf/experiments/\S+)\)[^|]*\|(.*)\|$", text, re.MULTILINE
    )
    assert rows
    for page, cells in rows:
        printed = re.split(r"\s*\|\s*", (RESULTS.parent / page).read_text(encoding="utf-8"))
        for cell in cells.split("|"):
            assert cell.strip() in (*printed, "-"), (page, cell)


def aims():
    return dict(
        re.findall(
            r"^\| (.+?) \| [≥≤] \S+ \| (\S+) \|", REPORT.read_text(encoding="utf-8"), re.MULTILINE
        )
    )


def test_speeds_are_those_of_the_report():
    text = RESULTS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| ([\d.]+) \|$", text[text.index("## How fast") :], re.MULTILINE)
    assert len(rows) >= 5
    for what, figure in rows:
        assert aims().get(what) == figure, what


def test_the_figures_in_the_text_of_the_readme_are_those_of_the_report():
    text = README.read_text(encoding="utf-8")
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    figures = re.findall(r"(\d+\.\d+) times", prose)
    assert figures == [
        aims()["SpectralRNN, n = 128, k = 16, T = 784, B = 100: times faster than nn.RNN"],
        aims()["SpectralRNN, n = 1024, k = 16, T = 200, B = 64: the same"],
        aims()["householder_product, n = k = 1024: times faster than torch's"],
        aims()["householder_product, n = k = 1024: times faster than torch's Cayley map"],
    ]


def test_the_comparison_has_the_medians_of_the_report():
    report = REPORT.read_text(encoding="utf-8")

    def measured(reflectors):
        title = f"### linear, forward+backward, n = 512, k = {reflectors}, batch = 32\n"
        table = report[report.index(title) + len(title) :].split("###")[0]
        return dict(
            re.findall(r"^\| (.+?) \| .+? \| .+? \| \d+ \| ([\d.]+) \(", table, re.MULTILINE)
        )

    text = README.read_text(encoding="utf-8")
    table = text[text.index("## Beside other libraries") :].split("\n## ")[0]
    rows = re.findall(r"^\| ([^*|]+?) \|.*\| (\S+) \| (\S+) \|$", table, re.MULTILINE)
    assert len(rows) == 6
    for name, *figures in rows:
        plain = name.replace("`", "")
        for reflectors, figure in zip((512, 16), figures, strict=True):
            found = [ratio for peer, ratio in measured(reflectors).items() if plain in peer]
            assert figure == (found[0] if found else "-"), (name, reflectors)
