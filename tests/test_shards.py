import pickle

import numpy as np
import pytest
import torch

from gate_lessons.search import ExactPool, Shards


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


def _write(folder, vectors: np.ndarray, *cuts: int) -> None:
    for number, part in enumerate(np.split(vectors, cuts)):
        np.save(folder / f"{number:02d}.npy", part)


def test_rows_are_those_of_the_files_one_after_the_other(tmp_path, vectors):
    _write(tmp_path, vectors, 1, 20, 21)
    shards = Shards(tmp_path)
    assert (len(shards), shards.shape) == (50, (50, 6))
    rows = torch.tensor([49, 0, 1, 20, 19, 21, 0])
    np.testing.assert_array_equal(shards[rows].numpy(), vectors[rows])
    for part in (slice(0, 50), slice(0, 1), slice(15, 30), slice(20, 21), slice(40, 90)):
        np.testing.assert_array_equal(shards[part].numpy(), vectors[part])


def test_files_are_taken_in_the_order_given(tmp_path, vectors):
    _write(tmp_path, vectors, 20)
    shards = Shards([tmp_path / "01.npy", str(tmp_path / "00.npy")])
    np.testing.assert_array_equal(shards[:50].numpy(), np.concatenate([vectors[20:], vectors[:20]]))


def test_float16_is_read_as_float32(tmp_path, vectors):
    _write(tmp_path, vectors.astype(np.float16), 7)
    assert Shards(tmp_path)[torch.tensor([3, 8])].dtype == Shards(tmp_path)[5:9].dtype == torch.float32
    queries = torch.from_numpy(vectors[:4])
    found = ExactPool(Shards(tmp_path)).nearest(queries, 3)
    assert all(map(torch.equal, found, ExactPool(torch.from_numpy(vectors).half().float()).nearest(queries, 3)))


def test_what_is_read_may_be_written_over_without_harm_to_the_files(tmp_path, vectors):
    _write(tmp_path, vectors)
    Shards(tmp_path)[:50].zero_()
    np.testing.assert_array_equal(np.load(tmp_path / "00.npy"), vectors)


def test_another_process_gets_the_paths_and_not_the_numbers(tmp_path, vectors):
    _write(tmp_path, np.tile(vectors, (100, 1)), 20, 30)
    sent = pickle.dumps(Shards(tmp_path))
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)[:5000], Shards(tmp_path)[:5000])


def test_a_folder_without_shards_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"no shards: {folder} holds no .npy files"):
            Shards(folder)


def test_a_shard_that_is_missing_is_named(tmp_path, vectors):
    _write(tmp_path, vectors, 20)
    with pytest.raises(ValueError, match=r"shard .*09\.npy is missing"):
        Shards([tmp_path / "00.npy", tmp_path / "09.npy"])


@pytest.mark.parametrize("bytes_left", [0, 40, 400])
def test_a_shard_cut_short_is_named(tmp_path, vectors, bytes_left):
    """Of nothing, in its header, and in its numbers."""
    _write(tmp_path, vectors, 20)
    whole = (tmp_path / "01.npy").read_bytes()
    assert len(whole) > 400
    (tmp_path / "01.npy").write_bytes(whole[:bytes_left])
    with pytest.raises(ValueError, match=r"shard .*01\.npy is cut short or no .npy file"):
        Shards(tmp_path)


def test_another_kind_of_file_is_named(tmp_path, vectors):
    _write(tmp_path, vectors)
    (tmp_path / "01.npy").write_text("not numbers")
    with pytest.raises(ValueError, match=r"01\.npy is cut short or no .npy file"):
        Shards(tmp_path)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 6), (3, 0)])
def test_a_shard_of_another_shape_is_named(tmp_path, shape):
    np.save(tmp_path / "00.npy", np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=r"shard .*00\.npy must hold \[rows, d\] with at least one row"):
        Shards(tmp_path)


@pytest.mark.parametrize("kind", [np.float64, np.int32])
def test_a_shard_of_other_numbers_is_named(tmp_path, kind):
    np.save(tmp_path / "00.npy", np.ones((3, 6), kind))
    with pytest.raises(ValueError, match=rf"00\.npy must hold float16 or float32, not {np.dtype(kind)}"):
        Shards(tmp_path)


@pytest.mark.parametrize(
    ("other", "what"), [(np.ones((3, 5), np.float32), "width"), (np.ones((3, 6), np.float16), "type")]
)
def test_shards_that_differ_are_named(tmp_path, vectors, other, what):
    _write(tmp_path, vectors, 20)
    np.save(tmp_path / "02.npy", other)
    with pytest.raises(ValueError, match=rf"shards differ in {what}: .*02\.npy has .*00\.npy has"):
        Shards(tmp_path)


def test_bad_rows_are_named_by_their_number_in_the_whole(tmp_path, vectors):
    vectors[33, 2] = np.nan
    _write(tmp_path, vectors, 20, 30)
    with pytest.raises(ValueError, match="candidates holds NaN or infinite numbers in 1 rows: 33"):
        ExactPool(Shards(tmp_path))
