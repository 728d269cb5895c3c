"""The commands of ``spectral-triton``; everything heavy is imported when a command runs."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectral_triton.experiments.arguments import (
    TASKS,
    listed,
    reflector_counts,
    require_packages,
    task_name,
    whole_numbers,
)
from spectral_triton.experiments.reproduce_command import reproduce
from spectral_triton.experiments.train_help import TrainCommand

if TYPE_CHECKING:
    from spectral_triton.experiments.training.config import RunConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(reproduce)


def _print_version(wanted: bool) -> None:
    if wanted:
        import spectral_triton

        typer.echo(f"spectral-triton {spectral_triton.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Recurrent networks whose singular values stay within bounds."""


@app.command()
def info() -> None:
    """Print which kernels run on which device, and why not where they do not."""
    print_backend_report()


def print_backend_report() -> None:
    """Prints ``spectral_triton.backend_info()``."""
    import spectral_triton

    print(spectral_triton.backend_info())


@app.command(cls=TrainCommand)
def train(
    task: Annotated[
        str,
        typer.Argument(
            help=f"What to learn: {', '.join(TASKS)}.", parser=task_name, metavar="TASK"
        ),
    ],
    dataset: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Data set of ucr, such as CBF.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="spectral, orthogonal, rnn, irnn, lstm, gru, spectral-lstm or spectral-gru; "
            "several are compared: repeat the option or separate them by commas.",
            show_default="spectral, or with --resume those in the folder",
        ),
    ] = None,
    seed: Annotated[
        list[str] | None,
        typer.Option("--seed", help="One or several, like --model.", show_default="0"),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="adding, copying: steps to remember over.")
    ] = None,
    rows: Annotated[
        bool | None, typer.Option("--rows", help="sequential-mnist: 28 steps of one row.")
    ] = None,
    permuted: Annotated[
        bool | None,
        typer.Option(
            "--permuted",
            help="sequential-mnist: permuted MNIST, the pixels in another fixed order.",
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="ptb: words that gradients flow through.")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="ucr: mean 0, variance 1 for each series.",
        ),
    ] = None,
    mask: Annotated[
        bool | None,
        typer.Option(
            "--mask",
            help="ucr: read missing values and series of different lengths, with a second input "
            "that is 1 where a value was measured.",
        ),
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(help="ucr: validate on third 0, 1 or 2 of the training series, each label's."),
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option("--hidden-size", "--hidden", help="Hidden units.")
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option("--num-layers", "--layers", help="Stacked layers.")
    ] = None,
    bidirectional: Annotated[
        bool | None,
        typer.Option(
            "--bidirectional", help="Read the sequence both ways, where its end is classified."
        ),
    ] = None,
    num_reflectors: Annotated[
        str | None,
        typer.Option(
            "--num-reflectors",
            "--reflectors",
            help="Reflectors of U and V: K, or LEFT,RIGHT, or full (spectral models).",
        ),
    ] = None,
    rebase: Annotated[
        int | None,
        typer.Option(
            help="Fold the reflectors into a base every so many steps, so that few of them reach "
            "every matrix (spectral models)."
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Half-width of the band around 1 (spectral).")
    ] = None,
    nonlinearity: Annotated[
        str | None,
        typer.Option(help="tanh, relu; for spectral models also leaky_relu, identity, modrelu."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Start of W: identity, haar, henaff or cayley (spectral models)."),
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Share of units dropped.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data, instead.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences in a batch.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", "--learning-rate", help="Learning rate; the others follow in proportion."
        ),
    ] = None,
    reflectors_lr: Annotated[
        float | None,
        typer.Option("--reflectors-lr", "--lr-reflectors", help="Learning rate of the reflectors."),
    ] = None,
    singular_values_lr: Annotated[
        float | None,
        typer.Option(
            "--singular-values-lr", "--lr-sigma", help="Learning rate of the raw singular values."
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of the learning rates: constant, linear or cosine decay.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Never on reflectors or singular values.")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient; 0 for no limit.")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Validations, and checkpoints, during a run.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...", show_default="cpu")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64.", show_default="float32")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the runs.", show_default="runs/TASK-TIME"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the runs in --output where they stopped.")
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with mnist, ptb, ucr.",
            show_default="$SPECTRAL_TRITON_DATA, else the user's cache",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch MNIST where it is missing.")
    ] = False,
    mirror: Annotated[
        str | None, typer.Option(help="Address of the folder --download fetches from.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the final table.")] = False,
) -> None:
    """Train one or several models on TASK, and draw what happened.

    What is not given depends on the task and the model: spectral-triton train TASK --help shows
    it. Under torchrun the processes share each batch: torchrun --nproc_per_node=2 -m
    spectral_triton train TASK.
    """
    require_packages()
    from spectral_triton.experiments.errors import ExperimentError, UsageError, failed_file

    options = _given(
        length=length,
        rows=rows,
        permuted=permuted,
        window=window,
        normalize=normalize,
        mask=mask,
        fold=fold,
        dataset=dataset,
    )
    overrides = _given(
        hidden_size=hidden_size,
        num_layers=num_layers,
        bidirectional=bidirectional,
        rebase=rebase,
        margin=margin,
        nonlinearity=nonlinearity,
        init=init,
        dropout=dropout,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        reflectors_lr=reflectors_lr,
        singular_values_lr=singular_values_lr,
        schedule=schedule,
        weight_decay=weight_decay,
        clip=clip,
        evaluations=evaluations,
    )
    hardware = _given(device=device, dtype=dtype, threads=threads)
    try:
        if num_reflectors is not None:
            overrides["num_reflectors"] = reflector_counts(num_reflectors)
        models = listed(model) if model else None
        seeds = whole_numbers(seed) if seed else None
        if resume and output is None:
            raise UsageError("--resume needs the --output of the runs to continue")
        kept = _kept(output, task) if resume and output is not None else {}
        configs = _configs(task, models, seeds, options, overrides, hardware, kept)
        if output is None:
            output = _default_output(task, dataset)
        if mirror is not None and not download:
            raise UsageError("--mirror is of no use without --download")
        _run(configs, output, data_dir, download, mirror, resume=resume, quiet=quiet)
    except ExperimentError as error:
        _fail(error, output)
    except OSError as error:
        _fail(failed_file(error), output)


def _run(
    configs: list[RunConfig],
    output: Path,
    data_dir: Path | None,
    download: bool,
    mirror: str | None,
    *,
    resume: bool,
    quiet: bool,
) -> None:
    from rich.console import Console

    from spectral_triton.experiments.tasks.storage import DataFolder
    from spectral_triton.experiments.training.comparison import Comparison
    from spectral_triton.experiments.training.denormals import flushed_denormals
    from spectral_triton.experiments.training.processes import joined
    from spectral_triton.experiments.training.progress import ProgressReport, summary_table

    # Before anything computes: threads that are there already would not take part.
    with flushed_denormals(), joined(configs[0].device) as processes:
        console = Console(quiet=not processes.is_main)
        output = processes.agreed(output)
        data = DataFolder(data_dir, download=download, mirror=mirror)
        comparison = Comparison(configs, output, data, resume=resume)
        with ProgressReport(console, quiet=quiet or not processes.is_main) as report:
            if resume and not output.exists():
                report.note(f"nothing to continue in {output}: starting anew")
            report.note(f"{configs[0].title} → {output}")
            metric, summaries = comparison.run(report)
    console.print(summary_table(configs[0].title, metric, summaries, width=console.width))
    console.print(f"Pictures, metrics and checkpoints: {output}", soft_wrap=True, highlight=False)


def _configs(
    task: str,
    models: list[str] | None,
    seeds: list[int] | None,
    options: dict[str, Any],
    overrides: dict[str, Any],
    hardware: dict[str, Any],
    kept: dict[tuple[str, int], dict[str, Any]],
) -> list[RunConfig]:
    """What to run; ``kept`` are configurations in the folder, and supply what was not given."""
    from spectral_triton.experiments.errors import UsageError, option
    from spectral_triton.experiments.tasks.networks import SETTINGS_OF_SOME
    from spectral_triton.experiments.training.config import continued_config, make_config

    models = models or list(dict.fromkeys(model for model, _ in kept)) or ["spectral"]
    there = sorted({seed for model, seed in kept if model in models})
    runs = [(model, seed) for seed in seeds or there or [0] for model in models]
    for name, users in SETTINGS_OF_SOME.items():
        if name in overrides and not set(models) & set(users):
            raise UsageError(
                f"{option(name)} has no meaning for {', '.join(models)}, "
                f"only for {', '.join(users)}"
            )
    return [
        continued_config(kept[model, seed], options, overrides, hardware)
        if (model, seed) in kept
        else make_config(task, model, options=options, overrides=overrides, seed=seed, **hardware)
        for model, seed in runs
    ]


def _kept(output: Path, task: str) -> dict[tuple[str, int], dict[str, Any]]:
    from spectral_triton.experiments.errors import UsageError
    from spectral_triton.experiments.training.run_folder import kept_configs

    configs = kept_configs(output)
    for folder, config in configs.items():
        if config.get("task") != task:
            raise UsageError(
                f"cannot resume {folder}: task is {config.get('task')!r} there and {task!r} here"
            )
    return {(config["model"], config["seed"]): config for config in configs.values()}


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _default_output(task: str, dataset: str | None) -> Path:
    name = task if dataset is None else f"{task}-{dataset}"
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _fail(error: Exception, output: Path | None) -> None:
    from spectral_triton.experiments.errors import ExperimentError, Interrupted

    assert isinstance(error, ExperimentError)
    typer.echo(f"Error: {error}" if error.exit_code != 130 else f"\n{error}", err=True)
    if isinstance(error, Interrupted):
        arguments = [a for a in sys.argv[1:] if a != "--resume"]
        if not any(a in ("-o", "--output") or a.startswith("--output=") for a in arguments):
            arguments += ["--output", str(output)]
        command = shlex.join(["spectral-triton", *arguments, "--resume"])
        typer.echo(f"Continue with: {command}", err=True)
    raise typer.Exit(error.exit_code)
