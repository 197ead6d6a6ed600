import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch import Tensor

from gate_lessons import miner, search
from gate_lessons.miner import mining, proposals, strategies


def _circle(*degrees: float) -> Tensor:
    """Points on the unit circle [n, 2]; the cosine of two is the cosine of the angle between them."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


ANCHOR, POSITIVE = _circle(0), _circle(60)  # s(a, p) = 0.5
AT = (10, 45, 70, 75, 85, 120, 180)  # cosines .98 .71 .34 .26 .09 −.5 −1
POOL = _circle(*AT)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed))


def _pool(rows: int = 12, columns: int = 40, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    anchors = _random(rows, width, seed=seed)
    positives = anchors + 0.7 * _random(rows, width, seed=seed + 1)
    return anchors, positives, _random(columns, width, seed=seed + 2)


def _cosines(a: Tensor, b: Tensor) -> np.ndarray:
    a, b = a.double().numpy(), b.double().numpy()
    return np.array([[x @ y / math.sqrt((x @ x) * (y @ y)) for y in b] for x in a])


def _own(a: Tensor, b: Tensor) -> np.ndarray:
    return np.diag(_cosines(a, b))


def _degrees(mined: miner.Mined) -> list[list[int]]:
    return [[AT[i] for i in row] for row in mined.indices.tolist()]


def _in_slices(monkeypatch, numbers: int) -> None:
    """Let mining hold only so many numbers at once, so that it looks at a few anchors at a time."""
    for module in (mining, proposals, strategies):
        monkeypatch.setattr(module, "NUMBERS", numbers)


def _far_from(values: np.ndarray, limit: float, by: float = 1e-5) -> bool:
    """Whether float32 and float64 must agree on which side of the limit every value lies."""
    return bool((np.abs(values - limit) > by).all())


# ------------------------------------------------------------------- strategies on a circle


def test_hard_takes_the_nearest():
    mined = miner.mine(ANCHOR, POSITIVE, POOL, "hard", 3)
    assert _degrees(mined) == [[10, 45, 70]]
    assert mined.similarities[0].tolist() == pytest.approx([math.cos(math.radians(d)) for d in (10, 45, 70)], abs=1e-6)
    assert mined.positive_similarity.tolist() == pytest.approx([0.5], abs=1e-6)
    assert mined.shortfall.tolist() == [0] and mined.skipped == {}


@pytest.mark.parametrize(
    ("margin", "inside"), [(0.2, [70]), (0.3, [70, 75]), (0.5, [70, 75, 85]), (1.2, [70, 75, 85, 120])]
)
def test_semi_hard_stays_inside_the_band(margin, inside):
    """Further than the positive (below 0.5), by less than the margin, the nearest first."""
    mined = miner.mine(ANCHOR, POSITIVE, POOL, "semi_hard", len(inside), margin=margin)
    assert _degrees(mined) == [inside]
    assert mined.shortfall.tolist() == [0]


def test_semi_hard_is_not_the_tutorials():
    """The tutorial takes what is closer than the positive, which FaceNet calls hard."""
    tutorial = {degree for degree in AT if math.cos(math.radians(degree)) > 0.5}
    ours = set(_degrees(miner.mine(ANCHOR, POSITIVE, POOL, "semi_hard", 2, margin=0.3))[0])
    assert tutorial == {10, 45} and ours == {70, 75}


def test_the_semi_hard_band_has_its_lower_end_and_not_its_upper():
    """s_n = s_p is hard; s_n = s_p − margin is semi-hard. The cosines here are exact in binary."""
    anchor = torch.tensor([[1.0, 0, 0, 0]])
    positive = torch.tensor([[1.0, 1, 1, 1]])
    pool = torch.tensor([[1.0, -1, -1, 1], [0, 1.0, 0, 0], [-1.0, 0, 0, 0]])  # cosines 0.5, 0, −1
    mined = miner.mine(anchor, positive, pool, "semi_hard", 1, margin=0.5)
    assert mined.indices.tolist() == [[1]] and mined.shortfall.tolist() == [0]


def test_random_takes_each_candidate_as_often():
    draws, size = 4000, len(POOL)
    anchors, positives = ANCHOR.expand(draws, 2), POSITIVE.expand(draws, 2)
    mined = miner.mine(anchors, positives, POOL, "random", 1, generator=_generator(3))
    counts = np.bincount(mined.indices[:, 0], minlength=size)
    expected = draws / size
    # χ² with 6 degrees of freedom is above 22.5 once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 22.5


def test_random_draws_without_repeats_and_depends_on_the_generator_only():
    a, p, pool = _pool()
    first, again, other = (miner.mine(a, p, pool, "random", 5, generator=_generator(s)).indices for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all(len(set(row)) == 5 for row in first.tolist())
    torch.manual_seed(5)
    default = miner.mine(a, p, pool, "random", 5).indices
    torch.manual_seed(6)
    assert torch.equal(default, miner.mine(a, p, pool, "random", 5).indices)
    assert torch.equal(default, miner.mine(a, p, pool, "random", 5, generator=_generator(0)).indices)


def _mine_by_category(draws: int, category: list[int], **options) -> miner.Mined:
    """One negative for each of `draws` equal anchors of category 2, from a random pool."""
    anchors, positives = ANCHOR.expand(draws, 2), POSITIVE.expand(draws, 2)
    options |= {"anchor_category": [2] * draws, "candidate_category": category}
    return miner.mine(anchors, positives, _random(len(category), 2), "category", 1, **options)


def test_category_draws_every_other_category_as_often_and_never_the_anchors():
    draws = 3000
    sizes = {0: 30, 1: 2, 2: 10, 3: 50}
    category = [name for name, size in sizes.items() for _ in range(size)]
    mined = _mine_by_category(draws, category, generator=_generator(1))
    drawn = torch.tensor(category)[mined.indices[:, 0]]
    counts = np.bincount(drawn, minlength=4)
    assert counts[2] == 0 and mined.shortfall.sum() == 0
    expected = draws / 3
    assert ((np.delete(counts, 2) - expected) ** 2 / expected).sum() < 13.8  # χ², 2 degrees of freedom, 1 in 1,000
    within = np.bincount(mined.indices[drawn == 3][:, 0] - 42, minlength=50)
    assert ((within - within.mean()) ** 2 / within.mean()).sum() < 85  # χ², 49 degrees of freedom, 1 in 1,000


def test_category_fills_up_from_the_anchors_own_only_when_the_others_run_out():
    mined = miner.mine(
        ANCHOR, POSITIVE, POOL, "category", 4, anchor_category=[1], candidate_category=[1, 0, 1, 1, 0, 1, 1]
    )
    assert {1, 4} == set(mined.indices[0, :2].tolist())
    assert mined.shortfall.tolist() == [2] and len(set(mined.indices[0].tolist())) == 4


def test_category_counts_only_what_the_filter_leaves():
    """45 of the 50 sentences of category 0 are positives; it is still drawn as often as category 1."""
    draws, category = 2000, [0] * 50 + [1] * 5
    mined = _mine_by_category(draws, category, known_positives=[list(range(45))] * draws)
    share = torch.tensor(category)[mined.indices[:, 0]].float().mean().item()
    assert share == pytest.approx(0.5, abs=0.05)  # more than four standard errors


CLUMPS = (0, 2, 4, 6, 118, 120, 122, 240, 241, 242)  # three clumps on the circle
CLUMP = (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
BY_DISTANCE = {0: (2, 1, 3, 0), 1: (4, 5, 6), 2: (9, 8, 7)}  # each clump's rows, the nearest to 3.5° first
HARDEST, SECOND = ({rows[place] for rows in BY_DISTANCE.values()} for place in (0, 1))


def _mine_clumps(k: int, seed: int = 0, rows: int = 1, **options) -> miner.Mined:
    anchors, positives = _circle(3.5).expand(rows, 2), _circle(60).expand(rows, 2)
    return miner.mine(anchors, positives, _circle(*CLUMPS), "cluster", k, generator=_generator(seed), **options)


@pytest.fixture
def clumps(monkeypatch):
    """The clusters are the clumps. k-means itself may end elsewhere, which is not the miner's to decide."""
    monkeypatch.setattr(proposals, "cluster", lambda corpus, clusters, seed: torch.tensor(CLUMP))


@pytest.mark.parametrize("seed", range(5))
def test_cluster_takes_the_hardest_of_each_cluster(clumps, seed):
    assert set(_mine_clumps(3, seed).indices[0].tolist()) == HARDEST
    two = _mine_clumps(2, seed).indices[0].tolist()
    assert len({CLUMP[i] for i in two}) == 2 and set(two) < HARDEST


def test_cluster_fills_to_k_in_rounds(clumps):
    mined = _mine_clumps(5)
    chosen = mined.indices[0].tolist()
    assert set(chosen[:3]) == HARDEST
    assert len(set(chosen[3:])) == 2 and set(chosen[3:]) < SECOND
    assert mined.shortfall.tolist() == [0]
    assert sorted(_mine_clumps(10).indices[0].tolist()) == list(range(10))


def test_cluster_of_one_does_not_always_serve_the_same_cluster(clumps):
    counts = np.bincount([CLUMP[i] for i in _mine_clumps(1, rows=300).indices[:, 0]], minlength=3)
    assert ((counts - 100) ** 2 / 100).sum() < 13.8  # χ², 2 degrees of freedom, once in a thousand


def test_cluster_takes_the_best_that_the_filter_leaves(clumps):
    assert set(_mine_clumps(3, known_positives=[[2, 9]]).indices[0].tolist()) == {1, 4, 8}


@pytest.mark.parametrize("clusters", [1, 5, 100])
def test_cluster_clusters_the_pool_once_and_serves_distinct_clusters(monkeypatch, clusters):
    made = []
    monkeypatch.setattr(proposals, "cluster", lambda *x: made.append(search.cluster(*x)) or made[-1])
    _in_slices(monkeypatch, 1)
    a, p, pool = _pool()
    mined = miner.mine(a, p, pool, "cluster", 4, clusters=clusters)
    (of,) = made
    similarity = _cosines(a, pool)
    for i, row in enumerate(mined.indices.tolist()):
        first = row[: min(4, len(set(of.tolist())))]
        assert len({int(of[j]) for j in first}) == len(first)
        for j in first:
            members = [m for m in range(40) if of[m] == of[j]]
            assert j == max(members, key=lambda m: similarity[i, m])


# ------------------------------------------------------------------- the filter


def test_the_same_group_and_the_same_text_are_never_negatives():
    group = miner.mine(ANCHOR, POSITIVE, POOL, "hard", 2, anchor_group=[5], candidate_group=[5, 0, 5, 1, 2, 3, 4])
    assert _degrees(group) == [[45, 75]] and group.skipped == {"same group": 2}
    text = miner.mine(ANCHOR, POSITIVE, POOL, "hard", 2, anchor_key=[9], candidate_key=[9, 9, 1, 2, 3, 4, 5])
    assert _degrees(text) == [[70, 75]] and text.skipped == {"same text": 2}


def test_known_positives_are_never_negatives():
    mined = miner.mine(ANCHOR, POSITIVE, POOL, "hard", 2, known_positives=[[1, 2]])
    assert _degrees(mined) == [[10, 75]] and mined.skipped == {"known positive": 2}
    none = miner.mine(ANCHOR, POSITIVE, POOL, "hard", 2, known_positives=[[]])
    assert _degrees(none) == [[10, 45]] and none.skipped == {}


def test_the_absolute_margin_keeps_what_is_further_by_the_margin():
    mined = miner.mine(ANCHOR, POSITIVE, POOL, "hard", 2, absolute_margin=0.2)  # keep ≤ 0.3
    assert _degrees(mined) == [[75, 85]] and mined.skipped == {"absolute margin": 3}


def test_the_relative_margin_keeps_a_share_of_the_positive():
    mined = miner.mine(ANCHOR, POSITIVE, POOL, "hard", 2, relative_margin=0.4)  # keep ≤ 0.3
    assert _degrees(mined) == [[75, 85]] and mined.skipped == {"relative margin": 3}
    # The two margins differ: 0.35 of 0.5 keeps ≤ 0.325, 0.35 below 0.5 keeps ≤ 0.15.
    assert _degrees(miner.mine(ANCHOR, POSITIVE, POOL, "hard", 1, relative_margin=0.35)) == [[75]]
    assert _degrees(miner.mine(ANCHOR, POSITIVE, POOL, "hard", 1, absolute_margin=0.35)) == [[85]]


def test_a_candidate_counts_under_the_first_reason_that_applies():
    mined = miner.mine(
        ANCHOR,
        POSITIVE,
        POOL,
        "hard",
        1,
        anchor_group=[0],
        candidate_group=[0, 1, 2, 3, 4, 5, 6],
        anchor_key=[0],
        candidate_key=[0, 0, 1, 2, 3, 4, 5],
        known_positives=[[0, 1, 2]],
        absolute_margin=0.2,
        relative_margin=0.9,
    )
    assert mined.skipped == {
        "same group": 1,
        "same text": 1,
        "known positive": 1,
        "relative margin": 2,  # 75° and 85°: above 0.05, not above 0.3
    }


# ------------------------------------------------------------------- what holds for every strategy

EVERY = (*miner.STRATEGIES, "hard:0.5+random:0.5", "semi_hard:1+cluster:2+category:1")


def _everything(seed: int) -> tuple[tuple[Tensor, Tensor, Tensor], dict]:
    """12 anchors, 40 candidates, and whatever any strategy may ask for."""
    rng = np.random.default_rng(seed)
    options = {
        f"{side}_{name}": rng.integers(0, most, size)
        for side, size in (("anchor", 12), ("candidate", 40))
        for name, most in (("group", 6), ("key", 20), ("category", 3), ("variety", 3))
    }
    features = csr_matrix(rng.random((52, 9)) * (rng.random((52, 9)) < 0.3))
    options |= {"anchor_features": features[:12], "candidate_features": features[12:]}
    return _pool(seed=seed), options | {"known_positives": [[i, i + 12] for i in range(12)]}


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("fallback", miner.FALLBACKS)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_nothing_filtered_and_nothing_twice_and_nothing_silently_missing(strategy, fallback, seed):
    (a, p, pool), options = _everything(seed)
    k = 8
    similarity, own = _cosines(a, pool), _own(a, p)
    allowed = [
        {
            j
            for j in range(40)
            if options["anchor_group"][i] != options["candidate_group"][j]
            and options["anchor_key"][i] != options["candidate_key"][j]
            and j not in options["known_positives"][i]
            and similarity[i, j] <= 0.9
        }
        for i in range(12)
    ]
    if min(map(len, allowed)) < k or not _far_from(similarity, 0.9):
        reject()
    plan = {"clusters": 4, "margin": 0.2, "max_score": 0.9, "fallback": fallback, "generator": _generator(seed)}
    mined = miner.mine(a, p, pool, strategy, k, **options, **plan)
    for i, row in enumerate(mined.indices.tolist()):
        found = k - int(mined.shortfall[i])
        filled = row[found:] if fallback != "none" else []
        assert set(row[:found]) | set(filled) <= allowed[i]
        assert len({*row[:found], *filled}) == found + len(filled)
        if fallback == "none":
            assert row[found:] == [-1] * (k - found) and mined.similarities[i, found:].isnan().all()
        if fallback == "hard":
            rest = sorted(allowed[i] - set(row[:found]), key=lambda j: -similarity[i, j])
            assert filled == rest[: k - found]
    there = mined.indices >= 0
    expected = np.take_along_axis(similarity, mined.indices.clamp_min(0).numpy(), axis=1)
    np.testing.assert_allclose(mined.similarities[there], expected[there], atol=1e-6)
    np.testing.assert_allclose(mined.positive_similarity, own, atol=1e-6)
    found = there.any(dim=1).numpy()
    difficulty = np.nanmean(np.where(there, expected, np.nan)[found], axis=1) - own[found] + 1
    np.testing.assert_allclose(mined.difficulty()[found], difficulty, atol=1e-5)
    assert mined.difficulty()[~found].isnan().all()


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("numbers", [1, 100, 1500])
def test_slices_change_nothing(monkeypatch, strategy, numbers):
    """The first lists hold 400 to 12,000 numbers; anchors that need deeper ones are asked for in slices, too."""
    (a, p, pool), options = _everything(3)
    options |= {"relative_margin": -0.4, "margin": 0.3, "fallback": "none"}
    whole = miner.mine(a, p, pool, strategy, 4, **options)
    slices, real = [], mining.filter_out
    monkeypatch.setattr(mining, "filter_out", lambda found: slices.append(len(found.rows)) or real(found))
    _in_slices(monkeypatch, numbers)
    parts = miner.mine(a, p, pool, strategy, 4, **options)
    assert numbers > 100 or max(slices) < 12
    assert torch.equal(parts.indices, whole.indices) and torch.equal(parts.shortfall, whole.shortfall)
    assert parts.skipped == whole.skipped
    torch.testing.assert_close(parts.similarities, whole.similarities, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("strategy", EVERY)
def test_other_anchors_in_the_same_call_change_nothing(strategy):
    """What is drawn hangs on the anchor's number, so those before stay as they are."""
    (a, p, pool), options = _everything(5)
    few = {name: x[:7] if "anchor" in name or "known" in name else x for name, x in options.items()}
    if "cluster" in strategy or "semi" in strategy:
        options["fallback"] = few["fallback"] = "none"
    all_of_them = miner.mine(a, p, pool, strategy, 3, **options)
    some = miner.mine(a[:7], p[:7], pool, strategy, 3, **few)
    assert torch.equal(some.indices, all_of_them.indices[:7])


@pytest.mark.parametrize("strategy", EVERY)
def test_calls_for_slices_of_the_anchors_find_what_one_call_for_all_finds(strategy):
    (a, p, pool), options = _everything(11)
    clusters = torch.arange(40) % 3
    options |= {"clusters": clusters, "max_score": 0.5, "fallback": "random"}
    whole = miner.mine(a, p, pool, strategy, 3, **options)
    assert whole.skipped["max score"] and (strategy != "semi_hard" or whole.shortfall.any())
    parts = []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        ours = {name: x[start:stop] if "anchor" in name or "known" in name else x for name, x in options.items()}
        parts.append(miner.mine(a[start:stop], p[start:stop], pool, strategy, 3, first_anchor=start, **ours))
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
    assert torch.equal(torch.cat([part.shortfall for part in parts]), whole.shortfall)
    skipped = sum((Counter(part.skipped) for part in parts), Counter())
    assert skipped == whole.skipped


def test_cluster_takes_clusters_that_the_caller_made():
    anchor, positive, pool = _circle(0), _circle(10), _circle(20, 30, 40, 50, 60, 70)
    clusters = torch.tensor([4, 9, 4, 9, 9, 4])  # the nearest of each: 20° and 30°
    mined = miner.mine(anchor, positive, pool, "cluster", 2, clusters=clusters)
    assert sorted(mined.indices[0].tolist()) == [0, 1]
    with pytest.raises(ValueError, match="clusters must name the cluster of each of the 6 candidates, not of 5"):
        miner.mine(anchor, positive, pool, "cluster", 2, clusters=clusters[:5])


@pytest.mark.parametrize("strategy", ["random", "category", "distance_weighted", "ambiguous", "hard:0.5+random:0.5"])
def test_another_generator_draws_others(strategy):
    (a, p, pool), options = _everything(0)
    first, again, other = (
        miner.mine(a, p, pool, strategy, 3, generator=_generator(seed), **options).indices for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


# ------------------------------------------------------------------- fallbacks


def test_the_random_fallback_is_random_and_the_hard_one_is_hard():
    """Nothing is semi-hard at margin 0, so that everything comes from the fallback."""
    many, positives = ANCHOR.expand(300, 2), POSITIVE.expand(300, 2)
    hard = miner.mine(many, positives, POOL, "semi_hard", 1, margin=0.0, fallback="hard")
    assert set(hard.indices[:, 0].tolist()) == {0} and (hard.shortfall == 1).all()
    spread = miner.mine(many, positives, POOL, "semi_hard", 1, margin=0.0)
    assert (np.bincount(spread.indices[:, 0], minlength=7) > 15).all()


def test_lengths_and_precision_of_the_embeddings_do_not_matter():
    a, p, pool = _pool()
    plain = miner.mine(a, p, pool, "hard", 3)
    scaled = miner.mine(100 * a.double(), 0.01 * p.double(), pool.double() * torch.arange(1, 41)[:, None], "hard", 3)
    assert torch.equal(plain.indices, scaled.indices) and plain.similarities.dtype == scaled.similarities.dtype
    torch.testing.assert_close(plain.similarities, scaled.similarities)


def test_mining_gives_no_gradient():
    a, p, pool = (x.requires_grad_() for x in _pool())
    mined = miner.mine(a, p, pool, "hard", 2)
    assert not mined.similarities.requires_grad and not mined.positive_similarity.requires_grad


# ------------------------------------------------------------------- errors


def test_unknown_names_are_errors_that_list_the_known():
    with pytest.raises(ValueError, match="unknown strategy 'easy'; choose from random, hard, semi_hard, cluster, cat"):
        miner.mine(ANCHOR, POSITIVE, POOL, "easy", 1)
    with pytest.raises(ValueError, match="unknown fallback 'easy'; choose from random, hard, none"):
        miner.mine(ANCHOR, POSITIVE, POOL, "hard", 1, fallback="easy")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_embeddings_are_named_with_their_rows(place, value):
    inputs = [x.clone() for x in _pool()]
    inputs[place][3, 1] = inputs[place][7, 0] = value
    name = ("anchors", "positives", "candidates")[place]
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite numbers in 2 rows: 3, 7"):
        miner.mine(*inputs, "hard", 1)


def test_shapes_must_fit():
    a, p, pool = _pool()
    with pytest.raises(
        ValueError, match=r"dimensions differ: anchors \[12, 6\], positives \[12, 6\], candidates \[40, 5"
    ):
        miner.mine(a, p, pool[:, :5], "hard", 1)
    with pytest.raises(ValueError, match="one positive for each anchor: 12 anchors, 11 positives"):
        miner.mine(a, p[:-1], pool, "hard", 1)
    with pytest.raises(ValueError, match=r"anchors must be \[rows, d\]"):
        miner.mine(a[0], p, pool, "hard", 1)


@pytest.mark.parametrize("k", [0, -1, 8])
def test_num_negatives_must_fit_the_pool(k):
    with pytest.raises(ValueError, match=f"num_negatives must lie between 1 and the pool's 7 sentences, not {k}"):
        miner.mine(ANCHOR, POSITIVE, POOL, "hard", k)


@pytest.mark.parametrize(
    ("strategy", "need"),
    [
        ("category", "category"),
        ("hard:1+category:1", "category"),
        ("lexical", "features"),
        ("same_root", "features"),
        ("dialect_twin", "features"),
        ("dialect_twin", "variety"),
    ],
)
def test_what_a_strategy_needs_is_asked_for(strategy, need):
    given = (
        {} if need == "features" else {"anchor_features": csr_matrix((1, 2)), "candidate_features": csr_matrix((7, 2))}
    )
    with pytest.raises(ValueError, match=f"needs anchor_{need} and candidate_{need}"):
        miner.mine(ANCHOR, POSITIVE, POOL, strategy, 1, **given)


@pytest.mark.parametrize(("rows", "columns"), [((2, 3), (7, 3)), ((1, 3), (6, 3)), ((1, 3), (7, 4)), (None, (7, 3))])
def test_features_must_fit(rows, columns):
    ours, theirs = (shape and csr_matrix(shape) for shape in (rows, columns))
    with pytest.raises(ValueError, match=r"anchor_features and candidate_features must be \[1, V\] and \[7, V\], not"):
        miner.mine(ANCHOR, POSITIVE, POOL, "lexical", 1, anchor_features=ours, candidate_features=theirs)


@pytest.mark.parametrize("name", ["group", "key", "category", "variety"])
@pytest.mark.parametrize(("anchor", "candidate"), [([0], [0] * 6), ([0, 1], [0] * 7), ([0], None), (None, [0] * 7)])
def test_codes_must_have_a_code_for_each_row(name, anchor, candidate):
    match = f"anchor_{name} and candidate_{name} must have 1 and 7 codes, not"
    with pytest.raises(ValueError, match=match):
        miner.mine(ANCHOR, POSITIVE, POOL, "hard", 1, **{f"anchor_{name}": anchor, f"candidate_{name}": candidate})


@pytest.mark.parametrize("known", [[], [[0], [1]]])
def test_known_positives_must_have_a_list_for_each_anchor(known):
    with pytest.raises(ValueError, match="known_positives"):
        miner.mine(ANCHOR, POSITIVE, POOL, "hard", 1, known_positives=known)


@pytest.mark.parametrize(
    ("known", "match"),
    [
        ([[0], [3, 7]], "known_positives of anchor 1 has candidate 7; the pool has 0 to 6"),
        ([[-1], []], "known_positives of anchor 0 has candidate -1; the pool has 0 to 6"),
        ([[0, 6], [5, 1, 5]], "known_positives of anchor 1 has candidate 5 twice"),
    ],
)
def test_known_positives_must_be_candidates_each_once(known, match):
    with pytest.raises(ValueError, match=match):
        miner.mine(_circle(0, 1), _circle(60, 61), POOL, "hard", 1, known_positives=known)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"range_min": 3, "range_max": 3}, "range_min must be 0 or more and below range_max, not 3 with range_max=3"),
        ({"range_min": -1}, "range_min must be 0 or more and below range_max, not -1"),
        (
            {"range_min": 1, "range_max": 3, "num_negatives": 3},
            "from range_min=1 to range_max=3 are fewer than num_neg",
        ),
        ({"strategy": "random", "range_min": 1}, "are for strategies that rank; random does not"),
        ({"strategy": "cluster", "sampling_strategy": "random"}, "are for strategies that rank; cluster does not"),
        ({"sampling_strategy": "best"}, "unknown sampling_strategy 'best'; choose from top, random"),
        ({"strategy": "cluster", "clusters": 0}, "clusters must be at least 1, not 0"),
        ({"strategy": {}}, "a mixture needs at least one strategy"),
        ({"strategy": {"hard": 0}}, "the weight of strategy 'hard' must be a number above 0, not 0"),
        ({"strategy": {"hard": 1, "random": float("nan")}}, "the weight of strategy 'random' must be a number above 0"),
        ({"strategy": "hard:0.5+random:-0.5"}, "the weight of strategy 'random' must be a number above 0, not '-0.5'"),
        ({"strategy": "hard:much"}, "the weight of strategy 'hard' must be a number above 0, not 'much'"),
        ({"strategy": "hard:0.5+hard:0.5"}, "strategy 'hard' comes twice"),
        ({"strategy": "hard+easy"}, "unknown strategy 'easy'"),
    ],
)
def test_words_that_do_not_fit(options, match):
    with pytest.raises(ValueError, match=match):
        miner.mine(ANCHOR, POSITIVE, POOL, **{"strategy": "hard", "num_negatives": 1} | options)


def test_an_empty_pool_and_zero_vectors_and_other_types_are_errors():
    with pytest.raises(ValueError, match=r"candidates must be \[rows, d\] with at least one row"):
        miner.mine(ANCHOR, POSITIVE, POOL[:0], "random", 1)
    for place, name in enumerate(("anchors", "positives", "candidates")):
        inputs = [x.clone() for x in (ANCHOR, POSITIVE, POOL)]
        inputs[place][0] = 0
        with pytest.raises(ValueError, match=f"{name} holds zero vectors.* in 1 rows: 0"):
            miner.mine(*inputs, "random", 1)
    with pytest.raises(ValueError, match=r"types of numbers differ: .* candidates float64"):
        miner.mine(ANCHOR, POSITIVE, POOL.double(), "random", 1)
    with pytest.raises(ValueError, match=r"dimensions differ: anchors \[1, 2\], a pool of width 3"):
        miner.mine(ANCHOR, POSITIVE, search.ExactPool(_random(7, 3)), "random", 1)


@pytest.mark.parametrize("fallback", ["random", "hard"])
def test_a_filter_that_leaves_too_few_names_the_anchor_and_the_reasons(monkeypatch, fallback):
    anchors, positives = _circle(0, 0, 180), _circle(60, 100, 180)
    match = (
        r"anchor 1: the filter leaves 2 of 7 candidates, fewer than num_negatives=3 \(taken out: 5 absolute margin\); "
        "enlarge the pool, lower num_negatives, relax the margins, or choose the fallback 'none'"
    )
    for numbers in (2**21, 1):
        _in_slices(monkeypatch, numbers)
        with pytest.raises(ValueError, match=match):
            miner.mine(anchors, positives, POOL, "random", 3, absolute_margin=0.1, fallback=fallback)
    with pytest.raises(ValueError, match=r"anchor 0: the filter leaves 1 of 7 .* 6 same group"):
        miner.mine(ANCHOR, POSITIVE, POOL, "hard", 2, anchor_group=[1], candidate_group=[1, 1, 1, 1, 1, 1, 0])


# ------------------------------------------------------------------- difficulty and hardness


def test_difficulty_is_1_at_a_tie_and_runs_from_minus_1_to_3():
    positive, negative = torch.tensor([0.5, 1.0, -1.0, 0.75]), torch.tensor([0.5, -1.0, 1.0, 0.5])
    assert miner.difficulty(positive, negative).tolist() == [1.0, -1.0, 3.0, 0.75]


def test_hardness_has_facenets_boundaries():
    positive = torch.full((6,), 0.5)
    negative = torch.tensor([0.75, 0.5, 0.5 - 2**-20, 0.25, 0.25 - 2**-20, -1.0])
    names = ["hard", "hard", "semi_hard", "semi_hard", "easy", "easy"]
    assert miner.hardness(positive, negative, 0.25) == names


def test_hardness_needs_a_negative_for_each_positive():
    with pytest.raises(ValueError):
        miner.hardness(torch.zeros(2), torch.zeros(3), 0.1)


def test_semi_hard_mining_gives_what_hardness_calls_semi_hard():
    a, p, pool = _pool(rows=30, columns=100)
    mined = miner.mine(a, p, pool, "semi_hard", 1, margin=0.3)
    found = mined.shortfall == 0
    assert found.sum() > 20
    names = miner.hardness(mined.positive_similarity[found], mined.similarities[found, 0], 0.3)
    assert set(names) == {"semi_hard"}
