"""``spectral-triton reproduce``: budget, runs and pages of the stored experiments."""

from __future__ import annotations

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
        typer.Argument(
            metavar="[NAME|all]", help="Which experiment; without it, the list of them."
        ),
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
    from spectral_triton.experiments.errors import ExperimentError, UsageError
    from spectral_triton.experiments.studies.recipes import find
    from spectral_triton.experiments.studies.reproduction import Selection

    require_packages()
    from rich.console import Console

    console = Console()
    selection = Selection(
        models=listed(models) if models else None,
        seeds=whole_numbers(seeds, "--seeds") if seeds else None,
        cases=listed(cases) if cases else None,
        device=device,
        threads=threads,
        search=search,
    )
    try:
        chosen = find(name or "all")
        if not page_only:
            console.print(_budget(chosen, selection))
        if name is None or dry_run:
            return
        for option, folder in (("--output", output), ("--publish", publish)):
            if folder is not None and folder.exists() and not folder.is_dir():
                raise UsageError(f"{option} {folder} is not a folder")
        failures = [] if page_only else _run(chosen, selection, output, data_dir, console, quiet)
        if page_only and not any((output / experiment.name).is_dir() for experiment in chosen):
            raise UsageError(f"--page-only: nothing was run in {output}")
        for reproduction in chosen:
            if page_only and len(chosen) > 1 and not (output / reproduction.name).is_dir():
                continue
            _write(reproduction, output, publish, console)
    except ExperimentError as error:
        typer.echo(f"Error: {error}" if error.exit_code != 130 else f"\n{error}", err=True)
        if error.exit_code == 130:
            typer.echo("Repeat the command to continue.", err=True)
        raise typer.Exit(error.exit_code) from None
    for failure in failures:
        typer.echo(f"Error: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


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
    source = output / reproduction.name
    for target in (source, *([publish / reproduction.name] if publish is not None else [])):
        target.mkdir(parents=True, exist_ok=True)
        reproduction.write_page(source, target)
        console.print(f"Page: {target / 'README.md'}", soft_wrap=True, highlight=False)
