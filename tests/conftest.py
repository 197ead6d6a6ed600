"""Fixtures that several test files use."""

from pathlib import Path

import pytest

from gate_lessons.data import Group, load_corpus

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real Arabic data beside the project; a test that needs it is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data: this test reads real Arabic data, which does not come with the project")
    return SHARED


@pytest.fixture(scope="session")
def groups() -> list[Group]:
    """The whole corpus."""
    return load_corpus()
