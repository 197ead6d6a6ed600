"""`python -m gate_lessons mine`: a person's own files in; triplets and a report out, whatever happens on the way."""

import html
import html.parser
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from gate_lessons import miner, search
from gate_lessons.__main__ import app
from gate_lessons.data import load_triplets
from gate_lessons.encoder import Encoder, NGramEncoder, make_encoder
from gate_lessons.features import lexical, same_root
from gate_lessons.mine_files import Mining, job, mine_files
from gate_lessons.text import normalize

# A process for each kill, forked from one that has done the imports.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["pytest", "IPython.display", "faiss", "matplotlib.figure", "sklearn.feature_extraction.text"]
PROCESSES.set_forkserver_preload(
    [*IMPORTED, "typer.testing", "tqdm.auto", "gate_lessons.__main__", "gate_lessons.plots"]
)

NAMES = ("سامي", "خالد", "ياسر", "منير", "طارق")
# Category, then one meaning three times: twice in standard Arabic, once as in Cairo.
MEANINGS = (
    ("طعام", "يطبخ {} العدس في مطبخ بيته", "يعدّ {} شوربة العدس في البيت", "{} بيطبخ عدس في مطبخ بيته"),
    (
        "طعام",
        "يشتري {} الخبز من الفرن القريب",
        "يبتاع {} أرغفة من المخبز المجاور",
        "{} بيشتري العيش من الفرن اللي جنبه",
    ),
    ("سفر", "يسافر {} إلى أسوان بالقطار", "يركب {} القطار قاصدًا أسوان", "{} مسافر أسوان بالقطر"),
    ("سفر", "يحجز {} غرفة في فندق على البحر", "يستأجر {} غرفة مطلة على الشاطئ", "{} بيحجز أوضة في فندق على البحر"),
    ("رياضة", "يلعب {} كرة القدم مع أصدقائه", "يقضي {} وقته مع رفاقه في الملعب", "{} بيلعب كورة مع صحابه"),
    ("رياضة", "يسبح {} في المسبح كل صباح", "يتمرن {} على السباحة يوميًا", "{} بيعوم في حمام السباحة كل يوم الصبح"),
    ("دراسة", "يكتب {} رسالة إلى معلمه", "يخط {} كتابًا يبعثه إلى أستاذه", "{} بيكتب جواب للمدرس بتاعه"),
    ("دراسة", "يقرأ {} في مكتبة المدرسة", "يطالع {} الكتب في المكتبة المدرسية", "{} بيقرا في مكتبة المدرسة"),
)
PROGRESS = "reading|making the encoder|embedding|making the search|mining: "
SHARD, SLICE = 48, 12  # small, so that 120 sentences and forty anchors are several of each


def groups() -> list[tuple[str, str, str, str, str]]:
    """Group, category, anchor, positive, dialect rendering."""
    every = enumerate(itertools.product(NAMES, MEANINGS))
    return [(f"g{n}", m[0], *(text.format(name) for text in m[1:])) for n, (name, m) in every]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Pairs as JSONL; a corpus as CSV of the positives and the dialect renderings."""
    folder = tmp_path_factory.mktemp("files")
    pairs = [{"anchor": a, "positive": p, "group": g, "category": c, "dialect": "msa"} for g, c, a, p, _ in groups()]
    rows = [(text, g, c, d) for g, c, _, p, e in groups() for text, d in ((p, "msa"), (e, "egyptian"))]
    corpus = pd.DataFrame(rows, columns=["text", "group", "category", "dialect"])
    corpus.insert(0, "id", [f"s{n}" for n in range(len(corpus))])
    corpus.to_csv(folder / "corpus.csv", index=False)
    return jsonl(folder / "pairs.jsonl", *pairs), folder / "corpus.csv"


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.parent.iterdir()) if path.is_file()}


def command(*words: object) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "gate_lessons", "mine", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def refusal(*words: object) -> str:
    """What the command says when it refuses, beside its progress: one line, without a trace of how it came to it."""
    done = CliRunner().invoke(app, ["mine", *map(str, words)])
    assert done.exit_code == 1, done.output
    lines = [line for line in done.stderr.splitlines() if line and not re.match(PROGRESS, line)]
    assert len(lines) == 1 and "Traceback" not in lines[0]
    return lines[0]


# ------------------------------------------------------------------- what is mined


def test_the_command_finds_the_nearest_of_another_meaning(files, tmp_path):
    out = tmp_path / "new" / "triplets.jsonl"
    done = command("--pairs", files[0], "--corpus", files[1], "--num-negatives", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(results(out)) == ["triplets.jsonl", "triplets.report.html", "triplets.report.json"]
    assert [path.name for path in out.parent.iterdir() if path.is_dir()] == []
    assert "embedding: 100%" in done.stderr and "mining: 100%" in done.stderr
    corpus = pd.read_csv(files[1])
    texts = list(dict.fromkeys([*corpus["text"], *(t for _, _, a, p, _ in groups() for t in (a, p))]))
    encode = NGramEncoder().fit_idf(texts).encode
    pool = encode(list(corpus["text"])).double().numpy()
    rows = iter(read(out))
    for group, _, anchor, positive, _ in groups():
        a, p = encode([anchor, positive]).double().numpy()
        cosine = pool @ a / np.linalg.norm(pool, axis=1) / np.linalg.norm(a)
        cosine[corpus["group"] == group] = -2
        for rank, best in enumerate(np.argsort(-cosine)[:3], 1):
            row = next(rows)
            assert (row["anchor"], row["positive"], row["rank"]) == (anchor, positive, rank)
            assert row["negative_similarity"] == pytest.approx(cosine[best], abs=1e-6)
            if (np.abs(cosine - cosine[best]) < 1e-6).sum() == 1:
                assert (row["negative"], row["negative_id"]) == (corpus["text"][best], corpus["id"][best])
            assert row["positive_similarity"] == pytest.approx(a @ p / np.linalg.norm(a) / np.linalg.norm(p), abs=1e-6)
    assert next(rows, None) is None


def direct(strategy: str, mining: Mining, files: tuple[Path, Path]) -> tuple[list[str], miner.Mined]:
    """The same asked of the miner in one call, with codes made by hand."""
    corpus, pairs = pd.read_csv(files[1]), pd.DataFrame(read(files[0]))
    names = list(corpus["text"])
    texts = list(dict.fromkeys([*names, *pairs["anchor"], *pairs["positive"]]))
    encode = make_encoder("ngram", texts, mining.seed).encode
    a, p, c = (encode(list(column)) for column in (pairs["anchor"], pairs["positive"], names))
    by_name = {label: number for number, label in enumerate(dict.fromkeys([*corpus["group"], *corpus["category"]]))}
    dialects = ["msa", "egyptian"]
    more = {}
    if "cluster" in strategy:
        more["clusters"] = search.cluster(c, mining.clusters, mining.seed)
    for name, make in (("lexical", lexical), ("same_root", same_root), ("dialect_twin", lexical)):
        if name in strategy:
            more |= zip(("anchor_features", "candidate_features"), make(list(pairs["anchor"]), names), strict=True)
    return names, miner.mine(
        a,
        p,
        c,
        strategy,
        mining.num_negatives,
        anchor_group=[by_name[g] for g in pairs["group"]],
        candidate_group=[by_name[g] for g in corpus["group"]],
        anchor_category=[by_name[g] for g in pairs["category"]],
        candidate_category=[by_name[g] for g in corpus["category"]],
        anchor_variety=[0] * len(pairs),
        candidate_variety=[dialects.index(d) for d in corpus["dialect"]],
        known_positives=[[names.index(text)] for text in pairs["positive"]],
        max_score=mining.max_score,
        fallback=mining.fallback,
        generator=torch.Generator().manual_seed(mining.seed),
        **more,
    )


MIXTURES = ("hard:0.7+random:0.3", "cluster+category+dialect_twin")


@pytest.mark.parametrize("strategy", [*miner.STRATEGIES, *MIXTURES])
def test_slices_and_shards_give_what_one_call_of_the_miner_gives(files, tmp_path, strategy, small):
    mining = Mining(strategy=strategy, num_negatives=3, max_score=0.6, seed=5)
    out = tmp_path / "t.jsonl"
    mine_files(files[0], out, files[1], mining)
    names, mined = direct(strategy, mining, files)
    rows = read(out)
    assert [row["negative"] for row in rows] == [names[row] for row in mined.indices.flatten().tolist()]
    torch.testing.assert_close(
        torch.tensor([row["negative_similarity"] for row in rows]), mined.similarities.flatten(), rtol=0, atol=0
    )
    wanted = [place >= 3 - short for short in mined.shortfall.tolist() for place in range(3)]
    assert [row["filled"] for row in rows] == wanted
    assert all(row["strategy"] == ("random" if row["filled"] else strategy) for row in rows)
    report = json.loads((tmp_path / "t.report.json").read_text())
    assert report["skipped"] == mined.skipped
    assert [entry["short of"] for entry in report["fell short"]] == [s for s in mined.shortfall.tolist() if s]
    assert {entry["lacking"] for entry in report["fell short"]} <= {0}


def test_the_result_does_not_hang_on_the_sizes_of_slices_and_shards(files, tmp_path, monkeypatch):
    found = []
    for shard, size in ((16, 7), (1, 40), (4096, 8192)):
        monkeypatch.setattr(job, "SHARD", shard)
        monkeypatch.setattr(job, "SLICE", size)
        out = tmp_path / f"{shard}" / "t.jsonl"
        mine_files(files[0], out, files[1], Mining(strategy="cluster:2+ambiguous", num_negatives=2))
        found.append(results(out))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_an_index_over_a_small_pool_gives_what_the_exact_search_gives(files, tmp_path, kind):
    for name in ("exact", kind):
        mine_files(files[0], tmp_path / f"{name}.jsonl", files[1], Mining(search=name, num_negatives=2))
    assert (tmp_path / f"{kind}.jsonl").read_bytes() == (tmp_path / "exact.jsonl").read_bytes()
    assert json.loads((tmp_path / f"{kind}.report.json").read_text())["parameters"]["search"] == kind


def test_without_a_corpus_it_mines_among_the_pairs_own_sentences(files, tmp_path):
    out = tmp_path / "t.jsonl"
    mine_files(files[0], out)
    own = {text for _, _, a, p, _ in groups() for text in (a, p)}
    meaning = {text: g for g, _, a, p, _ in groups() for text in (a, p)}
    rows = read(out)
    assert len(rows) == len(groups())
    for row in rows:
        assert row["negative"] in own and meaning[row["negative"]] != row["group"]
    assert "negative_id" not in rows[0]


def test_no_positive_of_the_same_anchor_and_no_spelling_of_it_is_served(tmp_path):
    pairs = jsonl(
        tmp_path / "pairs.jsonl",
        {"anchor": "كَتَبَ الولدُ الدرسَ", "positive": "دوّن الصبي درسه"},
        {"anchor": "كتب الولد الدرس", "positive": "سجّل الطفل ما تعلّم"},
    )
    sentences = ["كتب الولد الدرس.", "دوّن الصبيّ درسه", "سجّل الطفل ما تعلّم", "نام القط على السرير", "هطل المطر"]
    (tmp_path / "corpus.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    mine_files(pairs, tmp_path / "t.jsonl", tmp_path / "corpus.txt", Mining(num_negatives=2))
    rows = read(tmp_path / "t.jsonl")
    assert [Counter(row["negative"] for row in rows if row["anchor"] == a["anchor"]) for a in read(pairs)] == [
        Counter(sentences[3:])
    ] * 2


def test_a_sentence_that_stands_under_two_groups_is_no_negative_of_either(tmp_path):
    pairs = jsonl(
        tmp_path / "pairs.jsonl",
        {"anchor": "فتح الحارس الباب", "positive": "الباب فتحه الحارس", "group": 1},
        {"anchor": "دخل الضيف الدار", "positive": "الضيف دخل الدار", "group": 2},
        {"anchor": "هبّت ريح باردة", "positive": "الريح باردة اليوم"},
    )
    corpus = tmp_path / "corpus.csv"
    corpus.write_text(
        "text,group\nدخل الضيف حين فتح الحارس الباب,2\nدخلَ الضيف حين فتح الحارس الباب.,1\nهبّت ريح شديدة,\n", "utf-8"
    )
    mine_files(pairs, tmp_path / "t.jsonl", corpus)
    rows = read(tmp_path / "t.jsonl")
    # What has no group has a meaning of its own; the table of triplets takes such an anchor for a name.
    assert [row["negative"] for row in rows] == ["هبّت ريح شديدة"] * 3
    assert [row["group"] for row in rows] == ["1", "2", normalize("هبّت ريح باردة")]


def test_training_takes_the_triplets(files, tmp_path):
    mine_files(files[0], tmp_path / "t.jsonl", files[1])
    table = load_triplets(tmp_path / "t.jsonl")
    assert set(table["group"]) == {g for g, *_ in groups()} and set(table["topic"]) == {m[0] for m in MEANINGS}
    line = [sys.executable, "-m", "gate_lessons", "train", "--dataset", tmp_path / "t.jsonl", "--epochs", "1"]
    words = [*line, "--strategy", "given", "--out", tmp_path / "run"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    NGramEncoder.load(tmp_path / "run" / "encoder")


def _static_model(folder: Path) -> Path:
    """A sentence-transformers model that looks words up in a table of random vectors."""
    pytest.importorskip("sentence_transformers", reason="the extra `hub` is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for _, _, *texts in groups() for text in texts for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | {w: i for i, w in enumerate(words, 1)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)]).save_pretrained(str(folder))
    return folder


def _saved_encoder(folder: Path) -> Path:
    make_encoder("ngram", ["جملة"], seed=3).save(folder)
    return folder


@pytest.mark.parametrize("made", [_saved_encoder, _static_model])
def test_any_encoder_embeds(files, tmp_path, made, small):
    folder = made(tmp_path / "encoder")
    mine_files(files[0], tmp_path / "t.jsonl", files[1], Mining(encoder=str(folder)))
    rows, encoder = pd.DataFrame(read(tmp_path / "t.jsonl")), make_encoder(str(folder))
    for role in ("positive", "negative"):
        expected = encoder.similarity(list(rows["anchor"]), list(rows[role]))
        np.testing.assert_allclose(rows[f"{role}_similarity"], expected, atol=1e-6)


# ------------------------------------------------------------------- what is lacking


def test_who_falls_short_is_listed_and_nothing_is_filled_in_where_nobody_asks(files, tmp_path, small):
    strict = Mining(strategy="semi_hard", num_negatives=4, margin=0.02, fallback="none")
    mine_files(files[0], tmp_path / "t.jsonl", files[1], strict)
    rows = pd.DataFrame(read(tmp_path / "t.jsonl"))
    assert not rows["filled"].any()
    assert (rows["negative_similarity"] < rows["positive_similarity"]).all()
    got = Counter(rows["anchor"])
    assert 0 < len(rows) < 4 * len(groups()) and min(got[a] for _, _, a, *_ in groups()) == 0
    report = json.loads((tmp_path / "t.report.json").read_text())
    expected = [
        {"anchor": a, "line": line, "short of": 4 - got[a], "lacking": 4 - got[a]}
        for line, (_, _, a, _, _) in enumerate(groups(), 1)
        if got[a] < 4
    ]
    assert report["fell short"] == expected
    assert report["counts"]["negatives lacking"] == 4 * len(groups()) - len(rows)


def test_nothing_found_at_all_is_a_result_too(files, tmp_path):
    nothing = Mining(max_score=-0.99, fallback="none")
    mine_files(files[0], tmp_path / "t.jsonl", files[1], nothing)
    assert (tmp_path / "t.jsonl").read_bytes() == b""
    report = json.loads((tmp_path / "t.report.json").read_text())
    assert report["samples"] == [] and len(report["fell short"]) == len(groups())
    assert report["similarity"]["s(a,n)"] == {} and report["similarity"]["s(a,p)"]["50%"] > 0
    assert "No negatives." in (tmp_path / "t.report.html").read_text("utf-8")


def test_a_filter_that_leaves_the_fallback_too_few_names_the_file_and_the_anchor(files, tmp_path):
    said = refusal("--pairs", files[0], "--corpus", files[1], "--out", tmp_path / "t.jsonl", "--max-score", "-0.5")
    assert re.search(r"pairs\.jsonl: anchor 0: the filter leaves 0 of 80 candidates, .* 78 max score", said)
    assert not (tmp_path / "t.jsonl").exists()


# ------------------------------------------------------------------- the report


class Page(html.parser.HTMLParser):
    """Rows of cells of each table with its direction, and every address that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.directions, self.tables, self.fetched, self.headings, self.inside = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found, self.inside = dict(attributes), tag
        if tag == "div":
            self.directions.append(found.get("dir"))
        if tag == "table":
            self.tables.append((self.directions[-1] if self.directions else None, []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        self.fetched += [value for name, value in found.items() if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.inside = ""
        if tag == "div":
            self.directions.pop()

    def handle_data(self, data):
        if self.inside in ("td", "th"):
            self.tables[-1][1][-1][-1] += data
        if self.inside == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def reported(files, tmp_path_factory) -> tuple[pd.DataFrame, dict, str]:
    """Triplets, and both reports of them: one sentence of the corpus is long, and looks like HTML."""
    folder = tmp_path_factory.mktemp("reported")
    corpus = pd.read_csv(files[1])
    corpus.loc[len(corpus)] = [
        "s80",
        "<b>يقرأ</b> سامي في مكتبة المدرسة &" + " مع أصدقائه" * 20,
        "g80",
        "دراسة",
        "msa",
    ]
    corpus.to_csv(folder / "corpus.csv", index=False)
    mine_files(files[0], folder / "t.jsonl", folder / "corpus.csv", Mining(num_negatives=2, margin=0.2))
    report = json.loads((folder / "t.report.json").read_text("utf-8"))
    return pd.DataFrame(read(folder / "t.jsonl")), report, (folder / "t.report.html").read_text("utf-8")


def test_the_reports_numbers_are_those_of_the_triplets(reported):
    rows, report, _ = reported
    positive, negative = rows["positive_similarity"], rows["negative_similarity"]
    series = {
        "s(a,p)": positive[:: report["parameters"]["num_negatives"]],
        "s(a,n)": negative,
        "difficulty s(a,n) − s(a,p) + 1": negative - positive + 1,
    }
    assert set(report["similarity"]) == set(series)
    for name, values in series.items():
        found = report["similarity"][name]
        assert found.pop("mean") == pytest.approx(values.mean(), abs=6e-5)
        assert len(found) == 7
        for share, value in found.items():
            assert value == pytest.approx(values.quantile(int(share[:-1]) / 100), abs=6e-5)
    hard = negative >= positive
    semi = ~hard & (negative >= positive - 0.2)
    shares = {"easy": (~hard & ~semi).mean(), "semi_hard": semi.mean(), "hard": hard.mean()}
    assert report["hardness"] == pytest.approx(shares, abs=6e-5)
    served = Counter(rows["negative"])
    assert report["diversity"]["distinct negatives"] == len(served)
    assert report["diversity"]["share of the pool"] == pytest.approx(len(served) / 81, abs=6e-5)
    most = report["diversity"]["most served"]
    assert most["times"] == max(served.values()) == served[most["text"]]
    counts = report["counts"]
    assert (counts["pairs"], counts["sentences to mine from"], counts["triplets written"]) == (40, 81, 80)


def test_twenty_samples_are_triplets_of_the_file_and_run_from_right_to_left(reported):
    rows, report, text = reported
    triplets = {tuple(row) for row in rows[["anchor", "positive", "negative"]].to_numpy()}
    samples = [(s["anchor"], s["positive"], s["negative"]) for s in report["samples"]]
    assert len(set(samples)) == 20 and set(samples) <= triplets
    page = Page(text)
    (direction, (head, *body)), *others = [t for t in page.tables if t[1][0][:3] == ["anchor", "positive", "negative"]]
    assert direction == "rtl" and not others
    assert [tuple(cells[:3]) for cells in body] == samples
    assert head[3:] == ["s(a,p)", "s(a,n)", "filled"]
    assert all(cells[3] == f"{s['s(a,p)']:.3f}" for cells, s in zip(body, report["samples"], strict=True))
    assert [direction for direction, table in page.tables if direction is None] == [None] * (len(page.tables) - 1)


def test_the_page_fetches_nothing_and_shows_sentences_whole_and_as_text(reported):
    _, report, text = reported
    page = Page(text)
    assert [address[:22] for address in page.fetched] == ["data:image/png;base64,"]
    assert "http" not in text and "<b>" not in text and "…" not in text and "..." not in text
    assert html.unescape(text).count(report["diversity"]["most served"]["text"]) >= 1
    assert len(page.headings) == 7


# ------------------------------------------------------------------- interrupted


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(job, "SHARD", SHARD)
    monkeypatch.setattr(job, "SLICE", SLICE)


RESUMED = Mining(strategy="cluster+hard+random", num_negatives=2, max_score=0.6, search="hnsw")


def _run(folder: Path, files: tuple[Path, Path], deadly: int | None, calls: Path | None) -> None:
    """What a process does: mine, until the given call that reaches the disk kills it, or to the end."""
    job.SHARD, job.SLICE = SHARD, SLICE
    counter, fsync, unlink = itertools.count(1), os.fsync, Path.unlink

    def counted(real: Callable) -> Callable:
        def call(*arguments, **more):
            if next(counter) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return call

    os.fsync, Path.unlink, shutil.rmtree = counted(fsync), counted(unlink), counted(shutil.rmtree)
    mine_files(files[0], folder / "t.jsonl", files[1], RESUMED)
    if calls is not None:
        calls.write_text(str(next(counter) - 1))


def process(folder: Path, files: tuple[Path, Path], deadly: int | None = None, calls: Path | None = None) -> int:
    child = PROCESSES.Process(target=_run, args=(folder, files, deadly, calls), daemon=True)
    child.start()
    child.join(60)
    return child.exitcode


@pytest.fixture(scope="module")
def uninterrupted(files, tmp_path_factory) -> tuple[dict[str, bytes], int]:
    """The files of a job that nothing disturbed, and how often it reached the disk: a place to be killed at, each."""
    folder, calls = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("calls") / "calls"
    assert process(folder, files, calls=calls) == 0
    return results(folder / "t.jsonl"), int(calls.read_text())


PLACES, THIRD_SLICE = 24, 9


def test_the_job_has_this_many_places_to_be_killed_at(uninterrupted):
    assert uninterrupted[1] == PLACES
    assert len(uninterrupted[0]) == 3


@pytest.mark.parametrize("place", range(1, PLACES + 1))
def test_a_job_that_is_killed_anywhere_ends_with_the_same_bytes(files, tmp_path, uninterrupted, place):
    assert process(tmp_path, files, deadly=place) == -signal.SIGKILL
    assert process(tmp_path, files) == 0
    assert results(tmp_path / "t.jsonl") == uninterrupted[0]
    assert not (tmp_path / "t.work").exists()


def test_a_job_that_is_killed_again_and_again_gets_there(files, tmp_path, uninterrupted):
    kills = 0
    while not (tmp_path / "t.jsonl").exists():
        assert process(tmp_path, files, deadly=6) == -signal.SIGKILL
        kills += 1
        assert kills < PLACES
    assert kills > 2 and results(tmp_path / "t.jsonl") == uninterrupted[0]


def killed_in_mining(folder: Path, files: tuple[Path, Path]) -> Path:
    """A work folder with all embeddings and two of the four slices."""
    assert process(folder, files, deadly=THIRD_SLICE) == -signal.SIGKILL
    assert len(list(folder.glob("t.work/mined-*.npz"))) == 2
    return folder / "t.work"


def _never(*_: object, **__: object) -> None:
    raise AssertionError("this was done already")


def test_what_is_done_is_not_done_again(files, tmp_path, uninterrupted, small, monkeypatch):
    killed_in_mining(tmp_path, files)
    for owner, name in ((Encoder, "encode"), (search, "make_pool"), (search, "cluster")):
        monkeypatch.setattr(owner, name, _never)
    mined, real = [], miner.mine
    monkeypatch.setattr(miner, "mine", lambda *a, **more: mined.append(more["first_anchor"]) or real(*a, **more))
    mine_files(files[0], tmp_path / "t.jsonl", files[1], RESUMED)
    assert mined == [24, 36]
    assert results(tmp_path / "t.jsonl") == uninterrupted[0]


@pytest.mark.parametrize("damaged", ["vectors-000000048.npy", "mined-000000012.npz", "clusters.npy"])
@pytest.mark.parametrize("kept", [0, 40, 200])
def test_what_was_cut_short_is_made_anew(files, tmp_path, uninterrupted, small, damaged, kept):
    path = killed_in_mining(tmp_path, files) / damaged
    assert kept < path.stat().st_size
    os.truncate(path, kept)
    mine_files(files[0], tmp_path / "t.jsonl", files[1], RESUMED)
    assert results(tmp_path / "t.jsonl") == uninterrupted[0]


@pytest.mark.parametrize("name", ["vectors-000000048.npy", "clusters.npy"])
def test_a_file_with_too_few_rows_is_made_anew(files, tmp_path, uninterrupted, small, name):
    path = killed_in_mining(tmp_path, files) / name
    np.save(path, np.load(path)[:5])
    mine_files(files[0], tmp_path / "t.jsonl", files[1], RESUMED)
    assert results(tmp_path / "t.jsonl") == uninterrupted[0]


def test_a_damaged_index_is_refused_with_the_way_out(files, tmp_path, small):
    work = killed_in_mining(tmp_path, files)
    os.truncate(work / "index" / "index.faiss", 100)
    with pytest.raises(ValueError, match=r"index holds no whole index .* or delete .*t\.work to begin anew"):
        mine_files(files[0], tmp_path / "t.jsonl", files[1], RESUMED)


SLOW = f"""
import time
from gate_lessons import __main__, encoder
from gate_lessons.mine_files import job
job.SHARD, job.SLICE = {SHARD}, {SLICE}
real = encoder.Encoder.encode
encoder.Encoder.encode = lambda *a, **more: (time.sleep(0.5), real(*a, **more))[1]
__main__.app()
"""


def test_ctrl_c_says_that_the_same_command_goes_on_and_it_does(files, tmp_path, small, monkeypatch):
    words = ["mine", "--pairs", files[0], "--corpus", files[1], "--out", tmp_path / "t.jsonl"]
    line = [sys.executable, "-c", SLOW, *map(str, words)]
    running = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("t.work/vectors-*.npy")):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    error = running.communicate()[1]
    assert running.returncode == 1
    last = " ".join(error.splitlines()[-1].split())
    assert last == f"interrupted; the same command goes on from what is done in {tmp_path / 't.work'}"
    assert "Traceback" not in error and not (tmp_path / "t.jsonl").exists()
    mine_files(files[0], tmp_path / "whole" / "t.jsonl", files[1])
    missing, real = 3 - len(list(tmp_path.glob("t.work/vectors-*.npy"))), Encoder.encode
    made = []
    monkeypatch.setattr(Encoder, "encode", lambda *arguments: made.append(1) or real(*arguments))
    mine_files(files[0], tmp_path / "t.jsonl", files[1])
    assert len(made) == missing < 3
    assert results(tmp_path / "t.jsonl") == results(tmp_path / "whole" / "t.jsonl")


def test_a_cluster_that_is_not_there_is_said_and_the_embeddings_stay(files, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    pytest.importorskip("gate_lessons.search.distributed")
    words = ["--pairs", files[0], "--corpus", files[1], "--out", tmp_path / "t.jsonl"]
    assert refusal(*words, "--scheduler", "nowhere").startswith("no Dask scheduler at 'nowhere'")
    monkeypatch.setattr(Encoder, "encode", _never)
    assert CliRunner().invoke(app, ["mine", *map(str, words)]).exit_code == 0
    assert len(read(tmp_path / "t.jsonl")) == len(groups())


# ------------------------------------------------------------------- refused


def test_a_work_folder_of_another_job_is_refused_and_left_alone(files, tmp_path, small):
    killed_in_mining(tmp_path, files)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    other_pairs = jsonl(tmp_path.parent / f"{tmp_path.name}.jsonl", *read(files[0])[1:])
    others = [
        (files, {"seed": 1}, "seed is 0 there and 1 here"),
        (files, {"strategy": "hard"}, "strategy is cluster\\+hard\\+random there and hard here"),
        (files, {"max_score": None}, "max_score is 0.6 there and None here"),
        ((other_pairs, files[1]), {}, "pairs is [0-9a-f]{64} there and [0-9a-f]{64} here"),
        ((files[0], None), {}, "corpus is [0-9a-f]{64} there and None here"),
    ]
    for (pairs, corpus), changed, sentence in others:
        mining = Mining(**{**vars(RESUMED), **changed})
        with pytest.raises(ValueError, match=rf"t\.work belongs to another job: {sentence}; delete it"):
            mine_files(pairs, tmp_path / "t.jsonl", corpus, mining)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_an_encoder_that_was_trained_since_is_another(files, tmp_path, monkeypatch):
    make_encoder("ngram", ["جملة"]).save(tmp_path / "encoder")
    mining = Mining(encoder=str(tmp_path / "encoder"))
    monkeypatch.setattr(job, "_mine", _never)
    with pytest.raises(AssertionError):
        mine_files(files[0], tmp_path / "t.jsonl", files[1], mining)
    make_encoder("ngram", ["جملة"], seed=1).save(tmp_path / "encoder")
    with pytest.raises(ValueError, match="belongs to another job: encoder is"):
        mine_files(files[0], tmp_path / "t.jsonl", files[1], mining)


def test_a_folder_that_somebody_else_uses_is_left_alone(files, tmp_path):
    (tmp_path / "t.work").mkdir()
    (tmp_path / "t.work" / "notes.txt").write_text("mine")
    said = refusal("--pairs", files[0], "--out", tmp_path / "t.jsonl")
    assert f"{tmp_path / 't.work'} is no work folder of this command, or is damaged: delete it to begin anew" in said
    assert [path.name for path in (tmp_path / "t.work").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_encoder_that_gives_no_numbers_is_refused_with_the_line(files, tmp_path, value):
    encoder = make_encoder("ngram", ["جملة"])
    table = encoder.features(["السباحة"]).ngrams
    encoder.vectors.weight.data[table] = value
    encoder.save(tmp_path / "broken")
    said = refusal(
        "--pairs", files[0], "--corpus", files[1], "--out", tmp_path / "t.jsonl", "--encoder", tmp_path / "broken"
    )
    first = next(
        n
        for n, text in enumerate(pd.read_csv(files[1])["text"])
        if set(table.tolist()) & set(encoder.features([text]).ngrams.tolist())
    )
    assert re.search(
        rf"corpus\.csv, line {first + 2} and \d+ more: the encoder makes NaN or infinite numbers of ", said
    )


def test_a_sentence_of_which_the_encoder_sees_nothing_is_refused_with_the_line(files, tmp_path):
    (tmp_path / "corpus.txt").write_text("هطل المطر\n!!!\nنام القط\n", encoding="utf-8")
    words = ["--pairs", files[0], "--corpus", tmp_path / "corpus.txt", "--out", tmp_path / "t.jsonl"]
    assert f"{tmp_path / 'corpus.txt'}, line 2: the encoder makes only zeros of '!!!'" in refusal(*words)
    pairs = jsonl(tmp_path / "pairs.jsonl", *read(files[0])[:2], {"anchor": "هطل المطر", "positive": "؟؟"})
    (tmp_path / "corpus.txt").write_text("هطل المطر\nنام القط\n", encoding="utf-8")
    words[1], words[5] = pairs, tmp_path / "u.jsonl"
    assert f"{pairs}, line 3: the encoder makes only zeros of '؟؟'" in refusal(*words)


def bad_files(folder: Path) -> dict[str, Path]:
    """By what is wrong with them."""
    good = {"anchor": "هطل المطر", "positive": "نزل الغيث"}
    files = {
        "column": jsonl(folder / "column.jsonl", {"anchor": "هطل المطر", "pos": "نزل الغيث"}),
        "empty": jsonl(folder / "empty.jsonl", good, good | {"positive": " "}),
        "broken": folder / "broken.jsonl",
        "kind": folder / "pairs.xlsx",
        "line": folder / "line.txt",
        "ids": folder / "ids.csv",
        "label": jsonl(folder / "label.jsonl", good | {"category": "طقس"}, good),
    }
    files["broken"].write_text('{"anchor": \n', encoding="utf-8")
    files["kind"].write_bytes(b"")
    files["line"].write_text("هطل المطر\n\nنام القط\n", encoding="utf-8")
    files["ids"].write_text("id,text\n7,هطل المطر\n8,نام القط\n7,غرّد العصفور\n", encoding="utf-8")
    return files


REFUSED: list[tuple[Sequence[str], str]] = [
    (["--pairs", "{nowhere}"], "{nowhere}: no such file"),
    (["--pairs", "{column}"], "{column}, line 1: no column 'positive'; expected anchor, positive, found anchor, pos"),
    (["--pairs", "{empty}"], "{empty}, line 2: 'positive' is empty"),
    (["--pairs", "{broken}"], "{broken}, line 1: broken JSON"),
    (["--pairs", "{kind}"], "{kind}: unknown kind '.xlsx'; files are .jsonl, .csv, .parquet, .txt"),
    (["--corpus", "{nowhere}"], "{nowhere}: no such file"),
    (["--corpus", "{column}"], "{column}, line 1: no column 'text'; expected text, found anchor, pos"),
    (["--corpus", "{line}"], "{line}, line 2: 'text' is empty"),
    (["--corpus", "{ids}"], "{ids}, line 4: id '7' was used on line 2; ids are unique"),
    (["--strategy", "hardest"], "unknown strategy 'hardest'; choose from random, hard,"),
    (["--strategy", "hard:0.7+random:zero"], "the weight of strategy 'random' must be a number above 0, not 'zero'"),
    (["--strategy", "lexical+same_root"], "one mixture has one kind of features, not those of lexical and same_root"),
    (["--strategy", "random", "--range-min", "1"], "are for strategies that rank; random does not"),
    (["--strategy", "dialect_twin", "--corpus", "{good}"], "{good}: strategy dialect_twin needs a column 'dialect' in"),
    (["--strategy", "category", "--pairs", "{label}"], "{label}, line 2: 'category' is empty"),
    (["--num-negatives", "81"], "num_negatives must lie between 1 and the pool's 80 sentences, not 81"),
    (["--num-negatives", "two"], "--num_negatives takes int, such as 1, not 'two'"),
    (["--clusters", "0"], "clusters must be at least 1, not 0"),
    (["--search", "annoy"], "unknown search 'annoy'; choose from auto, exact, flat, ivf, hnsw"),
    (["--fallback", "easy"], "unknown fallback 'easy'; choose from random, hard, none"),
    (["--sampling-strategy", "best"], "unknown sampling_strategy 'best'; choose from top, random"),
    (["--device", "tpu"], "unknown device 'tpu'; choose auto, cpu or cuda"),
    (["--seed", "-1"], "seed must be 0 or more, not -1"),
    (["--stratgy", "hard"], "mining has no parameter 'stratgy'; did you mean --strategy?"),
    (["--out", "{folder}/t.csv"], "--out must end in it, not 't.csv'"),
    (["--out", "{pairs}"], "--out {pairs} is a file to read from"),
    (["--scheduler", "tcp://127.0.0.1:1", "--search", "ivf"], "take --search ivf or --scheduler, not both"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_is_wrong_is_said_in_a_sentence_before_anything_is_embedded(files, tmp_path, monkeypatch, words, sentence):
    monkeypatch.setattr(Encoder, "encode", _never)
    good = tmp_path / "good.txt"
    good.write_text("هطل المطر\nنام القط\n", encoding="utf-8")
    places = {"nowhere": tmp_path / "nowhere.jsonl", "folder": tmp_path, "good": good, "pairs": files[0]}
    places = {name: str(path) for name, path in (places | bad_files(tmp_path)).items()}
    given = {"--pairs": files[0], "--corpus": files[1], "--out": tmp_path / "t.jsonl"}
    given |= zip(words[::2], (word.format(**places) for word in words[1::2]), strict=True)
    if "{label}" in words:
        del given["--corpus"]
    assert sentence.format(**places) in refusal(*itertools.chain.from_iterable(given.items()))
    assert not list(tmp_path.glob("*.work")) and not (tmp_path / "t.jsonl").exists()


def test_the_help_has_an_example_that_parses(files, tmp_path):
    text = " ".join(CliRunner().invoke(app, ["mine", "--help"]).output.split())
    words = re.search(r"Example: python -m gate_lessons mine (.*?jsonl --corpus .*?jsonl)", text)[1].split()
    given = dict(zip(words[::2], words[1::2], strict=True)) | {"--pairs": files[0], "--corpus": files[1]}
    given["--out"] = tmp_path / given["--out"]
    done = CliRunner().invoke(app, ["mine", *map(str, itertools.chain.from_iterable(given.items()))])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [
        str(tmp_path / f"triplets.{kind}") for kind in ("jsonl", "report.json", "report.html")
    ]
