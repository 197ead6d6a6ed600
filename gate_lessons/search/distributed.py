"""The exact search over a cluster of machines, each of which looks through some of the shards (extra `cluster`)."""

import socket
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gate_lessons.search.exact import ExactPool
from gate_lessons.search.pool import best_first, check_queries, unit
from gate_lessons.search.shards import Shards

QUERY_NUMBERS = 2**21  # sent at once: 8 MB in float32; Dask warns from 10 MB on
RETRIES = 3  # of a task that fails, as where a network's file system stutters


class DaskPool:
    """Candidates in shards, searched by the workers of a running Dask cluster; the result is that of `ExactPool`.

    Each file is a task: its worker finds the k nearest of the file, and the lists are merged here as they come, equal
    similarities by the lower number. So have at least as many files as workers. Workers open the files themselves, by
    path: the folder must lie on a file system that all machines share, and `gate_lessons` must be installed on each. A
    worker that is lost costs time, since its tasks are done again by others; Dask gives a file up that has cost more
    than `distributed.scheduler.allowed-failures` workers.

    In memory are here the lengths of all candidates and a block of queries with its neighbours, on a worker an
    `ExactPool` for each of its files, whose vectors stay on disk. `rows` reads the files from here.

    A context manager: `close` lets the cluster forget what it holds for this pool.

    Attributes:
        width: d.

    Args:
        candidates: [M, d] on disk.
        scheduler: address of the cluster's scheduler, such as `tcp://10.0.0.1:8786`.
        timeout: seconds to wait for the scheduler, and for a first worker; after as long without a result, the search
            ends where there are no workers left.

    Raises:
        ValueError: no Dask here, no scheduler or no workers there, a file that a worker cannot read, rows that are NaN,
            infinite or zero (with the file and the first of its rows).
    """

    def __init__(self, candidates: Shards, scheduler: str, timeout: float = 30) -> None:
        self.vectors, self.width = candidates, candidates.shape[1]
        self.scheduler, self.timeout = scheduler, timeout
        self.client = _connect(scheduler, timeout)
        try:
            self._wait_for_a_worker()
            self.pools = [
                self._submit(_open, str(p.absolute()), a.shape)
                for p, a in zip(candidates.paths, candidates.arrays, strict=True)
            ]
            found = dict(self._results([self._submit(_lengths, pool) for pool in self.pools]))
        except BaseException:
            self.close()
            raise
        self.lengths = torch.cat([found[number] for number in sorted(found)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __enter__(self) -> "DaskPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.pools = []
        self.client.close()

    def rows(self, indices: Tensor) -> Tensor:
        return unit(self.vectors[indices], self.lengths[indices])

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        check_queries(queries, self.vectors, k)
        if self.client.status == "closed" or any(pool.cancelled() for pool in self.pools):
            raise self._lost()
        blocks = queries.detach().cpu().split(max(1, QUERY_NUMBERS // self.width))
        found = [self._nearest(block, k) for block in blocks]
        similarities, indices = (torch.cat(part).to(queries.device) for part in zip(*found, strict=True))
        return indices, similarities

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        # A task, not scattered data: what was scattered is gone with the worker that has it. In NumPy, since with a
        # part of a tensor the whole would travel.
        asked = self._submit(torch.tensor, queries.numpy())
        sizes, ends = [len(array) for array in self.vectors.arrays], self.vectors.ends.tolist()
        tasks = [
            self._submit(ExactPool.nearest, pool, asked, min(k, size))
            for pool, size in zip(self.pools, sizes, strict=True)
        ]
        best = torch.empty(len(queries), 0, dtype=torch.float32), torch.empty(len(queries), 0, dtype=torch.int64)
        for number, (indices, similarities) in self._results(tasks):
            both = (
                torch.cat([best[0], similarities], dim=1),
                torch.cat([best[1], indices + ends[number] - sizes[number]], dim=1),
            )
            best = best_first(*both, k)
        return best

    def _submit(self, function: Any, *arguments: Any) -> Any:
        # Each task has a name of its own: one made from its arguments would bring up what was found in a file before
        # somebody wrote it anew.
        return self.client.submit(function, *arguments, pure=False, retries=RETRIES)

    def _results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Number and result of each task, a task for a file, as they come; the cluster forgets it then."""
        number = {task: n for n, task in enumerate(tasks)}
        while number:
            for task in self._finished(list(number)):
                yield number[task], self._result(task, number.pop(task))
                task.release()

    def _finished(self, tasks: list[Any]) -> set[Any]:
        """The first that are."""
        from distributed import CancelledError, wait

        while True:
            try:
                with self.client.as_current():
                    return wait(tasks, timeout=self.timeout, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                self._wait_for_a_worker()
            except CancelledError:
                break
        raise self._lost()

    def _lost(self) -> ValueError:
        return ValueError(f"the cluster {self.scheduler} was lost, or told to forget this search; start it again")

    def _result(self, task: Any, number: int) -> Any:
        from distributed import KilledWorker

        try:
            return task.result()
        except KilledWorker as error:
            problem = f"{error.allowed_failures + 1} workers were lost while they searched"
            hint = "see their logs; most often a worker needs more memory"
        except ImportError as error:
            problem, hint = f"a worker cannot search ({error})", "install the same gate_lessons on every worker"
        raise ValueError(f"the cluster {self.scheduler}: {problem} shard {self.vectors.paths[number]}; {hint}")

    def _wait_for_a_worker(self) -> None:
        try:
            self.client.wait_for_workers(1, timeout=self.timeout)
        except TimeoutError:
            raise ValueError(
                f"the cluster {self.scheduler} has no workers; start some: dask worker {self.scheduler}"
            ) from None


def _connect(scheduler: str, timeout: float) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            "a search over a cluster needs the extra `cluster`: pip install 'gate-lessons[cluster]'"
        ) from None
    try:
        return Client(scheduler, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        problem = str(error)
    # Out of the except block, so that nothing keeps the client that failed, which would complain at exit.
    raise ValueError(f"no Dask scheduler at {scheduler!r} ({problem}); start one with `dask scheduler`")


def _open(path: str, shape: tuple[int, int]) -> ExactPool:
    """A shard on a worker."""
    try:
        vectors = Shards([path])
        if vectors.shape != shape:
            raise ValueError(f"shard {path} is {list(vectors.shape)} there, {list(shape)} where the search began")
    except ValueError as error:
        hint = "workers read the shards by path, from a file system that all machines share"
        raise ValueError(f"worker on {socket.gethostname()}: {error}; {hint}") from None
    try:
        return ExactPool(vectors)
    except ValueError as error:
        raise ValueError(f"shard {path}: {error}") from None


def _lengths(pool: ExactPool) -> Tensor:
    return pool.lengths
