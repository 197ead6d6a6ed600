"""What a corpus of groups must be, measured: each figure beside its bound.

`python -m gate_lessons corpus --check` prints the figures; a test holds them. They ask whether a corpus can teach: can
spelling alone solve it, does the second sentence alone give the answer away, is it varied, is it clean?
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gate_lessons.data import (
    CORPUS,
    DIALECTS,
    NLI_LABELS,
    SHARES,
    SPLITS,
    DataError,
    Group,
    nli_pairs,
    sts_pairs,
    triplets,
)
from gate_lessons.encoder import LexicalBaseline
from gate_lessons.metrics import spearman
from gate_lessons.text import normalize

BANDS = 6  # scores from 0 to 5, each rounded to the nearest whole number
ANCHOR_WORDS = range(4, 21)
SPELLINGS = CORPUS / "spellings.txt"
FAULTS = {  # what no sentence of an edited corpus holds, by the name of the fault
    "a letter, digit or sign that Arabic prose does not need": r"[^ء-غف-يپچڤڨگڭ\u064b ،.؟!:؛«»…-]",
    "a missing or doubled space": r"^ | $|  | [،.؟!:؛»…]|« |[،؟!؛](?=[ء-ي])",
    "tanwin that is not on a final alef, hamza, teh marbuta or alef maqsura": r"\u064b(?!ا(?![ء-ي]))(?<![ءةى]\u064b)",
    "no mark at its end": r"[^.؟!»…]$",
    "a hamza, teh marbuta or alef maqsura inside or before what it cannot be": r"ة[ء-ي]|ى[ء-ي]|(?<![ء-ي])[ؤئةى]",
}


@dataclass(frozen=True)
class Figure:
    """One measured property of a corpus.

    Attributes:
        name: what was measured.
        value: the measurement.
        bound: what it is held to.
        sense: how the value must stand to the bound.
        form: how both are printed.
        offenders: where to look when it does not hold, the worst first.
    """

    name: str
    value: float
    sense: Literal["at least", "at most", "below"]
    bound: float
    form: str = "{:,.0f}"
    offenders: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the value keeps its bound."""
        if self.sense == "at least":
            return self.value >= self.bound
        return self.value < self.bound if self.sense == "below" else self.value <= self.bound

    def cells(self) -> tuple[str, str, str]:
        """Name, value and bound as they stand in the datasheet's table."""
        return self.name, self.form.format(self.value), f"{self.sense} {self.form.format(self.bound)}"


def audit(groups: Sequence[Group], scored: Sequence[dict], spellings: str = "") -> Iterator[Figure]:
    """All figures of a corpus, in the order of the datasheet.

    Args:
        groups: the whole corpus, all splits.
        scored: the rows of its `sts.jsonl`.
        spellings: lines of words that differ only in hamza, ة or ى and are different words, see `spelling_doubts`.
    """
    yield from _size(groups)
    yield from _shortcuts(groups)
    yield from _repetition(groups)
    yield from _diversity(groups)
    yield from _cleanness(groups, spellings)
    yield from _scores(groups, scored)


def audit_files(groups: Sequence[Group], folder: Path = CORPUS) -> Iterator[Figure]:
    """`audit` with the scored pairs and the reviewed spellings that lie in a folder beside the groups.

    Raises:
        DataError: a missing file, a malformed scored pair, none at all, or a split without groups.
    """
    if empty := [split for split in SPLITS if not any(g.split == split for g in groups)]:
        raise DataError(f"{folder / 'groups.jsonl'}: no groups with split {empty[0]!r}; the check compares the splits")
    pairs, spellings = folder / "sts.jsonl", folder / SPELLINGS.name
    if not len(sts_pairs(groups, pairs)):  # names the line of a pair that is malformed
        raise DataError(f"{pairs}: no scored pair of two sentences of these groups")
    if not spellings.is_file():
        raise DataError(f"{spellings}: no such file; an empty one says that no spellings were reviewed")
    scored = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines() if line.strip()]
    return audit(groups, scored, spellings.read_text(encoding="utf-8"))


def _size(groups: Sequence[Group]) -> Iterator[Figure]:
    complete = ("close", "distant", *NLI_LABELS)
    lacking = tuple(g.id for g in groups if not set(complete) <= g.sentences().keys() or not g.phenomenon)
    long = tuple(g.id for g in groups if len(g.anchor.split()) not in ANCHOR_WORDS)
    phenomena = Counter(g.phenomenon for g in groups)
    yield Figure("groups", len(groups), "at least", 1500)
    yield Figure("topics", len({g.topic for g in groups}), "at least", 18)
    for split, share in zip(SPLITS, SHARES, strict=True):
        off = abs(sum(g.split == split for g in groups) / len(groups) - share)
        yield Figure(f"share of {split}, distance from {share:.0%}", off, "at most", 0.01, "{:.1%}")
    yield Figure("groups that lack a sentence", len(lacking), "at most", 0, offenders=lacking)
    yield Figure("anchors not of 4 to 20 words", len(long), "at most", 0, offenders=long)
    yield Figure("phenomena", len(phenomena), "at least", 10)
    rarest, spoken = min(phenomena.values()) / len(groups), sum(set(DIALECTS) == g.dialects.keys() for g in groups)
    yield Figure("rarest phenomenon, share of groups", rarest, "at least", 0.04, "{:.1%}")
    yield Figure("groups with four dialects", spoken, "at least", 400)


def _shortcuts(groups: Sequence[Group]) -> Iterator[Figure]:
    """What a model could do without understanding anything."""
    hard = triplets(groups, positives=("distant",))
    baseline = LexicalBaseline(_sentences(groups))
    positive, negative = (baseline.similarity(hard["anchor"], hard[side]) for side in ("positive", "negative"))
    name = "TF-IDF (character 2–5-grams) chooses the distant paraphrase over the contradiction"
    yield Figure(name, float(np.mean(positive > negative)), "at most", 0.2, "{:.1%}")
    for unit in ("characters", "words"):
        name = f"relation guessed from the second sentence alone, by its {unit} (chance is 33 %)"
        yield Figure(name, _guessed(groups, unit), "at most", 0.45, "{:.1%}")
    name = "relation guessed from the number of words alone"
    yield Figure(name, _guessed(groups, "length"), "at most", 0.45, "{:.1%}")


def _guessed(groups: Sequence[Group], by: Literal["characters", "words", "length"]) -> float:
    """Accuracy of a classifier that sees the hypothesis only (Gururangan et al. 2018), whole groups held out."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    pairs = nli_pairs(groups)
    units = {"characters": ("char_wb", (2, 5)), "words": ("word", (1, 2))}
    if by == "length":
        features, inputs = OneHotEncoder(handle_unknown="ignore"), [[len(h.split())] for h in pairs["hypothesis"]]
    else:
        analyzer, ngrams = units[by]
        features = TfidfVectorizer(preprocessor=normalize, analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True)
        inputs = list(pairs["hypothesis"])
    model = make_pipeline(features, LogisticRegression(C=3, max_iter=1000))
    guess = cross_val_predict(model, inputs, pairs["label"], groups=pairs["group"], cv=GroupKFold(5), n_jobs=2)
    return float(np.mean(guess == pairs["label"]))


def _repetition(groups: Sequence[Group]) -> Iterator[Figure]:
    places: dict[str, list[str]] = {}
    for g in groups:
        for role, sentence in g.sentences().items():
            places.setdefault(normalize(sentence), []).append(f"{g.id} {role}")
        for variety, rendering in g.dialects.items():
            if normalize(rendering) == normalize(g.anchor):
                places[normalize(g.anchor)].append(f"{g.id} {variety}")
    twice = tuple(" = ".join(where) for where in places.values() if len(where) > 1)
    yield Figure("sentences that stand twice after normalisation", len(twice), "at most", 0, offenders=twice)
    overlap, pair = nearest_to_training(groups)
    name = "largest character-n-gram Jaccard of a test anchor with a training sentence"
    yield Figure(name, overlap, "below", 0.7, "{:.2f}", offenders=(pair,))


def nearest_to_training(groups: Sequence[Group]) -> tuple[float, str]:
    """The largest Jaccard index of the n-gram sets of a test anchor and a training sentence, and which two they are."""
    from sklearn.feature_extraction.text import CountVectorizer

    anchors = [(g.id, g.anchor) for g in groups if g.split == "test"]
    training = [(f"{g.id} {role}", s) for g in groups if g.split == "train" for role, s in g.sentences().items()]
    count = CountVectorizer(preprocessor=normalize, analyzer="char_wb", ngram_range=(2, 5), binary=True, dtype=np.int32)
    theirs = count.fit_transform([s for _, s in training])
    own_size = np.array([len(set(count.build_analyzer()(s))) for _, s in anchors])  # with n-grams training never saw
    shared = (count.transform([s for _, s in anchors]) @ theirs.T).toarray()
    jaccard = shared / (own_size[:, None] + theirs.sum(axis=1).A1[None] - shared)
    row, column = np.unravel_index(jaccard.argmax(), jaccard.shape)
    return float(jaccard[row, column]), f"{anchors[row][0]} and {training[column][0]}"


def _diversity(groups: Sequence[Group]) -> Iterator[Figure]:
    sentences = [normalize(s).split() for s in _sentences(groups)]
    runs = Counter(run for words in sentences for run in {tuple(words[i : i + 4]) for i in range(len(words) - 3)})
    run, often = runs.most_common(1)[0]
    first, begins = Counter(normalize(g.anchor).split()[0] for g in groups).most_common(1)[0]
    often, begins = often / len(sentences), begins / len(groups)
    yield Figure(
        "commonest four words in a row, share of sentences", often, "at most", 0.005, "{:.2%}", (" ".join(run),)
    )
    yield Figure("distinct word forms after normalisation", len(set().union(*sentences)), "at least", 9000)
    yield Figure("commonest first word, share of anchors", begins, "below", 0.08, "{:.1%}", (first,))


def _cleanness(groups: Sequence[Group], spellings: str) -> Iterator[Figure]:
    named = [(f"{g.id} {k}", s) for g in groups for k, s in (g.sentences() | g.dialects).items()]
    unclean = tuple(f"{where}: {fault}" for where, s in named for fault in faults(s))
    yield Figure("sentences that are not clean", len(unclean), "at most", 0, offenders=unclean)
    doubts = tuple(" ".join(words) for words in spelling_doubts(_sentences(groups), spellings))
    name = "words spelled in two ways by hamza, ة or ى, not known to be two words"
    yield Figure(name, len(doubts), "at most", 0, offenders=doubts)


def faults(sentence: str) -> list[str]:
    """Names of what is wrong with the form of a sentence, see `FAULTS`; an empty list for a clean one."""
    return [name for name, pattern in FAULTS.items() if re.search(pattern, sentence)]


def spelling_doubts(sentences: Iterable[str], reviewed: str = "") -> list[tuple[str, ...]]:
    """Spellings of one word form that differ in hamza, ة or ى only: careless spelling, or different words?

    Args:
        sentences: the texts.
        reviewed: one line for each set of spellings that a reader found to be different words, separated by spaces.

    Returns:
        The sets of spellings, sorted, that do not lie within one line of `reviewed`.
    """
    words = {w for s in sentences for w in normalize(s, ("diacritics", "punctuation")).split()}
    alike: dict[str, set[str]] = {}
    for word in words:
        alike.setdefault(normalize(word), set()).add(word)
    known = {normalize(line.split()[0]): set(line.split()) for line in reviewed.splitlines() if line.strip()}
    return sorted(tuple(sorted(s)) for key, s in alike.items() if len(s) > 1 and not s <= known.get(key, set()))


def _scores(groups: Sequence[Group], scored: Sequence[dict]) -> Iterator[Figure]:
    split = {g.id: g.split for g in groups}
    passes = np.array([row["scores"] for row in scored], dtype=float)
    bands = np.bincount(np.floor(passes.mean(axis=1) + 0.5).astype(int), minlength=BANDS) / len(scored)
    ids = [(first, second) for (first, _), (second, _) in (row["pair"] for row in scored)]
    across = tuple(f"{a} and {b}" for a, b in ids if split.get(a, a) != split.get(b, b) or a not in split)
    yield Figure("scored pairs", len(scored), "at least", 600)
    yield Figure("scored pairs across splits or of unknown groups", len(across), "at most", 0, offenders=across)
    yield Figure("Spearman of the two scoring passes", spearman(*passes.T), "at least", 0.85, "{:.3f}")
    yield Figure("smallest of the six bands of scores, share of pairs", bands.min(), "at least", 0.12, "{:.1%}")
    yield Figure("largest of the six bands of scores, share of pairs", bands.max(), "at most", 0.21, "{:.1%}")


def _sentences(groups: Sequence[Group]) -> list[str]:
    return [s for g in groups for s in g.sentences().values()]
