"""Files of pairs and sentences as numbers: what is embedded, and the codes that the miner's filter compares."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gate_lessons import features
from gate_lessons.data import codes, load_pairs, load_sentences
from gate_lessons.files import DataError
from gate_lessons.miner import STRATEGIES
from gate_lessons.text import normalize

# Labels of a sentence, and what their columns may be called.
LABELS = {name: (name,) for name in ("id", "split", "group", "dialect")} | {"category": ("category", "topic")}
ARGUMENTS = {"group": "group", "category": "category", "dialect": "variety"}  # of `miner.mine`


@dataclass(frozen=True)
class Inputs:
    """What a job mines for, and from.

    Attributes:
        names: the file of the pairs, and the file that the pool comes from (the same where there is no corpus).
        pairs: anchor, positive, line, anchor_key, positive_key, and group, category, dialect where the file has them.
        pool: text, line, key, and id, group, category, dialect where the file has them: the candidates, one for each
            normalised text.
        sentences: how many there were before.
        known_positives: for each anchor the rows of the pool that are never its negatives.
    """

    names: tuple[str, str]
    pairs: pd.DataFrame
    pool: pd.DataFrame
    sentences: int
    known_positives: list[list[int]]

    @cached_property
    def texts(self) -> list[str]:
        """All distinct sentences, those of the pool first and in its order."""
        return list(dict.fromkeys(chain(self.pool["text"], self.pairs["anchor"], self.pairs["positive"])))

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """[Q] the rows of `texts` that the anchors and the positives are."""
        number = {text: row for row, text in enumerate(self.texts)}
        return tuple(torch.tensor([number[text] for text in self.pairs[role]]) for role in ("anchor", "positive"))

    def where(self, row: int) -> str:
        """File and line of a text."""
        if row < len(self.pool):
            return f"{self.names[1]}, line {self.pool['line'][row]}"
        pair = min(int((rows == row).int().argmax()) for rows in self.rows if (rows == row).any())
        return f"{self.names[0]}, line {self.pairs['line'][pair]}"

    def labels(self, strategies: Sequence[str]) -> dict[str, Any]:
        """What the miner is told beside embeddings: codes [Q] and [M], and features where a strategy asks for any.

        Raises:
            DataError: a strategy that needs a column that is not there, or a label that is missing.
        """
        needs = {need for name in strategies for need in STRATEGIES[name].needs}
        found = dict(
            zip(("anchor_key", "candidate_key"), codes(self.pairs["anchor_key"], self.pool["key"]), strict=True)
        )
        for column, argument in ARGUMENTS.items():
            both = column in self.pairs and column in self.pool
            if argument in needs or (column == "group" and both):
                sides = self._sides(column, strategies)
                found |= zip((f"anchor_{argument}", f"candidate_{argument}"), codes(*sides), strict=True)
        return found | features.options(strategies, list(self.pairs["anchor"]), list(self.pool["text"]))

    def _sides(self, column: str, strategies: Sequence[str]) -> list[pd.Series]:
        for name, table in zip(self.names, (self.pairs, self.pool), strict=True):
            if column not in table:
                called = " or ".join(map(repr, LABELS[column]))
                raise DataError(f"{name}: strategy {'+'.join(strategies)} needs a column {called} in both files")
            if column != "group" and (missing := table[column].isna()).any():
                raise DataError(f"{name}, line {table['line'][int(missing.argmax())]}: {column!r} is empty")
        # A sentence without a group has a meaning of its own.
        return [
            table[column].where(table[column].notna(), [f"only:{side}:{row}" for row in range(len(table))])
            for side, table in (("anchor", self.pairs), ("candidate", self.pool))
        ]


def read_inputs(pairs: str | Path, corpus: str | Path | None = None) -> Inputs:
    """Pairs, and the sentences to mine from; without a corpus these are the sentences of the pairs.

    Raises:
        DataError: see `data.load_pairs` and `data.load_sentences`.
    """
    ours = _with_labels(load_pairs(pairs), ["anchor", "positive"])
    for role in ("anchor", "positive"):
        ours[f"{role}_key"] = _keys(ours[role])
    if corpus is None:
        kept = [column for column in ("line", *ARGUMENTS) if column in ours]
        sides = [ours[[role, *kept]].rename(columns={role: "text"}) for role in ("anchor", "positive")]
        sentences = pd.concat(sides, ignore_index=True)
    else:
        sentences = _with_labels(load_sentences(corpus), ["text"])
    sentences["key"] = _keys(sentences["text"])
    twice = sentences.duplicated("key")
    pool = sentences[~twice].reset_index(drop=True)
    names = str(pairs), str(pairs if corpus is None else corpus)
    return Inputs(names, ours, pool, len(sentences), _known_positives(ours, pool, sentences[twice]))


def _known_positives(pairs: pd.DataFrame, pool: pd.DataFrame, dropped: pd.DataFrame) -> list[list[int]]:
    """The positives of all pairs with the anchor's text; and what stands under its group as well as under another."""
    place = {key: row for row, key in enumerate(pool["key"])}
    partners, groups = defaultdict(set), defaultdict(set)
    for anchor, positive in zip(pairs["anchor_key"], pairs["positive_key"], strict=True):
        if positive in place:
            partners[anchor].add(place[positive])
    if "group" in pairs and "group" in pool:
        named = dropped[dropped["group"].notna()]
        for group, key in zip(named["group"], named["key"], strict=True):
            groups[group].add(place[key])
        return [sorted(partners[a] | groups[g]) for a, g in zip(pairs["anchor_key"], pairs["group"], strict=True)]
    return [sorted(partners[anchor]) for anchor in pairs["anchor_key"]]


def _with_labels(table: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
    """The columns that count, under one name each; labels as text, since a CSV file has only text, or None."""
    found = table[texts].assign(line=table.attrs["lines"])
    for label, columns in LABELS.items():
        if column := next((column for column in columns if column in table), None):
            found[label] = pd.Series([_label(value) for value in table[column]], dtype=object)
    return found


def _label(value: Any) -> str | None:
    if value is None or value != value or not str(value).strip():
        return None
    # Beside rows without one, whole numbers have become 7.0.
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def _keys(texts: pd.Series) -> list[str]:
    """Normalised texts; one of which nothing is left, such as «!!!», as it stands."""
    return [normalize(text) or text for text in texts]
