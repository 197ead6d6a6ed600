"""Mixtures of strategies, and how one list fills up from another."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gate_lessons.miner.draws import uniform
from gate_lessons.miner.strategies import STRATEGIES

CHOICE = 7  # the stream of random numbers that says which strategy chooses


def parse(strategy: str | Mapping[str, float], progress: float | None = None) -> dict[str, float]:
    """Strategies and their shares, which sum to 1, from a name, a mapping, or a text such as `hard:0.7+random:0.3`.

    Args:
        strategy: in a text a weight may change in a straight line over the training: `random:1..0+hard:0..1` begins
            with random negatives and ends with hard ones.
        progress: share of the training that is done, 0 to 1. Without it weights that change are refused.

    Returns:
        Name → share of those whose weight is above 0.

    Raises:
        ValueError: an unknown name, a name that comes twice, a weight that is no number above 0 (where it changes: 0 at
            both ends, or all of them 0 at one end), or one that changes where there is no progress.
    """
    pairs = (
        [part.partition(":")[::2] for part in strategy.split("+")] if isinstance(strategy, str) else strategy.items()
    )
    ends: dict[str, tuple[float, float]] = {}
    for name, weight in pairs:
        if name not in STRATEGIES:
            raise ValueError(f"unknown strategy {name!r}; choose from {', '.join(STRATEGIES)}")
        if name in ends:
            raise ValueError(f"strategy {name!r} comes twice in {strategy!r}; give it one weight")
        ends[name] = _ends(name, weight or 1.0 if isinstance(weight, str) else weight)
        if progress is None and ends[name][0] != ends[name][1]:
            raise ValueError(
                f"the weight of strategy {name!r} changes over training, {weight}; a recipe can say so, but one mining "
                "needs one number"
            )
    if not ends:
        raise ValueError("a mixture needs at least one strategy, for example {'hard': 0.7, 'random': 0.3}")
    if not all(sum(weights) > 0 for weights in zip(*ends.values(), strict=True)):
        raise ValueError(f"at the beginning and at the end some weight must be above 0, not as in {strategy!r}")
    done = progress or 0.0
    weights = {name: first + done * (last - first) for name, (first, last) in ends.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items() if weight > 0}


def _ends(name: str, weight: str | float) -> tuple[float, float]:
    """The weight at the beginning of the training and at its end."""
    numbers = []
    for end in str(weight).split("..", 1):
        try:
            numbers.append(float(end))
        except ValueError:
            numbers.append(math.nan)
    if not (all(0 <= number < math.inf for number in numbers) and sum(numbers) > 0):
        raise ValueError(f"the weight of strategy {name!r} must be a number above 0, not {weight!r}")
    return numbers[0], numbers[-1]


def mix(lists: Tensor, weights: list[float], seed: int, first: int = 0) -> Tensor:
    """[S, Q, k] → [Q, k]: each place asks the strategy that is drawn for it for its best that is not yet taken.

    Args:
        lists: what each strategy chose, −1 where it has nothing.
        weights: shares of the strategies, which sum to 1.
        seed: of the draw.
        first: number of the first row, where the rows are a slice of more.
    """
    rows, places = torch.arange(lists.shape[1], device=lists.device), torch.arange(lists.shape[2], device=lists.device)
    steps = torch.tensor(weights, dtype=torch.float64, device=lists.device).cumsum(0)[:-1]
    which = torch.searchsorted(steps, uniform(seed + CHOICE, rows + first, places), right=True)
    mixed = torch.full_like(lists[0], -1)
    for place in range(lists.shape[2]):
        mixed[:, place] = _first_new(lists[which[:, place], rows], mixed[:, :place])
    return mixed.gather(1, (mixed < 0).int().argsort(dim=1, stable=True))


def fill(chosen: Tensor, filler: Tensor) -> Tensor:
    """[n, k] with the −1 replaced by what the filler [n, k] has beside."""
    for place in range(chosen.shape[1]):
        chosen[:, place] = torch.where(chosen[:, place] < 0, _first_new(filler, chosen), chosen[:, place])
    return chosen


def _first_new(options: Tensor, taken: Tensor) -> Tensor:
    """The first number of each row of `options` [n, k] that `taken` [n, t] does not have; −1 where there is none."""
    new = options >= 0
    for other in taken.T:
        new &= options != other[:, None]
    return torch.where(new.any(dim=1), options.gather(1, new.int().argmax(dim=1, keepdim=True))[:, 0], -1)
