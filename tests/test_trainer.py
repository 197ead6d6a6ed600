import hashlib
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gate_lessons import miner, objectives, trainer
from gate_lessons.checkpoint import Checkpoints
from gate_lessons.curriculum import CURRICULA, ByThreshold, Curriculum, Stage
from gate_lessons.data import candidate_pool, codes, load_corpus, triplets
from gate_lessons.encoder import Bag, NGramEncoder
from gate_lessons.losses import multiple_negatives_ranking
from gate_lessons.metrics import triplet_accuracy
from gate_lessons.objectives import LOSSES, ROW_LOSSES, TripletObjective
from gate_lessons.recipe import STRATEGIES, Recipe
from gate_lessons.sampler import Batches
from gate_lessons.text import normalize
from gate_lessons.trainer import train

CUDA = torch.cuda.is_available()
# Numbers of every tenth step.
GEOMETRY = ["active_fraction", "retrieval_accuracy", "alignment", "uniformity", "effective_rank"]
COLUMNS = [
    *["epoch", "stage", "triplets", "steps", "difficulty", "shortfall"],
    *["loss", "gradient_norm", "positive_similarity", "negative_similarity", "similarity_gap", "violation_rate"],
    *GEOMETRY,
    *["learning_rate", "temperature"],
]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """80 triplets from 40 groups of the corpus, of many topics."""
    return triplets(load_corpus("train")[:400:10])


@pytest.fixture(scope="module")
def small(table) -> pd.DataFrame:
    """24 of them, without those whose negative has the anchor's words in another order: a tie for these encoders."""
    return table[table["phenomenon"] != "role_swap"].head(24).reset_index(drop=True)


def _encoder(seed: int = 0) -> NGramEncoder:
    return NGramEncoder(width=32, buckets=2**11, seed=seed)


def _run(table: pd.DataFrame, encoder=None, options: dict | None = None, **recipe) -> tuple[NGramEncoder, pd.DataFrame]:
    encoder = encoder or _encoder()
    recipe = {"epochs": 3, "batch_size": 16, "strategy": "given", "temperature": 0.05} | recipe
    return encoder, train(encoder, table, Recipe(**recipe), device="cpu", **(options or {}))


def _weights(encoder) -> Tensor:
    return torch.cat([p.detach().flatten() for p in encoder.parameters()]).clone()


def _similarities(encoder, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    anchor = list(table["anchor"])
    return tuple(encoder.similarity(anchor, list(table[role])) for role in ("positive", "negative"))


class _Spy(TripletObjective):
    """The loss, and what it was asked with and answered, call by call."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.calls: list[dict] = []

    def forward(self, anchor: Tensor, positive: Tensor, negatives: Tensor, **known) -> Tensor:
        loss = super().forward(anchor, positive, negatives, **known)
        parts = {"anchor": anchor.detach(), "positive": positive.detach(), "negatives": negatives.detach()}
        self.calls.append(
            parts | known | {"loss": loss.item(), "temperature": torch.as_tensor(self.temperature()).item()}
        )
        return loss


@contextmanager
def _at_each_step(look: Callable[[torch.optim.Optimizer], None], after: bool = False) -> Iterator[None]:
    """Look at the optimiser just before, or just after, it moves the weights."""
    register = register_optimizer_step_post_hook if after else register_optimizer_step_pre_hook
    handle = register(lambda optimizer, *_: look(optimizer))
    try:
        yield
    finally:
        handle.remove()


def _rates(table: pd.DataFrame, **recipe) -> list[float]:
    """The learning rate of each step."""
    found = []
    with _at_each_step(lambda optimizer: found.append(optimizer.param_groups[0]["lr"])):
        _run(table, **recipe)
    return found


def _gradients(table: pd.DataFrame, encoder=None, options: dict | None = None, **recipe) -> list[list[Tensor]]:
    """The gradient of each step, unclipped: one tensor for each weight of the encoder, then the temperature's."""
    found = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        found.append([weight.grad.clone() for weight in optimizer.param_groups[0]["params"]])

    with _at_each_step(look):
        _run(table, encoder, options, **{"epochs": 1, "clip": 1e9, "learning_rate": 1e-12} | recipe)
    return found


def _assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


class _Taken:
    """The rows of each step, in the order in which the sampler gave them."""

    def __init__(self, monkeypatch) -> None:
        self.steps: list[Tensor] = []
        take = Batches.take

        def spy(batches: Batches, stage: Tensor) -> Tensor:
            self.steps.append(take(batches, stage))
            return self.steps[-1]

        monkeypatch.setattr(Batches, "take", spy)


class _Watched:
    """The texts that an encoder is asked for while it trains, call by call."""

    def __init__(self, encoder: NGramEncoder) -> None:
        self.batches: list[list[str]] = []
        table = encoder.table

        def spy(texts: list[str]) -> Callable[[Tensor], Bag]:
            texts, rows_of = list(texts), table(texts)

            def gather(rows: Tensor) -> Bag:
                if encoder.training:
                    self.batches.append([texts[row] for row in rows.tolist()])
                return rows_of(rows)

            return gather

        encoder.table = spy


# ------------------------------------------------------------------- it trains


@pytest.mark.parametrize("loss", LOSSES)
def test_training_teaches_the_training_triplets(table, loss):
    before = triplet_accuracy(*_similarities(_encoder(), table))
    encoder, history = _run(table, loss=loss)
    after = triplet_accuracy(*_similarities(encoder, table))
    # A guide that knows only the letters takes most contradictions for false negatives.
    assert after > before + (0.05 if loss == "guided_ranking" else 0.1)
    if loss != "batch_all_triplet":  # the mean over those that still violate the margin hardly falls as they get fewer
        assert history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]
    assert not torch.equal(_weights(encoder), _weights(_encoder()))
    assert history["epoch"].tolist() == [0, 1, 2] and history["steps"].tolist() == [5, 5, 5]
    assert history["triplets"].tolist() == [80, 80, 80] and set(history["stage"]) == {"all"}
    assert history.attrs == {"warnings": []}


@pytest.mark.parametrize("strategy", ["given", "random", "cluster"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(small, strategy):
    options = {"strategy": strategy, "negatives": 2, "epochs": 2, "curriculum": "quantile", "augment": 0.2}
    torch.manual_seed(1)
    one, first = _run(small, _Dropped(), **options)
    torch.manual_seed(2)  # nothing may depend on the global state
    two, second = _run(small, _Dropped(), **options)
    other, _ = _run(small, _Dropped(), seed=1, **options)
    assert torch.equal(_weights(one), _weights(two))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert not torch.equal(_weights(one), _weights(other))


def test_the_same_seed_gives_the_same_bits_with_two_threads():
    """In a process of its own, which is this file: threads that wait without spinning are asked for before PyTorch."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second


def _print_the_digests_of_two_runs() -> None:
    torch.set_num_threads(2)
    for _ in range(2):
        encoder = NGramEncoder(width=64)
        recipe = Recipe(epochs=1, batch_size=32, strategy="cluster", negatives=2, memory=64)
        history = train(encoder, triplets(load_corpus("train")[:50]), recipe, device="cpu")
        assert torch.get_num_threads() == 2
        print(hashlib.sha256(_weights(encoder).numpy().tobytes() + history.to_json().encode()).hexdigest())


@pytest.mark.parametrize(
    ("strategy", "curriculum"),
    [(s, c) for s in STRATEGIES for c in CURRICULA if c in ("none", "quantile") or (s == "hard" and c != "threshold")],
)
def test_every_strategy_runs_with_every_curriculum(small, strategy, curriculum):
    """Two steps in an epoch, the curriculum being asked before each; it is the second whose stage is told."""
    encoder, history = _run(small, strategy=strategy, curriculum=curriculum, negatives=3, epochs=5)
    assert list(history.columns) == COLUMNS
    assert np.isfinite(history.drop(columns=["stage", *GEOMETRY]).to_numpy(float)).all()
    assert np.isfinite(history[GEOMETRY].to_numpy(float)[0]).all()
    if curriculum in ("none", "quantile"):
        quantile = curriculum == "quantile"
        assert history["stage"].tolist() == (["easy", "medium", *["hard"] * 3] if quantile else ["all"] * 5)
        assert history["triplets"].tolist() == ([8, 16, 24, 24, 24] if quantile else [24] * 5)
    assert history["steps"].tolist() == [2] * 5
    assert not torch.equal(_weights(encoder), _weights(_encoder()))


def test_the_threshold_curriculum_says_what_is_wrong_or_selects(small):
    with pytest.raises(ValueError, match="stage 'easy' is empty"):
        _run(small, curriculum="threshold")
    _, history = _run(small, options={"curriculum": ByThreshold((2.8, 2.9, 3.0))}, epochs=5)
    assert history["stage"].tolist() == ["easy", "medium", "hard", "hard", "hard"]


class _Asked(Curriculum):
    """Two triplets, whatever it is asked; it notes when."""

    def __init__(self, indices: tuple[int, ...] = (5, 9)) -> None:
        super().__init__()
        self.indices, self.asked, self.shares, self.told = indices, [], [], []

    def __call__(self, difficulty: Tensor, progress: float) -> Stage:
        self.asked.append((len(difficulty), progress))
        return Stage("two", torch.tensor(self.indices))

    def observe(self, violation_rate: float) -> None:
        self.told.append(violation_rate)

    def mined_share(self, progress: float) -> float:
        self.shares.append(progress)
        return 1.0


def test_a_curriculum_sees_progress_and_only_its_triplets_are_trained(small):
    curriculum, objective = _Asked(), _Spy()
    _, history = _run(small, options={"curriculum": curriculum, "objective": objective}, epochs=2)
    groups = sorted(codes(small["group"])[0][[5, 9]].tolist())
    assert curriculum.asked == [(24, 0.0), (24, 0.25), (24, 0.5), (24, 0.75)] and curriculum.shares == [0.0, 0.5]
    assert [sorted(call["group"].tolist()) for call in objective.calls] == [groups] * 4
    assert history["triplets"].tolist() == [2] * 2 and set(history["stage"]) == {"two"}


@pytest.mark.parametrize("remine_every", [None, 7])
def test_a_curriculum_is_asked_ten_times_in_an_epoch_and_after_each_mining(table, remine_every):
    """Twenty steps an epoch: every second one, and every seventh."""
    curriculum = _Asked(tuple(range(80)))
    _run(table, options={"curriculum": curriculum}, batch_size=4, epochs=2, remine_every=remine_every)
    minings = set(range(0, 40, remine_every or 20))
    assert curriculum.asked == [(80, step / 40) for step in range(40) if step % 2 == 0 or step in minings]
    assert curriculum.shares == [step / 40 for step in sorted(minings)]


def test_a_curriculum_that_is_used_twice_begins_anew(table):
    options = {"curriculum": CURRICULA["violation"]()}
    one, two = (_run(table, options=options, strategy="hard", epochs=2)[0] for _ in range(2))
    assert torch.equal(_weights(one), _weights(two))


def test_a_curriculum_is_told_the_violation_rate_of_each_step(small):
    curriculum, objective = _Asked(tuple(range(24))), _Spy("triplet", margin=0.1)
    _, history = _run(small, options={"curriculum": curriculum, "objective": objective}, loss="triplet", margin=0.1)
    cosine = torch.nn.functional.cosine_similarity
    expected = []
    for call in objective.calls:
        s_p, s_n = cosine(call["anchor"], call["positive"]), cosine(call["anchor"], call["negatives"][:, 0])
        expected.append((s_n > s_p - 0.1).float().mean().item())
    assert curriculum.told == pytest.approx(expected) and 0 < min(expected) < max(expected) < 1
    np.testing.assert_allclose(history["violation_rate"], np.mean(np.reshape(expected, (3, 2)), axis=1), rtol=1e-6)


@pytest.mark.parametrize("count", [3, 5, 24, 80])
def test_a_run_takes_as_many_steps_as_passes_over_all_triplets_whatever_is_selected(monkeypatch, table, count):
    taken = _Taken(monkeypatch)
    curriculum = _Asked(tuple(range(count)))
    _, history = _run(table, options={"curriculum": curriculum}, batch_size=10, accumulate=2, epochs=3)
    assert history["steps"].tolist() == [4, 4, 4] and len(taken.steps) == 12
    times = torch.cat(taken.steps).bincount(minlength=80)
    assert times[count:].sum() == 0 and times[:count].max() - times[:count].min() <= 1


def test_each_epoch_takes_each_triplet_once_in_another_order(small):
    objective = _Spy()
    _run(small, options={"objective": objective}, epochs=2, batch_size=10, learning_rate=1e-12)
    orders = [call["positive"] for call in objective.calls]
    assert [len(x) for x in orders] == [10, 10, 4] * 2
    first, second = (torch.cat(orders[i : i + 3]) for i in (0, 3))
    assert not torch.allclose(first, second, atol=1e-4)
    assert torch.allclose(first.sum(0), second.sum(0), atol=1e-3)
    expected = _encoder().encode(list(small["positive"]))
    assert torch.allclose(torch.sort(first[:, 0]).values, torch.sort(expected[:, 0]).values, atol=1e-4)


# ------------------------------------------------------------------- batches


@pytest.mark.parametrize("curriculum", ["none", "quantile", "violation"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_without_duplicates_no_step_has_two_triplets_of_a_group(monkeypatch, table, curriculum, accumulate):
    group = codes(table["group"])[0]
    options = {"batch_size": 8, "accumulate": accumulate, "curriculum": curriculum, "epochs": 4}
    taken = _Taken(monkeypatch)
    _run(table, **options)
    assert any(len(set(group[rows].tolist())) < len(rows) for rows in taken.steps)  # it makes a difference
    taken.steps.clear()
    _run(table, no_duplicates=True, **options)
    assert all(len(set(group[rows].tolist())) == len(rows) for rows in taken.steps)
    if curriculum == "none":
        assert {len(rows) for rows in taken.steps} == {8 * accumulate}
        assert torch.cat(taken.steps).bincount().tolist() == [4] * 80


def test_without_duplicates_a_stage_of_few_groups_makes_small_batches(monkeypatch, table):
    taken = _Taken(monkeypatch)
    _run(table, options={"curriculum": _Asked((0, 1, 2, 3, 4, 5))}, no_duplicates=True, epochs=4)
    assert [sorted(row // 2 for row in rows.tolist()) for rows in taken.steps] == [[0, 1, 2]] * 20
    times = torch.cat(taken.steps).bincount()
    assert times.sum() == 60 and times.min() >= 9


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
    a, p = (_encoder().encode(list(small[role])).double().numpy() for role in ("anchor", "positive"))
    a, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, p))
    group = small["group"].to_numpy()
    s, other = a @ p.T, group[:, None] != group
    expected["active_fraction"] = np.mean(np.where(other, s, -2).max(axis=1) > np.diag(s) - 0.1)
    expected["retrieval_accuracy"] = np.mean(group[s.argmax(axis=1)] == group)
    expected["alignment"] = np.mean(np.sum((a - p) ** 2, axis=1))
    pairs = [np.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for i in range(24) for j in range(i)]
    expected["uniformity"] = np.log(np.mean(pairs))
    shares = np.linalg.svd(a, compute_uv=False)
    shares = shares[shares > 1e-9] / shares.sum()
    expected["effective_rank"] = np.exp(-np.sum(shares * np.log(shares)))
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-5, rel=1e-4), name
    assert (row["epoch"], row["triplets"], row["steps"], row["temperature"]) == (0, 24, 1, 0.05)
    assert 0 < row["violation_rate"] < 1 and 0 < row["active_fraction"] < 1


def test_the_geometry_is_that_of_the_epochs_first_and_every_tenth_step(table):
    """Of twelve steps the first and the eleventh; nothing moves at this rate, so only the batches differ."""
    objective = _Spy()
    options = {"batch_size": 6, "epochs": 2, "learning_rate": 1e-12}
    _, history = _run(table.head(72), options={"objective": objective}, **options)
    normal = torch.nn.functional.normalize
    distances = [(normal(call["anchor"]) - normal(call["positive"])).square().sum(dim=1) for call in objective.calls]
    expected = [torch.stack([distances[i], distances[i + 10]]).mean().item() for i in (0, 12)]
    assert history["alignment"].tolist() == pytest.approx(expected, rel=1e-4)


def test_the_gap_is_positive_minus_negative_and_the_loss_the_mean_over_steps(small):
    objective = _Spy()
    _, history = _run(small, options={"objective": objective}, batch_size=10, epochs=2)
    values = [call["loss"] for call in objective.calls]
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
            [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
        ),
        ({"epochs": 2, "batch_size": 4, "warmup": 0.5}, 7, [0.5, 1.0, 1.0, 0.5]),
        ({"epochs": 2, "batch_size": 2, "accumulate": 2, "warmup": 0.5}, 7, [0.5, 1.0, 1.0, 0.5]),
        ({"epochs": 3, "batch_size": 1, "warmup": 0.0}, 1, [1.0, 1.0, 0.5]),
        ({"epochs": 1, "batch_size": 64}, 8, [1.0]),
        ({"epochs": 4, "batch_size": 64, "warmup": 1.0}, 8, [0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_the_rate_rises_in_the_warm_up_and_falls_to_nothing(small, options, rows, expected):
    assert _rates(small.head(rows), learning_rate=1e-3, **options) == pytest.approx([1e-3 * x for x in expected])


def test_gradients_do_not_add_up_over_steps(small):
    """Nothing moves at this rate, so that one batch of everything has the same gradient at every step."""
    _, history = _run(small, epochs=4, batch_size=64, learning_rate=1e-12, loss="info_nce")
    assert history["gradient_norm"].tolist() == pytest.approx([history["gradient_norm"].iloc[0]] * 4, rel=1e-4)


def test_gradients_from_before_the_training_do_not_count(small):
    encoder = _encoder()
    (1000 * encoder(encoder.features(list(small["anchor"])))).sum().backward()
    assert torch.equal(_weights(_run(small, encoder)[0]), _weights(_run(small)[0]))


def test_every_step_of_a_training_has_a_rate_above_zero(small):
    """A step with rate 0 would be a step that trains nothing: the weights move in each epoch of one step."""
    weights = [_weights(_encoder())]
    _run(small, options={"evaluate": lambda e: weights.append(_weights(e)) or {}}, epochs=6, batch_size=64)
    assert len(weights) == 7
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights))


def test_the_history_records_the_rate_of_the_epochs_last_step(small):
    _, history = _run(small, epochs=4, batch_size=64, warmup=0.5, learning_rate=0.1)
    assert history["learning_rate"].tolist() == pytest.approx([0.05, 0.1, 0.1, 0.05])
    _, history = _run(small, epochs=2, batch_size=12, warmup=0.5, learning_rate=0.1)
    assert history["learning_rate"].tolist() == pytest.approx([0.1, 0.05])


def test_the_encoders_own_learning_rate_is_used_where_the_recipe_names_none(small):
    own = _encoder()
    own.learning_rate = 0.07
    named, _ = _run(small, learning_rate=0.07, epochs=1)
    assert torch.equal(_weights(_run(small, own, epochs=1)[0]), _weights(named))
    assert not torch.equal(_weights(_run(small, epochs=1)[0]), _weights(named))


# ------------------------------------------------------------------- batches that are too large


def _by_hand(small: pd.DataFrame, steps: list[Tensor], batch: int, **objective) -> list[list[Tensor]]:
    """The gradient of each step, and of its batches the mean over all of their rows: one loss after the other."""
    found, objective = [], TripletObjective(**objective)
    # A sentence that stands only as a negative means something else than all groups.
    group, own = (torch.from_numpy(codes(small[column])[0]) for column in ("group", "negative"))
    own = own + len(small)
    for rows in steps:
        encoder = _encoder()
        for part in rows.split(batch):
            texts = [small[role].iloc[row] for role in ("anchor", "positive", "negative") for row in part.tolist()]
            a, p, n = encoder(encoder.features(texts)).split(len(part))
            loss = objective(a, p, n[:, None], group=group[part], negative_group=own[part, None])
            (loss * len(part) / len(rows)).backward()
            objective.remember(p.detach(), n[:, None].detach(), group[part], own[part, None])
        found.append([weight.grad for weight in [*encoder.parameters(), *objective.parameters()]])
        for weight in objective.parameters():
            weight.grad = None
    return found


@pytest.mark.parametrize("loss", ["multiple_negatives_ranking", "symmetric_ranking", "batch_hard_triplet", "triplet"])
def test_accumulated_batches_have_the_mean_of_their_gradients(monkeypatch, small, loss):
    """Steps of 4 + 4 + 4 rows, of 5 + 5 and 4, of 20 + 4: every row counts the same."""
    taken = _Taken(monkeypatch)
    for batch, accumulate, sizes in ((4, 3, [12, 12]), (5, 2, [10, 10, 4]), (20, 2, [24])):
        taken.steps.clear()
        found = _gradients(small, loss=loss, batch_size=batch, accumulate=accumulate)
        assert [len(rows) for rows in taken.steps] == sizes
        for one, other in zip(found, _by_hand(small, taken.steps, batch, loss=loss), strict=True):
            _assert_close(one, other)


def test_accumulated_batches_remember_each_other_and_learn_one_temperature(monkeypatch, small):
    taken, options = _Taken(monkeypatch), {"memory": 10, "learnable_temperature": True}
    found = _gradients(small, batch_size=4, accumulate=3, **options)
    expected = _by_hand(small, taken.steps, 4, **options)
    assert len(found[0]) == 3 and found[0][2].abs() > 0
    for one, other in zip(found, expected, strict=True):
        _assert_close(one, other)


def test_the_loss_of_an_accumulated_step_is_the_mean_over_its_rows(small):
    objective = _Spy()
    _, history = _run(small, options={"objective": objective}, batch_size=20, accumulate=2, epochs=1)
    first, second = (call["loss"] for call in objective.calls)
    assert [len(call["anchor"]) for call in objective.calls] == [20, 4]
    assert history["loss"].iloc[0] == pytest.approx((20 * first + 4 * second) / 24)


def test_accumulating_is_not_the_same_as_a_large_batch(small):
    """Its rows are no negatives of each other: what chunks are for."""
    (accumulated,), (whole,) = (
        _gradients(small, batch_size=b, accumulate=a, temperature=0.2) for b, a in ((6, 4), (24, 1))
    )
    assert (accumulated[0] - whole[0]).abs().max() > 0.1 * whole[0].abs().max()


class _Noisy(NGramEncoder):
    """Dropout that draws row by row, so that chunks draw what a whole batch draws."""

    def __init__(self, **options) -> None:
        super().__init__(**{"width": 32, "buckets": 2**11} | options)
        self.sizes: list[int] = []

    def forward(self, features: Bag) -> Tensor:
        embeddings = super().forward(features)
        if self.training:
            self.sizes.append(len(embeddings))
            embeddings = embeddings * (torch.rand(embeddings.shape) > 0.2)
        return embeddings


class _Dropped(NGramEncoder):
    """PyTorch's own dropout, and what came out of it."""

    def __init__(self) -> None:
        super().__init__(width=32, buckets=2**11)
        self.dropout, self.seen = torch.nn.Dropout(0.2), []

    def forward(self, features: Bag) -> Tensor:
        embeddings = self.dropout(super().forward(features))
        self.seen.append(embeddings.detach().clone())
        return embeddings


# Losses, and what else a chunk must not change.
IN_CHUNKS = {loss: {"loss": loss} for loss in LOSSES} | {
    "negatives": {"negatives": 3, "strategy": "hard"},
    "memory": {"memory": 20, "accumulate": 3, "batch_size": 8},
    "temperature": {"learnable_temperature": True},
    "schedule": {"final_temperature": 0.5, "batch_size": 8},
    "no_duplicates": {"no_duplicates": True, "batch_size": 8},
}


@pytest.mark.parametrize("name", IN_CHUNKS)
@pytest.mark.parametrize(("chunk", "anchors"), [(7, 5), (72, 1), (1000, 1000)])
def test_a_batch_in_chunks_has_the_gradient_of_the_whole_one(monkeypatch, small, name, chunk, anchors):
    """Texts in chunks, and the losses that allow it a few anchors at a time: of 24, five times 5 of them."""
    recipe = {"batch_size": 24, "temperature": 0.1} | IN_CHUNKS[name]
    whole = _gradients(small, _Noisy(), **recipe)
    columns = recipe["batch_size"] * (1 + recipe.get("negatives", 1)) + recipe.get("memory", 0)
    monkeypatch.setattr(trainer, "BLOCK_NUMBERS", anchors * columns)
    objective = _Spy(**{k: v for k, v in recipe.items() if k in ("loss", "memory", *TEMPERATURES)}, temperature=0.1)
    encoder = _Noisy()
    found = _gradients(small, encoder, {"objective": objective}, chunk=chunk, **recipe)
    assert len(found) == len(whole)
    for one, other in zip(found, whole, strict=True):
        _assert_close(one, other)
    assert max(encoder.sizes) == min(chunk, recipe["batch_size"] * (2 + recipe.get("negatives", 1)))
    sizes = {
        call["rows"].stop - call["rows"].start if call.get("rows") else len(call["anchor"]) for call in objective.calls
    }
    assert max(sizes) == (min(anchors, recipe["batch_size"]) if objective.loss in ROW_LOSSES else 24)


TEMPERATURES = ("learnable_temperature", "final_temperature")


def test_a_batch_in_chunks_has_the_same_loss_and_history(small):
    (one, whole), (other, chunked) = (
        _run(small, _Noisy(), chunk=chunk, strategy="hard", batch_size=12) for chunk in (0, 10)
    )
    pd.testing.assert_frame_equal(whole, chunked, rtol=1e-4)
    assert not torch.equal(_weights(one), _weights(_Noisy()))
    assert (_weights(one) - _weights(other)).abs().median() < 1e-6


def test_chunks_that_draw_another_dropout_in_the_second_pass_would_be_noticed(monkeypatch, small):
    """The wrong implementation: the gradient at embeddings that the second pass does not have."""
    whole = _gradients(small, _Noisy(), batch_size=24)[0][0]
    monkeypatch.setattr(objectives, "_set_random_state", lambda state: None)
    wrong = _gradients(small, _Noisy(), batch_size=24, chunk=7)[0][0]
    assert (wrong - whole).abs().max() > 0.1 * whole.abs().max()


@pytest.mark.parametrize("augment", [0.0, 0.3])
def test_both_passes_over_a_chunk_see_the_same_and_each_step_another(small, augment):
    encoder = _Dropped()
    _gradients(small.head(8), encoder, batch_size=8, chunk=10, augment=augment, epochs=2)
    mined, *rest = encoder.seen
    passes = [rest[i : i + 3] for i in (0, 3, 7, 10)]  # 24 texts in three chunks; one mining between the epochs
    assert len(rest) == 13 and len(mined) == len(rest[6])
    for first, second in (passes[:2], passes[2:]):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(torch.cat(passes[0]) == 0, torch.cat(passes[2]) == 0)


# ------------------------------------------------------------------- negatives


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


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
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
    assert len(mined) == 2 and len(watched.batches) == 4
    for (arguments, options), found in zip(calls, mined, strict=True):
        assert arguments[3:] == ({strategy: 1.0}, 3) and options["margin"] == 0.25
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


@pytest.mark.parametrize(
    ("every", "minings"), [(1, range(8)), (3, [0, 3, 6]), (5, [0, 5]), (None, [0, 2, 4, 6]), (9, [0])]
)
def test_mining_comes_back_every_n_steps_with_the_encoder_as_it_is_then(monkeypatch, small, every, minings):
    """Two steps in each of four epochs."""
    anchors, real, texts = [], miner.mine, list(small["anchor"])
    monkeypatch.setattr(miner, "mine", lambda *x, **options: anchors.append(x[0].clone()) or real(*x, **options))
    encoder = _encoder()
    after = [encoder.encode(texts)]
    with _at_each_step(lambda _: after.append(encoder.encode(texts)), after=True):
        _run(small, encoder, strategy="hard", remine_every=every, epochs=4)
    assert len(anchors) == len(minings) and len(after) == 9
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(after))
    for used, step in zip(anchors, minings, strict=True):
        assert torch.equal(used, after[step])


def test_weights_that_change_over_training_are_those_of_the_steps_that_are_done(monkeypatch, small):
    """Eight steps, mining before steps 0, 3 and 6."""
    weights, real = [], miner.mine
    monkeypatch.setattr(miner, "mine", lambda *x, **options: weights.append(miner.parse(x[3])) or real(*x, **options))
    _run(small, strategy="random:1..0+hard:0..1", remine_every=3, epochs=4)
    expected = [{"random": 1.0}, {"random": 5 / 8, "hard": 3 / 8}, {"random": 2 / 8, "hard": 6 / 8}]
    assert weights == [pytest.approx(mixture) for mixture in expected]


def test_what_was_mined_last_is_trained_on(monkeypatch, small):
    """In the middle of an epoch too: the third mining comes before the last of its three steps."""
    mined, real = [], miner.mine
    monkeypatch.setattr(miner, "mine", lambda *x, **options: mined.append(real(*x, **options)) or mined[-1])
    encoder, taken = _encoder(), _Taken(monkeypatch)
    watched = _Watched(encoder)
    _run(small, encoder, strategy="random", remine_every=4, epochs=4, batch_size=8)
    text = candidate_pool(small)["text"].tolist()
    assert len(mined) == 3 and len(taken.steps) == len(watched.batches) == 12
    for step, (rows, texts) in enumerate(zip(taken.steps, watched.batches, strict=True)):
        assert texts[16:] == [text[i] for i in mined[step // 4].indices[rows, 0]]


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


@pytest.mark.parametrize("chunk", [0, 5])
def test_another_rows_negative_that_has_the_anchors_own_meaning_is_masked(small, chunk):
    """Hard mining finds sentences of other groups; for the anchors of those groups they are no negatives."""
    objective = _Spy(temperature=0.1)
    _run(small, options={"objective": objective}, strategy="hard", negatives=2, epochs=1, batch_size=64, chunk=chunk)
    call = objective.calls[0]
    pool, texts = candidate_pool(small), {}
    for text, group in zip(pool["text"], pool["group"], strict=True):
        texts[tuple(_encoder().encode([text])[0].tolist())] = group
    of_row, names = list(pd.unique(small["group"])), []
    for row in call["group"].tolist():
        names.append(of_row[row])
    total, masked = 0.0, 0
    cosine = torch.nn.functional.cosine_similarity
    for i, anchor in enumerate(call["anchor"].double()):
        candidates = [call["positive"][i]]
        candidates += [p for j, p in enumerate(call["positive"]) if names[j] != names[i]]
        for negative in call["negatives"].flatten(0, 1):
            if texts[min(texts, key=lambda known: math.dist(known, negative.tolist()))] == names[i]:
                masked += 1
            else:
                candidates.append(negative)
        logits = cosine(anchor, torch.stack(candidates).double()) / 0.1
        total += float(torch.logsumexp(logits, 0) - logits[0])
    assert masked > 10
    assert call["loss"] == pytest.approx(total / 24, rel=1e-5)
    unmasked = TripletObjective(temperature=0.1)(call["anchor"], call["positive"], call["negatives"], call["group"])
    assert unmasked > 1.01 * call["loss"]


# ------------------------------------------------------------------- a guide


def _guided_by_hand(call: dict, guide: NGramEncoder, small: pd.DataFrame, rows: Tensor) -> float:
    texts = {role: guide.encode([small[role].iloc[row] for row in rows.tolist()]) for role in ROLES}
    similarity = torch.nn.functional.cosine_similarity
    embeddings = torch.cat([texts["positive"], texts["negative"]])
    group = call["group"].tolist()
    mask = torch.zeros(len(rows), 2 * len(rows), dtype=torch.bool)
    for i, anchor in enumerate(texts["anchor"]):
        own = similarity(anchor, texts["positive"][i], dim=0)
        mask[i] = similarity(anchor, embeddings) > own
        for j in range(len(rows)):
            mask[i, j] |= group[i] == group[j]
        mask[i, i] = False
    candidates = torch.cat([call["positive"], call["negatives"][:, 0]])
    return multiple_negatives_ranking(call["anchor"], candidates, 0.5, mask).item()


ROLES = ("anchor", "positive", "negative")


@pytest.mark.parametrize("given", [True, False])
def test_a_guide_says_which_candidates_are_no_negatives(monkeypatch, small, given):
    """Without one the encoder as it was before training is the guide, at the last step too."""
    guide = NGramEncoder(width=8, buckets=2**11, seed=5) if given else None
    taken, objective = _Taken(monkeypatch), _Spy("guided_ranking", 0.5)
    options = {"objective": objective, "guide": guide}
    encoder, _ = _run(small, None, options, epochs=2, batch_size=8)
    found, expected, wrong = [], [], []
    for call, rows in zip(objective.calls, taken.steps, strict=True):
        found.append(call["loss"])
        expected.append(_guided_by_hand(call, guide or _encoder(), small, rows))
        wrong.append(_guided_by_hand(call, encoder, small, rows))
    assert len(found) == 6 and found == pytest.approx(expected, rel=1e-4)
    assert found[-1] != pytest.approx(wrong[-1], rel=0.01)


def test_a_guide_is_not_trained(small):
    guide = _encoder(seed=5)
    _run(small, options={"guide": guide}, loss="guided_ranking")
    assert torch.equal(_weights(guide), _weights(_encoder(seed=5)))


def test_an_objective_of_ones_own_that_needs_a_guide_gets_one(small):
    options = {"objective": TripletObjective("guided_ranking"), "guide": _encoder(seed=5)}
    expected, _ = _run(small, options={"guide": _encoder(seed=5)}, loss="guided_ranking")
    assert torch.equal(_weights(_run(small, options=options)[0]), _weights(expected))


# ------------------------------------------------------------------- texts that vary


def _augmented(small: pd.DataFrame, **recipe) -> tuple[list[list[str]], NGramEncoder]:
    encoder = _encoder()
    seen, features = [], encoder.features
    encoder.features = lambda texts: seen.append(list(texts)) or features(texts)
    _run(small, encoder, **{"batch_size": 64, "augment": 0.05, "learning_rate": 1e-12} | recipe)
    return seen, encoder


def test_augmented_texts_differ_between_steps_and_are_the_same_for_the_same_seed(small):
    original = {text for role in ROLES for text in small[role]}
    seen, _ = _augmented(small)
    assert [len(texts) for texts in seen] == [72] * 3
    for texts in seen:
        assert 0.2 < np.mean([text not in original for text in texts]) < 1
    assert len({tuple(sorted(texts)) for texts in seen}) == 3
    assert _augmented(small)[0] == seen
    assert _augmented(small, seed=1)[0][0] != seen[0]
    more, _ = _augmented(small, augment=1.0)
    assert sum(text in original for text in more[0]) < sum(text in original for text in seen[0])


def test_augmented_texts_are_the_same_in_both_passes_of_a_cached_step(small):
    seen, _ = _augmented(small, chunk=20)
    assert [len(texts) for texts in seen] == [20, 20, 20, 12] * 6
    steps = [(seen[i : i + 4], seen[i + 4 : i + 8]) for i in (0, 8, 16)]
    assert all(first == second for first, second in steps)
    assert steps[0][0] != steps[1][0] != steps[2][0]


def test_augmented_texts_are_trained_on_but_not_mined_with(monkeypatch, small):
    used, real = [], miner.mine
    monkeypatch.setattr(miner, "mine", lambda *x, **options: used.append(x[0].clone()) or real(*x, **options))
    _augmented(small, strategy="hard", epochs=1)
    assert torch.equal(used[0], _encoder().encode(list(small["anchor"])))
    plain, _ = _run(small, epochs=1)
    varied, _ = _run(small, epochs=1, augment=0.3)
    assert not torch.equal(_weights(plain), _weights(varied))


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


def test_a_scheduled_temperature_goes_by_equal_factors_from_the_first_step_to_the_last(small):
    objective = _Spy(temperature=0.4, final_temperature=0.05)
    _, history = _run(small, options={"objective": objective}, epochs=2)
    assert [call["temperature"] for call in objective.calls] == pytest.approx([0.4, 0.2, 0.1, 0.05])
    assert history["temperature"].tolist() == pytest.approx([0.2, 0.05])
    _, by_recipe = _run(small, temperature=0.4, final_temperature=0.05, epochs=2)
    pd.testing.assert_frame_equal(by_recipe, history)
    _, single = _run(small, temperature=0.4, final_temperature=0.05, epochs=1, batch_size=64)
    assert single["temperature"].tolist() == pytest.approx([0.4])


def test_a_memory_holds_the_last_batches_candidates(small):
    objective = _Spy(temperature=0.1, memory=20)
    _run(small, options={"objective": objective}, batch_size=8, memory=20, epochs=1)
    last, before = objective.calls[2], objective.calls[1]
    kept = [torch.cat([call["positive"], call["negatives"][:, 0]]) for call in (before, last)]
    expected = torch.nn.functional.normalize(torch.cat(kept)[-20:])
    order = torch.arange(28, 48) % 20  # 48 entries were written; the ring begins again after each 20
    torch.testing.assert_close(objective.memory.vectors[order], expected)


def test_the_temperature_is_trained_at_the_encoders_rate_and_clipped_with_it(small):
    """AdamW's first step moves a weight by the rate itself, the temperature's too, unless it is clipped below 1e-8."""
    for clip, moved in ((1e9, 0.01), (1e-12, 0.0)):
        objective = Recipe(temperature=0.1, learnable_temperature=True).objective()
        before = objective.temperature.position.item()
        options = {"batch_size": 64, "learning_rate": 0.01, "clip": clip, "epochs": 1}
        _run(small, options={"objective": objective}, **options)
        assert abs(objective.temperature.position.item() - before) == pytest.approx(moved, rel=1e-3, abs=1e-5)


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


class _Linear(NGramEncoder):
    """With a matrix product, which bfloat16 makes coarse; sums of n-grams stay as they are."""

    def __init__(self) -> None:
        super().__init__(width=32, buckets=2**11)
        generator = torch.Generator().manual_seed(1)
        self.linear = torch.nn.Linear(32, 32)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(32, 32, generator=generator))
            self.linear.bias.zero_()

    def forward(self, features: Bag) -> Tensor:
        return self.linear(super().forward(features))


@pytest.mark.parametrize("chunk", [0, 10])
def test_bfloat16_trains_on_the_cpu(small, chunk):
    recipe = {"strategy": "hard", "chunk": chunk, "temperature": 0.2}
    encoder, history = _run(small, _Linear(), {"precision": "bf16-mixed"}, **recipe)
    _, exact = _run(small, _Linear(), **recipe)
    assert np.isfinite(history["loss"]).all() and history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert history["loss"].tolist() == pytest.approx(exact["loss"].tolist(), rel=0.05)
    assert history["loss"].iloc[0] != exact["loss"].iloc[0]


def test_progress_shows_a_bar_of_steps(small, capsys):
    _run(small, options={"progress": True})
    assert "6/6" in capsys.readouterr().err
    _run(small)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------- what goes wrong


class _Broken(TripletObjective):
    """The loss, of which one call is broken."""

    def __init__(self, call: int, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.how, self.group = call, how, None

    def forward(self, anchor: Tensor, positive: Tensor, negatives: Tensor, **known) -> Tensor:
        loss = super().forward(anchor, positive, negatives, **known)
        self.left, self.group = self.left - 1, known["group"].tolist()
        return self.how(loss, anchor) if self.left == 0 else loss


def _names(message: str) -> list[tuple[int, str]]:
    """The triplets that an error names: number and group."""
    listed = message.split("triplets ")[1].split(":")[0].removesuffix(" …")
    pairs = [pair.rstrip(")").split(" (") for pair in listed.split(", ")]
    return [(int(number), group) for number, group in pairs]


BREAKS = {
    "loss is nan": (lambda loss, _: loss * float("nan"), "the embeddings are finite, the loss is not"),
    "loss is inf": (lambda loss, _: loss * float("inf"), "the embeddings are finite, the loss is not"),
    # The square root is 0, its slope infinite: infinity times 0.
    "gradient is nan": (lambda loss, a: loss + (0 * a).sum().sqrt(), "the loss is finite, its gradient is not"),
}


@pytest.mark.parametrize("what", BREAKS)
@pytest.mark.parametrize("chunk", [0, 5])
def test_a_broken_step_stops_with_its_number_the_batch_and_the_likely_cause(monkeypatch, small, tmp_path, what, chunk):
    how, cause = BREAKS[what]
    monkeypatch.setattr(trainer, "BLOCK_NUMBERS", 10**6)
    taken, objective = _Taken(monkeypatch), _Broken(4, how)
    options = {"objective": objective, "checkpoints": tmp_path}
    match = rf"the {what} at epoch 1, step 3, in the batch of triplets .*: {cause}: raise the temperature \(0\.05\)"
    with pytest.raises(FloatingPointError, match=match) as error:
        _run(small, options=options, learning_rate=0.02, chunk=chunk)
    rows = taken.steps[3].tolist()
    assert objective.left == 0 and len(rows) == 8
    assert _names(str(error.value)) == [(row, small["group"].iloc[row]) for row in rows[:5]]
    assert str(error.value).endswith(f". The last checkpoint is {tmp_path}/step-00000002")
    found = Checkpoints(tmp_path).latest()
    assert found.state["step"] == 2 and all(torch.isfinite(t).all() for n, t in found.tensors.items() if "encoder" in n)


def test_a_broken_step_without_checkpoints_names_none(small):
    with pytest.raises(FloatingPointError, match=r"the loss is nan at epoch 1, step 3") as error:
        _run(small, options={"objective": _Broken(4, BREAKS["loss is nan"][0])})
    assert "checkpoint" not in str(error.value)


def test_a_few_triplets_are_named_without_dots(small):
    match = r"of triplets \d \([\w-]+\), \d \([\w-]+\): the embeddings are finite"
    with pytest.raises(FloatingPointError, match=match):
        _run(small.head(2), options={"objective": _Broken(1, BREAKS["loss is nan"][0])})


@pytest.mark.parametrize("rate", [100.0, 1e38])
def test_a_learning_rate_that_explodes_stops_too(table, rate):
    match = r"the loss is (nan|inf) at epoch \d, step \d, in the batch of .*: the embeddings themselves are not finite"
    with pytest.raises(FloatingPointError, match=match) as error:
        _run(table, learning_rate=rate, warmup=0.0)
    assert f"lower the rate ({rate})" in str(error.value)


def test_broken_weights_are_named_before_they_are_mined_with(small, tmp_path):
    """A step can break the weights without a broken loss; mining must not be what complains."""
    encoder, steps = _encoder(), []

    def break_weights(_) -> None:
        steps.append(1)
        if len(steps) == 3:
            with torch.no_grad():
                encoder.vectors.weight[0, 0] = float("nan")

    match = r"weights are NaN or infinite before step 3: lower the learning rate \(0\.03\)"
    with _at_each_step(break_weights, after=True), pytest.raises(FloatingPointError, match=match) as error:
        _run(small, encoder, {"checkpoints": tmp_path, "save_every": 2}, strategy="hard", remine_every=3)
    assert str(error.value).endswith(f". The last checkpoint is {tmp_path}/step-00000002")
    assert all(torch.isfinite(t).all() for n, t in Checkpoints(tmp_path).latest().tensors.items() if "encoder" in n)


def test_broken_weights_make_no_checkpoint(small, tmp_path):
    encoder, steps = _encoder(), []

    def break_weights(_) -> None:
        steps.append(1)
        if len(steps) == 3:
            with torch.no_grad():
                encoder.vectors.weight[0, 0] = float("nan")

    with _at_each_step(break_weights, after=True), pytest.raises(FloatingPointError) as error:
        _run(small, encoder, {"checkpoints": tmp_path, "save_every": 1}, strategy="hard", remine_every=3)
    assert str(error.value).endswith(f". The last checkpoint is {tmp_path}/step-00000002")
    assert all(torch.isfinite(t).all() for n, t in Checkpoints(tmp_path).latest().tensors.items() if "encoder" in n)


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
@pytest.mark.parametrize("options", [{}, {"chunk": 10}, {"memory": 16, "accumulate": 2, "no_duplicates": True}])
def test_training_on_cuda(small, precision, options, tmp_path):
    encoder, asked = _encoder(), []

    def evaluate(encoder) -> dict[str, float]:
        asked.append(encoder.device.type)
        return {}

    options = {"strategy": "hard", "negatives": 2, "learnable_temperature": True, "augment": 0.1} | options
    recipe = Recipe(epochs=3, batch_size=16, **options)
    history = train(encoder, small, recipe, device="cuda", precision=precision, evaluate=evaluate, checkpoints=tmp_path)
    assert asked == ["cuda"] * 3 and encoder.device.type == "cpu"
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    again = train(_encoder(), small, recipe, device="cuda", precision=precision, checkpoints=tmp_path)
    pd.testing.assert_frame_equal(again, history)
    if precision == "32-true":
        _, on_cpu = _run(small, **options)
        assert history["loss"].iloc[0] == pytest.approx(on_cpu["loss"].iloc[0], rel=0.01)


if __name__ == "__main__":
    _print_the_digests_of_two_runs()
