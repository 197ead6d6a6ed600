"""The training loop: an encoder, a loss, a miner and a curriculum in, a trained encoder and its history out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gate_lessons import miner
from gate_lessons.curriculum import CURRICULA, Curriculum
from gate_lessons.data import candidate_pool, codes
from gate_lessons.encoder import Encoder, to_device
from gate_lessons.losses import cosine
from gate_lessons.objectives import TripletObjective
from gate_lessons.text import normalize

GIVEN = "given"
STRATEGIES = (GIVEN, *miner.STRATEGIES)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, beside the data.

    The defaults were chosen on the corpus's dev split, to tell paraphrases from contradictions. They pay for that with
    what serves text that nobody wrote for the course; a higher temperature and a far lower rate keep it (lesson 03).

    Attributes:
        loss, temperature, learnable_temperature, margin: see `objectives.TripletObjective`.
        strategy: where negatives come from: `given` takes those of the triplets, the others mine them, see `miner`.
        negatives: mined negatives for each anchor.
        remine_every: epochs between two minings with the current encoder (Xiong et al. 2021, ANCE).
        curriculum: `none`, `quantile` or `threshold`, see `curriculum`.
        epochs: passes over what the curriculum selects.
        batch_size: triplets in a step.
        learning_rate: of AdamW at its highest, after the warm-up; the encoder's own `learning_rate` when not given.
        warmup: share of all steps in which the rate rises; then it falls linearly to 0.
        clip: largest norm of a gradient.
        seed: of batches, mining and dropout; the encoder's own start has a seed of its own.
    """

    loss: str = "multiple_negatives_ranking"
    temperature: float = 0.05
    learnable_temperature: bool = False
    margin: float = 0.3
    strategy: str = "hard"
    negatives: int = 1
    remine_every: int = 1
    curriculum: str = "none"
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float | None = None
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("strategy", STRATEGIES), ("curriculum", CURRICULA)):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(choices)}")
        for name in ("negatives", "remine_every", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must lie between 0 and 1, not {self.warmup}")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, not {self.clip}")
        self.objective()  # checks loss, temperature and margin

    def objective(self) -> TripletObjective:
        """The loss that this recipe minimises."""
        return TripletObjective(self.loss, self.temperature, self.margin, self.learnable_temperature)


def train(
    encoder: Encoder,
    triplets: pd.DataFrame,
    recipe: Recipe,
    *,
    objective: TripletObjective | None = None,
    curriculum: Curriculum | None = None,
    evaluate: Callable[[Encoder], dict[str, float]] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: str = "32-true",
) -> pd.DataFrame:
    """Train `encoder` in place.

    Args:
        encoder: any encoder; its weights change.
        triplets: columns anchor, positive, negative, group, and topic for the strategy `category`.
        recipe: see `Recipe`.
        objective: another objective than the recipe's.
        curriculum: another curriculum than the recipe's name stands for, such as `ByThreshold((0.9, 1.0, 1.1))`.
        evaluate: called after each epoch; its numbers stand in the history's row.
        device: `cuda` where it must be a GPU, `auto` where one is welcome.
        precision: Lightning Fabric's name, such as `bf16-mixed`.

    Returns:
        The history, one row for each epoch: epoch, stage, triplets, steps, loss (mean over the steps), difficulty,
        shortfall (share of mined negatives that the strategy could not give, so that random ones stand in),
        positive_similarity, negative_similarity, similarity_gap and violation_rate (share of triplets inside the
        recipe's margin) as seen while training, gradient_norm, learning_rate, temperature, and what `evaluate` gave.

    Raises:
        ValueError: CUDA asked for where there is none; an empty stage of the curriculum; a metric of `evaluate` that is
            called like a column of the history.
        FloatingPointError: the loss, or a weight before mining, is NaN or infinite; the message names the epoch.
    """
    # Fabric takes two seconds to import, so only those who train pay for it.
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator=_accelerator(device), devices=1, precision=precision)
    objective = objective or recipe.objective()
    curriculum = curriculum or CURRICULA[recipe.curriculum]()
    learned = torch.nn.ModuleDict({"encoder": encoder, "objective": objective})
    rate = recipe.learning_rate or encoder.learning_rate
    optimizer = torch.optim.AdamW(learned.parameters(), lr=rate, weight_decay=0.0, fused=True)
    model, optimizer = fabric.setup(learned, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(recipe, len(triplets)))
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)  # for a transformer's dropout, which knows no other generator
    material = _Material(triplets)
    advice = f"lower the learning rate ({rate}) or, if the loss has one, raise the temperature ({recipe.temperature})"
    history = []
    for epoch in range(recipe.epochs):
        if epoch % recipe.remine_every == 0:
            if not all(torch.isfinite(weight).all() for weight in encoder.parameters()):
                raise FloatingPointError(f"the encoder's weights are NaN or infinite before epoch {epoch}: {advice}")
            negatives, difficulty, shortfall = material.mine(encoder, recipe, generator)
        stage = curriculum(difficulty, epoch / recipe.epochs)
        watch = []
        encoder.train()
        for step, rows in enumerate(_batches(stage.indices, recipe.batch_size, generator)):
            anchor, positive, negative = material.embed(encoder, rows, negatives[rows], fabric)
            loss = objective(anchor, positive, negative, material.group[rows].to(fabric.device))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at epoch {epoch}, step {step}: {advice}")
            fabric.backward(loss)
            norm = fabric.clip_gradients(model, optimizer, max_norm=recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            used = schedule.get_last_lr()[0]
            schedule.step()
            watch.append(_watch(loss, norm, anchor, positive, negative, recipe.margin))
        row = {"epoch": epoch, "stage": stage.name, "triplets": len(stage.indices), "steps": len(watch)}
        row |= {"difficulty": float(difficulty[stage.indices].mean()), "shortfall": shortfall}
        row |= pd.DataFrame(watch).mean().to_dict() | {"learning_rate": used}
        row |= {"temperature": torch.as_tensor(objective.temperature(), dtype=torch.float64).item()}
        held_out = evaluate(encoder) if evaluate else {}
        if clash := row.keys() & held_out.keys():
            raise ValueError(f"evaluate gives {min(clash)!r}, which the history already has; name it dev_{min(clash)}")
        history.append(row | held_out)
    # A fused AdamW keeps itself alive in a reference cycle, and with it twice the encoder's size.
    optimizer.optimizer.state.clear()
    encoder.cpu()
    return pd.DataFrame(history)


class _Material:
    """The triplets as numbers: rows of sentences, the pool of candidates, the codes that the filter compares."""

    def __init__(self, triplets: pd.DataFrame) -> None:
        self.anchors, self.positives = list(triplets["anchor"]), list(triplets["positive"])
        pool = candidate_pool(triplets)
        self.pool = list(pool["text"])
        keys = triplets["anchor"].map(normalize), triplets["positive"].map(normalize)
        anchor_key, candidate_key = codes(keys[0], pool["key"])
        anchor_group, candidate_group = codes(triplets["group"], pool["group"])
        topics = triplets["topic"] if "topic" in triplets else [""] * len(triplets)
        anchor_topic, candidate_topic = codes(topics, pool["topic"])
        self.labels = {
            "anchor_key": anchor_key,
            "candidate_key": candidate_key,
            "anchor_group": anchor_group,
            "candidate_group": candidate_group,
        }
        self.categories = {"anchor_category": anchor_topic, "candidate_category": candidate_topic}
        self.group = torch.from_numpy(anchor_group)
        place = {key: row for row, key in enumerate(pool["key"])}
        self.known_positives = [[place[key]] for key in keys[1]]
        self.given = torch.tensor([[place[key]] for key in triplets["negative"].map(normalize)])

    def mine(self, encoder: Encoder, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        """For the encoder as it is now: negatives [T, k] as rows of the pool, difficulty [T], share of shortfall."""
        anchors, positives, pool = (encoder.encode(texts) for texts in (self.anchors, self.positives, self.pool))
        if recipe.strategy == GIVEN:
            similarity = cosine(anchors, pool[self.given[:, 0]])
            return self.given, miner.difficulty(cosine(anchors, positives), similarity), 0.0
        labels = self.labels | (self.categories if recipe.strategy == "category" else {})
        mined = miner.mine(
            anchors,
            positives,
            pool,
            recipe.strategy,
            recipe.negatives,
            margin=recipe.margin,
            generator=generator,
            known_positives=self.known_positives,
            **labels,
        )
        return mined.indices, mined.difficulty(), float(mined.shortfall.sum() / mined.indices.numel())

    def embed(self, encoder: Encoder, rows: Tensor, negatives: Tensor, fabric) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors [B, d], positives [B, d], negatives [B, k, d], in one pass through the encoder."""
        texts = [self.anchors[i] for i in rows] + [self.positives[i] for i in rows]
        texts += [self.pool[i] for i in negatives.flatten()]
        features = to_device(encoder.features(texts), fabric.device)
        with fabric.autocast():
            embeddings = encoder(features)
        size = len(rows)
        return embeddings[:size], embeddings[size : 2 * size], embeddings[2 * size :].unflatten(0, (size, -1))


def _batches(indices: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    return iter(shuffled.split(size))


def _rate(recipe: Recipe, triplets: int) -> Callable[[int], float]:
    """Share of the learning rate at a step: up in a line during the warm-up, then down to nothing.

    Stages of a curriculum have fewer steps than this counts; their rate falls less far, which only their own control,
    a run of equal steps, can judge.
    """
    total = recipe.epochs * -(-triplets // recipe.batch_size)
    warm = max(1, round(recipe.warmup * total))
    return lambda step: min((step + 1) / warm, max(0.0, (total - step) / max(1, total - warm)))


def _watch(
    loss: Tensor, norm: Tensor, anchor: Tensor, positive: Tensor, negative: Tensor, margin: float
) -> dict[str, float]:
    with torch.no_grad():
        s_p = cosine(anchor, positive)
        s_n = cosine(anchor[:, None], negative)
    return {
        "loss": loss.item(),
        "positive_similarity": s_p.mean().item(),
        "negative_similarity": s_n.mean().item(),
        "similarity_gap": (s_p[:, None] - s_n).mean().item(),
        "violation_rate": (s_n > s_p[:, None] - margin).float().mean().item(),
        "gradient_norm": float(norm),
    }


def _accelerator(device: str) -> str:
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("device 'cuda' was asked for, but PyTorch sees no CUDA GPU here; use 'cpu' or 'auto'")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; choose auto, cpu or cuda")
    return "cuda" if device == "cuda" or (device == "auto" and available) else "cpu"


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
