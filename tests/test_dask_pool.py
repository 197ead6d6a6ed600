"""A search over real clusters: a scheduler and two worker processes each."""

import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from gate_lessons import miner, search
from gate_lessons.search import DaskPool, ExactPool, Pool, Shards, distributed

dask = pytest.importorskip("distributed")
dask_config = pytest.importorskip("dask").config

WIDTH, QUERIES = 12, 40
SIZES = (300, 3, 250, 81)  # the second has fewer rows than the neighbours asked for
K = 9


def _cluster(workers: int = 2):
    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    try:
        return dask.LocalCluster(**options)
    except AssertionError:  # Dask's thread was not there within ten seconds: seen once, on a busy machine
        return dask.LocalCluster(**options)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with _cluster() as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[torch.Tensor, Path]:
    """Candidates, many of them twice in different shards, and the folder of the shards."""
    rows = torch.randn(sum(SIZES), WIDTH, generator=torch.Generator().manual_seed(0)) * 3
    rows[303:403] = rows[150:250]
    rows[302], rows[-40:] = rows[10], rows[10]
    folder = tmp_path_factory.mktemp("shards")
    for number, part in enumerate(rows.split(SIZES)):
        np.save(folder / f"{number}.npy", part.numpy())
    return rows, folder


@pytest.fixture
def shards(corpus) -> Shards:
    return Shards(corpus[1])


@pytest.fixture
def pool(address, shards) -> Iterator[DaskPool]:
    with DaskPool(shards, address) as pool:
        yield pool


@pytest.fixture
def queries(corpus) -> torch.Tensor:
    drawn = torch.randn(QUERIES, WIDTH, generator=torch.Generator().manual_seed(1))
    drawn[:20] = corpus[0][140:160]
    drawn[20] = corpus[0][10]
    return drawn


def test_the_cluster_finds_what_one_machine_finds(pool, corpus, queries):
    assert isinstance(pool, Pool)
    assert (len(pool), pool.width) == (sum(SIZES), WIDTH)
    for k in (1, K, 60):
        expected = ExactPool(corpus[0]).nearest(queries, k)
        assert all(map(torch.equal, pool.nearest(queries, k), expected))
    # There were ties to break: one candidate 42 times, in all of the shards but one.
    assert expected[0][20, :42].tolist() == [10, 302, *range(sum(SIZES) - 40, sum(SIZES))]


def test_blocks_of_queries_change_nothing(monkeypatch, pool, queries):
    whole = pool.nearest(queries, K)
    sent = []

    def submit(pool: DaskPool, function, *arguments: object, as_before=DaskPool._submit):
        if not isinstance(arguments[0], dask.Future):
            sent.append(len(pickle.dumps(arguments)))
        return as_before(pool, function, *arguments)

    monkeypatch.setattr(distributed, "QUERY_NUMBERS", 7 * WIDTH)
    monkeypatch.setattr(DaskPool, "_submit", submit)
    assert all(map(torch.equal, pool.nearest(queries, K), whole))
    # Each block once, and not all queries with each (1,920 bytes).
    assert len(sent) == 6
    assert max(sent) < 4 * 7 * WIDTH + 500


def test_all_candidates_may_be_asked_for(pool, corpus, queries):
    everything = sum(SIZES)
    assert all(
        map(torch.equal, pool.nearest(queries[:3], everything), ExactPool(corpus[0]).nearest(queries[:3], everything))
    )


def test_workers_need_not_stand_where_we_do(monkeypatch, address, corpus, queries):
    monkeypatch.chdir(corpus[1])
    with DaskPool(Shards("."), address) as pool:
        assert all(map(torch.equal, pool.nearest(queries, K), ExactPool(corpus[0]).nearest(queries, K)))


def test_rows_are_those_of_one_machine(pool, corpus):
    indices = torch.tensor([633, 0, 302, 300, 0])
    assert torch.equal(pool.rows(indices), ExactPool(corpus[0]).rows(indices))


@pytest.mark.parametrize("strategy", ["hard", "semi_hard", "random", "cluster"])
def test_mining_over_the_cluster_is_mining_on_one_machine(pool, shards, corpus, queries, strategy):
    positives = queries + 0.3
    options = {"clusters": 3, "known_positives": [[i] for i in range(QUERIES)]}
    mined = [miner.mine(queries, positives, p, strategy, 4, **options) for p in (pool, ExactPool(corpus[0]))]
    for ours, theirs in zip(*(vars(m).values() for m in mined), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_clusters_are_those_of_one_machine(pool, corpus):
    assert torch.equal(search.cluster(pool, 5, 0), search.cluster(corpus[0], 5, 0))


def test_float16_shards_are_searched_as_they_are(address, tmp_path, corpus, queries):
    halves = corpus[0].half()
    for number, part in enumerate(halves.split(200)):
        np.save(tmp_path / f"{number}.npy", part.numpy())
    with DaskPool(Shards(tmp_path), address) as pool:
        assert all(map(torch.equal, pool.nearest(queries, K), ExactPool(halves.float()).nearest(queries, K)))


def test_a_file_that_was_written_anew_is_read_anew(address, tmp_path, corpus, queries):
    """Dask knows a task by its name, and keeps what it found while anybody holds it."""
    with_old = []
    try:
        for vectors in (corpus[0][:50], corpus[0][50:100]):
            np.save(tmp_path / "0.npy", vectors.numpy())
            with_old.append(DaskPool(Shards(tmp_path), address))
            assert all(map(torch.equal, with_old[-1].nearest(queries, 3), ExactPool(vectors).nearest(queries, 3)))
    finally:
        for pool in with_old:
            pool.close()


# ---------------------------------------------------------------------------------------- what gets lost


def _stall(started: str) -> None:
    """On a worker: searches say which process they are in, and never end."""

    def nearest(*arguments: object) -> None:
        Path(started).write_text(str(os.getpid()))
        Path(started).rename(f"{started}.whole")
        time.sleep(600)

    ExactPool.nearest = nearest


@contextmanager
def _stalled(
    folder: Path, shards: Shards, queries: torch.Tensor, workers: int = 1, **options: float
) -> Iterator[tuple]:
    """A cluster of its own in the middle of a search: one worker, whose process is named, is not going to answer."""
    with _cluster(workers) as cluster, DaskPool(shards, cluster.scheduler_address, **options) as pool:
        victim = next(iter(pool.client.scheduler_info()["workers"]))
        pool.client.run(_stall, str(folder / "started"), workers=[victim])
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(pool.nearest, queries, K)
            yield pool, cluster, _process_in(folder / "started.whole"), answer


def _process_in(file: Path) -> int:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, "no search began on the worker"
        time.sleep(0.02)
    return int(file.read_text())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_costs_time_and_no_results(tmp_path, shards, corpus, queries, workers):
    """Another goes on; or, with all that the only one had being lost, its successor does."""
    with _stalled(tmp_path, shards, queries, workers) as (_, _, process, answer):
        os.kill(process, signal.SIGKILL)
        assert all(map(torch.equal, answer.result(30), ExactPool(corpus[0]).nearest(queries, K)))


def test_a_shard_that_costs_more_workers_than_allowed_is_named(tmp_path, shards, queries):
    none = dask_config.set({"distributed.scheduler.allowed-failures": 0})
    with none, _stalled(tmp_path, shards, queries) as (_, _, process, answer):
        os.kill(process, signal.SIGKILL)
        with pytest.raises(ValueError, match=r"1 workers were lost while they searched shard .*\d\.npy; see their"):
            answer.result(30)


def test_a_search_that_all_workers_leave_ends(tmp_path, shards, queries):
    with _stalled(tmp_path, shards, queries, timeout=1) as (_, cluster, process, answer):
        cluster.scale(0)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(ValueError, match=r"the cluster tcp://.* has no workers"):
            answer.result(30)


def test_a_search_whose_scheduler_is_lost_ends(tmp_path, shards, queries):
    lost = r"the cluster tcp://.* was lost, or told to forget this search"
    with _stalled(tmp_path, shards, queries) as (pool, cluster, _, answer):
        cluster.close()
        with pytest.raises(ValueError, match=lost):
            answer.result(30)
        with pytest.raises(ValueError, match=lost):
            pool.nearest(queries, K)


# -------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("scheduler", ["tcp://127.0.0.1:9", "127.0.0.1"])
def test_a_scheduler_that_cannot_be_reached_is_named(shards, scheduler):
    begin = time.monotonic()
    with pytest.raises(ValueError, match=rf"^no Dask scheduler at '{scheduler}' .*start one with `dask scheduler`$"):
        DaskPool(shards, scheduler, timeout=1)
    assert time.monotonic() - begin < 5


def test_a_cluster_without_workers_is_named(shards):
    with _cluster(0) as cluster, pytest.raises(ValueError, match=r"the cluster tcp://.* has no workers; start some"):
        DaskPool(shards, cluster.scheduler_address, timeout=0.5)


def test_a_file_that_a_worker_cannot_read_is_named(address, tmp_path, corpus):
    np.save(tmp_path / "0.npy", corpus[0].numpy())
    shards = Shards(tmp_path)  # mapped here; gone by the time that a worker opens it
    (tmp_path / "0.npy").unlink()
    with pytest.raises(
        ValueError, match=rf"^worker on .*: shard {tmp_path}/0\.npy is missing; workers read .* by path"
    ):
        DaskPool(shards, address)


def test_a_file_that_is_another_on_the_worker_is_named(address, tmp_path, corpus):
    np.save(tmp_path / "0.npy", corpus[0].numpy())
    shards = Shards(tmp_path)
    (tmp_path / "0.npy").unlink()
    np.save(tmp_path / "0.npy", corpus[0][:50].numpy())
    with pytest.raises(ValueError, match=rf"0\.npy is \[50, {WIDTH}\] there, \[{sum(SIZES)}, {WIDTH}\] where"):
        DaskPool(shards, address)


def test_bad_rows_are_named_by_file_and_row(address, tmp_path, corpus):
    rows = corpus[0].clone()
    rows[[207, 211]] = torch.tensor([float("nan"), 0.0])[:, None]
    for number, part in enumerate(rows.split(200)):
        np.save(tmp_path / f"{number}.npy", part.numpy())
    with pytest.raises(ValueError, match=r"1\.npy: candidates holds NaN or infinite numbers in 1 rows: 7$"):
        DaskPool(Shards(tmp_path), address)


def test_queries_are_looked_at_before_they_are_sent(pool, queries):
    for bad, k, message in (
        (queries, 0, "k must lie between 1"),
        (queries[:, 1:], 1, r"dimensions differ: queries \[40, 11\]"),
        (queries.double(), 1, "types of numbers differ"),
        (queries * float("nan"), 1, "queries holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            pool.nearest(bad, k)


def test_dask_that_is_not_installed_is_asked_for(monkeypatch, shards):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"needs the extra `cluster`: pip install 'gate-lessons\[cluster\]'"):
        DaskPool(shards, "tcp://127.0.0.1:9")
