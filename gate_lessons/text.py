"""Arabic text: normalisation, light stems and roots. Strings in, strings out.

Arabic is written in several ways that mean the same: with or without vowel marks, with ا or أ, with ى or ي. Each step
of `normalize` folds one such difference away, has a name, and can be switched off, because each also loses something:
«على» (on) and «علي» (Ali) become one word.
"""

import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache

ARABIC = range(0x0600, 0x0700)
ANY = range(0x20000)  # Unicode's first two planes: every script in use, punctuation, symbols, emoji
TATWEEL = "\u0640"


def _characters(category: str, block: range) -> list[str]:
    """Characters of the block whose Unicode general category starts with one of the space-separated prefixes."""
    prefixes = tuple(category.split())
    return [chr(c) for c in block if unicodedata.category(chr(c)).startswith(prefixes)]


# Each step is a table from character to replacement, so that any choice of steps is one pass over the text.
STEPS: dict[str, dict[str, str]] = {
    "invisible": dict.fromkeys(_characters("Cf", ANY), ""),  # marks of writing direction, soft hyphens
    "diacritics": dict.fromkeys(_characters("Mn", ARABIC), ""),
    "tatweel": {TATWEEL: ""},
    "alef": dict.fromkeys("أإآٱ", "ا"),
    "alef_maqsura": {"ى": "ي"},
    "teh_marbuta": {"ة": "ه"},
    "hamza_carriers": {"ؤ": "و", "ئ": "ي"},
    "digits": {c: str(unicodedata.digit(c)) for c in _characters("Nd", ARABIC)},
    "punctuation": dict.fromkeys(_characters("P S", ANY), " "),
}
DEFAULT_STEPS = tuple(STEPS)


@cache
def _table(steps: tuple[str, ...]) -> dict[int, str]:
    for step in steps:
        if step not in STEPS:
            raise ValueError(f"unknown normalisation step {step!r}; the steps are {', '.join(STEPS)}")
    return str.maketrans({source: target for step in steps for source, target in STEPS[step].items()})


def normalize(text: str, steps: Iterable[str] = DEFAULT_STEPS) -> str:
    """Fold the spelling differences named in `steps` away and squeeze white space.

    Compatibility forms (the joined letters that PDFs contain) are always decomposed first, by Unicode's NFKC.

    Args:
        text: any string.
        steps: names from `STEPS`; all of them by default. An empty tuple leaves the spelling as it is.

    Raises:
        ValueError: a step that does not exist.

    >>> normalize("الطَّالِبـــةُ تَقرأُ إلى المُعلّم!")
    'الطالبه تقرا الي المعلم'
    """
    return " ".join(unicodedata.normalize("NFKC", text).translate(_table(tuple(steps))).split())


@lru_cache(maxsize=100_000)
def light_stem(word: str) -> str:
    """The word without its commonest prefixes and suffixes: «المدرسة» → «مدرس».

    Snowball's Arabic light stemmer; it keeps the pattern of the word, so كاتب and مكتب stay apart.
    """
    return _snowball().stemWord(word)


@lru_cache(maxsize=100_000)
def root(word: str) -> str:
    """The word's root as ISRI (Taghva, Elkhoury and Coombs 2005) guesses it without a dictionary: «مكتبة» → «كتب».

    A guess: weak roots (قال, from ق و ل) and hamzas often come out wrong. Lesson 01 counts how often.
    """
    return _isri().stem(word)


@cache
def _snowball():
    import snowballstemmer

    return snowballstemmer.stemmer("arabic")


@cache
def _isri():
    from nltk.stem.isri import ISRIStemmer

    return ISRIStemmer()
