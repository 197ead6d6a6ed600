import numpy as np
import pandas as pd
import pytest
import torch

from gate_lessons import features, miner
from gate_lessons.data import candidate_pool, load_corpus, triplets
from gate_lessons.encoder import Bag, NGramEncoder
from gate_lessons.material import Material
from gate_lessons.recipe import STRATEGIES, Recipe
from gate_lessons.text import normalize, vary

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """48 triplets from 24 groups of many topics."""
    return triplets(load_corpus("train")[::44][:24])


def _encoder() -> NGramEncoder:
    return NGramEncoder(width=16, buckets=2**11)


def _material(table: pd.DataFrame, **recipe) -> Material:
    return Material(_encoder(), table, Recipe(**recipe))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------- texts as numbers


def test_numbers_of_texts_stand_for_the_tables_texts(table):
    material = _material(table)
    assert len(material) == 48 and len(set(material.texts)) == len(material.texts)
    rows, negatives = torch.tensor([3, 0, 40]), torch.tensor([[1, 2], [0, 5], [7, 7]])
    anchors, positives, mined = material.texts_of(rows, negatives)
    assert [material.texts[i] for i in anchors] == table["anchor"].iloc[[3, 0, 40]].tolist()
    assert [material.texts[i] for i in positives] == table["positive"].iloc[[3, 0, 40]].tolist()
    pool = candidate_pool(table)["text"]
    assert [[material.texts[i] for i in row] for row in mined] == [[pool[i] for i in row] for row in negatives.tolist()]


def test_given_negatives_are_the_tables_even_where_two_spellings_are_one_candidate():
    """The pool has one sentence for each normalised text, so another spelling stands for it."""
    rows = [("سافر أحمد", "رحل أحمد", "بقي أحمد", "one"), ("نام الولد", "رقد الطفل", "بَقِيَ احمد", "two")]
    material = _material(pd.DataFrame(rows, columns=["anchor", "positive", "negative", "group"]), strategy="given")
    mined = material.mine(_encoder(), material.recipe, 1.0, _generator())
    texts = [material.texts[row] for row in material.pool[mined.indices[:, 0]]]
    assert texts == ["بقي أحمد", "بقي أحمد"] and normalize("بَقِيَ احمد") == normalize("بقي أحمد")
    anchors, positives, negatives = (_encoder().encode(x) for x in ([r[0] for r in rows], [r[1] for r in rows], texts))
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(mined.difficulty, cosine(anchors, negatives) - cosine(anchors, positives) + 1)
    assert mined.shortfall == 0.0


def test_the_objective_is_told_the_meaning_of_each_row_and_negative(table):
    material = _material(table)
    group, pool = table["group"].tolist(), candidate_pool(table)["group"].tolist()
    rows = torch.tensor([7, 6, 30])
    negatives = torch.arange(len(pool))[None].expand(3, -1)
    known = material.known(rows, negatives, CPU)
    assert known.keys() == {"group", "negative_group"}
    for i, row in enumerate(rows.tolist()):
        for j, meaning in enumerate(pool):
            assert bool(known["negative_group"][i, j] == known["group"][i]) == (meaning == group[row])
    assert known["group"][0] == known["group"][1] != known["group"][2]


def test_the_objective_is_told_what_the_guide_says_of_each_text(table):
    material, guide = _material(table), NGramEncoder(width=5, buckets=2**11, seed=3)
    material.guide = guide.encode(material.texts)
    rows, negatives = torch.tensor([9, 2]), torch.tensor([[1, 0, 2], [3, 4, 50]])
    a, p, n = material.known(rows, negatives, CPU)["guide"]
    pool = candidate_pool(table)["text"]
    torch.testing.assert_close(a, guide.encode(table["anchor"].iloc[[9, 2]].tolist()))
    torch.testing.assert_close(p, guide.encode(table["positive"].iloc[[9, 2]].tolist()))
    torch.testing.assert_close(n.flatten(0, 1), guide.encode([pool[i] for i in negatives.flatten().tolist()]))
    assert n.shape == (2, 3, 5)


def test_triplets_are_named_by_number_and_group(table):
    material = _material(table.set_index(np.arange(100, 148)))
    group = table["group"].tolist()
    assert material.names(torch.tensor([4])) == f"triplets 4 ({group[4]})"
    five = torch.tensor([4, 0, 47, 9, 9])
    assert material.names(five) == "triplets " + ", ".join(f"{row} ({group[row]})" for row in five.tolist())
    assert material.names(torch.tensor([4, 0, 47, 9, 9, 1])) == material.names(five) + " …"
    assert material.names(torch.tensor([4, 0, 47]), shown=1) == f"triplets 4 ({group[4]}) …"


# ------------------------------------------------------------------- mining


@pytest.mark.parametrize("strategy", [*STRATEGIES[1:], "hard:0.5+category:0.5"])
@pytest.mark.parametrize("k", [1, 3])
def test_mined_negatives_are_the_miners(table, strategy, k):
    material = _material(table, strategy=strategy, negatives=k, margin=0.2)
    mined = material.mine(_encoder(), material.recipe, 1.0, _generator())
    pool, encode = candidate_pool(table), _encoder().encode
    group = pd.factorize(pd.concat([table["group"], pool["group"]]))[0]
    topic = pd.factorize(pd.concat([table["topic"], pool["topic"]]))[0]
    place = {key: row for row, key in enumerate(pool["key"])}
    make = features.same_root if strategy == "same_root" else features.lexical
    ours, theirs = make(list(table["anchor"]), list(pool["text"]))
    expected = miner.mine(
        *(encode(list(texts)) for texts in (table["anchor"], table["positive"], pool["text"])),
        strategy,
        k,
        anchor_group=group[:48],
        candidate_group=group[48:],
        anchor_category=topic[:48],
        candidate_category=topic[48:],
        anchor_features=ours,
        candidate_features=theirs,
        known_positives=[[place[normalize(text)]] for text in table["positive"]],
        margin=0.2,
        generator=_generator(),
    )
    assert mined.indices.tolist() == expected.indices.tolist()
    torch.testing.assert_close(mined.difficulty, expected.difficulty())
    assert mined.shortfall == pytest.approx(expected.shortfall.float().mean().item() / k)


def test_features_are_made_once_and_of_one_kind(monkeypatch, table):
    made = []
    monkeypatch.setitem(features.OF_STRATEGY, "lexical", lambda *texts: made.append(texts) or features.lexical(*texts))
    material = _material(table, strategy="lexical")
    for _ in range(2):
        material.mine(_encoder(), material.recipe, 1.0, _generator())
    assert len(made) == 1
    material = _material(table, strategy="lexical+same_root")
    with pytest.raises(ValueError, match="one mixture has one kind of features, not those of lexical and same_root"):
        material.mine(_encoder(), material.recipe, 1.0, _generator())


def _hard_and_random(table: pd.DataFrame, share: float, seed: int = 0, strategy: str = "hard"):
    material = _material(table, strategy=strategy, negatives=2)
    return material.mine(_encoder(), material.recipe, share, _generator(seed))


def test_a_share_of_the_anchors_gets_mined_negatives_and_the_others_random_ones(table):
    hard = _hard_and_random(table, 1.0)
    shares = []
    for seed in range(20):
        mixed = _hard_and_random(table, 0.3, seed)
        same = (mixed.indices == hard.indices).all(dim=1)
        shares.append(same.float().mean().item())
        # Whatever an anchor got, the difficulty is that of what it got.
        material, encode = _material(table), _encoder().encode
        a, p = encode(list(table["anchor"])), encode(list(table["positive"]))
        n = encode(material.texts)[material.pool[mixed.indices]]
        cosine = torch.nn.functional.cosine_similarity
        expected = cosine(a[:, None], n, dim=-1).mean(dim=1) - cosine(a, p) + 1
        torch.testing.assert_close(mixed.difficulty, expected)
    assert np.mean(shares) == pytest.approx(0.3, abs=0.05)  # 960 coins: a standard deviation of 0.015
    assert len(set(shares)) > 5


def test_a_share_of_nothing_gives_random_negatives_to_all(table):
    none, hard = _hard_and_random(table, 0.0), _hard_and_random(table, 1.0)
    assert (none.indices == hard.indices).all(dim=1).float().mean() < 0.1
    assert none.difficulty.mean() < hard.difficulty.mean() - 0.1
    assert none.shortfall == 0.0
    assert not torch.equal(none.indices, _hard_and_random(table, 0.0, seed=1).indices)


def test_random_negatives_never_have_the_anchors_meaning(table):
    pool = candidate_pool(table)["group"].tolist()
    for seed in range(5):
        for row, indices in enumerate(_hard_and_random(table, 0.0, seed).indices.tolist()):
            assert table["group"].iloc[row] not in {pool[i] for i in indices}


def test_the_shortfall_of_a_share_is_a_share_of_the_shortfall(table):
    whole, part = (_hard_and_random(table, share, strategy="semi_hard").shortfall for share in (1.0, 0.25))
    assert part == pytest.approx(0.25 * whole) and whole > 0


def test_given_and_random_negatives_mix_one_each(table):
    material = _material(table, strategy="given", negatives=3)
    mixed = material.mine(_encoder(), material.recipe, 0.5, _generator())
    given = (mixed.indices[:, 0] == material.given[:, 0]).float().mean()
    assert mixed.indices.shape == (48, 1) and 0.3 < given < 0.7


def test_the_weights_of_a_mixture_are_those_of_the_progress(table):
    """Against the miner itself, told of the weights in numbers; at both ends one strategy is left."""
    weights = {0.0: {"random": 1.0}, 0.4: {"random": 0.6, "hard": 0.4}, 1.0: {"hard": 1.0}}
    material = _material(table, strategy="random:1..0+hard:0..1", negatives=3)
    found = {}
    for progress, mixture in weights.items():
        found[progress] = material.mine(_encoder(), material.recipe, 1.0, _generator(), progress).indices
        text = "+".join(f"{name}:{weight}" for name, weight in mixture.items())
        fixed = _material(table, strategy=text, negatives=3)
        assert torch.equal(found[progress], fixed.mine(_encoder(), fixed.recipe, 1.0, _generator()).indices)
    hard = (found[0.4] == found[1.0]).any(dim=1).float().mean()
    assert 0.3 < hard < 1  # of 48 anchors: at least the first of three places, with a chance of 0.4


def test_kinds_of_features_that_meet_only_later_are_refused_at_once(table):
    material = _material(table, strategy="lexical:1..0+same_root:0..1")
    with pytest.raises(ValueError, match="one mixture has one kind of features, not those of lexical and same_root"):
        material.mine(_encoder(), material.recipe, 1.0, _generator(), 0.0)


def test_mining_asks_the_encoder_as_it_is_now(table):
    material, encoder = _material(table, strategy="hard"), _encoder()
    before = material.mine(encoder, material.recipe, 1.0, _generator())
    with torch.no_grad():
        encoder.vectors.weight.copy_(NGramEncoder(width=16, buckets=2**11, seed=9).vectors.weight)
    after = material.mine(encoder, material.recipe, 1.0, _generator())
    assert not torch.equal(before.difficulty, after.difficulty)


# ------------------------------------------------------------------- features


def _same(one: Bag, other: Bag) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_features_are_those_of_the_texts(table):
    material, rows = _material(table), torch.tensor([5, 5, 0, 71])
    assert _same(material.features(rows, 3), _encoder().features([material.texts[row] for row in rows.tolist()]))
    assert _same(material.features(rows, 3), material.features(rows, 4))


def test_features_vary_with_the_step_and_the_seed_only(table):
    material, rows = _material(table, augment=0.2), torch.arange(30)
    assert _same(material.features(rows, 3), material.features(rows, 3))
    assert not _same(material.features(rows, 3), material.features(rows, 4))
    assert not _same(material.features(rows, 3), _material(table, augment=0.2, seed=1).features(rows, 3))
    plain = _material(table).features(rows, 3)
    assert not _same(material.features(rows, 3), plain) and _same(_material(table).features(rows, 3), plain)


def test_texts_that_stand_twice_in_a_batch_vary_each_in_their_own_way(table):
    material = _material(table, augment=0.3)
    seen, features = [], material.encoder.features
    material.encoder.features = lambda texts: seen.append(list(texts)) or features(texts)
    material.features(torch.tensor([0, 0, 0, 0, 1]), 0)
    original = material.texts[0]
    assert len(set(seen[0][:4])) > 1 and original not in seen[0][:4]
    possible = {vary(original, np.random.default_rng(seed), 0.3) for seed in range(3)}
    assert len(possible) == 3  # `vary` itself is tested in test_text


# ------------------------------------------------------------------- the fingerprint


def test_the_same_table_has_the_same_fingerprint_whatever_its_row_numbers(table):
    assert _material(table).fingerprint() == _material(table.copy(), strategy="given", seed=4).fingerprint()
    assert _material(table).fingerprint() == _material(table.set_index(np.arange(48)[::-1])).fingerprint()
    assert _material(table).fingerprint() == _material(table.drop(columns="phenomenon")).fingerprint()


CHANGES = {
    "anchor": ("anchor", "جملة أخرى"),
    "positive": ("positive", "جملة أخرى"),
    "negative": ("negative", "جملة أخرى"),
    "another's negative": ("negative", None),
    "group": ("group", None),
    "a letter": ("anchor", "+"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_table_has_another_fingerprint(table, name):
    column, value = CHANGES[name]
    first = table[column].iloc[0]
    value = first + value if value == "+" else table[column].iloc[30] if value is None else value
    other = table.assign(**{column: [value, *table[column].iloc[1:]]})
    assert _material(other).fingerprint() != _material(table).fingerprint()


@pytest.mark.parametrize("column", ["anchor", "positive", "negative"])
def test_the_same_sentences_in_another_triplet_have_another_fingerprint(table, column):
    """Row 3 once more, and in the other table with a sentence of row 0."""
    again = table.iloc[[3]]
    one = _material(pd.concat([table, again]))
    other = _material(pd.concat([table, again.assign(**{column: table[column].iloc[0]})]))
    assert one.texts == other.texts and one.fingerprint() != other.fingerprint()


def test_another_order_or_a_row_less_has_another_fingerprint(table):
    found = {
        _material(other).fingerprint() for other in (table, table[::-1], table[:-1], table.iloc[[1, 0, *range(2, 48)]])
    }
    assert len(found) == 4


def test_other_topics_have_another_fingerprint(table):
    other = table.assign(topic=table["topic"].to_numpy()[::-1])
    one, two = (_material(t, strategy="category") for t in (table, other))
    mined = [material.mine(_encoder(), material.recipe, 1.0, _generator()).indices for material in (one, two)]
    assert not torch.equal(*mined)
    assert one.fingerprint() != two.fingerprint()
