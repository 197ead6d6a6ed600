"""What `make evidence` measured still says what the README and the lessons rest on."""

import json

import pytest

from gate_lessons import report

EVIDENCE = report.NOTEBOOKS.parent / "benchmarks" / "evidence"


def read(name: str) -> dict:
    return json.loads((EVIDENCE / f"{name}.json").read_text(encoding="utf-8"))


CHOSEN = sorted(EVIDENCE.glob("*_dev.json"))
REPORTED = sorted(set(EVIDENCE.glob("*.json")) - set(CHOSEN))


@pytest.mark.parametrize("path", CHOSEN, ids=lambda path: path.stem)
def test_what_was_reported_on_test_is_what_was_best_on_dev(path):
    choice = json.loads(path.read_text(encoding="utf-8"))
    assert choice["split"] == "dev"
    trained = [found for found in choice["variants"].values() if found["settings"]]
    best = max(trained, key=lambda found: found["judged"])
    assert read(path.stem.removesuffix("_dev"))["variants"]["chosen on dev"]["settings"] == best["settings"]


@pytest.mark.parametrize("path", REPORTED, ids=lambda path: path.stem)
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


def test_training_on_the_corpus_can_keep_transfer_and_the_course_recipe_pays_with_it():
    content = read("transfer")
    assert content["control"] == "untrained"
    kept, paid = content["variants"]["chosen on dev"], content["variants"]["the course's recipe"]
    assert kept["minus_control"]["sts_spearman"][0] >= 0
    assert kept["minus_baseline"]["sts_spearman"][1] > 0
    assert kept["minus_control"]["triplet_accuracy"][1] > 0
    assert paid["minus_control"]["sts_spearman"][2] < 0
    assert paid["minus_control"]["triplet_accuracy"][1] > kept["minus_control"]["triplet_accuracy"][2]
