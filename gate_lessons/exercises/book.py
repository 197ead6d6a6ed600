"""The exercises: for each the solution, the inputs that it is tried on, and the mistakes that people make.

The solutions are the library's own tested functions. Among the mistakes are the founding tutorial's.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lessons import curriculum, diagnostics, losses, metrics, text
from gate_lessons.exercises.exercise import Exercise
from gate_lessons.exercises.mining import MINING

# ---------------------------------------------------------------------------------------------- inputs


def _embeddings(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _pairs(batch: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Anchors and positives that lie near them, unnormalised."""
    anchor = _embeddings(batch, width, seed=seed)
    return anchor, 2 * anchor + _embeddings(batch, width, seed=seed + 100)


def _one_hard_negative(batch: int, width: int, negatives: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    anchor, positive = _pairs(batch, width, seed)
    others = _embeddings(batch, negatives, width, seed=seed + 200)
    others[:, 0] += anchor
    return anchor, positive, others


# ---------------------------------------------------------------------------------------------- mistakes


def _info_nce_without(part: str) -> Callable[..., Tensor]:
    """InfoNCE with one part left out or done as the tutorial and many beginners do."""

    def mistake(anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
        if part != "normalisation":
            anchor, positive, negatives = (F.normalize(x, dim=-1) for x in (anchor, positive, negatives))
        s_p = (anchor * positive).sum(-1, keepdim=True)
        s_n = torch.einsum("bd,bnd->bn", anchor, negatives)
        logits = torch.cat([s_p, s_n], dim=1)
        logits = (
            logits * temperature if part == "division" else logits if part == "temperature" else logits / temperature
        )
        if part == "log-sum-exp":
            return -torch.log(logits.exp()[:, 0] / logits.exp().sum(dim=1)).mean()
        if part == "positive":
            return (torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]).mean()
        loss = torch.logsumexp(logits, dim=1) - logits[:, 0]
        return loss.sum() if part == "mean" else loss.mean()

    return mistake


def _tutorial_mnr(anchor: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """Defect 4 of the tutorial: all positives, then all negatives, viewed as if they were rows of anchors."""
    rows = len(anchor)
    similarity = F.normalize(anchor, dim=1) @ F.normalize(candidates, dim=1).T / temperature
    positives = similarity.diagonal()
    others = similarity[~F.one_hot(torch.arange(rows), len(candidates)).bool()]
    return F.cross_entropy(torch.cat([positives, others]).view(rows, -1), torch.arange(rows))


def _raw_dot_mnr(anchor: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(anchor @ candidates.T / temperature, torch.arange(len(anchor)))


def _transposed_mnr(anchor: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    similarity = F.normalize(candidates, dim=1) @ F.normalize(anchor, dim=1).T / temperature
    return F.cross_entropy(similarity[: len(anchor)], torch.arange(len(anchor)))


def _triplet_mistake(
    sign: float, clamp: bool, reduce: Callable[[Tensor], Tensor] = torch.mean
) -> Callable[..., Tensor]:
    def mistake(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
        violation = margin + sign * (losses.cosine(anchor, negative) - losses.cosine(anchor, positive))
        return reduce(F.relu(violation) if clamp else violation)

    return mistake


def _euclidean_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    return F.relu((anchor - positive).norm(dim=1) - (anchor - negative).norm(dim=1) + margin).mean()


def _cosent_mistake(direction: int, with_one: bool) -> Callable[..., Tensor]:
    def mistake(sentence1: Tensor, sentence2: Tensor, score: Tensor, temperature: float) -> Tensor:
        scaled = direction * losses.cosine(sentence1, sentence2) / temperature
        wrong = (scaled[:, None] - scaled[None, :])[score[:, None] < score[None, :]]
        return torch.logsumexp(torch.cat([wrong, wrong.new_zeros(int(with_one))]), dim=0)

    return mistake


def matryoshka_info_nce(
    anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float, dims: Sequence[int]
) -> Tensor:
    """InfoNCE on the first `dim` numbers of each embedding, summed over `dims`, as `losses.matryoshka` does."""
    prefixes = ((anchor[..., :dim], positive[..., :dim], negatives[..., :dim]) for dim in dims)
    return sum(losses.info_nce(*prefix, temperature) for prefix in prefixes)


def _last_dims_info_nce(anchor, positive, negatives, temperature, dims):
    return sum(losses.info_nce(*(x[..., -dim:] for x in (anchor, positive, negatives)), temperature) for dim in dims)


def _mean_matryoshka(anchor, positive, negatives, temperature, dims):
    return matryoshka_info_nce(anchor, positive, negatives, temperature, dims) / len(dims)


def fold_alef(word: str) -> str:
    """The word without vowel marks and tatweel, all forms of alef as a plain ا."""
    return text.normalize(word, ("diacritics", "tatweel", "alef"))


def character_ngrams(word: str, n: int) -> list[str]:
    """The word's character n-grams in order, counted with one space on either side, as fastText does."""
    padded = f" {word} "
    return [padded[start : start + n] for start in range(len(padded) - n + 1)]


def nearest(query: Tensor, corpus: Tensor) -> int:
    """The row of `corpus` [M, d] with the highest cosine similarity to `query` [d]."""
    return int(losses.cosine(query[None], corpus).argmax())


def _std_only(values: Sequence[float]) -> float:
    return float(1 / np.std(values[-5:])) if np.std(values[-5:]) else float("inf")


_TRIALS = [
    (*_one_hard_negative(4, 8, 3, 0), 0.05),
    (*_one_hard_negative(2, 16, 5, 1), 0.5),
    (*_one_hard_negative(3, 4, 2, 2), 0.001),
]
_MNR_TRIALS = [(a, torch.cat([p, n.flatten(0, 1)]), t) for a, p, n, t in _TRIALS[:2]]
_TRIPLET_TRIALS = [(*_pairs(6, 8, 3), _embeddings(6, 8, seed=9), margin) for margin in (0.0, 0.5, 1.2)]
_SCORED = [
    (*_pairs(5, 8, 5), torch.tensor([5.0, 0.0, 3.0, 1.5, 3.0]), 0.05),
    (*_pairs(3, 4, 6), torch.tensor([2.0, 2.0, 2.0]), 0.5),
]

EXERCISES: dict[str, Exercise] = {
    "cosine": Exercise(
        losses.cosine,
        [_pairs(4, 3, 0), _pairs(2, 8, 1), (torch.zeros(1, 3), torch.ones(1, 3))],
        {
            "the vectors are not divided by their lengths": lambda a, b: (a * b).sum(-1),
            "the zero vector gives 0/0; keep the length above a tiny number": lambda a, b: (
                (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
            ),
            "this is the Euclidean distance": lambda a, b: (a - b).norm(dim=-1),
        },
    ),
    "nearest": Exercise(
        nearest,
        [(_embeddings(4, seed=s), _embeddings(9, 4, seed=s + 50) * torch.arange(1, 10)[:, None]) for s in range(6)],
        {
            "long vectors win by their length: divide by it": lambda q, c: int((c @ q).argmax()),
            "this is the furthest row": lambda q, c: int(losses.cosine(q[None], c).argmin()),
            "this is the smallest Euclidean distance": lambda q, c: int((c - q).norm(dim=1).argmin()),
        },
    ),
    "fold_alef": Exercise(
        fold_alef,
        [("أَحْمَد",), ("إلى",), ("الآنَ",), ("ســــلام",), ("مدرسةٌ",), ("ٱلكتاب",)],
        {
            "the vowel marks are still there": lambda w: text.normalize(w, ("alef", "tatweel")),
            "the tatweel is still there": lambda w: text.normalize(w, ("alef", "diacritics")),
            "too much was folded: ة and ى must stay": lambda w: text.normalize(w),
        },
    ),
    "character_ngrams": Exercise(
        character_ngrams,
        [("كتاب", 3), ("من", 2), ("و", 3), ("لا", 5)],
        {
            "the spaces around the word are missing, so a prefix looks like any other letters": lambda w, n: [
                w[i : i + n] for i in range(len(w) - n + 1)
            ],
            "the last n-gram is missing: the range ends one too early": lambda w, n: character_ngrams(w, n)[:-1],
        },
    ),
    "info_nce": Exercise(
        losses.info_nce,
        _TRIALS,
        {
            "exp overflows at a small temperature: use torch.logsumexp": _info_nce_without("log-sum-exp"),
            "the embeddings are not normalised": _info_nce_without("normalisation"),
            "the similarities are multiplied by the temperature, not divided": _info_nce_without("division"),
            "the temperature is not used": _info_nce_without("temperature"),
            "the positive is missing from the denominator": _info_nce_without("positive"),
            "the loss is summed over the batch, not averaged": _info_nce_without("mean"),
        },
    ),
    "triplet": Exercise(
        losses.triplet,
        _TRIPLET_TRIALS,
        {
            "positive and negative are swapped": _triplet_mistake(-1, True),
            "the loss goes below 0: clamp it": _triplet_mistake(1, False),
            "the loss is summed over the batch, not averaged": _triplet_mistake(1, True, torch.sum),
            "this is Euclidean distance; this course uses cosine similarity": _euclidean_triplet,
        },
    ),
    "multiple_negatives_ranking": Exercise(
        losses.multiple_negatives_ranking,
        _MNR_TRIALS,
        {
            "row i is not anchor i: `view` cut a list of all positives, then all negatives, into rows": _tutorial_mnr,
            "the embeddings are not normalised": _raw_dot_mnr,
            "rows and columns are exchanged: each anchor must choose among the candidates": _transposed_mnr,
        },
    ),
    "stability": Exercise(
        diagnostics.stability,
        [([1.0, 0.5, 0.4, 0.35, 0.33, 0.32],), ([0.2, 0.2, 0.2],), ([3.0, 1.0],)],
        {
            "equal losses give infinity: the 1 + belongs inside the division (the tutorial's mistake)": _std_only,
            "all losses are used; only the last five count": lambda v: float(1 / (1 + np.std(v))),
            "this is the standard deviation itself": lambda v: float(np.std(v[-5:])),
        },
    ),
    "easiest": Exercise(
        curriculum.easiest,
        [(torch.tensor([0.9, 0.1, 0.5, 0.7]), 0.5), (_embeddings(30, seed=2), 1 / 3), (torch.tensor([1.0, 0.8]), 0.1)],
        {
            "these are the hardest": lambda d, s: curriculum.easiest(-d, s),
            "these are difficulties up to the share; the share counts triplets": lambda d, s: (d <= s).nonzero()[:, 0],
            "the indices are in order of difficulty; sort them": lambda d, s: d.argsort()[: max(1, round(s * len(d)))],
        },
    ),
    "alignment": Exercise(
        metrics.alignment,
        [_pairs(5, 4, 0), _pairs(2, 9, 1)],
        {
            "the embeddings are not on the unit sphere": lambda a, b: float((a - b).square().sum(dim=1).mean()),
            "the distance is not squared": lambda a, b: float(
                (F.normalize(a, dim=1) - F.normalize(b, dim=1)).norm(dim=1).mean()
            ),
            "this is the mean cosine; the squared distance is 2 − 2·cos": lambda a, b: float(
                losses.cosine(a, b).mean()
            ),
        },
    ),
    "uniformity": Exercise(
        metrics.uniformity,
        [(_embeddings(6, 4, seed=0),), (_embeddings(3, 2, seed=1),)],
        {
            "each sentence is compared with itself too: take distinct pairs only": lambda x: float(
                torch.cdist(F.normalize(x, dim=1), F.normalize(x, dim=1)).square().mul(-2).exp().mean().log()
            ),
            "the embeddings are not on the unit sphere": lambda x: float(
                torch.pdist(x).square().mul(-2).exp().mean().log()
            ),
            "the distance is not squared": lambda x: float(
                torch.pdist(F.normalize(x, dim=1)).mul(-2).exp().mean().log()
            ),
            "the logarithm is missing": lambda x: float(
                torch.pdist(F.normalize(x, dim=1)).square().mul(-2).exp().mean()
            ),
        },
    ),
    "cosent": Exercise(
        losses.cosent,
        _SCORED,
        {
            "the order is turned round: a lower score must not have a higher cosine": _cosent_mistake(-1, True),
            "the 1 inside the logarithm is missing": _cosent_mistake(1, False),
        },
    ),
    "matryoshka": Exercise(
        matryoshka_info_nce,
        [(*_one_hard_negative(4, 8, 3, 11), 0.1, (8, 4, 2)), (*_one_hard_negative(3, 16, 2, 12), 0.5, (16, 4))],
        {
            "the last numbers are taken, not the first": _last_dims_info_nce,
            "the losses are averaged; sum them": _mean_matryoshka,
        },
    ),
    **MINING,
}
