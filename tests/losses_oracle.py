"""What the tests of the losses share: batches, comparison of value and gradient, and every formula as a loop.

The loops are written from the papers, one pair of embeddings at a time, for float64 and autograd.
"""

import torch
from torch import Tensor

TEMPERATURES = [0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 10.0]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
BATCH, NEGATIVES, WIDTH = 5, 3, 12
MODES = ["all_negatives", "in_batch_negatives", "hard_negatives"]
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")

# ------------------------------------------------------------------- batches


def random_rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def random_batch(
    seed: int = 0, rows: int = BATCH, negatives: int = NEGATIVES, width: int = WIDTH
) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors [B, d], positives [B, d], negatives [B, N, d] in float64."""
    return (
        random_rows(rows, width, seed=seed),
        random_rows(rows, width, seed=seed + 1),
        random_rows(rows, negatives, width, seed=seed + 2),
    )


def together(p: Tensor, n: Tensor) -> Tensor:
    """Positives [B, d] and negatives [B, N, d] as candidates [B + N·B, d], candidate j made for anchor j modulo B."""
    return torch.cat([p, *n.unbind(1)])


def random_candidates(hard: int = 0, seed: int = 0, rows: int = BATCH, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Anchors [B, d] and candidates [B + hard·B, d]: answers, then so many hard negatives for each anchor."""
    a, p, n = random_batch(seed, rows, hard, width)
    return a, together(p, n)


def random_mask(rows: int, columns: int, seed: int = 7) -> Tensor:
    """[rows, columns] booleans, about a third of them True, no answer (i, i) and at least one other."""
    mask = random_rows(rows, columns, seed=seed) > 1
    mask.diagonal().fill_(False)
    assert mask.any() and not torch.equal(mask[:, :rows], mask[:, :rows].T)
    return mask


def random_similarities(size: int, seed: int) -> Tensor:
    """[size, size], within ±0.5 off the diagonal, of which any one may be moved by 0.45: see `placed`."""
    rows = torch.nn.functional.normalize(random_rows(size, size, seed=seed), dim=1)
    return (torch.eye(size, dtype=torch.float64) + rows @ rows.T) / 2


def moved(similarities: Tensor, one: int, other: int, by: float) -> Tensor:
    similarities = similarities.clone()
    similarities[one, other] += by
    similarities[other, one] += by
    return similarities


def placed(similarities: Tensor) -> Tensor:
    """Embeddings [size, size] with exactly these cosines: a test can move one similarity and no other."""
    return torch.linalg.cholesky(similarities)


def on_circle(*degrees: float) -> Tensor:
    """Embeddings [len(degrees), 2] at these angles: their cosines can be read off."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


# ------------------------------------------------------------------- comparison


def value_and_gradients(function, *inputs: Tensor, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The value and one gradient for each input, zeros where it does not matter."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
    return [x.detach().double() for x in (value, *gradients)]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def compare(ours, loop, *inputs: Tensor, dtype: torch.dtype) -> None:
    """Value and gradients of `ours` in `dtype` equal those of `loop` in float64."""
    found, expected = value_and_gradients(ours, *inputs, dtype=dtype), value_and_gradients(loop, *inputs)
    assert_same(found, expected, TOLERANCE[dtype])


def assert_finite(function, *inputs: Tensor, dtype: torch.dtype = torch.float32) -> None:
    for x in value_and_gradients(function, *inputs, dtype=dtype):
        assert torch.isfinite(x).all()


def assert_costs_nothing(function, *inputs: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """The loss is exactly 0, and so is every gradient."""
    for x in value_and_gradients(function, *inputs, dtype=dtype):
        assert not x.any()


# ------------------------------------------------------------------- the formulas


def cos(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def _hidden(mask: Tensor | None, i: int, j: int) -> bool:
    return mask is not None and bool(mask[i, j])


def _positive(x: Tensor) -> Tensor:
    return x if x > 0 else x * 0


def info_nce(a: Tensor, p: Tensor, n: Tensor, temperature: float | Tensor) -> Tensor:
    total = 0
    for i in range(len(a)):
        top = (cos(a[i], p[i]) / temperature).exp()
        bottom = top + sum((cos(a[i], n[i, j]) / temperature).exp() for j in range(n.shape[1]))
        total = total - (top / bottom).log()
    return total / len(a)


def ranking(
    a: Tensor,
    c: Tensor,
    temperature: float | Tensor,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Candidate first + i answers anchor i; weights [B, M] say how often each other candidate counts."""
    total = 0
    for i in range(len(a)):
        top = (cos(a[i], c[first + i]) / temperature).exp()
        bottom = top
        for j in range(len(c)):
            if j != first + i and not _hidden(mask, i, j):
                times = 1 if weights is None else weights[i, j]
                bottom = bottom + times * (cos(a[i], c[j]) / temperature).exp()
        total = total - (top / bottom).log()
    return total / len(a)


def hardness_weighted(
    a: Tensor, c: Tensor, temperature: float | Tensor, mask: Tensor | None, strength: float, mode: str
) -> Tensor:
    """Lan et al. (2025), equation 5: α · s, held constant, is added to a negative's logit, where `mode` names it."""
    size, total = len(a), 0
    for i in range(size):
        top = (cos(a[i], c[i]) / temperature).exp()
        bottom = top
        for j in range(len(c)):
            if j == i or _hidden(mask, i, j):
                continue
            made_for_it = j % size == i
            weighted = {"all_negatives": True, "hard_negatives": made_for_it, "in_batch_negatives": not made_for_it}
            s = cos(a[i], c[j])
            bottom = bottom + (s / temperature + (strength * s.item() if weighted[mode] else 0)).exp()
        total = total - (top / bottom).log()
    return total / size


def debiased(
    a: Tensor, c: Tensor, temperature: float | Tensor, mask: Tensor | None, prior: float, at_least: list | None = None
) -> Tensor:
    """Chuang et al. (2020), equations 7 and 8 with one positive; `at_least` notes where the least value held."""
    total = 0
    for i in range(len(a)):
        own = (cos(a[i], c[i]) / temperature).exp()
        negatives = [(cos(a[i], c[j]) / temperature).exp() for j in range(len(c)) if j != i and not _hidden(mask, i, j)]
        if not negatives:
            total = total + own * 0
            continue
        g = (sum(negatives) / len(negatives) - prior * own) / (1 - prior)
        least = (-1 / torch.as_tensor(temperature, dtype=torch.float64)).exp()
        if at_least is not None:
            at_least.append(bool(g < least))
        total = total - (own / (own + len(negatives) * (least if g < least else g))).log()
    return total / len(a)


def symmetric(a: Tensor, c: Tensor, temperature: float | Tensor, mask: Tensor | None = None) -> Tensor:
    total = 0
    for i in range(len(a)):
        own = (cos(a[i], c[i]) / temperature).exp()
        forth = sum((cos(a[i], c[j]) / temperature).exp() for j in range(len(c)) if not _hidden(mask, i, j))
        back = sum((cos(a[j], c[i]) / temperature).exp() for j in range(len(a)) if not _hidden(mask, j, i))
        total = total - ((own / forth).log() + (own / back).log()) / 2
    return total / len(a)


def multi_direction(
    a: Tensor, c: Tensor, temperature: float | Tensor, mask: Tensor | None, directions: tuple[str, ...]
) -> Tensor:
    """Li et al. (2023), the partition function of "improved contrastive loss"; c may hold hard negatives."""
    size, total = len(a), 0
    for i in range(size):
        bottom = 0
        for j in range(len(c)):
            if "query_to_doc" in directions and not _hidden(mask, i, j):
                bottom = bottom + (cos(a[i], c[j]) / temperature).exp()
            if "doc_to_doc" in directions and j % size != i and not _hidden(mask, i, j):
                bottom = bottom + (cos(c[i], c[j]) / temperature).exp()
        for j in range(size):
            if "query_to_query" in directions and j != i and not _hidden(mask, i, j):
                bottom = bottom + (cos(a[i], a[j]) / temperature).exp()
            if "doc_to_query" in directions and not _hidden(mask, j, i):
                bottom = bottom + (cos(c[i], a[j]) / temperature).exp()
        total = total - ((cos(a[i], c[i]) / temperature).exp() / bottom).log()
    return total / size


def triplet(a: Tensor, p: Tensor, n: Tensor, margin: float) -> Tensor:
    return sum(_positive(cos(a[i], n[i]) - cos(a[i], p[i]) + margin) for i in range(len(a))) / len(a)


def adaptive(a: Tensor, p: Tensor, n: Tensor, margin: float, penalty: float, penalty_from: float) -> Tensor:
    total = 0
    for i in range(len(a)):
        s_p, s_n = cos(a[i], p[i]), cos(a[i], n[i])
        violation = s_n - s_p + margin * (1 - s_p.item())  # item(): the margin is a constant
        total = total + _positive(violation) + penalty * _positive(s_n - penalty_from)
    return total / len(a)


def _neighbours(x: Tensor, label: list[int]):
    """For every embedding its cosines to its positives and to its negatives."""
    for i in range(len(x)):
        positives = [cos(x[i], x[j]) for j in range(len(x)) if j != i and label[j] == label[i]]
        negatives = [cos(x[i], x[j]) for j in range(len(x)) if label[j] != label[i]]
        yield positives, negatives


def _average(x: Tensor, costs: list[Tensor]) -> Tensor:
    return sum(costs) / len(costs) if costs else x.sum() * 0


def batch_hard(x: Tensor, label: list[int], margin: float) -> Tensor:
    costs = [_positive(max(n) - min(p) + margin) for p, n in _neighbours(x, label) if p and n]
    return _average(x, costs)


def batch_semi_hard(x: Tensor, label: list[int], margin: float, found: list | None = None) -> Tensor:
    """`found` notes for each positive pair whether it had a negative beyond the positive."""
    costs = []
    for positives, negatives in _neighbours(x, label):
        for s_p in positives if negatives else []:
            beyond = [s_n for s_n in negatives if s_n < s_p]
            costs.append(_positive((max(beyond) if beyond else min(negatives)) - s_p + margin))
            if found is not None:
                found.append(bool(beyond))
    return _average(x, costs)


def batch_all(x: Tensor, label: list[int], margin: float) -> Tensor:
    costs = [s_n - s_p + margin for p, n in _neighbours(x, label) for s_p in p for s_n in n]
    return _average(x, [cost for cost in costs if cost > 0])


def in_order(similarities: list[Tensor], score: Tensor, temperature: float | Tensor) -> Tensor:
    total = similarities[0] * 0 + 1
    for high in range(len(score)):
        for low in range(len(score)):
            if score[high] > score[low]:
                total = total + ((similarities[low] - similarities[high]) / temperature).exp()
    return total.log()


def cosent(x: Tensor, y: Tensor, score: Tensor, temperature: float | Tensor) -> Tensor:
    return in_order([cos(x[i], y[i]) for i in range(len(x))], score, temperature)


def angle(x: Tensor, y: Tensor, score: Tensor, temperature: float | Tensor) -> Tensor:
    similarities = []
    for i in range(len(x)):
        half = (x.shape[1] + 1) // 2
        zero = x.new_zeros(2 * half - x.shape[1])
        z, w = (torch.cat([row / (row * row).sum().sqrt(), zero]) for row in (x[i], y[i]))
        product = sum(torch.complex(z[k], z[half + k]) * torch.complex(w[k], -w[half + k]) for k in range(half))
        similarities.append((product.real + product.imag).abs())
    return in_order(similarities, score, temperature)


def cosine_regression(x: Tensor, y: Tensor, score: Tensor) -> Tensor:
    return sum((cos(x[i], y[i]) - score[i]) ** 2 for i in range(len(x))) / len(x)
