"""What a pool of candidates is, and what its vectors and its queries must be."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gate_lessons.search.shards import Shards

BLOCK_NUMBERS = 2**22  # of candidates, and of similarities, held at once: 16 MB each in float32
SHORTEST = 1e-30  # rows below have no direction in float32


@runtime_checkable
class Pool(Protocol):
    """Candidates, by number 0…M − 1.

    Attributes:
        width: d of the vectors.
    """

    width: int

    def __len__(self) -> int: ...

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k candidates most similar to each query.

        Args:
            queries: [Q, d], of any lengths but 0.
            k: 1…M.

        Returns:
            Numbers of the candidates [Q, k] (int64) and cosine similarities [Q, k] (float32), best first; the lower
            number first where similarities are equal.

        Raises:
            ValueError: queries of another width or type than the candidates', NaN, infinite or zero rows, k outside.
        """
        ...

    def rows(self, indices: Tensor) -> Tensor:
        """Vectors [n, d] (float32, of length 1) of the candidates with these numbers [n]."""
        ...


def rows_at_once(width: int) -> int:
    """How many rows of this width are held in memory at once."""
    return max(1, BLOCK_NUMBERS // width)


def best_first(similarities: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of lists [Q, n]: similarities and indices [Q, k], equal similarities by the lower index."""
    indices, order = indices.sort(dim=1)
    similarities, order = similarities.gather(1, order).sort(dim=1, descending=True, stable=True)
    return similarities[:, :k], indices.gather(1, order)[:, :k]


def unit(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Vectors [n, d] of these lengths [n] → the same of length 1, in float32."""
    return (vectors.float() / lengths.float()[:, None]).contiguous()


def row_lengths(name: str, vectors: Tensor | Shards) -> Tensor:
    """Lengths [M] of the rows in float64, which show at once what is wrong with a row.

    Raises:
        ValueError: not [M, d], no rows, integers; NaN, infinite or zero rows (the first of them are named).
    """
    shape = list(vectors.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} must be [rows, d] with at least one row, not {shape}")
    if not vectors.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating-point numbers, not {_type(vectors)}; use {name}.float()")
    step = rows_at_once(shape[1])
    blocks = (vectors[start : start + step] for start in range(0, shape[0], step))
    lengths = torch.cat([torch.linalg.vector_norm(b.detach(), dim=1, dtype=torch.float64) for b in blocks])
    if (bad := ~torch.isfinite(lengths.float())).any():
        raise ValueError(f"{name} holds NaN or infinite numbers in {_some(bad)}")
    if (bad := lengths < SHORTEST).any():
        raise ValueError(f"{name} holds zero vectors, whose cosine similarity is not defined, in {_some(bad)}")
    return lengths


def check_queries(queries: Tensor, vectors: Tensor | Shards, k: int) -> Tensor:
    """Lengths [Q] of queries that suit the candidates.

    Raises:
        ValueError: what is wrong with the queries (see `row_lengths`), or with k.
    """
    lengths = row_lengths("queries", queries)
    _check_alike(queries=queries, candidates=vectors)
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k must lie between 1 and the pool's {len(vectors)} sentences, not {k}")
    return lengths


def check_embeddings(**embeddings: Tensor) -> None:
    """Raise a ValueError unless all are rows with a direction, of one width and type; the message names the rows."""
    for name, rows in embeddings.items():
        row_lengths(name, rows)
    _check_alike(**embeddings)


def _check_alike(**embeddings: Tensor | Shards) -> None:
    if len({rows.shape[1] for rows in embeddings.values()}) > 1:
        shapes = ", ".join(f"{name} {list(rows.shape)}" for name, rows in embeddings.items())
        raise ValueError(f"dimensions differ: {shapes}")
    if len({rows.dtype for rows in embeddings.values()}) > 1:
        types = ", ".join(f"{name} {_type(rows)}" for name, rows in embeddings.items())
        raise ValueError(f"types of numbers differ: {types}; convert all to one, as with .float()")


def _type(vectors: Tensor | Shards) -> str:
    return str(vectors.dtype).removeprefix("torch.")


def _some(bad: Tensor, most: int = 5) -> str:
    rows = bad.nonzero()[:, 0].tolist()
    return f"{len(rows)} rows: {', '.join(map(str, rows[:most]))}{', …' if len(rows) > most else ''}"
