"""`make bench`: speed and memory, as ratios to a peer in the same run, medians over alternating trials, two threads.

Prints a table with the bound beside each figure, writes it to `benchmarks/RESULTS.md` with machine and versions, and
exits 1 where a bound is missed. `python -m benchmarks.speed losses training` measures only these and writes nothing.
"""

import importlib
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import THREADS, Row, at_least, at_most, below, medians
from gate_lessons.data import load_corpus
from gate_lessons.encoder import NGramEncoder

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
RESULTS = Path(__file__).parent / "RESULTS.md"
PACKAGES = ("torch", "sentence-transformers", "pytorch-metric-learning", "lightning-fabric", "numpy")
BUSY = 0.5
ON_A_GPU_TOO = ("losses", "training", "memory")
HOW = (
    "Written by `make bench`. A ratio to a peer is one of medians over trials in which both take turns in one process, "
    "after calls that warm up. What both compute is asserted equal before, or what both learned after. Times are wall "
    "time, a GPU being waited for. Memory is the peak above the process as it is when training begins, each batch size "
    "in a process of its own. Ratios count only from a machine that does nothing else."
)


def encoder_rows() -> Iterator[Row]:
    """Sentences a second, words met before (a second pass over a corpus) and for the first time."""
    corpus = [text for group in load_corpus() for text in group.sentences().values()]
    encoder = NGramEncoder()
    encoder.encode(["تسخين"])  # imports and first calls
    for name, texts in {"words not met before": corpus, "words met before": corpus * 5}.items():
        start = time.perf_counter()
        encoder.encode(texts)
        speed = len(texts) / (time.perf_counter() - start)
        yield at_least(f"encode, sentences a second, {name}", speed, 8000)


def import_rows() -> Iterator[Row]:
    """What importing costs, in fresh processes."""

    def python(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    ours, alone = medians([python("import torch, gate_lessons"), python("import torch")], trials=5)
    yield at_most("import torch and gate_lessons: of import torch", ours / alone, 1.2, f"{ours:.2f} s, {alone:.2f} s")


def lesson_rows() -> Iterator[Row]:
    """Seconds and peak memory of every lesson, its kernel included."""
    total = 0.0
    for notebook in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        spent, memory = watch_lesson(notebook)
        total += spent
        yield below(f"{notebook.stem}: seconds", spent, 60)
        yield below(f"{notebook.stem}: peak memory of its kernel, MiB", memory, 1024)
    yield below("all lessons: seconds", total, 240)


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


def _elsewhere(module: str) -> Callable[[str], Iterator[Row]]:
    """The rows of another module, whose peers take seconds to import: only when it is their turn."""
    return lambda device: importlib.import_module(f"benchmarks.{module}").rows(device)


ROWS: dict[str, Callable[[str], Iterator[Row]]] = {
    "losses": _elsewhere("losses"),
    "training": _elsewhere("training"),
    "memory": _elsewhere("memory"),
    "search": _elsewhere("search"),
    "mining": _elsewhere("mining"),
    "encoder": lambda device: encoder_rows(),
    "imports": lambda device: import_rows(),
    "lessons": lambda device: lesson_rows(),
}


def measure(names: Sequence[str], device: str) -> list[Row]:
    """All rows of these names, printed as they come, since some take a minute."""
    table, found = Table("what", "figure", "bound", "", "measured", title=_device_name(device)), []
    for name in names:
        for row in ROWS[name](device):
            print(f"{row.what}: {row.figure:.2f} {row.bound}{'' if row.holds else ' MISSED'}", file=sys.stderr)
            table.add_row(row.what, f"{row.figure:.2f}", row.bound, "" if row.holds else "missed", row.measured)
            found.append(row)
    Console(width=160).print(table)
    return found


def write_results(tables: dict[str, list[Row]], load: float) -> None:
    """`RESULTS.md`, whole or not at all; `load` is the machine's before the measurement."""
    lines = ["# Speed and memory", "", HOW, "", *_machine(load), ""]
    for device, rows in tables.items():
        lines += [f"## {_device_name(device)}", "", "| what | figure | bound | holds | measured |", "|---" * 5 + "|"]
        for row in rows:
            verdict = ("yes" if row.holds else "**no**") if row.bound else ""
            lines.append(f"| {row.what} | {row.figure:,.2f} | {row.bound} | {verdict} | {row.measured} |")
        lines.append("")
    if "cuda" not in tables:
        lines += ["No GPU was there: nothing in this file was measured on one.", ""]
    working = RESULTS.with_suffix(".part")
    working.write_text("\n".join(lines), encoding="utf-8")
    working.replace(RESULTS)


def _machine(load: float) -> list[str]:
    memory = psutil.virtual_memory().total / 2**30
    system = _line_of(Path("/etc/os-release"), "PRETTY_NAME=", platform.system()).strip('"')
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"- {date.today()}, load average {load:.1f} when it began",
        f"- {_processor()}, {psutil.cpu_count()} cores, {THREADS} threads used, {memory:.0f} GiB RAM",
        f"- {system}, {platform.system()} {platform.release()}",
        f"- Python {platform.python_version()}, {packages}",
    ]


def _processor() -> str:
    return _line_of(Path("/proc/cpuinfo"), "model name", platform.processor()).lstrip("\t: ")


def _line_of(path: Path, start: str, otherwise: str) -> str:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.removeprefix(start) for line in lines if line.startswith(start)), otherwise)


def _device_name(device: str) -> str:
    return f"On the GPU, {torch.cuda.get_device_name()}" if device == "cuda" else "On the CPU"


def main(rows: Annotated[list[str] | None, typer.Argument(help=f"From {', '.join(ROWS)}; all.")] = None) -> None:
    """Measure everything, or the rows named, print the tables, and fail where a bound is missed."""
    if unknown := [name for name in rows or () if name not in ROWS]:
        raise typer.BadParameter(f"unknown rows {unknown[0]!r}; choose from {', '.join(ROWS)}")
    load = psutil.getloadavg()[0]
    if load > BUSY:
        print(f"other processes are busy (load {load:.1f}): times of {THREADS} threads say little", file=sys.stderr)
    torch.set_num_threads(THREADS)
    chosen = rows or list(ROWS)
    tables = {"cpu": measure(chosen, "cpu")}
    on_gpu = [name for name in chosen if name in ON_A_GPU_TOO]
    if torch.cuda.is_available() and on_gpu:
        tables["cuda"] = measure(on_gpu, "cuda")
    if rows:
        print(f"{RESULTS.name} was left as it is: it is written when all rows are measured", file=sys.stderr)
    else:
        write_results(tables, load)
    raise typer.Exit(any(not row.holds for table in tables.values() for row in table))


if __name__ == "__main__":
    typer.run(main)
