"""Parameters on a command line: `--name value …`, checked against names and defaults that are known."""

import ast
import difflib
from collections.abc import Mapping, Sequence
from typing import Any


class ParameterError(ValueError):
    """A parameter that does not exist, or a value of the wrong type."""


def parse(owner: str, known: Mapping[str, Any], words: Sequence[str]) -> dict[str, list[Any]]:
    """`--temperature 0.05 0.1 --seed 0` → {"temperature": [0.05, 0.1], "seed": [0]}.

    Args:
        owner: who has the parameters, for the messages.
        known: name → default, whose type the values take.
        words: of the command line.

    Raises:
        ParameterError: a name that is not known (with the nearest that is), no value, a value of another type.
    """
    found, name = {}, None
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            _check_name(owner, name, known)
            if name in found:
                raise ParameterError(f"--{name} is given twice; write all its values after one --{name}")
            found[name] = []
        elif name is None:
            raise ParameterError(f"{word!r} belongs to no parameter; write --NAME before its values")
        else:
            found[name].append(_value(name, word, known[name]))
    if empty := [name for name, values in found.items() if not values]:
        raise ParameterError(f"--{empty[0]} has no value")
    return found


def single(found: Mapping[str, list[Any]], owner: str) -> dict[str, Any]:
    """The same with one value each, for who takes no more."""
    if many := [name for name, values in found.items() if len(values) > 1]:
        raise ParameterError(f"--{many[0]} has {len(found[many[0]])} values; {owner} takes one")
    return {name: values[0] for name, values in found.items()}


def _check_name(owner: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean --{near[0]}?" if near else f"it has {', '.join(known)}"
        raise ParameterError(f"{owner} has no parameter {name!r}; {hint}")


def _value(name: str, word: str, default: Any) -> Any:
    """The word as a value of the default's type."""
    if isinstance(default, str):
        return word
    try:
        value = ast.literal_eval(word.capitalize() if word in ("true", "false") else word)
    except (ValueError, SyntaxError):
        value = word
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ParameterError(f"--{name} takes {type(default).__name__}, such as {default!r}, not {word!r}")
    return value
