"""The functions behind `benchmarks/evidence/mining*.json`, against naive loops where the truth is known."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import mining_quality as quality
from benchmarks import shelves
from benchmarks.mining_quality import PAIR, Found
from benchmarks.shelves import CONTRADICTION, ENTAILED, ITSELF, KNOWN, NEAR, OTHER, SAME
from gate_lessons import miner
from gate_lessons.data import load_corpus, triplets
from gate_lessons.encoder import LexicalBaseline, NGramEncoder
from gate_lessons.evaluation import load_task
from gate_lessons.text import normalize

FALSE = {"itself", "known positive", "same meaning", "entailed"}


@pytest.fixture(scope="module")
def found() -> list[Found]:
    """Three seeds, eleven anchors, four places, some of them empty; one anchor got nothing at all."""
    draws, runs = np.random.default_rng(3), []
    for _ in range(3):
        relation = draws.integers(0, OTHER + 1, (11, 4))
        relation[draws.random(relation.shape) < 0.2] = -1
        relation[7] = -1
        indices = np.where(relation < 0, -1, draws.integers(0, 9, relation.shape))
        difficulty = np.where(relation < 0, np.nan, draws.choice([0.5, 0.9, 0.95, 1.0, 1.2], relation.shape))
        runs.append(Found(relation, indices, difficulty))
    return runs


TOPIC = np.array(list("aabbbcccc"))


def _served(found):
    """Seed, anchor, relation, candidate, difficulty of everything that was served, one by one."""
    for seed, one in enumerate(found):
        for row, places in enumerate(one.relation):
            for column, place in enumerate(places):
                if place >= 0:
                    name = shelves.RELATIONS[place]
                    yield seed, row, name, one.indices[row, column], one.difficulty[row, column]


# ------------------------------------------------------------------- rates


def test_rates_and_hardness_are_those_of_a_loop(found):
    rows, content = list(_served(found)), quality.described(found, TOPIC)
    count = len(rows)
    assert content["false_negatives"].estimate == pytest.approx(sum(r[2] in FALSE for r in rows) / count)
    assert content["contradiction"].estimate == pytest.approx(sum(r[2] == "contradiction" for r in rows) / count)
    assert content["relations"] == pytest.approx({n: sum(r[2] == n for r in rows) / count for n in shelves.RELATIONS})
    assert content["difficulty"] == pytest.approx(sum(r[4] for r in rows) / count)
    one, gap = torch.ones(count), torch.tensor([r[4] - 1 for r in rows])
    kinds = Counter(miner.hardness(one, one + gap.round(decimals=3), 0.1))
    for kind in ("easy", "semi_hard", "hard"):
        # s(a,n) = s(a,p) − m lies in the band, where rounding of 1 − 0.1 decides
        assert content[kind] == pytest.approx(kinds[kind] / count, abs=sum(r[4] == 0.9 for r in rows) / count)
    assert content["easy"] + content["semi_hard"] + content["hard"] == pytest.approx(1)
    assert content["shortfall"] == pytest.approx(1 - count / (3 * 11 * 4))


def test_diversity_is_that_of_a_loop(found):
    wanted = {"distinct": [], "most_served": [], "topics_per_anchor": [], "topic_entropy": []}
    for seed in range(3):
        rows = [row for row in _served(found) if row[0] == seed]
        times = Counter(row[3] for row in rows)
        wanted["distinct"].append(len(times) / len(rows))
        wanted["most_served"].append(max(times.values()))
        topics = {}
        for row in rows:
            topics.setdefault(row[1], set()).add(TOPIC[row[3]])
        wanted["topics_per_anchor"].append(sum(map(len, topics.values())) / len(topics))
        shares = [n / len(rows) for n in Counter(TOPIC[row[3]] for row in rows).values()]
        wanted["topic_entropy"].append(-sum(p * math.log2(p) for p in shares))
    content = quality.described(found, TOPIC)
    for name, values in wanted.items():
        assert content[name] == pytest.approx(sum(values) / 3)
    assert "topic_entropy" not in quality.described(found)


def test_the_spread_is_over_seeds(found):
    rates = []
    for seed in range(3):
        rows = [row for row in _served(found) if row[0] == seed]
        rates.append(sum(row[2] in FALSE for row in rows) / len(rows))
    assert quality.described(found)["spread_over_seeds"] == pytest.approx(np.std(rates))


def test_an_interval_resamples_anchors_not_places():
    """All places of an anchor are alike, so that its interval is that of 40 anchors, not of 400 places."""
    draws = np.random.default_rng(0)
    hit = np.repeat(draws.random((1, 40, 1)) < 0.3, 10, axis=2)
    found = quality.share(hit, np.ones_like(hit))
    rate = hit.mean()
    assert found.estimate == pytest.approx(rate)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(rate * (1 - rate) / 40), rel=0.1)


def test_what_was_never_served_has_no_rate():
    nothing = np.zeros((2, 3, 1), bool)
    assert quality.share(nothing, nothing) is None
    empty = Found(np.full((3, 1), -1), np.full((3, 1), -1), np.full((3, 1), np.nan))
    content = quality.described([empty, empty], TOPIC)
    assert content["shortfall"] == 1 and content["difficulty"] is content["false_negatives"] is None


def test_the_curve_has_every_rank_once_in_its_bin():
    relation = np.full((2, 100), OTHER)
    relation[0, 0] = relation[1, 12] = SAME
    relation[0, 99], relation[1, 60:] = CONTRADICTION, -1
    found = Found(relation, relation, np.zeros(relation.shape))
    points = quality.by_rank([found])
    covered = [rank for point in points for rank in range(point["ranks"][0], point["ranks"][1] + 1)]
    assert covered == list(range(1, 101))
    for point in points:
        first, last = point["ranks"]
        inside = [relation[row, rank - 1] for row in range(2) for rank in range(first, last + 1)]
        served = [place for place in inside if place >= 0]
        assert point["false_negatives"].estimate == pytest.approx(served.count(SAME) / len(served))
        assert point["contradiction"].estimate == pytest.approx(served.count(CONTRADICTION) / len(served))
        assert point["shortfall"] == pytest.approx(1 - len(served) / len(inside))


# ------------------------------------------------------------------- mining from a shelf


@pytest.fixture(scope="module")
def corpus():
    """A small part of the corpus."""
    groups = load_corpus("train")[::20]
    task = dataclasses.replace(load_task(), train=triplets(groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelves, "load_corpus", lambda split: groups if split == "train" else [])
        return task, shelves.corpus_shelf("train")


def test_the_corpus_shelf_knows_every_relation(corpus):
    _, shelf = corpus
    groups = {g.id: g for g in load_corpus("train")}
    by_anchor = {g.anchor: g for g in groups.values()}
    place = {normalize(text): column for column, text in enumerate(shelf.candidates)}
    assert len(place) == len(shelf.candidates)
    for row in (0, 17, len(shelf.anchors) - 1):
        g = by_anchor[shelf.anchors[row]]
        wanted = {place[normalize(text)]: SAME for text in (*g.paraphrases, *g.dialects.values())}
        wanted |= {place[normalize(shelf.positives[row])]: KNOWN, place[normalize(g.anchor)]: ITSELF}
        wanted |= {place[normalize(g.contradiction)]: CONTRADICTION}
        wanted |= {place[normalize(text)]: kind for text, kind in ((g.entailment, ENTAILED), (g.neutral, 4)) if text}
        assert {
            column: shelf.relation[row, column] for column in np.flatnonzero(shelf.relation[row] != OTHER)
        } == wanted
        assert shelf.topic[place[normalize(g.contradiction)]] == g.topic
    assert all(shelf.has(how["strategy"]) for how in quality.VARIANTS.values())


@pytest.mark.parametrize("strategy", ["hard", "semi_hard", "lexical", "dialect_twin", "hard:0.5+same_root:0.5"])
def test_what_is_served_is_the_miners_and_is_related_as_the_shelf_says(corpus, strategy):
    task, shelf = corpus
    embedded = shelf.embedded(NGramEncoder(width=16, buckets=2**11).fit_idf(task.texts))
    found = quality.mine(shelf, embedded, PAIR, 5, 3, strategy=strategy)
    ours, theirs = shelf.features["same_root" if "same_root" in strategy else "lexical"]
    known = [[j for j, kind in enumerate(row) if kind in (ITSELF, KNOWN)] for row in shelf.relation.tolist()]
    m = miner.mine(
        *embedded, strategy, 3, known_positives=known, margin=0.1, fallback="none",
        generator=torch.Generator().manual_seed(5), anchor_features=ours, candidate_features=theirs, **shelf.labels,
    )  # fmt: skip
    assert found.indices.tolist() == m.indices.tolist()
    gap = m.similarities - m.positive_similarity[:, None] + 1
    np.testing.assert_allclose(found.difficulty, gap.numpy(), atol=1e-6)
    for row, indices in enumerate(m.indices.tolist()):
        assert found.relation[row].tolist() == [-1 if j < 0 else shelf.relation[row, j] for j in indices]
    assert not np.isin(found.relation, PAIR).any()


def test_a_filter_that_knows_the_truth_leaves_nothing_false(corpus):
    task, shelf = corpus
    embedded = shelf.embedded(NGramEncoder(width=16, buckets=2**11).fit_idf(task.texts))
    rate = {}
    for name in ("no filter", "+ known positive", "+ group (the truth)"):
        known, how = quality.FILTERS[name]
        found = quality.mine(shelf, embedded, known, 0, strategy="hard", **how)
        rate[name] = quality.described([found])["false_negatives"].estimate
    assert rate["no filter"] > rate["+ known positive"] > rate["+ group (the truth)"] == 0


# ------------------------------------------------------------------- other people's data


def _write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_the_triplets_shelf_has_every_label_of_both_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shelves, "ANCHORS", 2)
    rows = [("سافر أحمد", "رحل أحمد", "بقي أحمد", "nli"), ("نام الولد", "رقد الولد", "استيقظ الولد", "ans")]
    names = ("anchor", "positive", "negative", "source")
    every = [dict(zip(names, row, strict=True), split=s) for s in ("train", "dev", "test") for row in rows]
    _write(tmp_path / "triplets.jsonl", every)
    pairs = [("سافر أحمد", "ذهب أحمد", "entailment"), ("سافر أحمد", "سافر بالقطار", "neutral")]
    pairs += [("سافر أحمد", "بقي أحمد", "contradiction"), ("هطل المطر", "ابتل الطريق", "entailment")]
    pairs += [("سافر أحمد", "ذهب أحمد", "neutral")]  # two labels: the nearer meaning counts
    _write(
        tmp_path / "nli_pairs.jsonl",
        [dict(premise=p, hypothesis=h, label=label, split="train") for p, h, label in pairs]
        + [dict(premise="سافر أحمد", hypothesis="لا أحد", label="neutral", split="test")],
    )
    shelf = shelves.triplets_shelf(load_task(str(tmp_path / "triplets.jsonl")), tmp_path)
    texts = {t for row in rows for t in row[:3]} | {t for pair in pairs for t in pair[:2]}
    assert sorted(shelf.candidates) == sorted(texts) and shelf.topic is None
    relation = {
        (anchor, text): shelves.RELATIONS[kind]
        for anchor, kinds in zip(shelf.anchors, shelf.relation, strict=True)
        for text, kind in zip(shelf.candidates, kinds, strict=True)
        if kind != OTHER
    }
    assert relation == {
        ("سافر أحمد", "سافر أحمد"): "itself",
        ("سافر أحمد", "رحل أحمد"): "known positive",
        ("سافر أحمد", "ذهب أحمد"): "entailed",
        ("سافر أحمد", "سافر بالقطار"): "neutral",
        ("سافر أحمد", "بقي أحمد"): "contradiction",
        ("نام الولد", "نام الولد"): "itself",
        ("نام الولد", "رقد الولد"): "known positive",
        ("نام الولد", "استيقظ الولد"): "contradiction",
    }
    assert not shelf.has("category") and not shelf.has("hard+dialect_twin") and shelf.has("hard+same_root")


INTENTS = {"بطاقة": "بطاقتي", "رصيد": "رصيدي", "تحويل": "تحويلي", "قرض": "قرضي", "فائدة": "فائدتي"}


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"text": f"{word} {ask} {n}", "category": name, "split": split}
        for split, ask in (("train", "أين"), ("test", "وين"))
        for name, word in INTENTS.items()
        for n in range(12)
    ]
    two = [{"text": "سؤال واحد", "category": name, "split": "train"} for name in ("قرض", "رصيد")]
    seen = [{"text": "بطاقتي أين 3", "category": "بطاقة", "split": "test"}]
    _write(tmp_path / "intents.jsonl", rows + two + seen)
    return tmp_path


def test_questions_of_one_intent_are_pairs_and_false_negatives(questions):
    task = shelves.intents_task(questions)
    intent = {f"{word} أين {n}": name for name, word in INTENTS.items() for n in range(12)}
    assert len(task.train) == 5 * 6
    for _, row in task.train.iterrows():
        assert intent[row["anchor"]] == intent[row["positive"]] == row["group"] != intent[row["negative"]]
        assert row["anchor"] != row["positive"]
    shelf = shelves.intents_shelf(task, questions)
    assert sorted(shelf.candidates) == sorted(intent)
    near = shelves.near_intents(pd.DataFrame({"text": list(intent), "topic": list(intent.values())}))
    assert all(len(set(others)) == 3 and name not in others for name, others in near.items())
    for row, anchor in enumerate(shelf.anchors):
        for column, text in enumerate(shelf.candidates):
            kind = ITSELF if text == anchor else KNOWN if text == shelf.positives[row] else SAME
            if intent[text] != intent[anchor]:
                kind = NEAR if intent[text] in near[intent[anchor]] else OTHER
            assert shelf.relation[row, column] == kind


@pytest.mark.parametrize("make", [lambda task: NGramEncoder(width=32), lambda task: LexicalBaseline(task.texts)])
def test_retrieval_is_right_where_the_nearest_question_has_the_intent(questions, make):
    task = shelves.intents_task(questions)
    asked, encoder = task.test, make(task)
    assert len(asked.questions) == 50 and "بطاقتي أين 3" not in asked.questions
    answers = asked.ask(encoder)
    for row in range(0, 50, 7):
        similarity = encoder.similarity([asked.questions[row]] * len(asked.library), asked.library)
        own = np.array([name == asked.intents[row] for name in asked.library_intents])
        assert answers.positive[row] == pytest.approx(similarity[own].max(), abs=1e-5)
        assert answers.negative[row] == pytest.approx(similarity[~own].max(), abs=1e-5)
