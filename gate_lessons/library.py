"""The corpus as a library to mine from, whose truth is known: what mined negatives are to their anchors.

Data from the world knows pairs. So here each anchor is told its own text and one positive, its close paraphrase, while
the shelf to mine from holds every sentence of the groups. What the anchor is not told is the truth to measure by.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gate_lessons import features
from gate_lessons.data import Group, codes
from gate_lessons.encoder import Encoder
from gate_lessons.miner import STRATEGIES, Mined, hardness, parse
from gate_lessons.text import normalize

RELATIONS = ("itself", "known positive", "same meaning", "entailed", "neutral", "contradiction", "another group")
FALSE = RELATIONS[:4]  # what a wrong answer must not be: whoever says the anchor has said these as well
_OF_ROLE = dict(zip(("anchor", "close", "distant", "entailment"), FALSE, strict=True))
_SIDES = ("anchor", "candidate")  # of the options of `miner.mine`
STANDARD = "standard"  # the variety of Arabic that is no dialect


@dataclass(frozen=True)
class Library:
    """Anchors with a known positive each, and a shelf of sentences.

    Attributes:
        pairs: columns anchor, positive, group, topic, phenomenon.
        shelf: columns text, key (the normalised text, each once), group, topic, variety (`standard` or a dialect),
            role, and relation, one of `RELATIONS`: what the sentence is to the anchor of its group.
    """

    pairs: pd.DataFrame
    shelf: pd.DataFrame

    @classmethod
    def of_groups(cls, groups: Iterable[Group]) -> "Library":
        """Each group's anchor with its close paraphrase, and all sentences of all groups."""
        pairs, shelf = [], []
        for group in groups:
            sentences = group.sentences()
            pairs.append((sentences["anchor"], sentences["close"], group.id, group.topic, group.phenomenon))
            shelf += [
                (text, group.id, group.topic, STANDARD, role, _OF_ROLE.get(role, role))
                for role, text in sentences.items()
            ]
            shelf += [
                (text, group.id, group.topic, dialect, dialect, "same meaning")
                for dialect, text in group.dialects.items()
            ]
        table = pd.DataFrame(shelf, columns=["text", "group", "topic", "variety", "role", "relation"])
        table["key"] = table["text"].map(normalize)
        return cls(
            pd.DataFrame(pairs, columns=["anchor", "positive", "group", "topic", "phenomenon"]),
            table.drop_duplicates("key", ignore_index=True),
        )

    def embedded(self, encoder: Encoder) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors [Q, d], positives [Q, d] and the shelf [M, d]: what `miner.mine` takes first."""
        return tuple(
            encoder.encode(list(x)) for x in (self.pairs["anchor"], self.pairs["positive"], self.shelf["text"])
        )

    @cached_property
    def text(self) -> dict[str, Any]:
        """Options of `miner.mine` that take the anchor's own text out."""
        return self._codes("key", self.pairs["anchor"].map(normalize), self.shelf["key"])

    @cached_property
    def pair(self) -> dict[str, Any]:
        """Options of `miner.mine` that take the anchor's known positive out."""
        place = {key: row for row, key in enumerate(self.shelf["key"])}
        return {"known_positives": [[place[normalize(text)]] for text in self.pairs["positive"]]}

    @cached_property
    def truth(self) -> dict[str, Any]:
        """Options of `miner.mine` that take every false negative out: what only the corpus knows."""
        alone = "only:" + self.shelf["key"]
        meaning = self.shelf["group"].where(self.shelf["relation"].isin(FALSE), alone)
        return self._codes("group", self.pairs["group"], meaning)

    @cached_property
    def labels(self) -> dict[str, Any]:
        """Options of `miner.mine` that name each sentence's topic and dialect."""
        standard = [STANDARD] * len(self.pairs)
        return self._codes("category", self.pairs["topic"], self.shelf["topic"]) | self._codes(
            "variety", standard, self.shelf["variety"]
        )

    def needs(self, strategy: str) -> dict[str, Any]:
        """Options of `miner.mine` that a strategy, or a mixture, cannot do without: topics, dialects, features."""
        names = parse(strategy)
        wanted = {f"{side}_{need}" for name in names for need in STRATEGIES[name].needs for side in _SIDES}
        found = {name: codes for name, codes in self.labels.items() if name in wanted}
        return found | features.options(names, list(self.pairs["anchor"]), list(self.shelf["text"]))

    def relations(self, mined: Mined) -> pd.DataFrame:
        """[Q, k] what each mined sentence is to its anchor: one of `RELATIONS`, or missing where nothing was mined."""
        relation, group = self.shelf["relation"].to_numpy(), self.shelf["group"].to_numpy()
        indices = mined.indices.cpu().numpy()
        own = group[indices] == self.pairs["group"].to_numpy()[:, None]
        found = pd.DataFrame(relation[indices]).where(own, RELATIONS[-1])
        return found.mask(indices < 0)

    def describe(self, mined: Mined, margin: float) -> dict[str, float]:
        """What one mining served: truth, hardness, diversity.

        Returns:
            Shares of all that was served: `false` (see `FALSE`), `contradiction` (the one written for the anchor), and
            `easy`, `semi_hard`, `hard` with this margin; `difficulty`, the mean; `different` sentences; `topics`, how
            many an anchor's negatives have on average; `shortfall`, the share that the strategy could not give itself.
        """
        relations, there = self.relations(mined), mined.indices >= 0
        served = relations.stack().dropna()
        s_p = mined.positive_similarity[:, None].expand_as(mined.similarities)[there]
        kinds = pd.Series(hardness(s_p, mined.similarities[there], margin)).value_counts(normalize=True)
        topic = pd.DataFrame(self.shelf["topic"].to_numpy()[mined.indices.cpu().numpy()]).mask(~there.cpu().numpy())
        return {
            "false": served.isin(FALSE).mean(),
            "contradiction": (served == "contradiction").mean(),
            **{kind: kinds.get(kind, 0.0) for kind in ("easy", "semi_hard", "hard")},
            "difficulty": mined.difficulty().nanmean().item(),
            "different": len(mined.indices[there].unique()),
            "topics": topic.nunique(axis=1).mean(),
            "shortfall": (mined.shortfall.sum() / mined.indices.numel()).item(),
        }

    @staticmethod
    def _codes(name: str, anchor: Iterable[str], candidate: Iterable[str]) -> dict[str, Tensor]:
        ours, theirs = map(torch.from_numpy, codes(anchor, candidate))
        return {f"{side}_{name}": codes for side, codes in zip(_SIDES, (ours, theirs), strict=True)}
