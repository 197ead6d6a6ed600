"""k-means over a pool of candidates."""

import torch
from torch import Tensor

from gate_lessons.search.exact import ExactPool
from gate_lessons.search.pool import Pool, rows_at_once
from gate_lessons.search.shards import Shards


def cluster(candidates: Pool | Tensor | Shards, clusters: int, seed: int) -> Tensor:
    """k-means on the unit sphere (faiss): the cluster [M] of each candidate. Once for a pool, never for an anchor.

    The centres are found on at most 256 candidates for each of them, drawn at random; then every candidate joins its
    nearest centre.

    Raises:
        ValueError: clusters outside 1…M, or what is wrong with the candidates (see `ExactPool`).
    """
    pool = candidates if isinstance(candidates, Pool) else ExactPool(candidates)
    if not 1 <= clusters <= len(pool):
        raise ValueError(f"clusters must lie between 1 and the pool's {len(pool)} sentences, not {clusters}")
    import faiss

    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[: 256 * clusters].sort().values
    sample = pool.rows(drawn)
    kmeans = faiss.Kmeans(pool.width, clusters, niter=20, seed=seed, spherical=True, min_points_per_centroid=1)
    kmeans.train(sample.cpu().numpy())
    blocks = torch.arange(len(pool)).split(rows_at_once(pool.width))
    nearest = [torch.from_numpy(kmeans.index.search(pool.rows(b).cpu().numpy(), 1)[1][:, 0]) for b in blocks]
    return torch.cat(nearest).to(sample.device)
