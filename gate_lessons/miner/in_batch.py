"""Negatives from the batch itself: embeddings and their labels in, triplets of row numbers out."""

from typing import NamedTuple

import torch
from torch import Tensor

from gate_lessons.losses import cosine_matrix
from gate_lessons.search import check_embeddings


class Triplets(NamedTuple):
    """Row numbers of the batch, [T] each: row i is a triplet. In order of the anchor, then of the positive."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


def mine_in_batch(embeddings: Tensor, labels: Tensor, strategy: str = "batch_semi_hard") -> Triplets:
    """The triplets that a batch offers, by cosine similarity. Nothing is larger than [B, B].

    Args:
        embeddings: [B, d].
        labels: [B] integers; rows of one label are positives of each other, all others are negatives.
        strategy: `batch_hard`: for each anchor its least similar positive and its most similar negative (Hermans,
            Beyer and Leibe 2017). `batch_semi_hard`: for each pair of a label the most similar negative that is
            strictly less similar than the positive; where there is none, the least similar negative (FaceNet: Schroff
            et al. 2015, as sentence-transformers completes it).

    Returns:
        Triplets of anchors that have both a positive and a negative; equal similarities by the lower row.

    Raises:
        ValueError: an unknown strategy, labels that are not [B] integers; NaN, infinite or zero rows.
    """
    if strategy not in IN_BATCH:
        raise ValueError(f"unknown strategy {strategy!r}; choose from {', '.join(IN_BATCH)}")
    check_embeddings(embeddings=embeddings)
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels must be {len(embeddings)} integers, not {list(labels.shape)} of {labels.dtype}")
    same = labels[:, None] == labels
    negative = ~same
    positive = same.fill_diagonal_(False) & negative.any(dim=1, keepdim=True)
    with torch.no_grad():
        return Triplets(*IN_BATCH[strategy](cosine_matrix(embeddings, embeddings), positive, negative))


def _batch_hard(similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    anchor = positive.any(dim=1).nonzero()[:, 0]
    farthest = similarity.masked_fill(~positive, torch.inf).argmin(dim=1)
    nearest = similarity.masked_fill(~negative, -torch.inf).argmax(dim=1)
    return anchor, farthest[anchor], nearest[anchor]


def _batch_semi_hard(similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    anchor, other = positive.nonzero(as_tuple=True)
    distance = similarity.neg()
    ranked, order = distance.masked_fill(~negative, torch.inf).sort(dim=1, stable=True)
    place = torch.searchsorted(ranked, distance, right=True)[anchor, other]  # the first that is further
    count = negative.sum(dim=1)[anchor]
    # Where no negative is further than the positive, the furthest there is: of equal ones the lowest row, too.
    last = torch.searchsorted(ranked, ranked.gather(1, negative.sum(dim=1, keepdim=True).sub(1).clamp_min(0)))
    place = torch.where(place < count, place, last[anchor, 0])
    return anchor, other, order[anchor, place]


IN_BATCH = {"batch_hard": _batch_hard, "batch_semi_hard": _batch_semi_hard}
