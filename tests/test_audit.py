"""Each figure of the corpus check moves when the corpus is spoiled in the way that it watches for."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gate_lessons.audit import Figure, audit, faults, nearest_to_training, spelling_doubts
from gate_lessons.data import NLI_LABELS, Group

TEMPLATE = Group(
    id="g0",
    anchor="وصل القطار إلى المحطة في الصباح.",
    paraphrases=("في الصباح وصل القطار إلى المحطة.", "دخلت القاطرة الرصيف باكرًا."),
    entailment="القطار في المحطة الآن.",
    neutral="كان في القطار مسافرون كثيرون.",
    contradiction="وصل القطار إلى المحطة في المساء.",
    phenomenon="time",
    topic="transport",
)


def group(number: int, **changes: object) -> Group:
    return dataclasses.replace(TEMPLATE, id=f"g{number}", **changes)


def measure(groups: list[Group], name: str, spellings: str = "") -> Figure:
    scored = [{"pair": [[g.id, "anchor"], [g.id, "close"]], "scores": [i % 6, i % 6]} for i, g in enumerate(groups)]
    (figure,) = (f for f in audit(groups, scored, spellings) if f.name.startswith(name))
    return figure


@pytest.fixture
def splits() -> list[Group]:
    """Ten groups of one template that differ in one word, of all splits."""
    words = ["أحمر", "أخضر", "أزرق", "أصفر", "أبيض", "أسود", "بني", "رمادي", "وردي", "ذهبي"]
    names = ["train"] * 7 + ["dev"] + ["test"] * 2
    return [
        group(
            number,
            anchor=f"{word} {TEMPLATE.anchor}",
            paraphrases=tuple(f"{word} {p}" for p in TEMPLATE.paraphrases),
            entailment=f"{word} {TEMPLATE.entailment}",
            neutral=f"{word} {TEMPLATE.neutral}",
            contradiction=f"{word} {TEMPLATE.contradiction}",
            split=split,
        )
        for number, (word, split) in enumerate(zip(words, names, strict=True))
    ]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("groups that lack a sentence", {"neutral": ""}),
        ("anchors not of", {"anchor": "ثلاث كلمات فقط."}),
        ("sentences that stand twice", {"neutral": "أحمر القطار في المحطه الان"}),
        ("sentences that are not clean", {"neutral": "كان في القطار  مسافرون."}),
        ("words spelled in two ways", {"neutral": "كانت في المحطه سيدة."}),
        ("groups with four dialects", {"dialects": dict.fromkeys(("egyptian", "levantine", "gulf", "maghrebi"), "ا")}),
    ],
)
def test_a_spoiled_group_is_counted_and_named(splits, name, change):
    assert measure(splits, name).value == 0
    spoiled = [dataclasses.replace(splits[0], **change), *splits[1:]]
    figure = measure(spoiled, name)
    assert figure.value == 1
    assert figure.sense == "at least" or (not figure.holds and figure.offenders)


def test_a_dialect_rendering_that_is_the_anchor_is_a_sentence_twice(splits):
    dialects = {"gulf": splits[0].anchor.replace("إ", "ا")}
    figure = measure([dataclasses.replace(splits[0], dialects=dialects), *splits[1:]], "sentences that stand twice")
    assert figure.offenders == ("g0 anchor = g0 gulf",)


def test_spelling_that_solves_the_test_is_seen(splits):
    name = "TF-IDF"
    assert measure(splits, name).value == 0
    easy = [dataclasses.replace(g, paraphrases=(g.paraphrases[0], f"{g.anchor} نعم.")) for g in splits[:4]]
    assert measure(easy + splits[4:], name).value == pytest.approx(0.4)


def test_a_label_that_the_second_sentence_gives_away_is_seen(splits):
    for name in ("relation guessed from the second sentence alone, by its words", "relation guessed from the number"):
        assert measure(splits, name).value == 1  # the ten groups are one template: each label has its own words


def test_sentences_without_a_label_in_them_are_guessed_by_chance():
    """The control: words drawn alike for all three roles."""
    words = ["قلم", "باب", "نهر", "جبل", "بحر", "سهل", "درب", "بيت", "حقل", "نجم"]
    drawn = np.random.default_rng(0).choice(words, (30, 3, 3))
    groups = [
        group(i, **dict(zip(NLI_LABELS, map(" ".join, three), strict=True)), split="train" if i % 5 else "test")
        for i, three in enumerate(drawn)
    ]
    for by in ("second sentence alone, by its words", "number of words"):
        assert measure(groups, f"relation guessed from the {by}").value < 0.6


def test_the_nearest_training_sentence_is_found_in_any_role(splits):
    assert nearest_to_training(splits)[0] < 1
    copied = [dataclasses.replace(splits[0], neutral=splits[-1].anchor.replace("إ", "ا")), *splits[1:]]
    assert nearest_to_training(copied) == (1.0, "g9 and g0 neutral")


def test_a_test_anchor_of_new_letters_has_a_small_overlap(splits):
    far = dataclasses.replace(splits[-1], anchor="شغف ظبي ضخم ثقيل جدًا.")
    assert nearest_to_training([*splits[:8], far])[0] < 0.1


def test_a_template_is_seen_by_its_four_words_and_its_opening(splits):
    run = measure(splits, "commonest four words")
    assert run.value > 0.3
    assert run.offenders == ("وصل القطار الي المحطه",)
    same = [dataclasses.replace(g, anchor=f"قال {g.anchor}") for g in splits]
    assert measure(same, "commonest first word").value == 1
    assert measure(splits, "commonest first word").value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        ("وصلت رسالةٌ إلى عمر.", 1),
        ("وصل 3 رجال.", 1),
        ("وصلت email أمس.", 1),
        ("وصل الـرجل.", 1),
        ("وصل الرجل .", 1),
        ("وصل  الرجل.", 1),
        ("وصل،ثم عاد.", 1),
        ("كتب كتاباً.", 1),
        ("وصل الرجل", 1),
        ("مدرسةنا بعيدة.", 1),
        ("علىه ثوب.", 1),
        ("اشترى كتابًا قديمًا جدًا، وعاد مساءً إلى «دار الكتب».", 0),
        ("أليس هذا بيتنا؟", 0),
        ("ثم… عاد!", 0),
    ],
)
def test_faults_of_form(sentence, number):
    assert len(faults(sentence)) == number


def test_reviewed_spellings_are_no_doubts():
    sentences = ["كرة القدم", "قال كره", "كتب على الورق", "قال علي", "بابًا وبابا"]
    assert spelling_doubts(sentences) == [("على", "علي"), ("كرة", "كره")]
    assert spelling_doubts(sentences, "كرة كره\nعلى علي\n") == []
    assert spelling_doubts([*sentences, "كرّة كرا"], "كره كرة\nعلي على") == []
    assert spelling_doubts(["أن إن", "ان"], "أن إن") == [("أن", "إن", "ان")]


def test_scores_are_held_to_agreement_evenness_and_splits(splits):
    def figures(rows):
        return {f.name.split(",")[0]: f for f in audit(splits, rows)}

    def rows(*scores, other=0):
        pairs = [[["g0", "anchor"], [f"g{other}", "neutral"]] for _ in scores]
        return [{"pair": p, "scores": s} for p, s in zip(pairs, scores, strict=True)]

    even = figures(rows((0, 0.5), (1, 1), (2, 2), (3, 3.5), (4, 4), (5, 5)))
    assert even["smallest of the six bands of scores"].value == pytest.approx(1 / 6)
    assert even["largest of the six bands of scores"].holds
    assert even["Spearman of the two scoring passes"].value == pytest.approx(1)
    assert even["scored pairs across splits or of unknown groups"].holds
    uneven = figures(rows((0, 5), (1, 4), (2, 3), (3, 2), (4, 1), (5, 0), other=9))
    assert not uneven["Spearman of the two scoring passes"].holds
    assert not uneven["smallest of the six bands of scores"].holds
    assert uneven["scored pairs across splits or of unknown groups"].value == 6
    unknown = figures(rows((0, 0), (1, 1), other=99))["scored pairs across splits or of unknown groups"]
    assert unknown.offenders == ("g0 and g99",) * 2


@pytest.mark.parametrize(
    ("sense", "value", "holds"),
    [("at least", 5, True), ("at least", 4, False), ("at most", 5, True), ("at most", 6, False), ("below", 5, False)],
)
def test_a_bound_is_kept_or_missed(sense, value, holds):
    assert Figure("x", value, sense, 5).holds is holds


@pytest.fixture
def folder(splits, tmp_path) -> Path:
    """A small corpus on disk."""
    rows = [{k: v for k, v in dataclasses.asdict(g).items() if v} for g in splits]
    scored = [{"pair": [["g0", "anchor"], ["g0", "close"]], "scores": [s, s]} for s in range(6)]
    for name, lines in (("groups", rows), ("sts", scored)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    (tmp_path / "spellings.txt").write_text("", "utf-8")
    return tmp_path


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gate_lessons", "corpus", "--check", "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_names_what_misses_and_fails(folder):
    ran = checked(folder)
    assert ran.returncode == 1
    assert "MISS       10   at least 1,500  groups" in ran.stdout
    assert "figures miss their bounds" in ran.stderr


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("sts.jsonl", None, "sts.jsonl: no such file"),
        ("sts.jsonl", "", "sts.jsonl: no scored pair of two sentences of these groups"),
        ("sts.jsonl", '{"pair": 1}', "sts.jsonl, line 1: expected"),
        ("spellings.txt", None, "spellings.txt: no such file"),
        ("groups.jsonl", '{"id": "g0", "anchor": "أ ب", "neutral": "ج"}', "no groups with split 'dev'"),
        ("groups.jsonl", "{", "groups.jsonl, line 1: broken JSON"),
    ],
)
def test_the_command_says_which_file_cannot_be_used(folder, name, content, sentence):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, "utf-8")
    ran = checked(folder)
    assert ran.returncode == 1
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr
