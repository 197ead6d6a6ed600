"""Libraries to mine from, with the truth about them: what each sentence is to each anchor.

For `benchmarks.mining_quality`. The course's corpus knows its groups; other people's triplets know a little; customers'
questions know their intents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gate_lessons import features, miner
from gate_lessons.data import codes, load_categories, load_corpus, load_nli
from gate_lessons.encoder import Encoder, LexicalBaseline
from gate_lessons.evaluation import Answers, Task
from gate_lessons.library import FALSE as CORPUS_FALSE
from gate_lessons.library import RELATIONS as CORPUS_RELATIONS
from gate_lessons.library import Library
from gate_lessons.losses import cosine_matrix
from gate_lessons.text import normalize

RELATIONS = (*CORPUS_RELATIONS[:-1], "near intent", CORPUS_RELATIONS[-1])
ITSELF, KNOWN, SAME, ENTAILED, NEUTRAL, CONTRADICTION, NEAR, OTHER = range(len(RELATIONS))
FALSE = tuple(map(RELATIONS.index, CORPUS_FALSE))
ANCHORS = 500  # of the real triplets
PAIRS, LIBRARY = 26, 60  # of an intent: pairs to train on, questions on the shelf


@dataclass(frozen=True)
class Shelf:
    """Anchors that know one positive each, a library to mine from, and the truth about the two.

    Attributes:
        anchors, positives: [Q] texts, row i being a pair.
        candidates: [M] texts, no two of them the same once normalised.
        relation: [Q, M] what each candidate is to each anchor, as a place in `RELATIONS`.
        topic: [M] name of each candidate's topic, where topics are known.
        labels: what strategies need beside embeddings and features, as `mine` takes it.
    """

    anchors: list[str]
    positives: list[str]
    candidates: list[str]
    relation: np.ndarray
    topic: np.ndarray | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def features(self) -> dict[str, tuple[Any, Any]]:
        """Sparse features of anchors and candidates by the strategy that needs them; the same for any encoder."""
        found = {name: getattr(features, name)(self.anchors, self.candidates) for name in ("lexical", "same_root")}
        return found | {"dialect_twin": found["lexical"]}

    def embedded(self, encoder: Encoder) -> tuple[torch.Tensor, ...]:
        return tuple(encoder.encode(texts) for texts in (self.anchors, self.positives, self.candidates))

    def told(self, known: Sequence[int]) -> dict[str, Any]:
        """What a filter knows that is told of these relations."""
        rows = np.isin(self.relation, known)
        return {"known_positives": [np.flatnonzero(row).tolist() for row in rows]}

    def has(self, strategy: str) -> bool:
        """Whether a strategy (or a mixture) finds here what it needs."""
        needs = {need for name in miner.parse(strategy) for need in miner.STRATEGIES[name].needs}
        return all(need == "features" or f"anchor_{need}" in self.labels for need in needs)


def shelf_of(
    pairs: pd.DataFrame, library: pd.DataFrame, relation: np.ndarray, topics: bool = True, **labels: Any
) -> Shelf:
    """A shelf of pairs (anchor, positive) and a library (text, key, topic), whatever the relation says of the pairs."""
    place = pd.Series(range(len(library)), index=library["key"])
    rows = np.arange(len(pairs))
    for column, kind in (("positive", KNOWN), ("anchor", ITSELF)):
        relation[rows, place[pairs[column].map(normalize)].to_numpy()] = kind
    topic = library["topic"].to_numpy(str) if topics else None
    return Shelf(list(pairs["anchor"]), list(pairs["positive"]), list(library["text"]), relation, topic, labels)


def corpus_shelf(split: str) -> Shelf:
    """Lesson 03's library: every sentence of a split's groups; each anchor knows its text and one positive."""
    here = Library.of_groups(load_corpus(split))
    ours, theirs = codes(here.pairs["group"], here.shelf["group"])
    kind = here.shelf["relation"].map(RELATIONS.index).to_numpy(np.int8)
    relation = np.where(ours[:, None] == theirs, kind, np.int8(OTHER))
    return shelf_of(here.pairs, here.shelf, relation, **here.labels)


def triplets_shelf(task: Task, folder: Path) -> Shelf:
    """The sentences of the training triplets and of the training NLI pairs, with every label that they have."""
    nli = load_nli(folder / "nli_pairs.jsonl", "train")
    kinds = {"entailment": ENTAILED, "neutral": NEUTRAL, "contradiction": CONTRADICTION}
    positive = task.train["source"].map({"nli": ENTAILED, "ans": SAME})
    parts = [(nli["premise"], nli["hypothesis"], nli["label"].map(kinds))]
    parts += [(task.train["anchor"], task.train["negative"], pd.Series(CONTRADICTION, index=task.train.index))]
    parts += [(task.train["anchor"], task.train["positive"], positive)]
    told = pd.concat([pd.DataFrame(dict(zip(("anchor", "text", "kind"), part, strict=True))) for part in parts])
    library = pd.DataFrame({"text": pd.concat([told["anchor"], told["text"]])})
    library = library.assign(key=library["text"].map(normalize)).drop_duplicates("key", ignore_index=True)
    pairs = task.train.drop_duplicates("group").sample(ANCHORS, random_state=0).reset_index(drop=True)
    row = {key: number for number, key in enumerate(pairs["anchor"].map(normalize))}
    place = {key: number for number, key in enumerate(library["key"])}
    relation = np.full((len(pairs), len(library)), OTHER, np.int8)
    told = told.sort_values("kind", ascending=False)  # where two labels differ the nearer meaning counts
    for anchor, text, kind in zip(
        told["anchor"].map(normalize), told["text"].map(normalize), told["kind"], strict=True
    ):
        if anchor in row:
            relation[row[anchor], place[text]] = kind
    return shelf_of(pairs, library, relation, topics=False)


def intents_shelf(task: Task, folder: Path) -> Shelf:
    """Some questions of each intent; an anchor means the same as all of its intent, of which it knows one."""
    pairs = task.train.groupby("group").head(5).reset_index(drop=True)
    library = pd.DataFrame({"text": pd.concat([pairs["anchor"], pairs["positive"]])})
    library["topic"] = [*pairs["group"], *pairs["group"]]
    library["key"] = library["text"].map(normalize)
    library = pd.concat([library, intents(folder, "train").rename(columns={"category": "topic"})])
    library = library.drop_duplicates("key").groupby("topic").head(LIBRARY).reset_index(drop=True)
    ours, theirs = pairs["group"].to_numpy(str), library["topic"].to_numpy(str)
    relation = np.where(ours[:, None] == theirs, np.int8(SAME), np.int8(OTHER))
    near = near_intents(library)
    for row, intent in enumerate(ours):
        relation[row, np.isin(theirs, near[intent])] = NEAR
    return shelf_of(pairs, library, relation)


def intents(folder: Path, split: str) -> pd.DataFrame:
    """Customers' questions (text, category, key): each once, and none that stands in two intents."""
    table = load_categories(folder / "intents.jsonl", split)
    table["key"] = table["text"].map(normalize)
    twice = table.groupby("key")["category"].transform("nunique") > 1
    return table[~twice].drop_duplicates("key", ignore_index=True)


def near_intents(library: pd.DataFrame, most: int = 3) -> dict[str, list[str]]:
    """Each intent's three nearest others, by the mean of their questions' TF-IDF vectors: by spelling alone."""
    names = sorted(library["topic"].unique())
    vectors = features.lexical(list(library["text"]), list(library["text"]))[1]
    means = np.stack(
        [np.asarray(vectors[(library["topic"] == name).to_numpy()].mean(axis=0)).ravel() for name in names]
    )
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    alike = means @ means.T - 2 * np.eye(len(names))
    return {name: [names[j] for j in np.argsort(-row)[:most]] for name, row in zip(names, alike, strict=True)}


def intents_task(folder: Path, seed: int = 0) -> Task:
    """Pairs of one intent to train on, so many of each; questions of the test split, in dialects, to be understood."""
    table, test = intents(folder, "train"), intents(folder, "test")
    draws, rows = np.random.default_rng(seed), []
    for intent, part in table.groupby("category"):
        others = table["text"][table["category"] != intent].to_numpy()
        texts = draws.permutation(part["text"].to_numpy())[: 2 * PAIRS]
        half = len(texts) // 2
        for anchor, positive in zip(texts[:half], texts[half:], strict=False):
            rows.append((anchor, positive, draws.choice(others), intent))
    train = pd.DataFrame(rows, columns=["anchor", "positive", "negative", "group"])
    test = test[~test["key"].isin(table["key"])].groupby("category").sample(10, random_state=seed)
    library = table.groupby("category").head(LIBRARY)
    asked = Retrieval(*(list(part[name]) for part in (test, library) for name in ("text", "category")))
    return Task("customers' questions of 77 intents (not part of the course)", train, asked, asked)


@dataclass(frozen=True)
class Retrieval:
    """Held-out questions: has the most similar sentence of a library the question's own intent?"""

    questions: list[str]
    intents: list[str]
    library: list[str]
    library_intents: list[str]

    def ask(self, encoder: Encoder | LexicalBaseline) -> Answers:
        """The nearest sentence of the own intent against the nearest of any other: right means retrieved first."""
        if isinstance(encoder, LexicalBaseline):
            ours, theirs = (encoder.tfidf.transform(texts) for texts in (self.questions, self.library))
            similarity = (ours @ theirs.T).toarray()
        else:
            ours, theirs = (encoder.encode(texts) for texts in (self.questions, self.library))
            similarity = cosine_matrix(ours, theirs).numpy()
        own = np.array(self.intents)[:, None] == np.array(self.library_intents)
        sides = (np.where(own == side, similarity, -np.inf).max(axis=1) for side in (True, False))
        return Answers(*sides, sts=np.empty(0), score=np.empty(0))
