import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gate_lessons import metrics
from gate_lessons.data import load_corpus, sts_pairs
from gate_lessons.evaluation import Answers, HeldOut, compare, evaluate, load_task, summary
from gate_lessons.files import DataError
from gate_lessons.metrics import Interval

# Similarity of each pair of texts, so that every metric can be counted by hand.
KNOWN = {
    ("a", "p"): 0.9,
    ("a", "n"): 0.1,  # right by 0.8
    ("b", "p"): 0.4,
    ("b", "n"): 0.6,  # wrong by 0.2
    ("c", "p"): 0.5,
    ("c", "n"): 0.5,  # a tie is a miss
    ("d", "p"): 0.3,
    ("d", "n"): 0.2,  # right by 0.1
    ("x", "y"): 0.2,
    ("y", "z"): 0.8,
    ("z", "x"): 0.3,
}
SCORES = [0.0, 5.0, 1.0]


class Fake:
    """An encoder that knows the answers; it refuses pairs nobody should ask for."""

    def similarity(self, texts1: Sequence[str], texts2: Sequence[str]) -> np.ndarray:
        return np.array([KNOWN[pair] for pair in zip(texts1, texts2, strict=True)])


def _triplets() -> pd.DataFrame:
    return pd.DataFrame([(a, "p", "n") for a in "abcd"], columns=["anchor", "positive", "negative"])


def _held_out() -> HeldOut:
    sts = pd.DataFrame({"sentence1": list("xyz"), "sentence2": list("yzx"), "score": SCORES})
    return HeldOut(_triplets(), sts)


def _runs(count: int, items: int = 40, pairs: int = 30, seed: int = 0) -> list[Answers]:
    """Answers of several training seeds on one held-out set."""
    rng = np.random.default_rng(seed)
    score = np.random.default_rng(99).uniform(0, 5, pairs)
    return [
        Answers(rng.normal(0.3, 1, items), rng.normal(0, 1, items), score + rng.normal(0, 2, pairs), score)
        for _ in range(count)
    ]


def test_known_similarities_give_the_known_metrics():
    found = evaluate(Fake(), _held_out()).metrics()
    assert found == pytest.approx(
        {
            "triplet_accuracy": 2 / 4,
            "similarity_gap": (0.8 - 0.2 + 0.0 + 0.1) / 4,
            "sts_spearman": 1.0,  # 0.2 < 0.3 < 0.8 as 0 < 1 < 5
            "sts_pearson": stats.pearsonr([0.2, 0.8, 0.3], SCORES)[0],
        }
    )


def test_answers_stay_item_by_item():
    answers = evaluate(Fake(), _held_out())
    assert answers.correct.tolist() == [1, 0, 0, 1]
    assert answers.positive.tolist() == [0.9, 0.4, 0.5, 0.3]
    assert answers.negative.tolist() == [0.1, 0.6, 0.5, 0.2]
    assert answers.sts.tolist() == [0.2, 0.8, 0.3]
    assert answers.score.tolist() == SCORES


def test_without_scored_pairs_there_is_no_correlation():
    answers = evaluate(Fake(), HeldOut(_triplets()))
    assert set(answers.metrics()) == {"triplet_accuracy", "similarity_gap"}
    assert set(summary([answers])) == set(compare([answers], [answers])) == {"triplet_accuracy"}


def test_a_run_compared_with_itself_differs_by_exactly_nothing():
    runs = _runs(3)
    found = compare(runs, runs)
    assert found == {"triplet_accuracy": Interval(0, 0, 0), "sts_spearman": Interval(0, 0, 0)}
    assert not any(interval.excludes_zero for interval in found.values())


def test_a_comparison_is_the_treatment_minus_the_control_and_has_a_direction():
    treatment, control = _runs(3), _runs(2, seed=7)
    found, back = compare(treatment, control), compare(control, treatment)
    accuracy = np.mean([run.correct.mean() for run in treatment]) - np.mean([run.correct.mean() for run in control])
    spearman = np.mean([stats.spearmanr(r.sts, r.score)[0] for r in treatment]) - np.mean(
        [stats.spearmanr(r.sts, r.score)[0] for r in control]
    )
    assert found["triplet_accuracy"].estimate == pytest.approx(accuracy)
    assert found["sts_spearman"].estimate == pytest.approx(spearman)
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(-back[name].estimate)
        assert (interval.low, interval.high) == pytest.approx((-back[name].high, -back[name].low))


def test_a_comparison_is_paired_by_item():
    """One run is right where the other is and on fifteen items more: unpaired noise must not hide that."""
    base = np.tile([1.0, -1.0], 50)
    better = base.copy()
    better[1:30:2] = 1.0
    control = Answers(base, np.zeros(100), np.empty(0), np.empty(0))
    treatment = Answers(better, np.zeros(100), np.empty(0), np.empty(0))
    found = compare([treatment], [control])["triplet_accuracy"]
    assert found == metrics.bootstrap(treatment.correct - control.correct)
    assert found.excludes_zero


def test_a_summary_averages_over_seeds():
    runs = _runs(4)
    found = summary(runs)
    assert found["triplet_accuracy"].estimate == pytest.approx(np.mean([run.correct.mean() for run in runs]))
    assert found["sts_spearman"].estimate == pytest.approx(
        np.mean([stats.spearmanr(run.sts, run.score)[0] for run in runs])
    )
    assert all(interval.low < interval.estimate < interval.high for interval in found.values())
    alone = summary(runs[:1])["triplet_accuracy"]
    pooled = found["triplet_accuracy"]
    assert pooled.high - pooled.low < alone.high - alone.low  # seeds that err independently average out


def test_the_held_out_questions_of_groups_are_distant_paraphrases_against_contradictions():
    groups = load_corpus("dev")
    held_out = HeldOut.of_groups(groups)
    sentences = {g.id: g.sentences() for g in groups}
    asked = [name for name, roles in sentences.items() if {"distant", "contradiction"} <= set(roles)]
    assert held_out.triplets["group"].tolist() == asked
    for row in held_out.triplets.itertuples():
        roles = sentences[row.group]
        assert (row.anchor, row.positive, row.negative) == (roles["anchor"], roles["distant"], roles["contradiction"])
    pd.testing.assert_frame_equal(held_out.sts, sts_pairs(groups))


# ---------------------------------------------------------------------------------------------- tasks


def _write(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _rows(splits: Sequence[str | None]) -> list[dict]:
    sides = ("anchor", "positive", "negative")
    rows = [{side: f"جملة {side} {number}" for side in sides} for number in range(len(splits))]
    return [row | ({"split": split} if split else {}) for row, split in zip(rows, splits, strict=True)]


def test_the_corpus_task_tests_distant_paraphrases_of_other_groups_than_it_trains_on():
    task = load_task()
    groups = {split: {g.id for g in load_corpus(split)} for split in ("train", "dev", "test")}
    assert set(task.train["group"]) == groups["train"]
    assert set(task.dev.triplets["group"]) == groups["dev"]
    assert set(task.test.triplets["group"]) == groups["test"]
    distant = {g.anchor: g.paraphrases[1] for g in load_corpus("test")}
    assert dict(zip(task.test.triplets["anchor"], task.test.triplets["positive"], strict=True)) == distant
    assert len(task.test.sts) > 0


def test_a_file_with_splits_keeps_them(tmp_path):
    task = load_task(_write(tmp_path / "t.jsonl", _rows(["train", "train", "dev", "test"])))
    assert [len(task.train), len(task.dev.triplets), len(task.test.triplets)] == [2, 1, 1]
    assert task.dev.triplets["anchor"].tolist() == ["جملة anchor 2"]


def test_a_file_without_splits_is_split_by_anchor(tmp_path):
    rows = _rows([None] * 40)
    task = load_task(_write(tmp_path / "t.jsonl", rows + rows))  # each anchor twice
    parts = [set(table["anchor"]) for table in (task.train, task.dev.triplets, task.test.triplets)]
    assert [len(part) for part in parts] == [28, 4, 8]
    assert len(set.union(*parts)) == 40


def test_a_file_that_lacks_a_split_is_refused(tmp_path):
    path = _write(tmp_path / "t.jsonl", _rows(["train", "test"]))
    with pytest.raises(DataError, match=r"t\.jsonl: no rows with split 'dev'"):
        load_task(path)
