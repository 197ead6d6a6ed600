"""How good is an encoder on sentences it has never seen? Item by item, so that encoders can be compared in pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from gate_lessons import metrics
from gate_lessons.data import (
    SPLITS,
    DataError,
    Group,
    candidate_pool,
    load_corpus,
    load_triplets,
    split_by_group,
    sts_pairs,
    triplets,
)
from gate_lessons.metrics import Interval


class Similarity(Protocol):
    """Anything that compares texts in pairs: an encoder, or the lexical baseline."""

    def similarity(self, texts1: Sequence[str], texts2: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class HeldOut:
    """Held-out questions: triplets (anchor, positive, negative) and, where there are any, scored pairs."""

    triplets: pd.DataFrame
    sts: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["sentence1", "sentence2", "score"]))

    @classmethod
    def of_groups(cls, groups: Sequence[Group]) -> "HeldOut":
        """The course's test: anchor, *distant* paraphrase, contradiction; and the groups' scored pairs."""
        return cls(triplets(groups, positives=("distant",)), sts_pairs(groups))


@dataclass(frozen=True)
class Task:
    """Something to learn: triplets to train on, questions to choose by (dev), questions to report once (test).

    Attributes:
        name: `corpus`, or the file.
        train: triplets, see `data.load_triplets`.
        dev, test: held-out questions of other groups.
    """

    name: str
    train: pd.DataFrame
    dev: HeldOut
    test: HeldOut

    @property
    def texts(self) -> list[str]:
        """The training sentences: what document frequencies may be counted on."""
        return list(candidate_pool(self.train)["text"])


def load_task(dataset: str = "corpus") -> Task:
    """The course's own corpus, or triplets from a file or hub set (see `data.load_triplets`).

    A file with no `split` column is split 70 / 10 / 20, whole groups at a time.

    Raises:
        DataError: a file that cannot be used, or one that has no rows in one of the splits train, dev and test.
    """
    if dataset == "corpus":
        return Task(dataset, triplets(load_corpus("train")), *(HeldOut.of_groups(load_corpus(s)) for s in SPLITS[1:]))
    table = load_triplets(dataset)
    if "split" not in table:
        table = split_by_group(table)
    parts = {split: table[table["split"] == split].reset_index(drop=True) for split in SPLITS}
    if empty := [split for split, part in parts.items() if not len(part)]:
        raise DataError(f"{dataset}: no rows with split {empty[0]!r}; training needs train, dev and test")
    return Task(str(dataset), parts["train"], HeldOut(parts["dev"]), HeldOut(parts["test"]))


@dataclass(frozen=True)
class Answers:
    """One encoder's similarities on a `HeldOut`: [n] for the triplets' two sides and [m] for the scored pairs."""

    positive: np.ndarray
    negative: np.ndarray
    sts: np.ndarray
    score: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """[n] 1.0 where the positive is strictly nearer than the negative."""
        return (self.positive > self.negative).astype(float)

    def metrics(self) -> dict[str, float]:
        """Point values, for a table or a history."""
        values = {
            "triplet_accuracy": float(self.correct.mean()),
            "similarity_gap": float((self.positive - self.negative).mean()),
        }
        if len(self.sts):
            values["sts_spearman"] = float(metrics.spearman(self.sts, self.score))
            values["sts_pearson"] = float(metrics.pearson(self.sts, self.score))
        return values


def evaluate(encoder: Similarity, held_out: HeldOut) -> Answers:
    """Ask an encoder, or the baseline, every held-out question."""
    t, s = held_out.triplets, held_out.sts
    return Answers(
        positive=encoder.similarity(list(t["anchor"]), list(t["positive"])),
        negative=encoder.similarity(list(t["anchor"]), list(t["negative"])),
        sts=encoder.similarity(list(s["sentence1"]), list(s["sentence2"])) if len(s) else np.empty(0),
        score=s["score"].to_numpy(float),
    )


def summary(runs: Sequence[Answers]) -> dict[str, Interval]:
    """Each metric over training seeds: averaged over the seeds, the interval over test items."""
    found = {"triplet_accuracy": metrics.bootstrap(_correct(runs))}
    if len(runs[0].sts):
        found["sts_spearman"] = metrics.bootstrap_spearman(_sts(runs), runs[0].score)
    return found


def compare(treatment: Sequence[Answers], control: Sequence[Answers]) -> dict[str, Interval]:
    """Treatment minus control, each averaged over its seeds, paired by test item: see `Interval.excludes_zero`."""
    difference = _correct(treatment).mean(axis=0) - _correct(control).mean(axis=0)
    found = {"triplet_accuracy": metrics.bootstrap(difference)}
    if len(treatment[0].sts):
        found["sts_spearman"] = metrics.bootstrap_spearman(_sts(treatment), treatment[0].score, _sts(control))
    return found


def _correct(runs: Sequence[Answers]) -> np.ndarray:
    return np.stack([run.correct for run in runs])


def _sts(runs: Sequence[Answers]) -> np.ndarray:
    return np.stack([run.sts for run in runs])
