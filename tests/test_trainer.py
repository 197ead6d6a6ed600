import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from gate_lessons import miner, trainer
from gate_lessons.curriculum import CURRICULA, AllAtOnce, ByThreshold, Stage
from gate_lessons.data import candidate_pool, load_corpus, triplets
from gate_lessons.encoder import NGramEncoder
from gate_lessons.metrics import triplet_accuracy
from gate_lessons.objectives import LOSSES, TripletObjective
from gate_lessons.text import normalize
from gate_lessons.trainer import Recipe, dynamics, train

CUDA = torch.cuda.is_available()
COLUMNS = [
    "epoch",
    "stage",
    "triplets",
    "steps",
    "difficulty",
    "shortfall",
    "loss",
    "positive_similarity",
    "negative_similarity",
    "similarity_gap",
    "violation_rate",
    "gradient_norm",
    "learning_rate",
    "temperature",
]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """80 triplets from 40 groups of the corpus."""
    return triplets(load_corpus("train")[:40])


@pytest.fixture(scope="module")
def small(table) -> pd.DataFrame:
    return table.head(24)


def _encoder(seed: int = 0) -> NGramEncoder:
    return NGramEncoder(width=32, buckets=2**11, seed=seed)


def _run(table: pd.DataFrame, encoder=None, options: dict | None = None, **recipe) -> tuple[NGramEncoder, pd.DataFrame]:
    encoder = encoder or _encoder()
    recipe = {"epochs": 3, "batch_size": 16, "strategy": "given", "temperature": 0.05} | recipe
    return encoder, train(encoder, table, Recipe(**recipe), device="cpu", **(options or {}))


def _weights(encoder) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in encoder.parameters()]).clone()


def _similarities(encoder, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    anchor = list(table["anchor"])
    return tuple(encoder.similarity(anchor, list(table[role])) for role in ("positive", "negative"))


# ------------------------------------------------------------------- it trains


@pytest.mark.parametrize("loss", LOSSES)
def test_training_teaches_the_training_triplets(table, loss):
    before = triplet_accuracy(*_similarities(_encoder(), table))
    encoder, history = _run(table, loss=loss)
    after = triplet_accuracy(*_similarities(encoder, table))
    assert after > before + 0.1
    assert history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]
    assert not torch.equal(_weights(encoder), _weights(_encoder()))
    assert history["epoch"].tolist() == [0, 1, 2] and history["steps"].tolist() == [5, 5, 5]
    assert history["triplets"].tolist() == [80, 80, 80] and set(history["stage"]) == {"all"}


@pytest.mark.parametrize("strategy", ["given", "random", "cluster"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(small, strategy):
    options = {"strategy": strategy, "negatives": 2, "epochs": 2, "curriculum": "quantile"}
    torch.manual_seed(1)
    one, first = _run(small, **options)
    torch.manual_seed(2)  # nothing may depend on the global state
    two, second = _run(small, **options)
    other, _ = _run(small, seed=1, **options)
    assert torch.equal(_weights(one), _weights(two))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert not torch.equal(_weights(one), _weights(other))


@pytest.mark.parametrize("strategy", trainer.STRATEGIES)
@pytest.mark.parametrize("curriculum", ["none", "quantile"])
def test_every_strategy_runs_with_every_curriculum(small, strategy, curriculum):
    encoder, history = _run(small, strategy=strategy, curriculum=curriculum, negatives=3)
    assert list(history.columns) == COLUMNS
    assert np.isfinite(history.drop(columns="stage").to_numpy(float)).all()
    assert history["stage"].tolist() == (["all"] * 3 if curriculum == "none" else ["easy", "medium", "hard"])
    assert history["triplets"].tolist() == ([24] * 3 if curriculum == "none" else [8, 16, 24])
    assert not torch.equal(_weights(encoder), _weights(_encoder()))


def test_the_threshold_curriculum_says_what_is_wrong_or_selects(small):
    with pytest.raises(ValueError, match="stage 'easy' is empty"):
        _run(small, curriculum="threshold")
    _, history = _run(small, options={"curriculum": ByThreshold((2.8, 2.9, 3.0))})
    assert history["stage"].tolist() == ["easy", "medium", "hard"]
    assert set(CURRICULA) == {"none", "quantile", "threshold"}


def test_a_curriculum_sees_progress_and_only_its_triplets_are_trained(small):
    asked, seen = [], []

    def curriculum(difficulty: torch.Tensor, progress: float) -> Stage:
        asked.append((len(difficulty), progress))
        return Stage("two", torch.tensor([5, 9]))

    class Spy(TripletObjective):
        def forward(self, anchor, positive, negatives, group=None):
            seen.append(sorted(group.tolist()))
            return super().forward(anchor, positive, negatives, group)

    _, history = _run(small, options={"curriculum": curriculum, "objective": Spy()}, epochs=4)
    groups = sorted(pd.factorize(small["group"])[0][[5, 9]].tolist())
    assert asked == [(24, 0.0), (24, 0.25), (24, 0.5), (24, 0.75)]
    assert seen == [groups] * 4
    assert history["triplets"].tolist() == [2] * 4 and set(history["stage"]) == {"two"}


def test_each_epoch_takes_each_triplet_once_in_another_order(small):
    orders = []

    class Spy(TripletObjective):
        def forward(self, anchor, positive, negatives, group=None):
            orders.append(positive.detach())
            return super().forward(anchor, positive, negatives, group)

    _run(small, options={"objective": Spy()}, epochs=2, batch_size=10, learning_rate=1e-12)
    assert [len(x) for x in orders] == [10, 10, 4] * 2
    first, second = (torch.cat(orders[i : i + 3]) for i in (0, 3))
    assert not torch.allclose(first, second, atol=1e-4)
    assert torch.allclose(first.sum(0), second.sum(0), atol=1e-3)
    expected = _encoder().encode(list(small["positive"]))
    assert torch.allclose(torch.sort(first[:, 0]).values, torch.sort(expected[:, 0]).values, atol=1e-4)


# ------------------------------------------------------------------- what the history says


def test_the_history_of_one_step_recomputed_by_hand(small):
    """One batch of everything: the row must describe the encoder as it was before the step."""
    _, history = _run(small, epochs=1, batch_size=64, loss="triplet", margin=0.1)
    positive, negative = _similarities(_encoder(), small)
    row = history.iloc[0]
    expected = {
        "positive_similarity": positive.mean(),
        "negative_similarity": negative.mean(),
        "similarity_gap": positive.mean() - negative.mean(),
        "violation_rate": np.mean(negative > positive - 0.1),
        "loss": np.maximum(0, negative - positive + 0.1).mean(),
        "difficulty": np.mean(negative - positive + 1),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name
    assert (row["epoch"], row["triplets"], row["steps"], row["temperature"]) == (0, 24, 1, 0.05)
    assert 0 < row["violation_rate"] < 1


def test_the_gap_is_positive_minus_negative_and_the_loss_the_mean_over_steps(small):
    values = []

    class Spy(TripletObjective):
        def forward(self, anchor, positive, negatives, group=None):
            loss = super().forward(anchor, positive, negatives, group)
            values.append(loss.item())
            return loss

    _, history = _run(small, options={"objective": Spy()}, batch_size=10, epochs=2)
    gap = history["positive_similarity"] - history["negative_similarity"]
    np.testing.assert_allclose(history["similarity_gap"], gap, atol=1e-6)
    np.testing.assert_allclose(history["loss"], [np.mean(values[:3]), np.mean(values[3:])], rtol=1e-6)


def test_the_gradient_norm_is_that_before_clipping(small):
    encoder = _encoder()
    pool = encoder.features([*small["anchor"], *small["positive"], *small["negative"]])
    a, p, n = encoder(pool).split(24)
    gradients = torch.autograd.grad(TripletObjective("triplet")(a, p, n[:, None]), list(encoder.parameters()))
    expected = torch.cat([g.flatten() for g in gradients]).norm().item()
    for clip in (1e-6, 1e6):
        _, history = _run(small, epochs=1, batch_size=64, loss="triplet", clip=clip)
        assert history["gradient_norm"].iloc[0] == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------- optimisation


def _first_step(small: pd.DataFrame, **recipe) -> float:
    """The largest change of a weight after the first of ten steps."""
    after = []
    _run(
        small,
        options={"evaluate": lambda e: after.append(_weights(e)) or {}},
        **{"epochs": 10, "batch_size": 64, "learning_rate": 0.1, "warmup": 0.5} | recipe,
    )
    return (after[0] - _weights(_encoder())).abs().max().item()


def test_the_first_step_is_as_small_as_the_warm_up_says(small):
    """AdamW's first step moves a weight by the rate itself: a fifth of 0.1 with five of ten steps to warm up."""
    assert _first_step(small) == pytest.approx(0.1 / 5, rel=0.01)
    assert _first_step(small, warmup=0.0) == pytest.approx(0.1, rel=0.01)


def test_a_tiny_clip_bounds_the_first_step(small):
    """AdamW divides by |g| + 1e-8, so that gradients clipped to far below 1e-8 hardly move anything."""
    assert _first_step(small, clip=1e-12) < 0.1 / 5 * 1e-12 / 1e-8 * 1.01
    assert _first_step(small, clip=1e12) == pytest.approx(_first_step(small), rel=0.01)


@pytest.mark.parametrize(
    ("options", "rows", "expected"),
    [
        (
            {"epochs": 10, "batch_size": 8, "warmup": 0.2},
            8,
            [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0],
        ),
        ({"epochs": 2, "batch_size": 4, "warmup": 0.5}, 7, [0.5, 1.0, 1.0, 0.5, 0.0]),
        ({"epochs": 3, "batch_size": 1, "warmup": 0.0}, 1, [1.0, 1.0, 0.5, 0.0]),
        ({"epochs": 1, "batch_size": 64}, 8, [1.0, 0.0]),
        ({"epochs": 4, "batch_size": 64, "warmup": 1.0}, 8, [0.25, 0.5, 0.75, 1.0, 0.0]),
    ],
)
def test_the_rate_rises_in_the_warm_up_and_falls_to_nothing(options, rows, expected):
    """Steps 0 … total; the last is after the training."""
    rate = trainer._rate(Recipe(**options), rows)
    assert [rate(step) for step in range(len(expected))] == pytest.approx(expected)


def test_gradients_do_not_add_up_over_steps(small):
    """Nothing moves at this rate, so that one batch of everything has the same gradient at every step."""
    _, history = _run(small, epochs=4, batch_size=64, learning_rate=1e-12, loss="info_nce")
    assert history["gradient_norm"].tolist() == pytest.approx([history["gradient_norm"].iloc[0]] * 4, rel=1e-4)


def test_every_step_of_a_training_has_a_rate_above_zero(small):
    """A step with rate 0 would be a step that trains nothing: the weights move in each epoch of one step."""
    weights = [_weights(_encoder())]
    _run(small, options={"evaluate": lambda e: weights.append(_weights(e)) or {}}, epochs=6, batch_size=64)
    assert len(weights) == 7
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights))


def test_the_history_records_the_rate_of_the_epochs_last_step(small):
    _, history = _run(small, epochs=4, batch_size=64, warmup=0.5, learning_rate=0.1)
    assert history["learning_rate"].tolist() == pytest.approx([0.05, 0.1, 0.1, 0.05])


def test_the_encoders_own_learning_rate_is_used_where_the_recipe_names_none(small):
    own = _encoder()
    own.learning_rate = 0.07
    named, _ = _run(small, learning_rate=0.07, epochs=1)
    assert torch.equal(_weights(_run(small, own, epochs=1)[0]), _weights(named))
    assert not torch.equal(_weights(_run(small, epochs=1)[0]), _weights(named))


# ------------------------------------------------------------------- negatives


class _Watched:
    """An encoder's `features`, listened to: the texts of each training batch."""

    def __init__(self, encoder: NGramEncoder) -> None:
        self.batches: list[list[str]] = []
        features = encoder.features
        encoder.features = lambda texts: (
            (self.batches.append(list(texts)) if encoder.training else None) or features(texts)
        )


def test_given_negatives_are_exactly_the_tables(small):
    encoder = _encoder()
    watched = _Watched(encoder)
    _run(small, encoder, epochs=2, batch_size=10)
    pool = {normalize(text): text for text in reversed(candidate_pool(small)["text"].tolist())}
    expected = sorted((a, p, pool[normalize(n)]) for a, p, n in small[["anchor", "positive", "negative"]].to_numpy())
    trained = []
    for texts in watched.batches:
        size = len(texts) // 3
        trained += zip(texts[:size], texts[size : 2 * size], texts[2 * size :], strict=True)
    assert sorted(trained[:24]) == sorted(trained[24:]) == expected


@pytest.mark.parametrize("strategy", miner.STRATEGIES)
def test_mined_negatives_are_trained_on_and_never_of_the_anchors_meaning(monkeypatch, small, strategy):
    mined, calls, real = [], [], miner.mine

    def spy(*arguments, **options):
        calls.append((arguments, options))
        mined.append(real(*arguments, **options))
        return mined[-1]

    monkeypatch.setattr(miner, "mine", spy)
    encoder = _encoder()
    watched = _Watched(encoder)
    _, history = _run(small, encoder, strategy=strategy, negatives=3, epochs=2, margin=0.25)
    pool = candidate_pool(small)
    text, group = pool["text"].tolist(), pool["group"].tolist()
    for (arguments, options), found in zip(calls, mined, strict=True):
        assert arguments[3:] == (strategy, 3) and options["margin"] == 0.25
        for row, indices in enumerate(found.indices.tolist()):
            assert all(group[i] != small["group"].iloc[row] for i in indices)
            assert all(normalize(text[i]) != normalize(small["anchor"].iloc[row]) for i in indices)
            assert len(set(indices)) == 3
    wanted = [{a: set() for a in small["anchor"]} for _ in range(2)]
    for epoch, found in enumerate(mined):
        for anchor, indices in zip(small["anchor"], found.indices.tolist(), strict=True):
            wanted[epoch][anchor] |= {text[i] for i in indices}
    for number, texts in enumerate(watched.batches):
        size = len(texts) // 5
        for row in range(size):
            negatives = texts[2 * size + 3 * row : 2 * size + 3 * row + 3]
            assert set(negatives) <= wanted[number // 2][texts[row]]
    np.testing.assert_allclose(history["difficulty"], [m.difficulty().mean() for m in mined], rtol=1e-5)
    np.testing.assert_allclose(history["shortfall"], [m.shortfall.sum() / m.indices.numel() for m in mined], rtol=1e-5)


@pytest.mark.parametrize(("every", "epochs", "expected"), [(1, 4, 4), (2, 5, 3), (3, 4, 2), (9, 4, 1)])
def test_mining_comes_back_every_n_epochs_with_the_encoder_as_it_is_then(monkeypatch, small, every, epochs, expected):
    anchors, real = [], miner.mine
    monkeypatch.setattr(miner, "mine", lambda *x, **options: anchors.append(x[0].clone()) or real(*x, **options))
    weights_after = []
    encoder = _encoder()
    _run(
        small,
        encoder,
        {"evaluate": lambda e: weights_after.append(e.encode(list(small["anchor"])).clone()) or {}},
        strategy="hard",
        remine_every=every,
        epochs=epochs,
    )
    assert len(anchors) == expected
    assert torch.equal(anchors[0], _encoder().encode(list(small["anchor"])))
    for number, used in enumerate(anchors[1:], 1):
        assert torch.equal(used, weights_after[number * every - 1])


def _sharing_a_positive() -> pd.DataFrame:
    """Two groups with the same positive, as NLI data has them, and enough others to choose from."""
    shared = "ذهب الولد إلى البيت"
    rows = [("ذهب الولد إلى البيت مساء", shared, "بقي الولد في المدرسة", "one")]
    rows += [("ذهب الولد الصغير إلى البيت", shared, "نام الولد في السوق", "two")]
    rows += [("السماء صافية اليوم", "الجو صحو اليوم", "السماء ملبدة بالغيوم", "three")]
    return pd.DataFrame(rows, columns=["anchor", "positive", "negative", "group"])


def test_an_anchors_own_positive_is_never_mined_for_it(monkeypatch):
    table = _sharing_a_positive()
    mined, real = [], miner.mine
    monkeypatch.setattr(miner, "mine", lambda *x, **options: mined.append(real(*x, **options)) or mined[-1])
    _run(table, strategy="hard", negatives=3, epochs=1)
    text = candidate_pool(table)["text"].tolist()
    for positive, indices in zip(table["positive"], mined[0].indices.tolist(), strict=True):
        assert positive not in [text[i] for i in indices]


# ------------------------------------------------------------------- what else happens in a run


def test_evaluate_is_called_after_each_epoch_and_lands_in_the_row(small):
    calls = []

    def evaluate(encoder) -> dict[str, float]:
        calls.append(_weights(encoder))
        return {"score": 10.0 * len(calls), "other": float(encoder.encode(["جملة"]).norm())}

    encoder, history = _run(small, options={"evaluate": evaluate})
    assert history["score"].tolist() == [10.0, 20.0, 30.0]
    assert list(history.columns) == [*COLUMNS, "score", "other"]
    assert torch.equal(calls[-1], _weights(encoder)) and not torch.equal(calls[0], calls[1])


def test_a_learnable_temperature_moves_and_is_recorded(small):
    _, fixed = _run(small)
    assert fixed["temperature"].tolist() == [0.05] * 3
    objective = Recipe(temperature=0.1, learnable_temperature=True).objective()
    _, history = _run(small, options={"objective": objective}, loss="info_nce")
    assert history["temperature"].iloc[-1] == pytest.approx(objective.temperature().item())
    assert history["temperature"].nunique() == 3 and (abs(history["temperature"] - 0.1) > 1e-3).all()
    _, by_recipe = _run(small, temperature=0.1, learnable_temperature=True)
    assert by_recipe["temperature"].tolist() == pytest.approx(history["temperature"].tolist())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_loss_stops_with_epoch_and_step(small, value):
    calls = []

    class Broken(TripletObjective):
        def forward(self, *batch):
            calls.append(1)
            return super().forward(*batch) * (value if len(calls) == 4 else 1.0)

    with pytest.raises(
        FloatingPointError, match=rf"the loss is {value} at epoch 1, step 1: lower .*\(0.02\).*\(0.07\)"
    ):
        _run(small, options={"objective": Broken()}, learning_rate=0.02, temperature=0.07)
    assert len(calls) == 4


def test_a_learning_rate_that_explodes_stops_too(small):
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at epoch \d, step \d"):
        _run(small, learning_rate=1e38, warmup=0.0)


def test_broken_weights_are_named_before_they_are_mined_with(small):
    """An epoch's last step can break the weights without a broken loss; mining must not be what complains."""

    def break_weights(encoder) -> dict[str, float]:
        with torch.no_grad():
            encoder.vectors.weight[0, 0] = float("nan")
        return {}

    with pytest.raises(
        FloatingPointError, match=r"weights are NaN or infinite before epoch 1: lower the learning rate"
    ):
        _run(small, options={"evaluate": break_weights}, strategy="hard")


def test_a_metric_called_like_a_column_is_refused(small):
    with pytest.raises(ValueError, match=r"evaluate gives 'loss', which the history already has; name it dev_loss"):
        _run(small, options={"evaluate": lambda encoder: {"loss": 1.0}})


def test_a_table_needs_neither_topic_nor_more_than_one_triplet(small):
    _, history = _run(small.drop(columns=["topic", "phenomenon"]), strategy="hard")
    assert len(history) == 3
    _, history = _run(small.head(1), epochs=1)
    assert history["steps"].tolist() == [1]


def test_row_numbers_of_the_table_do_not_matter(small):
    plain, _ = _run(small, strategy="hard")
    renumbered, _ = _run(small.set_index(np.arange(100, 124)[::-1]), strategy="hard")
    assert torch.equal(_weights(plain), _weights(renumbered))


def test_bfloat16_trains_on_the_cpu(small):
    encoder, history = _run(small, options={"precision": "bf16-mixed"}, loss="info_nce")
    assert np.isfinite(history["loss"]).all() and history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


# ------------------------------------------------------------------- devices


@pytest.mark.skipif(CUDA, reason="this machine has a CUDA GPU")
def test_cuda_without_a_gpu_is_a_clear_error(small):
    match = "device 'cuda' was asked for, but PyTorch sees no CUDA GPU here; use 'cpu' or 'auto'"
    with pytest.raises(ValueError, match=match):
        train(_encoder(), small, Recipe(), device="cuda")


def test_an_unknown_device_is_an_error(small):
    with pytest.raises(ValueError, match="unknown device 'tpu'; choose auto, cpu or cuda"):
        train(_encoder(), small, Recipe(), device="tpu")


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_on_cuda(small, precision):
    encoder, asked = _encoder(), []

    def evaluate(encoder) -> dict[str, float]:
        asked.append(encoder.device.type)
        return {}

    recipe = Recipe(epochs=3, batch_size=16, strategy="hard", negatives=2, learnable_temperature=True)
    history = train(encoder, small, recipe, device="cuda", precision=precision, evaluate=evaluate)
    assert asked == ["cuda"] * 3 and encoder.device.type == "cpu"
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    if precision == "32-true":
        _, on_cpu = _run(small, strategy="hard", negatives=2, learnable_temperature=True)
        assert history["loss"].iloc[0] == pytest.approx(on_cpu["loss"].iloc[0], rel=0.01)


# ------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"strategy": "easy"},
            "unknown strategy 'easy'; choose from given, random, hard, semi_hard, cluster, category",
        ),
        ({"curriculum": "staged"}, "unknown curriculum 'staged'; choose from none, quantile, threshold"),
        ({"negatives": 0}, "negatives must be at least 1, not 0"),
        ({"remine_every": 0}, "remine_every must be at least 1, not 0"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, not nan"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"margin": -0.1}, "margin must be 0 or more, not -0.1"),
        ({"learnable_temperature": True, "temperature": 2.0}, "need 0 < low < initial < high"),
        ({"warmup": -0.1}, "warmup"),
        ({"warmup": 1.5}, "warmup"),
        ({"clip": 0.0}, "clip"),
        ({"clip": -1.0}, "clip"),
    ],
)
def test_a_recipe_refuses_what_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        Recipe(**options)


def test_a_recipe_makes_its_objective():
    objective = Recipe(loss="triplet", margin=0.7).objective()
    assert (objective.loss, objective.margin) == ("triplet", 0.7)
    assert Recipe(temperature=0.3).objective().temperature() == 0.3
    assert list(Recipe(learnable_temperature=True).objective().parameters())


def test_a_recipe_cannot_be_changed_behind_its_checks():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 0
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        dataclasses.replace(Recipe(), epochs=0)


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


def test_dynamics_read_a_real_history(small):
    _, history = _run(small, options={"curriculum": AllAtOnce()})
    found = dynamics(history)
    assert found["loss_trend"] == "decreasing" and 0 < found["loss_reduction"] <= 100
    assert found["similarity_gap"] == history["similarity_gap"].iloc[-1]
