"""Nearest neighbours by cosine similarity, exact and in blocks: never a [Q, M] matrix in memory."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_NUMBERS = 2**21  # similarities held at once: 8 MB in float32, and as much again for each mask or copy of them


def top_k(queries: Tensor, corpus: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar rows of `corpus` for each query, exactly.

    Args:
        queries: [Q, d].
        corpus: [M, d], M ≥ k, on the queries' device. On the CPU faiss searches, elsewhere torch in blocks.

    Returns:
        Indices [Q, k] into the corpus and cosine similarities [Q, k], best first.

    Raises:
        ValueError: widths that differ, NaN or infinite rows, k outside 1…M.
    """
    check_embeddings(queries=queries, corpus=corpus)
    if not 1 <= k <= len(corpus):
        raise ValueError(f"k must lie between 1 and the pool's {len(corpus)} sentences, not {k}")
    if queries.device.type == "cpu":
        import faiss

        similarity, index = faiss.knn(*(_unit(x).numpy() for x in (queries, corpus)), k, faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(index), torch.from_numpy(similarity)
    found = [block.topk(k) for _, block in similarity_blocks(queries, corpus)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def similarity_blocks(queries: Tensor, corpus: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cosine similarities a few queries at a time: (which queries, [rows, M])."""
    queries, corpus = _unit(queries), _unit(corpus)
    step = max(1, BLOCK_NUMBERS // len(corpus))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        yield rows, queries[rows] @ corpus.T


def cluster(corpus: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means on the unit sphere (faiss): the cluster [M] of each row. Once for a pool, never once for an anchor."""
    if not 1 <= clusters <= len(corpus):
        raise ValueError(f"clusters must lie between 1 and the pool's {len(corpus)} sentences, not {clusters}")
    import faiss

    rows = _unit(corpus).cpu().numpy()
    kmeans = faiss.Kmeans(rows.shape[1], clusters, niter=20, seed=seed, spherical=True, min_points_per_centroid=1)
    kmeans.train(rows)
    return torch.from_numpy(kmeans.index.search(rows, 1)[1][:, 0]).to(corpus.device)


def check_embeddings(**embeddings: Tensor) -> None:
    """Raise a ValueError unless all are finite [rows, d] with one d; the message names the rows."""
    for name, rows in embeddings.items():
        if rows.dim() != 2 or not len(rows):
            raise ValueError(f"{name} must be [rows, d] with at least one row, not {list(rows.shape)}")
        bad = (~torch.isfinite(rows).all(dim=1)).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(f"{name} holds NaN or infinite numbers in {len(bad)} rows: {_some(bad)}")
    if len({rows.shape[1] for rows in embeddings.values()}) > 1:
        shapes = ", ".join(f"{name} {list(rows.shape)}" for name, rows in embeddings.items())
        raise ValueError(f"dimensions differ: {shapes}")


def _some(rows: list[int], most: int = 5) -> str:
    return ", ".join(map(str, rows[:most])) + (", …" if len(rows) > most else "")


def _unit(rows: Tensor | np.ndarray) -> Tensor:
    return F.normalize(torch.as_tensor(rows).detach().float(), dim=1).contiguous()
