"""What mined negatives are to their anchors, against loops over the groups they came from."""

import math
from collections import Counter

import pytest
import torch

from gate_lessons import miner
from gate_lessons.data import Group, load_corpus
from gate_lessons.encoder import NGramEncoder
from gate_lessons.library import FALSE, RELATIONS, STANDARD, Library
from gate_lessons.text import normalize

GROUPS = load_corpus("dev")[:30]
LIBRARY = Library.of_groups(GROUPS)
ENCODER = NGramEncoder(width=32, seed=0).fit_idf([group.anchor for group in GROUPS])
TOLD = LIBRARY.text | LIBRARY.pair


def _truth(group: Group) -> dict[str, str]:
    """Normalised text → relation, by hand."""
    known = {group.anchor: "itself", group.paraphrases[0]: "known positive", group.paraphrases[1]: "same meaning"}
    known |= {group.entailment: "entailed", group.neutral: "neutral", group.contradiction: "contradiction"}
    return {normalize(text): what for text, what in (dict.fromkeys(group.dialects.values(), FALSE[2]) | known).items()}


def _mine(strategy: str = "hard", k: int = 6, **options) -> miner.Mined:
    return miner.mine(*LIBRARY.embedded(ENCODER), strategy, k, **TOLD | LIBRARY.needs(strategy) | options)


def test_the_shelf_holds_every_sentence_once():
    every = {normalize(text) for group in GROUPS for text in (*group.sentences().values(), *group.dialects.values())}
    assert set(LIBRARY.shelf["key"]) == every and len(LIBRARY.shelf) == len(every)
    assert list(LIBRARY.pairs["anchor"]) == [group.anchor for group in GROUPS]
    assert list(LIBRARY.pairs["positive"]) == [group.paraphrases[0] for group in GROUPS]
    spoken = {normalize(text) for group in GROUPS for text in group.dialects.values()}
    assert set(LIBRARY.shelf["key"][LIBRARY.shelf["variety"] != STANDARD]) == spoken


@pytest.mark.parametrize("options", [{}, {"fallback": "none", "min_score": 0.35}], ids=["all", "some missing"])
def test_relations_are_those_of_the_groups(options):
    mined = _mine(**options)
    relations = LIBRARY.relations(mined)
    assert (mined.indices < 0).any() == bool(options)
    for row, (group, found) in enumerate(zip(GROUPS, mined.indices.tolist(), strict=True)):
        for place, index in enumerate(found):
            key = LIBRARY.shelf["key"].get(index)  # None where nothing was mined
            assert (
                relations[place][row] == _truth(group).get(key, RELATIONS[-1]) if key else relations.isna()[place][row]
            )


@pytest.mark.parametrize("options", [{}, {"fallback": "none", "min_score": 0.35}], ids=["all", "some missing"])
@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_a_description_counts_what_was_served(options, margin):
    mined = _mine(**options)
    relations, kinds, served, topics, gaps = [], Counter(), [], [], []
    for row, group in enumerate(GROUPS):
        s_p, there = mined.positive_similarity[row].item(), [j for j in mined.indices[row].tolist() if j >= 0]
        near = mined.similarities[row][: len(there)].tolist()
        served += there
        topics.append(len({LIBRARY.shelf["topic"][j] for j in there}))
        relations += [_truth(group).get(LIBRARY.shelf["key"][j], RELATIONS[-1]) for j in there]
        kinds.update("hard" if s >= s_p else "semi_hard" if s >= s_p - margin else "easy" for s in near)
        gaps += [sum(s - s_p + 1 for s in near) / len(near)] if near else []
    found = LIBRARY.describe(mined, margin)
    assert math.isclose(found["false"], sum(what in FALSE for what in relations) / len(relations))
    assert math.isclose(found["contradiction"], relations.count("contradiction") / len(relations))
    for kind in ("easy", "semi_hard", "hard"):
        assert math.isclose(found[kind], kinds[kind] / len(served))
    assert math.isclose(found["difficulty"], sum(gaps) / len(gaps), rel_tol=1e-5)
    assert found["different"] == len(set(served))
    assert math.isclose(found["topics"], sum(topics) / len(topics))
    assert math.isclose(found["shortfall"], mined.shortfall.sum().item() / mined.indices.numel(), rel_tol=1e-6)


@pytest.mark.parametrize("strategy", miner.STRATEGIES)
def test_text_and_pair_keep_what_they_know_out_and_truth_keeps_the_rest(strategy):
    untold, told = LIBRARY.relations(_mine(strategy)), LIBRARY.relations(_mine(strategy, **LIBRARY.truth))
    assert not untold.isin(FALSE[:2]).any(axis=None)
    assert not told.isin(FALSE).any(axis=None)
    assert untold.isin(FALSE[2:]).any(axis=None) or strategy in ("random", "category")


def test_categories_and_varieties_are_the_corpuss():
    other = _mine("category")
    topic = LIBRARY.shelf["topic"].to_numpy()[other.indices]
    assert (topic != LIBRARY.pairs["topic"].to_numpy()[:, None]).all()
    twin = _mine("dialect_twin", 3, fallback="none")
    taken = twin.indices[twin.indices >= 0]
    assert len(taken) and (LIBRARY.shelf["variety"].to_numpy()[taken] != STANDARD).all()


def test_features_are_those_of_the_strategy():
    root, word = (LIBRARY.needs(name)["anchor_features"].shape for name in ("same_root", "lexical"))
    assert root != word and LIBRARY.needs("hard:0.5+lexical:0.5")["anchor_features"].shape == word
    assert LIBRARY.needs("hard") == {}


def test_untold_the_nearest_is_the_anchor_itself():
    bare = miner.mine(*LIBRARY.embedded(ENCODER), "hard", 1)
    assert (LIBRARY.relations(bare)[0] == "itself").all()
    torch.testing.assert_close(bare.similarities, torch.ones(len(GROUPS), 1))
