import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from gate_lessons import metrics
from gate_lessons.metrics import Interval


def _pairs(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and gold scores that go together somewhat, with many ties on both sides."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 6, count).astype(float)
    return np.round(score / 5 + rng.normal(0, 0.5, count), 1), score


# ---------------------------------------------------------------------------------------------- point values


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_scipy_with_ties(seed):
    similarity, score = _pairs(seed=seed)
    assert metrics.spearman(similarity, score) == pytest.approx(stats.spearmanr(similarity, score)[0], abs=1e-12)
    assert metrics.pearson(similarity, score) == pytest.approx(stats.pearsonr(similarity, score)[0], abs=1e-12)


def test_spearman_sees_order_and_pearson_sees_lines():
    x = np.arange(1.0, 20)
    assert metrics.spearman(np.exp(x), x) == pytest.approx(1)
    assert metrics.spearman(-np.exp(x), x) == pytest.approx(-1)
    assert metrics.pearson(3 * x - 7, x) == pytest.approx(1)
    assert metrics.pearson(np.exp(x), x) < 0.7


def test_a_constant_has_no_correlation():
    assert math.isnan(metrics.spearman(np.ones(5), np.arange(5)))
    assert math.isnan(metrics.pearson(np.ones(5), np.arange(5)))


def test_a_tie_is_a_miss():
    assert metrics.triplet_accuracy([0.9, 0.5, 0.1, 0.4], [0.1, 0.5, 0.2, 0.3]) == 0.5


def test_triplet_accuracy_equals_a_loop():
    positive, negative = np.random.default_rng(0).normal(size=(2, 101))
    assert (
        metrics.triplet_accuracy(positive, negative)
        == sum(p > n for p, n in zip(positive, negative, strict=True)) / 101
    )


# ---------------------------------------------------------------------------------------------- retrieval


def _retrieved(k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [40, 12], the best k ids of each row, best first, and one relevant id a row."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(40, 12))
    return scores, np.argsort(-scores, axis=1)[:, :k], rng.integers(12, size=40)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_ndcg_equals_scikit_learn(k):
    scores, retrieved, relevant = _retrieved(k)
    gains = np.eye(12)[relevant]
    expected = [ndcg_score(gains[[row]], scores[[row]], k=k) for row in range(40)]
    np.testing.assert_allclose(metrics.ndcg(retrieved, relevant), expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_reciprocal_rank_and_recall_equal_loops(k):
    _, retrieved, relevant = _retrieved(k)
    ranks, found = [], []
    for row, wanted in zip(retrieved.tolist(), relevant.tolist(), strict=True):
        ranks.append(1 / (row.index(wanted) + 1) if wanted in row else 0.0)
        found.append(float(wanted in row))
    np.testing.assert_array_equal(metrics.reciprocal_rank(retrieved, relevant), ranks)
    np.testing.assert_array_equal(metrics.recall(retrieved, relevant), found)


def test_retrieval_by_hand_with_names_for_ids():
    retrieved = np.array([["a", "b", "c"], ["b", "c", "a"], ["c", "b", "d"]])
    relevant = np.array(["a", "a", "a"])  # first, third, missed
    np.testing.assert_allclose(metrics.reciprocal_rank(retrieved, relevant), [1, 1 / 3, 0])
    np.testing.assert_allclose(metrics.ndcg(retrieved, relevant), [1, 0.5, 0])  # 1/log2(4)
    np.testing.assert_allclose(metrics.recall(retrieved, relevant), [1, 1, 0])


# ---------------------------------------------------------------------------------------------- geometry


def _circle(angles: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1))


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_alignment_of_pairs_at_an_angle(degrees):
    """‖x − y‖² = 2 − 2·cos on the sphere, whatever the lengths."""
    angles = np.linspace(0, 5, 7)
    first, second = 3 * _circle(angles), 0.2 * _circle(angles + np.deg2rad(degrees))
    assert metrics.alignment(first, second) == pytest.approx(2 - 2 * np.cos(np.deg2rad(degrees)), abs=1e-12)


@pytest.mark.parametrize(("degrees", "t"), [(0, 2.0), (60, 2.0), (180, 2.0), (90, 0.5)])
def test_uniformity_of_two_points(degrees, t):
    points = _circle(np.deg2rad([10, 10 + degrees])) * torch.tensor([[5.0], [0.1]])
    expected = -t * (2 - 2 * np.cos(np.deg2rad(degrees)))  # one pair: log exp(−t·d²)
    assert metrics.uniformity(points, t) == pytest.approx(expected, abs=1e-10)


def test_uniformity_of_collapse_is_zero_and_antipodes_reach_the_bound():
    assert metrics.uniformity(torch.ones(6, 4)) == pytest.approx(0, abs=1e-6)
    assert metrics.uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)


def test_uniformity_of_an_even_circle():
    """n points evenly on a circle: the mean over angles 2π·j/n, j = 1 … n−1; for large n it is e^(−2t)·I₀(2t)."""
    from scipy.special import ive

    n = 2000
    even = _circle(2 * np.pi * np.arange(n) / n)
    steps = 2 - 2 * np.cos(2 * np.pi * np.arange(1, n) / n)
    assert metrics.uniformity(even) == pytest.approx(np.log(np.exp(-2 * steps).mean()), abs=1e-9)
    assert metrics.uniformity(even) == pytest.approx(np.log(ive(0, 4)), abs=5e-3)


def test_uniformity_equals_a_loop_over_distinct_pairs():
    rows = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    terms = [np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(12) for j in range(i)]
    assert metrics.uniformity(rows) == pytest.approx(np.log(np.mean(terms)), abs=1e-12)


def _rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def _naive_rank(rows: torch.Tensor) -> float:
    """By way of the eigenvalues of the products of all rows of length 1: they are the squared singular values."""
    unit = np.array([row / np.sqrt((row**2).sum()) for row in rows.double().numpy()])
    values = np.sqrt(np.linalg.eigvalsh(unit @ unit.T).clip(0))
    shares = [value / values.sum() for value in values if value > 1e-7]
    return float(np.exp(-sum(share * np.log(share) for share in shares)))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (1, 4), (8, 8)])
def test_effective_rank_equals_a_naive_computation(shape):
    assert metrics.effective_rank(_rows(*shape)) == pytest.approx(_naive_rank(_rows(*shape)), rel=1e-5)


def test_effective_rank_of_a_line_is_1_and_of_an_orthonormal_set_its_size():
    line = torch.tensor([[1.0], [-2.0], [0.5]]) * _rows(1, 6)
    assert metrics.effective_rank(line) == pytest.approx(1, abs=1e-4)
    assert metrics.effective_rank(torch.ones(7, 3)) == pytest.approx(1, abs=1e-4)
    turned = torch.linalg.qr(_rows(6, 6)).Q
    assert metrics.effective_rank(turned) == pytest.approx(6, rel=1e-5)
    assert metrics.effective_rank(turned[:4]) == pytest.approx(4, rel=1e-5)
    assert metrics.effective_rank(turned.repeat(3, 1)) == pytest.approx(6, rel=1e-5)


def test_effective_rank_by_hand():
    """Three rows on one axis, one on another: singular values √3 and 1."""
    rows = torch.eye(4)[[0, 0, 0, 2]]
    share = 3**0.5 / (3**0.5 + 1)
    expected = np.exp(-share * np.log(share) - (1 - share) * np.log(1 - share))
    assert metrics.effective_rank(rows) == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_effective_rank_lies_between_1_and_what_fits_and_no_length_matters(count, width, seed):
    rows = _rows(count, width, seed)
    found = metrics.effective_rank(rows)
    assert 1 - 1e-4 <= found <= min(count, width) + 1e-4
    lengths = torch.logspace(-3, 3, count)[:, None]
    assert metrics.effective_rank(rows * lengths) == pytest.approx(found, rel=1e-3)


def test_effective_rank_of_half_precision_is_that_of_its_numbers():
    rows = _rows(12, 5).bfloat16()
    assert metrics.effective_rank(rows) == pytest.approx(metrics.effective_rank(rows.float()), rel=1e-6)


def _naive_accuracy(anchors: torch.Tensor, positives: torch.Tensor, group: list[int]) -> float:
    right = 0
    for i, anchor in enumerate(anchors.double()):
        cosines = [float(anchor @ p / p.norm()) for p in positives.double()]
        right += group[cosines.index(max(cosines))] == group[i]
    return right / len(anchors)


@pytest.mark.parametrize("seed", range(4))
def test_retrieval_accuracy_equals_a_loop_whatever_the_lengths(seed):
    anchors = _rows(40, 4, seed)
    positives = (anchors + 0.6 * _rows(40, 4, seed + 10)) * torch.logspace(-2, 2, 40)[:, None]
    group = torch.arange(40) % 5
    alone = metrics.retrieval_accuracy(anchors, positives)
    together = metrics.retrieval_accuracy(anchors, positives, group)
    assert alone == pytest.approx(_naive_accuracy(anchors, positives, list(range(40))))
    assert together == pytest.approx(_naive_accuracy(anchors, positives, group.tolist()))
    assert 0 < alone < together < 1


def test_retrieval_accuracy_counts_a_tie_within_a_group():
    """Rows 0 and 1 have one answer. Each finds the first of the two, which is only row 0's own."""
    anchors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    positives = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert metrics.retrieval_accuracy(anchors, positives) == pytest.approx(2 / 3)
    assert metrics.retrieval_accuracy(anchors, positives, torch.tensor([5, 5, 2])) == 1
    assert metrics.retrieval_accuracy(anchors, positives, torch.tensor([5, 2, 2])) == pytest.approx(2 / 3)


def test_retrieval_accuracy_of_collapse_is_chance():
    assert metrics.retrieval_accuracy(torch.ones(8, 3), torch.ones(8, 3)) == pytest.approx(1 / 8)


# ---------------------------------------------------------------------------------------------- intervals


def _draws(count: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(count, size=(resamples, count))


def test_the_bootstrap_equals_a_loop_over_the_same_draws():
    items = np.random.default_rng(1).normal(size=37)
    means = [sum(items[i] for i in draw) / 37 for draw in _draws(37, 300, seed=5)]
    found = metrics.bootstrap(items, resamples=300, seed=5)
    np.testing.assert_allclose(found, [items.mean(), *np.percentile(means, [2.5, 97.5])], atol=1e-12)


def test_the_bootstrap_averages_over_seeds_and_draws_items():
    """Seeds that disagree on every item but agree on the item's mean leave nothing to be uncertain about."""
    flip = np.tile([0.0, 1.0], 20)
    found = metrics.bootstrap(np.stack([flip, 1 - flip]))
    assert found == Interval(0.5, 0.5, 0.5)
    rows = np.random.default_rng(0).normal(size=(3, 30))
    assert metrics.bootstrap(rows) == metrics.bootstrap(rows.mean(axis=0))


def test_the_bootstrap_is_seeded():
    items = np.random.default_rng(0).normal(size=30)
    assert metrics.bootstrap(items, seed=1) == metrics.bootstrap(items, seed=1)
    assert metrics.bootstrap(items, seed=1) != metrics.bootstrap(items, seed=2)


def test_the_interval_is_near_the_normal_one():
    items = np.random.default_rng(0).normal(3, 2, size=400)
    found = metrics.bootstrap(items)
    half = 1.96 * items.std() / np.sqrt(400)
    np.testing.assert_allclose(found, [items.mean(), items.mean() - half, items.mean() + half], atol=0.1 * half)


def test_95_percent_intervals_cover_the_truth_about_95_times_in_100():
    """400 simulated tests of 80 items with a known rate; 3.3 standard errors of 95 % are 3.6 points."""
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(400):
        found = metrics.bootstrap(rng.random(80) < 0.7, resamples=400, seed=seed)
        covered.append(found.low <= 0.7 <= found.high)
    assert 0.91 < np.mean(covered) < 0.985


def test_a_paired_difference_is_surer_than_two_separate_intervals():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=200)
    better, worse = difficulty + 0.1 + rng.normal(0, 0.05, 200), difficulty
    paired = metrics.bootstrap(better - worse)
    alone = metrics.bootstrap(better)
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def _spearman_loop(similarity: np.ndarray, score: np.ndarray, draws: np.ndarray) -> list[float]:
    rows = np.atleast_2d(similarity)
    return [np.mean([stats.spearmanr(row[draw], score[draw])[0] for row in rows]) for draw in draws]


@pytest.mark.parametrize("seeds", [1, 3])
def test_bootstrapped_spearman_equals_a_loop(seeds):
    similarity = np.stack([_pairs(seed=seed)[0] for seed in range(seeds)])
    score = _pairs()[1]
    draws = _draws(60, 100, seed=4)
    found = metrics.bootstrap_spearman(similarity if seeds > 1 else similarity[0], score, resamples=100, seed=4)
    estimate = np.mean([stats.spearmanr(row, score)[0] for row in similarity])
    ends = np.percentile(_spearman_loop(similarity, score, draws), [2.5, 97.5])
    np.testing.assert_allclose(found, [estimate, *ends], atol=1e-12)


def test_the_difference_of_two_spearmans_uses_the_same_draws():
    (first, score), second = _pairs(), np.stack([_pairs(seed=seed)[0] for seed in (8, 9)])
    draws = _draws(60, 100, seed=4)
    found = metrics.bootstrap_spearman(first, score, second, resamples=100, seed=4)
    difference = np.subtract(_spearman_loop(first, score, draws), _spearman_loop(second, score, draws))
    estimate = stats.spearmanr(first, score)[0] - np.mean([stats.spearmanr(row, score)[0] for row in second])
    np.testing.assert_allclose(found, [estimate, *np.percentile(difference, [2.5, 97.5])], atol=1e-12)


def test_a_system_minus_itself_is_exactly_zero():
    similarity, score = _pairs()
    assert metrics.bootstrap_spearman(similarity, score, similarity) == Interval(0, 0, 0)


@pytest.mark.parametrize("count", [0, 1])
def test_an_interval_needs_two_items(count):
    with pytest.raises(ValueError, match=f"at least two items, not {count}"):
        metrics.bootstrap(np.ones((3, count)))
    with pytest.raises(ValueError, match=f"at least two items, not {count}"):
        metrics.bootstrap_spearman(np.ones(count), np.ones(count))


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (-0.1, 0.0, False)],
)
def test_an_interval_that_touches_zero_is_no_difference(low, high, excludes):
    assert Interval((low + high) / 2, low, high).excludes_zero is excludes


def test_an_interval_prints_three_numbers():
    assert str(Interval(0.12345, -0.5, 1)) == "0.123 [-0.500, 1.000]"
