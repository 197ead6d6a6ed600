"""Approximate nearest neighbours by faiss indexes, with the recall measured against the exact search."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from gate_lessons.search.exact import SPARE, ExactPool
from gate_lessons.search.pool import best_first, check_queries, rows_at_once, unit
from gate_lessons.search.shards import Shards

KINDS = ("flat", "ivf", "hnsw")
INDEX, ABOUT = "index.faiss", "index.json"
SAMPLE, SAMPLE_K = 512, 10  # queries, and neighbours of each, that the effort is chosen by
SMALL = 1000  # candidates up to which an index looks at everything
POINTS = 64  # that k-means sees for each of the lists


class IndexPool:
    """Candidates behind a faiss index: most of the k nearest, much sooner.

    `flat` looks at every candidate. `ivf` (inverted file; Sivic and Zisserman 2003) puts them into 2√M lists by k-means
    and looks into those nearest to the query. `hnsw` (Malkov and Yashunin 2016) walks through a graph of neighbours; it
    takes longest to make. How many lists, or how broad a walk, is measured: it is doubled until the recall on 512
    queries, made up from candidates and their neighbours, is what is asked for. The more the vectors lie in clusters,
    the fewer lists suffice.

    The index has a copy of all vectors in memory. Similarities are those of `ExactPool`, as is the order of what was
    found; a query for which the index finds fewer than k is answered exactly.

    Attributes:
        index: the faiss index.
        effort: lists looked into (`ivf`), or breadth of the walk (`hnsw`).
        width: d.

    Args:
        candidates: [M, d], see `ExactPool`.
        kind: one of `KINDS`.
        target: recall@10 that the effort is chosen for, from 0 to 1.

    Raises:
        ValueError: an unknown kind, or what is wrong with the candidates.
    """

    def __init__(self, candidates: Tensor | Shards, kind: str = "ivf", target: float = 0.95) -> None:
        self.exact = ExactPool(candidates)
        self.width, self.kind = self.exact.width, kind
        self.index = self._empty()
        for _, block in self.exact.blocks(torch.device("cpu")):
            self.index.add(block.numpy())
        self.effort = self._effort_for(target)

    def __len__(self) -> int:
        return len(self.exact)

    def rows(self, indices: Tensor) -> Tensor:
        return self.exact.rows(indices)

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        lengths = check_queries(queries, self.exact.vectors, k)
        asked = unit(queries.detach(), lengths).cpu().numpy()
        depth = min(k + SPARE, len(self))
        rows = torch.from_numpy(self.index.search(asked, depth, params=self._parameters())[1]).to(queries.device)
        found = rows >= 0
        similarity = torch.full(rows.shape, -torch.inf, device=rows.device, dtype=torch.float32)
        query = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)[found]
        similarity[found] = self.exact.similarities(queries.detach(), lengths, query, rows[found])
        similarity, indices = best_first(similarity, rows, k)
        short = found.sum(dim=1) < k
        if short.any():
            indices[short], similarity[short] = self.exact.nearest(queries[short], k)
        return indices, similarity

    def recall(self, queries: Tensor, k: int) -> float:
        """Share of the k exact neighbours [0, 1] that the index finds, over all queries [Q, d]."""
        return _shared(self.exact.nearest(queries, k)[0], self.nearest(queries, k)[0])

    def save(self, folder: str | Path) -> None:
        """Write the index, and what it was made from, into a folder."""
        import faiss

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self.index, str(folder / INDEX))
        about = {"kind": self.kind, "effort": self.effort, **self._corpus()}
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, candidates: Tensor | Shards) -> "IndexPool":
        """Read what `save` wrote, for the same candidates.

        Raises:
            ValueError: files that are missing or damaged, or an index that was made from other candidates.
        """
        import faiss

        folder, pool = Path(folder), cls.__new__(cls)
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            pool.index = faiss.read_index(str(folder / INDEX))
            pool.kind, pool.effort = about.pop("kind"), about.pop("effort")
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{folder} holds no whole index ({error}); make it anew with IndexPool(…).save") from error
        pool.exact = ExactPool(candidates)
        pool.width = pool.exact.width
        if about != (corpus := pool._corpus()):
            sizes = " and ".join(f"{c.get('rows')} × {c.get('width')}" for c in (about, corpus))
            raise ValueError(f"the index in {folder} was built for another corpus ({sizes}): make it anew for this one")
        return pool

    def _empty(self):
        """An index without vectors, trained where it must be."""
        import faiss

        if self.kind not in KINDS:
            raise ValueError(f"unknown index {self.kind!r}; choose from {', '.join(KINDS)}")
        if self.kind == "flat":
            return faiss.IndexFlatIP(self.width)
        if self.kind == "hnsw":
            return faiss.IndexHNSWFlat(self.width, 32, faiss.METRIC_INNER_PRODUCT)
        lists = min(len(self), round(2 * len(self) ** 0.5))
        quantizer = faiss.IndexFlatIP(self.width)
        index = faiss.IndexIVFFlat(quantizer, self.width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, POINTS
        index.train(self.rows(self._sample(POINTS * lists)).cpu().numpy())
        return index

    def _sample(self, size: int) -> Tensor:
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:size].sort().values

    def _parameters(self):
        import faiss

        if self.kind == "ivf":
            return faiss.SearchParametersIVF(nprobe=self.effort)
        return faiss.SearchParametersHNSW(efSearch=self.effort) if self.kind == "hnsw" else None

    def _effort_for(self, target: float) -> int:
        most = self.index.nlist if self.kind == "ivf" else len(self)
        if self.kind == "flat" or len(self) < SMALL:
            return most
        x = self.rows(self._sample(SAMPLE))
        near = self.exact.nearest(x.to(self.exact.vectors.dtype), SAMPLE_K)[0]
        a, b, c = (self.rows(near[:, -place]) for place in (1, 2, 3))
        # The index knows its own vectors too well; these others have the mean and the spread of a neighbourhood.
        queries = ((x + a + b - c) / 2).to(self.exact.vectors.dtype)
        truth = self.exact.nearest(queries, SAMPLE_K)[0]
        self.effort = 1
        while self.effort < most and _shared(truth, self.nearest(queries, SAMPLE_K)[0]) < target:
            self.effort = min(2 * self.effort, most)
        return self.effort

    def _corpus(self) -> dict[str, int | str]:
        """What tells the candidates from others: their number and width, and a hash of every number in float32."""
        digest = hashlib.sha256()
        for start in range(0, len(self), step := rows_at_once(self.width)):
            digest.update(self.exact.vectors[start : start + step].float().cpu().contiguous().numpy())
        return {"rows": len(self), "width": self.width, "sha256": digest.hexdigest()}


def _shared(truth: Tensor, found: Tensor) -> float:
    """Share of the true neighbours [Q, k] that were found."""
    return float((truth[:, :, None] == found[:, None, :]).any(dim=2).double().mean())
