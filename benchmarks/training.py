"""How fast training is: beside sentence-transformers' trainer, with a memory, with and without diagnostics."""

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from transformers import PrinterCallback

from benchmarks.measure import Row, at_least, at_most, for_the_reader, seconds, wait
from benchmarks.models import static_model, triplets
from gate_lessons import losses
from gate_lessons.curriculum import AllAtOnce
from gate_lessons.diagnostics import Watch
from gate_lessons.encoder import Encoder, NGramEncoder, SentenceTransformerEncoder
from gate_lessons.evaluation import load_task
from gate_lessons.losses.ranking import MEMORY_BLOCK
from gate_lessons.recipe import Recipe
from gate_lessons.trainer import train

STATIC = Recipe(strategy="given", batch_size=128, learning_rate=0.03)
LEARNED_ALIKE = 0.1  # the peer's and our loss after training may differ by this share of what training took off
ENTRIES = 8192


def rows(device: str) -> Iterator[Row]:
    """Every comparison of training runs."""
    yield from _static_rows(device)
    yield from _memory_rows(device)
    yield from _diagnostics_rows(device)


# ---------------------------------------------------------------------------------------------- the peer's trainer


def _static_rows(device: str, trials: int = 5) -> Iterator[Row]:
    table = triplets()
    with tempfile.TemporaryDirectory() as scratch:
        model = static_model(Path(scratch) / "model")
        for trainer in (_train_ours, _train_theirs):
            trainer(model, table, 1, device)  # imports and first calls
        for epochs in (10, 1):
            runs = [[t(model, table, epochs, device) for t in (_train_ours, _train_theirs)] for _ in range(trials)]
            times, encoders = zip(*[zip(*run, strict=True) for run in runs], strict=True)
            learned = _check_alike(model, table, *encoders[0])
            ours, theirs = (epochs * len(table) / statistics.median(side) for side in zip(*times, strict=True))
            measured = f"{ours:,.0f}, it {theirs:,.0f}; {learned}"
            what = f"triplets a second, static encoder 16,000 × 256, batch 128, {epochs} × {len(table):,} triplets: "
            what += "times sentence-transformers' trainer"
            if epochs == 1:  # what is done once weighs more
                yield for_the_reader(what, ours / theirs, measured)
            else:
                yield at_least(what, ours / theirs, 5, measured)


def _train_ours(model: Path, table: pd.DataFrame, epochs: int, device: str) -> tuple[float, Encoder]:
    encoder, recipe = SentenceTransformerEncoder(model), Recipe(**(vars(STATIC) | {"epochs": epochs}))
    return seconds(lambda: train(encoder, table, recipe, device=device)), encoder


def _train_theirs(model: Path, table: pd.DataFrame, epochs: int, device: str) -> tuple[float, Encoder]:
    """The same weights, triplets, batch size, loss and optimizer; nothing logged, saved, reported or shown."""
    from datasets import Dataset

    encoder = SentenceTransformerEncoder(model)  # only as the place where the weights are, for `_loss`
    peer = encoder.model.to(device)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=STATIC.batch_size,
            learning_rate=STATIC.learning_rate,
            warmup_steps=STATIC.warmup,
            max_grad_norm=STATIC.clip,
            optim="adamw_torch_fused",
            weight_decay=0.0,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        trainer = SentenceTransformerTrainer(
            model=peer,
            args=arguments,
            train_dataset=Dataset.from_dict({c: list(table[c]) for c in ("anchor", "positive", "negative")}),
            loss=MultipleNegativesRankingLoss(peer, scale=1 / STATIC.temperature),
        )
        for callback in (PrinterCallback, trainer.model_card_callback_class):
            trainer.remove_callback(callback)
        spent = seconds(trainer.train)
    steps = epochs * -(-len(table) // STATIC.batch_size)
    if trainer.state.global_step != steps:
        raise RuntimeError(f"the peer took {trainer.state.global_step} steps where {steps} were to be compared")
    peer.cpu()
    return spent, encoder


def _check_alike(model: Path, table: pd.DataFrame, ours: Encoder, theirs: Encoder) -> str:
    """What both learned, in words; raise where one learned less: a speed that leaves work out is no speed."""
    start, *after = (_loss(encoder, table) for encoder in (SentenceTransformerEncoder(model), ours, theirs))
    if abs(after[0] - after[1]) > LEARNED_ALIKE * (start - min(after)):
        raise RuntimeError(
            f"the two trainers did not learn alike: a loss of {start:.3f} became {after[0]:.3f} here and "
            f"{after[1]:.3f} in sentence-transformers; find out which leaves work out before comparing their times"
        )
    return f"loss {start:.2f} → {after[0]:.3f}, it {after[1]:.3f}"


def _loss(encoder: Encoder, table: pd.DataFrame, rows: int = 1024) -> float:
    anchor, positive, negative = (encoder.encode(list(table[c][:rows])) for c in ("anchor", "positive", "negative"))
    return float(losses.multiple_negatives_ranking(anchor, torch.cat([positive, negative]), STATIC.temperature))


# ---------------------------------------------------------------------------------------------- cross-batch memory


class _Clock(AllAtOnce):
    """No curriculum, but a look at the clock after each step."""

    def __init__(self, at_step: Callable[[int], None] = lambda step: None) -> None:
        super().__init__()
        self.times: list[float] = []
        self.at_step = at_step

    def observe(self, violation_rate: float) -> None:
        wait()
        self.times.append(time.perf_counter())
        self.at_step(len(self.times))


def _memory_rows(device: str, trials: int = 5, batch: int = 256, steps: int = 64) -> Iterator[Row]:
    table = triplets(batch * steps)
    full = ENTRIES // (2 * batch)  # steps until the memory is full: a batch has a positive and a negative each
    medians: dict[int, list[float]] = {0: [], ENTRIES: []}
    for trial in range(trials + 1):
        for memory, found in medians.items():
            clock = _Clock()
            recipe = Recipe(strategy="given", epochs=1, batch_size=batch, memory=memory)
            train(NGramEncoder(width=256), table, recipe, curriculum=clock, device=device)
            times = [after - before for before, after in itertools.pairwise(clock.times[full:])]
            if trial:  # the first round warms up
                found.append(statistics.median(times))
    without, with_memory = (statistics.median(found) for found in medians.values())
    measured = f"{1000 * with_memory:.1f} ms, without {1000 * without:.1f} ms"
    what = "memory of 8,192 candidates, n-gram encoder, B=256 d=256: "
    yield at_most(f"{what}of the step's time without", with_memory / without, 1.7, measured)
    copies, size = _copies_of_the_memory(device)
    measured = f"allocations of its {size / 2**20:.0f} MiB or up to 10 % more"
    yield at_most(f"{what}copies of it made in a step", copies, 0, measured)


def _copies_of_the_memory(device: str, batch: int = 192, width: int = 256) -> tuple[int, int]:
    """Allocations of a step that could hold the memory, alone or with the batch's candidates; and the memory's bytes.

    At another batch size than the times: with 256 other things of a step have as many numbers as the memory.
    """
    from torch.profiler import ProfilerActivity, profile

    full = -(-ENTRIES // (2 * batch))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    profiler = profile(activities=activities, profile_memory=True)

    def watch_one_step(step: int) -> None:
        if step == full + 2:
            profiler.start()
        if step == full + 3:
            profiler.stop()

    recipe = Recipe(strategy="given", epochs=1, batch_size=batch, memory=ENTRIES)
    table = triplets(batch * (full + 4))
    train(NGramEncoder(width=width), table, recipe, curriculum=_Clock(watch_one_step), device=device)
    sizes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    least, most = 4 * ENTRIES * width, 4 * (ENTRIES + 4 * batch) * width
    product = 4 * batch * MEMORY_BLOCK
    if not any(product <= size < least for size in sizes):
        raise RuntimeError(
            "the profiler saw no product of the batch with a block of the memory, so it would see no copy of the "
            "memory either; look at what torch.profiler reports with profile_memory"
        )
    return sum(least <= size <= most for size in sizes), least


# ---------------------------------------------------------------------------------------------- diagnostics


class _Blind(Watch):
    """Sees nothing, and so costs nothing."""

    def see(self, loss: Tensor, *rest: Tensor) -> float:
        return 0.0

    def summary(self) -> dict[str, float]:
        return {"loss": 0.0}


def _diagnostics_rows(device: str, trials: int = 5) -> Iterator[Row]:
    task = load_task()
    shares, times = [], {Watch: [], _Blind: []}
    see = Watch.see
    inside = 0.0

    def timed(*arguments) -> float:
        nonlocal inside
        wait()
        start = time.perf_counter()
        found = see(*arguments)
        inside += time.perf_counter() - start
        return found

    for trial in range(trials + 1):
        for kind, found in times.items():
            encoder, inside = NGramEncoder().fit_idf(task.texts), 0.0
            with mock.patch("gate_lessons.trainer.Watch", kind), mock.patch.object(Watch, "see", timed):
                spent = seconds(lambda encoder=encoder: train(encoder, task.train, Recipe(), device=device))
            if trial:
                found.append(spent)
                if kind is Watch:
                    shares.append(inside / spent)
    seeing, blind = (statistics.median(found) for found in times.values())
    percent, measured = 100 * statistics.median(shares), f"of {seeing:.2f} s"
    yield at_most("History's diagnostics, default recipe: % of training time spent in them", percent, 5, measured)
    measured = f"{seeing:.2f} s, without {blind:.2f} s"
    yield for_the_reader("the same, by training without them: %", 100 * (1 - blind / seeing), measured)
