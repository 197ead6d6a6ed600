"""FaceNet's words, and which negatives count as false: similarities in, numbers or booleans out."""

from torch import Tensor


def semi_hard_band(positive_similarity: Tensor, negative_similarity: Tensor, margin: float) -> Tensor:
    """Where a negative is semi-hard (Schroff et al. 2015): further than the positive, but by less than the margin.

    Args:
        positive_similarity: s(a,p), [Q, 1] (or any shape that broadcasts).
        negative_similarity: s(a,n), [Q, M].
        margin: ≥ 0, in cosine similarity.

    Returns:
        [Q, M] booleans: s(a,p) − margin ≤ s(a,n) < s(a,p).
    """
    return (negative_similarity >= positive_similarity - margin) & (negative_similarity < positive_similarity)


def within_relative_margin(positive_similarity: Tensor, negative_similarity: Tensor, relative_margin: float) -> Tensor:
    """Which negatives NV-Retriever (Moreira et al. 2024) keeps: those clearly less similar than the positive.

    Args:
        positive_similarity: s(a,p), [Q, 1] (or any shape that broadcasts).
        negative_similarity: s(a,n), [Q, M].
        relative_margin: a share of s(a,p); the paper's 0.05 keeps s(a,n) ≤ 0.95·s(a,p). Where s(a,p) is below 0 the
            paper's product would keep negatives that are nearer than the positive; it is a share of |s(a,p)| here.

    Returns:
        [Q, M] booleans.
    """
    return negative_similarity <= positive_similarity - relative_margin * positive_similarity.abs()


def difficulty(positive_similarity: Tensor, negative_similarity: Tensor) -> Tensor:
    """The founding tutorial's difficulty of a triplet: s(a,n) − s(a,p) + 1, from −1 (easy) to 3; 1 is a tie."""
    return negative_similarity - positive_similarity + 1.0


def hardness(positive_similarity: Tensor, negative_similarity: Tensor, margin: float) -> list[str]:
    """FaceNet's name for each triplet: `easy`, `semi_hard` or `hard`. Two [Q] tensors in, Q names out."""
    names = []
    for s_p, s_n in zip(positive_similarity.tolist(), negative_similarity.tolist(), strict=True):
        names.append("hard" if s_n >= s_p else "semi_hard" if s_n >= s_p - margin else "easy")
    return names
