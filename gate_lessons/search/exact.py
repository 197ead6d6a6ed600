"""The search that looks at every candidate, in blocks: there is never a [Q, M] matrix in memory."""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from gate_lessons.search.pool import best_first, check_queries, row_lengths, rows_at_once, unit
from gate_lessons.search.shards import Shards

WHOLE_NUMBERS = 2**20  # held at once where the similarities of all candidates are computed in float64
MANY, SMALL = 8, 2**16  # lists that hold an eighth of a pool, of at most so many, are not worth their while
PAIR_NUMBERS = 2**17  # held at once, in a processor's cache, where similarities are computed pair by pair in float64
FAISS_NUMBERS = 2**24  # of candidates that faiss looks at at once: it begins anew with each block, which takes time
LIST_NUMBERS = 2**22  # rough neighbours held at once
SPARE, SPARE_COARSE = 6, 12  # rough neighbours beyond k, so that rounding seldom asks for a second look
PROBE = 256  # queries that show whether bfloat16 suffices
GROUP = 16  # similarities of which only the best is looked at first
EPS32 = 2**-23

# Rough similarities [b, n], how far each may be from the truth, and the candidates.
Lists = tuple[Tensor, Tensor, Tensor]


class ExactPool:
    """Candidates of which every one is looked at.

    A first pass by matrix products, in the type that is fastest here, lists a few more than k; the similarities of
    those are computed again in float64, pair by pair, and rounded to float32. The products' error is bounded, so the
    pass can tell whether a candidate outside its list might belong among the k; where one might, it looks again,
    deeper. Hence the result depends on nothing but the vectors: not on blocks, threads, devices or the way that
    candidates are cut into shards; and similarities that are equal in float32 come by the lower number.

    Args:
        vectors: [M, d] floating-point numbers, or `Shards` of them on disk; rows of any lengths but 0. They are neither
            copied nor normalised in place; the search runs where the queries are.

    Raises:
        ValueError: not [M, d], no rows, integers, NaN, infinite or zero rows (the first of them are named).
    """

    def __init__(self, vectors: Tensor | Shards) -> None:
        self.vectors = vectors.detach() if isinstance(vectors, Tensor) else vectors
        self.lengths = row_lengths("candidates", self.vectors)
        self.width = self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.lengths)

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        lengths = check_queries(queries, self.vectors, k)
        search = _Search(self, queries.detach(), lengths, k)
        everyone = torch.arange(len(queries), device=queries.device)
        if _has_bfloat16_products(queries.device):
            # Where neighbours lie closer together than bfloat16 can tell, a few queries show it.
            doubts = search.fill(everyone[:PROBE], coarse=True)
            search.fill(everyone[PROBE:], coarse=doubts <= PROBE / 4)
        else:
            search.fill(everyone, coarse=False)
        return search.indices, search.similarities

    def rows(self, indices: Tensor) -> Tensor:
        indices = indices.to(self.lengths.device)
        return unit(self.vectors[indices], self.lengths[indices])

    def blocks(self, device: torch.device, rows: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Vectors of length 1 (float32), some at a time, with the number of the first candidate among them.

        The next block is written over the last.

        Args:
            device: where they are wanted.
            rows: in a block, if more than `rows_at_once`.
        """
        step = rows_at_once(self.width)
        rows = min(max(rows, step), len(self))
        block = torch.empty(rows, self.width, device=device, dtype=torch.float32)
        for start in range(0, len(self), rows):
            end = min(start + rows, len(self))
            for first in range(start, end, step):
                part = slice(first, min(first + step, end))
                lengths = self.lengths[part].to(device).float()[:, None]
                torch.div(self.vectors[part].to(device).float(), lengths, out=block[first - start : part.stop - start])
            yield start, block[: end - start]

    def similarities(self, queries: Tensor, lengths: Tensor, query: Tensor, row: Tensor) -> Tensor:
        """Cosine similarities [n] of pairs, a query [n] and a candidate [n]: float64 arithmetic, rounded to float32."""
        found = torch.empty(len(row), device=queries.device, dtype=torch.float32)
        for pairs in torch.arange(len(row), device=row.device).split(max(1, PAIR_NUMBERS // self.width)):
            q, c = query[pairs], row[pairs].to(self.lengths.device)
            candidates, scale = (x.to(queries.device) for x in (self.vectors[c], self.lengths[c]))
            # A product and a sum: a matrix product would add up in an order that depends on its shape.
            dot = (candidates.double() * queries[q].double()).sum(dim=1)
            found[pairs] = (dot / (scale * lengths[q])).float()
        return found

    def all_similarities(self, queries: Tensor, lengths: Tensor, query: Tensor) -> Tensor:
        """Cosine similarities [b, M] of some queries [b] and every candidate: those of `similarities`, but sooner."""
        found = torch.empty(len(query), len(self), device=queries.device, dtype=torch.float32)
        rounding = (self.width + 8) * 2**-52  # more than sums of the same products in another order differ by
        for start in range(0, len(self), step := rows_at_once(self.width)):
            part = slice(start, start + step)
            candidates, scale = (x[part].to(queries.device).double() for x in (self.vectors, self.lengths))
            near = queries[query].double() @ candidates.T / (lengths[query, None] * scale)
            found[:, part] = near.float()
            row, column = ((near - rounding).float() != (near + rounding).float()).nonzero(as_tuple=True)
            found[row, start + column] = self.similarities(queries, lengths, query[row], start + column)
        return found


class _Search:
    """One question to an exact pool, and what has been found so far."""

    def __init__(self, pool: ExactPool, queries: Tensor, lengths: Tensor, k: int) -> None:
        self.pool, self.queries, self.lengths, self.k = pool, queries, lengths, k
        self.indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        self.similarities = torch.empty(len(queries), k, device=queries.device, dtype=torch.float32)

    def fill(self, which: Tensor, coarse: bool, depth: int = 0) -> int:
        """Answer these queries from lists of rough neighbours, and from deeper ones where that leaves doubt: how often.

        Args:
            which: numbers of the queries.
            coarse: whether in bfloat16.
            depth: of the lists, if not a few more than k.
        """
        depth = min(depth or (2 * self.k + SPARE_COARSE if coarse else self.k + SPARE), len(self.pool))
        if depth * MANY >= len(self.pool) <= SMALL:
            self._fill_from_all(which)
            return 0
        doubts = 0
        for part in which.split(max(1, LIST_NUMBERS // depth)) if len(which) else ():
            rough, error, rows = self._rough(part, depth, coarse)
            most, least = rough + error, rough - error
            near = most >= least.topk(self.k).values[:, -1:]  # the others cannot be among the k
            exact = torch.full_like(rough, -torch.inf)
            query = part[:, None].expand_as(rows)[near]
            exact[near] = self.pool.similarities(self.queries, self.lengths, query, rows[near])
            self.similarities[part], self.indices[part] = best_first(exact, rows, self.k)
            doubt = most.amin(dim=1) >= self.similarities[part, -1]  # a candidate that is not listed may be as near
            if depth < len(self.pool) and doubt.any():
                self.fill(part[doubt], False, 0 if coarse else 4 * depth)
                doubts += int(doubt.sum())
        return doubts

    def _fill_from_all(self, which: Tensor) -> None:
        """Answer these queries without lists: where these are long, whole rows of similarities are sooner."""
        for part in which.split(max(1, WHOLE_NUMBERS // len(self.pool))) if len(which) else ():
            near = self.pool.all_similarities(self.queries, self.lengths, part)
            near, rows = near.sort(dim=1, descending=True, stable=True)
            self.similarities[part], self.indices[part] = near[:, : self.k], rows[:, : self.k]

    def _rough(self, which: Tensor, depth: int, coarse: bool) -> Lists:
        queries = unit(self.queries[which], self.lengths[which])
        products = _bfloat16_products if coarse else _float32_products
        at_once = 0 if coarse or queries.is_cuda else FAISS_NUMBERS // self.pool.width
        found = None
        for start, block in self.pool.blocks(queries.device, at_once):
            near, error, rows = products(queries, block, min(depth, len(block)))
            lists = near, error, rows + start
            found = lists if found is None else _joined(found, lists, depth)
        return found


def _float32_products(queries: Tensor, block: Tensor, k: int) -> Lists:
    if queries.device.type == "cpu":
        import faiss

        near, rows = map(torch.from_numpy, faiss.knn(queries.numpy(), block.numpy(), k, faiss.METRIC_INNER_PRODUCT))
    else:
        near, rows = _best_products(queries, block, k)
    highest = queries.device.type == "cpu" or torch.get_float32_matmul_precision() == "highest"
    # Twice the bound of Higham (2002, section 3.1) for d products and sums of rounded vectors; TensorFloat-32 and the
    # like, where somebody has allowed them, round the factors besides.
    error = (queries.shape[1] + 8) * EPS32 + (0 if highest else 2**-7)
    return near, torch.full_like(near, error), rows


def _bfloat16_products(queries: Tensor, block: Tensor, k: int) -> Lists:
    rounded = [vectors.bfloat16() for vectors in (queries, block)]
    moved = [_farthest(*pair) for pair in zip((queries, block), rounded, strict=True)]
    near, rows = _best_products(*rounded, k)
    # Cauchy-Schwarz: rounding changes a product by no more than it moved the vectors. The product is rounded, too.
    error = moved[0] + moved[1] + moved[0] * moved[1] + (queries.shape[1] + 8) * EPS32 + 2**-8 * near.abs()
    return near, error, rows


def _farthest(exact: Tensor, rounded: Tensor) -> Tensor:
    """The greatest distance of a row [n, d] from what it was rounded to."""
    parts = zip(*(vectors.split(max(1, PAIR_NUMBERS // exact.shape[1])) for vectors in (exact, rounded)), strict=True)
    return torch.stack([(one - other).norm(dim=1).max() for one, other in parts]).max()


def _best_products(queries: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best products [Q, k] in float32, in no order, and the rows of the block that they are of."""
    near = torch.empty(len(queries), k, device=queries.device, dtype=torch.float32)
    rows = torch.empty(len(queries), k, device=queries.device, dtype=torch.int64)
    at_once = min(len(queries), rows_at_once(len(block)))
    # One for all parts: the system would be slow to get back, piece by piece, what each new one takes.
    products = torch.empty(at_once, len(block), device=queries.device, dtype=queries.dtype)
    for start in range(0, len(queries), at_once):
        part = queries[start : start + at_once]
        best = _top(torch.mm(part, block.T, out=products[: len(part)]), k)
        near[start : start + at_once], rows[start : start + at_once] = best
    return near, rows


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`similarity.topk(k)` of [b, n] in no order, by way of the best of each group: they hold the k best of all."""
    groups = similarity.shape[1] // GROUP
    if groups < 2 * k:
        return similarity.topk(k, sorted=False)
    whole = groups * GROUP
    best = similarity[:, :whole].view(-1, GROUP, groups).amax(dim=1).topk(k, sorted=False).indices
    members = torch.arange(0, whole, groups, device=similarity.device)[:, None] + best[:, None]
    rest = torch.arange(whole, similarity.shape[1], device=similarity.device).expand(len(similarity), -1)
    members = torch.cat([members.flatten(1), rest], dim=1)
    near = similarity.gather(1, members).topk(k, sorted=False)
    return near.values, members.gather(1, near.indices)


def _joined(one: Lists, other: Lists, k: int) -> Lists:
    """Two lists of different candidates made one, of the k most similar."""
    both = [torch.cat(pair, dim=1) for pair in zip(one, other, strict=True)]
    best = both[0].topk(min(k, both[0].shape[1]), sorted=False).indices
    return tuple(part.gather(1, best) for part in both)


@cache
def _has_bfloat16_products(device: torch.device) -> bool:
    return device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
