"""Sweeps and single notebooks, run for real: through the command line, papermill and separate kernels."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gate_lessons import report
from gate_lessons.evaluation import Answers

GOOD = ["--temperature", "0.1", "--strategy", "random", "hard", "--epochs", "1"]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gate_lessons", *words], capture_output=True, text=True)


# ---------------------------------------------------------------------------------------------- parameters


def test_values_take_the_type_of_the_notebooks_default():
    words = ["--temperature", "1", "0.05", "--seed", "0", "--strategy", "hard", "--dataset", "7.jsonl"]
    expected = {"temperature": [1.0, 0.05], "seed": [0], "strategy": ["hard"], "dataset": ["7.jsonl"]}
    found = report.parse_parameters(report.RUN, words)
    assert found == expected
    assert type(found["temperature"][0]) is float


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--temprature", "0.1"], "run.ipynb has no parameter 'temprature'; did you mean --temperature?"),
        (["--nonsense", "1"], "run.ipynb has no parameter 'nonsense'; it has temperature, strategy"),
        (["--out", "x"], "no parameter 'out'"),
        (["--temperature", "warm"], "--temperature takes float, such as 0.05, not 'warm'"),
        (["--seed", "1.5"], "--seed takes int, such as 0, not '1.5'"),
        (["--seed"], "--seed has no value"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice"),
        (["hard"], "'hard' belongs to no parameter"),
    ],
)
def test_a_wrong_parameter_is_refused_with_a_sentence(words, sentence):
    with pytest.raises(report.ParameterError, match=re.escape(sentence)):
        report.parse_parameters(report.RUN, words)


def test_the_command_line_refuses_before_anything_runs(tmp_path):
    ran = command("report", "--temprature", "0.1", "--out", str(tmp_path / "sweep"))
    assert ran.returncode == 1
    assert "did you mean --temperature?" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_notebook_needs_one_cell_of_parameters(tmp_path):
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": []}))
    with pytest.raises(report.ParameterError, match="one cell tagged `parameters`, it has 0"):
        report.defaults(notebook)


def test_an_unknown_lesson_lists_those_there_are():
    with pytest.raises(report.ParameterError, match="no lesson '9'; the lessons are 00_start_here"):
        report.lesson_path("9")


def test_run_names_are_readable_and_fit_a_file_system():
    assert (
        report.run_name({"temperature": 0.1, "dataset": "../a b/س.jsonl"}) == "temperature-0.1_dataset-..~a~b~س.jsonl"
    )
    assert report.run_name({}) == "defaults"


# ---------------------------------------------------------------------------------------------- a sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two real runs, compared."""
    folder = tmp_path_factory.mktemp("sweep")
    ran = command("report", *GOOD, "--out", str(folder))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("index.html")
    return folder


def test_every_run_leaves_its_notebook_page_metrics_and_history(sweep):
    runs = sorted((sweep / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert {p.name for p in run.iterdir()} == {"run.ipynb", "run.html", "metrics.json", "history.csv"}
        metrics = json.loads((run / "metrics.json").read_text())
        answers = metrics["answers"]["trained"]["test"]
        right = np.mean(np.array(answers["positive"]) > np.array(answers["negative"]))
        assert metrics["trained"]["test"]["triplet_accuracy"] == pytest.approx(right)
        assert len(pd.read_csv(run / "history.csv")) == metrics["parameters"]["epochs"] == 1


def test_the_index_has_findings_tables_pictures_and_links_and_fetches_nothing(sweep):
    page = (sweep / "index.html").read_text("utf-8")
    assert "Runs finished: 2, failed: 0" in page
    assert "On test, asked once for that setting" in page
    assert "lexical baseline" in page
    assert page.count("data:image/png;base64") >= 2
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', page)
    links = re.findall(r'href="(runs/[^"]+)"', page)
    assert len(links) == 2
    assert all((sweep / link).is_file() for link in links)


def test_findings_are_computed_from_the_numbers(sweep):
    runs, failed = report.load_sweep(sweep)
    assert failed == {}
    assert report.swept(runs) == ["strategy"]
    best = max(runs.to_dict("records"), key=lambda row: row["trained"]["dev"].correct.mean())
    sentences = report.findings(runs)
    accuracy = best["trained"]["dev"].correct.mean()
    assert f"is {accuracy:.3f}: strategy" in sentences[0]
    assert f"triplet accuracy is {best['trained']['test'].correct.mean():.3f}" in sentences[1]


def test_the_same_command_again_runs_only_what_is_missing(sweep):
    kept, removed = sorted((sweep / "runs").iterdir())
    before = (kept / "metrics.json").stat().st_mtime_ns
    (removed / "metrics.json").unlink()
    ran = command("report", *GOOD, "--out", str(sweep))
    assert ran.returncode == 0, ran.stderr
    assert "runs: 2, already done: 1" in ran.stderr
    assert (kept / "metrics.json").stat().st_mtime_ns == before
    assert (removed / "metrics.json").is_file()


def test_a_failing_run_is_shown_and_the_others_finish(tmp_path):
    words = ["report", "--strategy", "nearest", "random", "--epochs", "1", "--out", str(tmp_path)]
    ran = command(*words)
    assert ran.returncode == 1
    assert "failed runs: 1" in ran.stderr
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "Runs finished: 1, failed: 1" in page
    assert "unknown strategy" in page
    again = command(*words)
    assert "runs: 2, already done: 1" in again.stderr


# ---------------------------------------------------------------------------------------------- sentences and pages


def _answers(correct: list[int]) -> Answers:
    right = np.array(correct, float)
    return Answers(right, np.full(len(right), 0.5), np.empty(0), np.empty(0))


def _run(strategy: str, seed: int, dev: list[int], test: list[int]) -> dict:
    trained = {"dev": _answers(dev), "test": _answers(test)}
    baseline = {"dev": _answers([0] * len(dev)), "test": _answers([0] * len(test))}
    names = {"strategy": strategy, "dataset": "corpus", "seed": seed, "name": f"{strategy}{seed}"}
    return names | {"trained": trained, "baseline": baseline}


def test_the_setting_is_chosen_on_dev_even_where_another_is_better_on_test():
    good_on_dev = [_run("hard", seed, [1] * 20, [0, 1] * 10) for seed in (0, 1)]
    good_on_test = [_run("random", seed, [0, 1] * 10, [1] * 20) for seed in (0, 1)]
    sentences = report.findings(pd.DataFrame(good_on_test + good_on_dev))
    assert sentences[0].endswith("is 1.000: strategy hard.")
    assert "triplet accuracy is 0.500" in sentences[1]
    assert "above the baseline" in sentences[1]
    assert "strategy hard against random" in sentences[2]
    assert "above strategy random" in sentences[2]


def test_an_interval_around_zero_is_no_difference():
    runs = [_run("random", 0, [1, 0] * 10, [1, 0] * 10), _run("hard", 0, [0, 1] * 10, [0, 1] * 10)]
    assert "no difference from strategy random" in report.findings(pd.DataFrame(runs))[2]


def test_seeds_are_averaged_into_one_setting():
    runs = pd.DataFrame([_run("hard", seed, [seed, 1], [1, 1]) for seed in (0, 1)])
    settings = report.settings_of(runs)
    assert settings["seeds"].tolist() == [2]
    assert report.settings_table(runs).loc["the one setting", "triplet_accuracy"].startswith("0.750")


def test_formulas_become_mathml_and_prices_stay(tmp_path):
    import nbformat

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(r"The ratio $\frac{a}{b}$ costs \$5 or \$6.")])
    nbformat.write(book, tmp_path / "n.ipynb")
    report.to_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    page = (tmp_path / "n.html").read_text("utf-8")
    assert "<mfrac>" in page
    assert "frac{a}" not in page
    assert page.count("<math") == 1


def test_a_lesson_with_a_failing_cell_says_which(tmp_path):
    import nbformat

    cells = [nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("1 / 0")]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(book, tmp_path / "n.ipynb")
    with pytest.raises(report.RunError, match="ZeroDivisionError: division by zero"):
        report.run_notebook(tmp_path / "n.ipynb", {}, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"n.failed.ipynb"}
