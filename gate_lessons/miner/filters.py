"""The one filter for false negatives, that every strategy goes through."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gate_lessons.miner.hardness import within_relative_margin
from gate_lessons.miner.proposals import Proposals


def filter_out(found: Proposals) -> dict[str, Tensor]:
    """Say in the lists what is eligible and allowed; how many [n] of each list were taken out, by the first reason."""
    found.allowed, taken_out = found.indices >= 0, {}
    for reason, mask in _positives(found):
        taken_out[reason] = (found.allowed & mask).sum(dim=1)
        found.allowed = found.allowed & ~mask
    found.eligible = found.allowed
    for reason, mask in _out_of_bounds(found):
        taken_out[reason] = (found.allowed & mask).sum(dim=1)
        found.allowed = found.allowed & ~mask
    return taken_out


def _positives(found: Proposals) -> Iterator[tuple[str, Tensor]]:
    """(reason, mask [n, K]) for what may have the anchor's meaning."""
    task, rows, indices = found.task, found.rows[:, None], found.indices
    for reason, pair in (("same group", task.group), ("same text", task.key)):
        if pair is not None:
            yield reason, pair[0][rows] == pair[1][indices]
    if task.known is not None and len(task.known):
        code = rows * len(task.pool) + indices
        place = torch.searchsorted(task.known, code).clamp_max(len(task.known) - 1)
        yield "known positive", task.known[place] == code


def _out_of_bounds(found: Proposals) -> Iterator[tuple[str, Tensor]]:
    """(reason, mask [n, K]) for what is too similar, or not similar enough."""
    task, positive = found.task, found.positive
    if task.absolute_margin is not None:
        yield "absolute margin", found.similarity > positive - task.absolute_margin
    if task.relative_margin is not None:
        yield "relative margin", ~within_relative_margin(positive, found.similarity, task.relative_margin)
    if task.max_score is not None:
        yield "max score", found.similarity > task.max_score
    if task.min_score is not None:
        yield "min score", found.similarity < task.min_score
