"""Lessons have the anatomy that a learner relies on, and run with other parameters. (nbval compares their outputs.)"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gate_lessons import report
from gate_lessons.exercises import EXERCISES

LESSONS = sorted(report.NOTEBOOKS.glob("[0-9]*.ipynb"))
NAMES = [path.stem for path in LESSONS]
MACHINE_PATH = re.compile(r"(/root/|/home/|/tmp/|/work/|/Users/|[A-Z]:\\\\)")


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def code(path: Path) -> list[dict]:
    return [cell for cell in read(path) if cell["cell_type"] == "code"]


def prose(path: Path) -> str:
    return "\n\n".join(source(cell) for cell in read(path) if cell["cell_type"] == "markdown")


@pytest.fixture(params=LESSONS, ids=NAMES)
def lesson(request) -> Path:
    return request.param


def test_the_seven_lessons_are_there():
    assert NAMES == [
        "00_start_here",
        "01_arabic_text",
        "02_contrastive_math",
        "03_hard_negative_mining",
        "04_curriculum_training",
        "05_visualization",
        "06_gate_connection",
    ]


def test_a_lesson_opens_with_its_question_aims_needs_and_times(lesson):
    opening = source(read(lesson)[0])
    assert opening.startswith(f"# {lesson.stem[:2]} ")
    for part in ("**The question:**", "**You will be able to**", "**You need**", "**Time:**"):
        assert part in opening
    assert re.search(r"reading \d+ min.*exercises \d+ min.*computing", opening, re.DOTALL)


def test_parameters_are_literals_before_any_other_code(lesson):
    first = code(lesson)[0]
    assert "parameters" in tags(first)
    for statement in ast.parse(source(first)).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
    assert "seed" in report.defaults(lesson)


def test_a_lesson_is_as_long_as_a_sitting_and_its_cells_as_a_screen(lesson):
    assert 25 <= len(read(lesson)) <= 60
    assert [source(c) for c in code(lesson) if len(source(c).splitlines()) > 20] == []


def test_a_lesson_asks_for_predictions(lesson):
    assert prose(lesson).count("**Predict:**") >= 2


def test_a_lesson_has_two_exercises_with_stub_check_hint_and_solution(lesson):
    text = prose(lesson)
    checked = [name for cell in code(lesson) for name in re.findall(r'check\("(\w+)"', source(cell))]
    assert len(checked) >= 2
    assert set(checked) <= EXERCISES.keys()
    assert text.count("### Exercise: ") >= 2
    assert text.count("<details>") >= 2
    assert sum(source(cell).count("raise NotImplementedError") for cell in code(lesson)) >= len(set(checked))
    for name in checked:
        assert f'solution("{name}")' in text


def test_a_lesson_ends_with_its_claims_and_where_to_go(lesson):
    assert any("claims(" in source(cell) for cell in code(lesson)[-3:])
    last = "\n".join(source(cell) for cell in read(lesson)[-3:])
    assert re.search(r"[Ss]ources", last)


def test_stored_outputs_are_complete_and_clean(lesson):
    for cell in code(lesson):
        assert cell["execution_count"], f"not executed: {source(cell)[:60]}"
        for output in cell["outputs"]:
            assert output["output_type"] != "error", source(cell)[:60]
            assert output.get("name") != "stderr", output.get("text")
            assert not MACHINE_PATH.search(json.dumps({k: v for k, v in output.items() if k != "metadata"}))


def test_a_cell_that_is_not_compared_says_why(lesson):
    for cell in code(lesson):
        if "nbval-ignore-output" in tags(cell):
            assert any(tag.startswith("why:") for tag in tags(cell)), source(cell)[:60]


def test_no_warning_is_silenced_and_no_emoji_shouts(lesson):
    everything = "\n".join(source(cell) for cell in read(lesson))
    assert "filterwarnings" not in everything
    assert not re.search("[\U0001f300-\U0001faff\u2600-\u27bf]", everything)


def test_a_lesson_is_small_enough_to_clone(lesson):
    assert lesson.stat().st_size < 1_500_000


@pytest.mark.parametrize(
    ("number", "words"),
    [("02", ["--temperature", "0.2"]), ("03", ["--strategy", "semi_hard"])],
)
def test_a_lesson_runs_with_other_parameters(number, words, tmp_path):
    command = [sys.executable, "-m", "gate_lessons", "lesson", number, *words, "--out", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    name = report.lesson_path(number).stem
    executed = json.loads((tmp_path / f"{name}.ipynb").read_text("utf-8"))["cells"]
    injected = next(source(cell) for cell in executed if "injected-parameters" in tags(cell))
    assert words[0].removeprefix("--") in injected
    assert words[1] in injected
    page = (tmp_path / f"{name}.html").read_text("utf-8")
    assert "<math" in page
    assert not re.findall(r'<script[^>]+src="https?:', page)


def test_the_list_of_lessons_names_them_all():
    ran = subprocess.run([sys.executable, "-m", "gate_lessons", "lessons"], capture_output=True, text=True, check=True)
    for name in NAMES:
        assert name in ran.stdout


def test_the_readme_and_the_guide_give_each_lessons_question_and_minutes(lesson):
    opening = source(read(lesson)[0])
    question = " ".join(re.search(r"\*\*The question:\*\*(.*?)\n\n", opening, re.DOTALL)[1].split())
    minutes = re.search(r"reading (\d+) min.*?exercises (\d+) min", opening, re.DOTALL).groups()
    root = report.NOTEBOOKS.parent
    row = f"| [{lesson.stem}](notebooks/{lesson.stem}.ipynb) | {question} | {sum(map(int, minutes))} |"
    assert row in (root / "README.md").read_text("utf-8")
    guide = (root / "docs" / "instructors.md").read_text("utf-8")
    reading, exercises = minutes
    pattern = rf"^\| {lesson.stem[:2]} \| .+ \| {reading} \| {exercises} \| {sum(map(int, minutes))} \|$"
    assert re.search(pattern, guide, re.MULTILINE)
    assert re.search(rf"^### {lesson.stem[:2]} .+\(reading {reading}, exercises {exercises}\)$", guide, re.MULTILINE)


def test_the_guide_names_the_mistakes_that_the_checks_know():
    guide = (report.NOTEBOOKS.parent / "docs" / "instructors.md").read_text("utf-8")
    for exercise in EXERCISES.values():
        for cause in exercise.mistakes:
            assert cause in guide
