"""Checkpoints of a training run: safetensors and JSON, written whole or not at all, checked when they are read."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

TENSORS, STATE = "tensors.safetensors", "state.json"
KEPT = 2  # the last one, and the one before it in case the last is damaged


class CheckpointError(ValueError):
    """No checkpoint of a folder can be used, or it belongs to another run."""


class Checkpoint(NamedTuple):
    """What a run needs to go on: its tensors by name, and everything else as JSON."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in a folder, `step-00000120` and so on; the last two are kept.

    Args:
        folder: made when the first is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.refused: list[Path] = []

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint under another name, bring it to the disk, then rename it; then drop the oldest."""
        from safetensors.torch import save_file

        done = self.folder / f"step-{step:08d}"
        working = done.with_suffix(".part")
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        # Clones, since safetensors refuses weights that share their memory.
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, working / TENSORS
        )
        text = json.dumps(dict(state), default=lambda number: number.item())  # NumPy's numbers
        content = {"sha256": _digest(working / TENSORS, text), "state": text}
        (working / STATE).write_text(json.dumps(content), encoding="utf-8")
        for path in (working / TENSORS, working / STATE, working):
            _to_disk(path)
        for damaged in self.refused:  # they must not count among those that are kept
            shutil.rmtree(damaged)
        self.refused = []
        shutil.rmtree(done, ignore_errors=True)
        working.replace(done)
        _to_disk(self.folder)
        for old in self.paths()[:-KEPT]:
            shutil.rmtree(old)
        return done

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none yet.

        A damaged one is refused with a warning that says why; the next `save` deletes it.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
        """
        damage = []
        for path in reversed(self.paths()):
            try:
                found = _read(path)
            except CheckpointError as error:
                damage.append(str(error))
                self.refused.append(path)
                continue
            for sentence in damage:
                warnings.warn(f"{sentence}; going on from {path.name} instead", stacklevel=2)
            return found
        if damage:
            raise CheckpointError(f"{'; '.join(damage)}. Delete {self.folder} to train from the beginning")
        return None

    def paths(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".part")


def _read(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        text, expected = content["state"], content["sha256"]
        found = _digest(path / TENSORS, text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from None
    if found != expected:
        raise CheckpointError(f"checkpoint {path} is damaged: its contents do not have the checksum that it names")
    return Checkpoint(path, load_file(path / TENSORS), json.loads(text))


def _digest(tensors: Path, text: str) -> str:
    with tensors.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(text.encode())
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
