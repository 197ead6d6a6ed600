from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gate_lessons.sampler import Batches


def _batches(size: int, group: Tensor | None = None, seed: int = 0) -> Batches:
    return Batches(size, torch.Generator().manual_seed(seed), group)


def _stream(batches: Batches, stage: Tensor):
    while True:
        yield batches.take(stage).tolist()


def _rows(batches: Iterable[list[int]]) -> list[int]:
    """All rows of some batches, ascending."""
    return sorted(chain.from_iterable(batches))


def _groups(*sizes: int) -> Tensor:
    """Triplets of groups of these sizes, as codes that are no row numbers."""
    return torch.repeat_interleave(100 + torch.arange(len(sizes)), torch.tensor(sizes))


# ------------------------------------------------------------------- pass after pass


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 50))
def test_a_pass_takes_each_triplet_once_in_full_batches_and_what_is_left(count, size):
    stage = 3 * torch.arange(count) + 5  # indices, not places
    stream = _stream(_batches(size), stage)
    for _ in range(3):
        one_pass = list(islice(stream, -(-count // size)))
        assert [len(batch) for batch in one_pass[:-1]] == [size] * (len(one_pass) - 1)
        assert len(one_pass[-1]) == (count % size or size)
        assert _rows(one_pass) == stage.tolist()


def test_each_pass_has_another_order():
    stage, batches = torch.arange(50), _batches(50)
    passes = [tuple(batches.take(stage).tolist()) for _ in range(4)]
    assert len({*passes, tuple(range(50))}) == 5


def test_every_triplet_is_as_likely_to_be_in_the_first_batch():
    """2,000 passes over 10 triplets, 3 of which come first: 600 each, with a standard deviation of 20.5."""
    stage, batches, counts = torch.arange(10), _batches(3), Counter()
    for number, batch in enumerate(islice(_stream(batches, stage), 8000)):
        counts.update(batch if number % 4 == 0 else [])
    assert all(abs(counts[row] - 600) < 82 for row in range(10))


def test_the_generator_decides_and_no_other():
    stage = torch.arange(30)
    first, again, other = (list(islice(_stream(_batches(7, seed=seed), stage), 20)) for seed in (1, 1, 2))
    assert first == again != other
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    _batches(7).take(stage)
    assert torch.equal(torch.rand(1), expected)


def test_a_batch_larger_than_the_stage_is_the_stage():
    batches = _batches(8)
    for _ in range(5):
        assert sorted(batches.take(torch.tensor([4, 2, 9])).tolist()) == [2, 4, 9]


def test_batches_are_indices():
    assert (
        _batches(2).take(torch.arange(3)).dtype
        == _batches(2, torch.arange(3)).take(torch.arange(3)).dtype
        == torch.long
    )


# ------------------------------------------------------------------- another stage


@pytest.mark.parametrize("group", [None, torch.arange(40)], ids=["any", "distinct"])
def test_another_stage_begins_a_new_pass(group):
    batches = _batches(4, group)
    stages = [torch.arange(12), torch.arange(20), torch.arange(12), torch.arange(8, 28)]
    for before, stage in pairwise(stages):
        batches.take(before)  # most of this pass is never taken
        assert _rows(islice(_stream(batches, stage), len(stage) // 4)) == stage.tolist()


def test_the_same_stage_goes_on_in_another_tensor():
    batches, taken = _batches(4), []
    for _ in range(3):
        taken += batches.take(torch.arange(12)).tolist()
    assert sorted(taken) == list(range(12))


def test_a_stage_that_the_caller_changes_in_place_is_another_one():
    stage, batches = torch.arange(6), _batches(3)
    batches.take(stage)
    stage += 10
    assert sorted(batches.take(stage).tolist() + batches.take(stage).tolist()) == list(range(10, 16))


# ------------------------------------------------------------------- without duplicates


sizes_of_groups = st.lists(st.integers(1, 6), min_size=1, max_size=12)


@settings(deadline=None, max_examples=80)
@given(sizes_of_groups, st.integers(1, 16))
def test_no_two_of_a_group_in_a_batch_which_is_full_where_there_are_groups_enough(sizes, size):
    group = _groups(*sizes)
    batches, stage = _batches(size, group), torch.arange(len(group))
    for batch in islice(_stream(batches, stage), 12):
        meanings = group[batch].tolist()
        assert len(set(meanings)) == len(meanings) == min(size, len(sizes))


def test_only_the_groups_of_the_stage_count():
    group, stage = _groups(2, 2, 2, 2, 2), torch.tensor([0, 1, 8, 9])
    for batch in islice(_stream(_batches(4, group), stage), 6):
        assert sorted(group[batch].tolist()) == [100, 104]


@pytest.mark.parametrize(
    ("sizes", "size"),
    [([5] * 10, 10), ([5] * 10, 7), ([1] * 9, 4), ([3] + [1] * 21, 4), ([6] + [1] * 18, 4), ([3, 3, 3], 16), ([7], 4)],
)
def test_every_triplet_comes_equally_often_in_the_long_run(sizes, size):
    """Where no group holds more than a batch's share of the triplets, or a batch holds every group."""
    group = _groups(*sizes)
    counts = Counter(
        row for batch in islice(_stream(_batches(size, group), torch.arange(len(group))), 600) for row in batch
    )
    per_batch = min(size, len(sizes))
    expected = 600 * per_batch / len(group)
    assert sum(counts.values()) == 600 * per_batch
    assert all(abs(counts[row] - expected) <= 3 for row in range(len(group)))


def test_where_all_groups_differ_a_pass_takes_each_triplet_once():
    batches, stage = _batches(4, torch.arange(12)), torch.arange(12)
    for _ in range(5):
        assert _rows(islice(_stream(batches, stage), 3)) == list(range(12))


def test_a_triplet_that_had_to_wait_comes_before_those_of_the_next_pass():
    """Two groups of two: the second batch is what the first left, whichever that was."""
    for seed in range(20):
        batches = _batches(2, _groups(2, 2), seed)
        first, second = islice(_stream(batches, torch.arange(4)), 2)
        assert sorted(first + second) == [0, 1, 2, 3]


def test_one_group_alone_gives_one_triplet_at_a_time():
    batches = _batches(4, torch.zeros(5, dtype=torch.long))
    taken = list(islice(_stream(batches, torch.arange(5)), 20))
    assert [len(batch) for batch in taken] == [1] * 20
    assert Counter(_rows(taken)) == dict.fromkeys(range(5), 4)


@pytest.mark.parametrize(("sizes", "size"), [([3] * 10, 64), ([20], 4), ([9, 1], 2), ([30, 1, 1, 2], 3)])
def test_what_waits_does_not_grow_without_end(sizes, size):
    group = _groups(*sizes)
    batches, waiting = _batches(size, group), []
    for _ in range(400):
        batches.take(torch.arange(len(group)))
        waiting.append(len(batches.state()["waiting"]))
    assert max(waiting) <= 3 * len(group)


def test_a_group_too_large_for_its_share_still_takes_turns():
    """Full batches of two need the only triplet of the small group each time; the nine others share the other place."""
    stream = _stream(_batches(2, _groups(9, 1)), torch.arange(10))
    counts = Counter(row for batch in islice(stream, 900) for row in batch)
    assert counts[9] == 900
    assert all(abs(counts[row] - 100) <= 3 for row in range(9))


# ------------------------------------------------------------------- taking it up again


@settings(deadline=None, max_examples=80)
@given(st.booleans(), sizes_of_groups, st.integers(1, 16), st.integers(0, 12))
def test_restored_batches_go_on_identically(distinct, sizes, size, before):
    group = _groups(*sizes) if distinct else None
    stage, batches = torch.arange(sum(sizes)), _batches(size, group)
    list(islice(_stream(batches, stage), before))
    state = {name: tensor.clone() for name, tensor in batches.state().items()}
    generator = torch.Generator()
    generator.set_state(batches.generator.get_state())
    fresh = Batches(size, generator, group)
    fresh.restore({name: tensor.clone() for name, tensor in state.items()})
    assert {name: tensor.tolist() for name, tensor in fresh.state().items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }
    assert list(islice(_stream(fresh, stage), 8)) == list(islice(_stream(batches, stage), 8))


def test_a_state_stays_as_it_was_taken():
    stage, batches = torch.arange(12), _batches(4)
    batches.take(stage)
    state = batches.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for one in (stage, torch.arange(5)):
        batches.take(one)
    batches.restore(state)
    batches.take(stage)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert len(state["waiting"]) == 8


def test_a_state_before_the_first_batch_can_be_saved(tmp_path):
    from safetensors.torch import load_file, save_file

    save_file(_batches(4).state(), tmp_path / "state.safetensors")
    fresh = _batches(4)
    fresh.restore(load_file(tmp_path / "state.safetensors"))
    assert fresh.take(torch.arange(9)).tolist() == _batches(4).take(torch.arange(9)).tolist()
