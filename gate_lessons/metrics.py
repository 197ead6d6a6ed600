"""Numbers that judge embeddings: correlation, accuracy, retrieval, geometry, and the interval beside each of them.

Arrays in, numbers out. Anything with `seeds × items` holds one row for each training seed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference counts: an interval that contains zero is reported as no difference."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def triplet_accuracy(positive_similarity: np.ndarray, negative_similarity: np.ndarray) -> float:
    """Share of triplets whose positive is strictly nearer than their negative; a tie is a miss. 0.5 is chance."""
    return float(np.mean(np.asarray(positive_similarity) > np.asarray(negative_similarity)))


def spearman(similarity: np.ndarray, score: np.ndarray) -> float:
    """Rank correlation of similarities with gold scores, −1 to 1: the usual STS measure."""
    from scipy.stats import rankdata

    return _rowwise_correlation(rankdata(similarity)[None], rankdata(score)[None])[0]


def pearson(similarity: np.ndarray, score: np.ndarray) -> float:
    """Linear correlation of similarities with gold scores, −1 to 1."""
    return _rowwise_correlation(np.asarray(similarity, float)[None], np.asarray(score, float)[None])[0]


def reciprocal_rank(retrieved: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """1/rank of the relevant document for each query, 0 where it was not retrieved; the mean is MRR@k.

    Args:
        retrieved: [Q, k] document ids, best first.
        relevant: [Q] the one relevant id of each query.
    """
    return _gain(retrieved, relevant, lambda rank: 1 / rank)


def ndcg(retrieved: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """nDCG@k of each query with one relevant document: 1/log₂(rank + 1) (Järvelin and Kekäläinen 2002)."""
    return _gain(retrieved, relevant, lambda rank: 1 / np.log2(rank + 1))


def recall(retrieved: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """1 for each query whose relevant document is among the k retrieved, else 0; the mean is recall@k."""
    return _gain(retrieved, relevant, np.ones_like)


def alignment(embeddings1: Tensor, embeddings2: Tensor) -> float:
    """Mean squared distance of positive pairs on the unit sphere; 0 is perfect (Wang and Isola 2020)."""
    return float((F.normalize(embeddings1, dim=1) - F.normalize(embeddings2, dim=1)).square().sum(dim=1).mean())


def uniformity(embeddings: Tensor, t: float = 2.0) -> float:
    """log mean exp(−t·‖x − y‖²) over distinct pairs on the unit sphere: 0 is collapse, lower is more spread out.

    Wang and Isola (2020). With the default t it lies between −8 and 0.
    """
    distances = torch.pdist(F.normalize(embeddings, dim=1)).square()
    return float(torch.logsumexp(-t * distances, dim=0) - np.log(len(distances)))


def effective_rank(embeddings: Tensor) -> float:
    """How many directions embeddings [B, d] use, 1 (all on one line) to min(B, d) (Roy and Vetterli 2007).

    The exponential of the entropy of the singular values' shares, for rows of length 1.
    """
    values = torch.linalg.svdvals(F.normalize(embeddings.float(), dim=1))
    shares = values / values.sum().clamp_min(1e-12)
    return float(torch.special.entr(shares).sum().exp())


def retrieval_accuracy(anchors: Tensor, positives: Tensor, group: Tensor | None = None) -> float:
    """Share of anchors [B, d] whose most similar positive among all [B, d] is their own, or one of their group [B]."""
    nearest = (F.normalize(anchors, dim=1) @ F.normalize(positives, dim=1).T).argmax(dim=1)
    group = torch.arange(len(anchors), device=anchors.device) if group is None else group
    return float((group[nearest] == group).float().mean())


def bootstrap(items: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of `items` [n] or [seeds, n] with its 95 % interval over items.

    Scores are averaged over seeds first; for a difference of two systems pass the item-wise difference (paired).
    """
    scores = np.atleast_2d(np.asarray(items, float)).mean(axis=0)
    _check_items(len(scores))
    draws = np.random.default_rng(seed).integers(len(scores), size=(resamples, len(scores)))
    return _percentiles(scores.mean(), scores[draws].mean(axis=1))


def bootstrap_spearman(
    similarity: np.ndarray, score: np.ndarray, other: np.ndarray | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Spearman with its 95 % interval over pairs; with `other`, the paired difference of the two systems.

    Args:
        similarity: [n] or [seeds, n]; correlations are averaged over seeds.
        score: [n] gold scores.
        other: [n] or [seeds, n] similarities of the system to subtract.
    """
    from scipy.stats import rankdata

    score = np.asarray(score, float)
    _check_items(len(score))
    draws = np.random.default_rng(seed).integers(len(score), size=(resamples, len(score)))
    gold, gold_once = rankdata(score[draws], axis=1), rankdata(score)[None]

    def statistic(system: np.ndarray) -> tuple[float, np.ndarray]:
        rows = np.atleast_2d(np.asarray(system, float))
        once = [_rowwise_correlation(rankdata(row)[None], gold_once)[0] for row in rows]
        resampled = [_rowwise_correlation(rankdata(row[draws], axis=1), gold) for row in rows]
        return float(np.mean(once)), np.mean(resampled, axis=0)

    estimate, resampled = statistic(similarity)
    if other is not None:
        estimate_other, resampled_other = statistic(other)
        estimate, resampled = estimate - estimate_other, resampled - resampled_other
    return _percentiles(estimate, resampled)


def _percentiles(estimate: float, resampled: np.ndarray) -> Interval:
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Interval(float(estimate), float(low), float(high))


def _rowwise_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson of each row of x [R, n] with the same row of y [R, n]; nan where one of them is constant."""
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))


def _gain(retrieved: np.ndarray, relevant: np.ndarray, of_rank: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    hit = np.asarray(retrieved) == np.asarray(relevant)[:, None]
    rank = hit.argmax(axis=1) + 1.0
    return np.where(hit.any(axis=1), of_rank(rank), 0.0)


def _check_items(count: int) -> None:
    if count < 2:
        raise ValueError(f"an interval needs at least two items, not {count}")
