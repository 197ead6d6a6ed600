"""How good is an encoder on sentences it has never seen? Item by item, so that two encoders can be compared in pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from gate_lessons import metrics
from gate_lessons.data import Group, sts_pairs, triplets
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
