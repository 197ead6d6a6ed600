import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gate_lessons import search
from gate_lessons.search import ExactPool, Shards, exact, pool

LENGTHS = (1e-20, 0.03, 1.0, 700.0, 1e20)
WAYS = ("fine", "coarse", "whole")


def _random(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3  # lengths far from 1


def _cosines(queries: torch.Tensor, corpus: torch.Tensor) -> np.ndarray:
    """Cosine similarities [Q, M] in float64, one pair at a time."""
    return np.array(
        [[float(q @ c / np.sqrt((q @ q) * (c @ c))) for c in corpus.double().numpy()] for q in queries.double().numpy()]
    )


def _sorted(queries: torch.Tensor, corpus: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: a stable sort of all similarities, rounded to float32."""
    similarity = _cosines(queries, corpus).astype(np.float32)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, axis=1)


def _assert_exact(queries: torch.Tensor, corpus: torch.Tensor, k: int) -> None:
    order, similarity = _sorted(queries, corpus, k)
    index, found = ExactPool(corpus).nearest(queries, k)
    assert (index.dtype, found.dtype) == (torch.int64, torch.float32)
    np.testing.assert_array_equal(index.numpy(), order)
    np.testing.assert_array_equal(found.numpy(), similarity)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    """Lists from a first pass in float32 or in bfloat16, or no lists, whatever would be taken here."""
    monkeypatch.setattr(exact, "_has_bfloat16_products", lambda device: request.param == "coarse")
    monkeypatch.setattr(exact, "MANY", 10**6 if request.param == "whole" else 0)
    return request.param


# ------------------------------------------------------------------------------------------ exact search


@pytest.mark.parametrize("k", [1, 7, 90])
def test_nearest_is_a_full_sort(way, k):
    _assert_exact(_random(30), _random(90, seed=1), k)


@pytest.mark.parametrize("k", [1, 10, 40])
def test_nearest_is_a_full_sort_where_only_a_part_is_looked_at(way, k):
    """More candidates than any list is long, most of them in groups of which only the best is looked at first."""
    _assert_exact(_random(25, 8), _random(3001, 8, seed=1), k)


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-7])
def test_neighbours_closer_together_than_the_first_pass_can_tell_are_told_apart(way, spread):
    corpus = torch.ones(800, 24) + spread * torch.randn(800, 24, generator=torch.Generator().manual_seed(0))
    _assert_exact(corpus[:20] + spread / 2, corpus, 5)


def test_a_corpus_all_of_one_vector_gives_the_lowest_numbers(way):
    index, similarity = ExactPool(torch.ones(900, 6)).nearest(_random(300, 6).abs(), 4)
    assert torch.equal(index, torch.arange(4).expand(300, 4))
    assert torch.equal(similarity, similarity[:, :1].expand(300, 4))


def test_bfloat16_is_given_up_for_queries_that_it_cannot_answer(monkeypatch):
    """Else every query would be asked twice."""
    asked = []
    fill = exact._Search.fill
    monkeypatch.setattr(exact, "_has_bfloat16_products", lambda device: True)
    monkeypatch.setattr(
        exact._Search,
        "fill",
        lambda self, which, coarse, depth=0: (asked.append((len(which), coarse)), fill(self, which, coarse, depth))[1],
    )
    tight = 1 + 1e-4 * _random(2000, 8)
    ExactPool(tight).nearest(tight[:600], 3)
    assert (600 - exact.PROBE, False) in asked
    asked.clear()
    ExactPool(_random(2000, 64)).nearest(_random(600, 64, seed=1), 3)
    assert (600 - exact.PROBE, True) in asked


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ties_come_by_the_lower_number(data):
    """Small whole numbers give many equal similarities, among them of vectors that are multiples of each other."""
    width = data.draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 2), min_size=width, max_size=width).filter(any)
    scaled = st.tuples(row, st.sampled_from(LENGTHS)).map(lambda pair: [pair[1] * x for x in pair[0]])
    queries = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=5)), dtype=torch.float32)
    corpus = torch.tensor(data.draw(st.lists(scaled, min_size=1, max_size=40)))
    k = data.draw(st.integers(1, len(corpus)))
    index, similarity = ExactPool(corpus).nearest(queries, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "MANY", 0)
        assert all(map(torch.equal, ExactPool(corpus).nearest(queries, k), (index, similarity)))
    for found, near in zip(index.tolist(), similarity.tolist(), strict=True):
        assert len(set(found)) == k
        assert all(a > b or (a == b and i < j) for (a, i), (b, j) in itertools.pairwise(zip(near, found, strict=True)))
    np.testing.assert_allclose(similarity.numpy(), _sorted(queries, corpus, k)[1], atol=1e-7)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_similarities_are_float32_whatever_pytorchs_default_is(way, float64_by_default):
    corpus, queries = _random(500).float(), _random(20, seed=1).float()
    index, similarity = ExactPool(corpus).nearest(queries, 5)
    assert similarity.dtype == torch.float32 and ExactPool(corpus).rows(index[0]).dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, ExactPool(corpus).nearest(queries, 5), (index, similarity)))


def test_whole_rows_of_similarities_are_those_of_the_pairs():
    """To the last bit, those near 0 too, where float32 tells apart what float64 adds up differently."""
    corpus, queries = _random(400, 200, seed=1), _random(30, 200)
    queries[:10], queries[:10, 0], corpus[:300, 0] = 0, 1, 10.0 ** -torch.arange(300).remainder(20)
    found, lengths = ExactPool(corpus), torch.linalg.vector_norm(queries.double(), dim=1)
    whole = found.all_similarities(queries, lengths, torch.arange(30))
    query, row = torch.cartesian_prod(torch.arange(30), torch.arange(400)).T
    assert torch.equal(whole.flatten(), found.similarities(queries, lengths, query, row))


@pytest.mark.parametrize("numbers", [900, 5000])
def test_blocks_change_nothing(monkeypatch, way, numbers):
    corpus, queries = _random(300).repeat(3, 1), _random(50, seed=1)  # each candidate three times, in different blocks
    whole = ExactPool(corpus).nearest(queries, 8)
    monkeypatch.setattr(pool, "BLOCK_NUMBERS", numbers)
    for name in ("PAIR_NUMBERS", "LIST_NUMBERS", "WHOLE_NUMBERS"):
        monkeypatch.setattr(exact, name, numbers)
    monkeypatch.setattr(exact, "FAISS_NUMBERS", 3 * numbers)
    monkeypatch.setattr(exact, "PROBE", 20)
    assert all(map(torch.equal, ExactPool(corpus).nearest(queries, 8), whole))
    assert (whole[0][:, 0] < 300).all()


def test_the_number_of_threads_changes_nothing(way):
    corpus, queries, threads = _random(4000, 24), _random(300, 24, seed=1), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(ExactPool(corpus).nearest(queries, 8))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


def test_one_query_is_answered_as_among_many(way):
    corpus, queries = _random(2500), _random(40, seed=1)
    index, similarity = ExactPool(corpus).nearest(queries, 6)
    for row in range(40):
        alone = ExactPool(corpus).nearest(queries[row : row + 1], 6)
        assert torch.equal(alone[0][0], index[row])
        assert torch.equal(alone[1][0], similarity[row])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 119), max_size=5, unique=True))
def test_shards_cut_anywhere_change_nothing(tmp_path_factory, seed, cuts):
    corpus, folder = _random(120, 5, seed % 7), tmp_path_factory.mktemp("shards")
    corpus[seed % 120] = corpus[(seed // 120) % 120]  # duplicates, often in different shards
    for number, part in enumerate(np.split(corpus.numpy(), sorted(cuts))):
        np.save(folder / f"{number}.npy", part)
    queries = torch.cat([_random(9, 5, seed=8), corpus[[seed % 120]]])
    in_memory, on_disk = (ExactPool(vectors).nearest(queries, 6) for vectors in (corpus, Shards(folder)))
    assert all(map(torch.equal, on_disk, in_memory))


def test_candidates_in_another_order_are_the_same_neighbours(way):
    corpus, queries = _random(500), _random(20, seed=1)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(5))
    index, similarity = ExactPool(corpus).nearest(queries, 9)
    moved, again = ExactPool(corpus[order]).nearest(queries, 9)
    assert torch.equal(order[moved], index)
    assert torch.equal(again, similarity)


def test_lengths_are_not_seen():
    corpus = torch.tensor([[100.0, 100.0], [0.01, 0.001], [-5.0, 0.0]])  # the longest is not the nearest
    index, similarity = search.top_k(torch.tensor([[2.0, 0.0]]), corpus, 3)
    assert index.tolist() == [[1, 0, 2]]
    np.testing.assert_allclose(similarity[0].numpy(), [10 / np.sqrt(101), np.sqrt(0.5), -1], atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_searched_as_they_are(way, kind):
    _assert_exact(_random(9).to(kind), _random(60, seed=1).to(kind), 5)


def test_embeddings_that_carry_a_gradient_are_left_alone():
    queries, corpus = _random(3).requires_grad_(), _random(5).requires_grad_()
    before = queries.detach().clone(), corpus.detach().clone()
    _, similarity = search.top_k(queries, corpus, 2)
    assert not similarity.requires_grad
    assert torch.equal(queries, before[0])
    assert torch.equal(corpus, before[1])


def test_rows_have_length_1_and_the_direction_of_the_candidates():
    corpus = _random(8)
    rows = ExactPool(corpus).rows(torch.tensor([5, 2, 5]))
    expected = corpus.double()[[5, 2, 5]]
    torch.testing.assert_close(rows.double(), expected / expected.norm(dim=1, keepdim=True), atol=1e-7, rtol=0)
    assert rows.dtype == torch.float32


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_outside_the_pool_is_refused(k):
    with pytest.raises(ValueError, match=f"between 1 and the pool's 5 sentences, not {k}"):
        search.top_k(_random(2), _random(5), k)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_named(bad):
    corpus = _random(9)
    corpus[[3, 6], 2] = bad
    with pytest.raises(ValueError, match=r"candidates holds NaN or infinite numbers in 2 rows: 3, 6$"):
        ExactPool(corpus)
    with pytest.raises(ValueError, match="queries holds NaN"):
        search.top_k(corpus, _random(2), 1)


def test_rows_without_a_direction_are_named(monkeypatch):
    corpus = _random(9)
    corpus[[0, 7]] = 0
    monkeypatch.setattr(pool, "BLOCK_NUMBERS", 40)  # rows are named by their number in the whole, not in the block
    with pytest.raises(ValueError, match=r"candidates holds zero vectors, .* not defined, in 2 rows: 0, 7$"):
        ExactPool(corpus)
    with pytest.raises(ValueError, match="queries holds zero vectors"):
        search.top_k(corpus, _random(2), 1)


def test_only_the_first_five_bad_rows_are_listed():
    with pytest.raises(ValueError, match=r"in 8 rows: 0, 1, 2, 3, 4, …$"):
        search.check_embeddings(pool=torch.full((8, 2), float("nan")))


def test_widths_that_differ_are_named():
    with pytest.raises(ValueError, match=r"dimensions differ: queries \[2, 4\], candidates \[3, 5\]"):
        search.top_k(_random(2, 4), _random(3, 5), 1)


def test_types_that_differ_are_named():
    with pytest.raises(ValueError, match="types of numbers differ: queries float64, candidates float32; convert"):
        search.top_k(_random(2).double(), _random(3), 1)
    with pytest.raises(ValueError, match="a float32, b float16"):
        search.check_embeddings(a=_random(2), b=_random(2).half())


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_numbers_that_are_not_floating_point_are_refused(kind):
    with pytest.raises(ValueError, match="candidates must be floating-point numbers, not"):
        ExactPool(torch.ones(3, 4).to(kind))


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 3, 4), (3, 0)])
def test_other_shapes_are_refused(shape):
    for queries, candidates, name in ((shape, (3, 4), "queries"), ((3, 4), shape, "candidates")):
        with pytest.raises(ValueError, match=rf"{name} must be \[rows, d\] with at least one row"):
            search.top_k(torch.ones(queries), torch.ones(candidates), 1)


def test_an_unknown_search_is_refused_and_a_pool_stays_what_it_is():
    with pytest.raises(ValueError, match="unknown search 'ivff'; choose from auto, exact, flat, ivf, hnsw"):
        search.make_pool(_random(3), "ivff")
    pool = ExactPool(_random(3))
    assert search.make_pool(pool) is pool


def test_auto_is_exact_for_few_candidates_and_for_those_that_lie_in_no_clusters(monkeypatch):
    clustered = _random(300)[torch.arange(6000) % 300] + 0.1 * _random(6000, seed=1)
    assert isinstance(search.make_pool(clustered), ExactPool)
    monkeypatch.setattr(search, "EXACT_UP_TO", 5999)
    assert search.make_pool(clustered).kind == "ivf"
    assert isinstance(search.make_pool(clustered[:5999]), ExactPool)
    assert isinstance(search.make_pool(_random(6000)), ExactPool)
    assert search.make_pool(_random(6000), "ivf").kind == "ivf"  # who asks for it gets it


# ------------------------------------------------------------------------------------------------ k-means


def _blobs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three tight bundles of directions, with lengths from 0.1 to 10 that the clusters must not follow."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(3, (120,), generator=generator)
    rows = torch.eye(8)[true] + 0.05 * torch.randn(120, 8, generator=generator)
    return rows * torch.logspace(-1, 1, 120)[:, None], true


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_separated_bundles_are_the_clusters(seed):
    rows, true = _blobs()
    labels = search.cluster(rows, 3, seed)
    same = labels[:, None] == labels[None]
    assert labels.shape == (120,)
    assert torch.equal(same, true[:, None] == true[None])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_are_a_fixed_point_of_k_means_on_the_sphere(seed):
    """Each row lies in the cluster whose mean direction is nearest to it by angle, whatever the rows' lengths."""
    rows = _random(60, 6, seed) * torch.logspace(-1, 1, 60)[:, None]
    labels = search.cluster(rows, 4, seed)
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    means = torch.stack([unit[labels == c].sum(dim=0) for c in range(4)])
    nearest = (unit @ (means / means.norm(dim=1, keepdim=True)).T).argmax(dim=1)
    assert torch.equal(nearest, labels)


def test_clusters_of_more_candidates_than_the_centres_see_are_as_tight_as_scikit_learns():
    """Inertia on the unit sphere, about the clusters' means, within 2 %."""
    from sklearn.cluster import KMeans

    rows = torch.nn.functional.normalize(_random(6000, 8)).numpy()
    labels = search.cluster(torch.from_numpy(rows), 10, 0).numpy()
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(10)])
    inertia = ((rows - means[labels]) ** 2).sum()
    assert inertia < 1.02 * KMeans(10, n_init=1, max_iter=20, random_state=0).fit(rows).inertia_


def test_clusters_do_not_depend_on_blocks_or_files(monkeypatch, tmp_path):
    rows = _random(3000, 4)
    whole = search.cluster(rows, 5, 0)
    np.save(tmp_path / "0.npy", rows[:1100].numpy())
    np.save(tmp_path / "1.npy", rows[1100:].numpy())
    monkeypatch.setattr(pool, "BLOCK_NUMBERS", 400)
    assert torch.equal(search.cluster(Shards(tmp_path), 5, 0), whole)
    assert torch.equal(search.cluster(ExactPool(rows), 5, 0), whole)


def test_one_seed_gives_one_clustering_and_seeds_differ():
    rows = _random(200)
    assert torch.equal(search.cluster(rows, 6, 3), search.cluster(rows, 6, 3))
    assert not torch.equal(search.cluster(rows, 6, 3), search.cluster(rows, 6, 4))


def test_as_many_clusters_as_rows_and_one():
    rows = torch.eye(5)
    assert sorted(search.cluster(rows, 5, 0).tolist()) == list(range(5))
    assert search.cluster(rows, 1, 0).tolist() == [0] * 5


@pytest.mark.parametrize("clusters", [0, 6])
def test_a_number_of_clusters_outside_the_pool_is_refused(clusters):
    with pytest.raises(ValueError, match=f"clusters must lie between 1 and the pool's 5 sentences, not {clusters}"):
        search.cluster(_random(5), clusters, 0)


# --------------------------------------------------------------------------------------------------- CUDA


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_cuda_finds_what_the_cpu_finds(precision):
    queries, corpus = _random(300), _random(7000, seed=1).repeat(2, 1)
    expected = ExactPool(corpus).nearest(queries, 10)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        for candidates in (corpus.cuda(), corpus):  # on the GPU, and brought there block by block
            found = ExactPool(candidates).nearest(queries.cuda(), 10)
            assert found[0].is_cuda
            assert torch.equal(found[0].cpu(), expected[0])
            assert torch.equal(found[1].cpu(), expected[1])
    finally:
        torch.set_float32_matmul_precision(before)
