"""The softmax family: against loops written from the papers, closed forms, properties, bad input."""

import math

import losses_oracle as oracle
import pytest
import torch
from losses_oracle import (
    BATCH,
    DIRECTIONS,
    MODES,
    TOLERANCE,
    WIDTH,
    assert_same,
    compare,
    random_batch,
    random_candidates,
    random_mask,
    random_rows,
    value_and_gradients,
)
from torch import Tensor

from gate_lessons import losses
from gate_lessons.losses import ranking

SUBSETS = [
    ("query_to_doc",),
    ("doc_to_query", "query_to_doc"),
    ("query_to_doc", "query_to_query"),
    ("doc_to_doc", "query_to_doc"),
    DIRECTIONS,
]


def _mask(masked: bool, columns: int) -> Tensor | None:
    return random_mask(BATCH, columns) if masked else None


# ------------------------------------------------------------------- the loops


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_info_nce_equals_the_loop(dtype, temperature):
    compare(
        lambda *x: losses.info_nce(*x, temperature),
        lambda *x: oracle.info_nce(*x, temperature),
        *random_batch(),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_ranking_equals_the_loop(dtype, extra, masked):
    a, c = random_candidates(extra)
    mask = _mask(masked, len(c))
    compare(
        lambda *x: losses.multiple_negatives_ranking(*x, 0.1, mask),
        lambda *x: oracle.ranking(*x, 0.1, mask),
        a,
        c,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("of_each_row", [False, True])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_ranking_with_weights_memory_and_first_equals_the_loop(monkeypatch, dtype, masked, first, of_each_row, block):
    """Two of five anchors, everybody's candidates, a memory behind them, and a weight for every column."""
    monkeypatch.setattr(ranking, "MEMORY_BLOCK", block)
    a, c = random_rows(2, WIDTH), random_rows(7, WIDTH, seed=1)
    memory = losses.unit(random_rows(3, WIDTH, seed=2))
    shape = (2, 10) if of_each_row else (10,)
    weights = random_rows(*shape, seed=3).exp()
    mask = None
    if masked:
        mask = torch.zeros(2, 10, dtype=torch.bool)
        mask[0, 4] = mask[0, 8] = mask[1, 6] = mask[1, 9] = True
    compare(
        lambda a, c: losses.multiple_negatives_ranking(
            a, c, 0.1, mask, weights=weights, memory=memory.to(a.dtype), first=first
        ),
        lambda a, c: oracle.ranking(a, torch.cat([c, memory]), 0.1, mask, weights.expand(2, 10), first),
        a,
        c,
        dtype=dtype,
    )


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_memory_that_is_masked_for_an_anchor_adds_nothing_to_its_loss(monkeypatch, block):
    """One anchor sees none of the memory, the other only its last row, however far from the others that one lies."""
    monkeypatch.setattr(ranking, "MEMORY_BLOCK", block)
    a, c, memory = random_rows(2, WIDTH), random_rows(4, WIDTH, seed=1), losses.unit(random_rows(3, WIDTH, seed=2))
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 4:] = mask[1, 4:6] = True

    def row_by_row(a: Tensor, c: Tensor) -> Tensor:
        with_the_last = torch.cat([c, memory[2:]])
        return (oracle.ranking(a[:1], c, 0.1) + oracle.ranking(a[1:], with_the_last, 0.1, first=1)) / 2

    compare(
        lambda a, c: losses.multiple_negatives_ranking(a, c, 0.1, mask, memory=memory.to(a.dtype)),
        row_by_row,
        a,
        c,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", [1.5, 9.0])
def test_hardness_weighting_equals_the_loop(dtype, mode, masked, strength):
    a, c = random_candidates(2)
    mask = _mask(masked, len(c))
    compare(
        lambda *x: losses.hardness_weighted_ranking(*x, 0.2, mask, strength, mode),
        lambda *x: oracle.hardness_weighted(*x, 0.2, mask, strength, mode),
        a,
        c,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prior", [0.0, 0.01, 0.1, 0.5])
def test_debiased_ranking_equals_the_loop(dtype, masked, prior):
    a, c = random_candidates(2)
    mask = _mask(masked, len(c))
    c = c.clone()
    c[1] = a[1] + 0.1 * c[1]  # an answer so near that less than nothing is left for the true negatives
    at_least = []
    oracle.debiased(a, c, 0.12, mask, prior, at_least)
    assert at_least[1] == (prior > 0) and not all(at_least)
    compare(
        lambda *x: losses.debiased_ranking(*x, 0.12, mask, prior),
        lambda *x: oracle.debiased(*x, 0.12, mask, prior),
        a,
        c,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("extra", [0, 2])
def test_symmetric_ranking_equals_the_loop(dtype, masked, extra):
    a, c = random_candidates(extra)
    mask = _mask(masked, len(c))
    compare(
        lambda *x: losses.symmetric_ranking(*x, 0.2, mask),
        lambda *x: oracle.symmetric(*x, 0.2, mask),
        a,
        c,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("directions", SUBSETS)
@pytest.mark.parametrize("extra", [0, 2])
def test_multi_direction_ranking_equals_the_loop(dtype, masked, directions, extra):
    a, c = random_candidates(extra)
    mask = _mask(masked, len(c))
    compare(
        lambda *x: losses.multi_direction_ranking(*x, 0.2, mask, directions),
        lambda *x: oracle.multi_direction(*x, 0.2, mask, directions),
        a,
        c,
        dtype=dtype,
    )


def test_by_default_all_negatives_are_weighted_by_5_a_hundredth_is_false_and_all_four_directions_count():
    a, c = random_candidates(2)
    mask = _mask(True, len(c))
    for ours, loop in (
        (losses.hardness_weighted_ranking, oracle.hardness_weighted(a, c, 0.05, mask, 5.0, "all_negatives")),
        (losses.debiased_ranking, oracle.debiased(a, c, 0.05, mask, 0.01)),
        (losses.multi_direction_ranking, oracle.multi_direction(a, c, 0.05, mask, DIRECTIONS)),
    ):
        torch.testing.assert_close(ours(a, c, mask=mask), loop, rtol=1e-12, atol=1e-12)
    assert losses.DIRECTIONS == DIRECTIONS


def test_a_learned_temperature_gets_the_gradient_of_the_loop():
    a, c = random_candidates(2)
    c[1] = a[1]  # in the debiased loss its row costs log(1 + N·e^(−2/τ)), which τ moves too
    temperature, mask = torch.tensor(0.3), _mask(True, len(c))
    for ours, loop in (
        (losses.multiple_negatives_ranking, oracle.ranking),
        (losses.symmetric_ranking, oracle.symmetric),
        (
            lambda *x: losses.hardness_weighted_ranking(*x, strength=2.0),
            lambda *x: oracle.hardness_weighted(*x, 2.0, "all_negatives"),
        ),
        (lambda *x: losses.debiased_ranking(*x, prior=0.5), lambda *x: oracle.debiased(*x, 0.5)),
        (losses.multi_direction_ranking, lambda *x: oracle.multi_direction(*x, DIRECTIONS)),
    ):
        found, expected = (value_and_gradients(lambda *x, f=f: f(*x, mask), a, c, temperature) for f in (ours, loop))
        assert_same(found, expected, 1e-12)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("margin", [0.0, 0.2, -0.1])
def test_the_guide_masks_what_it_takes_for_nearer_than_the_answer(first, margin):
    a, c = random_rows(4, 3), random_rows(9, 3, seed=1)
    expected = [
        [j != first + i and bool(oracle.cos(a[i], c[j]) > oracle.cos(a[i], c[first + i]) - margin) for j in range(9)]
        for i in range(4)
    ]
    mask = losses.guide_mask(a, c, margin, first)
    assert mask.tolist() == expected
    assert 4 < mask.sum() < 28
    leaf = a.clone().requires_grad_()
    assert not losses.guide_mask(leaf, c, margin, first).requires_grad


def test_the_guides_margin_moves_the_line_below_the_answer():
    """The answer at 60°, cosine 0.5; candidates at cosines 0.71, 0.42 and 0."""
    anchor, c = oracle.on_circle(0), oracle.on_circle(60, 45, 65, 90)
    assert losses.guide_mask(anchor, c).tolist() == [[False, True, False, False]]
    assert losses.guide_mask(anchor, c, 0.1).tolist() == [[False, True, True, False]]
    assert losses.guide_mask(anchor, c, 0.51).tolist() == [[False, True, True, True]]


def test_a_copy_of_the_answer_is_masked_only_with_a_margin():
    """Above the answer, not at it, as in sentence-transformers: the surest false negative needs a margin."""
    c = torch.eye(3)[[0, 1, 0, 2]]
    assert losses.guide_mask(c[:2], c).tolist() == [[False] * 4] * 2
    assert losses.guide_mask(c[:2], c, 1e-6).tolist() == [[False, False, True, False], [False] * 4]


# ------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_perfect_embeddings_give_the_closed_form(temperature):
    """Own answer at cosine 1, all else at 0: log(1 + others · e^(−1/τ))."""
    rows, extra = 4, 4
    basis = torch.eye(rows + extra, dtype=torch.float64)
    a, rest = basis[:rows], basis[rows:]
    c = torch.cat([a, rest])

    def closed(others: int, answers: int = 1) -> float:
        return math.log(answers + others * math.exp(-1 / temperature))

    for found, expected in (
        (losses.info_nce(a, 3 * a, rest.expand(rows, extra, -1), temperature), closed(extra)),
        (losses.multiple_negatives_ranking(a, a, temperature), closed(rows - 1)),
        (losses.multiple_negatives_ranking(a, c, temperature), closed(rows + extra - 1)),
        # e^(strength · 0) = 1: orthogonal negatives are not weighted at all
        (losses.hardness_weighted_ranking(a, c, temperature), closed(rows + extra - 1)),
        (losses.symmetric_ranking(a, c, temperature), (closed(rows + extra - 1) + closed(rows - 1)) / 2),
        # the answer stands in it twice; 7 + 3 + 3 negatives, and six documents of other anchors
        (losses.multi_direction_ranking(a, c, temperature), closed(7 + 3 + 3 + 6, answers=2)),
    ):
        assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_one_negative_counts_e_to_the_strength_times_its_cosine(temperature):
    a, c = oracle.on_circle(0), oracle.on_circle(0, 60)
    expected = math.log1p(math.exp(4 * 0.5 + 0.5 / temperature - 1 / temperature))
    assert losses.hardness_weighted_ranking(a, c, temperature, strength=4).item() == pytest.approx(expected)


@pytest.mark.parametrize("prior", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_debiased_ranking_takes_the_false_share_out_but_leaves_the_least_value(temperature, prior):
    a = oracle.on_circle(0)
    # Answer at cosine 0.5, both negatives at 0.5: of what they all are, 1 − prior is left, and over 1 − prior.
    alike = losses.debiased_ranking(a, oracle.on_circle(60, 60, -60), temperature, prior=prior)
    assert alike.item() == pytest.approx(math.log(3), rel=1e-9)
    # Answer at 1, negatives at −1: nothing less than e^(−1/τ) can be.
    least = losses.debiased_ranking(a, oracle.on_circle(0, 180, 180), temperature, prior=prior)
    assert least.item() == pytest.approx(math.log1p(2 * math.exp(-2 / temperature)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
@pytest.mark.parametrize("beyond", [-1e-3, -1e-6, -1e-8, 0.0, 1e-8, 1e-6, 1e-3])
def test_debiased_ranking_is_finite_where_the_true_negatives_vanish(temperature, beyond):
    """One negative with e^(s/τ) half of the answer's: at prior 0.5 it is all false, and log 0 is near."""
    own = 0.9
    s_n = own + temperature * math.log(0.5) + beyond
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    c = torch.tensor([[s, math.sqrt(1 - s * s)] for s in (own, s_n)], dtype=torch.float64)
    for dtype in TOLERANCE:
        oracle.assert_finite(lambda a, c: losses.debiased_ranking(a, c, temperature, prior=0.5), a, c, dtype=dtype)
    if beyond <= 0:
        found = losses.debiased_ranking(a, c, temperature, prior=0.5).item()
        assert found == pytest.approx(math.log1p(math.exp((-1 - own) / temperature)), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
def test_nothing_to_rank_against_costs_nothing(temperature):
    a, p, n = random_batch()
    oracle.assert_costs_nothing(lambda a, p, n: losses.info_nce(a, p, n, temperature), a, p, n[:, :0])
    for loss in (losses.multiple_negatives_ranking, losses.hardness_weighted_ranking, losses.symmetric_ranking):
        oracle.assert_costs_nothing(lambda a, p, f=loss: f(a, p, temperature), a[:1], p[:1])
    for prior in (0.0, 0.01, 0.5):
        oracle.assert_costs_nothing(
            lambda a, p, prior=prior: losses.debiased_ranking(a, p, temperature, prior=prior), a[:1], p[:1]
        )
    # Where the answer stands a second time the loss cannot fall below log 2.
    alone = losses.multi_direction_ranking(a[:1], p[:1], temperature)
    assert alone.item() == pytest.approx(math.log(2))
    without = ("query_to_doc", "query_to_query", "doc_to_doc")
    oracle.assert_costs_nothing(
        lambda a, p: losses.multi_direction_ranking(a, p, temperature, directions=without), a[:1], p[:1]
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_a_row_whose_negatives_are_all_masked_costs_nothing(temperature):
    """Row 0 alone is masked, so that the loss is that of the other rows over B; the loops say the same."""
    a, c = random_candidates(2)
    mask = torch.zeros(BATCH, len(c), dtype=torch.bool)
    mask[0, 1:] = True
    plain = losses.multiple_negatives_ranking(a, c, temperature, mask)
    others = losses.multiple_negatives_ranking(a[1:], c, temperature, first=1)
    assert plain.item() == pytest.approx(others.item() * 4 / 5, rel=1e-9)
    everything = torch.ones_like(mask).fill_diagonal_(False)
    for ours, loop in (
        (losses.hardness_weighted_ranking, lambda *x: oracle.hardness_weighted(*x, 5.0, "all_negatives")),
        (losses.debiased_ranking, lambda *x: oracle.debiased(*x, 0.01)),
        (losses.symmetric_ranking, oracle.symmetric),
        (losses.multi_direction_ranking, lambda *x: oracle.multi_direction(*x, DIRECTIONS)),
    ):
        found, expected = (value_and_gradients(lambda *x, f=f: f(*x, temperature, mask), a, c) for f in (ours, loop))
        assert_same(found, expected, 1e-12)
        if ours is not losses.multi_direction_ranking:
            oracle.assert_costs_nothing(lambda *x, f=ours: f(*x, temperature, everything), a, c)


@pytest.mark.parametrize("temperature", [0.005, 0.05, 10.0])
@pytest.mark.parametrize("prior", [0.0, 0.01, 0.5])
def test_debiased_ranking_is_finite_with_a_masked_row(temperature, prior):
    a, c = random_candidates(2)
    mask = _mask(True, len(c))
    mask[0, 1:] = True
    for anchor in (a, torch.zeros_like(a), c[:BATCH], -c[:BATCH]):
        oracle.assert_finite(lambda *x: losses.debiased_ranking(*x, temperature, mask, prior), anchor, c)


@pytest.mark.parametrize("strength", [0.0, 5.0, 20.0, 80.0, 120.0])
@pytest.mark.parametrize("mode", MODES)
def test_hardness_weighting_is_finite_at_every_strength(strength, mode):
    a, c = random_candidates(2)
    c[1], c[2] = a[0], -a[0]  # in the batch a negative at cosine 1 and one at −1
    c[BATCH], c[2 * BATCH] = a[0], -a[0]  # and of its own hard negatives too
    oracle.assert_finite(lambda *x: losses.hardness_weighted_ranking(*x, 0.05, None, strength, mode), a, c)


# ------------------------------------------------------------------- the tutorial's mistake


def _tutorials_ranking(a: Tensor, p: Tensor, n: Tensor, temperature: float) -> Tensor:
    """The tutorial's: all positives, then all negatives, then `view`, so that row i is not anchor i."""
    positives = torch.stack([oracle.cos(a[i], p[i]) for i in range(len(a))]) / temperature
    negatives = [oracle.cos(a[i], n[i, j]) / temperature for i in range(len(a)) for j in range(n.shape[1])]
    logits = torch.cat([positives, torch.stack(negatives)]).view(len(a), -1)
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(a)))


def test_the_tutorials_ranking_is_another_number():
    """Perfect embeddings: own answer at cosine 1, negatives at 0. The tutorial's logits are all equal in each row."""
    basis = torch.eye(7, dtype=torch.float64)
    a = basis[:4]
    n = basis[4:].expand(4, 3, -1)
    assert _tutorials_ranking(a, a, n, 1.0).item() == pytest.approx(math.log(4))
    assert losses.info_nce(a, a, n, 1.0).item() == pytest.approx(math.log1p(3 * math.exp(-1)))
    right = losses.multiple_negatives_ranking(a, torch.cat([a, n.flatten(0, 1)]), 1.0).item()
    assert right == pytest.approx(math.log1p(15 * math.exp(-1)))


def test_the_tutorials_ranking_sees_no_gain_in_a_perfect_positive():
    """Rows 2 … B of the tutorial's logits hold negatives only, so positives at cosine 1 or 0 cost the same there."""
    basis = torch.eye(7, dtype=torch.float64)
    a, n = basis[:4], basis[4:].expand(4, 3, -1)
    unrelated = basis[[4, 5, 6, 4]]
    assert _tutorials_ranking(a, a, n, 1.0).item() == _tutorials_ranking(a, unrelated, n, 1.0).item()
    for ours in (
        lambda p: losses.info_nce(a, p, n, 1.0),
        lambda p: losses.multiple_negatives_ranking(a, torch.cat([p, n.flatten(0, 1)]), 1.0),
    ):
        assert ours(a) < ours(unrelated) - 0.3
