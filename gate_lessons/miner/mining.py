"""From embeddings to negatives: lists are proposed, filtered, and grow where they are too short."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gate_lessons.miner.filters import filter_out
from gate_lessons.miner.hardness import difficulty
from gate_lessons.miner.mixture import fill, mix, parse
from gate_lessons.miner.proposals import NUMBERS, Task, cosine
from gate_lessons.miner.strategies import NEVER, STRATEGIES, Hard, Strategy
from gate_lessons.search import ExactPool, Pool, Shards, check_embeddings

FALLBACKS = ("random", "hard", "none")
DEEPER = 4  # times as long is the next list of an anchor whose list was too short

Codes = Sequence[int] | Tensor | None


@dataclass(frozen=True)
class Mined:
    """What mining found.

    Attributes:
        indices: [Q, k] rows of the candidates, the most preferred first; −1 where nothing was found or filled in.
        similarities: [Q, k] cosine similarity of each to its anchor; NaN where there is none.
        positive_similarity: [Q] cosine similarity of each anchor to its positive.
        shortfall: [Q] how many of the k the strategy could not give, so that the fallback filled them.
        skipped: candidates that the filter took out of the lists that were looked at, by the first reason that applied.
    """

    indices: Tensor
    similarities: Tensor
    positive_similarity: Tensor
    shortfall: Tensor
    skipped: dict[str, int]

    def difficulty(self) -> Tensor:
        """[Q] difficulty of each anchor's triplets, averaged over its negatives; NaN where it has none."""
        return difficulty(self.positive_similarity, self.similarities.nanmean(dim=1))


def mine(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor | Shards | Pool,
    strategy: str | Mapping[str, float] = "hard",
    num_negatives: int = 1,
    *,
    anchor_group: Codes = None,
    candidate_group: Codes = None,
    anchor_key: Codes = None,
    candidate_key: Codes = None,
    known_positives: Sequence[Sequence[int]] | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    range_min: int = 0,
    range_max: int | None = None,
    sampling_strategy: str = "top",
    margin: float = 0.1,
    clusters: int | Tensor = 8,
    anchor_category: Codes = None,
    candidate_category: Codes = None,
    anchor_variety: Codes = None,
    candidate_variety: Codes = None,
    anchor_features: Any = None,
    candidate_features: Any = None,
    fallback: str = "random",
    first_anchor: int = 0,
    generator: torch.Generator | None = None,
) -> Mined:
    """Negatives for each anchor, from candidates that pass the false-negative filter.

    The words are those of sentence-transformers' `mine_hard_negatives` where it has one.

    Args:
        anchors, positives: [Q, d], row i being a pair.
        candidates: [M, d], or a pool over them, see `search`; exact as far as the pool is.
        strategy: a name from `STRATEGIES`, or several with weights, as a mapping or as `hard:0.7+random:0.3`: by weight
            each negative of each anchor is drawn from one of them.
        num_negatives: k for each anchor, at most M.
        anchor_group, candidate_group: [Q] and [M] integer codes of the meaning; equal codes are never negatives.
        anchor_key, candidate_key: [Q] and [M] integer codes of the normalised text; equal codes are never negatives.
        known_positives: for each anchor the candidate rows that are positives, never negatives.
        absolute_margin: keep only s(a,n) ≤ s(a,p) − absolute_margin. Rules hard negatives out by definition.
        relative_margin: keep only s(a,n) ≤ s(a,p) − relative_margin·|s(a,p)|; Moreira et al. (2024) use 0.05.
        max_score, min_score: keep only min_score ≤ s(a,n) ≤ max_score.
        range_min: pass over that many of the nearest that would be taken. For strategies that rank.
        range_max: look only at that many of the nearest that are no positives. For strategies that rank.
        sampling_strategy: `top`, or `random` among what is left up to `range_max`, which then is
            range_min + 10·num_negatives where it is not given. For strategies that rank.
        margin: of the semi-hard band, in cosine similarity.
        clusters: number of k-means clusters for `cluster`, or the cluster [M] of each candidate (`search.cluster`),
            made once for several calls.
        anchor_category, candidate_category: [Q] and [M] integer codes, for `category`.
        anchor_variety, candidate_variety: [Q] and [M] integer codes of the dialect, for `dialect_twin`.
        anchor_features, candidate_features: sparse matrices [Q, V] and [M, V] (see `features`), for `lexical`,
            `same_root` and `dialect_twin`.
        fallback: what fills up where a strategy has fewer than k: `random` or `hard`, of all that the filter leaves
            (ranks do not count), or `none`.
        first_anchor: number of the first anchor, where the anchors are a slice of more: slices, each with a generator
            of the same seed, find what one call for all would find.
        generator: source of randomness; seed 0 when not given.

    Raises:
        ValueError: what does not fit, in one sentence; or an anchor for which the filter leaves the fallback fewer than
            k candidates (the message counts why).
    """
    pool = _pool(anchors, positives, candidates)
    weights = check_parameters(
        strategy, num_negatives, len(pool), clusters, range_min, range_max, sampling_strategy, fallback
    )
    rows, columns, device = len(anchors), len(pool), anchors.device
    task = Task(
        pool=pool,
        anchors=anchors.detach(),
        positive=cosine(anchors.detach(), positives.detach()),
        k=num_negatives,
        first=first_anchor,
        seed=int(torch.randint(2**62, (1,), generator=generator or torch.Generator().manual_seed(0))),
        margin=margin,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        min_score=min_score,
        max_score=max_score,
        range_min=range_min,
        range_max=range_max,
        sampling_strategy=sampling_strategy,
        clusters=clusters,
        group=_codes("group", anchor_group, candidate_group, rows, columns, device),
        key=_codes("key", anchor_key, candidate_key, rows, columns, device),
        category=_codes("category", anchor_category, candidate_category, rows, columns, device),
        variety=_codes("variety", anchor_variety, candidate_variety, rows, columns, device),
        known=_known(known_positives, rows, columns, device),
        features=_features(anchor_features, candidate_features, rows, columns),
    )
    _check_needs(task, weights)
    return _mine(task, weights, fallback)


def _mine(task: Task, weights: Mapping[str, float], fallback: str) -> Mined:
    rows, skipped = torch.arange(len(task.anchors), device=task.anchors.device), Counter()
    lists = [_choose(task, STRATEGIES[name], rows, skipped) for name in weights]
    indices = lists[0] if len(lists) == 1 else mix(torch.stack(lists), list(weights.values()), task.seed, task.first)
    shortfall = (indices < 0).sum(dim=1)
    short = shortfall.nonzero()[:, 0]
    if len(short) and fallback != "none":
        anything = replace(task, range_min=0, range_max=None, sampling_strategy="top")
        indices[short] = fill(indices[short], _choose(anything, STRATEGIES[fallback], short, skipped))
        if len(lacking := (indices < 0).any(dim=1).nonzero()):
            raise ValueError(_too_few(task, lacking[0]))
    similarities = task.similarity(rows, indices.clamp_min(0)).masked_fill(indices < 0, torch.nan)
    return Mined(indices, similarities, task.positive, shortfall, {reason: n for reason, n in skipped.items() if n})


def _choose(task: Task, strategy: Strategy, rows: Tensor, skipped: Counter, depth: int | None = None) -> Tensor:
    """What one strategy takes for some anchors: candidates [n, k], the most preferred first, −1 where it has none."""
    depth = strategy.depth(task) if depth is None else depth
    chosen = torch.full((len(rows), task.k), -1, device=rows.device)
    for part in torch.arange(len(rows), device=rows.device).split(max(1, NUMBERS // strategy.columns(task, depth))):
        found = strategy.propose(task, rows[part], depth)
        taken_out = filter_out(found)
        preference, bound = strategy.prefer(found)
        best = preference.topk(min(task.k, preference.shape[1]), dim=1)
        chosen[part, : best.indices.shape[1]] = found.indices.gather(1, best.indices).masked_fill(
            best.values == NEVER, -1
        )
        enough = (chosen[part, -1] >= 0) & (best.values[:, -1] >= bound)
        done = enough | (bound == NEVER)
        for reason, count in taken_out.items():
            skipped[reason] += int(count[done].sum())
        if not done.all():
            chosen[part[~done]] = _choose(task, strategy, rows[part[~done]], skipped, DEEPER * depth)
    return chosen


def _too_few(task: Task, row: Tensor) -> str:
    everything = Hard().propose(task, row, len(task.pool))
    reasons = ", ".join(f"{int(n)} {reason}" for reason, n in filter_out(everything).items() if n)
    return (
        f"anchor {task.first + int(row)}: the filter leaves {int(everything.allowed.sum())} of {len(task.pool)} "
        f"candidates, fewer than num_negatives={task.k} (taken out: {reasons}); enlarge the pool, lower num_negatives, "
        "relax the margins, or choose the fallback 'none'"
    )


# ---------------------------------------------------------------------------------------------- checks


def _pool(anchors: Tensor, positives: Tensor, candidates: Tensor | Shards | Pool) -> Pool:
    """The candidates as a pool, after a look at whether the embeddings fit one another."""
    if isinstance(candidates, Tensor):
        check_embeddings(anchors=anchors, positives=positives, candidates=candidates)
    else:
        check_embeddings(anchors=anchors, positives=positives)
    if len(anchors) != len(positives):
        raise ValueError(f"one positive for each anchor: {len(anchors)} anchors, {len(positives)} positives")
    pool = candidates if hasattr(candidates, "nearest") else ExactPool(candidates)
    if pool.width != anchors.shape[1]:
        raise ValueError(f"dimensions differ: anchors {list(anchors.shape)}, a pool of width {pool.width}")
    return pool


def check_parameters(
    strategy: str | Mapping[str, float],
    num_negatives: int,
    candidates: int,
    clusters: int | Tensor = 8,
    range_min: int = 0,
    range_max: int | None = None,
    sampling_strategy: str = "top",
    fallback: str = "random",
) -> dict[str, float]:
    """What `mine` asks of its parameters before it looks at vectors, for who has none yet.

    Args:
        candidates: M; the others as in `mine`.

    Returns:
        The strategies and their shares, see `parse`.

    Raises:
        ValueError: what does not fit, in one sentence.
    """
    weights = parse(strategy)
    for name, value, choices in (
        ("fallback", fallback, FALLBACKS),
        ("sampling_strategy", sampling_strategy, ("top", "random")),
    ):
        if value not in choices:
            raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(choices)}")
    if not 1 <= num_negatives <= candidates:
        raise ValueError(f"num_negatives must lie between 1 and the pool's {candidates} sentences, not {num_negatives}")
    if isinstance(clusters, Tensor) and len(clusters) != candidates:
        raise ValueError(
            f"clusters must name the cluster of each of the {candidates} candidates, not of {len(clusters)}"
        )
    if isinstance(clusters, int) and clusters < 1:
        raise ValueError(f"clusters must be at least 1, not {clusters}")
    _check_ranks(weights, num_negatives, range_min, range_max, sampling_strategy)
    return weights


def _check_ranks(
    weights: Mapping[str, float], k: int, range_min: int, range_max: int | None, sampling_strategy: str
) -> None:
    if not 0 <= range_min < (math.inf if range_max is None else range_max):
        raise ValueError(f"range_min must be 0 or more and below range_max, not {range_min} with range_max={range_max}")
    if range_max is not None and range_max - range_min < k:
        raise ValueError(
            f"the ranks from range_min={range_min} to range_max={range_max} are fewer than num_negatives={k}; "
            "widen them"
        )
    asked = (range_min, range_max, sampling_strategy) != (0, None, "top")
    if asked and not any(STRATEGIES[name].ranks for name in weights):
        raise ValueError(
            f"range_min, range_max and sampling_strategy are for strategies that rank; {' and '.join(weights)} does not"
        )


def _check_needs(task: Task, weights: Mapping[str, float]) -> None:
    for name in weights:
        for need in STRATEGIES[name].needs:
            if getattr(task, need) is None:
                raise ValueError(f"strategy {name!r} needs anchor_{need} and candidate_{need}")


def _codes(name: str, anchor: Codes, candidate: Codes, rows: int, columns: int, device: torch.device):
    if anchor is None and candidate is None:
        return None
    if anchor is None or candidate is None or len(anchor) != rows or len(candidate) != columns:
        sizes = [None if codes is None else len(codes) for codes in (anchor, candidate)]
        raise ValueError(f"anchor_{name} and candidate_{name} must have {rows} and {columns} codes, not {sizes}")
    return tuple(torch.as_tensor(codes).to(device) for codes in (anchor, candidate))


def _features(anchor: Any, candidate: Any, rows: int, columns: int) -> tuple[Any, Any] | None:
    if anchor is None and candidate is None:
        return None
    shapes = [None if features is None else features.shape for features in (anchor, candidate)]
    if None in shapes or shapes[0][1] != shapes[1][1] or (shapes[0][0], shapes[1][0]) != (rows, columns):
        raise ValueError(
            f"anchor_features and candidate_features must be [{rows}, V] and [{columns}, V], not {shapes[0]} and "
            f"{shapes[1]}"
        )
    return anchor.tocsr(), candidate.T.tocsr()


def _known(lists: Sequence[Sequence[int]] | None, rows: int, columns: int, device: torch.device) -> Tensor | None:
    """Row · M + candidate of all known positives, sorted."""
    if lists is None:
        return None
    if len(lists) != rows:
        raise ValueError(f"known_positives must have {rows} lists, not {len(lists)}")
    row = np.repeat(np.arange(rows), [len(known) for known in lists])
    candidate = np.fromiter(chain.from_iterable(lists), np.int64, len(row))
    code = np.sort(row * columns + candidate)
    outside, twice = (candidate < 0) | (candidate >= columns), code[1:] == code[:-1]
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(
            f"known_positives of anchor {row[at]} has candidate {candidate[at]}; the pool has 0 to {columns - 1}"
        )
    if twice.any():
        anchor, again = divmod(int(code[twice.argmax()]), columns)
        raise ValueError(f"known_positives of anchor {anchor} has candidate {again} twice")
    return torch.from_numpy(code).to(device)
