"""The files that decide what is installed agree with each other and with what is installed."""

import importlib.metadata
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [Requirement(r) for r in PROJECT["dependencies"]]
EXTRAS = [Requirement(r) for rs in PROJECT["optional-dependencies"].values() for r in rs]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
}


def test_constraints_are_exact_pins_only():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert [
        line for line in lines if line and not line.startswith("#") and not re.fullmatch(r"[\w.-]+==\S+", line)
    ] == []


@pytest.mark.parametrize("requirement", REQUIRED + EXTRAS, ids=str)
def test_every_dependency_is_pinned_inside_its_range(requirement):
    if requirement.name == PROJECT["name"]:
        return
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", REQUIRED, ids=str)
def test_what_is_installed_is_what_is_pinned(requirement):
    installed = importlib.metadata.version(requirement.name).split("+")[0]
    assert installed == PINS[canonicalize_name(requirement.name)]


def test_the_packages_that_the_course_promises_are_required():
    promised = {"jupyterlab", "torch", "matplotlib", "seaborn", "scikit-learn", "papermill"}
    assert promised <= {requirement.name for requirement in REQUIRED}
    assert "nbval" in {requirement.name for requirement in EXTRAS}
    assert PINS["torch"] == "2.13.0"


def test_conda_users_get_the_same_python_and_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *conda, by_pip = environment["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert by_pip["pip"] == ["--constraint constraints.txt", "--editable .[test]"]


def test_continuous_integration_calls_make_test():
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8")


def test_make_without_a_target_lists_every_target():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ["setup", "lab", "test", "report", "course", "evidence", "bench", "wheelhouse", "lint", "clean"]:
        assert re.search(rf"^  make {target} +\w", listed, re.MULTILINE), target


def test_every_target_can_be_made_from_a_clean_checkout(tmp_path):
    """A dry run: no circular or missing prerequisite, and what tests need is installed after the core."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), encoding="utf-8")
    for target in ("lab", "test", "report", "course", "evidence", "bench", "wheelhouse", "lint"):
        ran = subprocess.run(["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr == ""
        assert ran.stdout.index("-m venv") < ran.stdout.index("--editable '.'")
        assert ("--editable '.[test]'" in ran.stdout) == (target in ("test", "evidence", "bench", "lint"))


def test_an_old_python_is_refused_in_one_sentence(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # what the version check exits with
    old.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text("utf-8"), encoding="utf-8")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    ran = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "GATE Lessons needs Python 3.11 or newer" in ran.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_failing_installation_says_what_to_do_and_leaves_no_stamp(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text("utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "0"\ndependencies = ["no-such-package"]\n'
    )
    (tmp_path / "constraints.txt").touch()
    (tmp_path / "wheels").mkdir()
    command = ["make", "setup", "WHEELHOUSE=wheels", f"PYTHON={sys.executable}"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "The installation failed" in ran.stderr
    assert not (tmp_path / ".venv" / ".ready").exists()


def test_importing_the_package_costs_little_more_than_torch():
    """At most 1.2 times `import torch`, all modules of the ground floor and the encoder included."""
    modules = "from gate_lessons import text, losses, objectives, search, miner, curriculum, metrics, encoder"
    ratio = min(_seconds(f"import torch\nimport gate_lessons\n{modules}") / _seconds("import torch") for _ in range(3))
    assert ratio <= 1.2


def _seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start
