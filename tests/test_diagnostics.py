import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from gate_lessons.data import load_corpus, triplets
from gate_lessons.diagnostics import CollapseWarning, Watch, cause_of_failure, collapse_signs, dynamics
from gate_lessons.encoder import NGramEncoder, make_encoder
from gate_lessons.recipe import Recipe
from gate_lessons.trainer import train

STEPS = ["loss", "gradient_norm", "positive_similarity", "negative_similarity", "similarity_gap", "violation_rate"]
GEOMETRY = ["active_fraction", "retrieval_accuracy", "alignment", "uniformity", "effective_rank"]


def _batch(rows: int = 12, k: int = 2, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors, positives near them, negatives, groups of two."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(rows, width, generator=generator)
    positive = anchor + torch.randn(rows, width, generator=generator)
    negatives = anchor[:, None] + 1.5 * torch.randn(rows, k, width, generator=generator)
    return anchor, positive, negatives, torch.arange(rows) // 2


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def _naive(a: Tensor, p: Tensor, n: Tensor, group: Tensor, margin: float) -> dict[str, float]:
    """Loop after loop in float64."""
    a, p, n, group = (x.double().numpy() if x.is_floating_point() else x.tolist() for x in (a, p, n, group))
    rows = range(len(a))
    s_p = [_cosine(a[i], p[i]) for i in rows]
    s_n = [[_cosine(a[i], negative) for negative in n[i]] for i in rows]
    pairs = [(s_p[i], s) for i in rows for s in s_n[i]]
    unit = [x / math.sqrt(x @ x) for x in a]
    answers = [x / math.sqrt(x @ x) for x in p]
    active = retrieved = 0
    for i in rows:
        others = [_cosine(a[i], p[j]) for j in rows if group[j] != group[i]]
        active += any(s > s_p[i] - margin for s in others)
        best = max(rows, key=lambda j, i=i: _cosine(a[i], p[j]))
        retrieved += group[best] == group[i]
    potential = [math.exp(-2 * np.sum((unit[i] - unit[j]) ** 2)) for i in rows for j in range(i)]
    values = np.linalg.svd(np.array(unit), compute_uv=False)
    shares = values / values.sum()
    return {
        "positive_similarity": np.mean(s_p),
        "negative_similarity": np.mean(s_n),
        "similarity_gap": np.mean([x - y for x, y in pairs]),
        "violation_rate": np.mean([y > x - margin for x, y in pairs]),
        "active_fraction": active / len(a),
        "retrieval_accuracy": retrieved / len(a),
        "alignment": np.mean([np.sum((x - y) ** 2) for x, y in zip(unit, answers, strict=True)]),
        "uniformity": math.log(np.mean(potential)),
        "effective_rank": math.exp(-sum(s * math.log(s) for s in shares if s > 1e-12)),
    }


# ------------------------------------------------------------------- numbers of a step


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_each_number_equals_a_naive_computation(margin, seed):
    watch, batch = Watch(margin), _batch(seed=seed)
    rate = watch.see(torch.tensor(1.5), torch.tensor(0.25), *batch)
    expected = {"loss": 1.5, "gradient_norm": 0.25} | _naive(*batch, margin)
    assert rate == pytest.approx(expected["violation_rate"])
    found = watch.summary()
    assert list(found) == STEPS + GEOMETRY
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name
    assert 0 < found["violation_rate"] < 1 and 0 < found["active_fraction"] < 1


def test_the_answers_of_the_same_group_are_neither_active_nor_misses():
    """Rows 0 and 1 mean the same and have each other's positive; row 2 is far away."""
    anchor = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])
    positive = anchor[[1, 0, 2]]
    for group, active, retrieved in (([0, 0, 1], 0.0, 1.0), ([0, 1, 2], 2 / 3, 1 / 3)):
        watch = Watch(0.1)
        watch.see(torch.tensor(0.0), torch.tensor(0.0), anchor, positive, -anchor[:, None], torch.tensor(group))
        assert (watch.rows[0]["active_fraction"], watch.rows[0]["retrieval_accuracy"]) == pytest.approx(
            (active, retrieved)
        )


def test_the_first_and_every_tenth_step_of_an_epoch_has_the_geometry_and_the_epoch_the_means():
    watch = Watch(0.2)
    for steps in (23, 4, 11):
        for seed in range(steps):
            watch.see(torch.tensor(float(seed)), torch.tensor(1.0), *_batch(seed=seed))
        seen = [seed for seed, row in enumerate(watch.rows) if GEOMETRY[0] in row]
        assert seen == list(range(0, steps, 10)) and all(set(GEOMETRY) <= watch.rows[seed].keys() for seed in seen)
        found, expected = watch.summary(), [_naive(*_batch(seed=seed), 0.2) for seed in range(steps)]
        assert found["loss"] == pytest.approx(np.mean(range(steps)))
        for name in STEPS[2:]:
            assert found[name] == pytest.approx(np.mean([e[name] for e in expected]), abs=1e-5), name
        for name in GEOMETRY:
            assert found[name] == pytest.approx(np.mean([expected[seed][name] for seed in seen]), abs=1e-5), name
    assert watch.rows == [] and watch.summary() == {}


def test_the_geometry_is_that_of_the_first_256_rows():
    batch = _batch(rows=300)
    watch = Watch(0.2)
    watch.see(torch.tensor(0.0), torch.tensor(0.0), *batch)
    first, whole = _naive(*(x[:256] for x in batch), 0.2), _naive(*batch, 0.2)
    for name in GEOMETRY:
        assert watch.rows[0][name] == pytest.approx(first[name], abs=1e-4), name
    for name in STEPS[2:]:
        assert watch.rows[0][name] == pytest.approx(whole[name], abs=1e-4), name
    assert first["uniformity"] != pytest.approx(whole["uniformity"], abs=1e-3)


def test_one_row_alone_has_no_geometry():
    watch = Watch(0.2)
    watch.see(torch.tensor(0.0), torch.tensor(0.0), *_batch(rows=1))
    assert list(watch.rows[0]) == STEPS


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_give_plain_numbers(dtype):
    watch, (a, p, n, group) = Watch(0.2), _batch()
    watch.see(torch.tensor(1.0, dtype=dtype), torch.tensor(1.0), a.to(dtype), p.to(dtype), n.to(dtype), group)
    expected = _naive(a, p, n, group, 0.2)
    assert all(type(value) is float for value in watch.rows[0].values())
    assert watch.rows[0]["uniformity"] == pytest.approx(expected["uniformity"], abs=0.02)


def test_watching_has_no_gradient_and_changes_nothing():
    batch = [x.requires_grad_() if x.is_floating_point() else x for x in _batch()]
    copies = [x.detach().clone() for x in batch]
    Watch(0.2).see(torch.tensor(1.0, requires_grad=True), torch.tensor(1.0), *batch)
    assert all(torch.equal(x, y) and x.grad is None for x, y in zip(batch, copies, strict=True))


# ------------------------------------------------------------------- signs of collapse


HEALTHY = {
    "epoch": 0,
    "loss": 0.05,
    "positive_similarity": 0.8,
    "negative_similarity": 0.3,
    "uniformity": -2.5,
    "effective_rank": 40.0,
}


def _signs(last: dict[str, float], loss: str = "triplet", margin: float = 0.3) -> list[CollapseWarning]:
    return collapse_signs([HEALTHY, HEALTHY | {"epoch": 1}, HEALTHY | {"epoch": 2} | last], loss, margin)


def test_a_healthy_history_shows_no_sign():
    assert _signs({}) == [] and collapse_signs([HEALTHY], "triplet", 0.3) == []


SIGNS = {
    "one point": ({"uniformity": -0.2}, "uniformity -0.20, above -0.3", "a lower learning rate"),
    "rank": ({"effective_rank": 8.0}, "the effective rank fell from 40.0 to 8.0", "a higher temperature or a lower"),
    "margin": (
        {"loss": 0.303, "positive_similarity": 0.99},
        "the loss stands at the margin, 0.303 of 0.3, with all similarities near 1",
        "a lower learning rate",
    ),
}


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_of_collapse_shows_alone_and_says_what_to_try(name):
    last, sign, advice = SIGNS[name]
    (warning,) = _signs(last)
    assert isinstance(warning, UserWarning) and warning.epoch == 2
    assert sign in warning.sign and warning.advice.startswith(advice)
    assert str(warning) == f"epoch 2: {warning.sign}. Try {warning.advice}"
    for better in ("semi_hard", "random", "learning rate"):
        assert better in warning.advice


def test_all_signs_show_together():
    last = SIGNS["one point"][0] | SIGNS["rank"][0] | SIGNS["margin"][0]
    assert len({warning.sign for warning in _signs(last)}) == 3


@pytest.mark.parametrize(
    "last",
    [
        {"uniformity": -0.31},
        {"effective_rank": 10.1},
        {"loss": 0.303},  # the positives are not near: the loss is at the margin by chance
        {"positive_similarity": 0.99},
        {"loss": 0.32, "positive_similarity": 0.99},
        {"loss": 0.28, "positive_similarity": 0.99},
    ],
)
def test_what_is_only_near_a_sign_is_none(last):
    assert _signs(last) == []


@pytest.mark.parametrize(
    ("loss", "seen"),
    [("triplet", 1), ("batch_hard_triplet", 1), ("batch_semi_hard_triplet", 1), ("multiple_negatives_ranking", 0)],
)
def test_only_triplet_losses_stand_at_the_margin(loss, seen):
    assert len(_signs(SIGNS["margin"][0], loss)) == seen
    assert _signs(SIGNS["margin"][0], loss, margin=0.5) == []


def test_an_epoch_without_geometry_shows_what_it_can():
    bare = {name: value for name, value in HEALTHY.items() if name not in GEOMETRY}
    assert collapse_signs([HEALTHY, bare | {"epoch": 1}], "triplet", 0.3) == []
    assert len(collapse_signs([bare, bare | SIGNS["margin"][0]], "triplet", 0.3)) == 1
    assert collapse_signs([bare, HEALTHY], "triplet", 0.3) == []


def _train(encoder: NGramEncoder, table: pd.DataFrame, **recipe) -> tuple[pd.DataFrame, list]:
    """The history, and the collapses that were warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = train(encoder, table, Recipe(**recipe), device="cpu")
    return history, [item for item in caught if issubclass(item.category, CollapseWarning)]


@pytest.fixture(scope="module")
def collapsed() -> tuple[pd.DataFrame, list]:
    """Lesson 04's: triplet loss, the hardest negatives, a learning rate of 2 where 0.03 is usual."""
    table = triplets(load_corpus("train")[:160])
    encoder = NGramEncoder(width=64, buckets=2**13).fit_idf([*table["anchor"], *table["positive"]])
    return _train(encoder, table, loss="triplet", strategy="hard", learning_rate=2.0, epochs=4, batch_size=16)


def test_a_run_that_collapses_warns_once_of_each_sign(collapsed):
    history, caught = collapsed
    assert history["uniformity"].iloc[-1] > -0.3 and history["uniformity"].iloc[0] < -1
    messages = [str(item.message) for item in caught]
    assert history.attrs["warnings"] == messages and len(set(messages)) == len(messages) >= 2
    assert [item.filename for item in caught] == [__file__] * len(caught)
    point, rank = (next(m for m in messages if words in m) for words in ("close to one point", "effective rank fell"))
    first = (history["uniformity"] > -0.3).idxmax()
    assert point.startswith(f"epoch {first}: ") and f"uniformity {history['uniformity'][first]:.2f}" in point
    first = (history["effective_rank"] < 0.25 * history["effective_rank"][0]).idxmax()
    assert rank.startswith(f"epoch {first}: ") and f"to {history['effective_rank'][first]:.1f}" in rank
    assert caught[0].message.advice in messages[0]


def test_the_loss_at_the_margin_is_told_where_the_embeddings_are_at_one_point_too(collapsed):
    history, _ = collapsed
    at_margin = (history["loss"] - 0.3).abs() < 0.015
    assert (at_margin & (history["positive_similarity"] > 0.95)).any()
    assert any("stands at the margin" in sentence for sentence in history.attrs["warnings"])


def test_dynamics_read_a_real_history(collapsed):
    history, _ = collapsed
    found = dynamics(history)
    assert found["final_loss"] == history["loss"].iloc[-1]
    assert found["similarity_gap"] == history["similarity_gap"].iloc[-1]
    assert found["violation_rate"] == history["violation_rate"].iloc[-1]


def test_a_run_of_short_epochs_is_warned_of_too():
    """Eight steps in an epoch: one look at the geometry in each."""
    table = triplets(load_corpus("train")[:32])
    encoder = NGramEncoder(width=16, buckets=2**13).fit_idf([*table["anchor"], *table["positive"]])
    options = {"loss": "triplet", "strategy": "hard", "learning_rate": 5.0, "epochs": 10, "batch_size": 8}
    history, caught = _train(encoder, table, **options)
    assert history["steps"].iloc[0] == 8 and history["uniformity"].notna().all()
    assert any("close to one point" in str(item.message) for item in caught)


def test_a_usual_run_on_the_corpus_warns_of_nothing():
    table = triplets(load_corpus("train")[:320])
    encoder = make_encoder("ngram", [*table["anchor"], *table["positive"], *table["negative"]])
    history, caught = _train(encoder, table)
    assert caught == [] and history.attrs["warnings"] == []
    assert len(history) == 5 and history[GEOMETRY].notna().all(axis=None)
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]


# ------------------------------------------------------------------- causes of a failure


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("broken", "loss", "cause", "advice"),
    [
        (0, NAN, "the embeddings themselves are not finite", "lower the rate (0.5)"),
        (1, 1.0, "the embeddings themselves are not finite", "lower the rate (0.5)"),
        (2, INF, "the embeddings themselves are not finite", "lower the rate (0.5)"),
        (None, NAN, "the embeddings are finite, the loss is not", "raise the temperature (0.05)"),
        (None, INF, "the embeddings are finite, the loss is not", "raise the temperature (0.05)"),
        (None, 1.0, "the loss is finite, its gradient is not", "raise the temperature (0.05) or lower the rate (0.5)"),
    ],
)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_cause_of_a_failure_is_the_first_that_is_not_finite(broken, loss, cause, advice, value):
    parts = [torch.ones(3, 2), torch.ones(3, 2), torch.ones(3, 1, 2)]
    if broken is not None:
        parts[broken].view(-1)[3 if broken < 2 else 1] = value
    found = cause_of_failure(parts, torch.tensor(loss), 0.5, 0.05)
    assert found.startswith(cause) and advice in found


# ------------------------------------------------------------------- dynamics


def _history(*losses: float) -> pd.DataFrame:
    steps = np.arange(len(losses))
    return pd.DataFrame(
        {"loss": np.array(losses, float), "similarity_gap": steps / 10, "violation_rate": 1 - steps / 10}
    )


def test_dynamics_of_a_falling_loss():
    found = dynamics(_history(2.0, 1.5, 1.0))
    assert found == {
        "loss_trend": "decreasing",
        "loss_reduction": 50.0,
        "final_loss": 1.0,
        "similarity_gap": pytest.approx(0.2),
        "violation_rate": pytest.approx(0.8),
        "stability": pytest.approx(1 / (1 + (1 / 6) ** 0.5)),
    }


@pytest.mark.parametrize(
    ("losses", "trend", "reduction"),
    [
        ((1.0, 1.5), "increasing", -50.0),
        ((1.0, 9.0, 1.0), "flat", 0.0),
        ((1.0, 0.9995), "flat", 0.05),
        ((1.0, 0.998), "decreasing", 0.2),
        ((1.0, 1.002), "increasing", -0.2),
    ],
)
def test_the_trend_compares_the_last_loss_with_the_first(losses, trend, reduction):
    found = dynamics(_history(*losses))
    assert found["loss_trend"] == trend
    assert found["loss_reduction"] == pytest.approx(reduction)


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_equal_losses_are_stable_where_the_tutorial_divided_by_zero(count):
    found = dynamics(_history(*[0.4] * count))
    assert found["stability"] == 1.0 and found["loss_trend"] == "flat"


def test_stability_looks_at_the_last_five_losses():
    late = [1.0, 2.0, 3.0, 4.0, 5.0]
    expected = 1 / (1 + 2**0.5)  # the population's variance of 1 … 5 is 2
    assert dynamics(_history(*late))["stability"] == pytest.approx(expected)
    assert dynamics(_history(100.0, 0.0, *late))["stability"] == pytest.approx(expected)


def test_a_first_loss_of_zero_has_no_percentage():
    found = dynamics(_history(0.0, 0.5))
    assert np.isnan(found["loss_reduction"]) and found["loss_trend"] == "increasing"
    assert dynamics(_history(0.0, 0.0))["loss_trend"] == "flat"


def test_dynamics_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="the history is empty: nothing was trained"):
        dynamics(_history())
