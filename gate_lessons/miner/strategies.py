"""What each strategy proposes for an anchor, and which of it it prefers. In between, `miner` filters.

Two steps keep mining far from a [Q, M] matrix. A strategy *proposes* a list of candidates for each anchor; then, of
those that the filter leaves, it says how much it *prefers* each, and how much it could at most prefer a candidate that
is not on the list. Where that bound lies above what would be taken, the miner asks for a longer list.
"""

import torch
from torch import Tensor

from gate_lessons.miner.hardness import semi_hard_band, within_relative_margin
from gate_lessons.miner.proposals import NUMBERS, Classes, Proposals, Task
from gate_lessons.search import ExactPool, best_first

NEVER = float("-inf")
SPARE = 8  # candidates in the first list beyond those asked for, since the filter takes some
POSITION, ORDER, TURN = range(3)  # what the streams of random numbers decide
CUTOFF, LIMIT, BATCH = 0.5, 1.4, 256  # of Wu et al. (2017): two distances, and the size of a large batch
SHARPNESS, OFFSET, NEAREST = 50.0, 0.0, 100  # of Zhou et al. (2022): a and b, and how many of the nearest take part
ROUNDING = 1e-6  # inner products of features below are 0
PERCENTAGE, DISTANCE = 0.05, 0.05  # of Moreira et al. (2024): the relative and the absolute margin


class Strategy:
    """One way to choose negatives.

    Attributes:
        needs: arguments of `mine` that it cannot do without.
        ranks: whether its lists have an order, so that `range_min`, `range_max` and `sampling_strategy` mean something.
    """

    needs: tuple[str, ...] = ()
    ranks = False

    def depth(self, task: Task) -> int:
        """How long the first list is; in each class, where it has classes."""
        raise NotImplementedError

    def columns(self, task: Task, depth: int) -> int:
        """How many candidates an anchor's list of this depth has at most."""
        return depth

    def propose(self, task: Task, rows: Tensor, depth: int) -> Proposals:
        """Lists of this depth for the anchors `rows` [n]."""
        raise NotImplementedError

    def prefer(self, found: Proposals) -> tuple[Tensor, Tensor]:
        """Preference [n, K], −∞ for what it does not want; a bound [n] for all that is not on the list."""
        raise NotImplementedError


class Random(Strategy):
    """Any candidate, each as likely: the control that every other strategy is compared with."""

    def classes(self, task: Task) -> Classes:
        return task.everything

    def depth(self, task: Task) -> int:
        return task.k // len(self.classes(task)) + SPARE

    def columns(self, task: Task, depth: int) -> int:
        return 2 * depth * len(self.classes(task))

    def propose(self, task: Task, rows: Tensor, depth: int) -> Proposals:
        """Members of each class in random order: all where there are few, else as many draws as `depth`."""
        classes = self.classes(task)
        all_of_it = classes.size <= 2 * depth
        width = torch.where(all_of_it, classes.size, depth)
        label = torch.repeat_interleave(width)
        column = torch.arange(len(label), device=label.device)
        draw = (task.random(POSITION, rows, column) * classes.size[label]).long()
        place = torch.where(all_of_it[label], column - (width.cumsum(0) - width)[label], draw)
        indices = classes.order[classes.start[label] + place]
        # What was drawn twice has one number twice, and lies side by side after sorting.
        order = (label + task.random(ORDER, rows, indices)).argsort(dim=1)
        indices = indices.gather(1, order)
        indices[:, 1:][indices[:, 1:] == indices[:, :-1]] = -1
        return Proposals(task, rows, indices, bool(all_of_it.all()), label=label)

    def prefer(self, found: Proposals) -> tuple[Tensor, Tensor]:
        """The classes in turn, in an order drawn for each anchor: the first of each, then the second of each …"""
        task, classes, label = found.task, self.classes(found.task), found.label
        allowed, own = found.allowed, torch.zeros(len(found.rows), len(classes), dtype=torch.bool, device=label.device)
        if classes.anchors is not None:
            own = classes.names == classes.anchors[found.rows, None]
            allowed = allowed & ~own[:, label]
        width = label.bincount(minlength=len(classes))
        end = width.cumsum(0)
        so_far = torch.nn.functional.pad(allowed.cumsum(dim=1), (1, 0))
        turn = so_far[:, 1:] - 1 - so_far[:, (end - width)[label]]
        noise = task.random(TURN, found.rows, torch.arange(len(classes), device=label.device))
        preference = (-turn - noise[:, label]).masked_fill(~allowed, NEVER)
        following = -(so_far[:, end] - so_far[:, end - width]) - noise
        bound = following.masked_fill(own | (width == classes.size), NEVER).amax(dim=1)
        return preference, bound


class Category(Random):
    """Another category than the anchor's, each category as likely, then any sentence in it."""

    needs = ("category",)

    def classes(self, task: Task) -> Classes:
        return task.categories


class Cluster(Random):
    """The most similar candidate of each k-means cluster in turn, starting anywhere: hard, but diverse."""

    def classes(self, task: Task) -> Classes:
        return task.pieces

    def propose(self, task: Task, rows: Tensor, depth: int) -> Proposals:
        classes = self.classes(task)
        lists, similarities = [], []
        for members in classes.order.split(classes.size.tolist()):
            piece = ExactPool(task.pool.rows(members).to(rows.device))
            indices, similarity = piece.nearest(task.anchors[rows], min(depth, len(members)))
            lists.append(members[indices])
            similarities.append(similarity)
        label = torch.repeat_interleave(classes.size.clamp_max(depth))
        found = torch.cat(similarities, dim=1)
        return Proposals(task, rows, torch.cat(lists, dim=1), len(label) == len(task.pool), found=found, label=label)


class DistanceWeighted(Random):
    """Distances of all sizes alike, among candidates drawn at random (Wu et al. 2017).

    Distances of points on a sphere crowd around √2, so that a random negative is nearly always there. Here a candidate
    counts with the inverse of the density of its distance, min(λ, 1/q(D)), where q(D) ∝ Dᵈ⁻²·(1 − D²/4)^((d−3)/2); all
    below a distance of 0.5 count alike (their variance would be high), and none from 1.4 up (their loss would be 0).
    The paper draws from its batch, and so does this: from some 256 candidates drawn for each anchor.
    """

    def depth(self, task: Task) -> int:
        return max(BATCH, 2 * task.k)

    def prefer(self, found: Proposals) -> tuple[Tensor, Tensor]:
        d = found.task.pool.width
        square = (2 - 2 * found.similarity.double()).clamp(CUTOFF**2, 4 - 1e-9)
        weight = (2 - d) / 2 * square.log() - (d - 3) / 2 * (1 - square / 4).log()
        preference = _gumbel(found, weight).masked_fill(~found.allowed | (square >= LIMIT**2), NEVER)
        # Any list will do that has enough; the lowest finite number is below every preference.
        return preference, torch.full_like(preference[:, 0], NEVER if found.whole else torch.finfo(torch.float64).min)


class Hard(Strategy):
    """The candidates most similar to the anchor."""

    ranks = True
    window: int | None = None

    def end(self, task: Task) -> int | None:
        """The rank from which on candidates are not looked at: the one asked for, or what a draw needs."""
        window = self.window or (10 * task.k if task.sampling_strategy == "random" else None)
        if task.range_max is not None or window is None:
            return task.range_max
        return task.range_min + max(window, task.k)

    def depth(self, task: Task) -> int:
        return (self.end(task) or task.range_min + task.k) + SPARE

    def propose(self, task: Task, rows: Tensor, depth: int) -> Proposals:
        depth = min(depth, len(task.pool))
        indices, found = task.pool.nearest(task.anchors[rows], depth)
        return Proposals(task, rows, indices, depth == len(task.pool), value=found, found=found)

    def wanted(self, found: Proposals) -> Tensor:
        """[n, K] what the strategy may take."""
        return found.indices >= 0

    def lowest(self, found: Proposals) -> Tensor | float:
        """The value [n, 1] below which nothing is wanted."""
        return NEVER if found.task.min_score is None else found.task.min_score

    def prefer(self, found: Proposals) -> tuple[Tensor, Tensor]:
        task, end = found.task, self.end(found.task)
        taken = found.allowed & self.wanted(found)
        ended = (found.value[:, -1:] < self.lowest(found))[:, 0] | found.whole
        if end is not None:
            rank = found.eligible.cumsum(dim=1)
            taken = taken & (rank <= end)
            ended = ended | (rank[:, -1] >= end)
        taken = taken & (taken.cumsum(dim=1) > task.range_min)
        preference, bound = self.order(found)
        return preference.masked_fill(~taken, NEVER), torch.where(ended, NEVER, bound)

    def order(self, found: Proposals) -> tuple[Tensor, float]:
        """Preference [n, K] or [1, K] within the window, and a bound for what lies beyond the list."""
        if found.task.sampling_strategy == "random":
            return found.task.random(ORDER, found.rows, found.indices), 1.0
        place = torch.arange(found.indices.shape[1], device=found.indices.device)
        return -place[None].double(), float(-len(place))


class SemiHard(Hard):
    """Further than the positive but inside the margin, the most similar first (Schroff et al. 2015)."""

    def wanted(self, found: Proposals) -> Tensor:
        return semi_hard_band(found.positive, found.similarity, found.task.margin)

    def lowest(self, found: Proposals) -> Tensor:
        return (found.positive - found.task.margin).clamp_min(super().lowest(found))


class PositiveAware(Hard):
    """The most similar below a share of the positive's similarity (Moreira et al. 2024, NV-Retriever): 95 %."""

    def wanted(self, found: Proposals) -> Tensor:
        given = found.task.relative_margin
        return within_relative_margin(found.positive, found.similarity, PERCENTAGE if given is None else given)


class PositiveAwareAbsolute(Hard):
    """The most similar that are at least 0.05 less similar than the positive (Moreira et al. 2024, NV-Retriever)."""

    def wanted(self, found: Proposals) -> Tensor:
        given = found.task.absolute_margin
        return found.similarity <= found.positive - (DISTANCE if given is None else given)


class Ambiguous(Hard):
    """About as similar as the positive: drawn with p ∝ exp(−a·(s(a,n) − s(a,p) − b)²) (Zhou et al. 2022, SimANS).

    As in the paper only the nearest take part, 100 where no `range_max` is given; without replacement. The paper's a
    belongs to inner products; here it is 50, a bell of standard deviation 0.1 in cosine similarity; b is 0.
    """

    window = NEAREST

    def order(self, found: Proposals) -> tuple[Tensor, float]:
        gap = found.similarity.double() - found.positive - OFFSET
        return _gumbel(found, -SHARPNESS * gap.square()), float("inf")


class Lexical(Hard):
    """The most alike by features that the caller gives: the largest inner products, as long as they are above 0.

    Without order by similarity, `min_score` and the margins filter all the same.
    """

    needs = ("features",)

    def propose(self, task: Task, rows: Tensor, depth: int) -> Proposals:
        depth, found = min(depth, len(task.pool)), []
        ours, theirs = task.features
        for part in rows.split(max(1, NUMBERS // len(task.pool))):
            value = torch.from_numpy((ours[part.cpu().numpy()] @ theirs).toarray()).to(rows.device)
            found.append(_largest(self.compared(task, part, value), depth))
        value, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Proposals(task, rows, indices, depth == len(task.pool), value=value)

    def compared(self, task: Task, rows: Tensor, value: Tensor) -> Tensor:
        """The inner products [n, M] as far as the strategy looks at them."""
        return value

    def wanted(self, found: Proposals) -> Tensor:
        return found.value > ROUNDING

    def lowest(self, found: Proposals) -> float:
        return ROUNDING


class SameRoot(Lexical):
    """Words of the anchor's roots, but not its words: كتب، كاتب، مكتبة. With features from `features.same_root`."""


class DialectTwin(Lexical):
    """Words of the anchor in a sentence of another dialect: alike on the surface. With `features.lexical`."""

    needs = ("features", "variety")

    def compared(self, task: Task, rows: Tensor, value: Tensor) -> Tensor:
        own, theirs = task.variety
        return value.masked_fill_(own[rows, None] == theirs, NEVER)


STRATEGIES: dict[str, Strategy] = {
    "random": Random(),
    "hard": Hard(),
    "semi_hard": SemiHard(),
    "cluster": Cluster(),
    "category": Category(),
    "distance_weighted": DistanceWeighted(),
    "positive_aware": PositiveAware(),
    "positive_aware_absolute": PositiveAwareAbsolute(),
    "ambiguous": Ambiguous(),
    "lexical": Lexical(),
    "same_root": SameRoot(),
    "dialect_twin": DialectTwin(),
}


def _gumbel(found: Proposals, log_weight: Tensor) -> Tensor:
    """The largest are a draw by weight, without replacement (Efraimidis and Spirakis 2006; Kool et al. 2019)."""
    return log_weight - (-found.task.random(ORDER, found.rows, found.indices).log()).log()


def _largest(value: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers [n, k] of each row, and where they stand; equal ones by the lower place."""
    least = value.topk(k, dim=1).values[:, -1:]
    tie = value == least
    above = value > least
    missing = k - above.sum(dim=1, keepdim=True)
    place = (above | (tie & (tie.cumsum(dim=1) <= missing))).nonzero()[:, 1].view(-1, k)
    return best_first(value.gather(1, place), place, k)
