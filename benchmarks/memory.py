"""How much memory training takes above the idle process, each batch size in a fresh process.

`python -m benchmarks.memory FOLDER TRIPLETS BATCH EPOCHS CHUNK DEVICE THREADS` is such a process: it prints MiB.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measure import Row, at_most, for_the_reader
from benchmarks.models import transformer, triplets
from gate_lessons.encoder import SentenceTransformerEncoder
from gate_lessons.recipe import Recipe
from gate_lessons.trainer import train

CHUNK, SMALL, LARGE = 256, 512, 8192
ROOT, STATUS = Path(__file__).parents[1], Path("/proc/self/status")


def rows(device: str) -> Iterator[Row]:
    """What a cached batch takes, sixteen times as large; and what it would take uncached."""
    if device == "cpu" and not STATUS.is_file():
        print(f"left out: a process's peak memory is read from {STATUS}, which only Linux has", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = transformer(Path(scratch))
        # Both batch sizes see the same texts, so that neither has longer ones; and both take a second step, which the
        # optimizer begins with numbers of its own.
        small = _in_a_process(model, LARGE, SMALL, 1, CHUNK, device)
        large = _in_a_process(model, LARGE, LARGE, 2, CHUNK, device)
        plain = _in_a_process(model, SMALL, SMALL, 1, 0, device)
    what = "cached loss, chunk 256, BERT of 4 layers 128 wide: peak memory at batch 8,192 over batch 512"
    yield at_most(what, large / small, 1.15, f"{large:.0f} MiB, {small:.0f} MiB above idle")
    untried = f"at batch 8,192 about {plain * LARGE / SMALL / 1024:.0f} GiB: not tried"
    yield for_the_reader("the same without chunks at batch 512: peak memory, MiB above idle", plain, untried)


def _in_a_process(model: Path, count: int, batch: int, epochs: int, chunk: int, device: str) -> float:
    arguments = [str(model), *map(str, (count, batch, epochs, chunk)), device, str(torch.get_num_threads())]
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"batch {batch}, chunk {chunk} failed on {device}:\n{done.stderr.strip()[-2000:]}")
    return float(done.stdout)


def peak_above_idle(model: Path, count: int, batch: int, epochs: int, chunk: int, device: str) -> float:
    """MiB that training on `count` triplets takes at its peak above what was there when it began."""
    import lightning_fabric  # noqa: F401  (its import is no part of the training's memory)

    encoder, table = SentenceTransformerEncoder(model), triplets(count)
    encoder.to(device)
    recipe = Recipe(strategy="given", epochs=epochs, batch_size=batch, chunk=chunk)
    idle = _start_peak(device)
    train(encoder, table, recipe, device=device)
    return (_peak(device) - idle) / 2**20


def _start_peak(device: str) -> int:
    """Bytes in use now; the peak is counted from here on."""
    if device == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # getrusage's ru_maxrss would begin with the parent's size, which a process inherits, and with the imports' peak.
    Path("/proc/self/clear_refs").write_text("5")
    return _bytes("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _bytes("VmHWM")


def _bytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    folder, *numbers, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(peak_above_idle(Path(folder), *map(int, numbers), device))
