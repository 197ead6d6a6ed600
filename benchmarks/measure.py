"""What measurements of speed and memory share: a row of the table, times taken in turn, memory seen from outside."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

THREADS = 2
ROOT = Path(__file__).parents[1]


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        what: is measured.
        figure: what came out.
        bound: in words, nothing where the figure is there to be read only.
        holds: whether the figure keeps to the bound.
        measured: what the figure was made from.
    """

    what: str
    figure: float
    bound: str
    holds: bool
    measured: str = ""


def at_most(what: str, figure: float, limit: float, measured: str = "") -> Row:
    return Row(what, figure, f"≤ {limit:g}", figure <= limit, measured)


def at_least(what: str, figure: float, limit: float, measured: str = "") -> Row:
    return Row(what, figure, f"≥ {limit:g}", figure >= limit, measured)


def below(what: str, figure: float, limit: float, measured: str = "") -> Row:
    return Row(what, figure, f"< {limit:g}", figure < limit, measured)


def for_the_reader(what: str, figure: float, measured: str = "") -> Row:
    """A figure without a bound."""
    return Row(what, figure, "", True, measured)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes, what it left to a GPU included."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Until the GPU has done what it was given, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def medians(functions: Sequence[Callable[[], object]], trials: int, warmup: int = 2) -> list[float]:
    """Median seconds of each function, all of them called in turn, so that they meet the same machine."""
    rounds = [[seconds(function) for function in functions] for _ in range(warmup + trials)]
    return [statistics.median(times) for times in zip(*rounds[warmup:], strict=True)]


def against(ours: float, peers: float, peer: str) -> str:
    """Two times of one trial in words."""
    return f"{1000 * ours:.1f} ms, {peer} {1000 * peers:.1f} ms"


def peak_above_idle(module: str, *arguments: str) -> tuple[float, str]:
    """MiB of the peak of a process's own memory above what it had before its job began; and in words how it was seen.

    Args:
        module: run as `python -m module arguments`, which must call `when_told`.
    """
    command = [sys.executable, "-m", module, *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    child.stdout.readline()  # all is there that the job needs
    idle = peak = _own_memory(child.pid)
    child.stdin.write("go\n")
    child.stdin.close()
    while child.poll() is None:
        peak = max(peak, _own_memory(child.pid))
        time.sleep(0.002)
    if child.returncode:
        raise RuntimeError(f"the job failed; run {' '.join(command)}, and press Enter")
    return peak - idle, f"idle {idle:.0f} MiB, inputs included; RssAnon, which leaves mapped pages out"


def when_told(job: Callable[[], object]) -> None:
    """Do the job, with the threads that a measurement has, when `peak_above_idle` asks for it."""
    torch.set_num_threads(THREADS)
    print("ready", flush=True)
    sys.stdin.readline()
    job()


def _own_memory(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
