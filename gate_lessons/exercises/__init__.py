"""Checks that answer back: `check("info_nce", my_info_nce)` runs a learner's function and says one helpful sentence.

A check compares with the library's own tested function on several inputs, and, where the answer is wrong, with the
mistakes that people make, the founding tutorial's among them. It never raises for a wrong answer. The exercises
themselves are in `book` and `mining`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gate_lessons.exercises.book import EXERCISES
from gate_lessons.exercises.exercise import Exercise


@dataclass(frozen=True)
class Verdict:
    """Whether an answer passed, and the sentence that says why. A notebook shows the sentence."""

    passed: bool
    sentence: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return self.sentence


def check(name: str, answer: Callable[..., Any]) -> Verdict:
    """Run a learner's function against the exercise `name` (see `EXERCISES`).

    Raises:
        ValueError: there is no exercise of that name.
    """
    exercise = _exercise(name)
    reason = f" on all {len(exercise.inputs)} inputs."
    for number, arguments in enumerate(exercise.inputs, 1):
        where = f"on input {number} of {len(exercise.inputs)}, {_describe(arguments)}" if arguments else "when called"
        try:
            got = answer(*arguments)
        except NotImplementedError:
            return Verdict(False, "Not written yet: replace the line with NotImplementedError.")
        except Exception as error:  # whatever a learner's code raises is the learner's to read
            return Verdict(False, f"Your function raised {type(error).__name__} {where}: {error}")
        if got is None:
            return Verdict(False, f"Your function returned None {where}: is there a `return`?")
        if exercise.judge:
            right, reason = exercise.judge(got)
            if not right:
                return Verdict(False, reason)
        elif not _same(got, expected := exercise.solution(*arguments)):
            return Verdict(
                False, f"Not yet: {where}, expected {_show(expected)}, got {_show(got)}.{_cause(exercise, answer)}"
            )
    return Verdict(True, f"Correct{': ' * bool(exercise.judge)}{reason}")


def solution(name: str) -> None:
    """Print the library's own function for the exercise `name`."""
    print(inspect.getsource(_exercise(name).solution))


def _exercise(name: str) -> Exercise:
    if name not in EXERCISES:
        raise ValueError(f"no exercise {name!r}; the exercises are {', '.join(EXERCISES)}")
    return EXERCISES[name]


def _cause(exercise: Exercise, answer: Callable[..., Any]) -> str:
    for cause, mistake in exercise.mistakes.items():
        if all(_agree(answer, mistake, arguments) for arguments in exercise.inputs):
            return f" A likely cause: {cause}."
    return ""


def _agree(answer: Callable[..., Any], mistake: Callable[..., Any], arguments: tuple) -> bool:
    try:
        return _same(answer(*arguments), mistake(*arguments))
    except Exception:  # an answer that fails on this input is not this mistake
        return False


def _same(got: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor | float):
        try:
            got, expected = torch.as_tensor(got), torch.as_tensor(expected)
        except (TypeError, ValueError, RuntimeError):
            return False
        if got.shape != expected.shape or (got.dtype == torch.bool) != (expected.dtype == torch.bool):
            return False
        return torch.allclose(got.double(), expected.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    return type(got) is type(expected) and got == expected


def _describe(arguments: tuple) -> str:
    return ", ".join(
        _show(argument) if not _is_large(argument) else f"{list(argument.shape)}" for argument in arguments
    )


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 8


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() > 8:
            return f"a tensor of shape {list(value.shape)} with mean {value.double().mean():.4f}"
        return str(
            [round(v, 4) if isinstance(v, float) else v for v in value.flatten().tolist()]
            if value.dim()
            else round(value.item(), 4)
        )
    if isinstance(value, float):
        return f"{value:.4f}"
    return repr(value)
