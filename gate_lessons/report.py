"""Notebooks run with parameters: one lesson, or a sweep of runs and the page that compares them.

A sweep's folder holds `runs/NAME/` (the executed notebook, HTML, metrics.json, history.csv, or error.txt) for each
combination of parameters, `compare.ipynb`, and `index.html`, which is what a person opens.
"""

import ast
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gate_lessons.evaluation import Answers, compare, summary
from gate_lessons.metrics import Interval
from gate_lessons.parameters import ParameterError, parse

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
RUN, COMPARE = NOTEBOOKS / "report" / "run.ipynb", NOTEBOOKS / "report" / "compare.ipynb"
OUT = "out"  # the parameter of `run.ipynb` that the sweep itself sets


class RunError(RuntimeError):
    """A cell of a notebook failed."""


# ---------------------------------------------------------------------------------------------- parameters


def lesson_path(number: str) -> Path:
    """The notebook of a lesson, by its number (`04` or `4`)."""
    found = sorted(NOTEBOOKS.glob(f"{number.zfill(2)}_*.ipynb"))
    if not found:
        lessons = ", ".join(path.stem for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")))
        raise ParameterError(f"no lesson {number!r}; the lessons are {lessons}")
    return found[0]


def defaults(notebook: Path) -> dict[str, Any]:
    """Name → default of the notebook's cell tagged `parameters`."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f"{notebook.name} must have one cell tagged `parameters`, it has {len(tagged)}")
    statements = ast.parse("".join(tagged[0]["source"])).body
    return {s.targets[0].id: ast.literal_eval(s.value) for s in statements if isinstance(s, ast.Assign)}


def parse_parameters(notebook: Path, words: Sequence[str]) -> dict[str, list[Any]]:
    """`--temperature 0.05 0.1 --seed 0` → {"temperature": [0.05, 0.1], "seed": [0]}, checked against the notebook.

    Papermill itself only warns of a name that the notebook does not have; here nothing runs.

    Raises:
        ParameterError: see `parameters.parse`.
    """
    known = {name: value for name, value in defaults(notebook).items() if name != OUT}
    return parse(notebook.name, known, words)


# ---------------------------------------------------------------------------------------------- one notebook


def run_notebook(notebook: Path, parameters: Mapping[str, Any], folder: Path, hide_code: bool = False) -> Path:
    """Execute a notebook with papermill and write it and its HTML into `folder`.

    Raises:
        RunError: a cell failed; the notebook up to it is kept beside, as `NAME.failed.ipynb`.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    folder.mkdir(parents=True, exist_ok=True)
    working = folder / f"{notebook.stem}.failed.ipynb"
    try:
        papermill.execute_notebook(
            notebook,
            working,
            dict(parameters),
            progress_bar=False,
            kernel_name="python3",
            cwd=str(Path.cwd()),
            # What fails in a cell is raised here; the kernel's own remarks on transport and shutdown say nothing more.
            extra_arguments=["--IPKernelApp.log_level=50"],
        )
    except papermill.PapermillExecutionError as error:
        raise RunError(f"cell {error.exec_count}: {error.ename}: {error.evalue}") from None
    except DeadKernelError:
        raise RunError(
            "the kernel died; out of memory is the usual cause: run fewer side by side with --jobs"
        ) from None
    done = folder / notebook.name
    working.replace(done)
    to_html(done, done.with_suffix(".html"), hide_code)
    return done


def to_html(notebook: Path, page: Path, hide_code: bool = False) -> None:
    """A self-contained page: pictures inside, formulas as MathML, nothing fetched when it is opened."""
    import nbformat
    from nbconvert import HTMLExporter

    book = nbformat.read(notebook, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = _mathml(cell.source)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", exclude_input=hide_code)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = hide_code
    book.metadata["title"] = notebook.stem.replace("_", " ")
    book.metadata.pop("widgets", None)  # a page with widgets would load their script from the web
    page.write_text(exporter.from_notebook_node(book)[0], encoding="utf-8")


def _mathml(markdown: str) -> str:
    """Replace $$…$$ and $…$ by MathML, which browsers draw without a script."""
    import re

    from latex2mathml.converter import convert

    markdown = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1].strip(), display="block"), markdown, flags=re.DOTALL)
    return re.sub(r"(?<![\\$])\$([^$\n]+?)\$", lambda m: convert(m[1]), markdown)


# ---------------------------------------------------------------------------------------------- a sweep


def sweep(grid: Mapping[str, Sequence[Any]], out: Path, jobs: int) -> int:
    """Execute `run.ipynb` for every combination, in parallel processes, and compare the runs in `out/index.html`.

    Runs that are already there with the same parameters are kept. A run that fails is shown as failed.

    Returns:
        How many runs failed.
    """
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    names = [run_name(combination) for combination in combinations]
    todo = [(n, c) for n, c in zip(names, combinations, strict=True) if not _is_done(out / "runs" / n, c)]
    print(f"runs: {len(combinations)}, already done: {len(combinations) - len(todo)}", file=sys.stderr)
    work = (delayed(_run_one)(combination, out / "runs" / name) for name, combination in todo)
    results = Parallel(n_jobs=min(jobs, max(1, len(todo))), return_as="generator_unordered")(work)
    for _ in tqdm(results, total=len(todo), desc="runs", unit="run"):
        pass
    failed = [name for name in names if (out / "runs" / name / "error.txt").is_file()]
    (out / "sweep.json").write_text(json.dumps({"grid": grid, "runs": names}, indent=2) + "\n", encoding="utf-8")
    compared = run_notebook(COMPARE, {"sweep": str(out)}, out, hide_code=True)
    compared.with_suffix(".html").replace(out / "index.html")
    return len(failed)


def run_name(combination: Mapping[str, Any]) -> str:
    """The folder of a run: its parameters, readable, without characters that a file system dislikes."""
    text = "_".join(f"{name}-{value}" for name, value in combination.items()) or "defaults"
    return "".join(c if c.isalnum() or c in "-_." else "~" for c in text)


def _is_done(folder: Path, combination: Mapping[str, Any]) -> bool:
    """Whether the run is there, of the same parameters, the notebook's own defaults included."""
    done = folder / "metrics.json"
    expected = {name: value for name, value in (defaults(RUN) | dict(combination)).items() if name != OUT}
    return done.is_file() and json.loads(done.read_text(encoding="utf-8"))["parameters"] == expected


def _run_one(combination: Mapping[str, Any], folder: Path) -> None:
    """One run in a process of its own; its kernel uses one thread, so that runs side by side do not fight."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    for old in ("error.txt", "metrics.json"):
        (folder / old).unlink(missing_ok=True)
    try:
        run_notebook(RUN, {**combination, OUT: str(folder)}, folder)
    except RunError as error:
        # metrics.json is what marks a run as done; it must not outlive a failure after it was written.
        (folder / "metrics.json").unlink(missing_ok=True)
        (folder / "error.txt").write_text(f"{error}\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------- what a run leaves


def save_run(
    folder: str | Path,
    parameters: Mapping[str, Any],
    history: pd.DataFrame,
    trained: Mapping[str, Answers],
    baseline: Mapping[str, Answers],
) -> None:
    """Write history.csv and, last, metrics.json: parameters, metrics and every answer on each split.

    Args:
        folder: where; it exists afterwards.
        parameters: of the run.
        history: what `trainer.train` returned.
        trained, baseline: split → answers of the trained encoder and of the lexical baseline.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    history.to_csv(folder / "history.csv", index=False)
    systems = {"trained": trained, "baseline": baseline}
    content = {"parameters": dict(parameters)}
    content |= {name: {split: a.metrics() for split, a in answers.items()} for name, answers in systems.items()}
    content["answers"] = {
        name: {split: {k: v.tolist() for k, v in vars(a).items()} for split, a in answers.items()}
        for name, answers in systems.items()
    }
    working = folder / "metrics.json.part"
    working.write_text(json.dumps(content) + "\n", encoding="utf-8")
    working.replace(folder / "metrics.json")


def load_sweep(folder: str | Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The finished runs of a sweep and the errors of those that failed.

    Returns:
        A table, one row a run: its parameters, `name`, the numbers of its `history`, and in `trained` and `baseline`
        the answers by split; and run name → error.
    """
    folder = Path(folder)
    rows, failed = [], {}
    for name in json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]:
        run = folder / "runs" / name
        if (run / "error.txt").is_file():
            failed[name] = (run / "error.txt").read_text(encoding="utf-8").strip()
            continue
        content = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        answers = {system: _answers(content["answers"][system]) for system in ("trained", "baseline")}
        history = pd.read_csv(run / "history.csv").select_dtypes("number")
        rows.append(content["parameters"] | {"name": name, "history": history} | answers)
    return pd.DataFrame(rows), failed


def _answers(by_split: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Answers]:
    import numpy as np

    return {split: Answers(**{k: np.array(v) for k, v in a.items()}) for split, a in by_split.items()}


# ---------------------------------------------------------------------------------------------- what a sweep says


def settings_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs that differ only in their seed, as one row.

    Returns:
        The parameters but `seed`, `seeds` (how many), `trained` and `baseline` (lists of answers by split).
    """
    parameters = _parameters(runs)
    grouped = runs.groupby(parameters, sort=False, dropna=False)
    return grouped.agg(seeds=("seed", "count"), trained=("trained", list), baseline=("baseline", list)).reset_index()


def swept(runs: pd.DataFrame) -> list[str]:
    """The parameters, but `seed`, of which the runs have more than one value."""
    return [name for name in _parameters(runs) if runs[name].nunique() > 1]


def setting_name(setting: Mapping[str, Any], names: Sequence[str]) -> str:
    """A setting in words: its values of the swept parameters."""
    return ", ".join(f"{name} {setting[name]}" for name in names) or "the one setting"


def settings_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Every setting on dev: metrics with intervals over questions, and the spread of accuracy over seeds."""
    rows = []
    for setting in settings_of(runs).to_dict("records"):
        answers = [splits["dev"] for splits in setting["trained"]]
        row = {"setting": setting_name(setting, swept(runs)), "seeds": setting["seeds"]}
        row |= {metric: str(interval) for metric, interval in summary(answers).items()}
        spread = pd.Series([a.metrics()["triplet_accuracy"] for a in answers]).std(ddof=0)
        rows.append(row | {"spread over seeds": f"{spread:.3f}"})
    baseline = summary([runs["baseline"].iloc[0]["dev"]])
    rows.append({"setting": "lexical baseline", "seeds": 0} | {m: str(i) for m, i in baseline.items()})
    return pd.DataFrame(rows).fillna("").set_index("setting")


def findings(runs: pd.DataFrame) -> list[str]:
    """Sentences computed from the runs of one data set: the setting chosen on dev, its test, each swept parameter."""
    names, settings = swept(runs), settings_of(runs)
    accuracy = [summary([s["dev"] for s in trained])["triplet_accuracy"] for trained in settings["trained"]]
    best = settings.iloc[max(range(len(settings)), key=lambda row: accuracy[row].estimate)]
    sentences = [
        f"On dev the highest triplet accuracy of {len(settings)} settings is "
        f"{max(a.estimate for a in accuracy):.3f}: {setting_name(best, names)}."
    ]
    test = [splits["test"] for splits in best["trained"]]
    control = [best["baseline"][0]["test"]]
    for metric, difference in compare(test, control).items():
        sentences.append(
            f"On test, asked once for that setting, {words(metric)} is {summary(test)[metric]}; the lexical baseline "
            f"has {summary(control)[metric].estimate:.3f}. Difference {difference}: "
            f"{_verdict(difference, 'the baseline')}."
        )
    for name in names:
        first, *others = runs[name].unique()
        for value in others:
            pair = [[splits["dev"] for splits in runs.loc[runs[name] == v, "trained"]] for v in (value, first)]
            for metric, difference in compare(*pair).items():
                sentences.append(
                    f"{words(name)} {value} against {first}, {words(metric)} on dev: "
                    f"{difference}: {_verdict(difference, f'{name} {first}')}."
                )
    return sentences


def _verdict(difference: Interval, control: str) -> str:
    if not difference.excludes_zero:
        return f"no difference from {control} that this many questions can show"
    return f"{'above' if difference.low > 0 else 'below'} {control}"


def words(name: str) -> str:
    """A column's name as a person writes it."""
    return name.replace("_", " ").replace("sts", "STS").replace("spearman", "Spearman")


def _parameters(runs: pd.DataFrame) -> list[str]:
    return [name for name in runs.columns if name not in ("name", "seed", "history", "trained", "baseline")]
