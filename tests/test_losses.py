import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gate_lessons import losses

TEMPERATURES = [0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 10.0]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
BATCH, NEGATIVES, WIDTH = 5, 3, 12


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def _batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors [B, d], positives [B, d], negatives [B, N, d] in float64."""
    return (
        _random(BATCH, WIDTH, seed=seed),
        _random(BATCH, WIDTH, seed=seed + 1),
        _random(BATCH, NEGATIVES, WIDTH, seed=seed + 2),
    )


def _value_and_gradients(function, *inputs: Tensor, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves)
    return [x.detach().double() for x in (value, *gradients)]


def _assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def _finite(function, *inputs: Tensor) -> None:
    for x in _value_and_gradients(function, *inputs, dtype=torch.float32):
        assert torch.isfinite(x).all()


# ------------------------------------------------------------------- the formulas, as loops in float64


def _cos(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def _naive_info_nce(a: Tensor, p: Tensor, n: Tensor, temperature: float) -> Tensor:
    total = 0
    for i in range(len(a)):
        top = (_cos(a[i], p[i]) / temperature).exp()
        bottom = top + sum((_cos(a[i], n[i, j]) / temperature).exp() for j in range(n.shape[1]))
        total = total - (top / bottom).log()
    return total / len(a)


def _naive_ranking(a: Tensor, c: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    total = 0
    for i in range(len(a)):
        columns = [j for j in range(len(c)) if mask is None or not mask[i, j]]
        bottom = sum((_cos(a[i], c[j]) / temperature).exp() for j in columns)
        total = total - ((_cos(a[i], c[i]) / temperature).exp() / bottom).log()
    return total / len(a)


def _naive_triplet(a: Tensor, p: Tensor, n: Tensor, margin: float) -> Tensor:
    costs = [_cos(a[i], n[i]) - _cos(a[i], p[i]) + margin for i in range(len(a))]
    return sum(cost if cost > 0 else cost * 0 for cost in costs) / len(a)


def _naive_adaptive(a: Tensor, p: Tensor, n: Tensor, margin: float, penalty: float, penalty_from: float) -> Tensor:
    total = 0
    for i in range(len(a)):
        s_p, s_n = _cos(a[i], p[i]), _cos(a[i], n[i])
        violation = s_n - s_p + margin * (1 - s_p.item())  # item(): the margin is a constant
        total = total + (violation if violation > 0 else violation * 0)
        if s_n > penalty_from:
            total = total + penalty * (s_n - penalty_from)
    return total / len(a)


def _naive_cosent(x: Tensor, y: Tensor, score: Tensor, temperature: float) -> Tensor:
    total = 1
    for high in range(len(score)):
        for low in range(len(score)):
            if score[high] > score[low]:
                total = total + ((_cos(x[low], y[low]) - _cos(x[high], y[high])) / temperature).exp()
    return torch.as_tensor(total).log()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_info_nce_equals_the_naive_loop(dtype, temperature):
    inputs = _batch()
    expected = _value_and_gradients(lambda *x: _naive_info_nce(*x, temperature), *inputs)
    found = _value_and_gradients(lambda *x: losses.info_nce(*x, temperature), *inputs, dtype=dtype)
    _assert_same(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_ranking_equals_the_naive_loop(dtype, extra, masked):
    a, c = _random(BATCH, WIDTH), _random(BATCH + extra, WIDTH, seed=1)
    mask = None
    if masked:
        mask = _random(BATCH, BATCH + extra, seed=2) > 1
        mask.diagonal().fill_(False)
        assert mask.any()
    expected = _value_and_gradients(lambda *x: _naive_ranking(*x, 0.1, mask), a, c)
    found = _value_and_gradients(lambda *x: losses.multiple_negatives_ranking(*x, 0.1, mask=mask), a, c, dtype=dtype)
    _assert_same(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_triplet_equals_the_naive_loop(dtype, margin):
    a, p, n = _batch()
    inputs = a, p, n[:, 0]
    expected = _value_and_gradients(lambda *x: _naive_triplet(*x, margin), *inputs)
    found = _value_and_gradients(lambda *x: losses.triplet(*x, margin), *inputs, dtype=dtype)
    _assert_same(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("margin", "penalty", "penalty_from"), [(0.5, 0.1, 0.8), (0.5, 0.7, -0.1), (0.0, 0.2, 0.0)])
def test_adaptive_triplet_equals_the_naive_loop(dtype, margin, penalty, penalty_from):
    a, p, n = _batch()
    inputs = a, p, n[:, 0]
    options = margin, penalty, penalty_from
    expected = _value_and_gradients(lambda *x: _naive_adaptive(*x, *options), *inputs)
    found = _value_and_gradients(lambda *x: losses.adaptive_triplet(*x, *options), *inputs, dtype=dtype)
    _assert_same(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("score", [[1, 2, 3, 4, 5], [0, 0, 1, 1, 0.5], [5, 1, 1, 1, 1]])
def test_cosent_equals_the_naive_loop(dtype, score):
    inputs, score = _batch()[:2], torch.tensor(score)
    expected = _value_and_gradients(lambda *x: _naive_cosent(*x, score, 0.2), *inputs)
    found = _value_and_gradients(lambda *x: losses.cosent(*x, score, 0.2), *inputs, dtype=dtype)
    _assert_same(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_matryoshka_equals_the_weighted_sum_over_prefixes(dtype):
    dims, weights = (12, 5, 2), (1.0, 0.5, 0.25)

    def naive(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return sum(
            w * _naive_info_nce(a[:, :d], p[:, :d], n[:, :, :d], 0.2) for d, w in zip(dims, weights, strict=True)
        )

    nested = losses.matryoshka(losses.info_nce, dims, weights)
    found = _value_and_gradients(lambda *x: nested(*x, 0.2), *_batch(), dtype=dtype)
    _assert_same(found, _value_and_gradients(naive, *_batch()), TOLERANCE[dtype])


def test_matryoshka_leaves_scores_and_options_alone_and_weighs_1_each_by_default():
    x, y = _batch()[:2]
    score = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    nested = losses.matryoshka(losses.cosent, (12, 3))
    expected = _naive_cosent(x, y, score, 0.2) + _naive_cosent(x[:, :3], y[:, :3], score, 0.2)
    assert float(nested(x, y, score, temperature=0.2)) == pytest.approx(float(expected), rel=1e-6)
    mask = torch.zeros(BATCH, BATCH, dtype=torch.bool)
    mask[0, 1] = True
    nested = losses.matryoshka(losses.multiple_negatives_ranking, (12, 3))
    expected = _naive_ranking(x, y, 0.2, mask) + _naive_ranking(x[:, :3], y[:, :3], 0.2, mask)
    assert float(nested(x, y, 0.2, mask)) == pytest.approx(float(expected), rel=1e-6)


# ------------------------------------------------------------------- peers


@pytest.fixture(scope="module")
def st_losses():
    """The losses of sentence-transformers. They take five seconds to import."""
    return pytest.importorskip("sentence_transformers.sentence_transformer.losses")


def _compare(ours, theirs, *inputs: Tensor) -> None:
    found, expected = (_value_and_gradients(f, *inputs, dtype=torch.float32) for f in (ours, theirs))
    _assert_same(found, expected, 1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_ranking_equals_sentence_transformers(st_losses, temperature):
    a, p, n = _batch()
    peer = st_losses.MultipleNegativesRankingLoss(None, scale=1 / temperature)

    def without(a: Tensor, p: Tensor) -> Tensor:
        return losses.multiple_negatives_ranking(a, p, temperature)

    def with_hard(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return losses.multiple_negatives_ranking(a, torch.cat([p, n.flatten(0, 1)]), temperature)

    _compare(without, lambda a, p: peer.compute_loss_from_embeddings([a, p], None), a, p)
    _compare(with_hard, lambda a, p, n: peer.compute_loss_from_embeddings([a, p, *n.unbind(1)], None), a, p, n)


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_info_nce_equals_sentence_transformers_one_row_at_a_time(st_losses, temperature):
    # With a single row in the batch there are no in-batch negatives, which leaves InfoNCE on the explicit ones.
    peer = st_losses.MultipleNegativesRankingLoss(None, scale=1 / temperature)

    def theirs(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        rows = [[a[i : i + 1], p[i : i + 1], *n[i].unsqueeze(1)] for i in range(len(a))]
        return sum(peer.compute_loss_from_embeddings(row, None) for row in rows) / len(rows)

    _compare(lambda *x: losses.info_nce(*x, temperature), theirs, *_batch())


@pytest.mark.parametrize("score", [[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 1.0, 1.0, 0.5]])
def test_cosent_equals_sentence_transformers(st_losses, score):
    score = torch.tensor(score)
    peer = st_losses.CoSENTLoss(None, scale=5.0)
    _compare(
        lambda x, y: losses.cosent(x, y, score, 0.2),
        lambda x, y: peer.compute_loss_from_embeddings([x, y], score),
        *_batch()[:2],
    )


@pytest.mark.parametrize("margin", [0.1, 0.3, 1.0])
def test_triplet_equals_sentence_transformers(st_losses, margin):
    a, p, n = _batch()
    peer = st_losses.TripletLoss(None, st_losses.TripletDistanceMetric.COSINE, margin)
    _compare(
        lambda *x: losses.triplet(*x, margin),
        lambda *x: peer.compute_loss_from_embeddings(list(x), None),
        a,
        p,
        n[:, 0],
    )


@pytest.mark.parametrize("margin", [0.1, 0.3, 1.0])
def test_triplet_equals_pytorch_metric_learning(margin):
    pml = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, reducers
    from pytorch_metric_learning.losses import TripletMarginLoss

    assert pml.__version__
    a, p, n = _batch()
    peer = TripletMarginLoss(margin, distance=distances.CosineSimilarity(), reducer=reducers.MeanReducer())
    rows = torch.arange(BATCH)
    triplets = rows, rows + BATCH, rows + 2 * BATCH
    _compare(
        lambda *x: losses.triplet(*x, margin),
        lambda *x: peer(torch.cat(x), indices_tuple=triplets),
        a,
        p,
        n[:, 0],
    )


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_equals_pytorch_metric_learning(temperature):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import reducers
    from pytorch_metric_learning.losses import NTXentLoss

    peer = NTXentLoss(temperature, reducer=reducers.MeanReducer())
    rows = torch.arange(BATCH)
    each = rows.repeat_interleave(NEGATIVES)
    pairs = rows, rows + BATCH, each, 2 * BATCH + torch.arange(BATCH * NEGATIVES)
    _compare(
        lambda *x: losses.info_nce(*x, temperature),
        lambda a, p, n: peer(torch.cat([a, p, n.flatten(0, 1)]), indices_tuple=pairs),
        *_batch(),
    )


# ------------------------------------------------------------------- extremes


def _kinds() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    a, p, n = _batch()
    zero = torch.zeros_like(a)
    return {
        "random": (a, p, n),
        "all identical": (a, a, a[:, None].expand_as(n).clone()),
        "easy: positive identical, negatives antipodal": (a, a, -a[:, None].expand_as(n).clone()),
        "wrong: positive antipodal, negatives identical": (a, -a, a[:, None].expand_as(n).clone()),
        "zero anchor": (zero, p, n),
        "zero positive": (a, zero, n),
        "all zero": (zero, zero, torch.zeros_like(n)),
        "very short": (a * 1e-6, p * 1e-6, n * 1e-6),
        "very long": (a * 1e6, p * 1e6, n * 1e6),
        "batch of one": (a[:1], p[:1], n[:1]),
    }


@pytest.mark.parametrize("kind", _kinds())
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_value_and_gradient_are_finite_at_every_temperature(kind, temperature):
    a, p, n = _kinds()[kind]
    _finite(lambda *x: losses.info_nce(*x, temperature), a, p, n)
    _finite(lambda a, p, n: losses.multiple_negatives_ranking(a, torch.cat([p, n.flatten(0, 1)]), temperature), a, p, n)
    _finite(lambda x, y: losses.cosent(x, y, torch.arange(float(len(a))), temperature), a, p)


@pytest.mark.parametrize("kind", _kinds())
@pytest.mark.parametrize("loss", [losses.triplet, losses.adaptive_triplet])
def test_triplet_losses_are_finite(kind, loss):
    a, p, n = _kinds()[kind]
    _finite(loss, a, p, n[:, 0])


def test_zero_vector_has_cosine_zero():
    zero, other = torch.zeros(1, 4), torch.ones(1, 4)
    _, parts = losses.info_nce(zero, other, other[:, None], return_parts=True)
    assert parts["positive_similarity"].item() == parts["negative_similarity"].item() == 0
    assert losses.info_nce(zero, other, other[:, None]).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
def test_nothing_to_rank_against_costs_nothing(temperature):
    a, p = _batch()[:2]
    assert losses.info_nce(a, p, torch.empty(BATCH, 0, WIDTH, dtype=a.dtype), temperature).item() == 0
    assert losses.multiple_negatives_ranking(a[:1], p[:1], temperature).item() == 0
    _finite(lambda a, p, n: losses.info_nce(a, p, n, temperature), a, p, torch.empty(BATCH, 0, WIDTH))


@pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
def test_under_bfloat16_autocast(temperature):
    a, p, n = (x.float() for x in _batch())
    score = torch.arange(float(BATCH))

    def every(a: Tensor, p: Tensor, n: Tensor) -> list[Tensor]:
        return [
            losses.info_nce(a, p, n, temperature),
            losses.multiple_negatives_ranking(a, torch.cat([p, n.flatten(0, 1)]), temperature),
            losses.cosent(a, p, score, temperature),
            losses.triplet(a, p, n[:, 0]),
            losses.adaptive_triplet(a, p, n[:, 0]),
        ]

    exact = every(a, p, n)
    leaves = [x.clone().requires_grad_() for x in (a, p, n)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = every(*leaves)
    for value, reference in zip(values, exact, strict=True):
        assert value.dtype == torch.float32
        # bfloat16 keeps 8 bits: a cosine is off by at most about 2⁻⁷, a logit by that over τ.
        assert abs(value.item() - reference.item()) < 2 * 2**-7 / min(temperature, 1)
    for gradient in torch.autograd.grad(sum(values), leaves):
        assert torch.isfinite(gradient).all()


def test_bfloat16_embeddings_are_ranked_in_float32():
    a, p, n = (x.bfloat16() for x in _batch())
    assert losses.info_nce(a, p, n, 0.01).dtype == torch.float32
    assert losses.multiple_negatives_ranking(a, p, 0.01).dtype == torch.float32
    assert losses.cosent(a, p, torch.arange(BATCH), 0.01).dtype == torch.float32


# ------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_perfect_embeddings_give_the_closed_form(temperature):
    """Own answer at cosine 1, all else at 0: log(1 + others · e^(−1/τ))."""
    rows, extra = 4, 3
    basis = torch.eye(rows + extra, dtype=torch.float64)
    a, rest = basis[:rows], basis[rows:]

    def closed(others: int) -> float:
        return math.log1p(others * math.exp(-1 / temperature))

    close = {"rel": 1e-5, "abs": 1e-7}
    n = rest.expand(rows, extra, -1)
    assert losses.info_nce(a, 3 * a, n, temperature).item() == pytest.approx(closed(extra), **close)
    assert losses.multiple_negatives_ranking(a, a, temperature).item() == pytest.approx(closed(rows - 1), **close)
    candidates = torch.cat([a, rest])
    found = losses.multiple_negatives_ranking(a, candidates, temperature).item()
    assert found == pytest.approx(closed(rows + extra - 1), **close)
    assert losses.triplet(a, a, rest[:1].expand_as(a), 1.0).item() == 0
    assert losses.triplet(a, a, rest[:1].expand_as(a), 1.25).item() == pytest.approx(0.25)


def test_cosent_of_equal_scores_is_zero_and_of_one_wrong_pair_is_the_closed_form():
    x = torch.eye(2, 4)
    y = torch.stack([x[0], torch.tensor([0.0, 0.0, 1.0, 0.0])])  # cosines 1 and 0
    assert losses.cosent(x, y, torch.ones(2)).item() == 0
    assert losses.cosent(x, y, torch.tensor([0.0, 1.0]), 0.5).item() == pytest.approx(math.log1p(math.exp(2)))
    assert losses.cosent(x, y, torch.tensor([1.0, 0.0]), 0.5).item() == pytest.approx(math.log1p(math.exp(-2)))


def _tutorials_ranking(a: Tensor, p: Tensor, n: Tensor, temperature: float) -> Tensor:
    """The tutorial's: all positives, then all negatives, then `view`, so that row i is not anchor i."""
    positives = torch.stack([_cos(a[i], p[i]) for i in range(len(a))]) / temperature
    negatives = [_cos(a[i], n[i, j]) / temperature for i in range(len(a)) for j in range(n.shape[1])]
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


# ------------------------------------------------------------------- properties


def _all(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
    score = torch.arange(len(a)) % 3
    return torch.stack(
        [
            losses.info_nce(a, p, n, 0.2),
            losses.multiple_negatives_ranking(a, torch.cat([p, n.flatten(0, 1)]), 0.2),
            losses.triplet(a, p, n[:, 0], 0.4),
            losses.adaptive_triplet(a, p, n[:, 0], 0.5, 0.3, 0.0),
            losses.cosent(a, p, score, 0.2),
        ]
    ).double()


sizes = {
    "rows": st.integers(1, 6),
    "negatives": st.integers(1, 4),
    "width": st.integers(2, 9),
    "seed": st.integers(0, 10**6),
}


def _drawn(rows: int, negatives: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _random(rows, width, seed=seed),
        _random(rows, width, seed=seed + 1),
        _random(rows, negatives, width, seed=seed + 2),
    )


@settings(max_examples=40, deadline=None)
@given(**sizes, scale=st.floats(1e-3, 1e3))
def test_the_length_of_a_vector_does_not_matter(rows, negatives, width, seed, scale):
    a, p, n = _drawn(rows, negatives, width, seed)
    each = torch.linspace(1, 3, rows, dtype=torch.float64)[:, None]
    torch.testing.assert_close(_all(scale * a, p * each, n / scale), _all(a, p, n), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_the_order_of_rows_and_of_negatives_does_not_matter(rows, negatives, width, seed):
    a, p, n = _drawn(rows, negatives, width, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=generator)
    score = torch.arange(rows) % 3
    shuffled = [
        losses.cosent(a[order], p[order], score[order], 0.2),
        losses.info_nce(a[order], p[order], n[order][:, torch.randperm(negatives, generator=generator)], 0.2),
        losses.multiple_negatives_ranking(a[order], torch.cat([p[order], n.flatten(0, 1).flip(0)]), 0.2),
        losses.triplet(a[order], p[order], n[order, 0], 0.4),
        losses.adaptive_triplet(a[order], p[order], n[order, 0], 0.5, 0.3, 0.0),
    ]
    expected = _all(a, p, n)[[4, 0, 1, 2, 3]]
    torch.testing.assert_close(torch.stack(shuffled).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_adaptive_margin_carries_no_gradient():
    """With the margin's s(a,p) differentiated the pull on the positive would be 1 + margin times as strong."""
    a, p, n = _batch()
    inputs = a, p, n[:, 0]
    plain = _value_and_gradients(lambda *x: losses.triplet(*x, 2.0), *inputs)  # 2.0: every row is violated
    adaptive = _value_and_gradients(lambda *x: losses.adaptive_triplet(*x, 5.0, 0.0), *inputs)
    _assert_same(adaptive[1:], plain[1:], 1e-12)


def test_the_adaptive_margin_runs_from_the_full_margin_to_none():
    a = torch.tensor([[1.0, 0.0]] * 2)
    p = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # cosine 0, cosine 1
    n = torch.tensor([[-1.0, 0.0]] * 2)
    _, parts = losses.adaptive_triplet(a, p, n, margin=0.5, return_parts=True)
    assert parts["margin"].tolist() == pytest.approx([0.5, 0.0])


# ------------------------------------------------------------------- parts


def _calls() -> dict:
    a, p, n = _batch()
    a.requires_grad_()
    flat = n.flatten(0, 1)
    row = {"positive_similarity": (BATCH,), "loss": (BATCH,)}
    one = row | {"negative_similarity": (BATCH,), "violation": (BATCH,)}
    score = torch.arange(BATCH)
    return {
        "info_nce": ((a, p, n), row | {"negative_similarity": (BATCH, NEGATIVES)}),
        "multiple_negatives_ranking": (
            (a, torch.cat([p, flat])),
            row | {"negative_similarity": (BATCH, BATCH + BATCH * NEGATIVES - 1)},
        ),
        "triplet": ((a, p, n[:, 0]), one),
        "adaptive_triplet": ((a, p, n[:, 0]), one | {"margin": (BATCH,), "penalty": (BATCH,)}),
        "cosent": ((a, p, score), {"similarity": (BATCH,)}),
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
    a, p, n = _batch()
    own = [float(_cos(a[i], p[i])) for i in range(BATCH)]
    explicit = [[float(_cos(a[i], n[i, j])) for j in range(NEGATIVES)] for i in range(BATCH)]
    in_batch = [[float(_cos(a[i], p[j])) for j in range(BATCH) if j != i] for i in range(BATCH)]
    _, nce = losses.info_nce(a, p, n, return_parts=True)
    _, ranking = losses.multiple_negatives_ranking(a, p, return_parts=True)
    _, triplet = losses.triplet(a, p, n[:, 0], 0.3, return_parts=True)
    for parts, negatives in ((nce, explicit), (ranking, in_batch), (triplet, [row[0] for row in explicit])):
        assert parts["positive_similarity"].tolist() == pytest.approx(own)
        torch.testing.assert_close(parts["negative_similarity"], torch.tensor(negatives, dtype=torch.float64))
    violation = [row[0] - s_p + 0.3 for row, s_p in zip(explicit, own, strict=True)]
    assert triplet["violation"].tolist() == pytest.approx(violation)


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize("temperature", [0.0, -0.05, float("nan")])
def test_a_temperature_must_be_above_zero(temperature):
    a, p, n = _batch()
    match = "temperature must be above 0, not"
    with pytest.raises(ValueError, match=match):
        losses.info_nce(a, p, n, temperature)
    with pytest.raises(ValueError, match=match):
        losses.multiple_negatives_ranking(a, p, temperature)
    with pytest.raises(ValueError, match=match):
        losses.cosent(a, p, torch.arange(BATCH), temperature)


@pytest.mark.parametrize("loss", [losses.triplet, losses.adaptive_triplet])
@pytest.mark.parametrize("margin", [-0.1, float("nan")])
def test_a_margin_must_not_be_negative(loss, margin):
    a, p, n = _batch()
    with pytest.raises(ValueError, match="margin must be 0 or more, not"):
        loss(a, p, n[:, 0], margin)


def test_dimensions_must_agree():
    a, p, n = _batch()
    for call in (
        lambda: losses.info_nce(a, p[:, :4], n),
        lambda: losses.triplet(a, p[:-1], n[:, 0]),
        lambda: losses.adaptive_triplet(a, p, n[:, 0, :4]),
        lambda: losses.cosent(a, p[:, :4], torch.arange(BATCH)),
        lambda: losses.triplet(a[0], p[0], n[0, 0]),
    ):
        with pytest.raises(ValueError, match=r"expected equal shapes \[B, d\], got .*\["):
            call()
    with pytest.raises(ValueError, match=r"dimensions differ: anchor \[5, 12\], candidates \[5, 4\]"):
        losses.multiple_negatives_ranking(a, p[:, :4])


def test_negatives_must_be_three_axes_that_fit():
    a, p, n = _batch()
    match = r"negatives must be \[B, N, d\] = \[5, N, 12\], not "
    for wrong in (n[:, 0], n[:-1], n[..., :4]):
        with pytest.raises(ValueError, match=match):
            losses.info_nce(a, p, wrong)


def test_ranking_needs_a_candidate_for_each_anchor():
    a, p, _ = _batch()
    with pytest.raises(ValueError, match="5 anchors need at least 5 candidates"):
        losses.multiple_negatives_ranking(a, p[:-1])


def test_a_mask_must_fit_and_leave_the_answers():
    a, p, _ = _batch()
    with pytest.raises(ValueError, match=r"mask must be \[B, M\] = \[5, 5\], not \[5, 4\]"):
        losses.multiple_negatives_ranking(a, p, mask=torch.zeros(5, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask hides an anchor's own answer"):
        losses.multiple_negatives_ranking(a, p, mask=torch.eye(5, dtype=torch.bool))


def test_cosent_needs_one_score_for_each_pair():
    a, p, _ = _batch()
    with pytest.raises(ValueError, match=r"one score for each pair: expected \[5\], not \[4\]"):
        losses.cosent(a, p, torch.arange(4))


@pytest.mark.parametrize("dims", [(13,), (12, 0), (-1,)])
def test_matryoshka_dimensions_must_lie_within_the_embedding(dims):
    a, p, n = _batch()
    with pytest.raises(ValueError, match="must lie between 1 and the embedding's 12"):
        losses.matryoshka(losses.info_nce, dims)(a, p, n)


@pytest.mark.parametrize(("dims", "weights"), [((), None), ((12, 4), (1.0,))])
def test_matryoshka_needs_dimensions_and_a_weight_for_each(dims, weights):
    with pytest.raises(ValueError, match="one weight for each of at least one dimension"):
        losses.matryoshka(losses.info_nce, dims, weights)
