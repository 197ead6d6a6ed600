"""The softmax family: identities between its losses, properties, bad input."""

import losses_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_oracle import (
    DIRECTIONS,
    MODES,
    WIDTH,
    assert_same,
    random_batch,
    random_candidates,
    random_rows,
    value_and_gradients,
)
from torch import Tensor

from gate_lessons import losses

# The ranking losses that take (anchor, candidates, temperature, mask), by what makes them the plain one.
AS_PLAIN = {
    "hardness_weighted_ranking": {"strength": 0.0},
    "debiased_ranking": {"prior": 0.0},
    "multi_direction_ranking": {"directions": ("query_to_doc",)},
    "symmetric_ranking": {},
}
RANKING = ["multiple_negatives_ranking", *AS_PLAIN]


# ------------------------------------------------------------------- identities

sizes = {
    "rows": st.integers(1, 6),
    "hard": st.integers(0, 2),
    "width": st.integers(2, 9),
    "seed": st.integers(0, 10**6),
}


def _assert_equal_losses(one, other, *inputs: Tensor) -> None:
    assert_same(value_and_gradients(one, *inputs), value_and_gradients(other, *inputs), 1e-9)


@pytest.mark.parametrize("name", [name for name in AS_PLAIN if name != "symmetric_ranking"])
@settings(max_examples=20, deadline=None)
@given(**sizes, temperature=st.sampled_from([0.005, 0.05, 0.5]), masked=st.booleans())
def test_with_nothing_added_it_is_the_plain_ranking_loss(name, rows, hard, width, seed, temperature, masked):
    a, c = random_candidates(hard, seed, rows, width)
    mask = (random_rows(rows, len(c), seed=seed) > 1).fill_diagonal_(False) if masked else None
    _assert_equal_losses(
        lambda *x: getattr(losses, name)(*x, temperature, mask, **AS_PLAIN[name]),
        lambda *x: losses.multiple_negatives_ranking(*x, temperature, mask),
        a,
        c,
    )


@settings(max_examples=20, deadline=None)
@given(**sizes)
def test_weights_of_1_a_mask_of_nothing_and_an_empty_memory_change_nothing(rows, hard, width, seed):
    a, c = random_candidates(hard, seed, rows, width)
    nothing = torch.zeros(rows, len(c), dtype=torch.bool)
    ones = torch.ones(len(c))
    for options in (
        {"weights": ones},
        {"weights": ones.expand(rows, -1)},
        {"mask": nothing},
        {"memory": c[:0]},
        {"mask": nothing, "weights": ones, "memory": c[:0]},
    ):
        _assert_equal_losses(
            lambda *x, options=options: losses.multiple_negatives_ranking(*x, **options),
            losses.multiple_negatives_ranking,
            a,
            c,
        )
    for name in AS_PLAIN:
        loss = getattr(losses, name)
        _assert_equal_losses(lambda *x, f=loss: f(*x, mask=nothing), loss, a, c)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 6), width=st.integers(2, 9), seed=st.integers(0, 10**6), column=st.integers(0, 11))
def test_a_weight_of_2_is_the_same_column_twice(rows, width, seed, column):
    a, c = random_candidates(1, seed, rows, width)
    column %= len(c)
    weights = torch.ones(len(c))
    weights[column] = 2
    mask = torch.zeros(rows, len(c) + 1, dtype=torch.bool)
    if column < rows:
        mask[column, -1] = True  # the copy is no negative for the anchor that it answers
    _assert_equal_losses(
        lambda a, c: losses.multiple_negatives_ranking(a, c, 0.2, weights=weights),
        lambda a, c: losses.multiple_negatives_ranking(a, torch.cat([c, c[column : column + 1]]), 0.2, mask),
        a,
        c,
    )


@settings(max_examples=20, deadline=None)
@given(**sizes)
def test_a_masked_column_might_as_well_be_absent(rows, hard, width, seed):
    """A hard negative, masked for everyone. Weighting by hardness, debiasing, all directions: all forget it."""
    a, c = random_candidates(hard, seed, rows, width)
    more = torch.cat([c, random_rows(rows, width, seed=seed + 9)])
    mask = torch.zeros(rows, len(more), dtype=torch.bool)
    mask[:, len(c) :] = True
    for name in RANKING:
        loss = getattr(losses, name)
        torch.testing.assert_close(loss(a, more, 0.2, mask), loss(a, c, 0.2), rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(**sizes, stored=st.integers(1, 4))
def test_a_memory_is_further_candidates(rows, hard, width, seed, stored):
    a, c = random_candidates(hard, seed, rows, width)
    memory = losses.unit(random_rows(stored, width, seed=seed + 9))
    _assert_equal_losses(
        lambda a, c: losses.multiple_negatives_ranking(a, c, 0.2, memory=memory),
        lambda a, c: losses.multiple_negatives_ranking(a, torch.cat([c, memory]), 0.2),
        a,
        c,
    )


def test_no_gradient_reaches_the_memory():
    a, c = (x.requires_grad_() for x in random_candidates())
    memory = losses.unit(random_rows(4, WIDTH, seed=9)).requires_grad_()
    losses.multiple_negatives_ranking(a, c, 0.2, memory=memory).backward()
    assert a.grad.any() and c.grad.any()
    assert memory.grad is None or not memory.grad.any()


@settings(max_examples=20, deadline=None)
@given(**sizes, cut=st.integers(1, 5), masked=st.booleans())
def test_the_parts_of_a_batch_average_to_the_whole(rows, hard, width, seed, cut, masked):
    a, c = random_candidates(hard, seed, rows, width)
    mask = (random_rows(rows, len(c), seed=seed) > 1).fill_diagonal_(False) if masked else torch.zeros(rows, len(c)) > 0
    weights = random_rows(rows, len(c), seed=seed + 3).exp()

    def in_parts(a: Tensor, c: Tensor) -> Tensor:
        total = 0
        for at in range(0, rows, cut):
            part = slice(at, at + cut)
            total = total + len(a[part]) * losses.multiple_negatives_ranking(
                a[part], c, 0.2, mask[part], weights=weights[part], first=at
            )
        return total / rows

    _assert_equal_losses(
        in_parts, lambda a, c: losses.multiple_negatives_ranking(a, c, 0.2, mask, weights=weights), a, c
    )


def test_parts_hold_plain_cosines_also_with_weights_mask_memory_and_first():
    a, c = random_rows(2, WIDTH), random_rows(6, WIDTH, seed=1)
    memory = losses.unit(random_rows(3, WIDTH, seed=2))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 0] = mask[1, 8] = True
    options = {"mask": mask, "weights": torch.arange(1.0, 10.0), "memory": memory, "first": 3}
    loss, parts = losses.multiple_negatives_ranking(a, c, 0.2, return_parts=True, **options)
    columns = torch.cat([c, memory])
    similarity = [[float(oracle.cos(a[i], columns[j])) for j in range(9)] for i in range(2)]
    assert parts["positive_similarity"].tolist() == pytest.approx([similarity[0][3], similarity[1][4]])
    for i in range(2):
        others = [s for j, s in enumerate(similarity[i]) if j != 3 + i]
        assert parts["negative_similarity"][i].tolist() == pytest.approx(others)
    assert parts["loss"].mean().item() == pytest.approx(loss.item(), rel=1e-9)


# ------------------------------------------------------------------- properties


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 6), width=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_symmetric_ranking_does_not_care_which_side_asks(rows, width, seed):
    a, c = random_candidates(0, seed, rows, width)
    mask = (random_rows(rows, rows, seed=seed) > 1).fill_diagonal_(False)
    there, back = (losses.symmetric_ranking(a, c, 0.2, mask), losses.symmetric_ranking(c, a, 0.2, mask.T))
    torch.testing.assert_close(there, back, rtol=1e-9, atol=1e-9)
    asymmetric = losses.multiple_negatives_ranking(a, c, 0.2), losses.multiple_negatives_ranking(c, a, 0.2)
    assert asymmetric[0] != asymmetric[1]


MONOTONE = {
    "multiple_negatives_ranking": losses.multiple_negatives_ranking,
    "with weights": lambda a, c, t: losses.multiple_negatives_ranking(a, c, t, weights=torch.arange(1.0, len(c) + 1)),
    "symmetric_ranking": losses.symmetric_ranking,
    "multi_direction_ranking": losses.multi_direction_ranking,
    "debiased_ranking": lambda a, c, t: losses.debiased_ranking(a, c, t, prior=0.3),
} | {mode: lambda a, c, t, mode=mode: losses.hardness_weighted_ranking(a, c, t, mode=mode) for mode in MODES}


@pytest.mark.parametrize("name", MONOTONE)
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 3),
    hard=st.integers(0, 2),
    seed=st.integers(0, 10**6),
    places=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    by=st.floats(0.01, 0.45),
    temperature=st.sampled_from([0.05, 0.5]),
)
def test_a_nearer_answer_never_costs_more_and_anything_else_nearer_never_less(
    name, rows, hard, seed, places, by, temperature
):
    """One similarity of the batch is raised: of an anchor to its answer, or of any other two embeddings."""
    size = rows * (2 + hard)
    one, other = sorted(place % size for place in places)
    if one == other:
        return
    similarities = oracle.random_similarities(size, seed)

    def cost(similarities: Tensor) -> float:
        embeddings = oracle.placed(similarities)
        return MONOTONE[name](embeddings[:rows], embeddings[rows:], temperature).item()

    before, after = cost(similarities), cost(oracle.moved(similarities, one, other, by))
    if one < rows and other == rows + one:
        assert after <= before + 1e-9
    else:
        assert after >= before - 1e-9


@settings(max_examples=30, deadline=None)
@given(negatives=st.integers(1, 4), seed=st.integers(0, 10**6), place=st.integers(1, 5), by=st.floats(0.01, 0.45))
def test_info_nce_falls_with_the_positive_and_rises_with_a_negative(negatives, seed, place, by):
    place = 1 + place % (1 + negatives)
    similarities = oracle.random_similarities(2 + negatives, seed)

    def cost(similarities: Tensor) -> float:
        embeddings = oracle.placed(similarities)
        return losses.info_nce(embeddings[:1], embeddings[1:2], embeddings[None, 2:], 0.2).item()

    before, after = cost(similarities), cost(oracle.moved(similarities, 0, place, by))
    assert after < before if place == 1 else after > before


@settings(max_examples=40, deadline=None)
@given(**sizes, first=st.integers(0, 3), margin=st.sampled_from([0.0, 0.1, 1.0, 2.5]))
def test_a_guide_never_hides_an_answer(rows, hard, width, seed, first, margin):
    a, c = random_candidates(hard, seed, rows, width)
    c = torch.cat([random_rows(first, width, seed=seed + 9), c])
    a[0] = 0
    c[first:][: rows // 2] = c[first]  # the same sentence for several anchors
    mask = losses.guide_mask(a, c, margin, first)
    assert not mask[torch.arange(rows), first + torch.arange(rows)].any()
    assert losses.multiple_negatives_ranking(a, c, 0.2, mask, first=first).isfinite()
    if margin > 2:
        assert mask.sum() == rows * (len(c) - 1)


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", RANKING)
def test_candidates_must_fit_the_anchors(name):
    a, p, _ = random_batch()
    loss = getattr(losses, name)
    with pytest.raises(ValueError, match=r"dimensions differ: anchor \[5, 12\], candidates \[5, 4\]"):
        loss(a, p[:, :4])
    with pytest.raises(
        ValueError, match=r"5 anchors need at least 5 candidates \(candidate i answers anchor i\), not 4"
    ):
        loss(a, p[:-1])


def test_candidates_must_reach_the_last_answer():
    a, p, _ = random_batch()
    for loss in (losses.multiple_negatives_ranking, losses.guide_mask):
        with pytest.raises(ValueError, match=r"2 anchors need at least 6 candidates .*, not 5"):
            loss(a[:2], p, first=4)
    with pytest.raises(ValueError, match=r"dimensions differ: anchor \[5, 12\], candidates \[5, 4\]"):
        losses.guide_mask(a, p[:, :4])


@pytest.mark.parametrize("name", RANKING)
def test_a_mask_must_fit_and_leave_the_answers(name):
    a, p, _ = random_batch()
    loss = getattr(losses, name)
    with pytest.raises(ValueError, match=r"mask must be \[B, M\] = \[5, 5\], not \[5, 4\]"):
        loss(a, p, mask=torch.zeros(5, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask hides an anchor's own answer: entries \(i, i\) must be False"):
        loss(a, p, mask=torch.eye(5, dtype=torch.bool))


def test_a_mask_of_a_part_with_a_memory_covers_its_rows_and_all_columns():
    a, p, _ = random_batch()
    memory = losses.unit(random_rows(3, WIDTH, seed=9))
    with pytest.raises(ValueError, match=r"mask must be \[B, M\] = \[2, 8\], not \[2, 5\]"):
        losses.multiple_negatives_ranking(a[:2], p, mask=torch.zeros(2, 5, dtype=torch.bool), memory=memory)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3] = True
    losses.multiple_negatives_ranking(a[:2], p, mask=mask)
    with pytest.raises(ValueError, match="mask hides an anchor's own answer"):
        losses.multiple_negatives_ranking(a[:2], p, mask=mask, first=2)


def test_weights_must_fit_and_be_above_zero():
    a, p, _ = random_batch()
    for wrong in (torch.ones(4), torch.ones(5, 1), torch.ones(1, 5), torch.ones(5, 4)):
        with pytest.raises(ValueError, match=r"weights must be \[M\] or \[B, M\] = \[5, 5\], not \["):
            losses.multiple_negatives_ranking(a, p, weights=wrong)
    for bad in (0.0, -1.0, float("nan")):
        weights = torch.ones(5)
        weights[2] = bad
        with pytest.raises(ValueError, match="weights must be above 0; a mask takes a candidate out"):
            losses.multiple_negatives_ranking(a, p, weights=weights)


def test_hardness_needs_a_known_mode_a_strength_and_hard_negatives_for_everyone():
    a, p, n = random_batch()
    modes = "choose from all_negatives, in_batch_negatives, hard_negatives"
    with pytest.raises(ValueError, match=f"unknown mode 'hardest'; {modes}"):
        losses.hardness_weighted_ranking(a, p, mode="hardest")
    for strength in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=r"strength must be 0 or more, not .* \(5 to 9 are usual\)"):
            losses.hardness_weighted_ranking(a, p, strength=strength)
    for mode in ("in_batch_negatives", "hard_negatives"):
        with pytest.raises(ValueError, match=r"candidates must be a multiple of the 5 anchors .*, not 8"):
            losses.hardness_weighted_ranking(a, torch.cat([p, n[0]]), mode=mode)


def test_a_prior_is_a_share():
    a, p, _ = random_batch()
    for prior in (-0.1, 1.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match="prior must be a share from 0 to below 1, not"):
            losses.debiased_ranking(a, p, prior=prior)


def test_directions_must_be_known_and_hold_the_answer():
    a, p, n = random_batch()
    with pytest.raises(ValueError, match=f"unknown direction 'sideways'; choose from {', '.join(DIRECTIONS)}"):
        losses.multi_direction_ranking(a, p, directions=("query_to_doc", "sideways"))
    for without in ((), ("doc_to_query",)):
        with pytest.raises(ValueError, match="directions must contain 'query_to_doc', where the right answer stands"):
            losses.multi_direction_ranking(a, p, directions=without)
    with pytest.raises(ValueError, match=r"candidates must be a multiple of the 5 anchors .*, not 8"):
        losses.multi_direction_ranking(a, torch.cat([p, n[0]]))


def test_negatives_must_be_three_axes_that_fit():
    a, p, n = random_batch()
    match = r"negatives must be \[B, N, d\] = \[5, N, 12\], not "
    for wrong in (n[:, 0], n[:-1], n[..., :4]):
        with pytest.raises(ValueError, match=match):
            losses.info_nce(a, p, wrong)
