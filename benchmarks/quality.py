"""`make evidence`: what training does to held-out questions, over five seeds, with intervals and the lexical baseline.

Writes `benchmarks/evidence/NAME.json`, which the lessons read and name. Nothing is chosen here: every setting is
reported on the test split. `choose` picks the recipe for the real triplets on dev; only its choice is reported on test.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from gate_lessons.encoder import LexicalBaseline, make_encoder
from gate_lessons.evaluation import Answers, Task, compare, evaluate, load_task, summary
from gate_lessons.trainer import STRATEGIES, Recipe, dynamics, train

EVIDENCE = Path(__file__).parent / "evidence"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "triplets.jsonl"
SEEDS = range(5)

# Each experiment: a control, named first, and what differs from it. Equal epochs are equal steps but where noted.
EXPERIMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "strategies": {"random": {"strategy": "random"}}
    | {name: {"strategy": name} for name in STRATEGIES if name != "random"},
    "temperatures": {f"{t}": {"temperature": t} for t in (0.15, 0.02, 0.05, 0.1, 0.3, 1.0)}
    | {"learned": {"learnable_temperature": True}},
    "margins": {f"{m}": {"loss": "triplet", "margin": m} for m in (0.3, 0.0, 0.1, 0.6, 1.2)}
    | {"adaptive 0.5": {"loss": "adaptive_triplet", "margin": 0.5}},
    "losses": {
        name: {"loss": name} for name in ("multiple_negatives_ranking", "info_nce", "triplet", "adaptive_triplet")
    },
    # The curriculum takes fewer steps in its ten epochs; eight epochs without it are about as many.
    "curricula": {"none, equal steps": {"epochs": 8}, "none, equal epochs": {}, "quantile": {"curriculum": "quantile"}},
    "batches": {f"{b}": {"batch_size": b} for b in (64, 16, 256)},
    "clipping": {"1.0": {}, "0.1": {"clip": 0.1}, "none": {"clip": 1e9}},
    "mining_schedule": {"every epoch": {}, "every third epoch": {"remine_every": 3}, "once": {"remine_every": 10**6}},
    "negatives": {"1": {}, "2": {"negatives": 2}, "4": {"negatives": 4}},
}
GRID = {"strategy": ("given", "random", "hard"), "temperature": (0.1, 0.15, 0.3), "learning_rate": (0.02, 0.05)}


def run(task: Task, settings: Mapping[str, Any], seed: int, split: str) -> tuple[Answers, dict[str, Any]]:
    """Train once; the answers on a split and the training's dynamics."""
    encoder = make_encoder("ngram", task.texts, seed)
    history = train(encoder, task.train, Recipe(**settings, seed=seed))
    return evaluate(encoder, getattr(task, split)), dynamics(history) | {"steps": int(history["steps"].sum())}


def run_all(task: Task, variants: Mapping[str, Mapping[str, Any]], split: str) -> dict[str, list[tuple]]:
    """Every variant with every seed, two at a time."""
    jobs = list(itertools.product(variants, SEEDS))
    work = (delayed(run)(task, variants[name], seed, split) for name, seed in jobs)
    found = Parallel(n_jobs=2, return_as="generator")(work)
    results = dict(zip(jobs, tqdm(found, total=len(jobs), unit="run"), strict=True))
    return {name: [results[name, seed] for seed in SEEDS] for name in variants}


def measure(name: str, task: Task, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Run an experiment on the test split and write its file: scores, differences from the control, baseline."""
    control = next(iter(variants))
    results = run_all(task, variants, "test")
    answers = {variant: [answer for answer, _ in runs] for variant, runs in results.items()}
    baseline = [evaluate(LexicalBaseline(task.texts), task.test)]
    content = {"data": task.name, "split": "test", "seeds": len(SEEDS), "control": control}
    content["baseline"] = summary(baseline)
    content["variants"] = {
        variant: {
            "settings": dict(variants[variant]),
            "score": summary(runs),
            "spread_over_seeds": float(np.std([run.correct.mean() for run in runs])),
            "minus_control": compare(runs, answers[control]),
            "minus_baseline": compare(runs, baseline),
            "dynamics": {key: _mean([found[key] for _, found in results[variant]]) for key in results[variant][0][1]},
        }
        for variant, runs in answers.items()
    }
    write(name, content)


def choose(task: Task) -> dict[str, Any]:
    """The grid's setting with the highest triplet accuracy on dev, averaged over seeds."""
    variants = {
        str(values): dict(zip(GRID, values, strict=True)) | {"epochs": 4}
        for values in itertools.product(*GRID.values())
    }
    results = run_all(task, variants, "dev")
    accuracy = {name: np.mean([answer.correct.mean() for answer, _ in runs]) for name, runs in results.items()}
    return variants[max(accuracy, key=accuracy.get)]


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


def main() -> None:
    """Run every experiment; the real triplets are skipped, with a line that says so, where they are absent."""
    corpus = load_task()
    for name, variants in EXPERIMENTS.items():
        print(name)
        measure(name, corpus, variants)
    if not SHARED.is_file():
        print(f"skipped: no real triplets at {SHARED}")
        return
    print("real triplets")
    real = load_task(str(SHARED))
    real = Task("NLI and headline triplets (human-made, not part of the course)", real.train, real.dev, real.test)
    chosen = choose(real)
    variants = {"random negatives": chosen | {"strategy": "random"}, "chosen on dev": chosen}
    measure("real_triplets", real, variants)


if __name__ == "__main__":
    main()
