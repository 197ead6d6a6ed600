"""What has state or weights, over the pure functions of `losses`: a learned temperature, an NLI head, a hybrid.

`TripletObjective` is what the trainer minimises: it gives every triplet loss one call.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lessons import losses

LOSSES = ("info_nce", "multiple_negatives_ranking", "triplet", "adaptive_triplet")


class LearnableTemperature(nn.Module):
    """A temperature that gradient descent moves, as in CLIP (Radford et al. 2021), kept within bounds.

    log τ runs along a softsign from log `low` to log `high`: it nears a bound slowly, so that its gradient does not die
    there, as it would with a clamp.

    Args:
        initial: τ at the start, strictly between the bounds.
        low, high: bounds, 0 < low < high.
    """

    def __init__(self, initial: float = 0.05, low: float = 0.005, high: float = 1.0) -> None:
        super().__init__()
        if not 0 < low < initial < high:
            raise ValueError(f"need 0 < low < initial < high, got low={low}, initial={initial}, high={high}")
        bounds = torch.tensor([low, high]).log()
        self.register_buffer("bounds", bounds, persistent=False)
        share = (torch.tensor(initial).log() - bounds[0]) / (bounds[1] - bounds[0])
        inner = 2 * share - 1
        self.position = nn.Parameter(inner / (1 - inner.abs()))

    def forward(self) -> Tensor:
        """τ, a scalar tensor with a gradient."""
        low, high = self.bounds
        return torch.exp(low + (high - low) * (0.5 + 0.5 * F.softsign(self.position)))


class TripletObjective(nn.Module):
    """One call for every triplet loss: anchors [B, d], positives [B, d], negatives [B, k, d] → a scalar.

    Args:
        loss: a name from `LOSSES`. `multiple_negatives_ranking` uses the rest of the batch as negatives too.
        temperature: τ > 0 for the two losses that have one.
        margin: ≥ 0 for the two losses that have one.
        learnable_temperature: start at `temperature` and learn it.
        matryoshka_dims: apply the loss to these prefixes of the embedding as well as it stands there
            (Kusupati et al. 2022); include d itself to keep the full length trained.
    """

    def __init__(
        self,
        loss: str = "multiple_negatives_ranking",
        temperature: float = 0.05,
        margin: float = 0.3,
        learnable_temperature: bool = False,
        matryoshka_dims: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}; the losses are {', '.join(LOSSES)}")
        losses.check_temperature(temperature)
        losses.check_margin(margin)
        self.loss, self.margin = loss, margin
        self.temperature = LearnableTemperature(temperature) if learnable_temperature else (lambda: temperature)
        function = getattr(self, f"_{loss}")
        self.function = losses.matryoshka(function, matryoshka_dims) if matryoshka_dims else function

    def forward(self, anchor: Tensor, positive: Tensor, negatives: Tensor, group: Tensor | None = None) -> Tensor:
        """The loss of a batch. `group` [B] marks rows of one meaning, which are no negatives of each other."""
        return self.function(anchor, positive, negatives, group=group)

    def _info_nce(self, anchor: Tensor, positive: Tensor, negatives: Tensor, group: Tensor | None) -> Tensor:
        return losses.info_nce(anchor, positive, negatives, self.temperature())

    def _multiple_negatives_ranking(
        self, anchor: Tensor, positive: Tensor, negatives: Tensor, group: Tensor | None
    ) -> Tensor:
        rows, k = negatives.shape[:2]
        mask = None
        if group is not None:
            same = (group[:, None] == group[None, :]) & ~torch.eye(rows, dtype=torch.bool, device=group.device)
            mask = torch.cat([same, same.new_zeros(rows, rows * k)], dim=1)
        candidates = torch.cat([positive, negatives.flatten(0, 1)])
        return losses.multiple_negatives_ranking(anchor, candidates, self.temperature(), mask)

    def _triplet(self, anchor: Tensor, positive: Tensor, negatives: Tensor, group: Tensor | None) -> Tensor:
        return losses.triplet(*_one_negative_each(anchor, positive, negatives), self.margin)

    def _adaptive_triplet(self, anchor: Tensor, positive: Tensor, negatives: Tensor, group: Tensor | None) -> Tensor:
        return losses.adaptive_triplet(*_one_negative_each(anchor, positive, negatives), self.margin)


def _one_negative_each(anchor: Tensor, positive: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, d], [B, d], [B, k, d] → three times [B·k, d]: one triplet for each negative."""
    k = negatives.shape[1]
    return anchor.repeat_interleave(k, 0), positive.repeat_interleave(k, 0), negatives.flatten(0, 1)


class NLIHead(nn.Module):
    """Softmax classification of sentence pairs on (u, v, |u − v|) (SBERT: Reimers and Gurevych 2019).

    Args:
        width: d of the embeddings.
        labels: number of classes, 3 for NLI.
    """

    def __init__(self, width: int, labels: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * width, labels)

    def forward(self, premise: Tensor, hypothesis: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of premise [B, d], hypothesis [B, d] with label [B] of integers."""
        return F.cross_entropy(self.logits(premise, hypothesis), label)

    def logits(self, premise: Tensor, hypothesis: Tensor) -> Tensor:
        """Scores [B, labels] before the softmax."""
        return self.linear(torch.cat([premise, hypothesis, (premise - hypothesis).abs()], dim=-1))


class GateHybrid(nn.Module):
    """GATE's hybrid loss (Nacar et al. 2025): each batch belongs to one task and goes to that task's loss.

    Classification batches go to the softmax head that the authors' code names, scored batches to CoSENT, without
    weights between them; the paper's own Eq. 2 for classification is `losses.info_nce`. Lesson 06 lists where paper,
    code and model card disagree.

    Args:
        width: d of the embeddings.
        temperature: τ of CoSENT.
    """

    def __init__(self, width: int, temperature: float = 0.05) -> None:
        super().__init__()
        losses.check_temperature(temperature)
        self.head, self.temperature = NLIHead(width), temperature

    def forward(self, task: str, sentence1: Tensor, sentence2: Tensor, target: Tensor) -> Tensor:
        """`task` is "classification" (target: integer labels [B]) or "sts" (target: scores [B])."""
        if task == "classification":
            return self.head(sentence1, sentence2, target)
        if task == "sts":
            return losses.cosent(sentence1, sentence2, target, self.temperature)
        raise ValueError(f"unknown task {task!r}; the tasks are classification and sts")
