"""The work folder of an unfinished job: what is in it is whole, and belongs to the job."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

MANIFEST = "manifest.json"


class WorkFolder:
    """Arrays of a job by name, each written whole or not at all; what is damaged counts as not there.

    Args:
        folder: made if it is not there.
        manifest: what decides the job; JSON values.

    Raises:
        ValueError: a folder of another job (what differs), or one that is no work folder.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not any(path.name != f"{MANIFEST}.part" for path in folder.iterdir()):
            self.write_json(MANIFEST, manifest)
        theirs = self.read_json(MANIFEST)
        if theirs is None:
            raise ValueError(f"{folder} is no work folder of this command, or is damaged: {self._way_out()}")
        for name, value in manifest.items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"{folder} belongs to another job: {name} is {theirs.get(name)} there and {value} here; "
                    f"{self._way_out()}"
                )

    def _way_out(self) -> str:
        return "delete it to begin anew, or choose another --out"

    def path(self, name: str) -> Path:
        return self.folder / name

    def read_json(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        with whole(self.path(name)) as file:
            file.write((json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n").encode())

    def write(self, name: str, array: np.ndarray) -> None:
        """One array, `NAME` ending in .npy, that can be mapped into memory."""
        with whole(self.path(name)) as file:
            np.save(file, array)

    def holds(self, name: str, rows: int) -> bool:
        """Whether this array is there, uncut, with as many rows."""
        try:
            return np.load(self.path(name), mmap_mode="r").shape[:1] == (rows,)
        except (OSError, ValueError, EOFError):
            return False

    def write_together(self, name: str, **arrays: np.ndarray) -> None:
        """Several arrays with their checksums, `NAME` ending in .npz."""
        with whole(self.path(name)) as file:
            np.savez(file, **arrays)

    def read_together(self, name: str) -> dict[str, np.ndarray] | None:
        try:
            with np.load(self.path(name)) as found:
                return dict(found)
        except (OSError, ValueError, EOFError, KeyError, BadZipFile):
            return None

    def remove(self) -> None:
        """What names other things before them, and the manifest last: until then the same command would go on here."""
        for path in sorted(self.folder.iterdir(), key=Path.is_dir):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != MANIFEST:
                path.unlink()
        shutil.rmtree(self.folder)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there whole, and on the disk, or not at all; an older one stays until then."""
    working = path.with_name(f"{path.name}.part")
    with working.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    working.replace(path)


def sha256(source: str | Path) -> str:
    """Of a file, or of a folder's files and their names; the name itself of what is neither, such as a hub's model."""
    path = Path(source)
    if not path.exists():
        return str(source)
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as content:
            digest.update(f"{file.relative_to(path)} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
