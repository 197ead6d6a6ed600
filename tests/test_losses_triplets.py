"""Losses with a margin: against loops written from the papers, on a circle, properties, bad input."""

import losses_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_oracle import TOLERANCE, WIDTH, assert_same, compare, on_circle, random_batch, random_rows
from torch import Tensor

from gate_lessons import losses

IN_BATCH = {
    losses.batch_hard_triplet: oracle.batch_hard,
    losses.batch_semi_hard_triplet: oracle.batch_semi_hard,
    losses.batch_all_triplet: oracle.batch_all,
}
in_batch = pytest.mark.parametrize("loss", IN_BATCH, ids=lambda loss: loss.__name__)
LABELS = [3, 3, 3, -7, -7, 0, 3, -7, 5, 5]  # one of them alone


def _labelled_batch() -> Tensor:
    """Embeddings for `LABELS`, of which the first two are positives that point away from each other."""
    x = random_rows(len(LABELS), WIDTH, seed=4)
    x[1] = 0.3 * x[1] - x[0]
    return x


def _triplets(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return a, p, n[:, 0]


# ------------------------------------------------------------------- the loops


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_triplet_equals_the_loop(dtype, margin):
    compare(
        lambda *x: losses.triplet(*x, margin),
        lambda *x: oracle.triplet(*x, margin),
        *_triplets(*random_batch()),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", [(0.5, 0.1, 0.8), (0.5, 0.7, -0.1), (0.0, 0.2, 0.0)])
def test_adaptive_triplet_equals_the_loop(dtype, options):
    """The options are margin, penalty and penalty_from."""
    compare(
        lambda *x: losses.adaptive_triplet(*x, *options),
        lambda *x: oracle.adaptive(*x, *options),
        *_triplets(*random_batch()),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 2.0])
@in_batch
def test_triplets_of_a_batch_equal_the_loop(dtype, margin, loss):
    label = torch.tensor(LABELS)
    compare(
        lambda x: loss(x, label, margin),
        lambda x: IN_BATCH[loss](x, LABELS, margin),
        _labelled_batch(),
        dtype=dtype,
    )


def test_the_batch_of_the_loops_holds_every_case():
    """Positive pairs with and without a negative beyond them; triplets that violate a small margin, and that do not."""
    x, found = _labelled_batch(), []
    oracle.batch_semi_hard(x, LABELS, 0.1, found)
    assert set(found) == {True, False}
    similarity, kept = losses.cosine_matrix(x, x), set()
    for a, p, n in ((a, p, n) for a in range(10) for p in range(10) for n in range(10)):
        if a != p and LABELS[a] == LABELS[p] != LABELS[n]:
            kept.add(bool(similarity[a, n] - similarity[a, p] + 0.1 > 0))
    assert kept == {True, False}


@in_batch
def test_the_default_margin_is_0_3(loss):
    x, label = random_rows(len(LABELS), WIDTH), torch.tensor(LABELS)
    assert loss(x, label) == loss(x, label, 0.3)
    assert losses.triplet(*_triplets(*random_batch())) == losses.triplet(*_triplets(*random_batch()), 0.3)


# ------------------------------------------------------------------- on a circle


def _cos(degrees: float) -> float:
    return on_circle(degrees)[0, 0].item()


def test_perfect_triplets_cost_what_the_margin_asks_beyond_1():
    basis = torch.eye(5, dtype=torch.float64)
    a, n = basis[:4], basis[4:].expand(4, -1)
    assert losses.triplet(a, 3 * a, n, 1.0).item() == 0
    assert losses.triplet(a, 3 * a, n, 1.25).item() == pytest.approx(0.25)


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative():
    x = on_circle(0, 20, 50, 65, 120)
    label = torch.tensor([1, 1, 1, 2, 3])  # those at 65° and 120° have no positive: they are no anchors
    expected = [_cos(65) - _cos(50), _cos(45) - _cos(30), _cos(15) - _cos(50)]
    costs = [max(0, cost + 0.2) for cost in expected]
    assert costs[0] == 0 and all(costs[1:])
    assert losses.batch_hard_triplet(x, label, 0.2).item() == pytest.approx(sum(costs) / 3)


def test_batch_semi_hard_takes_the_negative_just_beyond_the_positive():
    x = on_circle(0, 40, 20, 60, 120)
    label = torch.tensor([1, 1, 2, 3, 4])
    # For 0° the negative at 60°, past 20°; for 40° the one at 120°, since 20° and 60° are nearer than the positive.
    expected = (_cos(60) - _cos(40) + 0.7 + _cos(80) - _cos(40) + 0.7) / 2
    assert losses.batch_semi_hard_triplet(x, label, 0.7).item() == pytest.approx(expected)


def test_batch_semi_hard_without_a_negative_beyond_takes_the_least_similar():
    x = on_circle(0, 90, 30, 60)
    label = torch.tensor([1, 1, 2, 3])  # both negatives lie between the positives
    expected = _cos(60) - _cos(90) + 0.1  # 60° away from either
    assert losses.batch_semi_hard_triplet(x, label, 0.1).item() == pytest.approx(expected)


def test_batch_semi_hard_passes_a_negative_exactly_as_near_as_the_positive():
    """The positive's sentence stands in the batch under a second label; the other negative is orthogonal to all."""
    x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = losses.batch_semi_hard_triplet(x, torch.tensor([1, 1, 2, 3]), 0.9)
    assert found.item() == pytest.approx(0.9 - _cos(45))


def test_batch_all_averages_over_the_violating_triplets_only():
    x = on_circle(0, 40, 50, 170)
    label = torch.tensor([1, 1, 2, 3])
    violating = [_cos(50) - _cos(40) + 0.2, _cos(10) - _cos(40) + 0.2]  # the one at 170° is far enough from both
    assert losses.batch_all_triplet(x, label, 0.2).item() == pytest.approx(sum(violating) / 2)


def test_the_mean_over_violating_triplets_rises_when_the_smallest_violation_is_repaired():
    """Anchors 0 and 1 violate by 0.01 and 0.41. With a nearer positive only the greater violation is left to count."""
    before = torch.eye(3, dtype=torch.float64)
    before = oracle.moved(oracle.moved(before, 0, 1, 0.29), 1, 2, 0.4)
    label = torch.tensor([1, 1, 2])
    assert losses.batch_all_triplet(oracle.placed(before), label, 0.3).item() == pytest.approx(0.21)
    after = oracle.moved(before, 0, 1, 0.02)
    assert losses.batch_all_triplet(oracle.placed(after), label, 0.3).item() == pytest.approx(0.39)


def test_a_positive_that_comes_nearer_than_a_negative_makes_it_semi_hard_and_the_loss_rise():
    """By its rule the loss jumps where a negative changes sides, so that it is not monotone in each similarity."""
    before = torch.eye(4, dtype=torch.float64)
    for one, other, similarity in ((0, 1, 0.10), (0, 2, 0.11), (0, 3, -0.3), (1, 2, -0.3), (1, 3, -0.3)):
        before = oracle.moved(before, one, other, similarity)
    label = torch.tensor([1, 1, 2, 3])
    assert losses.batch_semi_hard_triplet(oracle.placed(before), label, 0.3).item() == 0
    nearer = oracle.moved(before, 0, 1, 0.02)
    assert losses.batch_semi_hard_triplet(oracle.placed(nearer), label, 0.3).item() == pytest.approx(0.29 / 2)
    harder_still = oracle.moved(nearer, 0, 2, 0.02)
    assert losses.batch_semi_hard_triplet(oracle.placed(harder_still), label, 0.3).item() == 0


# ------------------------------------------------------------------- no valid triplet, identical, antipodal


@pytest.mark.parametrize(
    "label",
    [[0], [0, 0], [0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]],
    ids=["one", "a pair", "two alone", "no positives", "no negatives"],
)
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
@in_batch
def test_without_a_valid_triplet_the_loss_and_its_gradient_are_exactly_zero(loss, label, margin):
    rows = random_rows(len(label), WIDTH)
    for x in (rows, torch.zeros_like(rows), rows[:1].expand_as(rows)):
        for dtype in TOLERANCE:
            oracle.assert_costs_nothing(lambda x: loss(x, torch.tensor(label), margin), x, dtype=dtype)


@in_batch
def test_without_a_violation_the_loss_and_its_gradient_are_exactly_zero(loss):
    x = on_circle(0, 1, 180, 181)
    oracle.assert_costs_nothing(lambda x: loss(x, torch.tensor([0, 0, 1, 1]), 1.9), x)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("label", [LABELS, [0] * 5 + [1] * 5, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
@in_batch
def test_identical_antipodal_and_zero_vectors_are_finite(loss, margin, label):
    x = random_rows(len(label), WIDTH)
    signs = torch.tensor([1.0, -1.0] * 5, dtype=x.dtype)[:, None]
    for rows in (x, x[:1].expand_as(x), x[:1] * signs, torch.zeros_like(x), x * signs.clamp_min(0), x * 1e-7):
        oracle.assert_finite(lambda rows: loss(rows, torch.tensor(label), margin), rows)


@in_batch
def test_identical_embeddings_cost_the_margin(loss):
    x = random_rows(1, WIDTH).expand(6, -1)
    assert loss(x, torch.tensor([0, 0, 1, 1, 2, 3]), 0.25).item() == pytest.approx(0.25)


# ------------------------------------------------------------------- the adaptive margin


def test_the_adaptive_margin_carries_no_gradient():
    """With the margin's s(a,p) differentiated the pull on the positive would be 1 + margin times as strong."""
    inputs = _triplets(*random_batch())
    plain = oracle.value_and_gradients(lambda *x: losses.triplet(*x, 2.0), *inputs)  # 2.0: every row is violated
    adaptive = oracle.value_and_gradients(lambda *x: losses.adaptive_triplet(*x, 5.0, 0.0), *inputs)
    assert_same(adaptive[1:], plain[1:], 1e-12)


def test_the_adaptive_margin_runs_from_the_full_margin_to_none():
    a, p, n = on_circle(0, 0), on_circle(90, 0), on_circle(180, 180)
    _, parts = losses.adaptive_triplet(a, p, n, margin=0.5, return_parts=True)
    assert parts["margin"].tolist() == pytest.approx([0.5, 0.0])


# ------------------------------------------------------------------- properties

batches = {"rows": st.integers(1, 9), "classes": st.integers(1, 4), "seed": st.integers(0, 10**6)}


def _labelled(rows: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    label = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    return random_rows(rows, 6, seed=seed), label


@in_batch
@settings(max_examples=40, deadline=None)
@given(**batches)
def test_neither_the_order_nor_the_names_of_the_labels_matter(loss, rows, classes, seed):
    x, label = _labelled(rows, classes, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    found = loss(x[order], 10**6 - 17 * label[order], 0.4)
    torch.testing.assert_close(found, loss(x, label, 0.4), rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    places=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    by=st.floats(0.01, 0.45),
)
def test_batch_hard_falls_with_a_positive_and_rises_with_a_negative(classes, seed, places, by):
    _, label = _labelled(7, classes, seed)
    one, other = places
    if one == other:
        return
    similarities = oracle.random_similarities(7, seed)
    before, after = (
        losses.batch_hard_triplet(oracle.placed(s), label, 0.4).item()
        for s in (similarities, oracle.moved(similarities, one, other, by))
    )
    if label[one] == label[other]:
        assert after <= before + 1e-12
    else:
        assert after >= before - 1e-12


@pytest.mark.parametrize("loss", [losses.triplet, losses.adaptive_triplet])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), place=st.sampled_from([1, 2]), by=st.floats(0.01, 0.45))
def test_triplets_fall_with_the_positive_and_rise_with_the_negative(loss, seed, place, by):
    similarities = oracle.random_similarities(3, seed)
    before, after = (
        loss(*oracle.placed(s).unsqueeze(1), 1.0).item()
        for s in (similarities, oracle.moved(similarities, 0, place, by))
    )
    assert after <= before if place == 1 else after >= before


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(1, 4), seed=st.integers(0, 10**6), margin=st.floats(0, 2))
def test_semi_hard_triplets_never_cost_more_than_the_hardest(classes, seed, margin):
    """In classes of two, where either loss is a mean over the anchors."""
    x = random_rows(2 * classes, 6, seed=seed)
    label = torch.arange(classes).repeat(2)
    hard = losses.batch_hard_triplet(x, label, margin)
    assert losses.batch_semi_hard_triplet(x, label, margin) <= hard + 1e-12


# ------------------------------------------------------------------- bad input


@in_batch
def test_a_batch_needs_two_axes_and_a_label_for_each(loss):
    x, label = random_rows(4, 3), torch.arange(4)
    for wrong, labels in ((x[0], label), (x[None], label), (x, label[:-1]), (x, label[:, None]), (x, label[0])):
        shapes = f"got {list(wrong.shape)} and {list(labels.shape)}".replace("[", r"\[").replace("]", r"\]")
        with pytest.raises(ValueError, match=rf"expected \[B, d\] and one label each, {shapes}"):
            loss(wrong, labels)
