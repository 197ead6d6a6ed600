"""What a job mined, and the file of triplets that comes of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gate_lessons.mine_files.inputs import Inputs
from gate_lessons.mine_files.work import whole

if TYPE_CHECKING:
    from gate_lessons.mine_files.job import Mining

# Labels of the pairs that the triplets keep, and what a table of triplets calls them.
CARRIED = {"group": "group", "category": "topic", "dialect": "dialect", "split": "split"}


@dataclass(frozen=True)
class Result:
    """What was mined, see `miner.Mined`; and how.

    Attributes:
        indices, similarities: [Q, k] rows of the pool, −1 for none, and their similarities to the anchor.
        positive_similarity, shortfall: [Q].
        skipped: reason → candidates.
        search: `exact`, or the kind of the index.
    """

    indices: np.ndarray
    similarities: np.ndarray
    positive_similarity: np.ndarray
    shortfall: np.ndarray
    skipped: dict[str, int]
    search: str

    @cached_property
    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """[T] the anchor and the place, from 0, of each triplet, in their order."""
        return np.nonzero(self.indices >= 0)

    @cached_property
    def filled(self) -> np.ndarray:
        """[T] whether the fallback gave the negative: it fills the last places."""
        anchor, place = self.found
        return place >= self.indices.shape[1] - self.shortfall[anchor]

    @property
    def negatives(self) -> np.ndarray:
        """[T] rows of the pool."""
        return self.indices[self.found]


def triplets(inputs: Inputs, result: Result, mining: "Mining") -> Iterator[dict[str, Any]]:
    """The triplets, best first for each anchor, as they are written."""
    columns = {name: list(inputs.pairs[name]) for name in inputs.pairs}
    texts, ids = list(inputs.pool["text"]), list(inputs.pool["id"]) if "id" in inputs.pool else None
    for anchor, place, filled in zip(*(part.tolist() for part in (*result.found, result.filled)), strict=True):
        negative = int(result.indices[anchor, place])
        row = {
            "anchor": columns["anchor"][anchor],
            "positive": columns["positive"][anchor],
            "negative": texts[negative],
            "positive_similarity": _number(result.positive_similarity[anchor]),
            "negative_similarity": _number(result.similarities[anchor, place]),
            "rank": place + 1,
            "strategy": mining.fallback if filled else mining.strategy,
            "filled": filled,
        }
        if ids is not None:
            row["negative_id"] = ids[negative]
        row |= {called: columns[name][anchor] for name, called in CARRIED.items() if name in columns}
        if "group" in row:  # where one is missing, rows with the same anchor are one group, as in `data.load_triplets`
            row["group"] = row["group"] or columns["anchor_key"][anchor]
        yield row


def write_triplets(out: Path, inputs: Inputs, result: Result, mining: "Mining") -> None:
    """One JSON object a line, in a file that is there whole or not at all."""
    with whole(out) as file:
        for row in triplets(inputs, result, mining):
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _number(similarity: np.float32) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(similarity))
