"""Vectors in memory-mapped .npy files: a corpus larger than the memory, read where it is looked at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Shards:
    """The rows of several .npy files as one [M, d], read in float32 whatever the files hold.

    Indexing with a slice or a tensor of row numbers reads these rows; nothing else is kept in memory, and the pages of
    the files belong to the system, which drops them when memory is short.

    Attributes:
        shape: (M, d).
        paths: of the files, in order.
        dtype, device: of what is read.

    Args:
        files: a folder, whose .npy files are taken in the order of their names (so number them with leading zeros), or
            the files in order. Each holds [rows, d] in float16 or float32, all of one width and type.

    Raises:
        ValueError: a folder without shards, a shard that is missing, cut short, not [rows, d], not float16 or float32,
            or of another width or type than the first; the message names the file.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, files: str | Path | Sequence[str | Path]) -> None:
        one_folder = isinstance(files, str | Path)
        paths = sorted(Path(files).glob("*.npy")) if one_folder else [Path(file) for file in files]
        if not paths:
            raise ValueError(f"no shards: {files} holds no .npy files; write some with numpy.save")
        self.paths, self.arrays = paths, [_mapped(path) for path in paths]
        first = self.arrays[0]
        for path, array in zip(paths, self.arrays, strict=True):
            for what, this, that in (("width", array.shape[1], first.shape[1]), ("type", array.dtype, first.dtype)):
                if this != that:
                    raise ValueError(f"shards differ in {what}: {path} has {this}, {paths[0]} has {that}")
        self.ends = np.cumsum([len(array) for array in self.arrays])
        self.shape = (int(self.ends[-1]), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple:
        # Another process opens the files itself; the arrays would be sent number by number.
        return Shards, (self.paths,)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        begins = self.ends - [len(array) for array in self.arrays]
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            parts = [a[max(start - b, 0) : max(stop - b, 0)] for a, b in zip(self.arrays, begins, strict=True)]
            return torch.from_numpy(np.concatenate(parts, dtype=np.float32))
        rows = rows.numpy()
        found = np.empty((len(rows), self.shape[1]), np.float32)
        shard = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(shard):
            here = shard == number
            found[here] = self.arrays[number][rows[here] - begins[number]]
        return torch.from_numpy(found)


def _mapped(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"shard {path} is missing")
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"shard {path} is cut short or no .npy file of numbers ({error}); write it anew") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"shard {path} must hold [rows, d] with at least one row, not {list(np.shape(array))}")
    if array.dtype not in (np.float16, np.float32):
        raise ValueError(f"shard {path} must hold float16 or float32, not {array.dtype}")
    return array
