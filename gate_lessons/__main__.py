"""The command line: `python -m gate_lessons --help`."""

import os
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from gate_lessons import report as reports
from gate_lessons.audit import audit_files
from gate_lessons.data import CORPUS, SPLITS, DataError, Group, load_groups

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run lessons and reports with other parameters; look at the corpus.",
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Out = Annotated[Path, typer.Option(help="Folder to write into.")]


@app.command("lessons")
def list_lessons() -> None:
    """List the lessons and the parameters that each takes."""
    table = Table("lesson", "parameters and defaults")
    for path in sorted(reports.NOTEBOOKS.glob("[0-9]*.ipynb")):
        table.add_row(path.stem, ", ".join(f"{k}={v!r}" for k, v in reports.defaults(path).items()))
    Console().print(table)


@app.command(context_settings=PASS_ON)
def lesson(context: typer.Context, number: str, out: Out = Path("reports/lessons")) -> None:
    """Execute lesson NUMBER with other parameters and write notebook and HTML.

    Example: python -m gate_lessons lesson 04 --temperature 0.1 --strategy hard --out reports/hard
    """
    try:
        notebook = reports.lesson_path(number)
        parameters = reports.parse_parameters(notebook, context.args)
        if many := [name for name, values in parameters.items() if len(values) > 1]:
            raise reports.ParameterError(f"--{many[0]} has {len(parameters[many[0]])} values; a lesson takes one")
        done = reports.run_notebook(notebook, {name: values[0] for name, values in parameters.items()}, out)
    except (reports.ParameterError, reports.RunError) as error:
        _fail(error)
    print(f"{done}\n{done.with_suffix('.html')}")


@app.command(context_settings=PASS_ON)
def report(
    context: typer.Context,
    out: Out,
    jobs: Annotated[int, typer.Option(help="Runs side by side.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Train once for every combination of parameters and compare the runs in OUT/index.html.

    Parameters are those of notebooks/report/run.ipynb, each with one or more values:
    --temperature, --strategy, --loss, --margin, --curriculum, --epochs, --seed, --dataset, --encoder, --device.

    Example: python -m gate_lessons report --temperature 0.05 0.1 --strategy random hard --seed 0 1 2 --out reports/try

    The same command again runs only what is missing.
    """
    try:
        grid = reports.parse_parameters(reports.RUN, context.args)
        out.mkdir(parents=True, exist_ok=True)
        failed = reports.sweep(grid, out, jobs)
    except (reports.ParameterError, reports.RunError) as error:
        _fail(error)
    print(out / "index.html")
    if failed:
        _fail(f"failed runs: {failed}; {out / 'index.html'} says why")


@app.command()
def corpus(
    check: Annotated[bool, typer.Option("--check", help="Measure every figure against its bound.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder with groups.jsonl, sts.jsonl and spellings.txt.")] = CORPUS,
) -> None:
    """Count the corpus by topic, or (--check) measure whether it is fit to teach, and fail where a bound is missed.

    Example: python -m gate_lessons corpus --check
    """
    try:
        groups = load_groups(folder / "groups.jsonl")
        missed = _check_corpus(groups, folder) if check else _count_corpus(groups)
    except DataError as error:
        _fail(error)
    if missed:
        _fail(f"{missed} figure{'s miss their bounds' if missed > 1 else ' misses its bound'}")


def _check_corpus(groups: list[Group], folder: Path) -> int:
    """Print each figure as it comes; how many miss their bound."""
    missed = 0
    for figure in audit_files(groups, folder):
        name, value, bound = figure.cells()
        print(f"{'ok  ' if figure.holds else 'MISS'} {value:>8} {bound:>16}  {name}", flush=True)
        if not figure.holds:
            missed += 1
            print("".join(f"{'':30}{offender}\n" for offender in figure.offenders[:10]), end="")
    return missed


def _count_corpus(groups: list[Group]) -> int:
    rows = pd.DataFrame([(g.topic, g.split, bool(g.dialects)) for g in groups], columns=["topic", "split", "dialects"])
    counts = pd.crosstab(rows["topic"], rows["split"], margins=True, margins_name="all")[[*SPLITS, "all"]]
    table = Table("topic", *counts.columns, "with dialects")
    spoken = rows.groupby("topic")["dialects"].sum()
    for topic, row in counts.iterrows():
        table.add_row(str(topic), *map(str, row), str(spoken.get(topic, spoken.sum())))
    Console().print(table)
    return 0


def _fail(error: object) -> None:
    Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
