import copy
import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gate_lessons import losses
from gate_lessons.objectives import (
    BATCH_LOSSES,
    LOSSES,
    ROW_LOSSES,
    CrossBatchMemory,
    GateHybrid,
    LearnableTemperature,
    NLIHead,
    ScheduledTemperature,
    TripletObjective,
    cached_backward,
)

BATCH, WIDTH = 6, 10
GROUP = torch.tensor([7, 1, 7, 2, 3, 4])  # rows 0 and 2 mean the same
RANKING = [name for name in LOSSES if name.endswith("ranking")]
GIVEN = ["info_nce", "triplet", "adaptive_triplet"]  # those that take no negatives from the rest of the batch


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _batch(k: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _random(BATCH, WIDTH, seed=seed),
        _random(BATCH, WIDTH, seed=seed + 1),
        _random(BATCH, k, WIDTH, seed=seed + 2),
    )


def _double(k: int = 1, seed: int = 0) -> list[Tensor]:
    return [part.double() for part in _batch(k, seed)]


def _negative_group(k: int) -> Tensor:
    """Row 1 was given negatives of the meaning of rows 0 and 2, row 4 of its own; some meanings are unknown."""
    found = torch.full((BATCH, k), -1)
    found[1, 0], found[4, k - 1], found[5, 0] = 7, 3, 99
    return found


def _guide(k: int) -> list[Tensor]:
    """Whose answers are near their anchors, so that it takes some candidates for false negatives, not most."""
    a, p, n = _double(k, seed=20)
    return [a, p + a / 2, n]


def _known(name: str, k: int, groups: str) -> dict:
    known = {"alone": {}, "group": {"group": GROUP}}
    known["both"] = known["group"] | {"negative_group": _negative_group(k)}
    return known[groups] | ({"guide": _guide(k)} if name == "guided_ranking" else {})


def _value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)]


def _assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------- what `losses` says


def _columns(p: Tensor, n: Tensor) -> Tensor:
    """Candidate j was made for anchor j modulo B."""
    return torch.stack([*p, *(n[i, j] for j in range(n.shape[1]) for i in range(len(n)))])


def _false_negatives(k: int, group: Tensor | None, negative_group: Tensor | None) -> Tensor:
    """[B, B + k·B] True where the column means what the row means, one at a time; a row's own answer never."""
    anchors = list(range(BATCH)) if group is None else group.tolist()
    columns = list(anchors)
    for j in range(k):
        columns += (
            [None] * BATCH if negative_group is None else [g if g >= 0 else None for g in negative_group[:, j].tolist()]
        )
    rows = [[i != j and columns[j] == anchors[i] for j in range(len(columns))] for i in range(BATCH)]
    return torch.tensor(rows)


def _guides_mask(guide: list[Tensor]) -> Tensor:
    """True where the guide finds the column nearer to the row than the row's own answer."""
    anchors, columns = guide[0], _columns(guide[1], guide[2])
    cosine = nn.functional.cosine_similarity
    rows = [[bool(cosine(a, c, dim=0) > cosine(a, columns[i], dim=0)) for c in columns] for i, a in enumerate(anchors)]
    return torch.tensor(rows)


def _expected(name: str, a: Tensor, p: Tensor, n: Tensor, group=None, negative_group=None, guide=None) -> Tensor:
    """The losses of the rows [B], or of the batch, with temperature 0.2 and margin 0.4."""
    k, function = n.shape[1], getattr(losses, name, losses.multiple_negatives_ranking)
    if name == "info_nce":
        return function(a, p, n, 0.2, return_parts=True)
    if name in ("triplet", "adaptive_triplet"):  # each negative on its own
        parts = [function(a, p, n[:, j], 0.4, return_parts=True) for j in range(k)]
        return sum(value for value, _ in parts) / k, {"loss": sum(part["loss"] for _, part in parts) / k}
    if name.startswith("batch"):
        anchors = list(range(BATCH)) if group is None else group.tolist()
        others = [-1] * (k * BATCH) if negative_group is None else negative_group.T.flatten().tolist()
        label = [*anchors, *anchors, *(g if g >= 0 else 1000 + j for j, g in enumerate(others))]
        return function(torch.cat([a, _columns(p, n)]), torch.tensor(label), 0.4), None
    mask = _false_negatives(k, group, negative_group)
    if guide is not None:
        mask = mask | _guides_mask(guide)
    if name in ("multiple_negatives_ranking", "guided_ranking"):
        return losses.multiple_negatives_ranking(a, _columns(p, n), 0.2, mask, return_parts=True)
    return function(a, _columns(p, n), 0.2, mask), None


# ------------------------------------------------------------------- the learned temperature


@pytest.mark.parametrize("initial", [0.006, 0.02, 0.05, 0.5, 0.99])
def test_a_learned_temperature_starts_where_it_is_told(initial):
    temperature = LearnableTemperature(initial)
    assert temperature().item() == pytest.approx(initial, rel=1e-5)
    (gradient,) = torch.autograd.grad(temperature(), temperature.position)
    assert gradient.item() > 0


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("learning_rate", [1.0, 10.0])
@pytest.mark.parametrize(("sign", "bound"), [(1, 0.01), (-1, 0.5)])
def test_a_learned_temperature_stays_inside_its_bounds_and_can_come_back(optimizer, learning_rate, sign, bound):
    temperature = LearnableTemperature(0.05, low=0.01, high=0.5)
    steps = optimizer(temperature.parameters(), lr=learning_rate)

    def push(direction: int, times: int) -> None:
        for _ in range(times):
            steps.zero_grad()
            (direction * temperature().log()).backward()
            steps.step()
            assert 0.01 * (1 - 1e-5) <= temperature().item() <= 0.5 * (1 + 1e-5)

    push(sign, 500)
    assert temperature().item() == pytest.approx(bound, rel=0.2)
    push(-sign, 1000)
    middle = (0.01 * 0.5) ** 0.5
    assert (temperature().item() - middle) * sign > 0


def test_a_learned_temperature_goes_down_for_easy_batches_and_up_for_wrong_ones():
    a = torch.eye(4, 8)
    for positive, sign in ((a, 1), (-a, -1)):
        temperature = LearnableTemperature(0.2)
        losses.multiple_negatives_ranking(a, positive, temperature()).backward()
        assert temperature.position.grad.item() * sign > 0


@pytest.mark.parametrize("values", [(0.05, 0.05, 1), (0.05, 0.0, 1), (1.0, 0.01, 1.0), (2.0, 0.01, 1.0)])
def test_a_learned_temperature_needs_bounds_around_it(values):
    with pytest.raises(ValueError, match="need 0 < low < initial < high, got low="):
        LearnableTemperature(*values)


# ------------------------------------------------------------------- one call for every loss


def test_the_losses_are_those_of_rows_and_those_of_batches():
    assert (
        set(ROW_LOSSES) | set(BATCH_LOSSES)
        == set(LOSSES)
        == {*RANKING, *GIVEN, *(n for n in LOSSES if n[:5] == "batch")}
    )
    assert len(LOSSES) == len(set(LOSSES)) == 12


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("groups", ["alone", "group", "both"])
def test_the_objective_equals_the_loss_it_stands_for(name, k, groups):
    objective, known, batch = TripletObjective(name, temperature=0.2, margin=0.4), _known(name, k, groups), _double(k)
    expected = _value_and_gradients(lambda *x: _expected(name, *x, **known)[0], *batch)
    _assert_same(_value_and_gradients(lambda *x: objective(*x, **known), *batch), expected)
    assert expected[0] > 0


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(GIVEN)))
@pytest.mark.parametrize("k", [1, 3])
def test_each_kind_of_known_meaning_changes_a_loss_of_the_batch(name, k):
    """Otherwise the test above could not tell whether it was heard."""
    objective = TripletObjective(name, temperature=0.2, margin=0.4)
    values = {objective(*_double(k), **_known(name, k, groups)).item() for groups in ("alone", "group", "both")}
    plain = TripletObjective(temperature=0.2)(*_double(k)).item()
    assert len(values | {plain}) == (3 if name == "multiple_negatives_ranking" else 4)


@pytest.mark.parametrize("k", [1, 3])
def test_ranking_leaves_out_the_answers_of_the_same_group(k):
    """Rows 0 and 2 mean the same: neither counts in the other's denominator, their negatives do."""
    a, p, n = _batch(k)
    cosine = torch.nn.functional.cosine_similarity
    total = 0.0
    for i in range(BATCH):
        answers = [p[j] for j in range(BATCH) if j == i or GROUP[j] != GROUP[i]]
        everybody = torch.stack([*answers, *n.flatten(0, 1)])
        own = cosine(a[i], p[i], dim=0) / 0.2
        total += torch.logsumexp(cosine(a[i][None], everybody) / 0.2, 0) - own
    objective = TripletObjective(temperature=0.2)
    assert objective(a, p, n, GROUP).item() == pytest.approx(total.item() / BATCH, rel=1e-5)
    assert objective(a, p, n, GROUP) < objective(a, p, n)
    assert objective(a, p, n, torch.arange(BATCH)).item() == pytest.approx(objective(a, p, n).item(), rel=1e-6)


@pytest.mark.parametrize("name", RANKING)
def test_a_mined_negative_that_means_what_another_row_means_is_no_negative_of_that_row(name):
    """All is orthogonal but each anchor to its answer, and row 1 to what was mined for row 0, which it equals."""
    a = torch.eye(BATCH, 2 * BATCH)
    p, n = a.clone(), torch.eye(2 * BATCH)[BATCH:, None].clone()
    n[0, 0] = a[1]
    group, negative_group = torch.arange(BATCH), torch.full((BATCH, 1), -1)
    guide = [a, p, torch.eye(2 * BATCH)[BATCH:, None]]
    objective = TripletObjective(name, temperature=0.05)
    with_it = objective(a, p, n, group, negative_group, guide)
    negative_group[0, 0] = 1
    assert objective(a, p, n, group, negative_group, guide) < with_it - 0.05


@pytest.mark.parametrize("name", GIVEN)
def test_the_group_changes_nothing_where_the_batch_gives_no_negatives(name):
    objective = TripletObjective(name)
    assert objective(*_batch(), torch.zeros(BATCH)).item() == objective(*_batch()).item()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("k", [1, 3])
def test_matryoshka_dims_add_the_loss_of_each_prefix(name, k):
    """A guide is no embedding of the encoder's: it keeps its full length."""
    (a, p, n), dims, known = _double(k), (WIDTH, 4, 2), _known(name, k, "both")
    plain = TripletObjective(name, 0.2, 0.4)
    expected = sum(plain(a[:, :dim], p[:, :dim], n[..., :dim], **known) for dim in dims)
    nested = TripletObjective(name, 0.2, 0.4, matryoshka_dims=dims)
    assert nested(a, p, n, **known).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_learnable_temperature_is_a_parameter_of_the_objective():
    assert not list(TripletObjective().parameters())
    objective = TripletObjective("info_nce", 0.2, learnable_temperature=True)
    loss = objective(*_batch(3))
    assert loss.item() == pytest.approx(TripletObjective("info_nce", 0.2)(*_batch(3)).item(), rel=1e-5)
    loss.backward()
    assert [p.grad.abs().item() > 0 for p in objective.parameters()] == [True]


@pytest.mark.parametrize("name", [*RANKING, "info_nce"])
def test_a_learnable_temperature_moves_with_every_loss_that_has_one(name):
    objective = TripletObjective(name, 0.2, learnable_temperature=True)
    objective(*_batch(), **_known(name, 1, "both") | {"guide": _batch(seed=20)}).backward()
    assert objective.temperature.position.grad.abs().item() > 0


# ------------------------------------------------------------------- some rows of a batch


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ROW_LOSSES),
        *((name, {"matryoshka_dims": (WIDTH, 4)}) for name in ROW_LOSSES),
        ("multiple_negatives_ranking", {"memory": 5}),
    ],
)
def test_parts_over_rows_average_to_the_whole(name, options, k):
    objective, known = TripletObjective(name, 0.2, 0.4, **options), _known(name, k, "both")
    objective.remember(*_double(k, seed=30)[1:], GROUP, _negative_group(k))

    def in_parts(*batch: Tensor) -> Tensor:
        slices = [slice(0, 1), slice(1, 4), slice(4, BATCH)]
        return sum(objective(*batch, **known, rows=rows) * (rows.stop - rows.start) / BATCH for rows in slices)

    expected = _value_and_gradients(lambda *batch: objective(*batch, **known), *_double(k))
    _assert_same(_value_and_gradients(in_parts, *_double(k)), expected)


@pytest.mark.parametrize("name", ROW_LOSSES)
@pytest.mark.parametrize("k", [1, 3])
def test_a_part_is_the_loss_of_its_rows_against_the_whole_batch(name, k):
    known = _known(name, k, "both")
    rows = _expected(name, *_double(k), **known)[1]["loss"]
    objective = TripletObjective(name, 0.2, 0.4)
    for part in (slice(0, 2), slice(2, 3), slice(3, BATCH), slice(4, None)):
        assert objective(*_double(k), **known, rows=part).item() == pytest.approx(rows[part].mean().item(), rel=1e-12)


# ------------------------------------------------------------------- bad settings


def test_an_unknown_loss_and_bad_settings_are_named():
    with pytest.raises(ValueError, match=f"unknown loss 'contrastive'; the losses are {', '.join(LOSSES)}"):
        TripletObjective("contrastive")
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        TripletObjective(temperature=0)
    with pytest.raises(ValueError, match="margin must be 0 or more, not -1"):
        TripletObjective(margin=-1)


@pytest.mark.parametrize("final", [-0.1, float("nan")])
def test_a_final_temperature_must_be_above_0(final):
    with pytest.raises(ValueError, match=f"temperature must be above 0, not {final}"):
        TripletObjective(final_temperature=final)


def test_a_final_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        TripletObjective(final_temperature=0.0)


def test_a_temperature_is_not_both_learned_and_scheduled():
    with pytest.raises(ValueError, match="a temperature is learned or scheduled, not both: drop final_temperature"):
        TripletObjective(learnable_temperature=True, final_temperature=0.1)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"multiple_negatives_ranking"}))
def test_a_memory_is_refused_by_other_losses(name):
    with pytest.raises(ValueError, match="a memory works with multiple_negatives_ranking at full width only"):
        TripletObjective(name, memory=4)


def test_a_memory_is_refused_beside_matryoshka_and_below_one_entry():
    with pytest.raises(ValueError, match="a memory works with multiple_negatives_ranking at full width only"):
        TripletObjective(memory=4, matryoshka_dims=(4,))
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"a memory needs at least 1 entry, not {size}"):
            CrossBatchMemory(size)
    with pytest.raises(ValueError, match="a memory needs at least 1 entry, not -1"):
        TripletObjective(memory=-1)


def test_guided_ranking_needs_a_guide():
    with pytest.raises(ValueError, match="guided_ranking needs a guide's embeddings of the batch"):
        TripletObjective("guided_ranking")(*_batch())


@pytest.mark.parametrize("dims", [(0,), (WIDTH + 1,), (4, -1)])
def test_matryoshka_dims_must_fit(dims):
    with pytest.raises(ValueError, match=f"must lie between 1 and the embedding's {WIDTH}"):
        TripletObjective(matryoshka_dims=dims)(*_batch())


def test_a_copy_has_a_temperature_of_its_own():
    original = TripletObjective("info_nce", 0.2, learnable_temperature=True)
    before = original(*_batch()).item()
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.temperature.position += 0.5
    assert original(*_batch()).item() == before
    assert (
        other(*_batch()).item() == TripletObjective("info_nce", other.temperature().item())(*_batch()).item() != before
    )


def test_a_copy_with_matryoshka_has_a_temperature_of_its_own():
    original = TripletObjective("info_nce", 0.2, learnable_temperature=True, matryoshka_dims=(WIDTH,))
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.temperature.position += 0.5
    assert other(*_batch()).item() != original(*_batch()).item()


def test_what_a_checkpoint_compares_tells_any_two_settings_apart():
    settings = [{}, {"temperature": 0.1}, {"margin": 0.1}, {"learnable_temperature": True}, {"final_temperature": 0.1}]
    settings += [{"matryoshka_dims": (4,)}, {"matryoshka_dims": (4, 2)}, {"memory": 4}, {"memory": 5}]
    settings += [{"loss": name} for name in LOSSES if name != "multiple_negatives_ranking"]
    assert len({TripletObjective(**options).extra_repr() for options in settings}) == len(settings)
    assert TripletObjective(memory=4).extra_repr() == TripletObjective(memory=4).extra_repr()


# ------------------------------------------------------------------- a temperature on a schedule


@pytest.mark.parametrize(("first", "last"), [(0.2, 0.02), (0.01, 0.04), (0.05, 0.05)])
def test_a_scheduled_temperature_goes_by_equal_factors_from_end_to_end(first, last):
    temperature = ScheduledTemperature(first, last)
    values = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        temperature.progress = progress
        values.append(temperature())
    assert (values[0], values[-1]) == pytest.approx((first, last), rel=1e-12)
    assert values[2] == pytest.approx(math.sqrt(first * last), rel=1e-12)
    assert [b / a for a, b in pairwise(values)] == pytest.approx([(last / first) ** 0.25] * 4)


@pytest.mark.parametrize("values", [(0, 0.1), (0.1, 0), (-0.1, 0.1), (0.1, -0.1), (float("nan"), 0.1)])
def test_a_scheduled_temperature_has_ends_above_0(values):
    with pytest.raises(ValueError, match="temperature must be above 0, not"):
        ScheduledTemperature(*values)


@pytest.mark.parametrize("name", [*RANKING, "info_nce"])
def test_an_objective_follows_its_schedule(name):
    objective, known = TripletObjective(name, 0.2, final_temperature=0.8), _known(name, 1, "both")
    for progress, temperature in ((0, 0.2), (0.5, 0.4), (1, 0.8)):
        objective.temperature.progress = progress
        expected = TripletObjective(name, temperature)(*_double(), **known).item()
        assert objective(*_double(), **known).item() == pytest.approx(expected, rel=1e-12)


def test_without_a_final_temperature_it_stays():
    objective = TripletObjective(temperature=0.2)
    objective.temperature.progress = 0.7
    assert objective.temperature() == 0.2


# ------------------------------------------------------------------- the memory


def _entries(count: int, begin: int = 0) -> tuple[Tensor, Tensor]:
    """Entry i points to angle i, with a length that is not 1, and has group i."""
    number = torch.arange(begin, begin + count)
    return (2 + number[:, None]) * torch.stack([number.cos(), number.sin()], dim=1), number


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 7), st.lists(st.integers(1, 16), min_size=1, max_size=6))
def test_the_memory_is_a_ring_of_the_last_entries(size, batches):
    """Entry i stands at place i modulo S, whatever came in with it; more than S at once leave the last S."""
    memory, places, count = CrossBatchMemory(size), {}, 0
    for batch in batches:
        memory.add(*_entries(batch, begin=count))
        places |= {number % size: number for number in range(count, count + batch)}
        count += batch
        expected = torch.tensor([places[place] for place in range(min(size, count))])
        assert torch.equal(memory.group, expected)
        torch.testing.assert_close(memory.vectors, torch.stack([expected.cos(), expected.sin()], dim=1))


def test_the_memory_writes_in_place_and_shows_without_a_copy():
    memory = CrossBatchMemory(4)
    memory.add(*_entries(3))
    pointers = memory.ring.data_ptr(), memory.groups.data_ptr()
    for begin in (3, 6, 9):
        memory.add(*_entries(3, begin))
        assert (memory.ring.data_ptr(), memory.groups.data_ptr()) == pointers
        assert (memory.vectors.data_ptr(), memory.group.data_ptr()) == pointers


def test_the_memory_keeps_what_it_was_given_then():
    memory, (vectors, group) = CrossBatchMemory(4), _entries(3)
    memory.add(vectors, group)
    vectors.zero_(), group.zero_()
    assert memory.group.tolist() == [0, 1, 2]
    torch.testing.assert_close(memory.vectors.norm(dim=1), torch.ones(3))


def test_no_gradient_reaches_what_is_remembered():
    objective = TripletObjective(memory=20)
    earlier = [part.requires_grad_() for part in _batch(seed=30)]
    objective.remember(*earlier[1:], GROUP, _negative_group(1))
    assert not objective.memory.vectors.requires_grad
    now = [part.requires_grad_() for part in _batch()]
    objective(*now, GROUP, _negative_group(1)).backward()
    assert all(part.grad is None for part in earlier)
    assert all(part.grad.abs().sum() > 0 for part in now)


@pytest.mark.parametrize("k", [1, 3])
def test_what_is_remembered_are_the_candidates_with_their_meanings(k):
    objective, (_, p, n) = TripletObjective(memory=100), _batch(k)
    objective.remember(p, n, GROUP, _negative_group(k))
    expected = [(g, p[i]) for i, g in enumerate(GROUP.tolist())]
    expected += [(g, n[i, j]) for (i, row) in enumerate(_negative_group(k).tolist()) for j, g in enumerate(row)]
    found = list(zip(objective.memory.group.tolist(), objective.memory.vectors, strict=True))
    assert len(found) == len(expected)
    for meaning, vector in expected:
        assert any(m == meaning and torch.allclose(v, vector / vector.norm(), atol=1e-6) for m, v in found)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("size", [4, 100])
def test_the_memory_gives_further_candidates(k, size):
    """As multiple negatives ranking over all of them, but those of an anchor's own meaning; −1 is nobody's."""
    objective, known = TripletObjective(temperature=0.2, memory=size), _known("multiple_negatives_ranking", k, "both")
    plain = objective(*_double(k), **known).item()
    for seed in (30, 40):
        objective.remember(*_double(k, seed)[1:], GROUP.flip(0), _negative_group(k))
    vectors, group = objective.memory.vectors, objective.memory.group
    assert len(vectors) == min(size, 2 * BATCH * (1 + k))
    seen = torch.tensor([[bool(m == g) for m in group] for g in GROUP])
    assert seen.any() or size == 4
    mask = torch.cat([_false_negatives(k, **known), seen], dim=1)

    def concatenated(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return losses.multiple_negatives_ranking(a, torch.cat([_columns(p, n), vectors]), 0.2, mask)

    expected = _value_and_gradients(concatenated, *_double(k))
    _assert_same(_value_and_gradients(lambda *batch: objective(*batch, **known), *_double(k)), expected)
    assert expected[0] > plain + 0.1


def test_a_memory_of_the_anchors_own_meanings_changes_nothing():
    objective, known = TripletObjective(memory=6), {"group": torch.zeros(BATCH, dtype=torch.long)}
    objective.memory.add(_random(6, WIDTH, seed=9), known["group"])
    assert objective(*_batch(), **known).item() == pytest.approx(
        TripletObjective()(*_batch(), **known).item(), rel=1e-6
    )


def test_without_groups_the_memory_holds_only_negatives():
    objective = TripletObjective(memory=6)
    objective.memory.add(_random(6, WIDTH, seed=9), torch.arange(6))
    expected = objective(*_batch(), group=100 + torch.arange(BATCH))
    assert objective(*_batch()).item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_empty_memory_changes_nothing():
    objective = TripletObjective(memory=6)
    assert (len(objective.memory.vectors), len(objective.memory.group)) == (0, 0)
    assert objective(*_batch(), GROUP).item() == TripletObjective()(*_batch(), GROUP).item()
    assert TripletObjective().memory is None
    TripletObjective().remember(*_batch()[1:], GROUP, _negative_group(1))


@pytest.mark.parametrize("count", [0, 3, 4, 9])
def test_a_memory_goes_on_from_a_saved_state(count):
    objective, fresh = TripletObjective(memory=4), TripletObjective(memory=4)
    if count:
        objective.memory.add(*_entries(count))
    state = copy.deepcopy(objective.state_dict())
    before = copy.deepcopy(state)
    fresh.load_state_dict(state)
    for memory in (objective.memory, fresh.memory):
        memory.add(*_entries(3, begin=count))
    assert torch.equal(fresh.memory.vectors, objective.memory.vectors)
    assert torch.equal(fresh.memory.group, objective.memory.group)
    assert all(torch.equal(state[name], before[name]) for name in before)  # what was loaded is not written on


# ------------------------------------------------------------------- a batch in chunks


class _Encoder(nn.Module):
    """Two layers with dropout between; takes down whether each call kept a graph."""

    def __init__(self, dtype: torch.dtype, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8)).to(dtype)
        self.graphs: list[bool] = []

    def forward(self, chunk: Tensor) -> Tensor:
        self.graphs.append(torch.is_grad_enabled())
        return self.layers(chunk)

    def gradients(self) -> list[Tensor]:
        return [weight.grad.clone() for weight in self.parameters()]


def _objective_of(embeddings: Tensor) -> Tensor:
    parts = embeddings[:BATCH], embeddings[BATCH : 2 * BATCH], embeddings[2 * BATCH :].unflatten(0, (BATCH, -1))
    return TripletObjective(temperature=0.2)(*parts, GROUP)


def _noisy_objective_of(embeddings: Tensor) -> Tensor:
    """A loss that draws random numbers of its own."""
    return _objective_of(nn.functional.dropout(embeddings, 0.2))


def _loss_and_gradient(embeddings: Tensor, objective: Callable = _objective_of) -> tuple[Tensor, Tensor]:
    assert not embeddings.requires_grad
    loss, gradient = _value_and_gradients(objective, embeddings)
    return loss, gradient


def _at_once(encoder: _Encoder, chunks: list[Tensor], objective: Callable = _objective_of) -> Tensor:
    loss = objective(torch.cat([encoder(chunk) for chunk in chunks]))
    loss.backward()
    return loss.detach()


def _cached(encoder: _Encoder, chunks: list[Tensor], objective: Callable = _objective_of) -> Tensor:
    return cached_backward(encoder, chunks, partial(_loss_and_gradient, objective=objective))


def _run(
    method: Callable, dtype: torch.dtype, size: int, dropout: float = 0.5, **options
) -> tuple[list[Tensor], Tensor]:
    """Loss and gradients with the same weights, texts and draws, and the random state afterwards."""
    encoder, texts = _Encoder(dtype, dropout), _random(3 * BATCH, WIDTH, seed=5).to(dtype)
    torch.manual_seed(1)
    loss = method(encoder, list(texts.split(size)), **options)
    return [loss, *encoder.gradients()], torch.get_rng_state()


@pytest.mark.parametrize("size", [1, 3, 5, 3 * BATCH])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("objective", [_objective_of, _noisy_objective_of])
def test_chunks_give_the_gradient_of_the_whole_batch(size, dtype, tolerance, objective):
    """Dropout included: the second pass draws what the first drew, and the random state is left as by one pass."""
    found, state = _run(_cached, dtype, size, objective=objective)
    expected, state_at_once = _run(_at_once, dtype, size, objective=objective)
    _assert_same(found, expected, tolerance)
    assert torch.equal(state, state_at_once)
    assert not found[0].requires_grad


@pytest.mark.parametrize("size", [1, 3])
def test_without_dropout_the_size_of_a_chunk_does_not_matter(size):
    expected, _ = _run(_at_once, torch.float64, 3 * BATCH, dropout=0.0)
    _assert_same(_run(_cached, torch.float64, size, dropout=0.0)[0], expected)


def _with_new_draws(encoder: _Encoder, chunks: list[Tensor]) -> Tensor:
    """Wrong: the second pass goes on with the random numbers."""
    with torch.no_grad():
        found = [encoder(chunk) for chunk in chunks]
    loss, gradient = _loss_and_gradient(torch.cat(found))
    for chunk, part in zip(chunks, gradient.split([len(chunk) for chunk in chunks]), strict=True):
        encoder(chunk).backward(part)
    return loss


def _chunk_by_chunk(encoder: _Encoder, chunks: list[Tensor]) -> Tensor:
    """Wrong: gradient accumulation, where a row sees as negatives only those of its own chunk."""
    total = 0.0
    for part in torch.cat(chunks).view(3, BATCH, WIDTH).split(3, dim=1):
        a, p, n = (encoder(rows) for rows in part)
        loss = TripletObjective(temperature=0.2)(a, p, n[:, None]) / 2
        loss.backward()
        total = total + loss.detach()
    return total


@pytest.mark.parametrize(("wrong", "dropout"), [(_with_new_draws, 0.5), (_chunk_by_chunk, 0.0)])
def test_what_looks_alike_gives_another_gradient(wrong, dropout):
    expected, _ = _run(_at_once, torch.float64, 3, dropout)
    found, _ = _run(wrong, torch.float64, 3, dropout)
    assert all(
        (one - other).abs().max() > 0.1 * other.abs().max()
        for one, other in zip(found[1:-1], expected[1:-1], strict=True)
    )


def test_only_one_chunk_keeps_a_graph_at_a_time_and_only_the_last_synchronises():
    encoder, events = _Encoder(torch.float64), []

    @contextmanager
    def without_sync():
        events.append("quiet")
        yield
        events.append("end")

    def backward(embeddings: Tensor, gradient: Tensor) -> None:
        events.append(len(embeddings))
        embeddings.backward(gradient)

    texts = _random(3 * BATCH, WIDTH).double()
    cached_backward(encoder, texts.split(8), _loss_and_gradient, backward, without_sync)
    assert events == ["quiet", 8, "end", "quiet", 8, "end", 2]
    assert encoder.graphs == [False] * 3 + [True] * 3


def test_the_gradient_is_added_to_what_is_there():
    encoder, chunks = _Encoder(torch.float64, dropout=0.0), _random(3 * BATCH, WIDTH).double().split(4)
    _cached(encoder, chunks)
    once = encoder.gradients()
    _cached(encoder, chunks)
    _assert_same(encoder.gradients(), [2 * gradient for gradient in once])


# ------------------------------------------------------------------- NLI and the hybrid


def test_the_nli_head_equals_a_naive_computation():
    head = NLIHead(WIDTH).double()
    u, v = _random(BATCH, WIDTH).double(), _random(BATCH, WIDTH, seed=1).double()
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    weight, bias = head.linear.weight, head.linear.bias
    total = 0.0
    for i in range(BATCH):
        scores = []
        for c in range(3):
            score = bias[c].item()
            for j in range(WIDTH):
                score += weight[c, j].item() * u[i, j].item()
                score += weight[c, WIDTH + j].item() * v[i, j].item()
                score += weight[c, 2 * WIDTH + j].item() * abs(u[i, j].item() - v[i, j].item())
            scores.append(score)
        assert head.logits(u, v)[i].tolist() == pytest.approx(scores, abs=1e-12)
        softmax = torch.tensor(scores, dtype=torch.float64).softmax(0)
        total -= softmax[label[i]].log().item()
    assert head(u, v, label).item() == pytest.approx(total / BATCH, abs=1e-12)


def test_the_nli_head_learns_what_only_the_difference_tells():
    """Label 1 where the sentences differ. No weighted sum of u and v alone can tell, |u − v| can."""
    torch.manual_seed(0)
    u = torch.randn(60, 4)
    label = torch.arange(60) % 2
    v = torch.where(label[:, None] == 1, torch.randn(60, 4), u)
    head = NLIHead(4, labels=2)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        head(u, v, label).backward()
        optimizer.step()
    assert (head.logits(u, v).argmax(1) == label).float().mean() > 0.95


@pytest.mark.parametrize("scored", ["cosent", "angle", "cosine_regression"])
def test_the_hybrid_sends_each_batch_to_its_task(scored):
    hybrid = GateHybrid(WIDTH, temperature=0.3, scored=scored)
    u, v = _random(BATCH, WIDTH), _random(BATCH, WIDTH, seed=1)
    label, score = torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6.0) / 5
    assert hybrid("classification", u, v, label).item() == hybrid.head(u, v, label).item()
    options = {} if scored == "cosine_regression" else {"temperature": 0.3}
    found = hybrid("sts", u, v, score).item()
    assert found == getattr(losses, scored)(u, v, score, **options).item()
    others = {name: GateHybrid(WIDTH, 0.3, name)("sts", u, v, score).item() for name in ("cosent", "angle")}
    assert found not in [value for name, value in others.items() if name != scored]
    if options:
        assert found != getattr(losses, scored)(u, v, score).item()


def test_the_hybrid_takes_cosent_where_nothing_is_said():
    u, v, score = _random(BATCH, WIDTH), _random(BATCH, WIDTH, seed=1), torch.arange(6.0)
    assert GateHybrid(WIDTH)("sts", u, v, score).item() == losses.cosent(u, v, score).item()


def test_the_hybrid_rejects_an_unknown_task_an_unknown_loss_and_a_bad_temperature():
    with pytest.raises(ValueError, match="unknown task 'retrieval'; the tasks are classification and sts"):
        GateHybrid(WIDTH)("retrieval", *_batch()[:2], torch.zeros(BATCH))
    with pytest.raises(
        ValueError, match="unknown loss of scored pairs 'triplet'; choose from cosent, angle, cosine_reg"
    ):
        GateHybrid(WIDTH, scored="triplet")
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        GateHybrid(WIDTH, temperature=0)
