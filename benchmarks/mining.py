"""How fast, exact and small mining is, beside sentence-transformers, pytorch-metric-learning and the tutorial.

`python -m benchmarks.mining JOB` is a process whose memory is watched: see `measure.peak_above_idle`.
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from pytorch_metric_learning import distances, miners
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import mine_hard_negatives
from torch import Tensor

from benchmarks.measure import Row, against, at_least, at_most, medians, peak_above_idle, when_told
from benchmarks.search import MANY, QUERIES, K, normal
from gate_lessons.losses import cosine_matrix
from gate_lessons.miner import Mined, mine, mine_in_batch

BATCH, WIDTH, OF_A_CLASS, MARGIN = 1024, 768, 16, 2.0  # a margin that every triplet is within
SAMPLE = 10  # anchors that the tutorial's loop is timed on


def rows(device: str) -> Iterator[Row]:
    """Every comparison of miners; what both sides find is asserted equal before times are taken."""
    if device == "cpu":
        yield from _hard()
        yield from _in_batch()


class _Corpus:
    """Anchors, and candidates of which the first are the anchors' positives; for the peer a model that knows them."""

    device = torch.device("cpu")

    def __init__(self, queries: int = QUERIES, many: int = MANY) -> None:
        self.anchors, self.candidates = normal(queries, 256, seed=0), normal(many, 256, seed=1)
        self.pairs = Dataset.from_dict({"a": list(map(str, range(queries))), "p": list(map(str, range(queries)))})
        self.texts = list(map(str, range(many)))
        self.known = [[number] for number in range(queries)]

    def encode_query(self, texts: list[str], **_: object) -> np.ndarray:
        return self.anchors.numpy()[list(map(int, texts))]

    def encode_document(self, texts: list[str], **_: object) -> np.ndarray:
        return self.candidates.numpy()[list(map(int, texts))]

    def similarity(self, a: np.ndarray, b: np.ndarray) -> Tensor:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a: np.ndarray, b: np.ndarray) -> Tensor:
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=1)

    def ours(self) -> Mined:
        positives = self.candidates[: len(self.anchors)]
        return mine(self.anchors, positives, self.candidates, "hard", K, known_positives=self.known)

    def peers(self) -> Dataset:
        return mine_hard_negatives(self.pairs, self, corpus=self.texts, num_negatives=K, verbose=False)


def _hard() -> Iterator[Row]:
    corpus, mined = _Corpus(), {}
    calls = [lambda: mined.update(ours=corpus.ours()), lambda: mined.update(peers=corpus.peers())]
    ours, peers = medians(calls, trials=3, warmup=0)
    what = "hard negatives, 10,000 × 100,000 d=256, top-10: "
    same = _alike(corpus, mined["ours"], mined["peers"])
    measured = f"{against(ours, peers, 'it')}; the same negatives for {same:,} anchors, near-ties for the others"
    yield at_least(f"{what}times faster than sentence-transformers", peers / ours, 1.6, measured)
    (own, _), (its, measured) = (peak_above_idle("benchmarks.mining", job) for job in ("ours", "peers"))
    share = f"{own:.0f} MiB above idle, it {its:.0f} MiB; {measured}"
    yield at_most(f"{what}of sentence-transformers' extra memory", own / its, 0.1, share)
    some = corpus.anchors[:SAMPLE]
    (one,) = medians([lambda: [_tutorials(anchor, corpus.candidates) for anchor in some]], trials=3, warmup=1)
    loop = one / SAMPLE * QUERIES
    measured = f"{ours:.1f} s, it {loop:,.0f} s, reckoned from {SAMPLE} anchors"
    yield at_least(f"{what}times faster than the tutorial's loop over anchors", loop / ours, 200, measured)


def _alike(corpus: _Corpus, ours: Mined, peers: Dataset) -> int:
    """For how many anchors both took the same; where they did not, float32 must not tell what they took apart."""
    found = torch.tensor(list(map(int, peers["negative"]))).view(QUERIES, K)
    assert list(peers["a"]) == [str(number) for number in range(QUERIES) for _ in range(K)]
    similarity = [
        torch.einsum("qd,qkd->qk", corpus.anchors.double(), corpus.candidates[taken].double()).sort(dim=1).values
        for taken in (ours.indices, found)
    ]
    torch.testing.assert_close(*similarity, atol=1e-6, rtol=0)
    same = ours.indices.sort(dim=1).values == found.sort(dim=1).values
    return int(same.all(dim=1).sum())


def _tutorials(anchor: Tensor, candidates: Tensor) -> Tensor:
    """What the tutorial does for each anchor, the candidates' tensor made once (it makes it anew each time)."""
    return F.cosine_similarity(anchor[None], candidates, dim=1).topk(K).indices


def _in_batch() -> Iterator[Row]:
    embeddings, labels = _batch()
    semi_hard, loss = _peers_in_batch()
    _assert_same_triplets(embeddings.double(), labels)

    def miner() -> object:
        return mine_in_batch(embeddings, labels)

    what = f"semi-hard in the batch, B={BATCH:,} d={WIDTH}, {OF_A_CLASS} a class: "
    ours, peers = medians([miner, lambda: loss.compute_loss_from_embeddings([embeddings], labels)], trials=9)
    yield at_most(f"{what}of sentence-transformers' time", ours / peers, 1.1, against(ours, peers, "it"))
    ours, peers = medians([miner, lambda: semi_hard(embeddings, labels)], trials=3, warmup=1)
    yield at_least(f"{what}times faster than pytorch-metric-learning", peers / ours, 10, against(ours, peers, "it"))
    (own, _), (its, measured) = (peak_above_idle("benchmarks.mining", job) for job in ("batch", "batch_peers"))
    share = f"{own:.0f} MiB above idle, it {its:.0f} MiB; {measured}"
    yield at_most(f"{what}of pytorch-metric-learning's memory", own / its, 0.2, share)


def _batch(rows: int = BATCH) -> tuple[Tensor, Tensor]:
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    return normal(rows, WIDTH, seed=0), torch.arange(rows // OF_A_CLASS).repeat_interleave(OF_A_CLASS)[order]


def _peers_in_batch() -> tuple[miners.TripletMarginMiner, losses.BatchSemiHardTripletLoss]:
    miner = miners.TripletMarginMiner(MARGIN, type_of_triplets="semihard", distance=distances.CosineSimilarity())
    distance = losses.BatchHardTripletLossDistanceFunction.cosine_distance
    return miner, losses.BatchSemiHardTripletLoss(None, distance, MARGIN)


def _assert_same_triplets(embeddings: Tensor, labels: Tensor) -> None:
    """Ours are the hardest of the one peer's triplets, and have the other's loss; in float64, which leaves no ties."""
    semi_hard, loss = _peers_in_batch()
    similarity = cosine_matrix(embeddings, embeddings)
    ours = mine_in_batch(embeddings, labels)
    mean = (similarity[ours.anchor, ours.negative] - similarity[ours.anchor, ours.positive] + MARGIN).mean()
    torch.testing.assert_close(loss.compute_loss_from_embeddings([embeddings], labels), mean)
    anchor, positive, negative = semi_hard(embeddings, labels)
    hardest = torch.full((BATCH * BATCH,), -torch.inf, dtype=torch.float64)
    hardest.scatter_reduce_(0, anchor * BATCH + positive, similarity[anchor, negative], "amax")
    theirs = hardest[ours.anchor * BATCH + ours.positive]
    beyond = theirs > -torch.inf  # for the other pairs the peer has no triplet, and ours is the furthest negative
    assert beyond.sum() == hardest.isfinite().sum()
    torch.testing.assert_close(similarity[ours.anchor, ours.negative][beyond], theirs[beyond], atol=1e-12, rtol=0)


def _job(job: str) -> Callable[[], object]:
    """Mining to be watched, everything that a first call loads having been loaded."""
    if job in ("ours", "peers"):
        getattr(_Corpus(64, 3000), job)()
        return getattr(_Corpus(), job)
    miner = mine_in_batch if job == "batch" else _peers_in_batch()[0]
    miner(*_batch(64))
    batch = _batch()
    return lambda: miner(*batch)


if __name__ == "__main__":
    when_told(_job(*sys.argv[1:]))
