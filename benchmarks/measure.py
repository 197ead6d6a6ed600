"""What every measurement of speed and memory shares: a row of the table, and times taken in turn."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

THREADS = 2


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        what: is measured.
        figure: what came out.
        bound: in words, nothing where the figure is there to be read only.
        holds: whether the figure keeps to the bound.
        measured: what the figure was made from.
    """

    what: str
    figure: float
    bound: str
    holds: bool
    measured: str = ""


def at_most(what: str, figure: float, limit: float, measured: str = "") -> Row:
    return Row(what, figure, f"≤ {limit:g}", figure <= limit, measured)


def at_least(what: str, figure: float, limit: float, measured: str = "") -> Row:
    return Row(what, figure, f"≥ {limit:g}", figure >= limit, measured)


def below(what: str, figure: float, limit: float, measured: str = "") -> Row:
    return Row(what, figure, f"< {limit:g}", figure < limit, measured)


def for_the_reader(what: str, figure: float, measured: str = "") -> Row:
    """A figure without a bound."""
    return Row(what, figure, "", True, measured)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes, what it left to a GPU included."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Until the GPU has done what it was given, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def medians(functions: Sequence[Callable[[], object]], trials: int, warmup: int = 2) -> list[float]:
    """Median seconds of each function, all of them called in turn, so that they meet the same machine."""
    rounds = [[seconds(function) for function in functions] for _ in range(warmup + trials)]
    return [statistics.median(times) for times in zip(*rounds[warmup:], strict=True)]


def against(ours: float, peers: float, peer: str) -> str:
    """Two times of one trial in words."""
    return f"{1000 * ours:.1f} ms, {peer} {1000 * peers:.1f} ms"
