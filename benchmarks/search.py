"""How fast, exact and small the searches are that mining asks, beside faiss and scikit-learn.

`python -m benchmarks.search JOB FOLDER` is a process whose memory is watched: see `measure.peak_above_idle`.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from benchmarks.measure import (
    Row,
    against,
    at_least,
    at_most,
    for_the_reader,
    medians,
    peak_above_idle,
    seconds,
    when_told,
)
from gate_lessons.search import ExactPool, cluster, exact, top_k
from gate_lessons.search.index import IndexPool
from gate_lessons.search.shards import Shards

QUERIES, MANY, MORE, K = 10_000, 100_000, 1_000_000, 10
CENTRES, SPREAD = 10_000, 0.5  # of the mixture: centres are standard normal, vectors lie about them with this deviation
LIMIT, CLUSTERS, ITERATIONS = 200, 100, 20


def rows(device: str) -> Iterator[Row]:
    """Every comparison of searches; what both sides find is asserted equal before times are taken."""
    if device != "cpu":
        return
    yield from _exact()
    yield from _k_means()
    yield from _approximate()
    with tempfile.TemporaryDirectory() as scratch:
        write_shards(Path(scratch))
        for job, what in (("exact", "10,000 × 100,000 d=256"), ("mapped", "10,000 × 1,000,000 d=128 in mapped shards")):
            peak, measured = peak_above_idle("benchmarks.search", job, scratch)
            yield at_most(f"exact search, {what}: MiB above idle", peak, LIMIT, measured)
        peak, measured = peak_above_idle("benchmarks.search", "index", scratch)
        of_which = f"{MORE * 128 * 4 / 2**20:.0f} of them are the index's copy; {measured}"
        yield for_the_reader("making an IVF index of 1,000,000 d=128 in mapped shards: MiB above idle", peak, of_which)


def _exact() -> Iterator[Row]:
    queries, corpus = normal(QUERIES, 256, seed=0), normal(MANY, 256, seed=1)
    pool, index = ExactPool(corpus), faiss.IndexFlatIP(256)
    index.add(corpus.numpy())
    similarity, _ = index.search(queries.numpy(), K)
    torch.testing.assert_close(pool.nearest(queries, K)[1], torch.from_numpy(similarity), atol=1e-6, rtol=0)
    calls = [lambda: pool.nearest(queries, K), lambda: index.search(queries.numpy(), K)]
    ours, theirs = medians(calls, trials=3, warmup=0)
    what = "exact search, 10,000 × 100,000 d=256, top-10: "
    yield at_most(f"{what}of faiss IndexFlatIP's time", ours / theirs, 1.1, against(ours, theirs, "it"))
    checks = seconds(lambda: ExactPool(corpus))
    yield for_the_reader(
        f"{what}checking the candidates, of the search's time", checks / ours, f"{1000 * checks:.0f} ms"
    )
    with float32_only():
        ours, theirs = medians(calls, trials=3, warmup=0)
    measured = against(ours, theirs, "it")
    yield at_most(f"{what}of its time without bfloat16 products", ours / theirs, 1.1, measured)


def _k_means() -> Iterator[Row]:
    corpus = mixture(MANY, 256, seed=1, centres=1000)
    labels = [np.empty(0)] * 2

    def ours() -> None:
        labels[0] = cluster(corpus, CLUSTERS, seed=0).numpy()

    def theirs() -> None:
        labels[1] = KMeans(CLUSTERS, n_init=1, max_iter=ITERATIONS, random_state=0).fit(corpus.numpy()).labels_

    times = seconds(ours), seconds(theirs)
    what = "k-means, 100,000 × 256, k=100, at most 20 iterations: of scikit-learn's "
    yield at_most(f"{what}time", times[0] / times[1], 0.2, against(*times, "it"))
    inertia = [squared_distances(corpus, torch.from_numpy(found).long()) for found in labels]
    measured = "squared distances of unit vectors to their cluster's mean: {:.0f}, {:.0f}".format(*inertia)
    yield at_most(f"{what}inertia", inertia[0] / inertia[1], 1.02, measured)


def _approximate() -> Iterator[Row]:
    what = "IVF, 10,000 × 1,000,000 d=128, top-10"
    clustered = f"{what}, 10,000 clusters, spread {SPREAD}"
    queries, pool, built = _indexed(lambda count, seed: mixture(count, 128, seed, CENTRES))
    exact, truth = _timed(pool.exact.nearest, queries)
    spent, found = _timed(pool.nearest, queries)
    looked = f"{pool.effort} of {pool.index.nlist} lists, chosen by the pool"
    yield at_least(f"{clustered}: recall", shared(found, truth), 0.95, looked)
    yield at_most(f"{clustered}: of the exact time", spent / exact, 0.25, against(spent, exact, "exact"))
    yield for_the_reader(f"{clustered}: making the index, seconds", built)
    effort = pool.effort
    queries, pool, _ = _indexed(lambda count, seed: normal(count, 128, seed))
    queries = queries[: QUERIES // 10]  # a minute and a half otherwise
    exact, truth = _timed(pool.exact.nearest, queries)
    spent, found = _timed(pool.nearest, queries)
    looked = f"{pool.effort} of {pool.index.nlist} lists, chosen by the pool"
    yield for_the_reader(f"{what}, no clusters, 1,000 queries: recall", shared(found, truth), looked)
    yield for_the_reader(
        f"{what}, no clusters, 1,000 queries: of the exact time", spent / exact, against(spent, exact, "exact")
    )
    pool.effort = effort
    recall = shared(_timed(pool.nearest, queries)[1], truth)
    yield for_the_reader(f"{what}, no clusters, as many lists as with clusters: recall", recall, f"{effort} lists")


def _indexed(draw: Callable[[int, int], Tensor]) -> tuple[Tensor, IndexPool, float]:
    """Queries, candidates behind an index, and the seconds that it took to make."""
    corpus = draw(MORE, 1)
    start = time.perf_counter()
    pool = IndexPool(corpus, "ivf")
    return draw(QUERIES, 0), pool, time.perf_counter() - start


def _timed(nearest: Callable[[Tensor, int], tuple[Tensor, Tensor]], queries: Tensor) -> tuple[float, Tensor]:
    start = time.perf_counter()
    indices, _ = nearest(queries, K)
    return time.perf_counter() - start, indices


def shared(found: Tensor, truth: Tensor) -> float:
    """Share of the true neighbours [Q, k] among those found [Q, k]."""
    return float((truth[:, :, None] == found[:, None]).any(dim=2).float().mean())


def normal(count: int, width: int, seed: int) -> Tensor:
    """Unit vectors [count, width] of every direction alike."""
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def mixture(count: int, width: int, seed: int, centres: int) -> Tensor:
    """Unit vectors [count, width] about centres that are the same for every seed."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(centres, width, generator=torch.Generator().manual_seed(99))
    vectors = torch.randn(count, width, generator=generator).mul_(SPREAD)
    return F.normalize(vectors.add_(middle[torch.randint(centres, (count,), generator=generator)]))


def squared_distances(vectors: Tensor, labels: Tensor) -> float:
    """k-means' inertia about the clusters' means, whoever found the clusters."""
    count = labels.bincount(minlength=CLUSTERS).clamp_min(1)[:, None]
    means = torch.zeros(CLUSTERS, vectors.shape[1]).index_add_(0, labels, vectors) / count
    return float((vectors - means[labels]).double().square().sum())


@contextmanager
def float32_only() -> Iterator[None]:
    """As on a processor that does not multiply in bfloat16."""
    there, exact._has_bfloat16_products = exact._has_bfloat16_products, lambda device: False
    try:
        yield
    finally:
        exact._has_bfloat16_products = there


def write_shards(folder: Path) -> None:
    """A million vectors in ten files."""
    for number in range(10):
        np.save(folder / f"{number}.npy", normal(MORE // 10, 128, seed=1 + number).numpy())


def _job(job: str, folder: str) -> Callable[[], object]:
    """A search to be watched, everything that a first one loads having been loaded."""
    width = 256 if job == "exact" else 128
    queries = normal(QUERIES, width, seed=0)
    vectors = normal(MANY, width, seed=1) if job == "exact" else Shards(folder)
    top_k(queries[:300], normal(3000, width, seed=2), K)
    if job == "index":
        return lambda: IndexPool(vectors)
    return lambda: top_k(queries, vectors, K)


if __name__ == "__main__":
    when_told(_job(*sys.argv[1:]))
