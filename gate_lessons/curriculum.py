"""Which triplets, when: easy first, then medium, then all of them (Bengio et al. 2009).

A curriculum looks at the difficulty of every triplet, see `miner.difficulty`, and at how much of the training is done.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

STAGES = ("easy", "medium", "hard")
STARTS = (0.0, 0.2, 0.5)  # share of the training after which each stage begins: the tutorial's 2 + 3 + 5 epochs


@dataclass(frozen=True)
class Stage:
    """The stage's name and the indices [n] of the triplets that are trained on."""

    name: str
    indices: Tensor


class Curriculum(Protocol):
    """difficulty [T] of all triplets and the share of training that is done (0 ≤ progress < 1) → a stage."""

    def __call__(self, difficulty: Tensor, progress: float) -> Stage: ...


class AllAtOnce:
    """No curriculum: every triplet from the first step. The control."""

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        return Stage("all", torch.arange(len(difficulty)))


class ByQuantile:
    """Stages are shares of the triplets, the easiest first: never empty, whatever the encoder.

    Args:
        shares: growing shares in (0, 1], one for each of `STAGES`.
    """

    def __init__(self, shares: Sequence[float] = (1 / 3, 2 / 3, 1.0)) -> None:
        _check_growing("shares", shares)
        if shares[0] <= 0 or shares[-1] > 1:
            raise ValueError(f"shares must lie above 0 and up to 1, not {list(shares)}")
        self.shares = shares

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        number = stage_number(progress)
        return Stage(STAGES[number], easiest(difficulty, self.shares[number]))


class ByThreshold:
    """Stages are the triplets up to a difficulty: the founding tutorial's rule, with its thresholds as defaults.

    Args:
        thresholds: growing difficulties, one for each of `STAGES`.
    """

    def __init__(self, thresholds: Sequence[float] = (0.3, 0.6, 1.0)) -> None:
        _check_growing("thresholds", thresholds)
        self.thresholds = thresholds

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        number = stage_number(progress)
        indices = (difficulty <= self.thresholds[number]).nonzero()[:, 0]
        if not len(indices):
            share = (number + 1) / 3
            needed = math.ceil(1000 * float(torch.quantile(difficulty, share))) / 1000
            raise ValueError(
                f"stage {STAGES[number]!r} is empty: no triplet has difficulty ≤ {self.thresholds[number]}; they lie "
                f"between {difficulty.min():.3f} and {difficulty.max():.3f}. A threshold of "
                f"{needed:.3f} would select {(difficulty <= needed).float().mean():.0%} of them"
            )
        return Stage(STAGES[number], indices)


CURRICULA: dict[str, type] = {"none": AllAtOnce, "quantile": ByQuantile, "threshold": ByThreshold}


def easiest(difficulty: Tensor, share: float) -> Tensor:
    """Indices, ascending, of the given share of the triplets: the least difficult, at least one.

    Args:
        difficulty: [T].
        share: above 0 and up to 1.
    """
    count = max(1, round(share * len(difficulty)))
    return difficulty.argsort(stable=True)[:count].sort().values


def stage_number(progress: float) -> int:
    """0 easy, 1 medium, 2 hard: which stage a share of training belongs to."""
    if not 0 <= progress < 1:
        raise ValueError(f"progress is the share of training already done, 0 ≤ progress < 1, not {progress}")
    return sum(progress >= start for start in STARTS) - 1


def _check_growing(name: str, values: Sequence[float]) -> None:
    if len(values) != len(STAGES) or any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"{name} must be {len(STAGES)} growing numbers ({', '.join(STAGES)}), not {list(values)}")
