"""The softmax family: against loops written from the papers, closed forms, properties, bad input."""

import math

import losses_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_oracle import (
    BATCH,
    NEGATIVES,
    TOLERANCE,
    WIDTH,
    assert_same,
    compare,
    random_batch,
    random_mask,
    random_rows,
    together,
    value_and_gradients,
)
from torch import Tensor

from gate_lessons import losses

MODES = ["all_negatives", "in_batch_negatives", "hard_negatives"]
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
SUBSETS = [
    ("query_to_doc",),
    ("doc_to_query", "query_to_doc"),
    ("query_to_doc", "query_to_query"),
    ("doc_to_doc", "query_to_doc"),
    DIRECTIONS,
]
# The ranking losses that take (anchor, candidates, temperature, mask), by what makes them the plain one.
AS_PLAIN = {
    "hardness_weighted_ranking": {"strength": 0.0},
    "debiased_ranking": {"prior": 0.0},
    "multi_direction_ranking": {"directions": ("query_to_doc",)},
    "symmetric_ranking": {},
}


def _pairs(extra: int = 2) -> tuple[Tensor, Tensor]:
    """Anchors and candidates with so many hard negatives for each anchor."""
    a, p, n = random_batch(negatives=extra)
    return a, together(p, n)


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
    a, c = _pairs(extra)
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
def test_ranking_with_weights_memory_and_first_equals_the_loop(dtype, masked, first, of_each_row):
    """Two of five anchors, everybody's candidates, a memory behind them, and a weight for every column."""
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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", [1.5, 9.0])
def test_hardness_weighting_equals_the_loop(dtype, mode, masked, strength):
    a, c = _pairs()
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
    a, c = _pairs()
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
    a, c = _pairs(extra)
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
    a, c = _pairs(extra)
    mask = _mask(masked, len(c))
    compare(
        lambda *x: losses.multi_direction_ranking(*x, 0.2, mask, directions),
        lambda *x: oracle.multi_direction(*x, 0.2, mask, directions),
        a,
        c,
        dtype=dtype,
    )


def test_by_default_all_negatives_are_weighted_by_5_a_hundredth_is_false_and_all_four_directions_count():
    a, c = _pairs()
    mask = _mask(True, len(c))
    for ours, loop in (
        (losses.hardness_weighted_ranking, oracle.hardness_weighted(a, c, 0.05, mask, 5.0, "all_negatives")),
        (losses.debiased_ranking, oracle.debiased(a, c, 0.05, mask, 0.01)),
        (losses.multi_direction_ranking, oracle.multi_direction(a, c, 0.05, mask, DIRECTIONS)),
    ):
        torch.testing.assert_close(ours(a, c, mask=mask), loop, rtol=1e-6, atol=1e-6)
    assert losses.DIRECTIONS == DIRECTIONS


def test_a_learned_temperature_gets_the_gradient_of_the_loop():
    a, c = _pairs()
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
        assert_same(found, expected, 1e-6)


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
    for name in (*AS_PLAIN, "multiple_negatives_ranking"):
        loss = getattr(losses, name)
        if name != "multi_direction_ranking":
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
    a, c = _pairs()
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
        assert_same(found, expected, 1e-6)
        if ours is not losses.multi_direction_ranking:
            oracle.assert_costs_nothing(lambda *x, f=ours: f(*x, temperature, everything), a, c)


@pytest.mark.parametrize("temperature", [0.005, 0.05, 10.0])
@pytest.mark.parametrize("prior", [0.0, 0.01, 0.5])
def test_debiased_ranking_is_finite_with_a_masked_row(temperature, prior):
    a, c = _pairs()
    mask = _mask(True, len(c))
    mask[0, 1:] = True
    for anchor in (a, torch.zeros_like(a), c[:BATCH], -c[:BATCH]):
        oracle.assert_finite(lambda *x: losses.debiased_ranking(*x, temperature, mask, prior), anchor, c)


@pytest.mark.parametrize("strength", [0.0, 5.0, 20.0, 80.0, 120.0])
@pytest.mark.parametrize("mode", MODES)
def test_hardness_weighting_is_finite_at_every_strength(strength, mode):
    a, c = _pairs()
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


# ------------------------------------------------------------------- identities

sizes = {
    "rows": st.integers(1, 6),
    "extra": st.integers(0, 2),
    "width": st.integers(2, 9),
    "seed": st.integers(0, 10**6),
}


def _drawn(rows: int, extra: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    a, p, n = random_batch(seed, rows, extra, width)
    return a, together(p, n)


def _assert_equal_losses(one, other, *inputs: Tensor, tolerance: float = 1e-9) -> None:
    assert_same(value_and_gradients(one, *inputs), value_and_gradients(other, *inputs), tolerance)


@pytest.mark.parametrize("name", [name for name in AS_PLAIN if name != "symmetric_ranking"])
@settings(max_examples=20, deadline=None)
@given(**sizes, temperature=st.sampled_from([0.005, 0.05, 0.5]), masked=st.booleans())
def test_with_nothing_added_it_is_the_plain_ranking_loss(name, rows, extra, width, seed, temperature, masked):
    a, c = _drawn(rows, extra, width, seed)
    mask = (random_rows(rows, len(c), seed=seed) > 1).fill_diagonal_(False) if masked else None
    _assert_equal_losses(
        lambda *x: getattr(losses, name)(*x, temperature, mask, **AS_PLAIN[name]),
        lambda *x: losses.multiple_negatives_ranking(*x, temperature, mask),
        a,
        c,
        tolerance=1e-6,
    )


@settings(max_examples=20, deadline=None)
@given(**sizes)
def test_weights_of_1_a_mask_of_nothing_and_an_empty_memory_change_nothing(rows, extra, width, seed):
    a, c = _drawn(rows, extra, width, seed)
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
    a, c = _drawn(rows, 1, width, seed)
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
@given(**sizes, share=st.integers(1, 5))
def test_a_masked_column_might_as_well_be_absent(rows, extra, width, seed, share):
    """A hard negative, masked for everyone. Weighting by hardness, debiasing, all directions: all forget it."""
    a, c = _drawn(rows, extra, width, seed)
    more = torch.cat([c, random_rows(rows, width, seed=seed + 9)])
    mask = torch.zeros(rows, len(more), dtype=torch.bool)
    mask[:, len(c) :] = True
    for name in (*AS_PLAIN, "multiple_negatives_ranking"):
        loss = getattr(losses, name)
        torch.testing.assert_close(loss(a, more, 0.2, mask), loss(a, c, 0.2), rtol=1e-6, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(**sizes, stored=st.integers(1, 4))
def test_a_memory_is_further_candidates(rows, extra, width, seed, stored):
    a, c = _drawn(rows, extra, width, seed)
    memory = losses.unit(random_rows(stored, width, seed=seed + 9))
    _assert_equal_losses(
        lambda a, c: losses.multiple_negatives_ranking(a, c, 0.2, memory=memory),
        lambda a, c: losses.multiple_negatives_ranking(a, torch.cat([c, memory]), 0.2),
        a,
        c,
    )


def test_no_gradient_reaches_the_memory():
    a, c = (x.requires_grad_() for x in _pairs())
    memory = losses.unit(random_rows(4, WIDTH, seed=9)).requires_grad_()
    losses.multiple_negatives_ranking(a, c, 0.2, memory=memory).backward()
    assert a.grad.any() and c.grad.any()
    assert memory.grad is None or not memory.grad.any()


@settings(max_examples=20, deadline=None)
@given(**sizes, cut=st.integers(1, 5), masked=st.booleans())
def test_the_parts_of_a_batch_average_to_the_whole(rows, extra, width, seed, cut, masked):
    a, c = _drawn(rows, extra, width, seed)
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
    a, c = _drawn(rows, 0, width, seed)
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
    extra=st.integers(0, 2),
    seed=st.integers(0, 10**6),
    places=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    by=st.floats(0.01, 0.45),
    temperature=st.sampled_from([0.05, 0.5]),
)
def test_a_nearer_answer_never_costs_more_and_anything_else_nearer_never_less(
    name, rows, extra, seed, places, by, temperature
):
    """One similarity of the batch is raised: of an anchor to its answer, or of any other two embeddings."""
    size = rows * (2 + extra)
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
@given(**sizes, first=st.integers(0, 3), margin=st.floats(0, 3))
def test_a_guide_never_hides_an_answer(rows, extra, width, seed, first, margin):
    a, c = _drawn(rows, extra, width, seed)
    c = torch.cat([random_rows(first, width, seed=seed + 9), c])
    a[0] = 0
    c[first:][: rows // 2] = c[first]  # the same sentence for several anchors
    mask = losses.guide_mask(a, c, margin, first)
    assert not mask[torch.arange(rows), first + torch.arange(rows)].any()
    assert losses.multiple_negatives_ranking(a, c, 0.2, mask, first=first).isfinite()
    if margin > 2:
        assert mask.sum() == rows * (len(c) - 1)


# ------------------------------------------------------------------- bad input

RANKING = ["multiple_negatives_ranking", *AS_PLAIN]


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
        with pytest.raises(ValueError, match="2 anchors need at least 6 candidates .*, not 5"):
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
        with pytest.raises(ValueError, match="candidates must be a multiple of the 5 anchors .*, not 8"):
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
    with pytest.raises(ValueError, match="candidates must be a multiple of the 5 anchors .*, not 8"):
        losses.multi_direction_ranking(a, torch.cat([p, n[0]]))


def test_negatives_must_be_three_axes_that_fit():
    a, p, n = random_batch()
    match = r"negatives must be \[B, N, d\] = \[5, N, 12\], not "
    for wrong in (n[:, 0], n[:-1], n[..., :4]):
        with pytest.raises(ValueError, match=match):
            losses.info_nce(a, p, wrong)
    assert n.shape[1] == NEGATIVES
