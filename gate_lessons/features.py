"""Texts to sparse matrices whose inner products say how alike two texts look: what `miner` takes as features."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gate_lessons.text import STEPS, light_stem, normalize, root

# Stemmers need the ending ة and the hamza: of «مكتبه» ISRI makes «كبه», of «مكتبة» «كتب».
SPELLING = ("alef", "alef_maqsura", "teh_marbuta", "hamza_carriers")
AS_WRITTEN = tuple(step for step in STEPS if step not in SPELLING)


def lexical(anchors: Sequence[str], candidates: Sequence[str]) -> tuple[Any, Any]:
    """TF-IDF of character 2–5-grams within words, sublinear, after normalisation: the lexical baseline's cosine.

    Returns:
        Sparse [Q, V] and [M, V], rows of length 1; the document frequencies are those of the candidates.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    _check(anchors, candidates)
    tfidf = TfidfVectorizer(preprocessor=normalize, analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    theirs = tfidf.fit_transform(candidates)
    return tfidf.transform(anchors), theirs


def same_root(anchors: Sequence[str], candidates: Sequence[str]) -> tuple[Any, Any]:
    """Shared roots in other words: كتب، كاتب، مكتبة.

    The inner product is Σ w(r)² over the pairs of a word of the anchor and another word of the candidate that have one
    root r, divided by the lengths of both texts' vectors of roots. w(r) is the root's smoothed inverse document
    frequency; words are others when their light stems are («الكتاب» and «كتابها» are one word). It is 0, up to
    rounding, where no root is shared by different words. Roots are those of `text.root`, from three letters on: a
    guess.

    Returns:
        Sparse [Q, V] and [M, V]: roots beside words, the candidates' words negative, so that what two texts share word
        for word cancels out.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer

    _check(anchors, candidates)
    count = CountVectorizer(analyzer=_words, binary=True, dtype=np.float64).fit([*anchors, *candidates])
    roots = _roots_of(count.get_feature_names_out())
    ours, theirs = count.transform(anchors), count.transform(candidates)
    frequency = np.asarray((theirs @ roots > 0).sum(axis=0)).ravel()
    weight = roots @ (np.log((1 + len(candidates)) / (1 + frequency)) + 1)  # of each word; 0 for those without a root
    sides = []
    for counts, sign in ((ours, 1), (theirs, -1)):
        words = counts.multiply(weight).tocsr()
        rooted = words @ roots
        length = np.sqrt(np.asarray(rooted.multiply(rooted).sum(axis=1)).ravel())
        scale = 1 / np.where(length > 0, length, 1)[:, None]
        sides.append(hstack([rooted.multiply(scale), sign * words.multiply(scale)], format="csr"))
    return sides[0], sides[1]


# What a strategy that needs features takes them from.
OF_STRATEGY = {"lexical": lexical, "same_root": same_root, "dialect_twin": lexical}


def options(strategies: Iterable[str], anchors: Sequence[str], candidates: Sequence[str]) -> dict[str, Any]:
    """The features that these strategies need, as options of `miner.mine`; none where they need none.

    Raises:
        ValueError: strategies that need features of two kinds: a mixture has one.
    """
    kinds = {OF_STRATEGY[name]: name for name in strategies if name in OF_STRATEGY}
    if len(kinds) > 1:
        raise ValueError(f"one mixture has one kind of features, not those of {' and '.join(sorted(kinds.values()))}")
    for make in kinds:
        return dict(zip(("anchor_features", "candidate_features"), make(anchors, candidates), strict=True))
    return {}


def _words(text: str) -> list[str]:
    """Each word as its light stem, spelling folded, and its root, joined."""
    words = normalize(text, AS_WRITTEN).split()
    return [f"{normalize(light_stem(word))} {root(word)}" for word in words]


def _roots_of(words: Sequence[str]) -> Any:
    """[words, roots]: 1 where the word has the root."""
    from scipy.sparse import csr_matrix

    found = [word.split()[-1] for word in words]
    column = {name: place for place, name in enumerate(sorted({name for name in found if len(name) >= 3}))}
    pairs = [(row, column[name]) for row, name in enumerate(found) if name in column]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    return csr_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(words), max(1, len(column))))


def _check(anchors: Sequence[str], candidates: Sequence[str]) -> None:
    for name, texts in (("anchors", anchors), ("candidates", candidates)):
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"{name} must be a list of at least one text")
