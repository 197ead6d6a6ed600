"""What `make evidence` measured still says what the README and the lessons rest on."""

import json

import pytest

from gate_lessons import report

EVIDENCE = report.NOTEBOOKS.parent / "benchmarks" / "evidence"


def read(name: str) -> dict:
    return json.loads((EVIDENCE / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("*.json")), ids=lambda path: path.stem)
def test_every_file_has_five_seeds_a_control_and_intervals_in_order(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["seeds"] == 5
    assert content["split"] == "test"
    assert next(iter(content["variants"])) == content["control"]
    for found in content["variants"].values():
        for kind in ("score", "minus_control", "minus_baseline"):
            assert all(low <= estimate <= high for estimate, low, high in found[kind].values())


def test_the_course_recipe_beats_spelling_on_the_hard_test_and_is_not_below_it_on_sts():
    against = read("strategies")["variants"]["hard"]["minus_baseline"]
    assert against["triplet_accuracy"][1] > 0
    assert against["sts_spearman"][0] >= 0


def test_real_triplets_are_answered_better_than_by_spelling():
    content = read("real_triplets")
    assert content["baseline"]["triplet_accuracy"][0] == pytest.approx(0.73, abs=0.01)
    assert content["variants"]["chosen on dev"]["minus_baseline"]["triplet_accuracy"][1] > 0
