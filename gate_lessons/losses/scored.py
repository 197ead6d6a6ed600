"""Losses of sentence pairs with graded scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lessons.losses.common import (
    Parts,
    Temperature,
    at_least_float32,
    check_pairs,
    check_temperature,
    cosine,
    unit,
)


def cosent(
    sentence1: Tensor, sentence2: Tensor, score: Tensor, temperature: Temperature = 0.05, return_parts: bool = False
) -> Tensor | tuple[Tensor, Parts]:
    """CoSENT (Su 2022): of two pairs, the one with the higher score should have the higher cosine.

    log(1 + Σ exp((cos_l − cos_h)/τ)) over all pairs of pairs with score_h > score_l.
    Only the order of the scores counts.

    Args:
        sentence1, sentence2: [B, d], row i being a pair.
        score: [B] graded similarity.
        temperature: τ > 0.

    Returns:
        The loss, 0 where all scores are equal; with `return_parts` also similarity [B].
    """
    _check_scored(sentence1, sentence2, score)
    similarity = cosine(sentence1, sentence2)
    loss = _in_order(similarity, score, temperature)
    return (loss, {"similarity": similarity.detach()}) if return_parts else loss


def angle(sentence1: Tensor, sentence2: Tensor, score: Tensor, temperature: Temperature = 0.05) -> Tensor:
    """AnglE (Li and Li 2024): CoSENT on an angle in complex space, whose gradient does not die where the cosine's does.

    The halves of an embedding are the real and the imaginary part of d/2 complex numbers. The similarity of two
    embeddings of length 1 is the real plus the imaginary part of Σ z · w̄, without its sign: |cos + sin| in the
    authors' code and in sentence-transformers. Swapping the sentences of a pair changes it.

    Args:
        sentence1, sentence2, score, temperature: see `cosent`. An odd d is taken with a zero added.
    """
    _check_scored(sentence1, sentence2, score)
    z, w = (unit(F.pad(s, (0, s.shape[1] % 2))) for s in (sentence1, sentence2))
    (z_real, z_imaginary), (w_real, w_imaginary) = z.chunk(2, dim=1), w.chunk(2, dim=1)
    similarity = (z * w + torch.cat([z_imaginary * w_real, -z_real * w_imaginary], dim=1)).sum(dim=1).abs()
    return _in_order(similarity, score, temperature)


def cosine_regression(sentence1: Tensor, sentence2: Tensor, score: Tensor) -> Tensor:
    """Mean squared difference of cosine and score (SBERT: Reimers and Gurevych 2019).

    sentence-transformers calls it `CosineSimilarityLoss`. Unlike `cosent` it asks for the scores themselves.

    Args:
        sentence1, sentence2: [B, d], row i being a pair.
        score: [B], on the cosine's scale: −1 to 1, 0 to 1 in use.
    """
    _check_scored(sentence1, sentence2, score)
    similarity = at_least_float32(cosine(sentence1, sentence2))
    return (similarity - score.to(similarity.dtype)).square().mean()


def _in_order(similarity: Tensor, score: Tensor, temperature: Temperature) -> Tensor:
    """log(1 + Σ exp((s_l − s_h)/τ)) over all pairs of pairs with score_h > score_l."""
    check_temperature(temperature)
    scaled = at_least_float32(similarity) / temperature
    wrong = (scaled[:, None] - scaled[None, :])[score[:, None] < score[None, :]]
    return torch.logsumexp(torch.cat([wrong, wrong.new_zeros(1)]), dim=0)


def _check_scored(sentence1: Tensor, sentence2: Tensor, score: Tensor) -> None:
    check_pairs(sentence1=sentence1, sentence2=sentence2)
    if score.shape != sentence1.shape[:1]:
        raise ValueError(f"one score for each pair: expected [{sentence1.shape[0]}], not {list(score.shape)}")
