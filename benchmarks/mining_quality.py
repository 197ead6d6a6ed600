"""What mining serves, held against what the data knows: false negatives, hardness, diversity, ranks, filters.

Called by `benchmarks.quality`. Nothing is trained on what is found here and nothing is chosen by it, so it looks at the
training splits, which is what people mine from. Every number is averaged over seeds: of the encoder's first vectors, of
its training and of what strategies draw. Intervals are over anchors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from benchmarks.shelves import (
    CONTRADICTION,
    FALSE,
    ITSELF,
    KNOWN,
    LIBRARY,
    RELATIONS,
    Shelf,
    corpus_shelf,
    intents_shelf,
    intents_task,
    triplets_shelf,
)
from gate_lessons import miner
from gate_lessons.encoder import Encoder, NGramEncoder
from gate_lessons.evaluation import Task, load_task
from gate_lessons.metrics import Interval
from gate_lessons.recipe import Recipe
from gate_lessons.trainer import train

K, MARGIN, RESAMPLES = 5, 0.1, 2000
# The first and the last rank of each point of a curve: one by one at the top, bins where a single rank says little.
RANKS = [(rank, rank) for rank in range(1, 11)] + [(11, 15), (16, 20), (21, 30), (31, 50), (51, 75), (76, 100)]

# A name → the strategy and what else `mine` is told.
VARIANTS: dict[str, dict[str, Any]] = {name: {"strategy": name} for name in miner.STRATEGIES} | {
    "hard, ranks 10 to 30": {"strategy": "hard", "range_min": 10, "range_max": 30},
    "hard, sampled from the top 10": {"strategy": "hard", "range_max": 10, "sampling_strategy": "random"},
    "hard:0.5+random:0.5": {"strategy": "hard:0.5+random:0.5"},
    "hard:0.5+same_root:0.5": {"strategy": "hard:0.5+same_root:0.5"},
}
# A name → what the filter is told (the relations it knows) and asked for. All serve the hardest that are left.
TOLD: dict[str, tuple[int, ...]] = {"no filter": (), "same text": (ITSELF,), "+ known positive": (ITSELF, KNOWN)}
PAIR = TOLD["+ known positive"]
FILTERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = (
    {name: (told, {}) for name, told in TOLD.items()}
    | {f"+ relative margin {r}": (PAIR, {"relative_margin": r}) for r in (0.0, 0.05, 0.1, 0.2)}
    | {f"+ absolute margin {m}": (PAIR, {"absolute_margin": m}) for m in (0.05, 0.1)}
    | {f"+ max_score {s}": (PAIR, {"max_score": s}) for s in (0.7, 0.8, 0.9)}
    | {f"+ range_min {n}": (PAIR, {"range_min": n}) for n in (5, 10, 20)}
    | {"+ group (the truth)": (FALSE, {})}
)


@dataclass(frozen=True)
class Found:
    """What one mining served: [Q, k] relations (−1 where nothing was), candidates, difficulties and s(a,n) − s(a,p)."""

    relation: np.ndarray
    indices: np.ndarray
    difficulty: np.ndarray


def mine(shelf: Shelf, embedded: Sequence[torch.Tensor], known: Sequence[int], seed: int, k: int = K, **how) -> Found:
    """Mine without a fallback: what a strategy cannot give is missing, so that no rate is that of the fallback."""
    needed = [name for name in miner.parse(how["strategy"]) if name in shelf.features]
    given = (
        dict(zip(("anchor_features", "candidate_features"), shelf.features[needed[0]], strict=True)) if needed else {}
    )
    generator = torch.Generator().manual_seed(seed)
    fixed = {"num_negatives": k, "margin": MARGIN, "fallback": "none", "generator": generator}
    m = miner.mine(*embedded, **how, **fixed, **given, **shelf.labels, **shelf.told(known))
    indices = m.indices.numpy()
    relation = np.where(indices < 0, -1, np.take_along_axis(shelf.relation, indices.clip(0), axis=1))
    return Found(relation, indices, miner.difficulty(m.positive_similarity[:, None], m.similarities).numpy())


# ---------------------------------------------------------------------------------------------- rates


def share(hit: np.ndarray, served: np.ndarray, seed: int = 0) -> Interval | None:
    """Share of what was served, averaged over seeds, with its 95 % interval over anchors; None where nothing was.

    Args:
        hit, served: [seeds, Q, n] booleans, where `hit` is true only where `served` is.
    """
    hits, all_of_it = (np.asarray(x, float).sum(axis=(0, 2)) for x in (hit, served))
    if not all_of_it.sum():
        return None
    draws = np.random.default_rng(seed).integers(len(hits), size=(RESAMPLES, len(hits)))
    resampled = hits[draws].sum(axis=1) / np.maximum(all_of_it[draws].sum(axis=1), 1)
    return Interval(float(hits.sum() / all_of_it.sum()), *map(float, np.percentile(resampled, [2.5, 97.5])))


def described(found: Sequence[Found], topic: np.ndarray | None = None) -> dict[str, Any]:
    """What one way of mining served, over seeds: truth, hardness, diversity, shortfall."""
    relation = np.stack([one.relation for one in found])
    served, false = relation >= 0, np.isin(relation, FALSE)
    content: dict[str, Any] = {
        "false_negatives": share(false, served),
        "spread_over_seeds": _spread(false, served),
        "contradiction": share(relation == CONTRADICTION, served),
        "relations": {name: _mean(relation[served] == place) for place, name in enumerate(RELATIONS)},
    }
    difficulty = np.stack([one.difficulty for one in found])[served]
    hard, easy = difficulty >= 1, difficulty < 1 - MARGIN
    content |= {"difficulty": _mean(difficulty), "easy": _mean(easy), "semi_hard": _mean(~hard & ~easy)}
    content |= {"hard": _mean(hard)}
    content |= {name: _mean(values) for name, values in _diversity(found, topic).items()}
    return content | {"shortfall": _mean(~served)}


def _diversity(found: Sequence[Found], topic: np.ndarray | None) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for one in found:
        served = one.indices[one.indices >= 0]
        if not len(served):
            continue
        times = np.bincount(served)
        row = {"distinct": np.count_nonzero(times) / len(served), "most_served": times.max()}
        if topic is not None:
            rows = [set(topic[indices[indices >= 0]]) for indices in one.indices]
            row["topics_per_anchor"] = np.mean([len(topics) for topics in rows if topics])
            shares = np.unique(topic[served], return_counts=True)[1] / len(served)
            row["topic_entropy"] = -np.sum(shares * np.log2(shares))
        for name, value in row.items():
            values.setdefault(name, []).append(float(value))
    return values


def by_rank(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The false-negative rate over rank, from minings of the first hundred."""
    relation = np.stack([one.relation for one in found])
    points = []
    for first, last in RANKS:
        part = relation[:, :, first - 1 : last]
        served, false = part >= 0, np.isin(part, FALSE)
        points.append({"ranks": [first, last], "false_negatives": share(false, served)})
        points[-1] |= {"contradiction": share(part == CONTRADICTION, served)}
        points[-1] |= {"shortfall": _mean(~served)}
    return points


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if np.size(values) else None


def _spread(hit: np.ndarray, served: np.ndarray) -> float | None:
    each = [h.sum() / s.sum() for h, s in zip(hit, served, strict=True) if s.any()]
    return float(np.std(each)) if each else None


# ---------------------------------------------------------------------------------------------- experiments


def corpus(seeds: Sequence[int], width: int) -> dict[str, Any]:
    """The course's corpus, whose groups say of every sentence what it is to every anchor."""
    task = load_task()
    about = {
        "data": "corpus",
        "truth": "a false negative is a paraphrase, a dialect rendering or the entailed sentence of the anchor's group",
        "told": "the filter knows the anchor's text and one positive, but for the rows of `filters` that say otherwise",
    }
    content = about | {"split": "train"} | measured(corpus_shelf("train"), task, seeds, width, {})
    # The trained encoder has learned from the groups that it mines here. `unseen` holds groups that it has not.
    return content | {"unseen": {"split": "test"} | measured(corpus_shelf("test"), task, seeds, width, {})}


def shared(folder: Path, seeds: Sequence[int], width: int, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Other people's sentences: NLI and headline triplets, trained with a recipe that was chosen on dev; intents."""
    task = load_task(str(folder / "triplets.jsonl"))
    about = {
        "data": "NLI and headline triplets with the NLI pairs of the same training split (not part of the course)",
        "split": "train",
        "truth": "a false negative is a sentence that the data calls entailed by the anchor or a paraphrase of it: the "
        "data knows one for nearly every anchor, and nothing of other anchors' sentences, so this is a lower bound",
        "told": "the anchor's text and that positive, so that nearly nothing is left to be false; in `…, positive not "
        "told` the text alone, so that the positive itself is the false negative (margins still use its similarity)",
    }
    found = {"triplets": about | measured(triplets_shelf(task, folder), task, seeds, width, recipe, untold=True)}
    questions = intents_task(folder)
    about = {
        "data": f"customers' questions of 77 intents, {LIBRARY} of each on the shelf (not part of the course)",
        "split": "train",
        "truth": "a false negative is a question of the anchor's intent; `near intent` is a question of one of the "
        "three intents that are nearest by spelling",
        "told": "the anchor's text and one question of its intent; training knows the intents",
    }
    return found | {"intents": about | measured(intents_shelf(questions, folder), questions, seeds, width, {})}


def measured(
    shelf: Shelf, task: Task, seeds: Sequence[int], width: int, recipe: Mapping[str, Any], untold: bool = False
) -> dict[str, Any]:
    """Every strategy, rank and filter on a shelf, by the encoder untrained and trained with a recipe on a task."""
    assert shelf.features  # made once, before the shelf goes to other processes
    jobs = (delayed(_one_seed)(shelf, task, seed, width, recipe, untold) for seed in seeds)
    runs = Parallel(n_jobs=2)(jobs)
    content: dict[str, Any] = {"seeds": list(seeds), "k": K, "margin": MARGIN}
    content |= {"anchors": len(shelf.anchors), "sentences": len(shelf.candidates), "recipe": dict(recipe)}
    content["pairs"] = {name: int((shelf.relation == place).sum()) for place, name in enumerate(RELATIONS)}
    content["left_out"] = [name for name, how in VARIANTS.items() if not shelf.has(how["strategy"])]
    for state in runs[0]:
        content[state] = {}
        for table in runs[0][state]:
            of = {name: [run[state][table][name] for run in runs] for name in runs[0][state][table]}
            content[state][table] = {
                name: by_rank(found) if table.startswith("ranks") else described(found, shelf.topic)
                for name, found in of.items()
            }
    return content


def _one_seed(
    shelf: Shelf, task: Task, seed: int, width: int, recipe: Mapping[str, Any], untold: bool
) -> dict[str, dict[str, dict[str, Found]]]:
    torch.set_num_threads(1)
    encoder = NGramEncoder(width=width, seed=seed).fit_idf(task.texts)
    found = {"untrained": _tables(shelf, encoder, seed, untold)}
    train(encoder, task.train, Recipe(**recipe, seed=seed))
    return found | {"trained": _tables(shelf, encoder, seed, untold)}


def _tables(shelf: Shelf, encoder: Encoder, seed: int, untold: bool) -> dict[str, dict[str, Found]]:
    embedded, found = shelf.embedded(encoder), {}
    variants = {name: how for name, how in VARIANTS.items() if shelf.has(how["strategy"])}
    for told, known in {"": PAIR, ", positive not told": (ITSELF,)}.items():
        if told and not untold:
            continue
        found[f"strategies{told}"] = {name: mine(shelf, embedded, known, seed, **how) for name, how in variants.items()}
        found[f"ranks{told}"] = {n: mine(shelf, embedded, known, seed, 100, strategy=n) for n in ("hard", "lexical")}
    found["filters"] = {
        name: mine(shelf, embedded, told, seed, strategy="hard", **how) for name, (told, how) in FILTERS.items()
    }
    return found
