"""Which triplets, when: easy first (Bengio et al. 2009), at a fixed pace or at the pace of the learner.

A curriculum looks at the difficulty of every triplet, see `miner.difficulty`, as it was when negatives were last mined,
at how much of the training is done, and, where it adapts, at what the training shows. Whatever it selects, the trainer
takes the same number of steps: a small stage is passed over more often.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

STAGES = ("easy", "medium", "hard")
STARTS = (0.0, 0.2, 0.5)  # share of the training after which each stage begins: the tutorial's 2 + 3 + 5 epochs


@dataclass(frozen=True)
class Stage:
    """The stage's name and the indices [n] of the triplets that are trained on."""

    name: str
    indices: Tensor


class Curriculum:
    """difficulty [T] of all triplets and the share of training that is done (0 ≤ progress < 1) → a stage.

    The trainer asks after each mining and ten times in an epoch.

    Attributes:
        state: numbers that a curriculum carries from one question to the next, which checkpoints keep.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Told before a run: whatever an earlier one left is forgotten."""
        self.state: dict[str, float] = {}

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        raise NotImplementedError

    def observe(self, violation_rate: float) -> None:
        """Told after each step: the share of its triplets that violated the margin."""

    def mined_share(self, progress: float) -> float:
        """Share of the anchors whose negatives come from the recipe's strategy; the others get random ones."""
        return 1.0


class AllAtOnce(Curriculum):
    """No curriculum: every triplet from the first step. The control."""

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        return Stage("all", torch.arange(len(difficulty)))


class ByQuantile(Curriculum):
    """Stages are shares of the triplets, the easiest first: never empty, whatever the encoder.

    Args:
        shares: growing shares in (0, 1], one for each of `STAGES`.
    """

    def __init__(self, shares: Sequence[float] = (1 / 3, 2 / 3, 1.0)) -> None:
        super().__init__()
        _check_growing("shares", shares)
        if shares[0] <= 0 or shares[-1] > 1:
            raise ValueError(f"shares must lie above 0 and up to 1, not {list(shares)}")
        self.shares = shares

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        number = stage_number(progress)
        return Stage(STAGES[number], easiest(difficulty, self.shares[number]))


class ByThreshold(Curriculum):
    """Stages are the triplets up to a difficulty: the founding tutorial's rule, with its thresholds as defaults.

    Args:
        thresholds: growing difficulties, one for each of `STAGES`.
    """

    def __init__(self, thresholds: Sequence[float] = (0.3, 0.6, 1.0)) -> None:
        super().__init__()
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


class ByCompetence(Curriculum):
    """The easiest share that the learner is taken to be up to, growing at every question (Platanios et al. 2019).

    Competence c(t) = min(1, √(t·(1 − c₀²)/T + c₀²)): it grows fast at first, since new triplets make up an ever
    smaller part of those at hand.

    Args:
        start: c₀, the share at the beginning, above 0 and up to 1.
        full_at: T, the share of the training after which everything is at hand, above 0 and up to 1.
    """

    def __init__(self, start: float = 0.1, full_at: float = 0.5) -> None:
        super().__init__()
        for name, value in (("start", start), ("full_at", full_at)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be a share above 0 and up to 1, not {value}")
        self.start, self.full_at = start, full_at

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        check_progress(progress)
        squared = progress / self.full_at * (1 - self.start**2) + self.start**2
        competence = min(1.0, math.sqrt(squared))
        return Stage(f"competence {competence:.0%}", easiest(difficulty, competence))


class SelfPaced(Curriculum):
    """The triplets that the encoder does not get badly wrong, under a limit that rises (Kumar, Packer and Koller 2010).

    A triplet's loss is what it violates the margin by. The limit starts at the median loss, so that half of the
    triplets are in, and rises to the largest that was seen then. What the encoder learns brings triplets in as well:
    their losses fall below the limit.

    Args:
        margin: in cosine similarity.
        full_at: share of the training after which the limit is gone, above 0 and up to 1.
    """

    def __init__(self, margin: float = 0.3, full_at: float = 0.5) -> None:
        super().__init__()
        if not 0 < full_at <= 1:
            raise ValueError(f"full_at must be a share above 0 and up to 1, not {full_at}")
        self.margin, self.full_at = margin, full_at

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        check_progress(progress)
        loss = (difficulty - 1 + self.margin).clamp_min(0)
        if not self.state:
            self.state = {"low": float(loss.median()), "high": float(loss.max())}
        done = progress / self.full_at
        limit = self.state["low"] + done * (self.state["high"] - self.state["low"])
        chosen = (loss <= limit) if done < 1 else torch.ones_like(loss, dtype=torch.bool)
        indices = chosen.nonzero()[:, 0]
        return Stage("self-paced", indices if len(indices) else easiest(difficulty, 0.1))


class ByViolation(Curriculum):
    """The founding tutorial's advice made real: harder while few triplets violate the margin, easier while many do.

    At every question the easiest share grows by a step where the violation rate since the last one is below the band,
    and shrinks by one where it is above.

    Args:
        start: share of the triplets at the beginning.
        low, high: the band of violation rates in which the share stays, 0 ≤ low < high ≤ 1.
        step: how much the share grows or shrinks; once it has moved it stays between one step and 1.
    """

    def __init__(self, start: float = 0.3, low: float = 0.5, high: float = 0.8, step: float = 0.1) -> None:
        if not 0 <= low < high <= 1:
            raise ValueError(f"need 0 ≤ low < high ≤ 1, got low={low}, high={high}")
        for name, value in (("start", start), ("step", step)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be a share above 0 and up to 1, not {value}")
        self.start, self.low, self.high, self.step = start, low, high, step
        super().__init__()

    def begin(self) -> None:
        self.state = {"share": self.start, "seen": 0.0, "violations": 0.0}

    def observe(self, violation_rate: float) -> None:
        self.state["seen"] += 1
        self.state["violations"] += violation_rate

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        if self.state["seen"]:
            rate = self.state["violations"] / self.state["seen"]
            change = self.step if rate < self.low else -self.step if rate > self.high else 0.0
            share = min(1.0, max(self.step, self.state["share"] + change))
            self.state = {"share": share, "seen": 0.0, "violations": 0.0}
        return Stage(f"share {self.state['share']:.0%}", easiest(difficulty, self.state["share"]))


class MixedNegatives(AllAtOnce):
    """Every triplet from the start, but its negatives from random ones to those of the recipe's strategy.

    Args:
        full_at: share of the training after which every anchor's negatives come from the strategy.
    """

    def __init__(self, full_at: float = 0.5) -> None:
        super().__init__()
        if not 0 < full_at <= 1:
            raise ValueError(f"full_at must be a share above 0 and up to 1, not {full_at}")
        self.full_at = full_at

    def mined_share(self, progress: float) -> float:
        return min(1.0, progress / self.full_at)


CURRICULA: dict[str, type[Curriculum]] = {
    "none": AllAtOnce,
    "quantile": ByQuantile,
    "threshold": ByThreshold,
    "competence": ByCompetence,
    "self_paced": SelfPaced,
    "violation": ByViolation,
    "mixed": MixedNegatives,
}


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
    check_progress(progress)
    return sum(progress >= start for start in STARTS) - 1


def check_progress(progress: float) -> None:
    """Raise a ValueError unless 0 ≤ progress < 1."""
    if not 0 <= progress < 1:
        raise ValueError(f"progress is the share of training already done, 0 ≤ progress < 1, not {progress}")


def _check_growing(name: str, values: Sequence[float]) -> None:
    if len(values) != len(STAGES) or any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"{name} must be {len(STAGES)} growing numbers ({', '.join(STAGES)}), not {list(values)}")
