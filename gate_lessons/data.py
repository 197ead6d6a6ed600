"""Records and their views: the course's corpus, files and hub sets in, tables in the field's column names out.

A `Group` is an anchor with sentences in known relations to it. Triplets, NLI pairs, scored pairs and dialect pairs are
*views* of groups, so that they cannot disagree. Files come in through one loader a kind, chosen by what the columns are
called; a malformed line is an error that names the file, the line and the field.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gate_lessons.files import DataError, rows_of
from gate_lessons.text import normalize

CORPUS = Path(__file__).parent / "corpus"
SPLITS, SHARES = ("train", "dev", "test"), (0.7, 0.1, 0.2)
NLI_LABELS = ("entailment", "neutral", "contradiction")  # the order of SNLI's integer labels 0, 1, 2
DIALECTS = ("egyptian", "levantine", "gulf", "maghrebi")


# ---------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class Group:
    """An anchor and the sentences whose relation to it is known. Only `anchor` and one other sentence are required.

    Attributes:
        id: unique name.
        anchor: the sentence that all relations start from.
        paraphrases: same meaning: the first close in words to the anchor, the second distant.
        entailment: follows from the anchor and says less.
        neutral: same scene, neither follows nor contradicts.
        contradiction: cannot be true together with the anchor.
        phenomenon: what the contradiction turns on (negation, quantity, role_swap, ...).
        dialects: renderings of the anchor by variety, see `DIALECTS`.
        topic: daily-life topic.
        split: train, dev or test. Nothing of a test group is ever seen in training.
    """

    id: str
    anchor: str
    paraphrases: tuple[str, ...] = ()
    entailment: str = ""
    neutral: str = ""
    contradiction: str = ""
    phenomenon: str = ""
    dialects: dict[str, str] = field(default_factory=dict)
    topic: str = ""
    split: str = "train"

    def sentences(self) -> dict[str, str]:
        """Role → sentence of all that the group has, the anchor first. Paraphrases are `close` and `distant`."""
        paraphrases = dict(zip(("close", "distant"), self.paraphrases, strict=False))
        rest = {role: getattr(self, role) for role in NLI_LABELS}
        return {role: text for role, text in ({"anchor": self.anchor} | paraphrases | rest).items() if text}


def load_corpus(split: str | None = None) -> list[Group]:
    """The course's own corpus (see `corpus/DATASHEET.md`), all of it or one split."""
    return load_groups(CORPUS / "groups.jsonl", split)


def load_groups(path: str | Path, split: str | None = None) -> list[Group]:
    """Groups from a JSONL file with the keys of `Group`.

    Raises:
        DataError: broken JSON, an unknown or missing key, an empty sentence, a group of one sentence, a double id.
    """
    known, seen, groups = {f.name for f in fields(Group)}, {}, []
    for line, row in rows_of(path):
        if unknown := set(row) - known:
            raise DataError(
                f"{path}, line {line}: unknown key {min(unknown)!r}; a group has {', '.join(sorted(known))}"
            )
        _check_group(row, path, line)
        group = Group(**row | {"paraphrases": tuple(row.get("paraphrases", ()))})
        if len(group.sentences()) < 2:
            raise DataError(
                f"{path}, line {line}: group {group.id!r} has only its anchor; "
                "add at least one paraphrase, entailment, neutral or contradiction"
            )
        if group.id in seen:
            raise DataError(f"{path}, line {line}: id {group.id!r} was used on line {seen[group.id]}; ids are unique")
        if group.split not in SPLITS:
            raise DataError(f"{path}, line {line}: split {group.split!r} is none of {', '.join(SPLITS)}")
        seen[group.id] = line
        groups.append(group)
    return [g for g in groups if split in (None, g.split)]


# ---------------------------------------------------------------------------------------------- views of groups


def triplets(
    groups: Iterable[Group],
    positives: Sequence[str] = ("close", "distant"),
    negatives: Sequence[str] = ("contradiction",),
) -> pd.DataFrame:
    """Anchor, positive, negative: every choice of one positive role with one negative role.

    The *test* of this course is `positives=("distant",)`: is the paraphrase in other words nearer than the
    contradiction in nearly the same words?

    Returns:
        Columns anchor, positive, negative, group, topic, phenomenon; groups that lack a role are left out.
    """
    rows = [
        (s["anchor"], s[p], s[n], g.id, g.topic, g.phenomenon)
        for g in groups
        for s in [g.sentences()]
        for p in positives
        for n in negatives
        if p in s and n in s
    ]
    return pd.DataFrame(rows, columns=["anchor", "positive", "negative", "group", "topic", "phenomenon"])


def nli_pairs(groups: Iterable[Group]) -> pd.DataFrame:
    """Premise, hypothesis, label: the anchor with its entailment, neutral and contradiction. Also group and topic."""
    rows = [
        (g.anchor, getattr(g, label), label, g.id, g.topic) for g in groups for label in NLI_LABELS if getattr(g, label)
    ]
    return pd.DataFrame(rows, columns=["premise", "hypothesis", "label", "group", "topic"])


def dialect_pairs(groups: Iterable[Group]) -> pd.DataFrame:
    """Anchor (MSA), dialect (variety), text (the anchor as people say it there), group, topic."""
    rows = [(g.anchor, variety, text, g.id, g.topic) for g in groups for variety, text in g.dialects.items()]
    return pd.DataFrame(rows, columns=["anchor", "dialect", "text", "group", "topic"])


def sts_pairs(groups: Iterable[Group], path: str | Path = CORPUS / "sts.jsonl") -> pd.DataFrame:
    """Scored pairs whose two sentences both belong to `groups`.

    Each line of the file names two sentences as `[group id, role]` and holds the scores of two independent passes.

    Returns:
        Columns sentence1, sentence2, score (mean of the two passes, 0 to 5), group (of sentence1).
    """
    by_id = {g.id: g.sentences() for g in groups}
    rows = []
    for line, row in rows_of(path):
        try:
            ((group1, role1), (group2, role2)), scores = row["pair"], np.array(row["scores"], dtype=float)
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f'{path}, line {line}: expected {{"pair": [[group, role], [group, role]], "scores": [number, …]}}'
            ) from None
        if group1 not in by_id or group2 not in by_id:
            continue
        try:
            texts = by_id[group1][role1], by_id[group2][role2]
        except KeyError as missing:
            raise DataError(f"{path}, line {line}: no sentence {missing} in the group that the pair names") from None
        rows.append((*texts, float(scores.mean()), group1))
    return pd.DataFrame(rows, columns=["sentence1", "sentence2", "score", "group"])


# ---------------------------------------------------------------------------------------------- files and hub sets


def load_triplets(source: str | Path, split: str | None = None) -> pd.DataFrame:
    """Anchor, positive, negative from JSONL, CSV, Parquet or `hub:NAME`; other columns are kept.

    A `group` column is added where there is none: rows with the same anchor, once normalised, are one group.
    """
    table = _load(source, ("anchor", "positive", "negative"), split)
    if "group" not in table:
        table["group"] = table["anchor"].map(normalize)
    return table


def load_nli(source: str | Path, split: str | None = None) -> pd.DataFrame:
    """Premise, hypothesis, label; SNLI's integer labels 0, 1, 2 become entailment, neutral, contradiction."""
    table = _load(source, ("premise", "hypothesis"), split, others=("label",))
    numbered = {str(number): label for number, label in enumerate(NLI_LABELS)}
    table["label"] = [numbered.get(str(label), label) for label in table["label"]]
    for line, label in zip(table.attrs["lines"], table["label"], strict=True):
        if label not in NLI_LABELS:
            raise DataError(f"{source}, line {line}: label {label!r} is none of {', '.join(NLI_LABELS)} (or 0, 1, 2)")
    return table


def load_sts(source: str | Path, split: str | None = None) -> pd.DataFrame:
    """Sentence1, sentence2, score: any finite number, higher is more similar."""
    table = _load(source, ("sentence1", "sentence2"), split, others=("score",))
    table["score"] = _numbers(table, "score", source)
    return table


def load_retrieval(queries: str | Path, corpus: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Queries (query, relevant) and the corpus (id, text) that `relevant` points into."""
    documents = load_sentences(corpus, others=("id",))
    questions = _load(queries, ("query",), None, others=("relevant",))
    questions["relevant"] = questions["relevant"].astype(str)
    known = set(documents["id"])
    for line, relevant in zip(questions.attrs["lines"], questions["relevant"], strict=True):
        if relevant not in known:
            raise DataError(f"{queries}, line {line}: relevant {relevant!r} is no id of {corpus}")
    return questions, documents


def load_categories(source: str | Path, split: str | None = None) -> pd.DataFrame:
    """Text, category: sentences of one category count as similar."""
    return _load(source, ("text", "category"), split)


def load_pairs(source: str | Path, split: str | None = None) -> pd.DataFrame:
    """Anchor, positive: two sentences of one meaning, or a question and its answer; other columns are kept."""
    return _load(source, ("anchor", "positive"), split)


def load_sentences(source: str | Path, others: tuple[str, ...] = ()) -> pd.DataFrame:
    """Text: the lines of a .txt file, or the rows of a table; other columns are kept, and `others` must be there.

    An `id`, where there are ids, must stand once; ids are compared as text.
    """
    table, seen = _load(source, ("text",), None, others), {}
    if "id" in table:
        table["id"] = table["id"].astype(str)  # a CSV file has only strings: 7 and "7" are one id
        for line, name, gap in zip(table.attrs["lines"], table["id"], table["id"].isna(), strict=True):
            if not gap and (first := seen.setdefault(name, line)) != line:
                raise DataError(f"{source}, line {line}: id {name!r} was used on line {first}; ids are unique")
    return table


def load_parallel(source: str | Path, columns: Sequence[str], split: str | None = None) -> pd.DataFrame:
    """Sentences of one meaning side by side in `columns` (dialects, languages), named by the caller."""
    return _load(source, tuple(columns), split)


def split_by_group(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Give the table a `split` column, whole groups at a time: 70 % train, 10 % dev, 20 % test."""
    groups = table["group"].unique()
    order = np.random.default_rng(seed).permutation(len(groups))
    place = np.searchsorted(np.cumsum(SHARES), (order + 0.5) / len(groups))
    return table.assign(split=table["group"].map(dict(zip(groups, np.array(SPLITS)[place], strict=True))))


# ---------------------------------------------------------------------------------------------- training input


def candidate_pool(table: pd.DataFrame) -> pd.DataFrame:
    """Every distinct sentence of a triplet table, with the group whose meaning it has: what a miner may choose from.

    Returns:
        Columns text, group, topic (where the table has one), key (the normalised text). A sentence that stands only as
        a negative has a meaning of its own, so its group is unique: it may serve as a negative for every anchor,
        the one it was written for included.
    """
    topic = table["topic"] if "topic" in table else pd.Series("", index=table.index)
    parts = [
        pd.DataFrame({"text": table[role], "group": table["group"] if same else None, "topic": topic})
        for role, same in (("anchor", True), ("positive", True), ("negative", False))
    ]
    pool = pd.concat(parts, ignore_index=True)
    pool["key"] = pool["text"].map(normalize)
    pool = pool.drop_duplicates("key").reset_index(drop=True)
    pool["group"] = pool["group"].where(pool["group"].notna(), "only:" + pool["key"])
    return pool


def codes(*columns: Iterable[Any]) -> list[np.ndarray]:
    """Integer codes for columns of labels, the same label having the same code in all of them (what `miner` takes)."""
    arrays = [np.asarray(list(column), dtype=object) for column in columns]
    joined = pd.factorize(np.concatenate(arrays))[0]
    return np.split(joined, np.cumsum([len(array) for array in arrays])[:-1])


# ---------------------------------------------------------------------------------------------- reading


def _load(source: str | Path, texts: tuple[str, ...], split: str | None, others: tuple[str, ...] = ()) -> pd.DataFrame:
    """A checked table: `texts` are non-empty strings, `others` are present. Line numbers are in `.attrs["lines"]`."""
    lines, rows = [], []
    for line, row in rows_of(source):
        for column in texts + others:
            if column not in row:
                raise DataError(
                    f"{source}, line {line}: no column {column!r}; expected {', '.join(texts + others)}, "
                    f"found {', '.join(map(str, row))}"
                )
        for column in texts:
            _check_text(row, column, source, line)
        if split in (None, row.get("split")):
            lines.append(line)
            rows.append(row)
    if not rows:
        raise DataError(f"{source}: no rows" + (f" with split {split!r}" if split else ""))
    table = pd.DataFrame(rows)
    table.attrs["lines"] = lines
    return table


def _check_text(row: dict[str, Any], column: str, source: str | Path, line: int) -> None:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"{source}, line {line}: {column!r} must be text, not {value!r}")
    if not value.strip():
        raise DataError(f"{source}, line {line}: {column!r} is empty")


def _check_group(row: dict[str, Any], path: str | Path, line: int) -> None:
    for key in ("id", "anchor", *(k for k in (*NLI_LABELS, "phenomenon", "topic", "split") if k in row)):
        _check_text(row, key, path, line)
    paraphrases, dialects = row.get("paraphrases", []), row.get("dialects", {})
    if not isinstance(paraphrases, list) or len(paraphrases) > 2:
        raise DataError(f"{path}, line {line}: 'paraphrases' must be a list of at most two sentences: close, distant")
    if not isinstance(dialects, dict):
        raise DataError(f"{path}, line {line}: 'dialects' must be an object from variety to sentence")
    for text in paraphrases:
        _check_text({"paraphrases": text}, "paraphrases", path, line)
    for text in dialects.values():
        _check_text({"dialects": text}, "dialects", path, line)


def _numbers(table: pd.DataFrame, column: str, source: str | Path) -> np.ndarray:
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
    for line, raw, value in zip(table.attrs["lines"], table[column], values, strict=True):
        if not np.isfinite(value):
            raise DataError(f"{source}, line {line}: {column!r} must be a finite number, not {raw!r}")
    return values
