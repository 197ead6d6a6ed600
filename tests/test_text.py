import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gate_lessons.text import (
    DEFAULT_STEPS,
    KEYBOARD,
    NEIGHBOURS,
    STEPS,
    drop_words,
    light_stem,
    normalize,
    proclitic,
    root,
    vary,
)

# One text that every step changes, and what that step alone makes of it, written by hand.
MIXED = "إلى المُعلِّمةِ: كتـــاب\u200f مسؤول ١٢"
ALONE = {
    "invisible": "إلى المُعلِّمةِ: كتـــاب مسؤول ١٢",
    "diacritics": "إلى المعلمة: كتـــاب\u200f مسؤول ١٢",
    "tatweel": "إلى المُعلِّمةِ: كتاب\u200f مسؤول ١٢",
    "alef": "الى المُعلِّمةِ: كتـــاب\u200f مسؤول ١٢",
    "alef_maqsura": "إلي المُعلِّمةِ: كتـــاب\u200f مسؤول ١٢",
    "teh_marbuta": "إلى المُعلِّمهِ: كتـــاب\u200f مسؤول ١٢",
    "hamza_carriers": "إلى المُعلِّمةِ: كتـــاب\u200f مسوول ١٢",
    "digits": "إلى المُعلِّمةِ: كتـــاب\u200f مسؤول 12",
    "punctuation": "إلى المُعلِّمةِ كتـــاب\u200f مسؤول ١٢",
}
ALL = "الي المعلمه كتاب مسوول 12"

# Letters, marks, digits, punctuation and the presentation forms of Arabic, with the spaces and Latin around them.
ARABIC = st.text(
    st.one_of(
        st.characters(min_codepoint=0x0600, max_codepoint=0x06FF),
        st.characters(min_codepoint=0xFB50, max_codepoint=0xFDFF),
        st.characters(min_codepoint=0xFE70, max_codepoint=0xFEFF),
        st.sampled_from(" \n\u00a0aZ9.؟"),
    )
)


def test_the_hand_written_cases_cover_every_step():
    assert ALONE.keys() == STEPS.keys()


@pytest.mark.parametrize("step", STEPS)
def test_one_step_changes_what_it_names_and_nothing_else(step):
    assert normalize(MIXED, (step,)) == ALONE[step]


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("diacritics", "رَجُلٌ رَجُلاً رَجُلٍ شدّة سُكوْن هٰذا", "رجل رجلا رجل شدة سكون هذا"),
        ("invisible", "\u200fكتاب\u200e جديد\u00ad\ufeff", "كتاب جديد"),
        ("tatweel", "مـحـمـد ـــ", "محمد"),
        ("alef", "أحمد إيمان آمال ٱلله", "احمد ايمان امال الله"),
        ("alef_maqsura", "على مستشفى", "علي مستشفي"),
        ("teh_marbuta", "مدرسة جميلة", "مدرسه جميله"),
        ("hamza_carriers", "مؤمن بيئة شيء", "مومن بيية شيء"),  # a hamza that stands alone stays
        ("digits", "٠١٢٣٤٥٦٧٨٩ ۰۱۲۳۴۵۶۷۸۹", "0123456789 0123456789"),
        ("punctuation", "أهلا، كيف؟ نعم؛ «لا» ٪ (س) a-b $", "أهلا كيف نعم لا س a b"),
    ],
)
def test_each_step_on_all_of_its_characters(step, text, expected):
    assert normalize(text, (step,)) == expected


@pytest.mark.parametrize("step", STEPS)
def test_each_step_can_be_switched_off(step):
    """All steps but one leave that step's work, and only that, undone."""
    without = normalize(MIXED, [name for name in DEFAULT_STEPS if name != step])
    assert without != ALL
    assert normalize(without, (step,)) == ALL


def test_all_steps_together_are_the_default():
    assert normalize(MIXED) == ALL
    assert list(DEFAULT_STEPS) == list(STEPS)


def test_no_steps_leave_the_spelling_and_squeeze_white_space():
    assert normalize("  إلى\tالمُعلّم ،\n\u00a0نعم ", ()) == "إلى المُعلّم ، نعم"


def test_steps_may_be_a_generator():
    assert normalize("إلى", (step for step in ["alef"])) == "الى"


def test_spellings_of_one_sentence_meet_and_other_sentences_do_not():
    assert normalize("ذَهَبَ أحمد إلى المدرسة!") == normalize("ذهب احمد الي المدرسه")
    assert normalize("ذهب أحمد إلى المدرسة") != normalize("ذهب محمد إلى المدرسة")


def test_presentation_forms_become_letters():
    assert normalize("ﻛﺘﺎﺏ", ()) == "كتاب"  # joined letters, as PDFs hold them
    assert normalize("ﻻ ﷲ", ()) == "لا الله"  # ligatures
    assert normalize("ﺃﺣﻤﺪ") == "احمد"  # the steps see the decomposed letter


def test_a_decomposed_hamza_is_the_composed_one():
    assert normalize("ا\u0654حمد", ("tatweel",)) == "أحمد"
    assert normalize("ا\u0654حمد") == normalize("أحمد")


@given(ARABIC)
@example(MIXED)
@example("ﷺ ﹰ ـَّ")
def test_normalising_twice_changes_nothing(text):
    once = normalize(text)
    assert normalize(once) == once


@given(ARABIC)
def test_nothing_that_a_step_folds_survives(text):
    left = set(normalize(text))
    assert not left & {character for table in STEPS.values() for character in table}
    assert normalize(text) == normalize(text).strip()


@pytest.mark.parametrize("text", ["", " \n", "؟!", "ـــ"])
def test_a_text_without_words_becomes_empty(text):
    assert normalize(text) == ""


def test_an_unknown_step_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'hamza'") as error:
        normalize("نص", ("alef", "hamza"))
    assert all(step in str(error.value) for step in STEPS)


@pytest.mark.parametrize(
    ("word", "stem"), [("المدرسة", "مدرس"), ("المعلمون", "معلم"), ("كاتب", "كاتب"), ("مكتب", "مكتب"), ("", "")]
)
def test_light_stems_of_known_words(word, stem):
    assert light_stem(word) == stem


@pytest.mark.parametrize(
    ("word", "letters"),
    [("مكتبة", "كتب"), ("يكتبون", "كتب"), ("كاتب", "كتب"), ("مدارس", "درس"), ("المعلمون", "علم"), ("استخدام", "خدم")],
)
def test_roots_of_known_words(word, letters):
    assert root(word) == letters


def test_a_weak_root_comes_out_wrong_as_the_docstring_warns():
    assert root("قال") != "قول"


def test_a_root_joins_what_a_light_stem_keeps_apart():
    assert light_stem("كاتب") != light_stem("مكتب")
    assert root("كاتب") == root("مكتب")


# ---------------------------------------------------------------------------------------------- variation

SENTENCE = "قالت إلهام أمس: وصلت الرسالة إلى مدرسة ابني في آخر الأسبوع."


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hamza", "قالت الهام امس: وصلت الرسالة الى مدرسة ابني في اخر الاسبوع."),
        ("teh_marbuta", "قالت إلهام أمس: وصلت الرساله إلى مدرسه ابني في آخر الأسبوع."),
        ("alef_maqsura", "قالت إلهام أمس: وصلت الرسالة إلي مدرسة ابنى فى آخر الأسبوع."),
        ("spaces", "قالت إلهام أمس: وصلت الرسالةإلىمدرسةابني في آخرالأسبوع."),
    ],
)
def test_a_variation_strikes_every_place_of_its_kind_and_no_other(name, expected):
    assert vary(SENTENCE, draws(), 1, (name,)) == expected


def test_a_slip_moves_one_letter_of_each_word_to_a_key_beside_it():
    words, slipped = SENTENCE.split(), vary(SENTENCE, draws(), 1, ("slips",)).split()
    for word, other in zip(words, slipped, strict=True):
        ((was, now),) = [(a, b) for a, b in zip(word, other, strict=True) if a != b]
        assert now in NEIGHBOURS[was]
        assert was in NEIGHBOURS[now]


def test_the_keyboard_has_every_letter_once_and_the_ends_of_a_row_have_one_neighbour():
    keys = "".join(KEYBOARD)
    assert len(set(keys)) == len(keys)
    assert NEIGHBOURS["ش"] == "س"
    assert NEIGHBOURS["ب"] == "يل"
    assert NEIGHBOURS["د"] == "ج"


def test_habits_are_undone_by_normalisation_and_slips_are_not():
    habits = vary(SENTENCE, draws(), 1, ("hamza", "teh_marbuta", "alef_maqsura"))
    assert habits != SENTENCE
    assert normalize(habits) == normalize(SENTENCE)
    for name in ("spaces", "slips"):
        assert normalize(vary(SENTENCE, draws(), 1, (name,))) != normalize(SENTENCE)


@given(ARABIC, st.integers(0, 99))
def test_no_share_changes_nothing_and_the_same_draws_give_the_same_text(text, seed):
    assert vary(text, draws(seed), 0) == text
    assert vary(text, draws(seed)) == vary(text, draws(seed))
    assert drop_words(text, draws(seed), (), 0) == " ".join(text.split())


def test_the_share_is_the_share_of_places():
    text = "مدرسة " * 2000
    assert vary(text, draws(), 0.3, ("teh_marbuta",)).count("ه ") == pytest.approx(600, abs=60)
    assert len(drop_words(text, draws(), (), 0.15).split()) == pytest.approx(1700, abs=50)


KNOWN = ("مدرسة", "البيت", "كتاب", "جد", "الحافلة", "ذهبت", "الكبيرة")


@pytest.mark.parametrize(
    ("word", "glued"),
    [
        ("وبالمدرسة", "وب"),
        ("للمدرسة", "ل"),
        ("وللبيت", "ول"),
        ("فالكتاب", "ف"),
        ("بمدرسة،", "ب"),
        ("المدرسة", ""),
        ("ولد", ""),  # boy: what is left is no word
        ("وجد", "و"),  # he found: what is left is a word by accident, as the docstring says
    ],
)
def test_proclitics_are_found_where_the_rest_is_a_known_word(word, glued):
    assert proclitic(word, KNOWN) == glued


class Chosen:
    """Draws that drop exactly the words at the given places."""

    def __init__(self, *dropped: int):
        self.dropped = dropped

    def random(self, size: int) -> np.ndarray:
        return np.array([0.0 if i in self.dropped else 0.99 for i in range(size)])

    def integers(self, stop: int) -> int:
        return stop - 1


@pytest.mark.parametrize(
    ("text", "dropped", "left"),
    [
        ("ذهبت بالحافلة الكبيرة", (1,), "ذهبت بالكبيرة"),
        ("ذهبت للحافلة الكبيرة", (1,), "ذهبت للكبيرة"),  # ل and the article make لل
        ("ذهبت وكتاب للبيت", (1,), "ذهبت للبيت"),  # a word with a proclitic of its own takes no other
        ("ذهبت بالحافلة", (1,), "ذهبت"),  # no word is left to carry it
        ("ذهبت بالحافلة", (0, 1), "بالحافلة"),  # one word stays
        ("ذهبت ولد الكبيرة", (1,), "ذهبت الكبيرة"),
    ],
)
def test_a_dropped_word_leaves_its_proclitic(text, dropped, left):
    assert drop_words(text, Chosen(*dropped), KNOWN, 0.5) == left


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=f"share must lie between 0 and 1, not {share}"):
        vary(SENTENCE, draws(), share)
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        drop_words(SENTENCE, draws(), KNOWN, share)


def test_an_unknown_variation_is_refused():
    with pytest.raises(ValueError, match="unknown variation 'taa'; the variations are hamza, teh_marbuta"):
        vary(SENTENCE, draws(), 0.3, ("taa",))
