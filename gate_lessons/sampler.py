"""Which triplets make a batch: pass after pass over a stage, in a new order each time."""

from collections import deque
from collections.abc import Collection

import torch
from torch import Tensor


class Batches:
    """An endless stream of batches, whose state can be kept and taken up again.

    A pass shuffles the stage and cuts it into batches, the last being what is left. Without duplicates, a triplet
    whose group is already in the batch waits for the next one, and a batch that a pass cannot fill goes on with the
    next pass.

    Args:
        size: triplets in a batch.
        generator: source of randomness; its state is the caller's to keep.
        group: [T] the meaning of each triplet, for batches without duplicates: no two triplets of one group.
    """

    def __init__(self, size: int, generator: torch.Generator, group: Tensor | None = None) -> None:
        self.size, self.generator = size, generator
        self.group = None if group is None else group.tolist()
        self._enter(torch.empty(0, dtype=torch.long))
        self.waiting: deque[int] = deque()

    def take(self, stage: Tensor) -> Tensor:
        """The next batch [≤ size] of indices from `stage` [n]; another stage than before begins a new pass."""
        if not torch.equal(stage, self.stage):
            self._enter(stage.clone())
            self.waiting.clear()
        if not self.waiting:
            self._begin_pass()
        batch = self._any() if self.group is None else self._distinct()
        return torch.tensor(batch)

    def state(self) -> dict[str, Tensor]:
        """What `restore` takes."""
        return {"stage": self.stage, "waiting": torch.tensor(list(self.waiting), dtype=torch.long)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        self._enter(state["stage"])
        self.waiting = deque(state["waiting"].tolist())

    def _enter(self, stage: Tensor) -> None:
        self.stage, self.most = stage, self.size
        if self.group is not None:
            self.most = min(self.size, len({self.group[row] for row in stage.tolist()}))

    def _begin_pass(self, still_waiting: Collection[int] = ()) -> None:
        order = self.stage[torch.randperm(len(self.stage), generator=self.generator)].tolist()
        self.waiting.extend(row for row in order if row not in still_waiting)

    def _any(self) -> list[int]:
        return [self.waiting.popleft() for _ in range(min(self.size, len(self.waiting)))]

    def _distinct(self) -> list[int]:
        batch, seen, later = [], set(), []
        while len(batch) < self.most:
            if not self.waiting:
                # Where one group is too large for its share of the batches, its triplets must not pile up.
                self._begin_pass(set(later) if len(later) > len(self.stage) else ())
            row = self.waiting.popleft()
            if self.group[row] in seen:
                later.append(row)
            else:
                seen.add(self.group[row])
                batch.append(row)
        self.waiting.extendleft(reversed(later))
        return batch
