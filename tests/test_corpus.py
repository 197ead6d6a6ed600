"""The corpus is what its datasheet says, and hard in the way that teaches."""

import json
import re

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from gate_lessons.data import CORPUS, DIALECTS, nli_pairs, triplets
from gate_lessons.encoder import LexicalBaseline
from gate_lessons.evaluation import HeldOut, evaluate
from gate_lessons.text import normalize

SHEET = (CORPUS / "DATASHEET.md").read_text(encoding="utf-8")


def stated(figure: str) -> str:
    """The value that the datasheet's table gives."""
    return re.search(rf"^\| {re.escape(figure)}[^|]* \| (.+) \|$", SHEET, re.MULTILINE)[1]


def test_counts_are_those_of_the_files(groups):
    splits = [sum(g.split == split for g in groups) for split in ("train", "dev", "test")]
    topics = [g.topic for g in groups]
    sentences = [text for g in groups for text in g.sentences().values()]
    words = {word for text in sentences for word in normalize(text).split()}
    assert stated("groups") == str(len(groups))
    assert stated("groups in train / dev / test") == " / ".join(map(str, splits))
    assert stated("topics") == str(len(set(topics)))
    assert {str(topics.count(topic)) for topic in topics} == {stated("groups for each topic")}
    assert stated("sentences without the dialects") == str(len(sentences))
    assert stated("distinct word forms") == str(len(words))
    assert stated("words in an anchor, mean") == f"{np.mean([len(g.anchor.split()) for g in groups]):.1f}"
    assert stated("groups with four dialects") == str(sum(set(g.dialects) == set(DIALECTS) for g in groups))
    phenomena = [g.phenomenon for g in groups]
    assert stated("phenomena, in equal shares") == str(len(set(phenomena)))
    assert len({phenomena.count(p) for p in phenomena}) == 1


def test_agreement_of_the_two_passes():
    rows = [json.loads(line) for line in (CORPUS / "sts.jsonl").read_text("utf-8").splitlines()]
    passes = np.array([row["scores"] for row in rows])
    assert stated("scored pairs") == str(len(rows))
    assert stated("Spearman of the two scoring passes") == f"{spearmanr(*passes.T)[0]:.3f}"
    assert set(np.unique(passes)) <= set(np.arange(0, 5.5, 0.5))


def test_spelling_prefers_the_contradiction(groups):
    baseline = LexicalBaseline([text for g in groups for text in g.sentences().values()])
    answers = evaluate(baseline, HeldOut(triplets(groups, positives=("distant",))))
    assert stated("TF-IDF (character 2–5-grams)") == f"{answers.correct.mean():.0%}".replace("%", " %")
    assert answers.correct.mean() <= 0.2


def test_how_much_the_second_sentence_gives_away(groups):
    pairs = nli_pairs(groups)
    tfidf = TfidfVectorizer(preprocessor=normalize, analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(tfidf, LogisticRegression(max_iter=2000, C=3))
    guess = cross_val_predict(model, pairs["hypothesis"], pairs["label"], groups=pairs["group"], cv=GroupKFold(5))
    share = np.mean(guess == pairs["label"])
    assert float(stated("relation guessed").split()[0]) == pytest.approx(100 * share, abs=2)


def test_the_text_is_clean(groups):
    for group in groups:
        for text in (*group.sentences().values(), *group.dialects.values()):
            assert text == text.strip(), text
            assert not re.search(r"  |[A-Za-z\u0640\u064c-\u0650\u0652]", text), text
            assert not re.search(r"\s[،.؟!:؛]", text), text
