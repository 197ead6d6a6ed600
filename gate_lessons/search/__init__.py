"""Nearest neighbours by cosine similarity, from a few sentences in memory to millions in files.

A pool answers two questions, `nearest` and `rows`; who mines asks nothing else, so that a pool may lie in memory, on a
GPU, in files, behind an approximate index, or on a cluster of machines. There is never a [Q, M] matrix in memory.
"""

from torch import Tensor

from gate_lessons.search.clusters import cluster
from gate_lessons.search.distributed import DaskPool
from gate_lessons.search.exact import ExactPool
from gate_lessons.search.index import KINDS, IndexPool
from gate_lessons.search.pool import Pool, best_first, check_embeddings, rows_at_once
from gate_lessons.search.shards import Shards

__all__ = [
    "KINDS",
    "DaskPool",
    "ExactPool",
    "IndexPool",
    "Pool",
    "Shards",
    "best_first",
    "check_embeddings",
    "cluster",
    "make_pool",
    "rows_at_once",
    "top_k",
]

EXACT_UP_TO = 2**18
SHARE_OF_LISTS = 1 / 32  # that an index may look into before the exact search, of matrix products, is sooner


def top_k(queries: Tensor, candidates: Tensor | Shards, k: int) -> tuple[Tensor, Tensor]:
    """The k candidates most similar to each query, exactly: an `ExactPool` for one question (see there)."""
    return ExactPool(candidates).nearest(queries, k)


def make_pool(candidates: Pool | Tensor | Shards, search: str = "auto") -> Pool:
    """A pool over candidates, by the name of the search or by their number.

    Args:
        candidates: [M, d]; a pool is returned as it is.
        search: `exact`; `flat`, `ivf` or `hnsw`, see `IndexPool`; `auto` is exact up to 2^18 candidates (as many
            queries take about a minute on two cores), `ivf` beyond, and exact again where the vectors are so
            little clustered that an index would take longer.

    Raises:
        ValueError: an unknown name, or what is wrong with the candidates (see `ExactPool`).
    """
    if search not in (names := ("auto", "exact", *KINDS)):
        raise ValueError(f"unknown search {search!r}; choose from {', '.join(names)}")
    if isinstance(candidates, Pool):
        return candidates
    if search == "exact" or (search == "auto" and len(candidates) <= EXACT_UP_TO):
        return ExactPool(candidates)
    pool = IndexPool(candidates, "ivf" if search == "auto" else search)
    return pool.exact if search == "auto" and pool.effort > SHARE_OF_LISTS * pool.index.nlist else pool
