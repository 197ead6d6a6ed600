import json

import numpy as np
import pytest
import torch

from gate_lessons import search
from gate_lessons.search import KINDS, ExactPool, IndexPool, Shards


def _random(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def _mixture(rows: int, seed: int, width: int = 16) -> torch.Tensor:
    """Vectors about 60 centres."""
    return _random(60, width, seed=99)[torch.arange(rows) % 60] + 0.5 * _random(rows, width, seed)


@pytest.fixture(scope="module", params=KINDS)
def pool(request) -> IndexPool:
    return IndexPool(_mixture(6000, 1), request.param)


def test_recall_is_the_share_of_the_exact_neighbours(pool):
    """Counted here by sets, against a product of everything with everything in float64."""
    corpus, queries = _mixture(6000, 1).double(), _mixture(300, 2)
    similarity = torch.nn.functional.normalize(queries.double()) @ torch.nn.functional.normalize(corpus).T
    truth = similarity.topk(10).indices.tolist()
    found = pool.nearest(queries, 10)[0].tolist()
    shared = np.mean([len(set(t) & set(f)) / 10 for t, f in zip(truth, found, strict=True)])
    assert pool.recall(queries, 10) == pytest.approx(shared)
    assert shared > 0.93  # asked for on queries that the pool made up: 0.95


def test_flat_is_exact():
    corpus, queries = _random(500), _random(40, seed=1)
    expected = ExactPool(corpus).nearest(queries, 9)
    assert all(map(torch.equal, IndexPool(corpus, "flat").nearest(queries, 9), expected))


def test_what_is_found_has_its_exact_similarity_and_order(pool):
    queries, corpus = _mixture(50, 3), _mixture(6000, 1)
    index, similarity = pool.nearest(queries, 10)
    exact = torch.nn.functional.cosine_similarity(queries.double()[:, None], corpus.double()[index], dim=2)
    np.testing.assert_allclose(similarity.numpy(), exact.numpy(), atol=1e-7)
    assert (similarity.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in index.tolist())


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_more_is_looked_at_where_more_recall_is_asked_for(kind):
    corpus, queries = _random(4000), _random(200, seed=1)  # no clusters: hard for an index
    pools = [IndexPool(corpus, kind, target) for target in (0.3, 0.99)]
    assert pools[0].effort < pools[1].effort
    assert pools[0].recall(queries, 10) < pools[1].recall(queries, 10)
    assert pools[1].recall(queries, 10) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_always_k_also_where_the_lists_hold_fewer(kind):
    corpus = _mixture(200, 1)
    pool = IndexPool(corpus, kind)
    pool.effort = 1
    index, similarity = pool.nearest(corpus[:20], 200)
    assert all(sorted(row) == list(range(200)) for row in index.tolist())
    assert all(map(torch.equal, (index, similarity), ExactPool(corpus).nearest(corpus[:20], 200)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_pools_can_be_asked(kind):
    for rows in (1, 2, 12):
        corpus = _random(rows)
        assert IndexPool(corpus, kind).nearest(corpus, 1)[0][:, 0].tolist() == list(range(rows))


def test_rows_are_the_candidates(pool):
    assert torch.equal(pool.rows(torch.tensor([7, 3])), ExactPool(_mixture(6000, 1)).rows(torch.tensor([7, 3])))
    assert (len(pool), pool.width) == (6000, 16)
    assert isinstance(pool, search.Pool)


def test_a_saved_index_answers_as_before(pool, tmp_path):
    queries = _mixture(80, 4)
    pool.save(tmp_path / "a" / "b")
    again = IndexPool.load(tmp_path / "a" / "b", _mixture(6000, 1))
    assert (again.kind, again.effort, len(again), again.width) == (pool.kind, pool.effort, 6000, 16)
    assert all(map(torch.equal, again.nearest(queries, 10), pool.nearest(queries, 10)))


def test_an_index_of_candidates_in_files_is_that_of_the_same_in_memory(tmp_path):
    corpus = _mixture(900, 1)
    np.save(tmp_path / "0.npy", corpus[:500].numpy())
    np.save(tmp_path / "1.npy", corpus[500:].numpy())
    IndexPool(corpus).save(tmp_path / "index")
    loaded = IndexPool.load(tmp_path / "index", Shards(tmp_path))
    made = IndexPool(Shards(tmp_path))
    assert all(map(torch.equal, loaded.nearest(corpus[:30], 5), made.nearest(corpus[:30], 5)))


def _changed(corpus: torch.Tensor) -> dict[str, torch.Tensor]:
    one = corpus.clone()
    one[177, 3] = torch.nextafter(one[177, 3], torch.tensor(9.0))
    swapped = corpus.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    return {"fewer": corpus[:-1], "narrower": corpus[:, :-1], "one number": one, "two swapped": swapped}


@pytest.mark.parametrize("change", ["fewer", "narrower", "one number", "two swapped"])
def test_an_index_of_another_corpus_is_refused(tmp_path, change):
    corpus = _random(300)
    IndexPool(corpus, "flat").save(tmp_path)
    with pytest.raises(ValueError, match=r"was built for another corpus \(300 × 16 and \d+ × \d+\): make it anew"):
        IndexPool.load(tmp_path, _changed(corpus)[change])


@pytest.mark.parametrize("file", ["index.faiss", "index.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_index_is_refused(tmp_path, file, damage):
    corpus = _random(300)
    IndexPool(corpus, "flat").save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if damage != "missing":
        (tmp_path / file).write_bytes(whole[: len(whole) // 2] if damage == "cut" else json.dumps({"a": 1}).encode())
    with pytest.raises(ValueError, match=r"holds no whole index .* make it anew"):
        IndexPool.load(tmp_path, corpus)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown index 'tree'; choose from flat, ivf, hnsw"):
        IndexPool(_random(5), "tree")
    with pytest.raises(ValueError, match="candidates holds zero vectors"):
        IndexPool(torch.zeros(5, 3))
    pool = IndexPool(_random(5), "flat")
    with pytest.raises(ValueError, match="k must lie between 1 and the pool's 5 sentences, not 6"):
        pool.nearest(_random(2), 6)
    with pytest.raises(ValueError, match="dimensions differ"):
        pool.nearest(_random(2, 3), 1)
    with pytest.raises(ValueError, match="queries holds NaN"):
        pool.nearest(_random(2) * float("nan"), 1)
