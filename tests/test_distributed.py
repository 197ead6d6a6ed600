"""Two processes that torchrun starts against one process with twice the batch. This file is also what they run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gate_lessons.checkpoint import CheckpointError
from gate_lessons.data import load_corpus, triplets
from gate_lessons.encoder import Bag, NGramEncoder
from gate_lessons.objectives import TripletObjective
from gate_lessons.recipe import Recipe
from gate_lessons.trainer import train

# In float32 AdamW turns the rounding noise of gradients near 0 into whole steps of ±rate, in one process as in two, so
# that only losses can be compared. In float64 the noise stays below AdamW's ε, and the weights can be compared as well.
PRECISION = "64-true"
ROWS = {"ragged": 22, "odd": 21, "alone": 17}  # the last batch of eight has six, five, one
ENOUGH = 24
VARIANTS: dict[str, dict] = {
    "plain": {},
    "two_negatives": {"strategy": "semi_hard", "negatives": 2, "remine_every": 2, "curriculum": "quantile"},
    "chunk": {"chunk": 5},
    "memory": {"memory": 24, "accumulate": 2},
    "memory_chunk": {"memory": 24, "accumulate": 2, "chunk": 5},
    "temperature": {"loss": "symmetric_ranking", "learnable_temperature": True},
    "temperature_chunk": {"learnable_temperature": True, "chunk": 4},
    "guided": {"loss": "guided_ranking"},
    "no_duplicates": {"no_duplicates": True},
    "ragged": {},
}
EPOCHS = 2
WRONG = ("without_gradients", "own_twice")


def _table(variant: str) -> pd.DataFrame:
    return triplets(load_corpus("train")[:20]).head(ROWS.get(variant, ENOUGH))


def _encoder() -> NGramEncoder:
    return NGramEncoder(width=16, buckets=2**10)


class _Noisy(NGramEncoder):
    """Dropout whose draws can be looked at."""

    def forward(self, features: Bag) -> torch.Tensor:
        embeddings = super().forward(features)
        if not self.training:
            return embeddings
        self.kept = torch.rand(embeddings.shape) > 0.2
        return embeddings * self.kept


class _Spy(TripletObjective):
    """The loss, and the groups of each batch that it was asked for."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[list[int]] = []

    def forward(self, *embeddings, **known) -> torch.Tensor:
        self.seen.append(known["group"].tolist())
        return super().forward(*embeddings, **known)


def _run(variant: str, batch: int, precision: str = PRECISION, **options) -> dict:
    recipe = {"batch_size": batch, "epochs": EPOCHS, "strategy": "given", "temperature": 0.1, "learning_rate": 0.01}
    recipe = Recipe(**recipe | VARIANTS.get(variant, {}))
    encoder = options.pop("encoder", None) or _encoder()
    objective = options.pop("objective", None) or recipe.objective()
    history = train(encoder, _table(variant), recipe, objective=objective, device="cpu", precision=precision, **options)
    weights = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
    return {"history": history, "weights": weights, "temperature": torch.as_tensor(objective.temperature()).item()}


def _two_processes(folder: Path) -> None:
    """What each of the two processes does."""
    from lightning_fabric import Fabric

    found = {"float32": _run("float32", 4, "32-true")}
    torch.set_default_dtype(torch.float64)
    found |= {name: _run(name, 4) for name in VARIANTS}
    for name in ("odd", "alone"):
        objective = _Spy(temperature=0.1)
        found[name] = _run(name, 4, objective=objective) | {"seen": objective.seen}
    noisy = _Noisy(width=16, buckets=2**10)
    found["noisy"] = _run("noisy", 4, encoder=noisy) | {"kept": noisy.kept}

    def stop(encoder: NGramEncoder) -> dict[str, float]:
        raise KeyboardInterrupt

    store = {"checkpoints": folder / "checkpoints", "save_every": 2}
    try:
        _run("two_negatives", 4, evaluate=stop, **store)
    except KeyboardInterrupt:
        found["resumed"] = _run("two_negatives", 4, **store)
    found["again"] = _run("two_negatives", 4, **store)

    right = Fabric.all_gather

    def without_gradients(fabric: Fabric, data: torch.Tensor, **_) -> torch.Tensor:
        """As it is often written: the others' embeddings without a gradient, the own ones put back in."""
        gathered = right(fabric, data.detach())
        return torch.stack([data if rank == fabric.global_rank else gathered[rank] for rank in range(2)])

    def own_twice(fabric: Fabric, data: torch.Tensor, **_) -> torch.Tensor:
        return torch.stack([data, data])

    for wrong in (without_gradients, own_twice):
        Fabric.all_gather = wrong
        found[wrong.__name__] = _run(wrong.__name__, 4)
    torch.save(found, folder / f"{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder) -> list[dict[str, dict]]:
    """What both processes found: one start for all tests, since its imports take longer than all of its training."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture
def double() -> Iterator[None]:
    """Fabric's double precision hands embeddings out in PyTorch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _differences(one: dict, other: dict) -> dict[str, float]:
    """The largest difference of the weights, and of each column of the history."""
    found = {"weights": max((one["weights"][n] - other["weights"][n]).abs().max().item() for n in one["weights"])}
    assert list(one["history"].columns) == list(other["history"].columns)
    for name in one["history"]:
        left, right = one["history"][name], other["history"][name]
        if name == "stage":
            assert left.tolist() == right.tolist()
        else:
            assert left.isna().tolist() == right.isna().tolist()
            found[name] = (left - right).abs().max()
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_give_the_loss_and_the_weights_of_one_with_twice_the_batch(two, double, variant):
    one = _run(variant, 8)
    worst = _differences(one, two[0][variant])
    assert max(worst.values()) < 1e-5, worst
    assert two[0][variant]["temperature"] == pytest.approx(one["temperature"], abs=1e-5)
    start = _encoder().state_dict()
    assert all((one["weights"][n] - start[n]).abs().max() > 1e-3 for n in start)  # five steps at 0.01 and less


def test_in_float32_the_losses_agree(two):
    worst = _differences(_run("float32", 8, "32-true"), two[0]["float32"])
    assert worst["loss"] < 1e-5 and worst["gradient_norm"] < 1e-5


def test_both_processes_end_with_the_same_bits(two):
    for name in two[0].keys() - set(WRONG):
        here, there = two[0][name], two[1][name]
        assert all(torch.equal(here["weights"][n], there["weights"][n]) for n in here["weights"])
        pd.testing.assert_frame_equal(here["history"], there["history"], check_exact=True)
        assert here["temperature"] == there["temperature"]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gathering_would_be_noticed(two, double, name):
    """AdamW forgives gradients that are all half as long, as those of `without_gradients` are; their norm tells."""
    worst = _differences(_run("plain", 8), two[0][name])
    assert worst["gradient_norm"] > 1e-2, worst


def test_a_last_batch_that_cannot_be_split_leaves_out_one_row_or_is_trained_by_all(two):
    """21 = 8 + 8 + 5 triplets: four of the five are split. 17 = 8 + 8 + 1: both processes embed the one."""
    for name, last in (("odd", 4), ("alone", 2)):
        sizes = [len(groups) for groups in two[0][name]["seen"]]
        assert sizes == [8, 8, last] * EPOCHS
        assert two[0][name]["seen"] == two[1][name]["seen"]
        assert np.isfinite(two[0][name]["history"]["loss"]).all()
    first, second = two[0]["alone"]["seen"][2]
    assert first == second


def test_each_process_draws_its_own_dropout(two):
    assert not torch.equal(two[0]["noisy"]["kept"], two[1]["noisy"]["kept"])


def test_both_processes_go_on_from_the_first_ones_checkpoint(two, folder):
    for name in ("resumed", "again"):
        for here, there in zip(
            two[0][name]["weights"].values(), two[0]["two_negatives"]["weights"].values(), strict=True
        ):
            torch.testing.assert_close(here, there, rtol=0, atol=1e-12)
        pd.testing.assert_frame_equal(two[0][name]["history"], two[0]["two_negatives"]["history"])
    with pytest.raises(CheckpointError, match="belongs to another run: batch_size is 4 there and 8 here"):
        _run("two_negatives", 8, checkpoints=folder / "checkpoints")
    with pytest.raises(CheckpointError, match="belongs to another run: processes is 2 there and 1 here"):
        _run("two_negatives", 4, checkpoints=folder / "checkpoints")


if __name__ == "__main__":
    _two_processes(Path(sys.argv[1]))
