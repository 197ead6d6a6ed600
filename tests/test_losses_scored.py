"""Losses of sentence pairs with scores: against loops written from the papers, closed forms, properties, bad input."""

import math

import losses_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_oracle import BATCH, TEMPERATURES, TOLERANCE, assert_same, compare, on_circle, random_batch, random_rows
from torch import Tensor

from gate_lessons import losses

IN_ORDER = {losses.cosent: oracle.cosent, losses.angle: oracle.angle}
in_order = pytest.mark.parametrize("loss", IN_ORDER, ids=lambda loss: loss.__name__)
SCORES = [[1, 2, 3, 4, 5], [0, 0, 1, 1, 0.5], [5, 1, 1, 1, 1], [2, 2, 2, 2, 2]]


def _pairs(width: int = 12) -> tuple[Tensor, Tensor]:
    return random_rows(BATCH, width), random_rows(BATCH, width, seed=1)


# ------------------------------------------------------------------- the loops


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("width", [12, 7, 3])
@in_order
def test_losses_of_the_order_equal_the_loop(loss, dtype, score, width):
    """An odd width leaves the last imaginary part of `angle` at 0."""
    score = torch.tensor(score)
    compare(lambda *x: loss(*x, score, 0.2), lambda *x: IN_ORDER[loss](*x, score, 0.2), *_pairs(width), dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("score", [[1, 0, -1, 1, 0], [0.1, -0.3, 0.5, 0.7, 1.0]])
def test_cosine_regression_equals_the_loop(dtype, score):
    score = torch.tensor(score, dtype=torch.float64 if 0.1 in score else torch.int64)
    compare(
        lambda *x: losses.cosine_regression(*x, score),
        lambda *x: oracle.cosine_regression(*x, score),
        *_pairs(),
        dtype=dtype,
    )


@in_order
def test_a_learned_temperature_gets_the_gradient_of_the_loop(loss):
    score, temperature = torch.tensor(SCORES[0]), torch.tensor(0.3)
    found, expected = (
        oracle.value_and_gradients(lambda x, y, t, f=f: f(x, y, score, t), *_pairs(), temperature)
        for f in (loss, IN_ORDER[loss])
    )
    assert_same(found, expected, 1e-12)


@in_order
def test_the_default_temperature_is_0_05(loss):
    assert loss(*_pairs(), torch.arange(BATCH)) == loss(*_pairs(), torch.arange(BATCH), 0.05)


# ------------------------------------------------------------------- closed forms


def test_cosent_of_equal_scores_is_zero_and_of_one_wrong_pair_is_the_closed_form():
    x, y = on_circle(0, 0), on_circle(0, 90)  # cosines 1 and 0
    assert losses.cosent(x, y, torch.ones(2)).item() == 0
    assert losses.cosent(x, y, torch.tensor([0.0, 1.0]), 0.5).item() == pytest.approx(math.log1p(math.exp(2)))
    assert losses.cosent(x, y, torch.tensor([1.0, 0.0]), 0.5).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_angle_of_two_complex_numbers_is_the_closed_form():
    """d = 2 is one complex number: the similarity is |cos δ + sin δ| of the angle δ from the second to the first."""
    x, y = on_circle(30, 0), on_circle(0, 60)
    similarities = math.cos(math.pi / 6) + 0.5, abs(0.5 - math.sin(math.pi / 3))
    expected = math.log1p(math.exp((similarities[0] - similarities[1]) / 0.5))
    assert losses.angle(x, y, torch.tensor([0.0, 1.0]), 0.5).item() == pytest.approx(expected)


def test_cosine_regression_is_the_mean_squared_difference():
    x, y = on_circle(0, 0, 0), on_circle(0, 90, 180)
    assert losses.cosine_regression(x, y, torch.tensor([1.0, 0.0, -1.0])).item() == pytest.approx(0, abs=1e-12)
    assert losses.cosine_regression(x, y, torch.tensor([0.5, 1.0, -1.0])).item() == pytest.approx(1.25 / 3)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@in_order
def test_without_an_order_the_loss_and_its_gradient_are_exactly_zero(loss, temperature):
    x, y = _pairs()
    for score in (torch.ones(BATCH), torch.zeros(BATCH, dtype=torch.int64)):
        oracle.assert_costs_nothing(lambda x, y, s=score: loss(x, y, s, temperature), x, y)
    oracle.assert_costs_nothing(lambda x, y: loss(x, y, torch.ones(1), temperature), x[:1], y[:1])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@in_order
def test_antipodal_and_zero_pairs_are_finite(loss, temperature):
    x, score = random_rows(BATCH, 7), torch.arange(BATCH)
    signs = torch.tensor([1.0, -1, 0, 1, -1], dtype=x.dtype)[:, None]
    for y in (x, -x, x * signs, torch.zeros_like(x)):
        for score in (torch.arange(BATCH), -torch.arange(BATCH)):
            oracle.assert_finite(lambda x, y, s=score: loss(x, y, s, temperature), x, y)
            oracle.assert_finite(lambda x, y, s=score: losses.cosine_regression(x, y, s / 4), x, y)


def test_the_gradient_of_angle_does_not_die_where_that_of_the_cosine_does():
    """Both pairs at cosine 1, and the scores ask for a difference."""
    x = random_batch()[0][:2]
    score = torch.tensor([0.0, 1.0])
    _, dead, _ = oracle.value_and_gradients(lambda x, y: losses.cosent(x, y, score), x, x)
    _, alive, _ = oracle.value_and_gradients(lambda x, y: losses.angle(x, y, score), x, x)
    assert dead.abs().max() < 1e-12
    assert alive.norm(dim=1).min() > 0.1


# ------------------------------------------------------------------- properties

sizes = {"rows": st.integers(1, 7), "width": st.integers(2, 9), "seed": st.integers(0, 10**6)}


def _drawn(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    score = torch.randint(4, (rows,), generator=torch.Generator().manual_seed(seed)) / 4
    return random_rows(rows, width, seed=seed), random_rows(rows, width, seed=seed + 1), score


@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_swapping_the_sentences_of_the_pairs_changes_nothing_for_the_cosine(rows, width, seed):
    x, y, score = _drawn(rows, width, seed)
    swap = torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    swapped = torch.where(swap, y, x), torch.where(swap, x, y)
    for loss in (losses.cosent, losses.cosine_regression):
        torch.testing.assert_close(loss(*swapped, score), loss(x, y, score), rtol=1e-9, atol=1e-9)


def test_swapping_the_sentences_changes_the_angle():
    x, y = _pairs()
    score = torch.arange(BATCH)
    assert abs(losses.angle(x, y, score, 0.2) - losses.angle(y, x, score, 0.2)) > 0.1


@in_order
@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_only_the_order_of_the_scores_counts(loss, rows, width, seed):
    x, y, score = _drawn(rows, width, seed)
    for same_order in (100 * score - 7, score**3, torch.exp(5 * score)):
        assert loss(x, y, same_order, 0.2) == loss(x, y, score, 0.2)


def test_cosine_regression_asks_for_the_scores_themselves():
    x, y = _pairs()
    score = torch.linspace(0, 1, BATCH)
    assert losses.cosine_regression(x, y, score) != losses.cosine_regression(x, y, score**3)


@in_order
@settings(max_examples=40, deadline=None)
@given(places=st.lists(st.floats(0.05, 0.9), min_size=2, max_size=6), by=st.floats(0.01, 0.1))
def test_a_nearer_best_pair_never_costs_more_and_a_nearer_worst_pair_never_less(loss, places, by):
    """Pairs on a circle, at angles where a greater place is more alike for both: row 0 scores best, the last worst."""
    score = torch.arange(len(places), 0, -1)

    def cost(places: list[float]) -> float:
        # From −45° to 0°, over which cos and cos + sin both rise.
        return loss(on_circle(*(45 * place - 45 for place in places)), on_circle(*[0] * len(places)), score, 0.2).item()

    assert cost([places[0] + by, *places[1:]]) <= cost(places) + 1e-12
    assert cost([*places[:-1], places[-1] + by]) >= cost(places) - 1e-12


@settings(max_examples=40, deadline=None)
@given(degrees=st.floats(1, 179), score=st.floats(-1, 1), share=st.floats(0.01, 1))
def test_cosine_regression_falls_on_the_way_to_the_score(degrees, score, share):
    similarity = on_circle(degrees)[0, 0].item()
    nearer = math.degrees(math.acos(similarity + share * (score - similarity)))
    before, after = (
        losses.cosine_regression(on_circle(d), on_circle(0), torch.tensor([score], dtype=torch.float64)).item()
        for d in (degrees, nearer)
    )
    assert after <= before + 1e-12
    assert after == pytest.approx((1 - share) ** 2 * (similarity - score) ** 2, abs=1e-9)


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize("loss", [losses.cosent, losses.angle, losses.cosine_regression])
def test_every_pair_needs_one_score(loss):
    x, y = _pairs()
    for wrong, shape in ((torch.arange(4), r"\[4\]"), (torch.ones(5, 1), r"\[5, 1\]"), (torch.tensor(1.0), r"\[\]")):
        with pytest.raises(ValueError, match=rf"one score for each pair: expected \[5\], not {shape}"):
            loss(x, y, wrong)
