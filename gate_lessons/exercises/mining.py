"""The exercises about negative mining (lesson 03)."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from gate_lessons import miner
from gate_lessons.data import load_corpus
from gate_lessons.encoder import make_encoder
from gate_lessons.evaluation import load_task
from gate_lessons.exercises.exercise import Exercise
from gate_lessons.library import FALSE, Library

SERVED = 5  # negatives for each anchor, where a mining has to beat another
UNKNOWN = ("anchor_group", "candidate_group")  # options that would give the truth away


def _similarities(queries: int, candidates: int, seed: int) -> tuple[Tensor, Tensor]:
    s_p = 0.3 + 0.4 * torch.rand(queries, 1, generator=torch.Generator().manual_seed(seed))
    return s_p, torch.rand(queries, candidates, generator=torch.Generator().manual_seed(seed + 1))


# ---------------------------------------------------------------------------------------------- the tutorial's bug


def a_case_against_the_tutorial() -> tuple[float, float, float]:
    """s(a,p), s(a,n) and a margin: the negative is semi-hard, and the tutorial's rule does not take it."""
    return 0.7, 0.6, 0.3


def _judge_case(case: Any) -> tuple[bool, str]:
    numbers = isinstance(case, tuple) and len(case) == 3 and all(isinstance(x, int | float) for x in case)
    if not numbers or not all(-1 <= x <= 1 for x in case[:2]) or case[2] < 0:
        return False, "Not yet: return three numbers (s(a,p), s(a,n), margin): two cosines, and a margin of 0 or more."
    s_p, s_n, margin = case
    tutorial, right = s_n > s_p, miner.semi_hard_band(torch.tensor(s_p), torch.tensor(s_n), margin).item()
    said = (
        f"s(a,p) = {s_p}, s(a,n) = {s_n}, margin {margin}: the tutorial says {_word(tutorial)}, FaceNet {_word(right)}"
    )
    if tutorial == right:
        return False, f"Not yet: {said}. Both agree here; look for a case where they do not."
    return True, said + "."


def _word(semi_hard: bool) -> str:
    return "semi-hard" if semi_hard else "not semi-hard"


# ---------------------------------------------------------------------------------------------- the filter


def keep(
    anchor_group: Tensor,
    candidate_group: Tensor,
    positive_similarity: Tensor,
    negative_similarity: Tensor,
    relative_margin: float,
) -> Tensor:
    """[Q] and [M] codes of the meaning, s(a,p) [Q, 1] and s(a,n) [Q, M] → [Q, M]: what may be served as a negative."""
    other_meaning = anchor_group[:, None] != candidate_group
    return other_meaning & miner.within_relative_margin(positive_similarity, negative_similarity, relative_margin)


def _without_groups(anchor: Tensor, candidate: Tensor, p: Tensor, n: Tensor, r: float) -> Tensor:
    return miner.within_relative_margin(p, n, r)


_KEEP_TRIALS = [
    (torch.tensor([0, 1]), torch.tensor([0, 1, 2]), *_similarities(2, 3, 3), 0.05),
    (torch.arange(4), torch.arange(30) % 9, *_similarities(4, 30, 4), 0.3),
    (torch.tensor([5]), torch.tensor([1, 2, 3, 5]), torch.tensor([[0.8]]), torch.tensor([[0.4, 0.6, 0.8, 0.1]]), 0.25),
    (torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([[-0.2]]), torch.tensor([[-0.195, -0.3]]), 0.05),
]


# ---------------------------------------------------------------------------------------------- a better mining


def mining_score(library: Library, mined: miner.Mined) -> float:
    """Mean difficulty of what was served, 0 and more, where a false negative counts as −1 instead.

    What a false negative costs is anybody's guess; this one makes a mining that serves many of them no better than a
    random one.
    """
    false = torch.from_numpy(library.relations(mined).isin(FALSE).to_numpy())
    difficulty = miner.difficulty(mined.positive_similarity[:, None], mined.similarities)
    return difficulty.masked_fill(false, -1.0).nanmean().item()


@cache
def _library() -> tuple[Library, tuple[Tensor, Tensor, Tensor]]:
    library = Library.of_groups(load_corpus("train"))
    return library, library.embedded(make_encoder("ngram", load_task().texts, 0))


def _score(options: dict[str, Any]) -> float:
    library, embedded = _library()
    strategy = options.get("strategy", "hard")
    told = library.text | library.pair | library.needs(strategy)
    return mining_score(library, miner.mine(*embedded, **(told | options | {"num_negatives": SERVED})))


@cache
def _score_of_cluster() -> float:
    return _score({"strategy": "cluster"})


def a_mining_that_beats_cluster() -> dict[str, Any]:
    """Options of `miner.mine`: hard, but below the ranks where most paraphrases lie."""
    return {"strategy": "hard", "range_min": 5}


def _judge_mining(options: Any) -> tuple[bool, str]:
    if not isinstance(options, dict):
        return False, 'Not yet: return options of miner.mine as a dictionary, such as {"strategy": "lexical"}.'
    if given_away := [name for name in UNKNOWN if name in options]:
        return (
            False,
            f"Not yet: {' and '.join(given_away)} give the truth away, which data from the world does not have.",
        )
    try:
        score = _score(options)
    except (TypeError, ValueError) as error:
        return False, f"Not yet: miner.mine does not take these options: {error}"
    said = f"your mining scores {score:.3f}, cluster {_score_of_cluster():.3f}"
    if score <= _score_of_cluster():
        return False, f"Not yet: {said}. Which ranks hold the false negatives?"
    return True, said + "."


MINING: dict[str, Exercise] = {
    "semi_hard": Exercise(
        miner.semi_hard_band,
        [
            (*_similarities(2, 3, 0), 0.2),
            (*_similarities(5, 40, 7), 0.1),
            (torch.tensor([[0.5]]), torch.tensor([[0.3, 0.5, 0.4, 0.7]]), 0.2),
        ],
        {
            "these are the hard negatives, nearer than the positive (the tutorial's mistake)": lambda p, n, m: n > p,
            "the margin is missing: easy negatives are in": lambda p, n, m: n < p,
            "the edges are wrong: at s(a,p) a negative is hard, at s(a,p) − margin it is semi-hard": lambda p, n, m: (
                (n > p - m) & (n <= p)
            ),
            "the band lies above the positive": lambda p, n, m: (n >= p) & (n < p + m),
        },
    ),
    "tutorial_semi_hard": Exercise(
        a_case_against_the_tutorial,
        [()],
        {
            "Both agree here": lambda: (0.5, 0.1, 0.2),
            "two cosines, and a margin of 0 or more": lambda: (70, 60, 0.1),
        },
        _judge_case,
    ),
    "filter": Exercise(
        keep,
        _KEEP_TRIALS,
        {
            "the groups are not looked at": _without_groups,
            "the margin is subtracted; it is a share of s(a,p)": lambda a, c, p, n, r: (a[:, None] != c) & (n <= p - r),
            "these are the ones to take out": lambda *x: ~keep(*x),
            "below 0 a share of s(a,p) lies on the wrong side: take one of its size": lambda a, c, p, n, r: (
                (a[:, None] != c) & (n <= p * (1 - r))
            ),
        },
    ),
    "beat_cluster": Exercise(
        a_mining_that_beats_cluster,
        [()],
        {
            "Which ranks hold the false negatives?": lambda: {"strategy": "hard"},
            "give the truth away": lambda: {"strategy": "hard", "anchor_group": [0], "candidate_group": [0]},
            "miner.mine does not take these options": lambda: {"strategy": "hardest"},
        },
        _judge_mining,
    ),
}
