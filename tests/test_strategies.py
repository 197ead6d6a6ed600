"""Each strategy against a loop over all candidates in float64, or, where it draws, against its probabilities."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch import Tensor

from gate_lessons import miner
from gate_lessons.miner import strategies
from gate_lessons.search import ExactPool


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _pool(rows: int, columns: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = _generator(seed)
    anchors = torch.randn(rows, width, generator=g)
    positives = anchors + 0.7 * torch.randn(rows, width, generator=g)
    return anchors, positives, torch.randn(columns, width, generator=g)


def _cosines(a: Tensor, b: Tensor) -> np.ndarray:
    a, b = a.double().numpy(), b.double().numpy()
    return np.array([[x @ y / math.sqrt((x @ x) * (y @ y)) for y in b] for x in a])


def _circle(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


# ------------------------------------------------------------------- what ranks

WANTED = {
    "hard": lambda s, own, o: True,
    "semi_hard": lambda s, own, o: own - o["margin"] <= s < own,
    "positive_aware": lambda s, own, o: s <= own - o.get("relative_margin", 0.05) * abs(own),
    "positive_aware_absolute": lambda s, own, o: s <= own - o.get("absolute_margin", 0.05),
}
KEEPS = {
    "absolute_margin": lambda s, own, x: s <= own - x,
    "relative_margin": lambda s, own, x: s <= own - x * abs(own),
    "max_score": lambda s, own, x: s <= x,
    "min_score": lambda s, own, x: s >= x,
}


def _walk(similarity, own: float, positives: set[int], strategy: str, k: int, o: dict) -> list[int]:
    """The obvious way: sort all candidates, walk down, count ranks."""
    taken, rank, passed = [], 0, 0
    for j in sorted(range(len(similarity)), key=lambda j: (-similarity[j], j)):
        if j in positives:
            continue
        rank += 1
        if o.get("range_max") is not None and rank > o["range_max"]:
            break
        s = similarity[j]
        if not WANTED[strategy](s, own, o) or not all(keep(s, own, o[x]) for x, keep in KEEPS.items() if x in o):
            continue
        passed += 1
        if passed > o.get("range_min", 0) and len(taken) < k:
            taken.append(j)
    return taken


@st.composite
def _options(draw) -> dict:
    o = {"margin": draw(st.floats(0.01, 0.8))}
    for name, least, most in (
        ("absolute_margin", -0.5, 0.3),
        ("relative_margin", -0.5, 0.3),
        ("max_score", 0.0, 0.9),
        ("min_score", -0.9, 0.2),
    ):
        if draw(st.booleans()):
            o[name] = draw(st.floats(least, most))
    if draw(st.booleans()):
        o["range_min"] = draw(st.integers(0, 6))
    if draw(st.booleans()):
        o["range_max"] = o.get("range_min", 0) + draw(st.integers(4, 30))
    return o


@pytest.mark.parametrize("strategy", WANTED)
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 4), o=_options())
def test_what_ranks_equals_the_walk_down_all_candidates(strategy, seed, k, o):
    a, p, pool = _pool(6, 150, seed=seed)
    rng = np.random.default_rng(seed)
    group, candidate_group = rng.integers(0, 4, 6), rng.integers(0, 4, 150)
    known = [rng.choice(150, rng.integers(0, 4), replace=False).tolist() for _ in range(6)]
    similarity, own = _cosines(a, pool), np.diag(_cosines(a, p))
    edges = [own, own - o["margin"], own - 0.05 * abs(own), own - 0.05]
    edges += [own - o.get("absolute_margin", 0), own - o.get("relative_margin", 0) * abs(own)]
    edges += [np.full(6, o.get("max_score", 2)), np.full(6, o.get("min_score", -2))]
    if min(np.abs(similarity - edge[:, None]).min() for edge in edges) < 1e-6:
        reject()  # a cosine lies on an edge, to within float32
    same = {"anchor_group": group, "candidate_group": candidate_group, "known_positives": known}
    mined = miner.mine(a, p, pool, strategy, k, **same, **o, fallback="none")
    for i in range(6):
        positives = set(known[i]) | set(np.flatnonzero(candidate_group == group[i]).tolist())
        expected = _walk(similarity[i], own[i], positives, strategy, k, o)
        assert mined.indices[i].tolist() == expected + [-1] * (k - len(expected))
        assert int(mined.shortfall[i]) == k - len(expected)


def test_equal_similarities_come_by_the_lower_number():
    pool = _circle(40, 20, 40, 20, 40, 20)
    mined = miner.mine(_circle(0), _circle(10), pool, "hard", 5)
    assert mined.indices.tolist() == [[1, 3, 5, 0, 2]]


def test_a_random_sample_of_the_ranks_is_uniform_and_stays_inside():
    """Ranks 2 to 7 of 40, after the positives are taken out."""
    draws = 3000
    pool = _circle(*(4 * j for j in range(40)))
    a, p = _circle(0).expand(draws, 2), _circle(30).expand(draws, 2)
    window = {"range_min": 2, "range_max": 8, "sampling_strategy": "random", "known_positives": [[0, 3]] * draws}
    mined = miner.mine(a, p, pool, "hard", 2, **window)
    inside = [4, 5, 6, 7, 8, 9]  # 1 and 2 are passed over, 0 and 3 are positives
    counts = np.bincount(mined.indices.flatten(), minlength=40)
    assert set(np.flatnonzero(counts)) == set(inside)
    expected = 2 * draws / 6
    assert ((counts[inside] - expected) ** 2 / expected).sum() < 20.5  # χ², 5 degrees of freedom, once in a thousand
    default = miner.mine(a, p, pool, "hard", 1, sampling_strategy="random")
    assert set(default.indices.flatten().tolist()) == set(range(10))  # 10 · num_negatives


def test_a_long_way_down_is_found_by_longer_lists(monkeypatch):
    """900 of 1,000 candidates are nearer than the positive; only those anchors are asked for again."""
    asked, real = [], ExactPool.nearest
    monkeypatch.setattr(ExactPool, "nearest", lambda self, q, k: asked.append((len(q), k)) or real(self, q, k))
    pool = _circle(*np.linspace(0, 180, 1000))
    a, p = _circle(0, 0, 0), _circle(162.05, 1, 162.05)
    mined = miner.mine(a, p, pool, "semi_hard", 1, margin=0.1)
    assert mined.indices[:, 0].tolist() == [900, 6, 900] and mined.shortfall.sum() == 0
    assert asked[0][0] == 3 and {n for n, _ in asked[1:]} == {2} and asked[-1][1] == 1000


# ------------------------------------------------------------------- what draws


def _frequencies(strategy: str, a: Tensor, p: Tensor, pool: Tensor, draws: int, **options) -> np.ndarray:
    """How often each candidate is the first choice of one anchor."""
    mined = miner.mine(a.expand(draws, -1), p.expand(draws, -1), pool, strategy, 1, **options)
    assert mined.shortfall.sum() == 0
    return np.bincount(mined.indices[:, 0], minlength=len(pool))


def _fits(counts: np.ndarray, probability: np.ndarray) -> bool:
    """χ² within four standard deviations of its mean; what is impossible never happened."""
    likely = probability > 0
    expected = counts.sum() * probability[likely]
    freedom = likely.sum() - 1
    statistic = ((counts[likely] - expected) ** 2 / expected).sum()
    return counts[~likely].sum() == 0 and statistic < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("width", [2, 3, 8])
def test_distance_weighted_draws_with_the_inverse_density(width):
    """Wu et al. (2017), section 4: distances below 0.5 count as 0.5, none from 1.4 up."""
    g = _generator(4)
    a, p = torch.randn(1, width, generator=g), torch.randn(1, width, generator=g)
    mix = torch.linspace(0, 2, 60)[:, None]
    pool = torch.nn.functional.normalize((1 - mix) * a + mix * torch.randn(60, width, generator=g), dim=1)
    distance = np.sqrt(2 - 2 * _cosines(a, pool)[0])
    density = np.maximum(distance, 0.5)
    density = density ** (width - 2) * (1 - density**2 / 4) ** ((width - 3) / 2)
    weight = np.where(distance < 1.4, 1 / density, 0)
    assert (distance < 0.5).sum() > 3 and (distance > 1.4).sum() > 3
    keep = np.array([j % 7 != 0 for j in range(60)])
    known = [np.flatnonzero(~keep).tolist()] * 6000
    counts = _frequencies("distance_weighted", a, p, pool, 6000, known_positives=known)
    assert _fits(counts, weight * keep / (weight * keep).sum())


def test_distance_weighted_prefers_as_pytorch_metric_learnings_miner(monkeypatch):
    from pytorch_metric_learning import miners
    from pytorch_metric_learning.utils import loss_and_miner_utils

    a, p, pool = _pool(1, 50, width=5, seed=2)
    seen = []
    monkeypatch.setattr(
        loss_and_miner_utils, "get_random_triplet_indices", lambda *_, weights, **__: seen.append(weights)
    )
    peer = miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
    peer.mine(a, torch.tensor([0]), pool, torch.arange(1, 51))
    assert _fits(_frequencies("distance_weighted", a, p, pool, 5000), seen[0][0].double().numpy())


def test_distance_weighted_looks_at_a_batch_of_a_large_pool(monkeypatch):
    """Not at 5,000 candidates but at some 256, each as likely: else the nearest would be taken every time."""
    looked, real = [], strategies.DistanceWeighted.prefer
    monkeypatch.setattr(
        strategies.DistanceWeighted, "prefer", lambda self, found: looked.append(found.indices) or real(self, found)
    )
    a, p, pool = _pool(30, 5000, width=64)
    mined = miner.mine(a, p, pool, "distance_weighted", 2)
    drawn = torch.cat([x.flatten() for x in looked])
    assert looked[0].shape == (30, 256) and mined.shortfall.sum() == 0
    nearest = torch.tensor(_cosines(a, pool)).topk(2, dim=1).indices
    assert (mined.indices == nearest).float().mean() < 0.2
    drawn = drawn[drawn >= 0]
    assert abs(drawn.double().mean() / 2499.5 - 1) < 4 * 0.577 / math.sqrt(len(drawn))


def test_ambiguous_draws_around_the_positive():
    """Zhou et al. (2022): p ∝ exp(−a·(s − s_p − b)²), among the nearest only."""
    a, p = _circle(0), _circle(60)
    pool = _circle(*(1.5 * j for j in range(1, 110)))
    similarity = _cosines(a, pool)[0]
    weight = np.exp(-strategies.SHARPNESS * (similarity - 0.5 - strategies.OFFSET) ** 2)
    weight[3] = 0
    weight[101:] = 0  # the hundred nearest, one of all being a positive
    counts = _frequencies("ambiguous", a, p, pool, 6000, known_positives=[[3]] * 6000)
    likely = weight / weight.sum() > 1e-3
    assert _fits(np.where(likely, counts, 0), np.where(likely, weight, 0) / weight[likely].sum())
    assert counts[~likely].sum() < 6000 * 2 * weight[~likely].sum() / weight.sum() + 10
    near = _frequencies("ambiguous", a, p, pool, 500, range_max=30)
    assert near[:30].sum() == 500 and near[30:].sum() == 0


def test_random_is_uniform_in_a_pool_of_which_only_a_part_is_listed():
    """500 candidates, of which the filter takes 400: the first list is too short for most."""
    draws = 4000
    a, p, pool = _pool(1, 500)
    taken = [j for j in range(500) if j % 5]
    counts = _frequencies("random", a, p, pool, draws, known_positives=[taken] * draws)
    probability = np.array([0.01 if j % 5 == 0 else 0.0 for j in range(500)])
    assert _fits(counts, probability)


def test_category_takes_turns():
    """Six negatives from three other categories are two of each."""
    category = np.repeat([0, 1, 2, 3], [5, 40, 300, 90])
    a, p, pool = _pool(50, 435)
    codes = {"anchor_category": np.zeros(50, int), "candidate_category": category}
    mined = miner.mine(a, p, pool, "category", 6, **codes)
    for row in category[mined.indices]:
        assert sorted(row[:3]) == sorted(row[3:]) == [1, 2, 3]


# ------------------------------------------------------------------- what compares features


def _features(seed: int, rows: int = 8, columns: int = 70) -> tuple[csr_matrix, csr_matrix]:
    """Small whole numbers, so that inner products are exact and many are equal or 0."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(-1, 4, (rows + columns, 12)) * (rng.random((rows + columns, 12)) < 0.2)
    return csr_matrix(dense[:rows].astype(float)), csr_matrix(dense[rows:].astype(float))


@pytest.mark.parametrize("strategy", ["lexical", "same_root", "dialect_twin"])
@pytest.mark.parametrize("window", [{}, {"range_min": 1, "range_max": 9}])
@pytest.mark.parametrize("seed", range(4))
def test_features_equal_the_walk_down_their_inner_products(monkeypatch, strategy, window, seed):
    monkeypatch.setattr(strategies, "NUMBERS", 150)
    a, p, pool = _pool(8, 70)
    ours, theirs = _features(seed)
    rng = np.random.default_rng(seed)
    variety, theirs_variety = rng.integers(0, 3, 8), rng.integers(0, 3, 70)
    known = [rng.choice(70, 5, replace=False).tolist() for _ in range(8)]
    varieties = {"anchor_variety": variety, "candidate_variety": theirs_variety} if strategy == "dialect_twin" else {}
    mined = miner.mine(
        a,
        p,
        pool,
        strategy,
        3,
        anchor_features=ours,
        candidate_features=theirs,
        known_positives=known,
        max_score=0.8,
        fallback="none",
        **varieties,
        **window,
    )
    product, similarity = ours.toarray() @ theirs.toarray().T, _cosines(a, pool)
    assert (product <= 0).any() and (product > 0).any()
    for i in range(8):
        order = [j for j in sorted(range(70), key=lambda j: (-product[i, j], j)) if product[i, j] > 0]
        if varieties:
            order = [j for j in order if variety[i] != theirs_variety[j]]
        order = [j for j in order if j not in known[i]][: window.get("range_max")]
        order = [j for j in order if similarity[i, j] <= 0.8][window.get("range_min", 0) :][:3]
        assert mined.indices[i].tolist() == order + [-1] * (3 - len(order))


def test_equal_features_come_by_the_lower_number():
    a, p, pool = _pool(2, 90)
    mined = miner.mine(a, p, pool, "lexical", 3, known_positives=[[0], [1, 4]], **_shared(2, 90))
    assert mined.indices.tolist() == [[1, 2, 3], [0, 2, 3]]


# ------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("mixture", [{"hard": 3, "random": 1}, "hard:3+random:1", "hard:0.75+random:0.25"])
def test_a_mixture_draws_each_negative_by_weight(mixture):
    a, p, pool = _pool(400, 2000)
    mined = miner.mine(a, p, pool, mixture, 4)
    nearest = torch.tensor(_cosines(a[:100], pool)).topk(4, dim=1).indices
    hard = [len(set(row) & set(near)) for row, near in zip(mined.indices[:100].tolist(), nearest.tolist(), strict=True)]
    assert np.mean(hard) / 4 == pytest.approx(0.75, abs=0.08)  # 400 coins: a standard deviation of 0.022
    for count, row, near in zip(hard, mined.indices.tolist(), nearest.tolist(), strict=False):
        assert [j for j in row if j in near] == near[:count]  # the nearest of all first, none left out
        assert len(set(row)) == 4
    assert len(set(hard)) > 2  # drawn for each negative, not once for an anchor


def test_a_mixture_of_what_two_strategies_share_repeats_nothing():
    a, p, pool = _pool(40, 60)
    mined = miner.mine(a, p, pool, "hard+positive_aware+ambiguous+lexical", 20, **_shared(40, 60))
    assert mined.shortfall.sum() == 0 and all(len(set(row)) == 20 for row in mined.indices.tolist())


def _shared(rows: int, columns: int) -> dict:
    return {"anchor_features": csr_matrix(np.ones((rows, 1))), "candidate_features": csr_matrix(np.ones((columns, 1)))}


def test_what_a_part_of_a_mixture_cannot_give_is_a_shortfall():
    """Nothing is semi-hard at margin 0; the places it was drawn for are filled, behind the others."""
    a, p, pool = _pool(200, 500)
    mined = miner.mine(a, p, pool, "semi_hard+hard", 4, margin=0.0, fallback="none")
    assert mined.shortfall.float().mean() == pytest.approx(2, abs=0.3)
    nearest = torch.tensor(_cosines(a, pool)).topk(4, dim=1).indices.tolist()
    for row, near, short in zip(mined.indices.tolist(), nearest, mined.shortfall.tolist(), strict=True):
        assert row == near[: 4 - short] + [-1] * short


def test_parse_gives_shares():
    assert miner.parse("hard") == {"hard": 1.0}
    assert miner.parse("hard:1+random:3") == {"hard": 0.25, "random": 0.75}
    assert miner.parse({"hard": 2, "random": 2}) == miner.parse("hard+random") == {"hard": 0.5, "random": 0.5}


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, {"random": 1.0}),
        (0.25, {"random": 0.75, "hard": 0.25}),
        (1.0, {"hard": 1.0}),
    ],
)
def test_weights_change_in_a_straight_line_over_training(progress, expected):
    assert miner.parse("random:1..0+hard:0..1", progress) == pytest.approx(expected)


def test_a_weight_that_changes_mixes_with_one_that_does_not():
    """Weights 4, from 0 to 12, and 1: half-way 4, 6 and 1."""
    found = miner.parse("hard:4+random:0..12+lexical", 0.5)
    assert found == pytest.approx({"hard": 4 / 11, "random": 6 / 11, "lexical": 1 / 11})
    for progress in (0.0, 0.3, 1.0):
        assert miner.parse("hard:1+random:3", progress) == miner.parse("hard:1+random:3")


@pytest.mark.parametrize(
    ("strategy", "match"),
    [
        ("hard:0..0+random:1", "the weight of strategy 'hard' must be a number above 0, not '0..0'"),
        ("hard:-1..1+random:1", "the weight of strategy 'hard' must be a number above 0, not '-1..1'"),
        ("hard:1..much", "the weight of strategy 'hard' must be a number above 0, not '1..much'"),
        ("hard:..1+random:1", "the weight of strategy 'hard' must be a number above 0, not '..1'"),
        ("hard:1..2..3", "the weight of strategy 'hard' must be a number above 0, not '1..2..3'"),
        ("hard:1..inf", "the weight of strategy 'hard' must be a number above 0, not '1..inf'"),
        ("hard:0..1", "at the beginning and at the end some weight must be above 0, not as in 'hard:0..1'"),
        ("hard:1..0+random:2..0", "at the beginning and at the end some weight must be above 0"),
    ],
)
def test_a_change_of_weights_that_cannot_be_is_refused(strategy, match):
    with pytest.raises(ValueError, match=re.escape(match)):
        miner.parse(strategy, 0.5)


def test_one_mining_has_no_weights_that_change():
    a, p, pool = _pool(4, 20)
    with pytest.raises(ValueError, match=r"the weight of strategy 'random' changes over training, 1\.\.0"):
        miner.mine(a, p, pool, "random:1..0+hard:0..1")
    miner.mine(a, p, pool, "random:1..1+hard:2")
