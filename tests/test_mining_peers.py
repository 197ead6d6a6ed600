"""Our hard negatives beside those of sentence-transformers' `mine_hard_negatives`, on the same ready embeddings."""

import numpy as np
import pytest
import torch

from gate_lessons import miner

ROWS, COLUMNS = 30, 300


class _Ready:
    """What the peer asks of a model, with embeddings that are looked up by the text's number."""

    device = torch.device("cpu")

    def __init__(self, anchors: torch.Tensor, candidates: torch.Tensor) -> None:
        self.anchors, self.candidates = (torch.nn.functional.normalize(x, dim=1).numpy() for x in (anchors, candidates))

    def encode_document(self, texts, **_) -> np.ndarray:
        return self.candidates[[int(text[1:]) for text in texts]]

    def encode_query(self, texts, **_) -> np.ndarray:
        return self.anchors[[int(text[1:]) for text in texts]]

    def similarity(self, a, b) -> torch.Tensor:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a, b) -> torch.Tensor:
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=1)


def _embeddings(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidate i is the positive of anchor i, and near enough to it to be found among the nearest."""
    g = torch.Generator().manual_seed(seed)
    anchors = torch.randn(ROWS, 16, generator=g)
    positives = anchors + 0.8 * torch.randn(ROWS, 16, generator=g)
    near = anchors.repeat(4, 1) + 1.2 * torch.randn(4 * ROWS, 16, generator=g)
    return anchors, torch.cat([positives, near, torch.randn(COLUMNS - 5 * ROWS, 16, generator=g)])


def _peers(anchors, candidates, **options) -> dict[int, list[int]]:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    pairs = Dataset.from_dict({"a": [f"a{i}" for i in range(ROWS)], "p": [f"p{i}" for i in range(ROWS)]})
    corpus = [f"p{j}" for j in range(COLUMNS)]
    mined = mine_hard_negatives(pairs, _Ready(anchors, candidates), corpus=corpus, verbose=False, **options)
    found: dict[int, list[int]] = {i: [] for i in range(ROWS)}
    for anchor, negative in zip(mined["a"], mined["negative"], strict=True):
        found[int(anchor[1:])].append(int(negative[1:]))
    return found


OPTIONS = [
    {},
    {"num_negatives": 7},
    {"range_min": 3, "range_max": 20},
    {"max_score": 0.6},
    {"min_score": 0.2},
    {"max_score": 0.7, "min_score": 0.3, "num_negatives": 5},
    {"absolute_margin": 0.1},
    {"relative_margin": 0.05},
    {"relative_margin": 0.2, "range_min": 2, "num_negatives": 4},
    {"absolute_margin": 0.05, "max_score": 0.65, "min_score": 0.1, "range_min": 1},
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_hard_negatives_are_sentence_transformers(options, seed):
    anchors, candidates = _embeddings(seed)
    anchors[::3] *= -1  # s(a,p) is below 0 there
    # Its lists end at a rank of their own where a margin is given; ours end where nothing further can qualify.
    whole = {"num_negatives": 3, "range_max": COLUMNS - 1} | options
    theirs = _peers(anchors, candidates, **whole)
    known = [[i] for i in range(ROWS)]
    mined = miner.mine(anchors, candidates[:ROWS], candidates, "hard", known_positives=known, fallback="none", **whole)
    ours = {i: [j for j in row if j >= 0] for i, row in enumerate(mined.indices.tolist())}
    assert ours == theirs
    assert sum(map(len, ours.values())) > ROWS


def test_positive_aware_is_its_recommended_setting():
    anchors, candidates = _embeddings(5)
    theirs = _peers(anchors, candidates, relative_margin=0.05, num_negatives=4, range_max=COLUMNS - 1)
    known = [[i] for i in range(ROWS)]
    mined = miner.mine(anchors, candidates[:ROWS], candidates, "positive_aware", 4, known_positives=known)
    assert {i: row for i, row in enumerate(mined.indices.tolist())} == theirs


def test_a_random_sample_stays_within_what_it_samples_from():
    anchors, candidates = _embeddings(6)
    options = {"num_negatives": 3, "range_min": 2, "range_max": 12, "relative_margin": 0.1}
    pool = _peers(anchors, candidates, **options | {"num_negatives": 10})
    theirs = _peers(anchors, candidates, sampling_strategy="random", **options)
    known = [[i] for i in range(ROWS)]
    mined = miner.mine(
        anchors,
        candidates[:ROWS],
        candidates,
        "hard",
        known_positives=known,
        sampling_strategy="random",
        fallback="none",
        **options,
    )
    for i, row in enumerate(mined.indices.tolist()):
        found = [j for j in row if j >= 0]
        assert set(found) <= set(pool[i]) and set(theirs[i]) <= set(pool[i])
        assert len(found) == len(theirs[i]) == min(3, len(pool[i]))
