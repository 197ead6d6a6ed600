"""Checkpoints, and runs that are killed with SIGKILL and taken up again."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from gate_lessons import trainer
from gate_lessons.checkpoint import STATE, TENSORS, CheckpointError, Checkpoints
from gate_lessons.curriculum import AllAtOnce, ByQuantile, ByViolation
from gate_lessons.data import load_corpus, triplets
from gate_lessons.diagnostics import CollapseWarning
from gate_lessons.encoder import Bag, NGramEncoder
from gate_lessons.material import Material
from gate_lessons.objectives import TripletObjective
from gate_lessons.recipe import Recipe
from gate_lessons.trainer import train

# A process for each kill, forked from one that has done the imports.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["pytest", "lightning_fabric", "safetensors.torch", "sklearn.feature_extraction.text", "tqdm.auto"]
PROCESSES.set_forkserver_preload([*IMPORTED, "gate_lessons.trainer"])

# ------------------------------------------------------------------- files


TENSORS_OF_A_RUN = {
    "float": torch.linspace(0, 1, 7),
    "double": torch.tensor([0.1], dtype=torch.float64),
    "half": torch.ones(3, 2, dtype=torch.bfloat16),
    "long": torch.arange(4),
    "byte": torch.tensor([0, 255], dtype=torch.uint8),
    "scalar": torch.tensor(3.5),
    "none": torch.empty(0, dtype=torch.long),
    "transposed": torch.arange(6.0).view(2, 3).T,
}
STATE_OF_A_RUN = {"step": 7, "name": "جملة", "numbers": [0.1, 1e-300, None], "nested": {"a": True}}


@pytest.fixture
def store(tmp_path) -> Checkpoints:
    """The checkpoints of steps 3 and 7."""
    store = Checkpoints(tmp_path / "new" / "folder")
    store.save(3, TENSORS_OF_A_RUN, STATE_OF_A_RUN | {"step": 3})
    store.save(7, TENSORS_OF_A_RUN, STATE_OF_A_RUN)
    return store


def test_a_checkpoint_comes_back_as_it_was(store):
    found = store.latest()
    assert found.path == store.folder / "step-00000007" and found.state == STATE_OF_A_RUN
    assert found.tensors.keys() == TENSORS_OF_A_RUN.keys()
    for name, tensor in TENSORS_OF_A_RUN.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)


def test_a_checkpoint_is_safetensors_and_json(store):
    path = store.folder / "step-00000007"
    assert sorted(file.name for file in path.iterdir()) == [STATE, TENSORS] == ["state.json", "tensors.safetensors"]
    assert safetensors.torch.load_file(path / TENSORS).keys() == TENSORS_OF_A_RUN.keys()
    assert json.loads(json.loads((path / STATE).read_text(encoding="utf-8"))["state"]) == STATE_OF_A_RUN


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert Checkpoints(tmp_path / "nothing").latest() is None
    assert Checkpoints(tmp_path).latest() is None and Checkpoints(str(tmp_path)).paths() == []


def test_the_last_two_are_kept_by_their_number(tmp_path):
    store = Checkpoints(tmp_path)
    for step in (9, 10, 99, 100, 1000):
        assert store.save(step, TENSORS_OF_A_RUN, {"step": step}) == tmp_path / f"step-{step:08d}"
        assert store.latest().state == {"step": step}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00001000"]


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _write(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / STATE).write_text(text, encoding="utf-8")


def _flip(name: str, place: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        (folder / name).write_bytes(content)

    return damage


def _forge(**fields: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        (folder / STATE).write_text(json.dumps(content | fields), encoding="utf-8")

    return damage


DAMAGES = {
    "tensors cut short": (_truncate(TENSORS), "its contents do not have the checksum that it names"),
    "tensors empty": (lambda folder: os.truncate(folder / TENSORS, 0), "checksum"),
    "a bit of a tensor": (_flip(TENSORS, 1.0), "checksum"),
    "a bit of the tensors' header": (_flip(TENSORS, 0.1), "checksum"),
    "tensors missing": (lambda folder: (folder / TENSORS).unlink(), "FileNotFoundError: .*tensors.safetensors"),
    "state missing": (lambda folder: (folder / STATE).unlink(), "FileNotFoundError: .*state.json"),
    "state cut short": (_truncate(STATE), "JSONDecodeError"),
    "state empty": (_write(""), "JSONDecodeError"),
    "state no JSON": (_write("{"), "JSONDecodeError"),
    "state a list": (_write("[]"), "TypeError"),
    "state without a checksum": (_write('{"state": "{}"}'), "KeyError: 'sha256'"),
    "another state": (_forge(state='{"step": 8}'), "checksum"),
    "another checksum": (_forge(sha256="0" * 64), "checksum"),
    "everything missing": (lambda folder: [file.unlink() for file in folder.iterdir()], "FileNotFoundError"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_a_sentence_and_the_one_before_it_used(store, name):
    damage, why = DAMAGES[name]
    damage(store.folder / "step-00000007")
    sentence = rf"checkpoint {store.folder}/step-00000007 is damaged: .*{why}.*; going on from step-00000003 instead"
    with pytest.warns(UserWarning, match=sentence) as caught:
        found = store.latest()
    assert len(caught) == 1 and caught[0].filename == __file__
    assert found.path.name == "step-00000003" and found.state["step"] == 3
    torch.testing.assert_close(found.tensors, TENSORS_OF_A_RUN)


@pytest.mark.parametrize("name", ["tensors cut short", "state no JSON", "everything missing"])
def test_where_all_are_damaged_the_error_names_them_and_what_to_do(store, name):
    for path in store.paths():
        DAMAGES[name][0](path)
    with pytest.raises(CheckpointError, match="is damaged") as error:
        store.latest()
    message = str(error.value)
    assert "step-00000003 is damaged" in message and "step-00000007 is damaged" in message
    assert message.endswith(f"Delete {store.folder} to train from the beginning")


def test_no_flipped_bit_goes_unnoticed(store):
    """A flip may leave JSON that says the same, such as another kind of white space; nothing else may pass."""
    shutil.rmtree(store.folder / "step-00000003")
    whole = store.latest()
    for name in (TENSORS, STATE):
        path = whole.path / name
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
            try:
                found = store.latest()
            except CheckpointError:
                continue
            assert name == STATE and found.state == whole.state
        path.write_bytes(content)
    assert store.latest().state == whole.state


@pytest.mark.parametrize("step", [7, 9])
def test_an_unfinished_checkpoint_is_neither_read_nor_in_the_way(store, step):
    shutil.copytree(store.folder / "step-00000007", store.folder / f"step-{step:08d}.part")
    (store.folder / f"step-{step:08d}.part" / "left over").touch()
    _truncate(TENSORS)(store.folder / f"step-{step:08d}.part")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.latest().path.name == "step-00000007"
        store.save(step, TENSORS_OF_A_RUN, {"again": step})
        assert store.latest().state == {"again": step}
    assert not list(store.folder.glob("*.part")) and not list(store.folder.rglob("left over"))


def test_a_damaged_one_is_replaced_when_the_run_comes_by_again(store):
    _flip(TENSORS, 0.5)(store.folder / "step-00000007")
    store.save(7, TENSORS_OF_A_RUN, {"again": True})
    assert store.latest().state == {"again": True}
    assert [path.name for path in store.paths()] == ["step-00000003", "step-00000007"]


def test_a_state_that_is_no_text_is_damage_too(store):
    _write('{"state": 5, "sha256": ""}')(store.folder / "step-00000007")
    with pytest.warns(UserWarning, match="step-00000007 is damaged"):
        assert store.latest().path.name == "step-00000003"


def test_a_damaged_one_takes_no_place_from_a_whole_one(store):
    """A run that went on from 3 since 7 is damaged writes 5: 3 and 5 must be left, in case 5 gets damaged as well."""
    _flip(TENSORS, 0.5)(store.folder / "step-00000007")
    with pytest.warns(UserWarning, match="step-00000007 is damaged"):
        store.latest()
    store.save(5, TENSORS_OF_A_RUN, {"step": 5})
    _flip(TENSORS, 0.5)(store.folder / "step-00000005")
    with pytest.warns(UserWarning, match="is damaged"):
        assert store.latest().path.name == "step-00000003"


@pytest.mark.parametrize("broken", ["save_file", "write_text", "replace"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_others(monkeypatch, store, broken):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    module = safetensors.torch if broken == "save_file" else Path
    monkeypatch.setattr(module, broken, full)
    with pytest.raises(OSError, match="No space left"):
        store.save(9, TENSORS_OF_A_RUN, STATE_OF_A_RUN)
    assert store.latest().path.name == "step-00000007" and len(store.paths()) == 2


def test_everything_is_on_the_disk_before_the_checkpoint_gets_its_name(monkeypatch, store):
    """Renamed before its content is written, a checkpoint would be empty after a power cut."""
    events, sync, replace, delete = [], os.fsync, Path.replace, shutil.rmtree

    def note(event: Any, function: Callable, *arguments, **options) -> Any:
        events.append(event)
        return function(*arguments, **options)

    def name_of(handle: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{handle}")).name

    monkeypatch.setattr(os, "fsync", lambda handle: note(name_of(handle), sync, handle))
    monkeypatch.setattr(Path, "replace", lambda path, to: note("renamed", replace, path, to))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **o: note(f"deleted {Path(path).name}", delete, path, **o))
    store.save(9, TENSORS_OF_A_RUN, STATE_OF_A_RUN)
    renamed = events.index("renamed")
    assert {TENSORS, STATE, "step-00000009.part"} <= set(events[:renamed])
    assert events[renamed + 1 :] == ["folder", "deleted step-00000003"]


# ------------------------------------------------------------------- runs


class _Encoder(NGramEncoder):
    """With dropout, and all sentences near one point, which the history must warn of."""

    def __init__(self, **options) -> None:
        super().__init__(**{"width": 16, "buckets": 2**10} | options)
        self.dropout = torch.nn.Dropout(0.2)

    def forward(self, features: Bag) -> torch.Tensor:
        return self.dropout(super().forward(features)) + 14


# The memory, the learned temperature, the share of the curriculum, the rows that wait for a batch without duplicates,
# and a stage in the middle of an epoch, mined in the middle of another: all of that has to come back.
EVERYTHING = {
    "epochs": 3,
    "batch_size": 4,
    "accumulate": 2,
    "chunk": 7,
    "strategy": "semi_hard",
    "negatives": 2,
    "remine_every": 4,
    "curriculum": "violation",
    "memory": 16,
    "learnable_temperature": True,
    "no_duplicates": True,
    "augment": 0.3,
    "margin": 0.02,
}
OTHERS = {
    "self-paced": {"curriculum": "self_paced", "loss": "symmetric_ranking", "final_temperature": 0.2, "margin": 0.1},
    "mixed": {"curriculum": "mixed", "strategy": "cluster", "loss": "guided_ranking", "negatives": 3},
    "triplet": {"curriculum": "competence", "loss": "batch_hard_triplet", "strategy": "hard", "remine_every": 3},
}
SAVE_EVERY = 2


def _table() -> pd.DataFrame:
    return triplets(load_corpus("train")[:20])


def _scores(encoder: NGramEncoder) -> dict[str, float]:
    return {"dev": float(encoder.encode(["جملة"]).norm())}


class _Run:
    """A training with what can be looked at afterwards."""

    def __init__(self, folder: Path | None, encoder: NGramEncoder | None = None, **recipe) -> None:
        recipe = Recipe(**{"learning_rate": 0.01} | (recipe or EVERYTHING))
        self.encoder, self.objective = encoder or _Encoder(), recipe.objective()
        self.curriculum = trainer.CURRICULA[recipe.curriculum]()
        self.options = {"objective": self.objective, "curriculum": self.curriculum, "evaluate": _scores}
        self.options |= {"checkpoints": folder, "save_every": SAVE_EVERY, "device": "cpu"}
        self.recipe, self.history = recipe, None

    def go(self, **options) -> "_Run":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            self.history = train(self.encoder, _table(), self.recipe, **self.options | options)
        return self


def _assert_same(one: _Run, other: _Run) -> None:
    for module in ("encoder", "objective"):
        here, there = getattr(one, module).state_dict(), getattr(other, module).state_dict()
        assert here.keys() == there.keys()
        for name in here:
            assert torch.equal(here[name], there[name]), f"{module}.{name}"
    assert one.curriculum.state == other.curriculum.state
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    assert one.history.attrs == other.history.attrs


@pytest.fixture(scope="module")
def uninterrupted() -> _Run:
    return _Run(None).go()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Trap:
    """Lets a function be called a few times; the next call does something else."""

    def __init__(self, owner: Any, name: str, calls: int, instead: Callable) -> None:
        self.real, self.left, self.instead = getattr(owner, name), calls, instead
        setattr(owner, name, lambda *arguments, **options: self(*arguments, **options))

    def __call__(self, *arguments, **options) -> Any:
        self.left -= 1
        return (self.real if self.left >= 0 else self.instead)(*arguments, **options)


def _half_the_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    Path(path).write_bytes(safetensors.torch.save(tensors)[:5000])
    _die()


def _half_the_state(path: Path, text: str, **_) -> None:
    path.write_bytes(text.encode()[: len(text) // 2])
    _die()


def _after(function: Callable) -> Callable:
    def call(*arguments, **options) -> None:
        function(*arguments, **options)
        _die()

    return call


def _half_deleted(path: Path, **_) -> None:
    (Path(path) / TENSORS).unlink()
    _die()


SAVES = 4  # checkpoints that a process writes before the one that it is killed in
# Where a process is killed: what is called there, how many times before, and what is called instead.
PLACES: dict[str, tuple[Any, str, int, Callable]] = {
    "before the first checkpoint": (TripletObjective, "remember", 3, lambda *_: _die()),
    "in the first checkpoint": (safetensors.torch, "save_file", 0, _half_the_tensors),
    "in the middle of a step": (TripletObjective, "remember", 13, lambda *_: _die()),
    "in mining": (Material, "mine", 2, lambda *_: _die()),
    "in the evaluation": (sys.modules[__name__], "_scores", 1, lambda *_: _die()),
    "in the middle of the tensors": (safetensors.torch, "save_file", SAVES, _half_the_tensors),
    "in the middle of the state": (Path, "write_text", SAVES, _half_the_state),
    "before the rename": (Path, "replace", SAVES, lambda *_: _die()),
    "after the rename": (Path, "replace", SAVES, _after(Path.replace)),
    "in the middle of dropping the oldest": (shutil, "rmtree", 2 * SAVES + 4, _half_deleted),
    "right after a checkpoint": (Checkpoints, "save", SAVES, _after(Checkpoints.save)),
    "after the last checkpoint": (trainer._Loop, "finish", 0, lambda *_: _die()),
}


def _run_into(folder: Path, place: str | None, calls: int | None, recipe: dict[str, Any]) -> None:
    """What a process does: train until it is killed."""
    if place is not None:
        owner, name, usual, instead = PLACES[place]
        _Trap(owner, name, usual if calls is None else calls, instead)
    _Run(folder, **recipe).go()


def _start(folder: Path, place: str | None = None, calls: int | None = None, **recipe) -> multiprocessing.Process:
    process = PROCESSES.Process(target=_run_into, args=(folder, place, calls, recipe), daemon=True)
    process.start()
    return process


def _killed(folder: Path, place: str, calls: int | None = None, **recipe) -> None:
    process = _start(folder, place, calls, **recipe)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"{place}: {process.exitcode}"


def test_the_run_that_is_killed_has_all_that_could_get_lost(uninterrupted):
    history, curriculum = uninterrupted.history, uninterrupted.curriculum
    assert history["steps"].tolist() == [5, 5, 5] and history["shortfall"].between(0.01, 0.99).all()
    assert isinstance(curriculum, ByViolation) and history["stage"].nunique() == 3 and curriculum.state["seen"]
    assert int(uninterrupted.objective.memory.written) > 3 * 16
    assert history["temperature"].nunique() == 3
    assert len(history.attrs["warnings"]) == 1 and "epoch 0: all sentences lie close" in history.attrs["warnings"][0]


def test_checkpoints_change_nothing(uninterrupted, tmp_path):
    """After each epoch of five steps and after every second step: 2, 4, 5, 6, 8, 10, 12, 14, 15."""
    steps, save = [], Checkpoints.save
    run = _Run(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda store, step, *rest: steps.append(step) or save(store, step, *rest))
        _assert_same(run.go(), uninterrupted)
    assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000014", "step-00000015"]


def test_without_save_every_a_checkpoint_ends_each_epoch(tmp_path):
    _Run(tmp_path).go(save_every=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_ends_with_the_same_bits(uninterrupted, tmp_path, place):
    _killed(tmp_path, place)
    _assert_same(_Run(tmp_path).go(), uninterrupted)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(uninterrupted, tmp_path):
    steps = []
    for place, calls in (
        ("in the middle of a step", 11),  # two batches a step
        ("in the middle of the tensors", 2),
        ("in mining", 1),
        ("before the rename", 1),
    ):
        _killed(tmp_path, place, calls)
        steps.append(Checkpoints(tmp_path).latest().state["step"])
    assert steps == [5, 8, 12, 14]
    _assert_same(_Run(tmp_path).go(), uninterrupted)


def test_a_run_that_is_killed_from_outside_at_any_moment_ends_with_the_same_bits(tmp_path):
    recipe = EVERYTHING | {"epochs": 7}
    draws, kills = random.Random(0), 0
    while kills < 3:
        before = Checkpoints(tmp_path).paths()[-1:]
        process = _start(tmp_path, **recipe)
        while Checkpoints(tmp_path).paths()[-1:] == before and process.is_alive():
            time.sleep(0.002)
        time.sleep(0.05 * draws.random())
        if not process.is_alive():
            break
        process.kill()
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    _assert_same(_Run(tmp_path, **recipe).go(), _Run(None, **recipe).go())


@pytest.mark.parametrize("name", OTHERS)
def test_other_runs_end_with_the_same_bits_too(tmp_path, name):
    recipe = EVERYTHING | {"memory": 0, "learnable_temperature": False} | OTHERS[name]
    _killed(tmp_path, "in the middle of a step", **recipe)
    _assert_same(_Run(tmp_path, **recipe).go(), _Run(None, **recipe).go())


@pytest.mark.parametrize("same_encoder", [True, False])
def test_ctrl_c_stops_a_run_that_can_go_on(uninterrupted, tmp_path, same_encoder):
    run, calls = _Run(tmp_path), []
    remember = run.objective.remember

    def interrupt(*batch) -> None:
        remember(*batch)
        calls.append(batch)
        if len(calls) == 15:
            signal.raise_signal(signal.SIGINT)

    run.objective.remember = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert [path.name for path in Checkpoints(tmp_path).paths()] == ["step-00000005", "step-00000006"]
    _assert_same(_Run(tmp_path, encoder=run.encoder if same_encoder else None).go(), uninterrupted)


@pytest.mark.parametrize("name", ["tensors cut short", "a bit of a tensor", "state no JSON", "state missing"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(uninterrupted, tmp_path, name):
    _killed(tmp_path, "in the middle of a step")
    newest = Checkpoints(tmp_path).paths()[-1]
    DAMAGES[name][0](newest)
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged: .*; going on from step-\d+ instead"):
        run = _Run(tmp_path).go()
    _assert_same(run, uninterrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Checkpoints(tmp_path).paths()) == 2 and Checkpoints(tmp_path).latest().state["step"] == 15


def test_a_run_whose_checkpoints_are_all_damaged_stops_with_a_sentence(tmp_path):
    _killed(tmp_path, "in the middle of a step")
    for path in Checkpoints(tmp_path).paths():
        _truncate(TENSORS)(path)
    with pytest.raises(CheckpointError, match=rf"is damaged.*is damaged.*Delete {tmp_path} to train from the beg"):
        _Run(tmp_path).go()


# ------------------------------------------------------------------- a finished run, and another one's folder


SMALL = {"epochs": 2, "batch_size": 16, "strategy": "hard", "margin": 0.01}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> _Run:
    run = _Run(tmp_path_factory.mktemp("finished"), **SMALL)
    return run.go()


def test_a_finished_run_started_again_returns_its_history_at_once(finished):
    def fail(*arguments, **options):
        raise AssertionError("a finished run trains no more")

    again = _Run(finished.options["checkpoints"], **SMALL)
    again.objective.forward = fail
    again.encoder.encode = fail
    files = [(path, path.stat().st_mtime_ns) for path in sorted(finished.options["checkpoints"].rglob("*"))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.history = train(again.encoder, _table(), again.recipe, **again.options | {"evaluate": fail})
    _assert_same(again, finished)
    assert len(again.history.attrs["warnings"]) == 1
    assert files == [(path, path.stat().st_mtime_ns) for path in sorted(finished.options["checkpoints"].rglob("*"))]


OTHER_VALUES = {
    "loss": "info_nce",
    "temperature": 0.06,
    "final_temperature": 0.1,
    "learnable_temperature": True,
    "margin": 0.2,
    "memory": 8,
    "strategy": "random",
    "negatives": 2,
    "remine_every": 3,
    "curriculum": "quantile",
    "epochs": 3,
    "batch_size": 8,
    "accumulate": 2,
    "chunk": 4,
    "no_duplicates": True,
    "augment": 0.1,
    "learning_rate": 0.02,
    "warmup": 0.2,
    "clip": 2.0,
    "seed": 1,
}


def test_no_field_of_the_recipe_is_forgotten_below():
    assert OTHER_VALUES.keys() == Recipe.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_the_folder_of_another_recipe_is_refused(finished, name):
    folder = finished.options["checkpoints"]
    there, here = getattr(finished.recipe, name), OTHER_VALUES[name]
    sentence = rf"{folder}/step-0000000. belongs to another run: {name} is {there!r} there and {here!r} here; use anoth"
    with pytest.raises(CheckpointError, match=sentence):
        _Run(folder, **SMALL | {name: here}).go()


def _changed(column: str, value: str) -> pd.DataFrame:
    return _table().assign(**{column: [value, *_table()[column][1:]]})


OTHER_DATA = {
    "a positive": lambda: _changed("positive", "جملة أخرى"),
    "a negative": lambda: _changed("negative", _table()["negative"][5]),
    "a group": lambda: _changed("group", _table()["group"][5]),
    "a row less": lambda: _table()[:-1],
    "another order": lambda: _table()[::-1],
}


@pytest.mark.parametrize("name", OTHER_DATA)
def test_the_folder_of_other_data_is_refused(finished, name):
    run = _Run(finished.options["checkpoints"], **SMALL)
    with pytest.raises(CheckpointError, match=r"another run: triplets is '\w{16}' there and '\w{16}' here; use"):
        train(run.encoder, OTHER_DATA[name](), run.recipe, **run.options)


class _OtherEncoder(_Encoder):
    pass


class _OtherObjective(TripletObjective):
    pass


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"encoder": _OtherEncoder}, r"encoder is .?_Encoder\(.* there and .?_OtherEncoder\("),
        ({"objective": _OtherObjective}, r"objective is .?TripletObjective\(.* there and .?_OtherObjective\("),
        ({"curriculum": ByQuantile}, r"curriculum object is .?AllAtOnce\(.* there and .?ByQuantile\("),
    ],
)
def test_the_folder_of_another_encoder_objective_or_curriculum_is_refused(finished, option, sentence):
    run = _Run(finished.options["checkpoints"], **SMALL)
    options = run.options | {name: kind() for name, kind in option.items()}
    encoder = options.pop("encoder", run.encoder)
    before = encoder.vectors.weight.clone()
    with pytest.raises(CheckpointError, match=f"belongs to another run: {sentence}"):
        train(encoder, _table(), run.recipe, **options)
    assert torch.equal(encoder.vectors.weight, before)
    assert isinstance(finished.curriculum, AllAtOnce)


class _Wide(_Encoder):
    def __init__(self) -> None:
        super().__init__(width=24)


class _Short(_Encoder):
    def __init__(self) -> None:
        super().__init__(ngram_range=(1, 2))


_Wide.__name__ = _Short.__name__ = "_Encoder"
ONE_STEP = {"epochs": 1, "batch_size": 64, "strategy": "given"}
# What a run is started with, and what with it is started again.
OTHERWISE = {
    "an encoder of another width": ({"encoder": _Encoder}, {"encoder": _Wide}),
    "an encoder of other n-grams": ({"encoder": _Encoder}, {"encoder": _Short}),
    "a curriculum of other shares": ({"curriculum": ByQuantile}, {"curriculum": lambda: ByQuantile((0.5, 0.6, 0.7))}),
    "an objective of another margin": (
        {"objective": lambda: TripletObjective("triplet", margin=0.1)},
        {"objective": lambda: TripletObjective("triplet", margin=0.9)},
    ),
    "another guide": (
        {"objective": lambda: TripletObjective("guided_ranking"), "guide": lambda: NGramEncoder(width=8)},
        {"objective": lambda: TripletObjective("guided_ranking"), "guide": lambda: NGramEncoder(width=8, seed=1)},
    ),
    "another precision": ({"precision": lambda: "32-true"}, {"precision": lambda: "bf16-mixed"}),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_the_folder_of_a_run_that_differs_otherwise_is_refused(tmp_path, name):
    for number, options in enumerate(OTHERWISE[name]):
        options = {option: make() for option, make in options.items()}
        run = _Run(tmp_path, encoder=options.pop("encoder", None), **ONE_STEP)
        if number == 0:
            run.go(**options)
        else:
            with pytest.raises(CheckpointError, match="belongs to another run"):
                run.go(**options)


def test_a_guide_that_was_the_untrained_encoder_comes_back(tmp_path):
    """As in a notebook: Ctrl-C, and the same cell again, with the same encoder."""
    recipe = {"loss": "guided_ranking", "epochs": 3, "batch_size": 10, "learning_rate": 0.3, "strategy": "given"}
    run = _Run(tmp_path, **recipe)

    def interrupt(encoder: NGramEncoder) -> dict[str, float]:
        if len(Checkpoints(tmp_path).paths()) == 2:
            raise KeyboardInterrupt
        return _scores(encoder)

    with pytest.raises(KeyboardInterrupt):
        run.go(evaluate=interrupt)
    for weight in run.encoder.parameters():
        weight.grad = None
    _assert_same(_Run(tmp_path, encoder=run.encoder, **recipe).go(), _Run(None, **recipe).go())


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(3)])
def test_what_evaluate_gives_may_be_numpys_numbers(tmp_path, number):
    run = _Run(tmp_path, **ONE_STEP).go(evaluate=lambda encoder: {"score": number})
    assert run.history["score"].tolist() == [number]
    assert _Run(tmp_path, **ONE_STEP).go().history["score"].tolist() == [number]


def test_a_run_with_a_guide_goes_on_with_the_same_guide_and_with_no_other(tmp_path):
    recipe = {"loss": "guided_ranking", "epochs": 2, "batch_size": 10, "strategy": "given"}
    guides = [NGramEncoder(width=8, buckets=2**10, seed=seed) for seed in (0, 0, 1)]

    def interrupt(encoder: NGramEncoder) -> dict[str, float]:
        if Checkpoints(tmp_path).latest().state["step"] > 4:
            raise KeyboardInterrupt
        return _scores(encoder)

    with pytest.raises(KeyboardInterrupt):
        _Run(tmp_path, **recipe).go(guide=guides[0], evaluate=interrupt)
    for other in (guides[2], None):
        with pytest.raises(CheckpointError, match="belongs to another run: guide is "):
            _Run(tmp_path, **recipe).go(guide=other)
    _assert_same(_Run(tmp_path, **recipe).go(guide=guides[1]), _Run(None, **recipe).go(guide=guides[1]))


class _Tied(_Encoder):
    """One table under two names, as T5 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.same = self.vectors


def test_an_encoder_with_tied_weights_has_checkpoints_too(tmp_path):
    _assert_same(_Run(tmp_path, encoder=_Tied(), **ONE_STEP).go(), _Run(None, encoder=_Tied(), **ONE_STEP).go())
    _assert_same(_Run(tmp_path, encoder=_Tied(), **ONE_STEP).go(), _Run(None, encoder=_Tied(), **ONE_STEP).go())
