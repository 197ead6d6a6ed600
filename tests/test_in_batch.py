import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gate_lessons.miner import IN_BATCH, mine_in_batch


def _circle(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def _batch(rows: int, classes: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=g), torch.randint(0, classes, (rows,), generator=g)


def _similarity(embeddings: Tensor) -> np.ndarray:
    x = embeddings.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def _rows(triplets) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in triplets), strict=True))


def test_semi_hard_on_a_circle():
    """Anchor at 0°, its positive at 40°: 70° is the first negative beyond; for 40° and 0° it is 85°."""
    embeddings = _circle(0, 40, 20, 70, 85)
    label = torch.tensor([1, 1, 2, 3, 4])
    assert _rows(mine_in_batch(embeddings, label)) == [(0, 1, 3), (1, 0, 4)]
    assert _rows(mine_in_batch(embeddings, label, "batch_hard")) == [(0, 1, 2), (1, 0, 2)]


def test_without_a_negative_beyond_the_positive_semi_hard_takes_the_least_similar():
    embeddings, label = _circle(0, 90, 20, 70, 30), torch.tensor([1, 1, 2, 3, 4])
    assert _rows(mine_in_batch(embeddings, label))[0] == (0, 1, 3)


def test_a_negative_as_similar_as_the_positive_is_hard():
    embeddings, label = _circle(0, 40, 40, 70), torch.tensor([1, 1, 2, 3])
    assert _rows(mine_in_batch(embeddings, label))[0] == (0, 1, 3)


def test_of_equal_negatives_the_lower_row_is_taken():
    embeddings, label = _circle(0, 40, 70, 20, 70, 20, 70), torch.tensor([1, 1, 2, 3, 4, 5, 6])
    assert _rows(mine_in_batch(embeddings, label))[0] == (0, 1, 2)
    assert _rows(mine_in_batch(embeddings, label, "batch_hard"))[0] == (0, 1, 3)
    nothing_beyond = _circle(0, 90, 20, 70, 70), torch.tensor([1, 1, 2, 3, 4])
    assert _rows(mine_in_batch(*nothing_beyond))[0] == (0, 1, 3)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 40), classes=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_both_equal_the_loops(rows, classes, seed):
    embeddings, label = _batch(rows, classes, seed=seed)
    s = _similarity(embeddings)
    semi, hard = [], []
    for a in range(rows):
        positives = [i for i in range(rows) if label[i] == label[a] and i != a]
        negatives = [i for i in range(rows) if label[i] != label[a]]
        if not positives or not negatives:
            continue
        hard.append((a, min(positives, key=lambda i: s[a, i]), max(negatives, key=lambda i: s[a, i])))
        for p in positives:
            beyond = [n for n in negatives if s[a, n] < s[a, p]]
            semi.append((a, p, max(beyond, key=lambda n: s[a, n]) if beyond else min(negatives, key=lambda n: s[a, n])))
    assert _rows(mine_in_batch(embeddings, label)) == semi
    assert _rows(mine_in_batch(embeddings, label, "batch_hard")) == hard


def test_semi_hard_are_the_hardest_of_pytorch_metric_learnings_semi_hard_triplets():
    from pytorch_metric_learning import distances, miners

    embeddings, label = _batch(80, 9, seed=3)
    peer = miners.TripletMarginMiner(margin=3, type_of_triplets="semihard", distance=distances.CosineSimilarity())
    s, hardest = _similarity(embeddings), {}
    for a, p, n in _rows(peer(embeddings, label)):
        if (a, p) not in hardest or s[a, n] > s[a, hardest[a, p]]:
            hardest[a, p] = n
    ours = {(a, p): n for a, p, n in _rows(mine_in_batch(embeddings, label))}
    assert len(hardest) > 500
    assert {pair: n for pair, n in ours.items() if pair in hardest} == hardest
    # For the others no negative is beyond the positive.
    assert all(s[a, n] >= s[a, p] for (a, p), n in ours.items() if (a, p) not in hardest)


def test_hard_are_pytorch_metric_learnings():
    from pytorch_metric_learning import distances, miners

    embeddings, label = _batch(80, 30, seed=4)
    peer = miners.BatchHardMiner(distance=distances.CosineSimilarity())
    assert _rows(mine_in_batch(embeddings, label, "batch_hard")) == _rows(peer(embeddings, label))


@pytest.mark.parametrize("margin", [0.0, 0.2, 2.0])
def test_semi_hard_triplets_have_sentence_transformers_loss(margin):
    from sentence_transformers.sentence_transformer import losses

    embeddings, label = _batch(60, 6, seed=5)
    distance = losses.BatchHardTripletLossDistanceFunction.cosine_distance
    peer = losses.BatchSemiHardTripletLoss(None, distance, margin).compute_loss_from_embeddings([embeddings], label)
    s = _similarity(embeddings)
    ours = np.mean([max(0.0, s[a, n] - s[a, p] + margin) for a, p, n in _rows(mine_in_batch(embeddings, label))])
    assert ours == pytest.approx(peer.item(), abs=1e-6)


def test_no_gradient_is_asked_for():
    embeddings, label = _batch(10, 3)
    assert not any(column.requires_grad for column in mine_in_batch(embeddings.requires_grad_(), label))


def test_what_does_not_fit_is_said():
    embeddings, label = _batch(10, 3)
    with pytest.raises(ValueError, match=f"unknown strategy 'hard'; choose from {', '.join(IN_BATCH)}"):
        mine_in_batch(embeddings, label, "hard")
    with pytest.raises(ValueError, match=r"labels must be 10 integers, not \[9\]"):
        mine_in_batch(embeddings, label[:9])
    with pytest.raises(ValueError, match=r"labels must be 10 integers, not .* of torch.float32"):
        mine_in_batch(embeddings, label.float())
    embeddings[4, 1] = float("nan")
    with pytest.raises(ValueError, match="embeddings holds NaN or infinite numbers in 1 rows: 4"):
        mine_in_batch(embeddings, label)
