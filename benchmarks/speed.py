"""`make bench`: speed and memory, as ratios to a peer in the same run, medians over alternating trials, two threads.

Prints a table with the bound beside each figure and exits 1 where a bound is missed.
"""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from gate_lessons import losses
from gate_lessons.data import load_corpus
from gate_lessons.encoder import NGramEncoder

THREADS = 2
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
Row = tuple[str, float, str, bool]  # what, figure, bound, whether it holds


def ratio(ours: Callable[[], object], peers: Callable[[], object], trials: int = 15) -> float:
    """Median time of `ours` over median time of `peers`, taken in turn, so that both meet the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for trial in range(trials + 2):
        for function, found in zip((ours, peers), times, strict=True):
            start = time.perf_counter()
            function()
            if trial >= 2:  # the first two warm up
                found.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def step(loss: Callable[..., Tensor], *embeddings: Tensor) -> Callable[[], None]:
    """Forward and backward of a loss, gradients at every embedding."""

    def run() -> None:
        leaves = [e.detach().requires_grad_() for e in embeddings]
        loss(*leaves).backward()

    return run


def looped_info_nce(anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float = 0.05) -> Tensor:
    """InfoNCE the founding tutorial's way: a Python loop over the batch, exp before log."""
    rows = []
    for i in range(len(anchor)):
        s_p = F.cosine_similarity(anchor[i], positive[i], dim=0) / temperature
        s_n = F.cosine_similarity(anchor[i : i + 1].expand(negatives.shape[1], -1), negatives[i], dim=1) / temperature
        rows.append(-torch.log(s_p.exp() / (s_p.exp() + s_n.exp().sum())))
    return torch.stack(rows).mean()


def loss_rows() -> Iterator[Row]:
    """The losses against the tutorial's loop and sentence-transformers."""
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(shape, generator=generator) for shape in ((256, 384), (256, 384), (256, 16, 384))]
    torch.testing.assert_close(losses.info_nce(*batch), looped_info_nce(*batch))
    faster = 1 / ratio(step(losses.info_nce, *batch), step(looped_info_nce, *batch))
    yield "InfoNCE, B=256 N=16 d=384: times faster than the tutorial's loop", faster, "≥ 8", faster >= 8

    anchor, positive = (torch.randn(1024, 768, generator=generator) for _ in range(2))
    peer = MultipleNegativesRankingLoss(SentenceTransformer(modules=[torch.nn.Identity()], device="cpu"), scale=20.0)

    def peers(a: Tensor, p: Tensor) -> Tensor:
        return peer.compute_loss_from_embeddings([a, p], None)

    torch.testing.assert_close(losses.multiple_negatives_ranking(anchor, positive), peers(anchor, positive))
    slower = ratio(step(losses.multiple_negatives_ranking, anchor, positive), step(peers, anchor, positive))
    yield "multiple negatives ranking, B=1024 d=768: of sentence-transformers' time", slower, "≤ 1.1", slower <= 1.1


def encoder_rows() -> Iterator[Row]:
    """Sentences a second, words met before (a second pass over a corpus) and for the first time."""
    corpus = [text for group in load_corpus() for text in group.sentences().values()]
    encoder = NGramEncoder()
    encoder.encode(["تسخين"])  # imports and first calls
    for name, texts in {"words not met before": corpus, "words met before": corpus * 5}.items():
        start = time.perf_counter()
        encoder.encode(texts)
        speed = len(texts) / (time.perf_counter() - start)
        yield f"encode, sentences a second, {name}", speed, "≥ 8000", speed >= 8000


def import_rows() -> Iterator[Row]:
    """What importing costs, in fresh processes."""

    def python(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    cost = ratio(python("import torch, gate_lessons"), python("import torch"), trials=5)
    yield "import torch and gate_lessons: of import torch", cost, "≤ 1.2", cost <= 1.2


def lesson_rows() -> Iterator[Row]:
    """Seconds and peak memory of every lesson, its kernel included."""
    total = 0.0
    for notebook in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        seconds, memory = watch_lesson(notebook)
        total += seconds
        yield f"{notebook.stem}: seconds", seconds, "< 60", seconds < 60
        yield f"{notebook.stem}: peak memory of its kernel, MiB", memory, "< 1024", memory < 1024
    yield "all lessons: seconds", total, "< 240", total < 240


def watch_lesson(notebook: Path) -> tuple[float, float]:
    """Execute a lesson in a process of its own; wall seconds and the kernel's peak resident MiB."""
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--stdout", str(notebook)]
    start = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0.0
    reader = threading.Thread(target=running.communicate)
    reader.start()
    while reader.is_alive():
        peak = max([peak, *_kernels_memory(running.pid)])
        reader.join(0.05)
    if running.returncode:
        raise RuntimeError(f"{notebook.name} failed; run `make course` to see where")
    return time.perf_counter() - start, peak / 2**20


def _kernels_memory(pid: int) -> list[int]:
    found = []
    try:
        for child in psutil.Process(pid).children(recursive=True):
            found.append(child.memory_info().rss)
    except psutil.NoSuchProcess:  # it ended while we looked
        pass
    return found


def main() -> None:
    """Measure everything, print the table, and fail where a bound is missed."""
    torch.set_num_threads(THREADS)
    table, missed = Table("what", "figure", "bound", ""), 0
    for rows in (loss_rows, encoder_rows, import_rows, lesson_rows):
        for what, figure, bound, holds in rows():
            table.add_row(what, f"{figure:.2f}", bound, "" if holds else "missed")
            missed += not holds
    Console(width=120).print(table)
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
