"""The triplets of a training run as numbers: what its batches, its miner and its objective ask for."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gate_lessons import features, miner
from gate_lessons.data import candidate_pool, codes
from gate_lessons.encoder import Encoder
from gate_lessons.losses import cosine
from gate_lessons.recipe import GIVEN, Recipe
from gate_lessons.text import normalize, vary


@dataclass(frozen=True)
class Negatives:
    """What was mined: [T, k] rows of the pool, difficulty [T], share of what the strategy could not give."""

    indices: Tensor
    difficulty: Tensor
    shortfall: float


class Material:
    """The triplets as numbers: rows of texts, the pool of candidates, the codes that the filter compares."""

    def __init__(self, encoder: Encoder, triplets: pd.DataFrame, recipe: Recipe) -> None:
        self.recipe, self.encoder, self.guide = recipe, encoder, None
        pool = candidate_pool(triplets)
        columns = [list(triplets["anchor"]), list(triplets["positive"]), list(pool["text"])]
        self.texts = list(dict.fromkeys(text for column in columns for text in column))
        number = {text: row for row, text in enumerate(self.texts)}
        self.anchors, self.positives, self.pool = (torch.tensor([number[t] for t in column]) for column in columns)
        self.table = encoder.table(self.texts)
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
        self.group, self.pool_group = torch.from_numpy(anchor_group), torch.from_numpy(candidate_group)
        self.group_names = list(triplets["group"])
        place = {key: row for row, key in enumerate(pool["key"])}
        self.known_positives = [[place[key]] for key in keys[1]]
        self.given = torch.tensor([[place[key]] for key in triplets["negative"].map(normalize)])

    def __len__(self) -> int:
        return len(self.anchors)

    def mine(
        self, encoder: Encoder, recipe: Recipe, share: float, generator: torch.Generator, progress: float = 0.0
    ) -> Negatives:
        """Negatives for the encoder as it is now; for a share of the anchors, drawn anew, the others getting random.

        The weights of a mixture are those of this progress, the share of the training that is done.
        """
        embeddings = encoder.encode_rows(self.table, len(self.texts))
        chosen = self._mine_by(recipe.strategy, embeddings, generator, progress)
        if share == 1:
            return chosen
        others = self._mine_by("random", embeddings, generator)
        coin = torch.rand(len(self), generator=generator) < share
        return Negatives(
            torch.where(coin[:, None], chosen.indices, others.indices),
            torch.where(coin, chosen.difficulty, others.difficulty),
            share * chosen.shortfall,
        )

    def _mine_by(
        self, strategy: str, embeddings: Tensor, generator: torch.Generator, progress: float = 0.0
    ) -> Negatives:
        anchors, positives, pool = (embeddings[rows] for rows in (self.anchors, self.positives, self.pool))
        if strategy == GIVEN:
            similarity = cosine(anchors, pool[self.given[:, 0]])
            return Negatives(self.given, miner.difficulty(cosine(anchors, positives), similarity), 0.0)
        mined = miner.mine(
            anchors,
            positives,
            pool,
            miner.parse(strategy, progress),
            1 if self.recipe.strategy == GIVEN else self.recipe.negatives,
            margin=self.recipe.margin,
            generator=generator,
            known_positives=self.known_positives,
            **self.labels,
            **self._asked_for(strategy),
        )
        return Negatives(mined.indices, mined.difficulty(), float(mined.shortfall.sum() / mined.indices.numel()))

    def _asked_for(self, strategy: str) -> dict[str, Any]:
        """What some strategies need beside embeddings."""
        names = miner.parse(strategy, 0.5)  # half-way every strategy of a mixture has a weight
        needs = {need for name in names for need in miner.STRATEGIES[name].needs}
        return (self.alike if "features" in needs else {}) | (self.categories if "category" in needs else {})

    @cached_property
    def alike(self) -> dict[str, Any]:
        """Features for the recipe's strategy: the same for any encoder, so they are made once."""
        texts = ([self.texts[row] for row in rows.tolist()] for rows in (self.anchors, self.pool))
        return features.options(miner.parse(self.recipe.strategy, 0.5), *texts)

    def texts_of(self, rows: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Triplets [b] and their negatives [b, k] → numbers of their texts: [b], [b], [b, k]."""
        return self.anchors[rows], self.positives[rows], self.pool[negatives]

    def known(self, rows: Tensor, negatives: Tensor, device: torch.device) -> dict[str, Any]:
        """What the objective is told of a batch beside its embeddings."""
        found = {"group": self.group[rows].to(device), "negative_group": self.pool_group[negatives].to(device)}
        if self.guide is not None:
            found["guide"] = [self.guide[texts].to(device) for texts in self.texts_of(rows, negatives)]
        return found

    def features(self, texts: Tensor, step: int) -> Any:
        """Features of some texts, varied where the recipe says so: the same for the same texts and step."""
        if not self.recipe.augment:
            return self.table(texts)
        draws = np.random.default_rng([self.recipe.seed, step, int(texts[0])])
        return self.encoder.features([vary(self.texts[row], draws, self.recipe.augment) for row in texts.tolist()])

    def names(self, rows: Tensor, shown: int = 5) -> str:
        """The triplets of a batch by number and group, the first few."""
        names = [f"{row} ({self.group_names[row]})" for row in rows[:shown].tolist()]
        return f"triplets {', '.join(names)}{' …' if len(rows) > shown else ''}"

    def guide_name(self, guide: Encoder | None) -> str:
        """What tells a guide that was given from another."""
        if guide is None or self.guide is None:
            return "the encoder before training"
        return hashlib.sha256(self.guide.numpy().tobytes()).hexdigest()[:16]

    def fingerprint(self) -> str:
        """A few letters that another table of triplets would not have."""
        content = [self.texts, self.anchors.tolist(), self.positives.tolist(), self.given.tolist(), self.group.tolist()]
        content += [codes.tolist() for codes in self.categories.values()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
