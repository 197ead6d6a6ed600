"""The job from files to triplets: parameters checked, sentences embedded, anchors mined slice by slice."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gate_lessons import miner, search
from gate_lessons.devices import accelerator
from gate_lessons.encoder import Encoder, make_encoder
from gate_lessons.mine_files.inputs import Inputs, read_inputs
from gate_lessons.mine_files.report import write_report
from gate_lessons.mine_files.result import Result, write_triplets
from gate_lessons.mine_files.work import WorkFolder, sha256
from gate_lessons.search import IndexPool, Pool, Shards

SHARD = 4096  # sentences in a file of embeddings
SLICE = 8192  # anchors that are mined at a time
SHORTEST = 1e-30  # embeddings below have no direction
SEARCHES = ("auto", "exact", *search.KINDS)
ELSEWHERE = ("encoder", "search", "device", "seed")  # parameters that are not the miner's


@dataclass(frozen=True)
class Mining:
    """Everything that decides what is mined, beside the files.

    Attributes:
        encoder: `ngram` (its weights fitted on the job's sentences), a saved encoder's folder, or a model's name.
        strategy, num_negatives, range_min, range_max, max_score, min_score, absolute_margin, relative_margin,
            sampling_strategy, margin, clusters, fallback: see `miner.mine`.
        search: see `search.make_pool`.
        device: `cuda` where it must be a GPU, `auto` where one is welcome.
        seed: of all that is drawn.
    """

    encoder: str = "ngram"
    strategy: str = "hard"
    num_negatives: int = 1
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling_strategy: str = "top"
    margin: float = 0.1
    clusters: int = 8
    fallback: str = "random"
    search: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        miner.parse(self.strategy)
        if self.search not in SEARCHES:
            raise ValueError(f"unknown search {self.search!r}; choose from {', '.join(SEARCHES)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")
        accelerator(self.device)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Name → default of every field; 0 in its type for those that have none."""
        return {f.name: get_args(f.type)[0]() if f.default is None else f.default for f in fields(cls)}

    def for_miner(self) -> dict[str, Any]:
        """The parameters that are arguments of `miner.mine`."""
        return {name: value for name, value in asdict(self).items() if name not in ELSEWHERE}

    def check(self, candidates: int) -> list[str]:
        """The strategies, once it is clear that the parameters suit each other and a pool of this size.

        Raises:
            ValueError: see `miner.check_parameters`.
        """
        asked = ("num_negatives", "clusters", "range_min", "range_max", "sampling_strategy", "fallback")
        given = {name: getattr(self, name) for name in asked}
        return list(miner.check_parameters(self.strategy, candidates=candidates, **given))


def mine_files(
    pairs: str | Path,
    out: str | Path,
    corpus: str | Path | None = None,
    mining: Mining | None = None,
    scheduler: str | None = None,
) -> list[Path]:
    """Mine negatives for the pairs of a file and write triplets, and a report of what was mined.

    Beside `out`, NAME.jsonl, come NAME.report.json and NAME.report.html; NAME.work holds what an unfinished job has
    done, from which the same call goes on, and is removed at the end.

    Args:
        pairs: anchor, positive (see `data.load_pairs`); `group`, `category` or `topic`, `dialect` where there are any.
        out: a .jsonl file.
        corpus: sentences to mine from (see `data.load_sentences`); those of the pairs where it is not given.
        mining: what to mine.
        scheduler: address of a Dask cluster to search with.

    Returns:
        The three files.

    Raises:
        ValueError: what is wrong with files or parameters, before anything is embedded; embeddings without a direction
            (of which sentence); a work folder of another job.
    """
    mining, out = mining or Mining(), Path(out)
    _check_files(out, [pairs, corpus], mining, scheduler)
    with _step("reading"):
        inputs = read_inputs(pairs, corpus)
        labels = inputs.labels(mining.check(len(inputs.pool)))
    with _step("making the encoder"):
        encoder = make_encoder(mining.encoder, inputs.texts, mining.seed).to(accelerator(mining.device))
    work = WorkFolder(out.with_suffix(".work"), _manifest(pairs, corpus, mining))
    vectors = _embed(inputs, encoder, work)
    with ExitStack() as stack:
        with _step("making the search"):
            pool = _pool(inputs, mining, scheduler, work)
        if scheduler is not None:
            stack.enter_context(pool)
        result = _mine(inputs, labels, vectors, pool, mining, work)
    written = write_report(out, inputs, result, mining)
    write_triplets(out, inputs, result, mining)
    work.remove()
    return [out, *written]


def _step(name: str) -> tqdm:
    """A line that says what is being done, and how long it took."""
    return tqdm(desc=name, bar_format="{desc}: {elapsed}")


def _check_files(out: Path, sources: list[Any], mining: Mining, scheduler: str | None) -> None:
    if out.suffix != ".jsonl":
        raise ValueError(f"the triplets are written as .jsonl, so --out must end in it, not {out.name!r}")
    for source in sources:
        if source is not None and out.resolve() == Path(source).resolve():
            raise ValueError(f"--out {out} is a file to read from; choose another name")
    if scheduler is not None and mining.search not in ("auto", "exact"):
        raise ValueError(f"a cluster searches exactly: take --search {mining.search} or --scheduler, not both")


def _manifest(pairs: str | Path, corpus: str | Path | None, mining: Mining) -> dict[str, Any]:
    """What makes this job another than others."""
    return {
        "pairs": sha256(pairs),
        "corpus": None if corpus is None else sha256(corpus),
        **asdict(mining),
        "device": accelerator(mining.device),
        "encoder": f"{mining.encoder} {sha256(mining.encoder)}",
        "sentences in a shard": SHARD,
        "anchors in a slice": SLICE,
    }


# ---------------------------------------------------------------------------------------------- embedding


def _embed(inputs: Inputs, encoder: Encoder, work: WorkFolder) -> Shards:
    """The embeddings of `inputs.texts`, from the shards that are there and those that were missing."""
    parts = _parts(len(inputs.pool), len(inputs.texts))
    with tqdm(total=len(inputs.texts), desc="embedding", unit="sentence") as progress:
        for name, part in parts.items():
            if not work.holds(name, len(part)):
                vectors = encoder.encode([inputs.texts[row] for row in part])
                _check_vectors(vectors, part, inputs)
                work.write(name, vectors.numpy())
            progress.update(len(part))
    return Shards([work.path(name) for name in parts])


def _parts(pool: int, texts: int) -> dict[str, range]:
    """File name → rows; no file holds rows of the pool and others."""
    starts = [*range(0, pool, SHARD), *range(pool, texts, SHARD)]
    return {
        f"vectors-{start:09d}.npy": range(start, stop) for start, stop in zip(starts, [*starts[1:], texts], strict=True)
    }


def _check_vectors(vectors: Tensor, part: range, inputs: Inputs) -> None:
    finite = vectors.isfinite().all(dim=1)
    for bad, what in ((~finite, "NaN or infinite numbers"), (finite & (vectors.norm(dim=1) < SHORTEST), "only zeros")):
        if bad.any():
            row = part[int(bad.int().argmax())]
            more = f" and {int(bad.sum()) - 1} more" if bad.sum() > 1 else ""
            raise ValueError(
                f"{inputs.where(row)}{more}: the encoder makes {what} of {inputs.texts[row]!r}; take such sentences "
                "out, or choose another encoder"
            )


# ---------------------------------------------------------------------------------------------- mining


def _pool(inputs: Inputs, mining: Mining, scheduler: str | None, work: WorkFolder) -> Pool:
    """The candidates behind the search that was asked for; an index that an interrupted job made is used again."""
    candidates = Shards([work.path(name) for name in _parts(len(inputs.pool), len(inputs.pool))])
    if scheduler is not None:
        from gate_lessons.search.distributed import DaskPool

        return DaskPool(candidates, scheduler)
    if (done := work.read_json("search.json")) is not None:
        try:
            index = done["kind"] != "exact"
            return IndexPool.load(work.path("index"), candidates) if index else search.ExactPool(candidates)
        except ValueError as error:
            raise ValueError(f"{error}, or delete {work.folder} to begin anew") from error
    pool = search.make_pool(candidates, mining.search)
    if isinstance(pool, IndexPool):
        pool.save(work.path("index"))
    work.write_json("search.json", {"kind": pool.kind if isinstance(pool, IndexPool) else "exact"})
    return pool


def _mine(
    inputs: Inputs, labels: Mapping[str, Any], vectors: Shards, pool: Pool, mining: Mining, work: WorkFolder
) -> Result:
    given = mining.for_miner() | {"clusters": _clusters(pool, mining, work)}
    parts, skipped = [], Counter()
    with tqdm(total=len(inputs.pairs), desc="mining", unit="anchor") as progress:
        for rows in torch.arange(len(inputs.pairs)).split(SLICE):
            name = f"mined-{int(rows[0]):09d}.npz"
            if (found := work.read_together(name)) is None:
                found = _mine_slice(rows, inputs, labels, vectors, pool, given, mining)
                work.write_together(name, **found)
            skipped.update(json.loads(str(found.pop("skipped"))))
            parts.append(found)
            progress.update(len(rows))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Result(**arrays, skipped=dict(sorted(skipped.items())), search=getattr(pool, "kind", "exact"))


def _mine_slice(
    rows: Tensor,
    inputs: Inputs,
    labels: Mapping[str, Any],
    vectors: Shards,
    pool: Pool,
    given: Mapping[str, Any],
    mining: Mining,
) -> dict[str, np.ndarray]:
    """What is mined for some anchors, as arrays; the same whichever others are mined with them."""
    anchors, positives = (vectors[numbers[rows]].to(accelerator(mining.device)) for numbers in inputs.rows)
    ours = {name: value[rows.numpy()] for name, value in labels.items() if name.startswith("anchor_")}
    try:
        mined = miner.mine(
            anchors,
            positives,
            pool,
            **{**given, **labels, **ours},
            known_positives=[inputs.known_positives[row] for row in rows.tolist()],
            first_anchor=int(rows[0]),
            generator=torch.Generator().manual_seed(mining.seed),
        )
    except ValueError as error:
        raise ValueError(f"{inputs.names[0]}: {error}") from error
    arrays = ("indices", "similarities", "positive_similarity", "shortfall")
    found = {name: getattr(mined, name).cpu().numpy() for name in arrays}
    return found | {"skipped": np.array(json.dumps(mined.skipped))}


def _clusters(pool: Pool, mining: Mining, work: WorkFolder) -> int | Tensor:
    """The cluster [M] of each candidate, where a strategy asks for it: made once for all slices."""
    if "cluster" not in miner.parse(mining.strategy):
        return mining.clusters
    if not work.holds("clusters.npy", len(pool)):
        work.write("clusters.npy", search.cluster(pool, min(mining.clusters, len(pool)), mining.seed).numpy())
    return torch.from_numpy(np.load(work.path("clusters.npy")))
