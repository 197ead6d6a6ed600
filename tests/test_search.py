import numpy as np
import pytest
import torch

from gate_lessons import search


def _random(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3  # lengths far from 1


def _cosines(queries: torch.Tensor, corpus: torch.Tensor) -> np.ndarray:
    """Cosine similarities [Q, M] in float64, one pair at a time."""
    return np.array(
        [[float(q @ c / np.sqrt((q @ q) * (c @ c))) for c in corpus.double().numpy()] for q in queries.double().numpy()]
    )


@pytest.mark.parametrize("k", [1, 7, 90])
def test_top_k_equals_a_full_sort(k):
    queries, corpus = _random(30), _random(90, seed=1)
    expected = _cosines(queries, corpus)
    index, similarity = search.top_k(queries, corpus, k)
    order = np.argsort(-expected, axis=1)[:, :k]
    assert index.shape == similarity.shape == (30, k)
    assert index.dtype == torch.int64
    np.testing.assert_array_equal(index.numpy(), order)
    np.testing.assert_allclose(similarity.numpy(), np.take_along_axis(expected, order, axis=1), atol=1e-6)


def test_top_k_does_not_see_lengths():
    corpus = torch.tensor([[100.0, 100.0], [0.01, 0.001], [-5.0, 0.0]])  # the longest is not the nearest
    index, similarity = search.top_k(torch.tensor([[2.0, 0.0]]), corpus, 3)
    assert index.tolist() == [[1, 0, 2]]
    np.testing.assert_allclose(similarity[0].numpy(), [10 / np.sqrt(101), np.sqrt(0.5), -1], atol=1e-6)


def test_top_k_takes_embeddings_that_carry_a_gradient_and_leaves_them_alone():
    queries = _random(3).requires_grad_()
    before = queries.detach().clone()
    _, similarity = search.top_k(queries, _random(5), 2)
    assert not similarity.requires_grad
    assert torch.equal(queries, before)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_outside_the_pool_is_refused(k):
    with pytest.raises(ValueError, match=f"between 1 and the pool's 5 sentences, not {k}"):
        search.top_k(_random(2), _random(5), k)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_named(bad):
    corpus = _random(9)
    corpus[[3, 6], 2] = bad
    with pytest.raises(ValueError, match=r"corpus holds NaN or infinite numbers in 2 rows: 3, 6$"):
        search.top_k(_random(2), corpus, 1)
    with pytest.raises(ValueError, match="queries holds"):
        search.top_k(corpus, _random(2), 1)


def test_only_the_first_five_bad_rows_are_listed():
    with pytest.raises(ValueError, match=r"in 8 rows: 0, 1, 2, 3, 4, …$"):
        search.check_embeddings(pool=torch.full((8, 2), float("nan")))


def test_widths_that_differ_are_named():
    with pytest.raises(ValueError, match=r"dimensions differ: queries \[2, 4\], corpus \[3, 5\]"):
        search.top_k(_random(2, 4), _random(3, 5), 1)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 3, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"queries must be \[rows, d\]"):
        search.top_k(torch.ones(shape), _random(3, 4), 1)


@pytest.mark.parametrize("numbers", [1, 13, 14, 40, 1000])
def test_blocks_hold_few_numbers_and_add_up_to_the_matrix(monkeypatch, numbers):
    monkeypatch.setattr(search, "BLOCK_NUMBERS", numbers)
    queries, corpus = _random(10), _random(13, seed=1)
    blocks = list(search.similarity_blocks(queries, corpus))
    assert all(block.numel() <= max(numbers, len(corpus)) for _, block in blocks)  # one query is the least
    assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(10))
    assert all(len(block) == rows.stop - rows.start for rows, block in blocks)
    np.testing.assert_allclose(torch.cat([b for _, b in blocks]).numpy(), _cosines(queries, corpus), atol=1e-6)


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


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_finds_what_the_cpu_finds(monkeypatch):
    monkeypatch.setattr(search, "BLOCK_NUMBERS", 4000)  # several blocks
    queries, corpus = _random(50), _random(700, seed=1)
    index, similarity = search.top_k(queries, corpus, 10)
    index_cuda, similarity_cuda = search.top_k(queries.cuda(), corpus.cuda(), 10)
    assert index_cuda.is_cuda
    torch.testing.assert_close(similarity_cuda.cpu(), similarity, atol=1e-5, rtol=0)
    # Neighbours closer to each other than the rounding may change places; their true similarities may not differ.
    exact = torch.from_numpy(_cosines(queries, corpus))
    torch.testing.assert_close(exact.gather(1, index_cuda.cpu()), exact.gather(1, index), atol=1e-5, rtol=0)
