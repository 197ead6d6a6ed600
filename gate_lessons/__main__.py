"""The command line: `python -m gate_lessons --help`."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from gate_lessons import report as reports
from gate_lessons.audit import audit_files
from gate_lessons.data import CORPUS, SPLITS, Group, load_groups
from gate_lessons.encoder import Encoder, make_encoder
from gate_lessons.evaluation import evaluate, load_task
from gate_lessons.files import DataError
from gate_lessons.mine_files import Mining, mine_files
from gate_lessons.parameters import ParameterError, parse, single
from gate_lessons.recipe import Recipe

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
        chosen = single(reports.parse_parameters(notebook, context.args), "a lesson")
        done = reports.run_notebook(notebook, chosen, out)
    except (ParameterError, reports.RunError) as error:
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
    except (ParameterError, reports.RunError) as error:
        _fail(error)
    print(out / "index.html")
    if failed:
        _fail(f"failed runs: {failed}; {out / 'index.html'} says why")


@app.command(context_settings=PASS_ON)
def train(
    context: typer.Context,
    out: Out,
    dataset: Annotated[str, typer.Option(help="corpus, a file, or hub:NAME.")] = "corpus",
    encoder: Annotated[str, typer.Option(help="ngram, a saved encoder's folder, or a model's name.")] = "ngram",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="Lightning Fabric's name, such as bf16-mixed.")] = "32-true",
    save_every: Annotated[
        int, typer.Option(help="Steps between checkpoints, beside those of each epoch.", min=1)
    ] = 500,
) -> None:
    """Train one encoder into OUT: encoder/, history.csv, recipe.json and checkpoints/.

    Further parameters are those of a recipe (--loss, --temperature, --strategy, --curriculum, --epochs, --batch-size,
    --chunk, --memory …), one value each.

    Example: python -m gate_lessons train --temperature 0.1 --curriculum competence --out runs/first

    The same command goes on where an interrupted one stopped. Started by torchrun it uses all of its processes.
    """
    try:
        chosen = single(parse("a recipe", Recipe.defaults(), context.args), "a recipe")
        _train_into(out, Recipe(**chosen), dataset, encoder, device=device, precision=precision, save_every=save_every)
    except (ValueError, FloatingPointError) as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint")


@app.command(context_settings=PASS_ON)
def mine(
    context: typer.Context,
    pairs: Annotated[Path, typer.Option(help="File with columns anchor and positive.")],
    out: Annotated[Path, typer.Option(help="Triplets, a .jsonl file; the report comes beside it.")],
    corpus: Annotated[
        Path | None, typer.Option(help="Sentences to mine from: lines of a .txt, or a table with a column text.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask cluster to search with.")] = None,
) -> None:
    """Mine hard negatives for the pairs of a file, and write triplets and a report of what was mined.

    Further parameters, one value each: --encoder (ngram, a saved encoder's folder, or a model's name), --strategy (one,
    or several with weights), --num-negatives, --search (auto, exact, flat, ivf, hnsw); the filter's --range-min,
    --range-max, --max-score, --min-score, --absolute-margin, --relative-margin; --sampling-strategy (top, random),
    --margin, --clusters, --fallback (random, hard, none), --seed, --device.

    Example: python -m gate_lessons mine --pairs pairs.jsonl --corpus sentences.txt --strategy hard:0.7+random:0.3 --out
    triplets.jsonl

    Without --corpus it mines among the pairs' own sentences. The same command goes on where an interrupted one stopped.
    """
    try:
        chosen = Mining(**single(parse("mining", Mining.defaults(), context.args), "mining"))
        written = mine_files(pairs, out, corpus, chosen, scheduler)
    except (ValueError, OSError) as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(f"interrupted; the same command goes on from what is done in {out.with_suffix('.work')}")
    print(*written, sep="\n")


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


def _train_into(out: Path, recipe: Recipe, dataset: str, encoder: str, **options: Any) -> None:
    """Train, asking dev after each epoch, and write what came out; of several processes the first one does."""
    from gate_lessons import trainer

    task = load_task(dataset)
    model = make_encoder(encoder, task.texts, recipe.seed)

    def on_dev(trained: Encoder) -> dict[str, float]:
        return {f"dev_{name}": value for name, value in evaluate(trained, task.dev).metrics().items()}

    folder = out / "checkpoints"
    history = trainer.train(model, task.train, recipe, evaluate=on_dev, checkpoints=folder, progress=True, **options)
    if int(os.environ.get("RANK", 0)):
        return
    model.save(out / "encoder")
    history.to_csv(out / "history.csv", index=False)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
    shown = ["epoch", "loss", "effective_rank", *(name for name in history if name.startswith("dev_"))]
    print(history[shown].round(3).to_string(index=False), out / "encoder", sep="\n")


def _fail(error: object) -> None:
    Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
