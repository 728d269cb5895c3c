"""``spectral-triton reproduce``: budget, runs and pages of the stored experiments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from spectral_triton.experiments.studies.reproduction import Reproduction, Selection


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME|all", help="Which experiment; without it, the list of them."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", "-m", help="Only these: repeat it or separate them by commas."),
    ] = None,
    seeds: Annotated[list[str] | None, typer.Option("--seeds", help="Only these.")] = None,
    cases: Annotated[
        list[str] | None, typer.Option("--cases", help="ucr: only these data sets.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Runs, results and pages, one folder a name.")
    ] = Path("runs/reproduce"),
    publish: Annotated[
        Path | None,
        typer.Option(help="Also write results, page and pictures, but no checkpoints, here."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads of a run.")] = 1,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with mnist, ptb, ucr, as for train.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Compare candidate settings on validation data.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the budget.")] = False,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Only write the pages of what was run.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run experiments with stored settings over several seeds, and write a page of each.

    What was run before is skipped and what was stopped goes on: repeat the command to continue.
    Given several times at once, it passes over the runs that another process is at.
    """
    from spectral_triton.experiments.arguments import listed, require_packages, whole_numbers
    from spectral_triton.experiments.errors import ExperimentError, UsageError, failed_file
    from spectral_triton.experiments.studies.recipes import find
    from spectral_triton.experiments.studies.reproduction import Selection

    require_packages()
    from rich.console import Console

    console = Console()
    try:
        selection = Selection(
            models=listed(models) if models else None,
            seeds=whole_numbers(seeds, "--seeds") if seeds else None,
            cases=listed(cases) if cases else None,
            device=device,
            threads=threads,
            search=search,
        )
        chosen = find(name or "all")
        if name is None:
            console.print(_list(chosen, selection))
            return
        if not page_only:
            console.print(_budget(chosen, selection))
        if dry_run:
            return
        for option, folder in (("--output", output), ("--publish", publish)):
            if folder is not None and folder.exists() and not folder.is_dir():
                raise UsageError(f"{option} {folder} is not a folder")
        failures = [] if page_only else _run(chosen, selection, output, data_dir, console, quiet)
        shown = [r for r in chosen if not page_only or _was_run(output / r.name)]
        if not shown:
            places = ", ".join(str(output / reproduction.name) for reproduction in chosen[:3])
            raise UsageError(f"--page-only: no run in {places}{', ...' if chosen[3:] else ''}")
        for reproduction in shown:
            _write(reproduction, output, publish, console)
    except (ExperimentError, OSError) as failed:
        error = failed_file(failed) if isinstance(failed, OSError) else failed
        typer.echo(f"Error: {error}" if error.exit_code != 130 else f"\n{error}", err=True)
        if error.exit_code == 130:
            typer.echo("Repeat the command to continue.", err=True)
        raise typer.Exit(error.exit_code) from None
    for failure in failures:
        typer.echo(f"Error: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


def _was_run(folder: Path) -> bool:
    """Whether runs have left anything there: more than an empty folder, a page or notes."""
    return any(
        path.is_file() and path.suffix in (".json", ".jsonl") and path.stat().st_size
        for path in folder.rglob("*")
    )


def _list(chosen: list[Reproduction], selection: Selection) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("experiment", no_wrap=True)
    table.add_column("what it is")
    table.add_column("runs", justify="right", no_wrap=True)
    table.add_column("hours", justify="right", no_wrap=True)
    total = 0.0
    for reproduction in chosen:
        lines = reproduction.budget(selection)
        hours = sum(line.minutes for line in lines) / 60
        runs = sum(line.runs for line in lines)
        table.add_row(reproduction.name, reproduction.title, f"{runs}", f"{hours:,.1f}")
        total += hours
    table.add_section()
    table.add_row("all", "all of these, one after another", "", f"{total:,.1f}")
    table.caption = (
        "Hours on one CPU core. Run one: spectral-triton reproduce NAME; "
        "with --dry-run, what each model costs."
    )
    table.caption_justify = "left"
    return table


def _budget(chosen: list[Reproduction], selection: Selection) -> Table:
    from rich.table import Table

    table = Table(title="Budget, on one CPU core", title_justify="left")
    columns: tuple[tuple[str, Literal["left", "right"]], ...] = (
        ("experiment", "left"),
        ("model", "left"),
        ("runs", "right"),
        ("steps", "right"),
        ("hours", "right"),
    )
    for column, justify in columns:
        table.add_column(column, justify=justify)
    total = 0.0
    for reproduction in chosen:
        lines = reproduction.budget(selection)
        for line in lines:
            table.add_row(
                reproduction.name,
                line.what,
                f"{line.runs}",
                f"{line.steps:,}",
                f"{line.minutes / 60:,.2f}",
            )
        total += sum(line.minutes for line in lines)
        table.add_section()
    table.add_row("all of these", "", "", "", f"{total / 60:,.1f}")
    return table


def _run(
    chosen: list[Reproduction],
    selection: Selection,
    output: Path,
    data_dir: Path | None,
    console: Console,
    quiet: bool,
) -> list[str]:
    from spectral_triton.experiments.tasks.storage import DataFolder
    from spectral_triton.experiments.training.denormals import flushed_denormals
    from spectral_triton.experiments.training.progress import ProgressReport

    data = DataFolder(data_dir)
    failures = []
    for reproduction in chosen:
        with flushed_denormals(), ProgressReport(console, quiet=quiet) as report:
            report.note(f"{reproduction.title} → {output / reproduction.name}")
            failures += reproduction.run(output / reproduction.name, selection, data, report)
    return failures


def _write(
    reproduction: Reproduction, output: Path, publish: Path | None, console: Console
) -> None:
    from rich.markdown import Markdown

    source = output / reproduction.name
    targets = [source, *([publish / reproduction.name] if publish is not None else [])]
    for target in targets:
        target.mkdir(parents=True, exist_ok=True)
        reproduction.write_page(source, target)
    page = source / "README.md"
    console.print(Markdown(results_of_page(page.read_text(encoding="utf-8"))))
    for target in targets:
        console.print(f"Page: {target / 'README.md'}", soft_wrap=True, highlight=False)


def results_of_page(text: str) -> str:
    """The title of a page and the tables of its first part, as they are read in a terminal."""
    title, _, rest = text.partition("\n")
    first = rest.lstrip().split("\n## ")[0] if not rest.lstrip().startswith("## ") else rest
    tables = re.findall(r"(?:^\|.*\n?)+", first, re.MULTILINE)
    shown = "\n".join(tables) if tables else "No run is finished yet."
    shown = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", shown)
    return f"**{title.lstrip('# ')}**\n\n{shown}"
