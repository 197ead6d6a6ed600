"""Losses that ask for the right answer among many: the softmax family."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gate_lessons.losses.common import (
    Parts,
    Temperature,
    at_least_float32,
    check_pairs,
    check_temperature,
    cosine_matrix,
    norm,
    result,
    unit,
)

NEVER = float("-inf")
MEMORY_BLOCK = 2048  # rows of a memory that are compared at a time
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS_MODES = ("all_negatives", "in_batch_negatives", "hard_negatives")


def info_nce(
    anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: Temperature = 0.05, return_parts: bool = False
) -> Tensor | tuple[Tensor, Parts]:
    """InfoNCE with explicit negatives (van den Oord, Li and Vinyals 2018).

    −log( e^{s⁺/τ} / (e^{s⁺/τ} + Σⱼ e^{sⱼ⁻/τ}) ), averaged over the batch, computed by log-sum-exp: finite at any τ.

    Args:
        anchor: [B, d].
        positive: [B, d].
        negatives: [B, N, d], N ≥ 0 negatives for each anchor.
        temperature: τ > 0.

    Returns:
        The loss; with `return_parts` also positive_similarity [B], negative_similarity [B, N], loss [B].
    """
    check_pairs(anchor=anchor, positive=positive)
    _check_negatives(anchor, negatives)
    check_temperature(temperature)
    length = norm(anchor)
    s_p = (anchor * positive).sum(-1) / (length * norm(positive))
    # One batched product, then division by the lengths: the [B, N, d] tensor is never normalised.
    s_n = torch.bmm(negatives, anchor.unsqueeze(-1)).squeeze(-1) / (length.unsqueeze(-1) * norm(negatives))
    logits = at_least_float32(torch.cat([s_p.unsqueeze(-1), s_n], dim=-1)) / temperature
    loss = torch.logsumexp(logits, dim=-1) - logits[:, 0]
    return result(loss, return_parts, positive_similarity=s_p, negative_similarity=s_n)


def multiple_negatives_ranking(
    anchor: Tensor,
    candidates: Tensor,
    temperature: Temperature = 0.05,
    mask: Tensor | None = None,
    return_parts: bool = False,
    *,
    weights: Tensor | None = None,
    memory: Tensor | None = None,
    first: int = 0,
) -> Tensor | tuple[Tensor, Parts]:
    """Multiple negatives ranking (Henderson et al. 2017): pick row i's own answer among everybody's.

    Args:
        anchor: [B, d].
        candidates: [M, d] with M ≥ B. Candidate i answers anchor i; every other column is a negative for it, those
            beyond B being hard negatives that were added.
        temperature: τ > 0; sentence-transformers' `scale` is 1/τ.
        mask: [B, M] booleans, True where the candidate is no true negative (the same meaning by chance) and must not
            count. The answers themselves, (i, i), cannot be masked. With a memory [B, M + S].
        weights: [M] or [B, M], above 0: how many times a candidate counts in the sum; an answer counts once, whatever
            stands there. With a memory M + S instead of M.
        memory: [S, d], rows of length 1: candidates of earlier batches as further negatives, which get no gradient
            (cross-batch memory, Wang et al. 2020).
        first: candidate `first + i` answers anchor i: for some of a batch's anchors against all its candidates.

    Returns:
        The loss; with `return_parts` also positive_similarity [B], negative_similarity [B, M − 1] (with a memory
        [B, M + S − 1]), loss [B].
    """
    answer = _answers(anchor, candidates, first)
    check_temperature(temperature)
    # Dividing the anchors by τ takes B·d divisions, dividing the similarities B·M.
    scaled = unit(anchor) / temperature
    plain = logits = at_least_float32(scaled @ unit(candidates).T)
    stored = _checked_memory(memory, anchor)
    sizes, whole = [len(candidates), len(stored)], (len(anchor), len(candidates) + len(stored))
    extra = extra_stored = mask_stored = None
    if weights is not None:
        extra, extra_stored = _log_weights(weights, logits, whole, answer).split(sizes, dim=1)
        logits = logits + extra
    if mask is not None:
        mask, mask_stored = _checked_mask(mask, whole, answer).split(sizes, dim=1)
        logits = logits.masked_fill(mask, NEVER)
    loss = F.cross_entropy(logits, answer, reduction="none")
    if len(stored):
        own = logits.gather(1, answer[:, None])[:, 0]
        loss = torch.logaddexp(loss, _LogSumExpOverMemory.apply(scaled, stored, extra_stored, mask_stored) - own)
    if not return_parts:
        return loss.mean()
    similarity = torch.cat([plain, at_least_float32(scaled @ stored.T)], dim=1).detach() * temperature
    others = ~F.one_hot(answer, similarity.shape[1]).bool()
    s_p, s_n = similarity[~others], similarity[others].view(len(anchor), -1)
    return result(loss, True, positive_similarity=s_p, negative_similarity=s_n)


class _LogSumExpOverMemory(torch.autograd.Function):
    """[B] log Σⱼ e^{xᵢ·mⱼ} over the rows m of a memory [S, d], which gets no gradient, for rows x [B, d].

    The memory is taken in blocks, with the sums so far rescaled to the largest logit so far; the gradient at x, the
    mean of the memory's rows weighted by softmax, comes about on the way. So no [B, S] numbers are kept for the
    backward pass (the trick of FlashAttention: Dao et al. 2022).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Tensor, extra: Tensor | None, mask: Tensor | None) -> Tensor:
        weighted = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        top = weighted.new_full((len(x), 1), torch.finfo(weighted.dtype).min)
        total = torch.zeros_like(top)
        for start in range(0, len(memory), MEMORY_BLOCK):
            columns = slice(start, start + MEMORY_BLOCK)
            share = at_least_float32(x @ memory[columns].T)
            if extra is not None:
                share += extra[:, columns]
            if mask is not None:
                share.masked_fill_(mask[:, columns], NEVER)
            higher = torch.maximum(top, share.amax(dim=1, keepdim=True))
            before, top = (top - higher).exp_(), higher
            share.sub_(top).exp_()
            total.mul_(before).add_(share.sum(dim=1, keepdim=True))
            weighted.mul_(before).add_(share.to(memory.dtype) @ memory[columns])
        # Where everything is masked, the sum is 0 and its logarithm −∞, but the gradient a number.
        ctx.save_for_backward(weighted.div_(total.clamp_min(torch.finfo(total.dtype).tiny)))
        return (total.log() + top)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weighted,) = ctx.saved_tensors
        return weighted * gradient[:, None], None, None, None


def hardness_weighted_ranking(
    anchor: Tensor,
    candidates: Tensor,
    temperature: Temperature = 0.05,
    mask: Tensor | None = None,
    strength: float = 5.0,
    mode: str = "all_negatives",
) -> Tensor:
    """Multiple negatives ranking that counts a negative e^{strength · s} times: the nearer, the more.

    The idea is Robinson et al. (2021); the formula, with s held constant and outside the temperature, is Lan et al.
    (2025), which sentence-transformers has as `hardness_strength`. Robinson also divides the weights of a row by their
    mean; sentence-transformers leaves that out, and so do we.

    Args:
        anchor, candidates, temperature, mask: see `multiple_negatives_ranking`. M is a multiple of B: candidate j was
            made for anchor j modulo B.
        strength: ≥ 0; 0 is the plain loss. Lan et al. use 9 in the batch, EmbeddingGemma 5 on hard negatives.
        mode: which negatives are weighted: `all_negatives`, `in_batch_negatives` (those made for other anchors) or
            `hard_negatives` (those made for this one).
    """
    if mode not in HARDNESS_MODES:
        raise ValueError(f"unknown mode {mode!r}; choose from {', '.join(HARDNESS_MODES)}")
    if not strength >= 0:
        raise ValueError(f"strength must be 0 or more, not {strength} (5 to 9 are usual)")
    answer = _answers(anchor, candidates)
    check_temperature(temperature)
    similarity = at_least_float32(cosine_matrix(anchor, candidates))
    unweighted = F.one_hot(answer, len(candidates)).bool()
    if mode != "all_negatives":
        own = _own_documents(anchor, candidates)
        unweighted = unweighted | (own if mode == "in_batch_negatives" else ~own)
    # A negative that counts w times has log w added to its logit: e^(strength · s) itself might overflow.
    logits = similarity / temperature + (strength * similarity.detach()).masked_fill(unweighted, 0.0)
    if mask is not None:
        logits = logits.masked_fill(_checked_mask(mask, logits.shape, answer), NEVER)
    return F.cross_entropy(logits, answer)


def debiased_ranking(
    anchor: Tensor,
    candidates: Tensor,
    temperature: Temperature = 0.05,
    mask: Tensor | None = None,
    prior: float = 0.01,
) -> Tensor:
    """Multiple negatives ranking that expects a share of the negatives to be false (Chuang et al. 2020).

    The mean of e^{s/τ} over the N negatives is taken for a mixture: `prior` of it is what positives look like, whose
    e^{s⁺/τ} is known; what is left, but at least the least possible e^{−1/τ}, stands for the true negatives.

    Args:
        anchor, candidates, temperature, mask: see `multiple_negatives_ranking`.
        prior: the paper's τ⁺, the chance that a negative is false, 0 (the plain loss) to below 1.
    """
    if not 0 <= prior < 1:
        raise ValueError(f"prior must be a share from 0 to below 1, not {prior}")
    answer = _answers(anchor, candidates)
    check_temperature(temperature)
    logits = at_least_float32((unit(anchor) / temperature) @ unit(candidates).T)
    out = F.one_hot(answer, logits.shape[1]).bool()
    own = logits[out]
    if mask is not None:
        out = out | _checked_mask(mask, logits.shape, answer)
    count = (~out).sum(dim=1).to(logits.dtype)
    # A finite stand-in for −∞, so that the mean of a row without negatives is a number.
    mean = torch.logsumexp(logits.masked_fill(out, torch.finfo(logits.dtype).min / 4), dim=1) - count.clamp_min(1).log()
    least = -1 / torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
    share = own - mean + math.log(prior) if prior else torch.full_like(own, NEVER)  # of the mean that is false, in logs
    some = share < -1e-6  # nearer to 0 nothing would be left, and the logarithm below would have no gradient
    true = mean + torch.log(-torch.expm1(torch.where(some, share, -1.0))) - math.log1p(-prior)
    true = torch.where(some, true, least).maximum(least)
    return (torch.logaddexp(own, true + count.log()) - own).mean()


def symmetric_ranking(
    anchor: Tensor, candidates: Tensor, temperature: Temperature = 0.05, mask: Tensor | None = None
) -> Tensor:
    """Multiple negatives ranking both ways: the anchor picks its answer, and the answer picks its anchor.

    The mean of the two, as in CLIP (Radford et al. 2021) and in sentence-transformers with the directions
    `query_to_doc` and `doc_to_query`, `per_direction`. Hard negatives are candidates for anchors only.

    Args:
        anchor, candidates, temperature, mask: see `multiple_negatives_ranking`.
    """
    answer = _answers(anchor, candidates)
    forth = multiple_negatives_ranking(anchor, candidates, temperature, mask)
    back_mask = None if mask is None else mask[:, : len(anchor)].T
    back = multiple_negatives_ranking(candidates[answer], anchor, temperature, back_mask)
    return (forth + back) / 2


def multi_direction_ranking(
    anchor: Tensor,
    candidates: Tensor,
    temperature: Temperature = 0.05,
    mask: Tensor | None = None,
    directions: Sequence[str] = DIRECTIONS,
) -> Tensor:
    """The improved contrastive loss of GTE (Li et al. 2023): one softmax over several kinds of negatives.

    The right answer of row i is s(anchor i, candidate i). Beside it stand the negatives of each direction: of the
    anchor among the candidates (`query_to_doc`) and among the anchors (`query_to_query`); of its answer among the
    anchors (`doc_to_query`, where the right answer stands a second time, as in sentence-transformers, so that the loss
    cannot fall below log 2) and among the candidates that were made for other anchors (`doc_to_doc`).

    Args:
        anchor, candidates, temperature, mask: see `multiple_negatives_ranking`. M is a multiple of B: candidate j was
            made for anchor j modulo B. A mask holds in every direction.
        directions: some of `DIRECTIONS`, `query_to_doc` among them.
    """
    if unknown := [name for name in directions if name not in DIRECTIONS]:
        raise ValueError(f"unknown direction {unknown[0]!r}; choose from {', '.join(DIRECTIONS)}")
    directions = list(dict.fromkeys(directions))
    if "query_to_doc" not in directions:
        raise ValueError("directions must contain 'query_to_doc', where the right answer stands")
    answer = _answers(anchor, candidates)
    check_temperature(temperature)
    size = len(anchor)
    queries, docs = unit(anchor), unit(candidates)
    sides = {"query": (queries, queries / temperature), "doc": (docs, docs[:size] / temperature)}
    same = torch.zeros(size, len(docs), dtype=torch.bool, device=docs.device)
    if mask is not None:
        same = _checked_mask(mask, same.shape, answer)
    out = {
        "query_to_doc": same,
        "query_to_query": same[:, :size] | torch.eye(size, dtype=torch.bool, device=docs.device),
        "doc_to_query": same[:, :size].T,
        "doc_to_doc": same | _own_documents(anchor, candidates),
    }
    logits = []
    for name in directions:
        source, target = name.split("_to_")
        logits.append(at_least_float32(sides[source][1] @ sides[target][0].T).masked_fill(out[name], NEVER))
    own = logits[directions.index("query_to_doc")][answer, answer]
    return (torch.logsumexp(torch.cat(logits, dim=1), dim=1) - own).mean()


def guide_mask(guide_anchor: Tensor, guide_candidates: Tensor, margin: float = 0.0, first: int = 0) -> Tensor:
    """Which candidates a guide takes for false negatives (GISTEmbed, Solatorio 2024): a mask for the ranking losses.

    Args:
        guide_anchor: [B, d] the guide's embeddings of the anchors.
        guide_candidates: [M, d] the guide's embeddings of the candidates, of which candidate i answers anchor i.
        margin: how far below the guide's similarity to the answer a candidate is already masked, in cosine
            similarity. At 0 an exact copy of the answer is not masked, as in sentence-transformers.
        first: as in `multiple_negatives_ranking`.

    Returns:
        [B, M] booleans, True where s(anchor i, candidate j) > s(anchor i, candidate i) − margin, but never at (i, i).
    """
    answer = _answers(guide_anchor, guide_candidates, first)
    similarity = cosine_matrix(guide_anchor, guide_candidates)
    mask = similarity > similarity.gather(1, answer[:, None]) - margin
    return mask & ~F.one_hot(answer, len(guide_candidates)).bool()


def _answers(anchor: Tensor, candidates: Tensor, first: int = 0) -> Tensor:
    """[B] the column that answers each anchor, after a look at the shapes."""
    rows, columns = anchor.shape[0], candidates.shape[0]
    if anchor.shape[-1] != candidates.shape[-1]:
        raise ValueError(f"dimensions differ: anchor {list(anchor.shape)}, candidates {list(candidates.shape)}")
    if first < 0:
        raise ValueError(f"first must be 0 or more, not {first}")
    if columns < first + rows:
        raise ValueError(
            f"{rows} anchors need at least {first + rows} candidates (candidate i answers anchor i), not {columns}"
        )
    return torch.arange(first, first + rows, device=anchor.device)


def _own_documents(anchor: Tensor, candidates: Tensor) -> Tensor:
    """[B, M] True where candidate j was made for anchor i: its answer and its hard negatives."""
    rows, columns = len(anchor), len(candidates)
    if columns % rows:
        raise ValueError(
            f"candidates must be a multiple of the {rows} anchors (B answers, then hard negatives), not {columns}"
        )
    return torch.eye(rows, dtype=torch.bool, device=anchor.device).repeat(1, columns // rows)


def _checked_memory(memory: Tensor | None, anchor: Tensor) -> Tensor:
    if memory is None:
        return anchor.new_empty(0, anchor.shape[1])
    if memory.dim() != 2 or memory.shape[1] != anchor.shape[1]:
        raise ValueError(f"memory must be [S, d] with d = {anchor.shape[1]}, not {list(memory.shape)}")
    return memory.detach()


def _checked_mask(mask: Tensor, shape: tuple[int, ...], answer: Tensor) -> Tensor:
    if mask.shape != shape:
        raise ValueError(f"mask must be [B, M] = {list(shape)}, not {list(mask.shape)}")
    if mask.gather(1, answer[:, None]).any():
        raise ValueError("mask hides an anchor's own answer: entries (i, i) must be False")
    return mask


def _log_weights(weights: Tensor, logits: Tensor, shape: tuple[int, ...], answer: Tensor) -> Tensor:
    if tuple(weights.shape) not in (shape, shape[1:]):
        raise ValueError(f"weights must be [M] or [B, M] = {list(shape)}, not {list(weights.shape)}")
    if not (weights > 0).all():
        raise ValueError("weights must be above 0; a mask takes a candidate out")
    return weights.to(logits.dtype).log().expand(shape).scatter(1, answer[:, None], 0.0)


def _check_negatives(anchor: Tensor, negatives: Tensor) -> None:
    if negatives.dim() != 3 or (negatives.shape[0], negatives.shape[2]) != tuple(anchor.shape):
        batch, width = anchor.shape
        raise ValueError(f"negatives must be [B, N, d] = [{batch}, N, {width}], not {list(negatives.shape)}")
