import json
import re
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gate_lessons import data
from gate_lessons.data import DIALECTS, NLI_LABELS, SPLITS, Group
from gate_lessons.files import DataError
from gate_lessons.text import normalize

TRIPLETS = [
    {"anchor": "يلعب الطفل، في «الحديقة»", "positive": "الولد يلعب", "negative": "ينام الطفل", "split": "train"},
    {"anchor": 'قال: "نعم"', "positive": "وافق\nالرجل", "negative": "رفض", "split": "test"},
    {"anchor": "يَلعبُ الطفل في الحديقة", "positive": "طفل يلهو", "negative": "لا أحد هنا", "split": "train"},
]
GROUP = {"id": "g1", "anchor": "أغلقت الباب", "contradiction": "فتحت الباب"}


def write(folder: Path, name: str, *lines: object) -> Path:
    """A file of lines, strings as they are and anything else as JSON."""
    path = folder / name
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    """The rows of a JSONL file, without the code under test."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def refuses(message: str, *parts: object) -> pytest.RaisesExc:
    """Expect a DataError with exactly this start; `parts` fill its braces."""
    return pytest.raises(DataError, match=re.escape(message.format(*parts)))


# ---------------------------------------------------------------------------------------------- real files

DIALECT_COLUMNS = [f"question_{variety}" for variety in ("msa", "egyptian", "levantine", "iraqi", "moroccan")]
LOADERS = {
    "triplets": (data.load_triplets, ["anchor", "positive", "negative"]),
    "nli_pairs": (data.load_nli, ["premise", "hypothesis", "label"]),
    "sts": (data.load_sts, ["sentence1", "sentence2", "score"]),
    "intents": (data.load_categories, ["text", "category"]),
    "dialect_questions": (lambda path: data.load_parallel(path, DIALECT_COLUMNS), DIALECT_COLUMNS),
    "wiki_pairs": (lambda path: data.load_parallel(path, ["msa", "egyptian"]), ["msa", "egyptian"]),
}


@pytest.mark.parametrize("name", LOADERS)
def test_real_files_load_row_for_row(shared, name):
    load, columns = LOADERS[name]
    path = shared / f"{name}.jsonl"
    expected, table = read(path), load(path)
    assert len(table) == len(expected) > 0
    for column in columns:
        assert table[column].tolist() == [row[column] for row in expected]


@pytest.mark.parametrize("name", ["triplets", "nli_pairs", "sts", "intents"])
def test_a_split_of_a_real_file_is_that_split(shared, name):
    path = shared / f"{name}.jsonl"
    counts = Counter(row["split"] for row in read(path))
    load, _ = LOADERS[name]
    assert len(counts) > 1
    assert {split: len(load(path, split)) for split in counts} == counts


def test_real_queries_point_into_their_corpus(shared):
    paths = [shared / f"retrieval_{part}.jsonl" for part in ("queries", "corpus")]
    (queries, corpus), (raw_queries, raw_corpus) = data.load_retrieval(*paths), map(read, paths)
    # Ids are compared as text, so that a CSV file and a JSONL file can point at each other.
    assert queries[["query", "relevant"]].to_dict("records") == [
        q | {"relevant": str(q["relevant"])} for q in raw_queries
    ]
    assert corpus[["id", "text"]].to_dict("records") == [c | {"id": str(c["id"])} for c in raw_corpus]


def test_ids_of_csv_queries_and_jsonl_documents_meet(tmp_path):
    corpus = write(tmp_path, "c.jsonl", {"id": 7, "text": "نص"})
    (tmp_path / "q.csv").write_text("query,relevant\nما؟,7\n", encoding="utf-8")
    assert data.load_retrieval(tmp_path / "q.csv", corpus)[0]["relevant"].tolist() == ["7"]


def test_a_document_id_that_stands_twice(tmp_path):
    corpus = write(tmp_path, "c.jsonl", {"id": 7, "text": "نص"}, {"id": 7, "text": "نص آخر"})
    queries = write(tmp_path, "q.jsonl", {"query": "ما؟", "relevant": 7})
    with refuses("{}, line 2: id '7' was used on line 1; ids are unique", corpus):
        data.load_retrieval(queries, corpus)


# ---------------------------------------------------------------------------------------------- round trips


@pytest.fixture
def formats(tmp_path) -> dict[str, Path]:
    """The same triplets in the three kinds of file: commas, quotes and a line break inside the fields."""
    table = pd.DataFrame(TRIPLETS)
    paths = {kind: tmp_path / f"t.{kind}" for kind in ("jsonl", "csv", "parquet")}
    write(tmp_path, "t.jsonl", *TRIPLETS)
    table.to_csv(paths["csv"], index=False)
    table.to_parquet(paths["parquet"])
    return paths


def test_three_kinds_of_file_give_one_table(formats):
    expected = pd.DataFrame(TRIPLETS)
    for path in formats.values():
        pd.testing.assert_frame_equal(data.load_triplets(path).drop(columns="group"), expected)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_loaded_tables_survive_being_written_and_loaded_again(formats, tmp_path, kind):
    table, path = data.load_triplets(formats["jsonl"]), tmp_path / f"again.{kind}"
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    pd.testing.assert_frame_equal(data.load_triplets(path), table)


def test_scores_are_numbers_from_every_kind_of_file(tmp_path):
    rows = [{"sentence1": "أ", "sentence2": "ب", "score": score} for score in (0.5, 4.0, -1.25)]
    pd.DataFrame(rows).to_csv(tmp_path / "s.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "s.parquet")
    for path in (write(tmp_path, "s.jsonl", *rows), tmp_path / "s.csv", tmp_path / "s.parquet"):
        assert data.load_sts(path)["score"].tolist() == [0.5, 4.0, -1.25]


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,category\n\nنص,باب\n", encoding="utf-8-sig")
    assert data.load_categories(path).to_dict("records") == [{"text": "نص", "category": "باب"}]
    path = write(tmp_path, "x.jsonl", "", {"text": "نص", "category": "باب"}, "  ")
    assert len(data.load_categories(path)) == 1


def test_the_lines_of_a_text_file_are_sentences(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("إلى البيت\r\n، قال\u2028ثم مضى \nآخر سطر", encoding="utf-8-sig", newline="")
    table = data.load_sentences(path)
    assert table["text"].tolist() == ["إلى البيت", "، قال\u2028ثم مضى ", "آخر سطر"]
    assert table.attrs["lines"] == [1, 2, 3]
    path.write_text("إلى البيت\n\nآخر سطر\n", encoding="utf-8")
    with refuses("{}, line 2: 'text' is empty", path):
        data.load_sentences(path)


def test_sentences_may_lack_ids_but_not_share_them(tmp_path):
    rows = [{"text": "أ", "id": 7}, {"text": "ب"}, {"text": "ج"}, {"text": "د", "id": "seven"}]
    table = data.load_sentences(write(tmp_path, "c.jsonl", *rows))
    assert table["id"].isna().tolist() == [False, True, True, False]
    with refuses("{}, line 5: id 'seven' was used on line 4; ids are unique", tmp_path / "d.jsonl"):
        data.load_sentences(write(tmp_path, "d.jsonl", *rows, {"text": "هـ", "id": "seven"}))


def test_pairs_keep_their_other_columns(tmp_path):
    row = {"anchor": "أ", "positive": "ب", "dialect": "msa"}
    assert data.load_pairs(write(tmp_path, "p.jsonl", row)).to_dict("records") == [row]
    with refuses("{}, line 1: no column 'positive'; expected anchor, positive, found anchor", tmp_path / "q.jsonl"):
        data.load_pairs(write(tmp_path, "q.jsonl", {"anchor": "أ"}))


def test_rows_with_one_anchor_are_one_group_unless_the_file_says_otherwise(tmp_path):
    rows = [{"anchor": a, "positive": "ب", "negative": "ج"} for a in ("إلى البيت", "الى البَيت!", "من البيت")]
    group = data.load_triplets(write(tmp_path, "t.jsonl", *rows))["group"]
    assert group[0] == group[1] != group[2]
    named = data.load_triplets(write(tmp_path, "n.jsonl", *[row | {"group": i} for i, row in enumerate(rows)]))
    assert named["group"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels", [[0, 1, 2], list(NLI_LABELS)])
def test_snli_integers_become_labels(tmp_path, labels):
    rows = [{"premise": "أ", "hypothesis": "ب", "label": label} for label in labels]
    assert data.load_nli(write(tmp_path, "n.jsonl", *rows))["label"].tolist() == [
        "entailment",
        "neutral",
        "contradiction",
    ]


# ---------------------------------------------------------------------------------------------- bad input

GOOD = {"anchor": "أ", "positive": "ب", "negative": "ج"}


def test_a_missing_file(tmp_path):
    with refuses("{}: no such file", tmp_path / "no.jsonl"):
        data.load_triplets(tmp_path / "no.jsonl")


def test_an_unknown_kind_of_file(tmp_path):
    path = write(tmp_path, "x.xlsx", "")
    with refuses("{}: unknown kind '.xlsx'; files are .jsonl, .csv, .parquet, .txt", path):
        data.load_triplets(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"anchor": "أ", "positive"', ", line 3: broken JSON at column 27"),
        ('["أ", "ب"]', ", line 3: expected one JSON object a line, found list"),
        ('"أ"', ", line 3: expected one JSON object a line, found str"),
        ({"anchor": "أ", "positive": "ب"}, ", line 3: no column 'negative'; expected anchor, positive, negative, found "
         "anchor, positive"),
        (GOOD | {"positive": " \n"}, ", line 3: 'positive' is empty"),
        (GOOD | {"negative": None}, ", line 3: 'negative' must be text, not None"),
        (GOOD | {"anchor": 7}, ", line 3: 'anchor' must be text, not 7"),
        (GOOD | {"anchor": ["أ"]}, ", line 3: 'anchor' must be text, not ['أ']"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_as_an_editor_counts(tmp_path, line, message):
    path = write(tmp_path, "t.jsonl", GOOD, "", line, GOOD)
    with refuses("{}{}", path, message):
        data.load_triplets(path)


@pytest.mark.parametrize("split", [None, "train"])
def test_a_bad_line_is_refused_in_whatever_split_it_stands(tmp_path, split):
    path = write(tmp_path, "t.jsonl", GOOD | {"split": "train"}, GOOD | {"split": "test", "anchor": ""})
    with refuses("{}, line 2: 'anchor' is empty", path):
        data.load_triplets(path, split)


@pytest.mark.parametrize("row", ["أ,ب", "أ,ب,ج,د"])
def test_a_csv_row_with_too_few_or_too_many_fields(tmp_path, row):
    path = write(tmp_path, "t.csv", "anchor,positive,negative", "أ,ب,ج", row)
    with refuses("{}, line 3: expected 3 fields", path):
        data.load_triplets(path)


def test_a_csv_without_the_column_and_a_parquet_with_a_gap(tmp_path):
    path = write(tmp_path, "t.csv", "anchor,positive", "أ,ب")
    with refuses("{}, line 2: no column 'negative'", path):
        data.load_triplets(path)
    path = tmp_path / "t.parquet"
    pd.DataFrame([GOOD, GOOD | {"positive": None}]).to_parquet(path)
    with refuses("{}, line 2: 'positive' must be text", path):
        data.load_triplets(path)


def test_no_rows_and_no_rows_of_the_split(tmp_path):
    with refuses("{}: no rows", write(tmp_path, "e.jsonl", "")):
        data.load_triplets(tmp_path / "e.jsonl")
    with refuses("{}: no rows with split 'dev'", write(tmp_path, "t.jsonl", GOOD | {"split": "train"})):
        data.load_triplets(tmp_path / "t.jsonl", "dev")


def test_snli_integers_mean_the_same_in_every_kind_of_file(tmp_path):
    rows = [{"premise": "أ", "hypothesis": "ب", "label": label} for label in (0, 1, 2)]
    pd.DataFrame(rows).to_parquet(tmp_path / "n.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "n.csv", index=False)
    for kind in ("parquet", "csv"):
        assert data.load_nli(tmp_path / f"n.{kind}")["label"].tolist() == list(NLI_LABELS)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_in_another_encoding(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    path.write_text("anchor,positive,negative\nباب,دار,نار\n", encoding="cp1256")
    with refuses("{}", path):
        data.load_triplets(path)


@pytest.mark.parametrize("label", ["entails", "", None, 3, -1, "0 ", ["neutral"]])
def test_a_label_that_is_none(tmp_path, label):
    rows = [{"premise": "أ", "hypothesis": "ب", "label": value} for value in ("neutral", label)]
    path = write(tmp_path, "n.jsonl", rows[0], "", rows[1])
    with refuses("{}, line 3: label ", path) as error:
        data.load_nli(path)
    assert all(name in str(error.value) for name in NLI_LABELS)


@pytest.mark.parametrize("score", ["NaN", "Infinity", "null", '"many"', '""'])
def test_a_score_that_is_no_finite_number(tmp_path, score):
    good = '{"sentence1": "أ", "sentence2": "ب", "score": 1}'
    path = write(tmp_path, "s.jsonl", good, good.replace("1}", f"{score}}}"))
    with refuses("{}, line 2: 'score' must be a finite number, not ", path):
        data.load_sts(path)


def test_a_score_is_named_by_the_line_of_the_file_when_a_split_is_asked_for(tmp_path):
    row = {"sentence1": "أ", "sentence2": "ب", "score": 1.0, "split": "train"}
    path = write(tmp_path, "s.jsonl", row, row, row | {"split": "dev", "score": "x"})
    with refuses("{}, line 3: 'score'", path):
        data.load_sts(path, "dev")


def test_a_relevant_document_that_is_not_there(tmp_path):
    corpus = write(tmp_path, "c.jsonl", {"id": 0, "text": "نص"}, {"id": 1, "text": "نص آخر"})
    queries = write(tmp_path, "q.jsonl", {"query": "ما؟", "relevant": 1}, {"query": "من؟", "relevant": 2})
    with refuses("{}, line 2: relevant '2' is no id of {}", queries, corpus):
        data.load_retrieval(queries, corpus)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GROUP | {"id": "g2", "anchors": "س"}, ", line 2: unknown key 'anchors'; a group has anchor, contradiction, "),
        ({"id": "g2", "anchor": "أغلقت الباب"}, ", line 2: group 'g2' has only its anchor; add at least one "),
        (GROUP, ", line 2: id 'g1' was used on line 1; ids are unique"),
        (GROUP | {"id": "g2", "split": "val"}, ", line 2: split 'val' is none of train, dev, test"),
        ({"anchor": "أ", "neutral": "ب"}, ", line 2: 'id' must be text, not None"),
        (GROUP | {"id": "g2", "anchor": ""}, ", line 2: 'anchor' is empty"),
        ('{"id": }', ", line 2: broken JSON at column 8"),
        (GROUP | {"id": "g2", "neutral": " "}, ", line 2: 'neutral' is empty"),
        (GROUP | {"id": "g2", "entailment": 5}, ", line 2: 'entailment' must be text, not 5"),
        (GROUP | {"id": "g2", "paraphrases": ["أقفلت الباب", ""]}, ", line 2: 'paraphrases' "),
        (GROUP | {"id": "g2", "paraphrases": "أقفلت الباب"}, ", line 2: 'paraphrases' must be "),
        (GROUP | {"id": "g2", "paraphrases": None}, ", line 2: 'paraphrases' must be "),
        (GROUP | {"id": "g2", "dialects": ["قفلت الباب"]}, ", line 2: 'dialects' must be "),
        (GROUP | {"id": "g2", "dialects": {"egyptian": ""}}, ", line 2: 'dialects' "),
    ],
)
def test_a_bad_group(tmp_path, row, message):
    path = write(tmp_path, "g.jsonl", GROUP, row)
    with refuses("{}{}", path, message):
        data.load_groups(path)


# ---------------------------------------------------------------------------------------------- hub


def test_a_local_folder_is_read_as_a_hub_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{role: f"{role} {i}" for role in GOOD} for i in range(5)]
    write(folder, "train.jsonl", *rows[:3])
    write(folder, "test.jsonl", *rows[3:])
    table = data.load_triplets(f"hub:{folder}")
    assert table[list(GOOD)].to_dict("records") == rows
    assert table["split"].tolist() == ["train"] * 3 + ["test"] * 2
    assert data.load_triplets(f"hub:{folder}", "test")["anchor"].tolist() == ["anchor 3", "anchor 4"]
    with refuses("hub:{}, line 1: no column 'premise'", folder):
        data.load_nli(f"hub:{folder}")


def test_a_hub_set_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # makes the import fail
    with refuses("hub:some/set: hub sets need the extra `hub`: pip install 'gate-lessons[hub]'"):
        data.load_triplets("hub:some/set")


# ---------------------------------------------------------------------------------------------- views of groups

FULL = Group(
    "g1", "مرساة", ("قريبة", "بعيدة"), "لازمة", "محايدة", "نقيض", "negation", {"egyptian": "مصري"}, "health", "train"
)
BARE = Group("g2", "أخرى", neutral="محايدة أخرى", topic="culture", split="dev")


def test_sentences_of_a_group_by_role():
    roles = ["anchor", "close", "distant", "entailment", "neutral", "contradiction"]
    assert list(FULL.sentences()) == roles
    assert list(FULL.sentences().values()) == ["مرساة", "قريبة", "بعيدة", "لازمة", "محايدة", "نقيض"]
    assert BARE.sentences() == {"anchor": "أخرى", "neutral": "محايدة أخرى"}


def test_triplets_are_every_positive_with_every_negative():
    table = data.triplets([FULL, BARE], ("close", "entailment"), ("contradiction", "neutral"))
    assert list(zip(table["positive"], table["negative"], strict=True)) == [
        ("قريبة", "نقيض"),
        ("قريبة", "محايدة"),
        ("لازمة", "نقيض"),
        ("لازمة", "محايدة"),
    ]
    assert set(table["anchor"]) == {"مرساة"}  # the bare group has no positive
    assert table[["group", "topic", "phenomenon"]].drop_duplicates().values.tolist() == [["g1", "health", "negation"]]
    assert list(data.triplets([BARE]).columns) == list(table.columns)


def test_nli_and_dialect_views_by_hand():
    assert data.nli_pairs([FULL, BARE]).values.tolist() == [
        ["مرساة", "لازمة", "entailment", "g1", "health"],
        ["مرساة", "محايدة", "neutral", "g1", "health"],
        ["مرساة", "نقيض", "contradiction", "g1", "health"],
        ["أخرى", "محايدة أخرى", "neutral", "g2", "culture"],
    ]
    assert data.dialect_pairs([FULL, BARE]).values.tolist() == [["مرساة", "egyptian", "مصري", "g1", "health"]]


def test_scored_pairs_are_the_mean_of_two_passes_within_the_groups(tmp_path):
    path = write(
        tmp_path,
        "sts.jsonl",
        {"pair": [["g1", "anchor"], ["g1", "distant"]], "scores": [4, 5]},
        {"pair": [["g2", "neutral"], ["g1", "anchor"]], "scores": [0, 0]},
    )
    assert data.sts_pairs([FULL, BARE], path).values.tolist() == [
        ["مرساة", "بعيدة", 4.5, "g1"],
        ["محايدة أخرى", "مرساة", 0.0, "g2"],
    ]
    assert len(data.sts_pairs([FULL], path)) == 1
    bad = write(tmp_path, "bad.jsonl", {"pair": [["g2", "distant"], ["g1", "anchor"]], "scores": [0, 0]})
    with refuses("{}, line 1: no sentence 'distant' in the group", bad):
        data.sts_pairs([FULL, BARE], bad)


def test_views_agree_with_the_corpus_file(groups):
    raw = {row["id"]: row for row in read(data.CORPUS / "groups.jsonl")}
    assert [g.id for g in groups] == list(raw)
    for row in data.triplets(groups, ("close", "distant"), NLI_LABELS).itertuples():
        source = raw[row.group]
        assert row.anchor == source["anchor"]
        assert row.positive in source["paraphrases"]
        assert row.negative in [source[label] for label in NLI_LABELS]
        assert (row.topic, row.phenomenon) == (source["topic"], source["phenomenon"])
    for row in data.nli_pairs(groups).itertuples():
        assert (row.premise, row.hypothesis) == (raw[row.group]["anchor"], raw[row.group][row.label])
    for row in data.dialect_pairs(groups).itertuples():
        assert (row.anchor, row.text) == (raw[row.group]["anchor"], raw[row.group]["dialects"][row.dialect])
    assert len(data.nli_pairs(groups)) == sum(bool(row.get(label)) for row in raw.values() for label in NLI_LABELS)
    assert len(data.dialect_pairs(groups)) == sum(len(row.get("dialects", {})) for row in raw.values())
    assert len(data.triplets(groups)) == sum(
        len(row["paraphrases"]) * bool(row.get("contradiction")) for row in raw.values()
    )


# ---------------------------------------------------------------------------------------------- the corpus


def test_the_corpus_has_its_size_topics_and_splits(groups):
    assert len({g.topic for g in groups}) == 18
    assert {"education", "technology", "health", "culture"} <= {g.topic for g in groups}
    assert {g.split for g in groups} == set(SPLITS)
    assert {variety for g in groups for variety in g.dialects} == set(DIALECTS)


def test_splits_of_the_corpus_are_disjoint_and_complete(groups):
    parts = {split: [g.id for g in data.load_corpus(split)] for split in SPLITS}
    expected: dict[str, list[str]] = {split: [] for split in SPLITS}
    for row in read(data.CORPUS / "groups.jsonl"):
        expected[row["split"]].append(row["id"])
    assert parts == expected
    assert len(set(chain.from_iterable(parts.values()))) == len(groups)


def test_no_sentence_of_the_corpus_stands_in_two_splits(groups):
    home: dict[str, Group] = {}
    for group in groups:
        for text in [*group.sentences().values(), *group.dialects.values()]:
            first = home.setdefault(normalize(text), group)
            assert first.split == group.split, f"{text!r} is in {first.id} ({first.split}) and {group.id}"


def test_every_phenomenon_of_the_corpus_is_frequent_enough_to_judge(groups):
    counts = Counter(g.phenomenon for g in groups if g.contradiction)
    assert "" not in counts
    assert {name: count for name, count in counts.items() if count < 0.04 * len(groups)} == {}


def test_every_topic_is_in_every_split(groups):
    assert {(g.topic, g.split) for g in groups} == {(g.topic, split) for g in groups for split in SPLITS}


def test_no_two_sentences_of_a_corpus_group_are_the_same(groups):
    for group in groups:
        texts = [normalize(text) for text in group.sentences().values()]
        assert len(set(texts)) == len(texts) > 1, group.id


def test_scored_pairs_of_the_corpus_stay_inside_one_split(groups):
    split = {g.id: g.split for g in groups}
    rows = read(data.CORPUS / "sts.jsonl")
    for row in rows:
        (first, _), (second, _) = row["pair"]
        assert split[first] == split[second], row
        assert len(row["scores"]) == 2
        assert all(0 <= score <= 5 for score in row["scores"]), row
    assert len(data.sts_pairs(groups)) == len(rows) > 0
    assert sum(len(data.sts_pairs(data.load_corpus(part))) for part in SPLITS) == len(rows)


# ---------------------------------------------------------------------------------------------- splits and pools


@pytest.mark.parametrize("seed", range(3))
def test_splitting_keeps_groups_whole_and_shares_close(seed):
    table = pd.DataFrame({"group": np.random.default_rng(9).integers(0, 90, 1000), "row": np.arange(1000)})
    split = data.split_by_group(table, seed)
    homes = split.drop_duplicates("group")
    assert (split.groupby("group")["split"].nunique() == 1).all()
    assert split.drop(columns="split").equals(table)
    for name, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        assert abs((homes["split"] == name).sum() - share * len(homes)) <= 1


def test_splitting_is_seeded():
    table = pd.DataFrame({"group": list("abcdefghij") * 3})
    assert data.split_by_group(table, 1).equals(data.split_by_group(table, 1))
    assert not data.split_by_group(table, 1).equals(data.split_by_group(table, 2))


def test_the_pool_merges_spellings_and_gives_negatives_a_meaning_of_their_own():
    rows = [
        ("إلى البيت", "نحو الدار", "من البيت", 1, "home"),
        ("الى البَيت", "صوب المنزل", "نحو الدّار!", 1, "home"),  # its negative is a positive of the same meaning
        ("من المدرسة", "خرج من الصف", "من البيت", 2, "school"),
    ]
    table = pd.DataFrame(rows, columns=["anchor", "positive", "negative", "group", "topic"])
    pool = data.candidate_pool(table)
    assert pool["key"].is_unique
    assert pool["key"].tolist() == [normalize(text) for text in pool["text"]]
    by_text = pool.set_index("text")
    assert set(by_text.index) == {"إلى البيت", "نحو الدار", "صوب المنزل", "من المدرسة", "خرج من الصف", "من البيت"}
    assert by_text["group"].drop("من البيت").to_dict() == {
        "إلى البيت": 1,
        "نحو الدار": 1,
        "صوب المنزل": 1,
        "من المدرسة": 2,
        "خرج من الصف": 2,
    }
    assert by_text.loc["من البيت", "group"] not in (1, 2)
    assert by_text["topic"].to_dict()["خرج من الصف"] == "school"


def test_the_pool_of_the_corpus_holds_every_sentence_once(groups):
    table = data.triplets(groups)
    pool = data.candidate_pool(table)
    texts = {normalize(text) for role in ("anchor", "positive", "negative") for text in table[role]}
    assert sorted(pool["key"]) == sorted(texts)
    meant = {normalize(text) for role in ("anchor", "positive") for text in table[role]}
    only_negative = pool[~pool["key"].isin(meant)]
    assert only_negative["group"].is_unique
    assert not set(only_negative["group"]) & set(table["group"])


def test_a_pool_needs_no_topic():
    table = pd.DataFrame([GOOD | {"group": "g"}])
    assert data.candidate_pool(table)["text"].tolist() == ["أ", "ب", "ج"]


def test_codes_are_shared_by_columns():
    first, second = data.codes(["أ", "ب", "أ"], pd.Series(["ج", "أ"]))
    assert [len(first), len(second)] == [3, 2]
    assert first[0] == first[2] == second[1]
    assert len({first[0], first[1], second[0]}) == 3
    assert np.issubdtype(first.dtype, np.integer)


def test_codes_tell_numbers_from_their_names_and_take_iterators():
    (only,) = data.codes(iter([1, "1", 1]))
    assert only[0] == only[2] != only[1]
