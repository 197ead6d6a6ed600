"""What an exercise is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """What a learner writes.

    Attributes:
        solution: a function that does it, the library's own where it has one.
        inputs: arguments of each trial.
        mistakes: what a wrong answer does → the function that does it.
        judge: where many answers are right: what the learner's function returned → whether it is right, and a sentence
            that says why. Without a judge, an answer is right where it equals the solution's.
    """

    solution: Callable[..., Any]
    inputs: Sequence[tuple]
    mistakes: dict[str, Callable[..., Any]] = field(default_factory=dict)
    judge: Callable[[Any], tuple[bool, str]] | None = None
