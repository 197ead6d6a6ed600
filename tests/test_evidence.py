"""What `make evidence` measured still says what the README and the lessons rest on."""

import json

import pytest

from benchmarks.mining_quality import FILTERS, RANKS, VARIANTS
from benchmarks.quality import MIXTURES
from gate_lessons import miner, recipe, report

EVIDENCE = report.NOTEBOOKS.parent / "benchmarks" / "evidence"


def read(name: str) -> dict:
    return json.loads((EVIDENCE / f"{name}.json").read_text(encoding="utf-8"))


CHOSEN = sorted(EVIDENCE.glob("*_dev.json"))
DESCRIBED = [EVIDENCE / f"{name}.json" for name in ("mining", "mining_shared")]  # nothing is trained by these
REPORTED = sorted(set(EVIDENCE.glob("*.json")) - set(CHOSEN) - set(DESCRIBED))


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


# ------------------------------------------------------------------- what mining serves


def mined(data: str) -> dict:
    """What mining serves on the corpus, on its groups that no encoder has learned from, or on other people's data."""
    if data in ("triplets", "intents"):
        return read("mining_shared")[data]
    return read("mining")["unseen"] if data == "unseen" else read("mining")


@pytest.mark.parametrize("data", ["corpus", "unseen", "triplets", "intents"])
def test_mining_is_described_for_every_strategy_that_can_run_and_every_filter(data):
    content = mined(data)
    assert content["seeds"] == [0, 1, 2, 3, 4]
    assert content["split"] == ("test" if data == "unseen" else "train")
    assert set(VARIANTS) >= set(miner.STRATEGIES)
    for state in ("untrained", "trained"):
        strategies = content[state]["strategies"]
        assert set(strategies) == set(VARIANTS) - set(content["left_out"])
        assert set(content[state]["filters"]) == set(FILTERS)
        for found in (*strategies.values(), *content[state]["filters"].values()):
            low, high = found["false_negatives"][1:]
            assert 0 <= low <= found["false_negatives"][0] <= high <= 1
            assert sum(found["relations"].values()) == pytest.approx(1, abs=1e-3)
            assert found["easy"] + found["semi_hard"] + found["hard"] == pytest.approx(1, abs=1e-3)
        for points in content[state]["ranks"].values():
            assert [point["ranks"] for point in points] == [list(ranks) for ranks in RANKS]


def test_the_strategies_that_are_left_out_need_what_the_data_does_not_say():
    assert not mined("corpus")["left_out"] and not mined("unseen")["left_out"]
    assert mined("triplets")["left_out"] == mined("intents")["left_out"] == ["category", "dialect_twin"]


@pytest.mark.parametrize("state", ["untrained", "trained"])
@pytest.mark.parametrize("data", ["corpus", "unseen", "intents"])
def test_hard_negatives_are_false_more_often_than_random_ones_and_the_truth_ends_it(data, state):
    content = mined(data)[state]
    rate = {name: found["false_negatives"] for name, found in content["strategies"].items()}
    assert rate["hard"][1] > rate["hard, ranks 10 to 30"][2] > rate["random"][2]
    assert content["filters"]["+ group (the truth)"]["false_negatives"] == [0, 0, 0]


@pytest.mark.parametrize("state", ["untrained", "trained"])
@pytest.mark.parametrize("data", ["corpus", "unseen", "intents"])
def test_false_negatives_are_at_the_top_of_the_ranks(data, state):
    points = mined(data)[state]["ranks"]["hard"]
    assert min(point["false_negatives"][1] for point in points[:2]) > points[-1]["false_negatives"][2]


@pytest.mark.parametrize("data", ["corpus", "unseen"])
def test_a_margin_to_the_positive_costs_contradictions_and_buys_little_before_training(data):
    """The relative margin of 0.1 against none, shares of what was served."""
    filters = {state: mined(data)[state]["filters"] for state in ("untrained", "trained")}
    gone = {}
    for state, table in filters.items():
        none, margin = table["+ known positive"], table["+ relative margin 0.1"]
        assert margin["contradiction"][2] < none["contradiction"][1]
        gone[state] = 1 - margin["false_negatives"][0] / none["false_negatives"][0]
    assert gone["untrained"] < 0.02 < gone["trained"]


def test_every_strategy_was_trained_with_on_the_corpus():
    assert set(read("strategies")["variants"]) == {*recipe.STRATEGIES, *MIXTURES}


def test_every_strategy_that_needs_no_topics_was_trained_with_on_real_triplets_as_chosen_on_dev():
    real = read("real_triplets_strategies")["variants"]
    chosen = read("real_triplets")["variants"]["chosen on dev"]["settings"]
    assert set(real) == {*recipe.STRATEGIES, *MIXTURES} - {"category"}
    assert all(found["settings"] == chosen | {"strategy": name} for name, found in real.items())


def test_every_strategy_that_needs_no_topics_was_trained_with_on_intents():
    assert set(read("intents_strategies")["variants"]) == {"untrained", *recipe.STRATEGIES, *MIXTURES} - {"category"}
