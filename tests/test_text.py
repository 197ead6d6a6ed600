import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gate_lessons.text import DEFAULT_STEPS, STEPS, light_stem, normalize, root

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
