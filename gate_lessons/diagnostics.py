"""What a training run shows: its steps in numbers, signs of collapse, why it failed, the whole in a few words."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gate_lessons.losses import cosine, cosine_matrix
from gate_lessons.metrics import alignment, effective_rank, retrieval_accuracy, uniformity

EVERY = 10  # steps between two looks at the geometry of a batch
SAMPLE = 256  # rows of a batch that are looked at
POINT = -0.3  # uniformity above this: all sentences lie close to one point
FALLEN = 0.25  # of the effective rank at the start


class CollapseWarning(UserWarning):
    """Training shows a sign of collapse: the embeddings are on their way to one point or to few directions.

    Attributes:
        kind: `point`, `rank` or `margin`.
        epoch: when it was seen first.
        sign: what was seen.
        advice: what to try.
    """

    def __init__(self, kind: str, epoch: int, sign: str, advice: str) -> None:
        super().__init__(f"epoch {epoch}: {sign}. Try {advice}")
        self.kind, self.epoch, self.sign, self.advice = kind, epoch, sign, advice


class Watch:
    """The steps of an epoch in numbers.

    Of every step: loss, gradient_norm (before clipping), positive_similarity, negative_similarity, similarity_gap and
    violation_rate (share of triplets inside the margin). Of the first and every tenth step, on at most 256 rows:
    active_fraction (share of anchors with any other answer of the batch inside the margin), retrieval_accuracy (share
    of anchors whose own answer is the nearest of the batch), alignment, uniformity and effective_rank of the anchors.

    Args:
        margin: in cosine similarity.
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.rows: list[dict[str, float]] = []

    @torch.no_grad()
    def see(
        self, loss: Tensor, norm: Tensor, anchor: Tensor, positive: Tensor, negatives: Tensor, group: Tensor
    ) -> float:
        """Take down a step by its embeddings [B, d], [B, d], [B, k, d] and groups [B]; its violation rate."""
        s_p, s_n = cosine(anchor, positive)[:, None], cosine(anchor[:, None], negatives)
        seen = {
            "loss": loss,
            "gradient_norm": norm,
            "positive_similarity": s_p.mean(),
            "negative_similarity": s_n.mean(),
            "similarity_gap": (s_p - s_n).mean(),
            "violation_rate": (s_n > s_p - self.margin).float().mean(),
        }
        numbers = torch.stack([value.detach().float() for value in seen.values()]).tolist()  # one wait for a GPU
        row = dict(zip(seen, numbers, strict=True))
        if len(self.rows) % EVERY == 0 and len(anchor) > 1:
            row |= self._geometry(anchor[:SAMPLE].float(), positive[:SAMPLE].float(), group[:SAMPLE].to(anchor.device))
        self.rows.append(row)
        return row["violation_rate"]

    def summary(self) -> dict[str, float]:
        """The mean of each number over the steps that have it; then the next epoch begins."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        found = {}
        for name in names:
            values = [row[name] for row in self.rows if name in row]
            found[name] = sum(values) / len(values)
        self.rows = []
        return found

    def _geometry(self, anchor: Tensor, positive: Tensor, group: Tensor) -> dict[str, float]:
        similarity = cosine_matrix(anchor, positive)
        others = similarity.masked_fill(group[:, None] == group, -2.0).amax(dim=1)
        return {
            "active_fraction": float((others > similarity.diagonal() - self.margin).float().mean()),
            "retrieval_accuracy": retrieval_accuracy(anchor, positive, group),
            "alignment": alignment(anchor, positive),
            "uniformity": uniformity(anchor),
            "effective_rank": effective_rank(anchor),
        }


def collapse_signs(history: Sequence[Mapping[str, float]], loss: str, margin: float) -> list[CollapseWarning]:
    """The signs of collapse in the last row of a history, for a loss and its margin."""
    first, last = history[0], history[-1]
    found = []
    away = "a lower learning rate, negatives that are less hard (semi_hard, random), or a loss with many negatives"
    if last.get("uniformity", -8.0) > POINT:
        sign = f"all sentences lie close to one point: uniformity {last['uniformity']:.2f}, above {POINT}"
        found.append(CollapseWarning("point", last["epoch"], sign, away))
    if last.get("effective_rank", 1e9) < FALLEN * first.get("effective_rank", 0.0):
        sign = f"the effective rank fell from {first['effective_rank']:.1f} to {last['effective_rank']:.1f}"
        found.append(CollapseWarning("rank", last["epoch"], sign, f"a higher temperature or {away}"))
    at_margin = "triplet" in loss and abs(last["loss"] - margin) < 0.05 * margin
    if at_margin and last["positive_similarity"] > 0.95:
        sign = f"the loss stands at the margin, {last['loss']:.3f} of {margin}, with all similarities near 1"
        found.append(CollapseWarning("margin", last["epoch"], sign, away))
    return found


def cause_of_failure(embeddings: Sequence[Tensor], loss: Tensor, rate: float, temperature: float) -> str:
    """Why a step went wrong, in words: what of it is finite and what is not."""
    if not all(torch.isfinite(part).all() for part in embeddings):
        return f"the embeddings themselves are not finite, so the weights have grown too far: lower the rate ({rate})"
    if not torch.isfinite(loss):
        return f"the embeddings are finite, the loss is not: raise the temperature ({temperature:.3g}) or look at it"
    return (
        f"the loss is finite, its gradient is not: raise the temperature ({temperature:.3g}) or lower the rate ({rate})"
    )


def dynamics(history: pd.DataFrame) -> dict[str, float | str]:
    """The founding tutorial's training dynamics, defined as they were meant.

    Args:
        history: what `train` returned.

    Returns:
        loss_trend (`decreasing`, `increasing`, or `flat` within a thousandth), loss_reduction (percent of the first
        loss; nan where that is 0), final_loss, similarity_gap and violation_rate of the last epoch, and stability:
        1 / (1 + standard deviation of the last five losses), 1 where they are equal. None of them compares two
        different losses: for that there are held-out metrics.
    """
    loss = history["loss"].to_numpy()
    if not len(loss):
        raise ValueError("the history is empty: nothing was trained")
    first, last = loss[0], loss[-1]
    flat = abs(last - first) <= 1e-3 * max(abs(first), 1e-12)
    return {
        "loss_trend": "flat" if flat else "decreasing" if last < first else "increasing",
        "loss_reduction": 100 * (first - last) / first if first else float("nan"),
        "final_loss": float(last),
        "similarity_gap": float(history["similarity_gap"].iloc[-1]),
        "violation_rate": float(history["violation_rate"].iloc[-1]),
        "stability": stability(loss),
    }


def stability(losses: Sequence[float]) -> float:
    """1 / (1 + standard deviation of the last five losses): 1 where they are equal, towards 0 the more they differ.

    It cannot tell jumps from a steady fall, or from a curriculum's change of stage.
    """
    return float(1 / (1 + np.std(np.asarray(losses, float)[-5:])))
