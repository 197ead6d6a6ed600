"""How fast the losses are, forward and backward, beside sentence-transformers, pytorch-metric-learning and a loop."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NTXentLoss
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from benchmarks.measure import Row, against, at_least, at_most, medians
from gate_lessons import losses

TEMPERATURE = 0.05


def rows(device: str) -> Iterator[Row]:
    """Every comparison of losses; values are asserted equal before times are taken."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    yield from _in_batch(normal(1024, 768), normal(1024, 768))
    yield from _explicit(normal(256, 768), normal(256, 768), normal(256, 64, 768))
    small = normal(256, 384), normal(256, 384), normal(256, 16, 384)
    torch.testing.assert_close(losses.info_nce(*small), looped_info_nce(*small))
    ours, loop = medians([step(losses.info_nce, *small), step(looped_info_nce, *small)], trials=7)
    what = "InfoNCE, B=256 N=16 d=384: times faster than the tutorial"
    yield at_least(what, loop / ours, 8, against(ours, loop, "it"))


def _in_batch(anchor: Tensor, positive: Tensor) -> Iterator[Row]:
    model = SentenceTransformer(modules=[torch.nn.Identity()], device=str(anchor.device))
    peer = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)

    def peers(a: Tensor, p: Tensor) -> Tensor:
        return peer.compute_loss_from_embeddings([a, p], None)

    torch.testing.assert_close(losses.multiple_negatives_ranking(anchor, positive), peers(anchor, positive))
    steps = step(losses.multiple_negatives_ranking, anchor, positive), step(peers, anchor, positive)
    ours, theirs, products = medians([*steps, lambda: bare_products(anchor, positive)], trials=21)
    what = "multiple negatives ranking, B=1024 d=768: of "
    yield at_most(f"{what}sentence-transformers' time", ours / theirs, 0.95, against(ours, theirs, "it"))
    yield at_most(f"{what}the bare matrix products' time", ours / products, 1.6, against(ours, products, "they"))


def _explicit(anchor: Tensor, positive: Tensor, negatives: Tensor) -> Iterator[Row]:
    batch = anchor, positive, negatives
    for peer in (metric_learning_info_nce, looped_info_nce):
        torch.testing.assert_close(losses.info_nce(*batch), peer(*batch))
    ours, theirs = medians([step(losses.info_nce, *batch), step(metric_learning_info_nce, *batch)], trials=11)
    what = "InfoNCE, B=256 N=64 d=768: "
    measured = against(ours, theirs, "it")
    yield at_most(f"{what}of pytorch-metric-learning's time", ours / theirs, 0.5, measured)
    ours, loop = medians([step(losses.info_nce, *batch), step(looped_info_nce, *batch)], trials=3, warmup=1)
    yield at_least(f"{what}times faster than the tutorial", loop / ours, 25, against(ours, loop, "it"))


def step(loss: Callable[..., Tensor], *embeddings: Tensor) -> Callable[[], None]:
    """Forward and backward of a loss, gradients at every embedding."""

    def run() -> None:
        leaves = [e.detach().requires_grad_() for e in embeddings]
        loss(*leaves).backward()

    return run


@torch.no_grad()
def bare_products(anchor: Tensor, candidates: Tensor) -> None:
    """The three matrix products that no loss over all pairs can do without: forward, and backward to either side."""
    similarity = anchor @ candidates.T
    similarity @ candidates
    similarity.T @ anchor


def looped_info_nce(anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """InfoNCE the founding tutorial's way: a Python loop over the batch, exp before log."""
    found = []
    for i in range(len(anchor)):
        s_p = F.cosine_similarity(anchor[i], positive[i], dim=0) / temperature
        s_n = F.cosine_similarity(anchor[i : i + 1].expand(negatives.shape[1], -1), negatives[i], dim=1) / temperature
        found.append(-torch.log(s_p.exp() / (s_p.exp() + s_n.exp().sum())))
    return torch.stack(found).mean()


def metric_learning_info_nce(anchor: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """The same loss from pytorch-metric-learning, told by indices which sentence is whose negative."""
    size, count = negatives.shape[:2]
    row = torch.arange(size, device=anchor.device)
    pairs = row, row, row.repeat_interleave(count), size + torch.arange(size * count, device=anchor.device)
    loss = NTXentLoss(temperature=TEMPERATURE, distance=CosineSimilarity())
    return loss(anchor, indices_tuple=pairs, ref_emb=torch.cat([positive, negatives.flatten(0, 1)]))
