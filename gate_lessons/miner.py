"""Negative mining: embeddings in, indices of negatives out. The caller turns indices into text.

FaceNet's words (Schroff et al. 2015), on cosine similarity, with a margin m:
*easy* s(a,n) < s(a,p) − m; *semi-hard* s(a,p) − m ≤ s(a,n) < s(a,p); *hard* s(a,n) ≥ s(a,p).

Every strategy is one function: it gives each candidate a preference, or −∞ where the strategy does not want it; the
filter adds −∞ for false negatives; the k most preferred are taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gate_lessons.losses import cosine
from gate_lessons.search import check_embeddings, cluster, similarity_blocks

NEVER = float("-inf")
FALLBACKS = ("random", "hard")


@dataclass(frozen=True)
class Mined:
    """What mining found.

    Attributes:
        indices: [Q, k] rows of the candidates, the most preferred first.
        similarities: [Q, k] cosine similarity of each to its anchor.
        positive_similarity: [Q] cosine similarity of each anchor to its positive.
        shortfall: [Q] how many of the k the strategy could not give, so that the fallback filled them.
        skipped: candidates taken out by the filter over all anchors, by the first reason that applied.
    """

    indices: Tensor
    similarities: Tensor
    positive_similarity: Tensor
    shortfall: Tensor
    skipped: dict[str, int]

    def difficulty(self) -> Tensor:
        """[Q] difficulty of each anchor's triplets, averaged over its k negatives."""
        return difficulty(self.positive_similarity, self.similarities.mean(dim=1))


@dataclass
class _Block:
    """A few anchors against all candidates: what a strategy may look at."""

    similarity: Tensor  # [b, M] cosine similarity of anchor and candidate
    positive: Tensor  # [b, 1] cosine similarity of anchor and its positive
    allowed: Tensor  # [b, M] what the false-negative filter left
    margin: float
    k: int
    generator: torch.Generator
    category: Tensor | None = None  # [M] of the candidates
    anchor_category: Tensor | None = None  # [b, 1]
    clusters: Tensor | None = None  # [M] of the candidates

    @cached_property
    def noise(self) -> Tensor:
        """[b, M] uniform in (0, 1), drawn only for strategies that look at it."""
        noise = torch.rand(self.similarity.shape, generator=self.generator)
        return noise.to(self.similarity.device).clamp_min(1e-12)


def random(block: _Block) -> Tensor:
    """Any candidate, each as likely: the control that every other strategy is compared with."""
    return block.noise


def hard(block: _Block) -> Tensor:
    """The candidates most similar to the anchor."""
    return block.similarity


def semi_hard(block: _Block) -> Tensor:
    """Further than the positive but inside the margin, the most similar first."""
    return block.similarity.masked_fill(~semi_hard_band(block.positive, block.similarity, block.margin), NEVER)


def by_category(block: _Block) -> Tensor:
    """Another category than the anchor's, each category as likely, then any sentence in it.

    Weighted sampling without replacement by Gumbel noise (Efraimidis and Spirakis 2006; Kool et al. 2019).
    """
    category = block.category.expand_as(block.allowed)
    count = torch.zeros(len(category), int(block.category.max()) + 1, device=category.device)
    size = count.scatter_add_(1, category, block.allowed.float()).gather(1, category).clamp_min(1)
    preference = -size.log() - torch.log(-torch.log(block.noise))
    return preference.masked_fill(block.category == block.anchor_category, NEVER)


def by_cluster(block: _Block) -> Tensor:
    """The most similar candidate of each k-means cluster in turn, starting anywhere: hard, but diverse."""
    preference = torch.full_like(block.similarity, NEVER)
    usable = block.similarity.masked_fill(~block.allowed, NEVER)
    for number in range(int(block.clusters.max()) + 1):
        members = (block.clusters == number).nonzero()[:, 0]
        best = usable[:, members].topk(min(block.k, len(members)), dim=1)
        # Round r takes the r-th best of every cluster; the noise shuffles the clusters within a round.
        turn = -torch.arange(best.indices.shape[1], device=members.device) - block.noise[:, members[:1]]
        preference.scatter_(1, members[best.indices], turn.expand_as(best.values))
    return preference


STRATEGIES: dict[str, Callable[[_Block], Tensor]] = {
    "random": random,
    "hard": hard,
    "semi_hard": semi_hard,
    "cluster": by_cluster,
    "category": by_category,
}


def mine(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    strategy: str = "hard",
    k: int = 1,
    *,
    anchor_group: Sequence[int] | Tensor | None = None,
    candidate_group: Sequence[int] | Tensor | None = None,
    anchor_key: Sequence[int] | Tensor | None = None,
    candidate_key: Sequence[int] | Tensor | None = None,
    anchor_category: Sequence[int] | Tensor | None = None,
    candidate_category: Sequence[int] | Tensor | None = None,
    known_positives: Sequence[Sequence[int]] | None = None,
    margin: float = 0.1,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    clusters: int = 8,
    fallback: str = "random",
    generator: torch.Generator | None = None,
) -> Mined:
    """k negatives for each anchor, from candidates that pass the false-negative filter.

    Args:
        anchors, positives: [Q, d], row i being a pair.
        candidates: [M, d], the pool.
        strategy: a name from `STRATEGIES`.
        k: negatives for each anchor, at most M.
        anchor_group, candidate_group: [Q] and [M] integer codes of the meaning; equal codes are never negatives.
        anchor_key, candidate_key: [Q] and [M] integer codes of the normalised text; equal codes are never negatives.
        anchor_category, candidate_category: [Q] and [M] integer codes for the strategy `category`.
        known_positives: for each anchor the candidate rows that are positives, never negatives.
        margin: of the semi-hard band, in cosine similarity.
        absolute_margin: keep only s(a,n) ≤ s(a,p) − absolute_margin. Rules hard negatives out by definition.
        relative_margin: keep only s(a,n) ≤ s(a,p)·(1 − relative_margin); NV-Retriever (Moreira et al. 2024) uses 0.05.
        clusters: number of k-means clusters for the strategy `cluster`.
        fallback: what fills up where a strategy has fewer than k: `random` or `hard`, from the same filtered pool.
        generator: source of randomness; seed 0 when not given.

    Raises:
        ValueError: an unknown strategy or fallback, NaN rows, widths that differ, k beyond the pool, a missing
            category, or an anchor for which the filter leaves fewer than k candidates (the message counts why).
    """
    for name, value, choices in (("strategy", strategy, STRATEGIES), ("fallback", fallback, FALLBACKS)):
        if value not in choices:
            raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(choices)}")
    check_embeddings(anchors=anchors, positives=positives, candidates=candidates)
    if len(anchors) != len(positives):
        raise ValueError(f"one positive for each anchor: {len(anchors)} anchors, {len(positives)} positives")
    if not 1 <= k <= len(candidates):
        raise ValueError(f"k must lie between 1 and the pool's {len(candidates)} sentences, not {k}")
    if known_positives is not None and len(known_positives) != len(anchors):
        raise ValueError(f"known_positives must have {len(anchors)} lists, not {len(known_positives)}")
    if strategy == "category" and (anchor_category is None or candidate_category is None):
        raise ValueError("strategy 'category' needs anchor_category and candidate_category")
    device, rows, columns = candidates.device, len(anchors), len(candidates)
    generator = generator or torch.Generator().manual_seed(0)
    same = {
        "same group": _codes(anchor_group, candidate_group, rows, columns, device, "group"),
        "same text": _codes(anchor_key, candidate_key, rows, columns, device, "key"),
    }
    category = _codes(anchor_category, candidate_category, rows, columns, device, "category")
    seed = int(torch.randint(2**31, (1,), generator=generator))
    cluster_of = cluster(candidates, min(clusters, columns), seed) if strategy == "cluster" else None
    positive = cosine(anchors.float(), positives.float()).detach()

    parts, skipped = [], {}
    for part, similarity in similarity_blocks(anchors, candidates):
        allowed = torch.ones_like(similarity, dtype=torch.bool)
        for reason, taken_out in _false_negatives(
            part, similarity, positive, same, known_positives, absolute_margin, relative_margin
        ):
            skipped[reason] = skipped.get(reason, 0) + int((allowed & taken_out).sum())
            allowed &= ~taken_out
        block = _Block(similarity, positive[part, None], allowed, margin, k, generator)
        block.clusters = cluster_of
        if category:
            block.anchor_category, block.category = category[0][part, None], category[1]
        parts.append(_choose(block, strategy, fallback, part.start, skipped))
    indices, similarities, shortfall = (torch.cat(column) for column in zip(*parts, strict=True))
    return Mined(indices, similarities, positive, shortfall, {r: n for r, n in skipped.items() if n})


def _choose(
    block: _Block, strategy: str, fallback: str, first_row: int, skipped: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    left = block.allowed.sum(dim=1)
    if (left < block.k).any():
        row = int((left < block.k).nonzero()[0])
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.items() if n)
        raise ValueError(
            f"anchor {first_row + row}: the filter leaves {int(left[row])} of {block.allowed.shape[1]} candidates, "
            f"fewer than k={block.k} (taken out so far: {reasons}); enlarge the pool, lower k or relax the margins"
        )
    preference = STRATEGIES[strategy](block).masked_fill(~block.allowed, NEVER)
    wanted, index = preference.topk(block.k, dim=1)
    missing = wanted == NEVER
    if missing.any():
        # What the strategy chose stays ahead of everything that fills up.
        filler = (block.noise if fallback == "random" else block.similarity).masked_fill(~block.allowed, NEVER)
        chosen = torch.zeros_like(block.allowed).scatter_(1, index, ~missing)
        filling = filler.masked_fill(chosen, NEVER).topk(block.k, dim=1).indices
        place = (missing.cumsum(dim=1) - 1).clamp_min(0)
        index = torch.where(missing, filling.gather(1, place), index)
    return index, block.similarity.gather(1, index), missing.sum(dim=1)


def _false_negatives(part, similarity, positive, same, known_positives, absolute_margin, relative_margin):
    """(reason, mask [b, M]) for everything that must not serve as a negative."""
    for reason, pair in same.items():
        if pair:
            yield reason, pair[0][part, None] == pair[1]
    if known_positives is not None:
        mask = torch.zeros_like(similarity, dtype=torch.bool)
        for row, known in enumerate(known_positives[part]):
            mask[row, list(known)] = True
        yield "known positive", mask
    limit = positive[part, None]
    if absolute_margin is not None:
        yield "absolute margin", similarity > limit - absolute_margin
    if relative_margin is not None:
        yield "relative margin", ~within_relative_margin(limit, similarity, relative_margin)


def _codes(anchor, candidate, rows: int, columns: int, device, name: str) -> tuple[Tensor, Tensor] | None:
    if anchor is None and candidate is None:
        return None
    if anchor is None or candidate is None or len(anchor) != rows or len(candidate) != columns:
        sizes = [None if codes is None else len(codes) for codes in (anchor, candidate)]
        raise ValueError(f"anchor_{name} and candidate_{name} must have {rows} and {columns} codes, not {sizes}")
    return tuple(torch.as_tensor(codes).to(device) for codes in (anchor, candidate))


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
        relative_margin: a share of s(a,p); the paper's 0.05 keeps s(a,n) ≤ 0.95·s(a,p). Meant for s(a,p) > 0: where the
            positive is at a negative similarity, the rule keeps negatives that are nearer than it.

    Returns:
        [Q, M] booleans.
    """
    return negative_similarity <= positive_similarity * (1 - relative_margin)


def difficulty(positive_similarity: Tensor, negative_similarity: Tensor) -> Tensor:
    """The founding tutorial's difficulty of a triplet: s(a,n) − s(a,p) + 1, from −1 (easy) to 3; 1 is a tie."""
    return negative_similarity - positive_similarity + 1.0


def hardness(positive_similarity: Tensor, negative_similarity: Tensor, margin: float) -> list[str]:
    """FaceNet's name for each triplet: `easy`, `semi_hard` or `hard`. Two [Q] tensors in, Q names out."""
    names = []
    for s_p, s_n in zip(positive_similarity.tolist(), negative_similarity.tolist(), strict=True):
        names.append("hard" if s_n >= s_p else "semi_hard" if s_n >= s_p - margin else "easy")
    return names
