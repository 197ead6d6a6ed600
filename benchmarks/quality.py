"""`make evidence`: what training does to held-out questions, over five seeds, with intervals and the lexical baseline.

Writes `benchmarks/evidence/NAME.json`, which the lessons read and name. On the corpus nothing is chosen: every setting
is reported on the test split. For the real triplets, and for transfer to text that nobody wrote for us, a recipe is
chosen on dev; only the choice is reported on test.
"""

import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from benchmarks import mining_quality, shelves
from gate_lessons.curriculum import CURRICULA, ByQuantile, ByThreshold, Curriculum, Stage
from gate_lessons.data import load_sts
from gate_lessons.diagnostics import dynamics
from gate_lessons.encoder import LexicalBaseline, NGramEncoder
from gate_lessons.evaluation import Answers, HeldOut, Similarity, Task, compare, evaluate, load_task, summary
from gate_lessons.metrics import spearman
from gate_lessons.objectives import LOSSES
from gate_lessons.recipe import STRATEGIES, Recipe
from gate_lessons.trainer import train

EVIDENCE = Path(__file__).parent / "evidence"
SHARED = Path(__file__).parents[2] / "shared" / "data"
SEEDS, CHOOSING_SEEDS = range(5), range(3)
UNTRAINED = None  # in the place of a variant's settings


class AnyOrder(ByQuantile):
    """A control: stages of the same sizes, whose triplets have nothing to do with difficulty."""

    def __call__(self, difficulty: torch.Tensor, progress: float) -> Stage:
        return super().__call__(torch.rand(len(difficulty), generator=torch.Generator().manual_seed(0)), progress)


class HardestFirst(ByQuantile):
    """A control: the same stages from the other end."""

    def __call__(self, difficulty: torch.Tensor, progress: float) -> Stage:
        return super().__call__(-difficulty, progress)


# What a variant may name beside a recipe's own fields: a curriculum that has no name there.
OWN_CURRICULA: dict[str, Callable[[], Curriculum]] = {
    "any order": AnyOrder,
    "hardest first": HardestFirst,
    "threshold": lambda: ByThreshold(
        (0.9, 1.1, 1.5)
    ),  # near the terciles before training; the tutorial's select little
}
MIXTURES = ("hard:0.5+random:0.5", "hard:0.5+same_root:0.5", "random:1..0+hard:0..1")
EPOCH = 34  # steps of the default recipe on the corpus

# Each experiment: a control, named first, and what differs from it, at equal steps but where noted.
EXPERIMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "strategies": {"random": {"strategy": "random"}}
    | {name: {"strategy": name} for name in (*STRATEGIES, *MIXTURES) if name != "random"},
    "temperatures": {f"{t}": {"temperature": t} for t in (0.05, 0.02, 0.1, 0.15, 0.3, 1.0)}
    | {
        "learned": {"learnable_temperature": True},
        "from 0.15 to 0.05": {"temperature": 0.15, "final_temperature": 0.05},
        "from 0.05 to 0.15": {"final_temperature": 0.15},
    },
    "margins": {f"{m}": {"loss": "triplet", "margin": m} for m in (0.3, 0.0, 0.1, 0.6, 1.2)}
    | {"adaptive 0.5": {"loss": "adaptive_triplet", "margin": 0.5}},
    "losses": {name: {"loss": name} for name in LOSSES},
    "curricula": {"none": {}}
    | {name: {"curriculum": name} for name in CURRICULA if name not in ("none", "threshold")}
    | {name: {"own_curriculum": name} for name in OWN_CURRICULA},
    "strategies_and_curricula": {
        f"{strategy}, {curriculum}": {"strategy": strategy, "curriculum": curriculum}
        for strategy in ("random", "semi_hard", "hard")
        for curriculum in ("none", "quantile", "competence", "violation")
    },
    # Equal epochs: a batch of 16 takes four times the steps of one of 64, one of 256 a quarter, as do four accumulated.
    "batches": {f"{b}": {"batch_size": b} for b in (64, 16, 256)}
    | {
        "64, memory of 2048": {"memory": 2048},
        "64, four accumulated": {"accumulate": 4},
        "64, no duplicates": {"no_duplicates": True},
    },
    "clipping": {"1.0": {}, "0.1": {"clip": 0.1}, "none": {"clip": 1e9}},
    "mining_schedule": {
        "every epoch": {},
        "every tenth step": {"remine_every": 10},
        "every third epoch": {"remine_every": 3 * EPOCH},
        "once": {"remine_every": 10**6},
    },
    "negatives": {"1": {}, "2": {"negatives": 2}, "4": {"negatives": 4}},
    "augmentation": {"none": {}, "0.1": {"augment": 0.1}, "0.3": {"augment": 0.3}},
}
# What a recipe for other people's data is chosen from, on dev.
REAL_GRID = {"strategy": ("given", "random", "hard"), "temperature": (0.05, 0.15), "learning_rate": (0.01, 0.03, 0.1)}
TRANSFER_GRID = REAL_GRID | {"learning_rate": (0.003, 0.01, 0.03)}
REAL = "NLI and headline triplets (human-made, not part of the course)"
WIDTH, TRANSFER_WIDTH = 128, 512  # the course's own; and wide enough that chance in the first vectors costs little


def run(
    task: Task, settings: Mapping[str, Any] | None, seed: int, split: str, width: int
) -> tuple[Answers, dict[str, Any]]:
    """Train once, unless `UNTRAINED`; the answers on a split and the training's dynamics."""
    encoder, found = NGramEncoder(width=width, seed=seed).fit_idf(task.texts), {}
    if settings is not UNTRAINED:
        fields = {name: value for name, value in settings.items() if name != "own_curriculum"}
        curriculum = OWN_CURRICULA[settings["own_curriculum"]]() if "own_curriculum" in settings else None
        history = train(encoder, task.train, Recipe(**fields, seed=seed), curriculum=curriculum)
        found = dynamics(history) | {"steps": int(history["steps"].sum())}
    return ask(encoder, getattr(task, split)), found


def ask(encoder: Similarity, held_out: HeldOut | shelves.Retrieval) -> Answers:
    """Answers to either kind of held-out question."""
    return held_out.ask(encoder) if isinstance(held_out, shelves.Retrieval) else evaluate(encoder, held_out)


def run_all(
    task: Task, variants: Mapping[str, Mapping[str, Any] | None], split: str, width: int, seeds: Sequence[int] = SEEDS
) -> dict[str, list[tuple]]:
    """Every variant with every seed, two at a time."""
    jobs = list(itertools.product(variants, seeds))
    work = (delayed(run)(task, variants[name], seed, split, width) for name, seed in jobs)
    found = Parallel(n_jobs=2, return_as="generator")(work)
    results = dict(zip(jobs, tqdm(found, total=len(jobs), unit="run"), strict=True))
    return {name: [results[name, seed] for seed in seeds] for name in variants}


def measure(name: str, task: Task, variants: Mapping[str, Mapping[str, Any] | None], width: int = WIDTH) -> None:
    """Run an experiment on the test split and write its file: scores, differences from the control, baseline."""
    control = next(iter(variants))
    results = run_all(task, variants, "test", width)
    answers = {variant: [answer for answer, _ in runs] for variant, runs in results.items()}
    baseline = [ask(LexicalBaseline(task.texts), task.test)]
    content = {"data": task.name, "split": "test", "seeds": len(SEEDS), "control": control}
    content["baseline"] = summary(baseline)
    content["variants"] = {
        variant: {
            "settings": dict(variants[variant] or {}),
            "score": summary(runs),
            "spread_over_seeds": float(np.std([run.correct.mean() for run in runs])),
            "minus_control": compare(runs, answers[control]),
            "minus_baseline": compare(runs, baseline),
            "dynamics": {key: _mean([found[key] for _, found in results[variant]]) for key in results[variant][0][1]},
        }
        for variant, runs in answers.items()
    }
    write(name, content)


def choose(
    name: str, task: Task, grid: Mapping[str, Sequence[Any]], judge: Callable[[Answers], float], width: int = WIDTH
) -> dict[str, Any]:
    """The setting of a grid that `judge` finds best on dev, over seeds; all of them go into `NAME_dev.json`."""
    variants: dict[str, Any] = {"untrained": UNTRAINED}
    for values in itertools.product(*grid.values()):
        variants[", ".join(map(str, values))] = dict(zip(grid, values, strict=True))
    results = run_all(task, variants, "dev", width, CHOOSING_SEEDS)
    answers = {variant: [answer for answer, _ in runs] for variant, runs in results.items()}
    answers["lexical baseline"] = [evaluate(LexicalBaseline(task.texts), task.dev)]
    content = {"data": task.name, "split": "dev", "seeds": len(CHOOSING_SEEDS), "chosen by": judge.__doc__}
    content["variants"] = {
        variant: {
            "settings": variants.get(variant) or {},
            "score": summary(runs),
            "judged": float(np.mean([judge(answer) for answer in runs])),
        }
        for variant, runs in answers.items()
    }
    write(f"{name}_dev", content)
    trained = [variant for variant, settings in variants.items() if settings is not UNTRAINED]
    return variants[max(trained, key=lambda variant: content["variants"][variant]["judged"])]


def write(name: str, content: Mapping[str, Any]) -> None:
    """Write a file of evidence; intervals become [estimate, low, high]."""
    EVIDENCE.mkdir(exist_ok=True)
    text = json.dumps(_rounded(content), indent=1, ensure_ascii=False)
    (EVIDENCE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _mean(values: Sequence[Any]) -> Any:
    return values[0] if isinstance(values[0], str) else float(np.mean(values))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def real_triplets() -> None:
    """Triplets that other people made: the recipe chosen on their dev split, reported on their test split."""

    def accuracy(answers: Answers) -> float:
        """triplet accuracy"""
        return float(answers.correct.mean())

    task = load_task(str(SHARED / "triplets.jsonl"))
    task = replace(task, name=REAL)
    chosen = choose("real_triplets", task, REAL_GRID, accuracy)
    measure("real_triplets", task, {"random negatives": chosen | {"strategy": "random"}, "chosen on dev": chosen})


def transfer() -> None:
    """Training on the corpus alone, asked for scored pairs that other people made; triplets are the corpus's own.

    The dev pairs come from three sources, whose scores and similarities lie at different heights. A correlation over
    all of them rewards an encoder that tells the sources apart, so the judge looks within each.
    """
    corpus = load_task()
    dev, test = (load_sts(SHARED / "sts.jsonl", split) for split in ("dev", "test"))
    rows = [np.flatnonzero(dev["source"] == source) for source in dev["source"].unique()]

    def within_sources(answers: Answers) -> float:
        """Spearman within each source of the scored pairs, averaged over the sources"""
        return float(np.mean([spearman(answers.sts[part], answers.score[part]) for part in rows]))

    name = "trained on the corpus; triplets of the corpus, scored pairs of SemEval 2017 (dev) and STSb-mt (test)"
    task = Task(name, corpus.train, HeldOut(corpus.dev.triplets, dev), HeldOut(corpus.test.triplets, test))
    chosen = choose("transfer", task, TRANSFER_GRID, within_sources, TRANSFER_WIDTH)
    variants = {"untrained": UNTRAINED, "chosen on dev": chosen, "the course's recipe": {}}
    measure("transfer", task, variants, TRANSFER_WIDTH)


def real_triplets_strategies() -> None:
    """Every strategy on the triplets that other people made, the rest of the recipe being what was chosen on dev."""
    task = replace(load_task(str(SHARED / "triplets.jsonl")), name=REAL)
    names = [name for name in (*STRATEGIES, *MIXTURES) if name not in ("random", "category")]  # no topics there
    variants = {name: chosen_for_real_triplets() | {"strategy": name} for name in ("random", *names)}
    measure("real_triplets_strategies", task, variants)


def intents_strategies() -> None:
    """Every strategy on customers' questions, in the default recipe; `triplet_accuracy` is that of `Retrieval`."""
    names = [name for name in (*STRATEGIES, *MIXTURES) if name not in ("random", "category")]
    variants = {"random": {"strategy": "random"}, "untrained": UNTRAINED} | {name: {"strategy": name} for name in names}
    measure("intents_strategies", shelves.intents_task(SHARED), variants)


def chosen_for_real_triplets() -> dict[str, Any]:
    """The recipe that `real_triplets` chose, as its file has it."""
    content = json.loads((EVIDENCE / "real_triplets.json").read_text(encoding="utf-8"))
    return content["variants"]["chosen on dev"]["settings"]


def mining() -> None:
    """What mining on the corpus serves; nothing is trained on it, nothing chosen by it."""
    write("mining", mining_quality.corpus(SEEDS, WIDTH))


def mining_shared() -> None:
    """The same on other people's data."""
    write("mining_shared", mining_quality.shared(SHARED, SEEDS, WIDTH, chosen_for_real_triplets()))


OTHER_DATA = (real_triplets, transfer, real_triplets_strategies, intents_strategies, mining_shared)


def main(names: Sequence[str] = ()) -> None:
    """Run every experiment, or those named; where other people's data is absent, a line says what is skipped."""
    corpus = load_task()
    for name, variants in EXPERIMENTS.items():
        if not names or name in names:
            print(name)
            measure(name, corpus, variants)
    if not names or "mining" in names:
        print("mining")
        mining()
    if not SHARED.is_dir():
        print(f"skipped: no real triplets and scored pairs at {SHARED}")
        return
    for experiment in OTHER_DATA:
        if not names or experiment.__name__ in names:
            print(experiment.__name__)
            experiment()


if __name__ == "__main__":
    main(sys.argv[1:])
