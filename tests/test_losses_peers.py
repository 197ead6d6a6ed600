"""Every loss that sentence-transformers or pytorch-metric-learning offers, on the same input: value and gradient.

Where a peer differs a test shows how. sentence-transformers' `cosine_distance` is 1 − cosine: its margins are ours.
"""

import losses_oracle as oracle
import pytest
import torch
from losses_oracle import (
    BATCH,
    DIRECTIONS,
    MODES,
    NEGATIVES,
    TOLERANCE,
    WIDTH,
    assert_same,
    random_batch,
    random_candidates,
    random_rows,
    value_and_gradients,
)
from torch import Tensor

from gate_lessons import losses

st_losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")  # takes two seconds
pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, miners, reducers  # noqa: E402
from pytorch_metric_learning import losses as pml_losses  # noqa: E402

COSINE = st_losses.BatchHardTripletLossDistanceFunction.cosine_distance
LABELS = torch.tensor([3, 3, 3, 7, 7, 3, 7, 5, 5])  # everyone has a positive
ALONE = torch.tensor([3, 3, 3, 7, 7, 3, 7, 5, 6])  # the last two have none

both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
margins = pytest.mark.parametrize("margin", [0.1, 0.3, 1.0])
temperatures = pytest.mark.parametrize("temperature", [0.05, 0.3])


def _compare(ours, theirs, *inputs: Tensor, dtype: torch.dtype, tolerance: float | None = None) -> None:
    found, expected = (value_and_gradients(f, *inputs, dtype=dtype) for f in (ours, theirs))
    assert_same(found, expected, tolerance or TOLERANCE[dtype])


def _st_ranking(a: Tensor, c: Tensor, temperature: float, **options) -> Tensor:
    """sentence-transformers' ranking loss of candidates in our order: B answers, then B hard negatives at a time."""
    peer = st_losses.MultipleNegativesRankingLoss(None, scale=1 / temperature, **options)
    return peer.compute_loss_from_embeddings([a, *c.split(len(a))], None)


# ------------------------------------------------------------------- ranking: sentence-transformers


@both_types
@temperatures
@pytest.mark.parametrize("hard", [0, 1, 3])
def test_ranking(dtype, temperature, hard):
    _compare(
        lambda *x: losses.multiple_negatives_ranking(*x, temperature),
        lambda *x: _st_ranking(*x, temperature),
        *random_candidates(hard),
        dtype=dtype,
    )


@both_types
@temperatures
def test_info_nce_one_row_at_a_time(dtype, temperature):
    """With a single row in the batch there are no in-batch negatives, which leaves InfoNCE on the explicit ones."""

    def theirs(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return (
            sum(_st_ranking(a[i : i + 1], torch.cat([p[i : i + 1], n[i]]), temperature) for i in range(BATCH)) / BATCH
        )

    _compare(lambda *x: losses.info_nce(*x, temperature), theirs, *random_batch(), dtype=dtype)


@both_types
@temperatures
@pytest.mark.parametrize("hard", [0, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strength", [5.0, 9.0])
def test_hardness_weighted_ranking(dtype, temperature, hard, mode, strength):
    _compare(
        lambda *x: losses.hardness_weighted_ranking(*x, temperature, strength=strength, mode=mode),
        lambda *x: _st_ranking(*x, temperature, hardness_mode=mode, hardness_strength=strength),
        *random_candidates(hard),
        dtype=dtype,
    )


@both_types
@temperatures
@pytest.mark.parametrize("hard", [0, 2])
def test_symmetric_ranking(dtype, temperature, hard):
    _compare(
        lambda *x: losses.symmetric_ranking(*x, temperature),
        lambda *x: _st_ranking(
            *x, temperature, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        ),
        *random_candidates(hard),
        dtype=dtype,
    )


@both_types
def test_symmetric_ranking_under_its_old_name(dtype):
    with pytest.deprecated_call():
        peer = st_losses.MultipleNegativesSymmetricRankingLoss(None, scale=5.0)
    _compare(
        lambda *x: losses.symmetric_ranking(*x, 0.2),
        lambda *x: peer.compute_loss_from_embeddings(list(x), None),
        *random_candidates(0),
        dtype=dtype,
    )


@both_types
@temperatures
@pytest.mark.parametrize("hard", [0, 1, 2])
@pytest.mark.parametrize(
    "directions",
    [
        ("query_to_doc", "query_to_query"),
        ("query_to_doc", "doc_to_query"),
        ("doc_to_doc", "query_to_doc"),
        DIRECTIONS,
    ],
)
def test_multi_direction_ranking(dtype, temperature, hard, directions):
    _compare(
        lambda *x: losses.multi_direction_ranking(*x, temperature, directions=directions),
        lambda *x: _st_ranking(*x, temperature, directions=directions),
        *random_candidates(hard),
        dtype=dtype,
    )


class _Embedder(torch.nn.Module):
    """A model for GISTEmbedLoss whose embeddings come ready in the features, under its name."""

    max_seq_length = 8

    def __init__(self, name: str) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        super().__init__()
        self.name = name
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, "[UNK]")))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.name]}


@both_types
@pytest.mark.parametrize("hard", [0, 1])
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.3])
def test_ranking_under_the_mask_of_a_guide(dtype, hard, margin):
    """Without the contrasts of anchors with anchors and answers with answers, which we have in other losses."""
    guide = [x.to(dtype) for x in random_candidates(hard)]
    guide[0] = guide[0] + guide[1][:BATCH] / 2  # it finds the answers near, but not the nearest
    mask = losses.guide_mask(*guide, margin)
    assert 0 < mask.sum() < mask.numel() - BATCH
    peer = st_losses.GISTEmbedLoss(
        _Embedder("model"), _Embedder("guide"), 0.2, margin=margin, contrast_anchors=False, contrast_positives=False
    )

    def theirs(a: Tensor, c: Tensor) -> Tensor:
        columns = zip((a, *c.split(BATCH)), (guide[0], *guide[1].split(BATCH)), strict=True)
        return peer([{"model": ours, "guide": guides} for ours, guides in columns], None)

    _compare(
        lambda *x: losses.multiple_negatives_ranking(*x, 0.2, mask),
        theirs,
        *random_candidates(hard, seed=5),
        dtype=dtype,
    )


# ------------------------------------------------------------------- ranking: pytorch-metric-learning


def _nt_xent(temperature: float) -> pml_losses.NTXentLoss:
    return pml_losses.NTXentLoss(temperature, reducer=reducers.MeanReducer())


@both_types
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_as_nt_xent(dtype, temperature):
    rows = torch.arange(BATCH)
    each = rows.repeat_interleave(NEGATIVES)
    pairs = rows, rows + BATCH, each, 2 * BATCH + torch.arange(BATCH * NEGATIVES)
    _compare(
        lambda *x: losses.info_nce(*x, temperature),
        lambda a, p, n: _nt_xent(temperature)(torch.cat([a, p, n.flatten(0, 1)]), indices_tuple=pairs),
        *random_batch(),
        dtype=dtype,
    )


@both_types
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("stored", [0, 4])
def test_ranking_as_nt_xent_against_references(dtype, temperature, stored):
    """A row's label is its number, and a candidate that answers nobody has a number of its own."""
    a, c = random_candidates(1)
    memory = losses.unit(random_rows(stored, WIDTH, seed=9)).to(dtype)
    _compare(
        lambda *x: losses.multiple_negatives_ranking(*x, temperature, memory=memory),
        lambda a, c: _nt_xent(temperature)(
            a,
            torch.arange(BATCH),
            ref_emb=torch.cat([c, memory]),
            ref_labels=torch.arange(len(c) + stored),
        ),
        a,
        c,
        dtype=dtype,
    )


@both_types
def test_ranking_with_a_memory_as_cross_batch_memory(dtype):
    """Their queue takes this batch's candidates in too, without a gradient: the anchors' gradient is what compares."""
    a, c = random_candidates(0)
    c = c.to(dtype)
    earlier = losses.unit(random_rows(4, WIDTH, seed=9)).to(dtype)
    rows = torch.arange(BATCH)

    def theirs(a: Tensor) -> Tensor:
        memory = pml_losses.CrossBatchMemory(_nt_xent(0.2), WIDTH, memory_size=64).to(dtype)
        memory.add_to_memory(earlier, torch.arange(100, 104), 4)
        return memory(torch.cat([a, c]), torch.cat([rows, rows]), enqueue_mask=torch.arange(2 * BATCH) >= BATCH)

    _compare(lambda a: losses.multiple_negatives_ranking(a, c, 0.2, memory=earlier), theirs, a, dtype=dtype)


@both_types
def test_symmetric_and_multi_direction_ranking_as_nt_xent(dtype):
    """Pairs and negatives by index. It has no room for the answer a second time, so without `doc_to_query`."""
    rows = torch.arange(BATCH)
    one, other = (~torch.eye(BATCH, dtype=torch.bool)).nonzero(as_tuple=True)
    answers, anchors = (rows, rows + BATCH), (rows + BATCH, rows)

    def peer(a: Tensor, c: Tensor, positives, *negatives) -> Tensor:
        pairs = [torch.cat(x) for x in zip(*negatives, strict=True)]
        return _nt_xent(0.2)(torch.cat([a, c]), indices_tuple=(*positives, *pairs))

    def symmetric(a: Tensor, c: Tensor) -> Tensor:
        return (peer(a, c, answers, (one, other + BATCH)) + peer(a, c, anchors, (one + BATCH, other))) / 2

    def with_anchors(a: Tensor, c: Tensor) -> Tensor:
        return peer(a, c, answers, (one, other + BATCH), (one, other))

    _compare(lambda *x: losses.symmetric_ranking(*x, 0.2), symmetric, *random_candidates(0), dtype=dtype)
    _compare(
        lambda *x: losses.multi_direction_ranking(*x, 0.2, directions=("query_to_doc", "query_to_query")),
        with_anchors,
        *random_candidates(0),
        dtype=dtype,
    )


# ------------------------------------------------------------------- triplets


def _triplets() -> tuple[Tensor, Tensor, Tensor]:
    a, p, n = random_batch()
    return a, p, n[:, 0]


def _labelled(seed: int = 0) -> Tensor:
    return random_rows(len(LABELS), WIDTH, seed=seed)


def _pml_triplet(margin: float, reducer=None) -> pml_losses.TripletMarginLoss:
    return pml_losses.TripletMarginLoss(margin, distance=distances.CosineSimilarity(), reducer=reducer)


@both_types
@margins
def test_triplet(dtype, margin):
    st_peer = st_losses.TripletLoss(None, st_losses.TripletDistanceMetric.COSINE, margin)
    rows = torch.arange(BATCH)
    by_index = rows, rows + BATCH, rows + 2 * BATCH
    for theirs in (
        lambda *x: st_peer.compute_loss_from_embeddings(list(x), None),
        lambda *x: _pml_triplet(margin, reducers.MeanReducer())(torch.cat(x), indices_tuple=by_index),
    ):
        _compare(lambda *x: losses.triplet(*x, margin), theirs, *_triplets(), dtype=dtype)


@both_types
@margins
def test_a_margin_of_squared_distance_is_twice_a_margin_of_similarity(dtype, margin):
    """FaceNet's: |a − b|² = 2 − 2·cos on embeddings of length 1."""
    squared = pml_losses.TripletMarginLoss(
        2 * margin, distance=distances.LpDistance(p=2, power=2), reducer=reducers.MeanReducer()
    )
    rows = torch.arange(BATCH)
    _compare(
        lambda *x: losses.triplet(*x, margin),
        lambda *x: squared(torch.cat(x), indices_tuple=(rows, rows + BATCH, rows + 2 * BATCH)) / 2,
        *_triplets(),
        dtype=dtype,
        tolerance=max(TOLERANCE[dtype], 1e-7),  # their distance goes through a square root and back
    )


@both_types
@margins
@pytest.mark.parametrize(
    ("ours", "peer"),
    [
        (losses.batch_hard_triplet, st_losses.BatchHardTripletLoss),
        (losses.batch_semi_hard_triplet, st_losses.BatchSemiHardTripletLoss),
        (losses.batch_all_triplet, st_losses.BatchAllTripletLoss),
    ],
    ids=lambda loss: loss.__name__,
)
@pytest.mark.parametrize("seed", [0, 4])
def test_triplets_of_a_batch(dtype, margin, ours, peer, seed):
    _compare(
        lambda x: ours(x, LABELS, margin),
        lambda x: peer(None, COSINE, margin).compute_loss_from_embeddings([x], LABELS),
        _labelled(seed),
        dtype=dtype,
    )


@both_types
@margins
@pytest.mark.parametrize("label", [LABELS, ALONE], ids=["everyone has a positive", "two have none"])
def test_batch_hard_and_batch_all_triplets_of_pytorch_metric_learning(dtype, margin, label):
    miner = miners.BatchHardMiner(distance=distances.CosineSimilarity())
    _compare(
        lambda x: losses.batch_hard_triplet(x, label, margin),
        lambda x: _pml_triplet(margin, reducers.MeanReducer())(x, label, miner(x, label)),
        _labelled(),
        dtype=dtype,
    )
    _compare(
        lambda x: losses.batch_all_triplet(x, label, margin),
        lambda x: _pml_triplet(margin, reducers.AvgNonZeroReducer())(x, label),
        _labelled(),
        dtype=dtype,
    )


@both_types
@margins
def test_semi_hard_triplets_of_pytorch_metric_learning(dtype, margin):
    """Its miner takes one positive for each anchor and drops a pair without a semi-hard negative; here all have one."""
    miner = miners.BatchEasyHardMiner("easy", "semihard", distance=distances.CosineSimilarity())
    x, label = random_rows(8, WIDTH), torch.arange(4).repeat(2)
    x[4:] += x[:4] / 2
    assert len(miner(x.to(dtype), label)[0]) == 8

    def theirs(x: Tensor) -> Tensor:
        anchor, positive, _, negative = miner(x, label)
        return _pml_triplet(margin, reducers.MeanReducer())(x, label, (anchor, positive, negative))

    _compare(lambda x: losses.batch_semi_hard_triplet(x, label, margin), theirs, x, dtype=dtype)


@both_types
def test_sentence_transformers_counts_anchors_without_a_positive_as_if_it_were_at_similarity_1(dtype):
    """In batch-hard; in ours, and in pytorch-metric-learning's, they are not anchors."""
    label, margin = ALONE, 0.5
    peer = st_losses.BatchHardTripletLoss(None, COSINE, margin)

    def with_the_lonely(x: Tensor) -> Tensor:
        alone = [i for i in range(len(label)) if (label == label[i]).sum() == 1]
        lonely = [max(oracle.cos(x[i], x[j]) for j in range(len(x)) if j != i) - 1 + margin for i in alone]
        ours = losses.batch_hard_triplet(x, label, margin) * (len(x) - len(alone))
        return (ours + sum(torch.relu(cost) for cost in lonely)) / len(x)

    x = _labelled()
    x[7] = x[0] + 0.1 * x[7]  # so near to another that it costs something
    theirs = peer.compute_loss_from_embeddings([x], label)
    assert abs(theirs - losses.batch_hard_triplet(x, label, margin)) > 0.01
    _compare(with_the_lonely, lambda x: peer.compute_loss_from_embeddings([x], label), x, dtype=dtype)


@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_sentence_transformers_asks_something_of_a_batch_without_a_negative(margin):
    """With one label only, batch-hard costs the margin and semi-hard takes an anchor itself for its negative."""
    x, label = _labelled(), torch.zeros(len(LABELS), dtype=torch.int64)
    hard = st_losses.BatchHardTripletLoss(None, COSINE, margin).compute_loss_from_embeddings([x], label)
    semi_hard = st_losses.BatchSemiHardTripletLoss(None, COSINE, margin).compute_loss_from_embeddings([x], label)
    assert hard.item() == pytest.approx(margin)
    itself = [1 - oracle.cos(x[i], x[j]).item() + margin for i in range(len(x)) for j in range(len(x)) if i != j]
    assert semi_hard.item() == pytest.approx(sum(itself) / len(itself))
    for loss in (losses.batch_hard_triplet, losses.batch_semi_hard_triplet, losses.batch_all_triplet):
        assert loss(x, label, margin).item() == 0


# ------------------------------------------------------------------- scored pairs


@both_types
@pytest.mark.parametrize("score", [[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 1.0, 1.0, 0.5], [1.0] * 5])
@pytest.mark.parametrize("width", [12, 7])
@pytest.mark.parametrize(
    ("ours", "peer"),
    [(losses.cosent, st_losses.CoSENTLoss), (losses.angle, st_losses.AnglELoss)],
    ids=["cosent", "angle"],
)
def test_losses_of_the_order(dtype, score, width, ours, peer):
    score = torch.tensor(score)
    _compare(
        lambda *x: ours(*x, score, 0.2),
        lambda *x: peer(None, scale=5.0).compute_loss_from_embeddings(list(x), score),
        random_rows(BATCH, width),
        random_rows(BATCH, width, seed=1),
        dtype=dtype,
    )


@both_types
def test_cosine_regression(dtype):
    """sentence-transformers takes the scores in float32 (`labels.float()`), where quarters are exact and tenths not."""
    peer = st_losses.CosineSimilarityLoss(None)
    for score, tolerance in (([0.25, 0.0, 0.5, 1.0, -0.75], None), ([0.1, 0.3, 0.7, 0.9, -0.6], 1e-6)):
        score = torch.tensor(score, dtype=torch.float64)
        _compare(
            lambda *x, s=score: losses.cosine_regression(*x, s),
            lambda *x, s=score: peer.compute_loss_from_embeddings(list(x), s),
            *random_batch()[:2],
            dtype=dtype,
            tolerance=tolerance,
        )
