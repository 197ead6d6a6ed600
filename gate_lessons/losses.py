"""Losses as pure functions of embeddings: [B, d] in, a scalar out.

They own no model and no state, take raw (unnormalised) embeddings, and work through cosine similarity. Margins are
margins of cosine similarity: FaceNet's squared distance is 2 − 2·cos, so its margin of 0.2 is 0.1 here.
`return_parts=True` also returns the similarities and per-row losses, detached, by name.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Parts = dict[str, Tensor]
Temperature = float | Tensor  # a Tensor when it is learned, see `objectives.LearnableTemperature`
EPS = 1e-8  # a shorter vector counts as this long, so that the zero vector has cosine 0 with everything


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
    _check_pairs(anchor=anchor, positive=positive)
    _check_negatives(anchor, negatives)
    check_temperature(temperature)
    length = _norm(anchor)
    s_p = (anchor * positive).sum(-1) / (length * _norm(positive))
    # One batched product, then division by the lengths: the [B, N, d] tensor is never normalised.
    s_n = torch.bmm(negatives, anchor.unsqueeze(-1)).squeeze(-1) / (length.unsqueeze(-1) * _norm(negatives))
    logits = _at_least_float32(torch.cat([s_p.unsqueeze(-1), s_n], dim=-1)) / temperature
    loss = torch.logsumexp(logits, dim=-1) - logits[:, 0]
    return _result(loss, return_parts, positive_similarity=s_p, negative_similarity=s_n)


def multiple_negatives_ranking(
    anchor: Tensor,
    candidates: Tensor,
    temperature: Temperature = 0.05,
    mask: Tensor | None = None,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, Parts]:
    """Multiple negatives ranking (Henderson et al. 2017): pick row i's own answer among everybody's.

    Args:
        anchor: [B, d].
        candidates: [M, d] with M ≥ B. Candidate i answers anchor i; every other column is a negative for it, those
            beyond B being hard negatives that were added.
        temperature: τ > 0; sentence-transformers' `scale` is 1/τ.
        mask: [B, M] booleans, True where the candidate is no true negative (the same meaning by chance) and must not
            count. The answers themselves, (i, i), cannot be masked.

    Returns:
        The loss; with `return_parts` also positive_similarity [B], negative_similarity [B, M − 1], loss [B].
    """
    rows, columns = anchor.shape[0], candidates.shape[0]
    if anchor.shape[-1] != candidates.shape[-1]:
        raise ValueError(f"dimensions differ: anchor {list(anchor.shape)}, candidates {list(candidates.shape)}")
    if columns < rows:
        raise ValueError(
            f"{rows} anchors need at least {rows} candidates (candidate i answers anchor i), not {columns}"
        )
    check_temperature(temperature)
    similarity = F.normalize(anchor, dim=-1, eps=EPS) @ F.normalize(candidates, dim=-1, eps=EPS).T
    logits = _at_least_float32(similarity) / temperature
    answer = torch.arange(rows, device=anchor.device)
    if mask is not None:
        if mask.shape != logits.shape:
            raise ValueError(f"mask must be [B, M] = {list(logits.shape)}, not {list(mask.shape)}")
        if mask[answer, answer].any():
            raise ValueError("mask hides an anchor's own answer: entries (i, i) must be False")
        logits = logits.masked_fill(mask, float("-inf"))
    loss = F.cross_entropy(logits, answer, reduction="none")
    if not return_parts:
        return loss.mean()
    others = ~F.one_hot(answer, columns).bool()
    s_n = similarity[others].view(rows, columns - 1)
    return _result(loss, True, positive_similarity=similarity[answer, answer], negative_similarity=s_n)


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
    _check_pairs(anchor=anchor, positive=positive, negative=negative)
    check_margin(margin)
    s_p, s_n = cosine(anchor, positive), cosine(anchor, negative)
    violation = s_n - s_p + margin
    return _result(
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
    _check_pairs(anchor=anchor, positive=positive, negative=negative)
    check_margin(margin)
    s_p, s_n = cosine(anchor, positive), cosine(anchor, negative)
    margins = margin * (1 - s_p.detach())
    violation = s_n - s_p + margins
    extra = penalty * F.relu(s_n - penalty_from)
    parts = {"positive_similarity": s_p, "negative_similarity": s_n, "violation": violation}
    return _result(F.relu(violation) + extra, return_parts, **parts, margin=margins, penalty=extra)


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
    _check_pairs(sentence1=sentence1, sentence2=sentence2)
    if score.shape != sentence1.shape[:1]:
        raise ValueError(f"one score for each pair: expected [{sentence1.shape[0]}], not {list(score.shape)}")
    check_temperature(temperature)
    similarity = cosine(sentence1, sentence2)
    scaled = _at_least_float32(similarity) / temperature
    wrong = (scaled[:, None] - scaled[None, :])[score[:, None] < score[None, :]]
    loss = torch.logsumexp(torch.cat([wrong, wrong.new_zeros(1)]), dim=0)
    return (loss, {"similarity": similarity.detach()}) if return_parts else loss


def matryoshka(
    loss: Callable[..., Tensor], dims: Sequence[int], weights: Sequence[float] | None = None
) -> Callable[..., Tensor]:
    """Matryoshka representation learning (Kusupati et al. 2022): the same loss on every prefix of the embedding.

    Args:
        loss: any loss of this module.
        dims: prefix lengths, each at most d, for example (64, 32, 16).
        weights: one for each length; 1 each by default, as in sentence-transformers.

    Returns:
        A function with `loss`'s arguments, embeddings given by position: Σ weight · loss on the first `dim` numbers of
        every floating-point tensor among them that has two or more axes.
    """
    weights = [1.0] * len(dims) if weights is None else list(weights)
    if not dims or len(weights) != len(dims):
        raise ValueError(f"one weight for each of at least one dimension: {len(dims)} dims, {len(weights)} weights")

    def nested(*arguments: Tensor, **options) -> Tensor:
        width = arguments[0].shape[-1]
        if not all(1 <= dim <= width for dim in dims):
            raise ValueError(f"Matryoshka dimensions {list(dims)} must lie between 1 and the embedding's {width}")

        def prefix(argument, dim: int):
            is_embedding = isinstance(argument, Tensor) and argument.is_floating_point() and argument.dim() >= 2
            return argument[..., :dim] if is_embedding else argument

        return sum(
            weight * loss(*(prefix(a, dim) for a in arguments), **options)
            for dim, weight in zip(dims, weights, strict=True)
        )

    return nested


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise cosine similarity of [..., d] and [..., d]; 0 where either is the zero vector."""
    return F.cosine_similarity(a, b, dim=-1, eps=EPS)


def _at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for logits that are divided by a small temperature; float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1).clamp_min(EPS)


def _result(loss: Tensor, return_parts: bool, **parts: Tensor) -> Tensor | tuple[Tensor, Parts]:
    if not return_parts:
        return loss.mean()
    return loss.mean(), {name: part.detach() for name, part in (parts | {"loss": loss}).items()}


def _check_pairs(**embeddings: Tensor) -> None:
    shapes = {name: list(e.shape) for name, e in embeddings.items()}
    if len({tuple(shape) for shape in shapes.values()}) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise ValueError("expected equal shapes [B, d], got " + ", ".join(f"{n} {s}" for n, s in shapes.items()))


def _check_negatives(anchor: Tensor, negatives: Tensor) -> None:
    if negatives.dim() != 3 or (negatives.shape[0], negatives.shape[2]) != tuple(anchor.shape):
        batch, width = anchor.shape
        raise ValueError(f"negatives must be [B, N, d] = [{batch}, N, {width}], not {list(negatives.shape)}")


def check_temperature(temperature: Temperature) -> None:
    # A learned temperature is positive by construction; looking at its value would make a GPU wait.
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature} (0.05 is a usual value)")


def check_margin(margin: float) -> None:
    if not margin >= 0:
        raise ValueError(f"margin must be 0 or more, not {margin} (0.1 to 0.5 are usual in cosine similarity)")
