"""Arabic text: normalisation, light stems, roots, and variation as people type it. Strings in, strings out.

Arabic is written in several ways that mean the same: with or without vowel marks, with ا or أ, with ى or ي. Each step
of `normalize` folds one such difference away, has a name, and can be switched off, because each also loses something:
«على» (on) and «علي» (Ali) become one word.
"""

import unicodedata
from collections.abc import Callable, Collection, Iterable
from functools import cache, lru_cache

import numpy as np

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


# ---------------------------------------------------------------------------------------------- variation

# One row of the standard Arabic keyboard (the layout called 101) each, in the order of the keys.
KEYBOARD = ("ضصثقفغعهخحجد", "شسيبلاتنمكط", "ئءؤرىةوزظ")
NEIGHBOURS = {key: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in KEYBOARD for i, key in enumerate(row)}
UNJOINED = "اأإآدذرزوؤةىء"  # no stroke leads from these to the next letter, so a missing space hardly shows after them
PROCLITICS = ("وال", "فال", "بال", "كال", "ولل", "فلل", "وبال", "لل", "و", "ف", "ب", "ل", "ك")


def _habit(habit: dict[str, str], ends_only: bool = False) -> Callable[[str, float, np.random.Generator], str]:
    """A variation that writes some letters as others."""

    def write(text: str, share: float, draws: np.random.Generator) -> str:
        def place(i: int) -> bool:
            return text[i] in habit and not (ends_only and unicodedata.category(text[i + 1 : i + 2] or " ")[0] in "LM")

        return "".join(habit[c] if place(i) and draws.random() < share else c for i, c in enumerate(text))

    return write


def _join_words(text: str, share: float, draws: np.random.Generator) -> str:
    first, *rest = text.split(" ")
    for word in rest:
        unseen = first.endswith(tuple(UNJOINED)) and draws.random() < share
        first += word if unseen else f" {word}"
    return first


def _slip_keys(text: str, share: float, draws: np.random.Generator) -> str:
    words = text.split(" ")
    for i, word in enumerate(words):
        places = [at for at, letter in enumerate(word) if letter in NEIGHBOURS]
        if places and draws.random() < share:
            at = places[draws.integers(len(places))]
            options = NEIGHBOURS[word[at]]
            words[i] = word[:at] + options[draws.integers(len(options))] + word[at + 1 :]
    return " ".join(words)


# Each is (text, share, draws) → text, and changes each place that it can change with probability `share`.
VARIATIONS: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    "hamza": _habit(dict.fromkeys("أإآ", "ا")),
    "teh_marbuta": _habit({"ة": "ه"}, ends_only=True),
    "alef_maqsura": _habit({"ى": "ي", "ي": "ى"}, ends_only=True),
    "spaces": _join_words,
    "slips": _slip_keys,
}


def vary(
    text: str, draws: np.random.Generator, share: float = 0.3, variations: Iterable[str] = tuple(VARIATIONS)
) -> str:
    """The sentence as somebody in a hurry might type it; its meaning stays.

    `hamza`: أ إ آ become ا. `teh_marbuta`: ة at the end of a word becomes ه. `alef_maqsura`: ى at the end of a word
    becomes ي, and ي becomes ى, as Egypt writes it. `spaces`: no space after a letter that does not join. `slips`: a
    letter's neighbour on the keyboard. The first three are habits that `normalize` undoes; the others it cannot.

    Args:
        text: any string.
        draws: the source of randomness: the same state gives the same text.
        share: of the places where each variation could strike, 0 to 1; for `slips` the places are words.
        variations: names from `VARIATIONS`, applied in this order; all of them by default.

    Raises:
        ValueError: a share outside 0 to 1, or a variation that does not exist.

    >>> vary("قالت إلهام إلى المدرسة", np.random.default_rng(0), 1, ("hamza", "teh_marbuta", "alef_maqsura"))
    'قالت الهام الي المدرسه'
    """
    _check_share(share)
    for name in variations:
        if name not in VARIATIONS:
            raise ValueError(f"unknown variation {name!r}; the variations are {', '.join(VARIATIONS)}")
        text = VARIATIONS[name](text, share, draws)
    return text


def proclitic(word: str, known: Collection[str]) -> str:
    """The small words glued to the front of a word (and, so, in, for, like), without its article: «وبالمدرسة» → «وب».

    A prefix counts only where what is left is a word of `known`: «ولد» (boy) is not و + «لد». A guess all the same:
    «وجد» (he found) is taken for و + «جد» (grandfather) where that is known.

    Args:
        word: one written word.
        known: words of a corpus, spelled as `word` is.

    Returns:
        The glued letters, "" where there are none.
    """
    for start in sorted(PROCLITICS, key=len, reverse=True):
        rest = word[len(start) :].rstrip("،.؟!:؛»")
        if word.startswith(start) and len(rest) > 1 and (rest in known or f"ال{rest}" in known):
            return start.removesuffix("ال") if start.endswith("ال") else start.replace("لل", "ل")
    return ""


def drop_words(text: str, draws: np.random.Generator, known: Collection[str], share: float = 0.15) -> str:
    """Word dropout that keeps the joints: a dropped word leaves its proclitic to the next word that stays.

    Plain word dropout (Iyyer et al. 2015) also deletes the conjunctions and prepositions that Arabic writes together
    with the next word; here «ذهبت بالحافلة الكبيرة» without «الحافلة» is «ذهبت بالكبيرة».

    Args:
        text: any string.
        draws: the source of randomness.
        known: words of a corpus, see `proclitic`.
        share: each word goes with this probability, 0 to 1; one word stays whatever is drawn.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    _check_share(share)
    words = text.split()
    stays = draws.random(len(words)) >= share
    if words and not stays.any():
        stays[draws.integers(len(words))] = True
    kept, waiting = [], ""
    for word, stay in zip(words, stays, strict=True):
        own = proclitic(word, known)
        if not stay:
            waiting = waiting or own
        else:
            kept.append(word if own or not waiting else _glue(waiting, word))
            waiting = ""
    return " ".join(kept)


def _glue(proclitic: str, word: str) -> str:
    """Write them together: ل and the article make لل."""
    return f"{proclitic}{word[1:]}" if proclitic.endswith("ل") and word.startswith("ال") else f"{proclitic}{word}"


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
