"""What every loss promises, and the Matryoshka wrapper."""

import math

import losses_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_oracle import BATCH, NEGATIVES, TEMPERATURES, TOLERANCE, WIDTH, random_batch, together
from torch import Tensor

from gate_lessons import losses


def _ranking(loss, **options):
    return lambda a, p, n, kind, temperature, margin: loss(a, together(p, n), temperature, **options)


def _given_triplet(loss, **options):
    return lambda a, p, n, kind, temperature, margin: loss(a, p, n[:, 0], margin, **options)


def _in_batch(loss):
    # The negatives have labels of their own: of five two are positives, another two, and one stands alone.
    return lambda a, p, n, kind, temperature, margin: loss(
        torch.cat([a, p, n[:, 0]]), torch.cat([kind, kind, kind + 10]), margin
    )


def _scored(loss):
    return lambda a, p, n, kind, temperature, margin: loss(a, p, kind, temperature)


def _memory(a, p, n, kind, temperature, margin):
    memory = losses.unit(n.flatten(0, 1).detach())
    weights = torch.cat([1 + kind, torch.full([len(memory)], 0.5)])
    return losses.multiple_negatives_ranking(a, p, temperature, memory=memory, weights=weights)


# Every loss as a function of anchors, positives, negatives, the rows' kinds [B] (scores or labels), τ and margin.
EVERY = {
    "info_nce": lambda a, p, n, kind, temperature, margin: losses.info_nce(a, p, n, temperature),
    "multiple_negatives_ranking": _ranking(losses.multiple_negatives_ranking),
    "with memory and weights": _memory,
    "hardness_weighted_ranking": _ranking(losses.hardness_weighted_ranking),
    "hardness_weighted_ranking, in batch": _ranking(
        losses.hardness_weighted_ranking, strength=9.0, mode="in_batch_negatives"
    ),
    "hardness_weighted_ranking, hard": _ranking(losses.hardness_weighted_ranking, mode="hard_negatives"),
    "debiased_ranking": _ranking(losses.debiased_ranking),
    "debiased_ranking, prior 0": _ranking(losses.debiased_ranking, prior=0.0),
    "debiased_ranking, prior 0.5": _ranking(losses.debiased_ranking, prior=0.5),
    "symmetric_ranking": _ranking(losses.symmetric_ranking),
    "multi_direction_ranking": _ranking(losses.multi_direction_ranking),
    "triplet": _given_triplet(losses.triplet),
    "adaptive_triplet": _given_triplet(losses.adaptive_triplet, penalty=0.3, penalty_from=0.0),
    "batch_hard_triplet": _in_batch(losses.batch_hard_triplet),
    "batch_semi_hard_triplet": _in_batch(losses.batch_semi_hard_triplet),
    "batch_all_triplet": _in_batch(losses.batch_all_triplet),
    "cosent": _scored(losses.cosent),
    "angle": _scored(losses.angle),
    "cosine_regression": lambda a, p, n, kind, temperature, margin: losses.cosine_regression(a, p, kind / 2),
    "matryoshka": lambda a, p, n, kind, temperature, margin: losses.matryoshka(
        losses.multiple_negatives_ranking, (a.shape[1], 1)
    )(a, together(p, n), temperature),
}
HALF_PRECISION_STAYS = ("triplet", "adaptive_triplet")  # no temperature: they answer in the embeddings' own precision


def _kinds_of(rows: int) -> Tensor:
    return torch.arange(rows) % 3


def _extremes() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    a, p, n = random_batch()
    zero, no_negatives = torch.zeros_like(a), torch.zeros_like(n)
    half = a * torch.tensor([1, 1, 1, -1, -1], dtype=a.dtype)[:, None]
    return {
        "random": (a, p, n),
        "all identical": tuple(torch.ones_like(x) for x in (a, p, n)),
        "all identical in each row": (a, a, a[:, None].expand_as(n).clone()),
        "antipodal halves": (half[:1].expand_as(a) * half.sign(), half, -half[:, None].expand_as(n)),
        "easy: positive identical, negatives antipodal": (a, a, -a[:, None].expand_as(n).clone()),
        "wrong: positive antipodal, negatives identical": (a, -a, a[:, None].expand_as(n).clone()),
        "zero anchor": (zero, p, n),
        "one zero anchor": (a * torch.tensor([0, 1, 1, 1, 1], dtype=a.dtype)[:, None], p, n),
        "zero positive": (a, zero, n),
        "zero negatives": (a, p, no_negatives),
        "all zero": (zero, zero, no_negatives),
        "very short": (a * 1e-6, p * 1e-6, n * 1e-6),
        "very long": (a * 1e6, p * 1e6, n * 1e6),
        "batch of one": (a[:1], p[:1], n[:1]),
    }


# ------------------------------------------------------------------- extremes


@pytest.mark.parametrize("kind", _extremes())
@pytest.mark.parametrize("name", EVERY)
def test_value_and_gradient_are_finite_at_every_temperature_and_margin(name, kind):
    a, p, n = _extremes()[kind]
    margins = [0.0, 0.1, 0.3, 0.5, 1.0, 1.5, 1.9, 2.0]
    for temperature, margin in zip(TEMPERATURES, margins, strict=True):
        rest = _kinds_of(len(a)), temperature, margin
        oracle.assert_finite(lambda *x, rest=rest: EVERY[name](*x, *rest), a, p, n)


@pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
@pytest.mark.parametrize("name", EVERY)
def test_under_bfloat16_autocast(name, temperature):
    batch = [x.float() for x in random_batch()]
    exact = EVERY[name](*batch, _kinds_of(BATCH), temperature, 0.3)
    leaves = [x.clone().requires_grad_() for x in batch]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = EVERY[name](*leaves, _kinds_of(BATCH), temperature, 0.3)
    assert value.dtype == torch.float32
    # bfloat16 keeps 8 bits: a cosine is off by at most about 2⁻⁷, a logit by that over τ.
    assert abs(value.item() - exact.item()) < 2 * 2**-7 / min(temperature, 1)
    for gradient in torch.autograd.grad(value, leaves, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", [name for name in EVERY if name not in HALF_PRECISION_STAYS])
def test_bfloat16_embeddings_give_a_loss_in_float32(name):
    batch = [x.bfloat16() for x in random_batch()]
    assert EVERY[name](*batch, _kinds_of(BATCH), 0.01, 0.3).dtype == torch.float32


def test_zero_vector_has_cosine_zero():
    zero, other = torch.zeros(1, 4), torch.ones(1, 4)
    assert losses.cosine(zero, other).item() == losses.cosine_matrix(zero, other).item() == 0
    assert not losses.unit(zero).any()
    _, parts = losses.info_nce(zero, other, other[:, None], return_parts=True)
    assert parts["positive_similarity"].item() == parts["negative_similarity"].item() == 0
    assert losses.info_nce(zero, other, other[:, None]).item() == pytest.approx(math.log(2))


# ------------------------------------------------------------------- properties

sizes = {
    "rows": st.integers(1, 6),
    "negatives": st.integers(1, 4),
    "width": st.integers(2, 9),
    "seed": st.integers(0, 10**6),
}


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=15, deadline=None)
@given(**sizes, scale=st.floats(1e-3, 1e3))
def test_the_length_of_a_vector_does_not_matter(name, rows, negatives, width, seed, scale):
    a, p, n = random_batch(seed, rows, negatives, width)
    each = torch.linspace(1, 3, rows, dtype=torch.float64)[:, None]
    rest = _kinds_of(rows), 0.2, 0.4
    found, expected = EVERY[name](scale * a, p * each, n / scale, *rest), EVERY[name](a, p, n, *rest)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=15, deadline=None)
@given(**sizes)
def test_the_order_of_rows_and_of_negatives_does_not_matter(name, rows, negatives, width, seed):
    a, p, n = random_batch(seed, rows, negatives, width)
    generator = torch.Generator().manual_seed(seed)
    order, columns = (torch.randperm(size, generator=generator) for size in (rows, negatives))
    if "triplet" in name:
        columns = slice(None)  # they take the first negative
    kind = _kinds_of(rows)
    found = EVERY[name](a[order], p[order], n[order][:, columns], kind[order], 0.2, 0.4)
    torch.testing.assert_close(found, EVERY[name](a, p, n, kind, 0.2, 0.4), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------- parts


def _calls() -> dict:
    a, p, n = random_batch()
    a.requires_grad_()
    row = {"positive_similarity": (BATCH,), "loss": (BATCH,)}
    one = row | {"negative_similarity": (BATCH,), "violation": (BATCH,)}
    return {
        "info_nce": ((a, p, n), row | {"negative_similarity": (BATCH, NEGATIVES)}),
        "multiple_negatives_ranking": (
            (a, together(p, n)),
            row | {"negative_similarity": (BATCH, BATCH + BATCH * NEGATIVES - 1)},
        ),
        "triplet": ((a, p, n[:, 0]), one),
        "adaptive_triplet": ((a, p, n[:, 0]), one | {"margin": (BATCH,), "penalty": (BATCH,)}),
        "cosent": ((a, p, torch.arange(BATCH)), {"similarity": (BATCH,)}),
    }


@pytest.mark.parametrize("name", _calls())
def test_parts_have_the_promised_names_and_shapes_and_are_detached(name):
    inputs, shapes = _calls()[name]
    loss, parts = getattr(losses, name)(*inputs, return_parts=True)
    assert {key: tuple(part.shape) for key, part in parts.items()} == shapes
    assert loss.requires_grad and not any(part.requires_grad for part in parts.values())
    assert loss.item() == pytest.approx(getattr(losses, name)(*inputs).item(), rel=1e-6)
    if "loss" in parts:
        assert parts["loss"].mean().item() == pytest.approx(loss.item(), rel=1e-6)


def test_parts_hold_the_cosines():
    a, p, n = random_batch()
    own = [float(oracle.cos(a[i], p[i])) for i in range(BATCH)]
    explicit = [[float(oracle.cos(a[i], n[i, j])) for j in range(NEGATIVES)] for i in range(BATCH)]
    in_batch = [[float(oracle.cos(a[i], p[j])) for j in range(BATCH) if j != i] for i in range(BATCH)]
    _, nce = losses.info_nce(a, p, n, return_parts=True)
    _, ranking = losses.multiple_negatives_ranking(a, p, return_parts=True)
    _, triplet = losses.triplet(a, p, n[:, 0], 0.3, return_parts=True)
    for parts, negatives in ((nce, explicit), (ranking, in_batch), (triplet, [row[0] for row in explicit])):
        assert parts["positive_similarity"].tolist() == pytest.approx(own)
        torch.testing.assert_close(parts["negative_similarity"], torch.tensor(negatives, dtype=torch.float64))
    violation = [row[0] - s_p + 0.3 for row, s_p in zip(explicit, own, strict=True)]
    assert triplet["violation"].tolist() == pytest.approx(violation)


# ------------------------------------------------------------------- Matryoshka


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_matryoshka_equals_the_weighted_sum_over_prefixes(dtype):
    dims, weights = (12, 5, 2), (1.0, 0.5, 0.25)

    def loop(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return sum(
            w * oracle.info_nce(a[:, :d], p[:, :d], n[:, :, :d], 0.2) for d, w in zip(dims, weights, strict=True)
        )

    nested = losses.matryoshka(losses.info_nce, dims, weights)
    oracle.compare(lambda *x: nested(*x, 0.2), loop, *random_batch(), dtype=dtype)


def test_matryoshka_leaves_scores_labels_and_options_alone_and_weighs_1_each_by_default():
    x, y, _ = random_batch()
    score = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    mask = oracle.random_mask(BATCH, BATCH)
    label = [0, 0, 1, 1, 2]
    for loss, loop, arguments in (
        (losses.cosent, lambda x, y: oracle.cosent(x, y, score, 0.2), (y, score, 0.2)),
        (losses.angle, lambda x, y: oracle.angle(x, y, score, 0.2), (y, score, 0.2)),
        (losses.cosine_regression, lambda x, y: oracle.cosine_regression(x, y, score), (y, score)),
        (losses.multiple_negatives_ranking, lambda x, y: oracle.ranking(x, y, 0.2, mask), (y, 0.2, mask)),
        (losses.batch_hard_triplet, lambda x, y: oracle.batch_hard(x, label, 0.5), (torch.tensor(label), 0.5)),
    ):
        nested = losses.matryoshka(loss, (WIDTH, 3))
        expected = loop(x, y) + loop(x[:, :3], y[:, :3])
        assert float(nested(x, *arguments)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("dims", [(13,), (12, 0), (-1,)])
def test_matryoshka_dimensions_must_lie_within_the_embedding(dims):
    with pytest.raises(ValueError, match="must lie between 1 and the embedding's 12"):
        losses.matryoshka(losses.info_nce, dims)(*random_batch())


@pytest.mark.parametrize(("dims", "weights"), [((), None), ((12, 4), (1.0,))])
def test_matryoshka_needs_dimensions_and_a_weight_for_each(dims, weights):
    with pytest.raises(ValueError, match="one weight for each of at least one dimension"):
        losses.matryoshka(losses.info_nce, dims, weights)


# ------------------------------------------------------------------- bad input

WITH_TEMPERATURE = [name for name in EVERY if "triplet" not in name and name != "cosine_regression"]
WITH_MARGIN = [name for name in EVERY if "triplet" in name]


@pytest.mark.parametrize("temperature", [0.0, -0.05, float("nan")])
@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_a_temperature_must_be_above_zero(name, temperature):
    with pytest.raises(ValueError, match=r"temperature must be above 0, not .* \(0.05 is a usual value\)"):
        EVERY[name](*random_batch(), _kinds_of(BATCH), temperature, 0.3)


@pytest.mark.parametrize("margin", [-0.1, float("nan")])
@pytest.mark.parametrize("name", WITH_MARGIN)
def test_a_margin_must_not_be_negative(name, margin):
    with pytest.raises(ValueError, match="margin must be 0 or more, not"):
        EVERY[name](*random_batch(), _kinds_of(BATCH), 0.05, margin)


def test_embeddings_of_pairs_and_triplets_must_have_one_shape():
    a, p, n = random_batch()
    score = torch.arange(BATCH)
    for call in (
        lambda: losses.info_nce(a, p[:, :4], n),
        lambda: losses.triplet(a, p[:-1], n[:, 0]),
        lambda: losses.adaptive_triplet(a, p, n[:, 0, :4]),
        lambda: losses.triplet(a[0], p[0], n[0, 0]),
        lambda: losses.cosent(a, p[:, :4], score),
        lambda: losses.angle(a, p[:, :4], score),
        lambda: losses.cosine_regression(a, p[:-1], score),
    ):
        with pytest.raises(ValueError, match=r"expected equal shapes \[B, d\], got .*\["):
            call()
