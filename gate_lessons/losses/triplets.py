"""Losses with a margin: one comparison of a positive with a negative, over given triplets or those of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lessons.losses.common import Parts, at_least_float32, check_margin, check_pairs, cosine, cosine_matrix, result


def triplet(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.3, return_parts: bool = False
) -> Tensor | tuple[Tensor, Parts]:
    """Triplet loss (Schroff, Kalenichenko and Philbin 2015) on cosine similarity: max(0, s(a,n) − s(a,p) + margin).

    Args:
        anchor, positive, negative: [B, d].
        margin: ≥ 0, in cosine similarity (0 to 2).

    Returns:
        The loss; with `return_parts` also positive_similarity [B], negative_similarity [B], loss [B] and
        violation [B]: s(a,n) − s(a,p) + margin, above zero where the margin is violated.
    """
    check_pairs(anchor=anchor, positive=positive, negative=negative)
    check_margin(margin)
    s_p, s_n = cosine(anchor, positive), cosine(anchor, negative)
    violation = s_n - s_p + margin
    return result(
        F.relu(violation), return_parts, positive_similarity=s_p, negative_similarity=s_n, violation=violation
    )


def adaptive_triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 0.5,
    penalty: float = 0.1,
    penalty_from: float = 0.8,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, Parts]:
    """The founding tutorial's own triplet loss: the margin shrinks as the positive arrives.

    max(0, s(a,n) − s(a,p) + m·(1 − s(a,p))) + penalty · max(0, s(a,n) − penalty_from), where the margin's s(a,p) is
    held constant: no gradient flows through it. Where all embeddings are equal the margin is 0, so that collapse costs
    only the penalty: lesson 02 shows a training run that falls into it.

    Args:
        anchor, positive, negative: [B, d].
        margin: m ≥ 0; the margin is m where s(a,p) = 0 and nothing where s(a,p) = 1.
        penalty: weight of the extra cost for negatives above `penalty_from`.
        penalty_from: cosine similarity from which a negative is punished whatever the positive does.

    Returns:
        As `triplet`; parts also hold margin [B] and penalty [B].
    """
    check_pairs(anchor=anchor, positive=positive, negative=negative)
    check_margin(margin)
    s_p, s_n = cosine(anchor, positive), cosine(anchor, negative)
    margins = margin * (1 - s_p.detach())
    violation = s_n - s_p + margins
    extra = penalty * F.relu(s_n - penalty_from)
    parts = {"positive_similarity": s_p, "negative_similarity": s_n, "violation": violation}
    return result(F.relu(violation) + extra, return_parts, **parts, margin=margins, penalty=extra)


def batch_hard_triplet(embeddings: Tensor, label: Tensor, margin: float = 0.3) -> Tensor:
    """Triplet loss on each embedding's least similar positive and most similar negative in the batch.

    Hermans, Beyer and Leibe (2017), on cosine similarity.

    Args:
        embeddings: [B, d], anchors of one another.
        label: [B] integers; equal labels are positives, different ones negatives.
        margin: ≥ 0, in cosine similarity (0 to 2).

    Returns:
        The mean over the embeddings that have both a positive and a negative, 0 where none has. sentence-transformers
        also counts those without a positive, at similarity 1, and without any negative in the batch its losses are not
        0: batch-hard costs the margin, semi-hard takes the anchor itself for a negative.
    """
    similarity, positive, negative = _in_batch(embeddings, label, margin)
    s_p = similarity.masked_fill(~positive, 2.0).amin(dim=1)
    s_n = similarity.masked_fill(~negative, -2.0).amax(dim=1)
    valid = positive.any(dim=1) & negative.any(dim=1)
    return _mean(F.relu(s_n - s_p + margin)[valid])


def batch_semi_hard_triplet(embeddings: Tensor, label: Tensor, margin: float = 0.3) -> Tensor:
    """Triplet loss on each positive pair and the negative just beyond it (FaceNet: Schroff et al. 2015).

    That is the most similar negative that is strictly less similar than the positive; where there is none, the least
    similar negative, as in sentence-transformers.

    Args:
        embeddings, label, margin: see `batch_hard_triplet`.

    Returns:
        The mean over the positive pairs whose anchor has a negative, 0 where there is none. Another negative may be
        chosen when a similarity moves, so that the loss jumps, and may fall where a negative comes nearer.
    """
    similarity, positive, negative = _in_batch(embeddings, label, margin)
    positive = positive & negative.any(dim=1, keepdim=True)
    negatives = similarity.masked_fill(~negative, torch.inf).sort(dim=1).values
    nearer = torch.searchsorted(negatives.detach(), similarity.detach().contiguous())  # how many are less similar
    s_n = negatives.gather(1, (nearer - 1).clamp_min(0))
    return _mean(F.relu(s_n - similarity + margin)[positive])


def batch_all_triplet(embeddings: Tensor, label: Tensor, margin: float = 0.3) -> Tensor:
    """Triplet loss on every triplet of the batch that violates the margin (Hermans, Beyer and Leibe 2017).

    Args:
        embeddings, label, margin: see `batch_hard_triplet`.

    Returns:
        The mean over the violating triplets, 0 where there is none. Those that a step mends leave the mean, which may
        rise by it: the number of violations is no part of the value. Memory: positive pairs × B similarities.
    """
    similarity, positive, negative = _in_batch(embeddings, label, margin)
    row, column = positive.nonzero(as_tuple=True)
    violation = F.relu(similarity[row] - similarity[row, column, None] + margin)
    return _mean(violation[negative[row] & (violation > 0)])


def _in_batch(embeddings: Tensor, label: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities [B, B], which of them are positives, which negatives."""
    if embeddings.dim() != 2 or label.shape != embeddings.shape[:1]:
        raise ValueError(f"expected [B, d] and one label each, got {list(embeddings.shape)} and {list(label.shape)}")
    check_margin(margin)
    same = label[:, None] == label[None, :]
    itself = torch.eye(len(label), dtype=torch.bool, device=label.device)
    return at_least_float32(cosine_matrix(embeddings, embeddings)), same & ~itself, ~same


def _mean(losses: Tensor) -> Tensor:
    """The mean; 0, with gradient 0, of nothing."""
    return losses.sum() / max(1, len(losses))
