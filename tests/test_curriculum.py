import json
import math
import re
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gate_lessons.curriculum import (
    CURRICULA,
    STAGES,
    AllAtOnce,
    ByCompetence,
    ByQuantile,
    ByThreshold,
    ByViolation,
    Curriculum,
    MixedNegatives,
    SelfPaced,
    easiest,
    stage_number,
)

IN_STAGE = (0.0, 0.3, 0.7)  # a share of training inside each of the stages
difficulties = st.lists(st.floats(-1, 3, width=32), min_size=1, max_size=60).map(torch.tensor)
shares = st.floats(0, 1, exclude_max=True)
FIFTY = torch.linspace(0, 2, 50)[torch.randperm(50, generator=torch.Generator().manual_seed(0))]


def _easiest(difficulty: torch.Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(difficulty)), key=lambda i: difficulty[i].item())[:count])


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


# ------------------------------------------------------------------- by competence


@pytest.mark.parametrize(
    ("start", "full_at", "progress", "competence"),
    [
        (0.1, 0.5, 0.0, 0.1),
        (0.1, 0.5, 0.25, 0.710634),  # √(½·0.99 + 0.01)
        (0.1, 0.5, 0.01, 0.172627),  # √(0.02·0.99 + 0.01)
        (0.01, 1.0, 0.5, 0.707142),  # the paper's c₀
        (0.5, 0.8, 0.2, 0.661438),  # √(¼·0.75 + 0.25)
        (0.1, 0.5, 0.5, 1.0),
        (0.1, 0.5, 0.9, 1.0),
        (1.0, 0.5, 0.0, 1.0),
    ],
)
def test_competence_is_the_formula_of_platanios_et_al(start, full_at, progress, competence):
    difficulty = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    stage = ByCompetence(start, full_at)(difficulty, progress)
    assert stage.indices.tolist() == _easiest(difficulty, round(1000 * competence))
    assert stage.name == f"competence {competence:.0%}"


def test_competence_by_default_grows_from_a_tenth_to_all_at_half_time():
    counts = [len(ByCompetence()(torch.arange(1000.0), progress).indices) for progress in (0, 0.499, 0.5)]
    assert counts[0] == 100
    assert 995 < counts[1] < 1000
    assert counts[2] == 1000


@settings(deadline=None, max_examples=100)
@given(difficulties, st.floats(0.01, 1), st.floats(0.01, 1), st.lists(shares, min_size=2, max_size=6))
def test_competence_only_grows_and_its_square_by_equal_steps(difficulty, start, full_at, progress):
    curriculum, before = ByCompetence(start, full_at), set()
    for share in sorted(progress):
        chosen = curriculum(difficulty, share).indices.tolist()
        squared = start**2 + (1 - start**2) * share / full_at
        wanted = len(difficulty) * min(1, math.sqrt(squared))
        assert abs(len(chosen) - max(1, wanted)) <= 0.5 + 1e-6
        assert before <= set(chosen)
        before = set(chosen)


# ------------------------------------------------------------------- at the learner's own pace


def test_self_paced_takes_half_at_first_and_all_at_the_end():
    curriculum = SelfPaced(margin=1.5, full_at=0.5)  # at this margin every triplet has a loss
    assert curriculum(FIFTY, 0.0).indices.tolist() == _easiest(FIFTY, 25)
    for progress in (0.5, 0.6, 0.99):
        assert curriculum(FIFTY, progress).indices.tolist() == list(range(50))
    assert curriculum(FIFTY + 1, 0.5).indices.tolist() == list(range(50))  # whatever the losses
    assert curriculum(FIFTY, 0.0).name == "self-paced"


@settings(deadline=None, max_examples=100)
@given(difficulties, st.lists(st.tuples(difficulties, shares), max_size=4), st.floats(0, 1), st.floats(0.1, 1))
def test_self_paced_has_a_limit_that_rises_from_the_median_to_the_largest_loss(first, later, margin, full_at):
    curriculum, low, high = SelfPaced(margin, full_at), None, None
    for difficulty, progress in [(first, 0.0), *later]:
        loss = (difficulty - 1 + margin).clamp_min(0)
        if low is None:
            low, high = statistics.median_low(loss.tolist()), max(loss.tolist())
        limit = low + progress / full_at * (high - low)
        everything = list(range(len(loss)))
        within = everything if progress >= full_at else [i for i in everything if loss[i] <= limit]
        found = curriculum(difficulty, progress).indices.tolist()
        assert found == (within or _easiest(difficulty, max(1, round(0.1 * len(loss)))))
        assert found


def test_self_paced_takes_in_what_was_learnt_even_while_the_limit_stands():
    curriculum = SelfPaced(margin=1.5)
    before = set(curriculum(FIFTY, 0.0).indices.tolist())
    learnt = FIFTY - 0.4
    after = set(curriculum(learnt, 0.0).indices.tolist())
    assert before < after
    assert len(after) == 34  # the first 25 and the 9 that lay up to 0.4 above the limit, in steps of 2/49
    assert len(curriculum(FIFTY, 0.0).indices) == 25  # the limit is that of the first question


def test_self_paced_takes_the_easiest_tenth_where_nothing_is_below_the_limit():
    curriculum = SelfPaced(margin=1.5)
    curriculum(FIFTY, 0.0)
    assert curriculum(FIFTY + 5, 0.0).indices.tolist() == _easiest(FIFTY, 5)


def test_the_margin_of_self_paced_decides_what_has_a_loss():
    """Half of the triplets violate no margin of 0.3: their median loss is 0, and they are in at first."""
    difficulty = torch.tensor([0.2, 0.7, 0.6, 0.9, 1.4])
    assert SelfPaced(0.3)(difficulty, 0.0).indices.tolist() == [0, 1, 2]
    assert SelfPaced(0.35)(difficulty, 0.0).indices.tolist() == [0, 1, 2]
    assert SelfPaced(0.0)(difficulty, 0.0).indices.tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------- by what it violates


def _counts(curriculum: Curriculum, rates: list[list[float]]) -> list[int]:
    """How many of 100 triplets it takes after each of these series of violation rates."""
    counts = []
    for series in rates:
        for rate in series:
            curriculum.observe(rate)
        counts.append(len(curriculum(torch.arange(100.0), 0.5).indices))
    return counts


def test_few_violations_make_it_grow_many_shrink_and_the_band_stay():
    curriculum = ByViolation(start=0.4, low=0.5, high=0.8, step=0.1)
    assert _counts(curriculum, [[], [0.49], [0.5], [0.65], [0.8], [0.81], [1.0]]) == [40, 50, 50, 50, 50, 40, 30]


def test_it_stays_between_a_step_and_everything():
    assert _counts(ByViolation(start=0.8, step=0.15), [[0.0]] * 3) == [95, 100, 100]
    assert _counts(ByViolation(start=0.4, step=0.15), [[1.0]] * 3) == [25, 15, 15]


def test_it_takes_the_mean_since_the_last_question_and_then_forgets():
    curriculum = ByViolation(start=0.4)
    assert _counts(curriculum, [[1.0, 0.0, 0.2], [0.9, 0.9, 0.6], [], []]) == [50, 50, 50, 50]
    assert _counts(curriculum, [[0.9], [0.4]]) == [40, 50]  # together they lie inside the band


def test_it_takes_the_easiest_and_says_how_many():
    stage = ByViolation(start=0.3)(FIFTY, 0.9)
    assert (stage.name, stage.indices.tolist()) == ("share 30%", _easiest(FIFTY, 15))


@settings(deadline=None, max_examples=60)
@given(
    st.floats(0.1, 1), st.floats(0.01, 0.1), st.lists(st.lists(st.integers(0, 16).map(lambda n: n / 16)), max_size=8)
)
def test_violations_move_the_share_as_in_a_loop(start, step, rates):
    curriculum, share = ByViolation(start, low=0.25, high=0.75, step=step), start
    for series, count in zip(rates, _counts(curriculum, rates), strict=True):
        mean = sum(series) / len(series) if series else 0.5
        share = min(1.0, share + step) if mean < 0.25 else max(step, share - step) if mean > 0.75 else share
        assert abs(count - max(1, 100 * share)) <= 0.5 + 1e-6


# ------------------------------------------------------------------- by where negatives come from


def test_mixed_negatives_go_from_random_ones_to_all_mined():
    curriculum = MixedNegatives(full_at=0.4)
    found = [curriculum.mined_share(progress) for progress in (0.0, 0.1, 0.2, 0.4, 0.9)]
    assert found == pytest.approx([0, 0.25, 0.5, 1, 1])
    assert max(found) == 1.0
    assert MixedNegatives().mined_share(0.25) == 0.5
    stage = curriculum(torch.tensor([3.0, -1.0, 1.0]), 0.0)
    assert (stage.name, stage.indices.tolist()) == ("all", [0, 1, 2])


@pytest.mark.parametrize("name", sorted(set(CURRICULA) - {"mixed"}))
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.9])
def test_the_others_have_all_negatives_mined(name, progress):
    assert CURRICULA[name]().mined_share(progress) == 1.0


# ------------------------------------------------------------------- all of them


def test_a_curriculum_of_ones_own_needs_only_the_call():
    class Backwards(Curriculum):
        def __call__(self, difficulty, progress):
            return progress

    with pytest.raises(NotImplementedError):
        Curriculum()(torch.zeros(3), 0.0)
    assert Backwards().observe(0.5) is None
    assert (Backwards().state, Backwards().mined_share(0.2)) == ({}, 1.0)
    Backwards().state["x"] = 1.0
    assert Backwards().state == {}


@settings(deadline=None, max_examples=60)
@given(difficulties, st.lists(st.tuples(st.lists(st.floats(0, 1), max_size=4), shares), min_size=1, max_size=6))
@pytest.mark.parametrize("name", sorted(set(CURRICULA) - {"threshold"}))
def test_every_answer_is_some_triplets_in_order(name, difficulty, questions):
    curriculum = CURRICULA[name]()
    for rates, progress in questions:
        for rate in rates:
            curriculum.observe(rate)
        indices = curriculum(difficulty, progress).indices
        assert indices.dtype == torch.long
        assert indices.tolist() == sorted(set(indices.tolist()))
        assert 0 <= indices[0] <= indices[-1] < len(difficulty)


@pytest.mark.parametrize("name", CURRICULA)
def test_a_copy_of_the_state_makes_a_fresh_curriculum_go_on_identically(name):
    """Through JSON, as in a checkpoint, and between two questions, when part of the violations were seen."""
    generator = torch.Generator().manual_seed(0)
    mined = [torch.rand(40, generator=generator) * 0.3 for _ in range(12)]
    rates = torch.rand(12, 3, generator=generator).tolist()

    def answers(curriculum: Curriculum, questions: range, seen: int) -> list[tuple[str, list[int], float]]:
        found = []
        for number in questions:
            for rate in rates[number][seen:]:
                curriculum.observe(rate)
            stage, seen = curriculum(mined[number], number / 12), 0
            found.append((stage.name, stage.indices.tolist(), curriculum.mined_share(number / 12)))
        return found

    options = {"threshold": {"thresholds": (0.2, 0.5, 1.0)}, "violation": {"low": 0.4, "high": 0.6}}.get(name, {})
    for stop in range(6):
        first, fresh = CURRICULA[name](**options), CURRICULA[name](**options)
        answers(first, range(stop), 0)
        first.observe(rates[stop][0])
        fresh.state = json.loads(json.dumps(first.state))
        assert fresh.state == first.state
        assert answers(fresh, range(stop, 12), 1) == answers(first, range(stop, 12), 1)


@pytest.mark.parametrize("name", ["self_paced", "violation"])
def test_those_that_adapt_need_their_state(name):
    """Otherwise the test above could not tell whether it was taken over."""
    first, fresh = CURRICULA[name](), CURRICULA[name]()
    first(FIFTY, 0.0)
    first.observe(0.0)
    assert len(first(FIFTY - 0.4, 0.0).indices) != len(fresh(FIFTY - 0.4, 0.0).indices)


@pytest.mark.parametrize("value", [0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize(
    ("curriculum", "name"),
    [
        (ByCompetence, "start"),
        (ByCompetence, "full_at"),
        (SelfPaced, "full_at"),
        (MixedNegatives, "full_at"),
        (ByViolation, "start"),
        (ByViolation, "step"),
    ],
)
def test_a_setting_that_is_a_share_is_above_0_and_up_to_1(curriculum, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a share above 0 and up to 1, not {value}"):
        curriculum(**{name: value})
    curriculum(**{name: 1})


@pytest.mark.parametrize("band", [(0.5, 0.5), (0.8, 0.5), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_the_band_of_violation_rates_has_a_width(band):
    with pytest.raises(ValueError, match=rf"need 0 ≤ low < high ≤ 1, got low={band[0]}, high={band[1]}"):
        ByViolation(low=band[0], high=band[1])
    ByViolation(low=0, high=1)


@pytest.mark.parametrize("progress", [-0.01, 1.0, float("nan")])
@pytest.mark.parametrize("curriculum", [ByQuantile, ByThreshold, ByCompetence, SelfPaced])
def test_a_curriculum_that_goes_by_progress_checks_it(curriculum, progress):
    with pytest.raises(ValueError, match="progress is the share of training already done"):
        curriculum()(torch.zeros(5), progress)


@settings(deadline=None, max_examples=100)
@given(difficulties, st.floats(0.01, 1))
def test_the_easiest_are_some_in_order_none_harder_than_the_rest(difficulty, share):
    chosen = easiest(difficulty, share).tolist()
    assert chosen == _easiest(difficulty, max(1, round(share * len(difficulty))))


def test_the_names_stand_for_the_curricula():
    assert {
        "none": AllAtOnce,
        "quantile": ByQuantile,
        "threshold": ByThreshold,
        "competence": ByCompetence,
        "self_paced": SelfPaced,
        "violation": ByViolation,
        "mixed": MixedNegatives,
    } == CURRICULA
