"""What has state or weights, over the pure functions of `losses`: a temperature that moves, a memory, a head, a hybrid.

`TripletObjective` is what the trainer minimises: it gives every loss of triplets one call. `cached_backward` computes
the gradient of a batch that does not fit into memory.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lessons import losses

# Losses whose rows do not depend on each other: they can be computed for some of a batch's anchors at a time.
ROW_LOSSES = ("multiple_negatives_ranking", "guided_ranking", "info_nce", "triplet", "adaptive_triplet")
BATCH_LOSSES = (
    "symmetric_ranking",
    "multi_direction_ranking",
    "hardness_weighted_ranking",
    "debiased_ranking",
    "batch_hard_triplet",
    "batch_semi_hard_triplet",
    "batch_all_triplet",
)
LOSSES = ROW_LOSSES + BATCH_LOSSES
SCORED_LOSSES = ("cosent", "angle", "cosine_regression")


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


class ScheduledTemperature:
    """A temperature that goes from one value to another, by equal factors in equal times.

    Args:
        first, last: τ > 0 at the start and at the end.

    Attributes:
        progress: the share of the training that is done, which the trainer sets.
    """

    def __init__(self, first: float, last: float) -> None:
        for temperature in (first, last):
            losses.check_temperature(temperature)
        self.first, self.last, self.progress = first, last, 0.0

    def __call__(self) -> float:
        return self.first * (self.last / self.first) ** self.progress


class CrossBatchMemory(nn.Module):
    """The candidates of the last batches, as further negatives without a gradient (XBM: Wang et al. 2020).

    They were embedded by the encoder as it was then; with small steps that is nearly what it says now.

    Args:
        size: entries S, the oldest being overwritten.

    Attributes:
        vectors: [≤ S, d] of length 1.
        group: [≤ S] the meaning of each.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a memory needs at least 1 entry, not {size}")
        self.size = size
        self.register_buffer("ring", torch.empty(0))
        self.register_buffer("groups", torch.empty(0, dtype=torch.long))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    @property
    def vectors(self) -> Tensor:
        return self.ring[: int(self.written)]

    @property
    def group(self) -> Tensor:
        return self.groups[: int(self.written)]

    @torch.no_grad()
    def add(self, vectors: Tensor, group: Tensor) -> None:
        """Remember embeddings [n, d] and their groups [n]; of more than S the last S."""
        if not self.written:
            self.ring = torch.empty(self.size, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
            self.groups = torch.empty(self.size, dtype=torch.long, device=vectors.device)
        place = (int(self.written) + torch.arange(len(vectors), device=vectors.device))[-self.size :] % self.size
        self.ring[place] = losses.unit(vectors[-self.size :])
        self.groups[place] = group[-self.size :]
        self.written += len(vectors)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # Buffers get their shape with the first batch, so what was saved decides it.
        if len(state[prefix + "ring"]) not in (0, self.size):
            raise ValueError(f"a memory of {len(state[prefix + 'ring'])} entries cannot go on with {self.size}")
        for name in ("ring", "groups"):
            setattr(self, name, state[prefix + name].clone().to(self.written.device))
        super()._load_from_state_dict(state, prefix, *rest)


class TripletObjective(nn.Module):
    """One call for every loss of triplets: anchors [B, d], positives [B, d], negatives [B, k, d] → a scalar.

    The ranking losses use the rest of the batch as negatives too; the batch triplet losses look for their triplets
    among all sentences of the batch. In both, sentences of one group are never negatives of each other; a negative
    that an anchor was given stays one.

    Args:
        loss: a name from `LOSSES`, which are those of `losses`; `guided_ranking` is multiple negatives ranking
            without what a guide takes for false negatives (GISTEmbed, Solatorio 2024).
        temperature: τ > 0 for the losses that have one.
        margin: ≥ 0 for the losses that have one.
        learnable_temperature: start at `temperature` and learn it.
        matryoshka_dims: apply the loss to these prefixes of the embedding as well as it stands there
            (Kusupati et al. 2022); include d itself to keep the full length trained.
        final_temperature: go from `temperature` to this one in the course of the training.
        memory: entries of a `CrossBatchMemory`, for `multiple_negatives_ranking`; 0 for none.
    """

    def __init__(
        self,
        loss: str = "multiple_negatives_ranking",
        temperature: float = 0.05,
        margin: float = 0.3,
        learnable_temperature: bool = False,
        matryoshka_dims: Sequence[int] | None = None,
        final_temperature: float | None = None,
        memory: int = 0,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}; the losses are {', '.join(LOSSES)}")
        losses.check_temperature(temperature)
        losses.check_margin(margin)
        if learnable_temperature and final_temperature is not None:
            raise ValueError("a temperature is learned or scheduled, not both: drop final_temperature or learning it")
        if memory and (loss != "multiple_negatives_ranking" or matryoshka_dims):
            raise ValueError("a memory works with multiple_negatives_ranking at full width only; set memory to 0")
        self.loss, self.margin = loss, margin
        self.settings = {"temperature": temperature, "final_temperature": final_temperature}
        self.settings |= {"learnable_temperature": learnable_temperature, "memory": memory}
        if learnable_temperature:
            self.temperature = LearnableTemperature(temperature)
        else:
            self.temperature = ScheduledTemperature(
                temperature, temperature if final_temperature is None else final_temperature
            )
        self.memory = CrossBatchMemory(memory) if memory else None
        self.matryoshka_dims = matryoshka_dims

    def forward(
        self,
        anchor: Tensor,
        positive: Tensor,
        negatives: Tensor,
        group: Tensor | None = None,
        negative_group: Tensor | None = None,
        guide: Sequence[Tensor] | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """The loss of a batch, averaged over its rows.

        Args:
            anchor, positive, negatives: [B, d], [B, d], [B, k, d].
            group, negative_group: [B] and [B, k] codes ≥ 0 of the meanings. Without them each row is its own.
            guide: a guide's embeddings in the same shapes, which `guided_ranking` needs.
            rows: only these anchors, against the whole batch, as a slice from a start to a stop; for `ROW_LOSSES`.
        """
        if rows is not None and self.loss not in ROW_LOSSES:
            raise ValueError(f"{self.loss} is a loss of the whole batch; rows are for {', '.join(ROW_LOSSES)}")
        if group is None:
            group = -2 - torch.arange(len(anchor), device=anchor.device)
        if negative_group is None:
            negative_group = torch.full(negatives.shape[:2], -1, device=anchor.device)
        known = {"group": group, "negative_group": negative_group, "guide": guide, "rows": rows or slice(0, None)}
        function = self._ranking if self.loss.endswith("ranking") else self._given
        if self.loss.startswith("batch"):
            function = self._in_batch
        if self.matryoshka_dims:
            function = losses.matryoshka(function, self.matryoshka_dims)
        return function(anchor, positive, negatives, **known)

    def extra_repr(self) -> str:
        """What a checkpoint compares."""
        named = {"loss": self.loss, "margin": self.margin, "matryoshka_dims": self.matryoshka_dims} | self.settings
        return ", ".join(f"{name}={value}" for name, value in named.items())

    def remember(self, positive: Tensor, negatives: Tensor, group: Tensor, negative_group: Tensor) -> None:
        """After a step: keep the batch's candidates in the memory, where there is one."""
        if self.memory is not None:
            self.memory.add(_columns(positive, negatives), _columns(group, negative_group))

    def _ranking(self, anchor, positive, negatives, group, negative_group, guide, rows) -> Tensor:
        candidates, first = _columns(positive, negatives), rows.start
        meanings = _columns(group, negative_group)
        answers = torch.arange(len(group), device=group.device)
        # An unknown meaning, −1, equals no anchor's; an anchor's own answer is no false negative.
        mask = (group[rows, None] == meanings) & (
            answers[rows, None] != torch.arange(len(meanings), device=group.device)
        )
        if self.loss == "guided_ranking":
            if guide is None:
                raise ValueError("guided_ranking needs a guide's embeddings of the batch")
            mask = mask | losses.guide_mask(guide[0][rows], _columns(guide[1], guide[2]), first=first)
        if self.loss not in ROW_LOSSES:
            return getattr(losses, self.loss)(anchor, candidates, self.temperature(), mask)
        memory = None
        if self.memory is not None and self.memory.written:
            memory, seen = self.memory.vectors, self.memory.group
            mask = torch.cat([mask, group[rows, None] == seen], dim=1)
        return losses.multiple_negatives_ranking(
            anchor[rows], candidates, self.temperature(), mask, memory=memory, first=first
        )

    def _given(self, anchor, positive, negatives, group, negative_group, guide, rows) -> Tensor:
        anchor, positive, negatives = anchor[rows], positive[rows], negatives[rows]
        if self.loss == "info_nce":
            return losses.info_nce(anchor, positive, negatives, self.temperature())
        k = negatives.shape[1]
        one_each = anchor.repeat_interleave(k, 0), positive.repeat_interleave(k, 0), negatives.flatten(0, 1)
        return getattr(losses, self.loss)(*one_each, self.margin)

    def _in_batch(self, anchor, positive, negatives, group, negative_group, guide, rows) -> Tensor:
        # A negative of unknown meaning has one of its own.
        alone = -2 - len(group) - torch.arange(negative_group.numel(), device=group.device).view(negative_group.shape)
        other = torch.where(negative_group < 0, alone, negative_group)
        embeddings = torch.cat([anchor, _columns(positive, negatives)])
        return getattr(losses, self.loss)(embeddings, torch.cat([group, _columns(group, other)]), self.margin)


def _columns(positive: Tensor, negatives: Tensor) -> Tensor:
    """[B, …] and [B, k, …] → [B + k·B, …]: the positives, then everybody's first negative, then the second …"""
    return torch.cat([positive, negatives.transpose(0, 1).flatten(0, 1)])


def cached_backward(
    encode: Callable[[Any], Tensor],
    chunks: Sequence[Any],
    loss_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    backward: Callable[..., None] = torch.autograd.backward,
    without_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """The gradient of a loss over a batch too large to be embedded at once (GradCache: Gao et al. 2021).

    Embed every chunk without a graph; take the gradient of the loss at the embeddings; then embed each chunk again,
    with a graph, and send its part of that gradient through it. Only one chunk's activations live at a time. Dropout
    draws the same in both passes.

    Args:
        encode: a chunk → its embeddings [c, d].
        chunks: what `encode` takes, in order; the length of a chunk is the number of its embeddings.
        loss_and_gradient: all embeddings [n, d], without a graph → the loss and its gradient [n, d].
        backward: embeddings [c, d] and their gradient → the gradient at the weights, added up.
        without_sync: a context for all chunks but the last, in which processes do not exchange gradients.

    Returns:
        The loss, without a graph.
    """
    sizes, states, embeddings = [len(chunk) for chunk in chunks], [], torch.empty(0)
    with torch.no_grad():
        for number, chunk in enumerate(chunks):
            states.append(_random_state())
            part = encode(chunk)
            if not number:  # one place for all of them: parts in a list would leave holes in the memory
                embeddings = part.new_empty(sum(sizes), part.shape[1])
            embeddings.split(sizes)[number].copy_(part)
            del part
    loss, gradient = loss_and_gradient(embeddings)
    del embeddings
    for number, (chunk, state, part) in enumerate(zip(chunks, states, gradient.split(sizes), strict=True)):
        with nullcontext() if number == len(chunks) - 1 else without_sync():
            with torch.random.fork_rng(range(torch.cuda.device_count() if gradient.is_cuda else 0)):
                _set_random_state(state)
                again = encode(chunk)
            backward(again, part)
            del again  # its graph, before the next chunk's grows
    return loss.detach()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


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
        temperature: τ of CoSENT and AnglE.
        scored: the loss of scored batches: `cosent`, which the paper describes, `cosine_regression`, which the model
            card names, or `angle`.
    """

    def __init__(self, width: int, temperature: float = 0.05, scored: str = "cosent") -> None:
        super().__init__()
        losses.check_temperature(temperature)
        if scored not in SCORED_LOSSES:
            raise ValueError(f"unknown loss of scored pairs {scored!r}; choose from {', '.join(SCORED_LOSSES)}")
        self.head, self.temperature, self.scored = NLIHead(width), temperature, scored

    def forward(self, task: str, sentence1: Tensor, sentence2: Tensor, target: Tensor) -> Tensor:
        """`task` is "classification" (target: integer labels [B]) or "sts" (target: scores [B])."""
        if task == "classification":
            return self.head(sentence1, sentence2, target)
        if task == "sts":
            options = {} if self.scored == "cosine_regression" else {"temperature": self.temperature}
            return getattr(losses, self.scored)(sentence1, sentence2, target, **options)
        raise ValueError(f"unknown task {task!r}; the tasks are classification and sts")
