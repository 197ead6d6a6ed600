"""What a mining call asks, and the lists of candidates that strategies propose for its anchors."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gate_lessons.miner.draws import uniform
from gate_lessons.search import Pool, cluster

NUMBERS = 2**20  # held at once: 8 MB in float64


class Classes:
    """Candidates sorted by class, so that those of a class lie side by side, and perhaps the class of each anchor."""

    def __init__(self, candidates: Tensor, anchors: Tensor | None = None) -> None:
        self.names, number = candidates.unique(return_inverse=True)
        self.order = number.argsort(stable=True)
        self.size = number.bincount()
        self.start = self.size.cumsum(0) - self.size
        self.anchors = anchors

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Task:
    """What one call of `miner.mine` asks, see there. Tensors lie on the anchors' device."""

    pool: Pool
    anchors: Tensor  # [Q, d]
    positive: Tensor  # [Q] cosine similarity of each anchor to its positive
    k: int
    first: int  # number of the first anchor, by which draws go
    seed: int
    margin: float
    absolute_margin: float | None
    relative_margin: float | None
    min_score: float | None
    max_score: float | None
    range_min: int
    range_max: int | None
    sampling_strategy: str
    clusters: int | Tensor  # how many, or the cluster [M] of each candidate
    group: tuple[Tensor, Tensor] | None  # codes [Q] and [M], as the next three
    key: tuple[Tensor, Tensor] | None
    category: tuple[Tensor, Tensor] | None
    variety: tuple[Tensor, Tensor] | None
    known: Tensor | None  # row · M + candidate, sorted
    features: tuple[Any, Any] | None  # sparse [Q, V] and [V, M]

    @cached_property
    def pieces(self) -> Classes:
        """The clusters: made once for the pool."""
        if isinstance(self.clusters, Tensor):
            return Classes(self.clusters.to(self.anchors.device))
        number = cluster(self.pool, min(self.clusters, len(self.pool)), self.seed % 2**31)
        return Classes(number.to(self.anchors.device))

    @cached_property
    def categories(self) -> Classes:
        return Classes(self.category[1], self.category[0])

    @cached_property
    def everything(self) -> Classes:
        return Classes(torch.zeros(len(self.pool), dtype=torch.int64, device=self.anchors.device))

    def random(self, stream: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Uniform numbers in (0, 1): [n, K] for the anchors `rows` [n] and the numbers `columns` [K] or [n, K]."""
        return uniform(self.seed + stream, rows + self.first, columns)

    def similarity(self, rows: Tensor, indices: Tensor) -> Tensor:
        """Cosine similarity [n, K] of the anchors `rows` [n] to candidates [n, K], a few at a time."""
        parts = max(1, NUMBERS // (indices.shape[1] * self.pool.width))
        found = torch.empty(indices.shape, device=self.anchors.device, dtype=torch.float32)
        for part in torch.arange(len(rows), device=rows.device).split(parts):
            candidates = self.pool.rows(indices[part].flatten()).to(found.device)
            found[part] = cosine(self.anchors[rows[part], None], candidates.view(*indices[part].shape, -1))
        return found


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of [..., d] and [..., d], computed in float64 and rounded to float32."""
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).float()


@dataclass
class Proposals:
    """Lists of candidates for some anchors.

    Attributes:
        task: what was asked.
        rows: [n] the anchors' numbers.
        indices: [n, K] candidates, none twice for an anchor; −1 where there is nothing.
        whole: whether each list is the whole pool.
        value: [n, K] what the lists are ordered by, best first; where they are.
        found: [n, K] similarities, where the search gave them.
        label: [K] the class of each column, where columns have one, ascending.
        eligible, allowed: [n, K] what is no known positive, and what the whole filter leaves; the miner fills them in.
    """

    task: Task
    rows: Tensor
    indices: Tensor
    whole: bool
    value: Tensor | None = None
    found: Tensor | None = None
    label: Tensor | None = None
    eligible: Tensor | None = None
    allowed: Tensor | None = None

    @cached_property
    def similarity(self) -> Tensor:
        """[n, K] cosine similarities, computed only where somebody asks for them."""
        return self.task.similarity(self.rows, self.indices.clamp_min(0)) if self.found is None else self.found

    @property
    def positive(self) -> Tensor:
        """[n, 1] cosine similarity of each anchor to its positive."""
        return self.task.positive[self.rows, None]
