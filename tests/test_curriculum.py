import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gate_lessons.curriculum import CURRICULA, STAGES, AllAtOnce, ByQuantile, ByThreshold, stage_number

IN_STAGE = (0.0, 0.3, 0.7)  # a share of training inside each of the stages
difficulties = st.lists(st.floats(-1, 3, width=32), min_size=1, max_size=60).map(torch.tensor)


@pytest.mark.parametrize(("progress", "number"), [(0.0, 0), (0.199, 0), (0.2, 1), (0.499, 1), (0.5, 2), (0.999, 2)])
def test_stages_begin_after_0_20_and_50_percent(progress, number):
    assert stage_number(progress) == number


@pytest.mark.parametrize("progress", [-0.01, 1.0, 2.0, float("nan")])
def test_progress_outside_the_training_is_an_error(progress):
    with pytest.raises(ValueError, match="progress is the share of training already done, 0 ≤ progress < 1, not"):
        stage_number(progress)


def test_ten_epochs_are_the_tutorials_2_3_and_5():
    numbers = [stage_number(epoch / 10) for epoch in range(10)]
    assert [numbers.count(number) for number in range(3)] == [2, 3, 5]


@settings(deadline=None, max_examples=60)
@given(difficulties)
def test_quantile_stages_are_nested_sized_and_the_easiest(difficulty):
    before: set[int] = set()
    for progress, share, name in zip(IN_STAGE, (1 / 3, 2 / 3, 1.0), STAGES, strict=True):
        stage = ByQuantile()(difficulty, progress)
        chosen = stage.indices.tolist()
        assert stage.name == name
        assert chosen == sorted(set(chosen))
        assert len(chosen) == max(1, round(share * len(difficulty)))
        rest = set(range(len(difficulty))) - set(chosen)
        assert all(difficulty[i] <= difficulty[j] for i in chosen for j in rest)
        assert before <= set(chosen)
        before = set(chosen)
    assert len(before) == len(difficulty)


def test_quantile_shares_are_used():
    difficulty = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7])
    stages = [ByQuantile((0.2, 0.4, 0.8))(difficulty, progress).indices.tolist() for progress in IN_STAGE]
    assert stages == [[1], [1, 3], [1, 2, 3, 4]]


def test_a_small_share_still_leaves_one_triplet():
    assert ByQuantile((0.01, 0.02, 1.0))(torch.tensor([0.9, 0.1, 0.5]), 0.0).indices.tolist() == [1]


def test_thresholds_select_exactly_with_their_ends():
    difficulty = torch.tensor([0.5, 1.0, 0.75, 0.25, 1.25])
    curriculum = ByThreshold((0.25, 0.75, 1.0))
    stages = [curriculum(difficulty, progress) for progress in IN_STAGE]
    assert [stage.indices.tolist() for stage in stages] == [[3], [0, 2, 3], [0, 1, 2, 3]]
    assert [stage.name for stage in stages] == list(STAGES)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.floats(0.5, 1.5, width=32), min_size=1, max_size=30).map(torch.tensor), st.sampled_from(range(3)))
def test_the_error_of_an_empty_stage_names_a_threshold_that_selects_something(difficulty, number):
    with pytest.raises(ValueError, match=f"stage '{STAGES[number]}' is empty: no triplet has difficulty ≤") as error:
        ByThreshold((0.1, 0.2, 0.3))(difficulty, IN_STAGE[number])
    suggested = float(re.search(r"A threshold of ([-\d.]+) would select", str(error.value)).group(1))
    thresholds = [suggested - 2, suggested - 1, suggested, suggested + 1, suggested + 2][2 - number : 5 - number]
    assert len(ByThreshold(thresholds)(difficulty, IN_STAGE[number]).indices)


def test_the_error_of_an_empty_stage_says_where_the_triplets_lie():
    difficulty = torch.linspace(0.875, 1.125, 31)
    with pytest.raises(ValueError, match=r"no triplet has difficulty ≤ 0\.3; they lie between 0\.875 and 1\.125") as e:
        ByThreshold()(difficulty, 0.0)
    found = re.search(r"threshold of ([\d.]+) would select (\d+)% of them", str(e.value))
    share = (difficulty <= float(found.group(1))).float().mean().item()
    assert share == pytest.approx(1 / 3, abs=0.05)
    assert share == pytest.approx(int(found.group(2)) / 100, abs=0.05)


def test_the_tutorials_thresholds_select_nothing_at_the_difficulties_of_an_untrained_encoder():
    with pytest.raises(ValueError, match="stage 'medium' is empty"):
        ByThreshold()(torch.linspace(0.87, 1.13, 10), 0.3)


@pytest.mark.parametrize("values", [(0.1, 0.5), (0.1, 0.5, 0.5), (0.5, 0.1, 1.0), (0.1, 0.2, 0.3, 0.4)])
@pytest.mark.parametrize(("curriculum", "name"), [(ByQuantile, "shares"), (ByThreshold, "thresholds")])
def test_stages_must_grow(values, curriculum, name):
    with pytest.raises(ValueError, match=rf"{name} must be 3 growing numbers \(easy, medium, hard\), not \["):
        curriculum(values)


@pytest.mark.parametrize("shares", [(0.0, 0.5, 1.0), (-0.1, 0.5, 1.0), (0.1, 0.5, 1.1)])
def test_shares_must_be_shares(shares):
    with pytest.raises(ValueError, match="shares must lie above 0 and up to 1, not"):
        ByQuantile(shares)


@pytest.mark.parametrize("progress", IN_STAGE)
def test_no_curriculum_takes_everything_from_the_start(progress):
    stage = AllAtOnce()(torch.tensor([3.0, -1.0, 1.0]), progress)
    assert (stage.name, stage.indices.tolist()) == ("all", [0, 1, 2])


def test_the_names_stand_for_the_curricula():
    assert {"none": AllAtOnce, "quantile": ByQuantile, "threshold": ByThreshold} == CURRICULA
