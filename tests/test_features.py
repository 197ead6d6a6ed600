import math

import numpy as np
import pytest

from gate_lessons import features
from gate_lessons.data import load_corpus
from gate_lessons.encoder import LexicalBaseline
from gate_lessons.text import light_stem, normalize, root

# Families of one root, written from the dictionary, with sound roots: ISRI does not know weak ones.
FAMILIES = {
    "كتب": "كتب كاتب مكتبة كتاب مكتوب مكاتب",
    "درس": "درس مدرسة دراسة دروس تدريس",
    "علم": "علم عالم معلم تعليم علوم علماء",
    "سكن": "سكن ساكن مسكن سكان مساكن",
    "طبخ": "طبخ طباخ مطبخ مطبوخ",
    "لعب": "لعب لاعب ملعب ألعاب ملاعب",
    "حكم": "حكم حاكم محكمة حكومة محاكم",
    "شرب": "شرب شارب مشروب شراب",
    "خرج": "خرج خارج مخرج خروج استخراج",
}


def _products(make, anchors: list[str], candidates: list[str]) -> np.ndarray:
    ours, theirs = make(anchors, candidates)
    assert ours.shape[0] == len(anchors) and theirs.shape[0] == len(candidates)
    return (ours @ theirs.T).toarray()


def test_lexical_is_the_baselines_cosine():
    texts = [g.anchor for g in load_corpus("dev")[:40]]
    anchors, candidates = texts[:10], texts[10:]
    found = _products(features.lexical, anchors, candidates)
    baseline = LexicalBaseline(candidates)
    for row, anchor in enumerate(anchors):
        np.testing.assert_allclose(found[row], baseline.similarity([anchor] * 30, candidates), atol=1e-6)


def test_same_root_finds_other_words_of_the_root_and_not_the_word_itself():
    found = _products(
        features.same_root,
        ["زرت المكتبة أمس", "الكاتب يشرح الدرس"],
        ["كاتب مشهور", "مكتبة كبيرة", "مدرسة وكتاب", "سيارة حمراء", "المكتبة أمس", "درس"],
    )
    above = found > 1e-6
    assert above.tolist() == [[True, False, True, False, False, False], [False, True, True, False, True, False]]


def test_what_is_shared_word_for_word_cancels_out():
    texts = [s for g in load_corpus("dev")[:60] for s in g.sentences().values()]
    found = _products(features.same_root, texts, texts)
    assert np.abs(np.diag(found)).max() < 1 and found.min() > -1e-9
    one_word_each = ["كتاب", "قلم", "الكتاب", "شمس", "كتابها"]
    assert np.abs(_products(features.same_root, one_word_each, one_word_each)).max() < 1e-9


def _walk(anchor: str, candidate: str, candidates: list[str]) -> float:
    """The docstring's sum, pair by pair of words."""

    def words(text: str) -> set[tuple[str, str]]:
        kept = normalize(text, features.AS_WRITTEN).split()
        return {(normalize(light_stem(w)), root(w)) for w in kept if len(root(w)) >= 3}

    def weight(r: str) -> float:
        frequency = sum(r in {other for _, other in words(text)} for text in candidates)
        return math.log((1 + len(candidates)) / (1 + frequency)) + 1

    def length(text: str) -> float:
        roots = {r for _, r in words(text)}
        return math.sqrt(sum((sum(weight(r) for _, other in words(text) if other == r)) ** 2 for r in roots)) or 1.0

    shared = [r for one, r in words(anchor) for other, again in words(candidate) if r == again and one != other]
    return sum(weight(r) ** 2 for r in shared) / length(anchor) / length(candidate)


def test_same_root_is_the_sum_over_pairs_of_words():
    texts = [s for g in load_corpus("dev")[:6] for s in g.sentences().values()]
    anchors, candidates = texts[:5], texts[5:]
    expected = [[_walk(a, c, candidates) for c in candidates] for a in anchors]
    found = _products(features.same_root, anchors, candidates)
    assert (found > 1e-6).sum() > 3
    np.testing.assert_allclose(found, expected, atol=1e-9)


def _met(spell) -> float:
    """How many pairs of different words of one family have one root."""
    pairs = [(x, y) for family in FAMILIES.values() for x in family.split() for y in family.split() if x < y]
    return float(np.mean([root(spell(x)) == root(spell(y)) for x, y in pairs]))


def test_most_words_of_a_family_meet_and_few_of_two_families_do():
    words = [(word, name) for name, family in FAMILIES.items() for word in family.split()]
    found = _products(features.same_root, [w for w, _ in words], [w for w, _ in words]) > 1e-6
    kin = np.array([[x != y and one == other for y, other in words] for x, one in words])
    assert not found[~kin].any()
    assert found[kin].mean() > 0.7


def test_roots_are_taken_from_words_as_they_are_written():
    """Without its ة «مكتبه» has another root for ISRI, so the spelling must not be folded first."""
    assert root("مكتبة") == "كتب" != root(normalize("مكتبة"))
    assert _met(lambda word: normalize(word, features.AS_WRITTEN)) > _met(normalize) > 0.6


def test_a_text_without_roots_has_no_features_and_no_division_by_zero():
    found = _products(features.same_root, ["!", "من"], ["كتاب", "في", "؟"])
    assert (found == 0).all()


@pytest.mark.parametrize("make", [features.lexical, features.same_root])
@pytest.mark.parametrize(
    ("anchors", "candidates", "name"), [([], ["جملة"], "anchors"), (["جملة"], "جملة", "candidates")]
)
def test_texts_must_be_lists(make, anchors, candidates, name):
    with pytest.raises(ValueError, match=f"{name} must be a list of at least one text"):
        make(anchors, candidates)
