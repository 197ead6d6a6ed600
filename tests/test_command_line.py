"""`python -m gate_lessons train`, as a person runs it: in a process of its own, interrupted and taken up again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from gate_lessons.encoder import NGramEncoder
from gate_lessons.evaluation import load_task

TRAIN = ["-m", "gate_lessons", "train"]
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Sixty triplets of the corpus in a file, some in each split."""
    rows = load_task().train.drop_duplicates("group").head(60)[["anchor", "positive", "negative"]]
    rows["split"] = ["dev" if n % 6 == 0 else "test" if n % 6 == 1 else "train" for n in range(60)]
    path = tmp_path_factory.mktemp("data") / "triplets.jsonl"
    rows.to_json(path, orient="records", lines=True, force_ascii=False)
    return path


def run(*words: object, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess:
    return subprocess.run([*launcher, *TRAIN, *map(str, words)], capture_output=True, text=True, check=False)


def test_it_writes_an_encoder_that_loads_a_history_and_the_recipe(table, tmp_path):
    done = run("--dataset", table, "--epochs", 2, "--batch_size", 8, "--curriculum", "competence", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2/2" not in done.stdout and "training: 100%" in done.stderr
    encoder = NGramEncoder.load(tmp_path / "encoder")
    assert encoder.encode(["جملة قصيرة"]).shape == (1, 128)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert history["effective_rank"].notna().all()
    last_line = done.stdout.splitlines()[-2].split()
    assert float(last_line[3]) == pytest.approx(history["dev_triplet_accuracy"].iloc[-1], abs=5e-4)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert (recipe["curriculum"], recipe["batch_size"], recipe["temperature"]) == ("competence", 8, 0.05)


def test_interrupted_it_says_so_and_the_same_command_goes_on(table, tmp_path):
    words = ["--dataset", table, "--epochs", "40", "--batch_size", "8", "--save-every", "1"]
    whole = run(*words, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for stop in (signal.SIGINT, signal.SIGKILL):
        out = tmp_path / stop.name
        running = subprocess.Popen(
            [sys.executable, *TRAIN, *map(str, words), "--out", str(out)], stderr=subprocess.PIPE
        )
        while not list(out.glob("checkpoints/step-*/state.json")):
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(stop)
        error = running.communicate()[1].decode()
        assert running.returncode != 0
        if stop is signal.SIGINT:
            assert "interrupted; the same command goes on from the last checkpoint" in " ".join(error.split())
            assert "Traceback" not in error
        again = run(*words, "--out", out)
        assert again.returncode == 0, again.stderr
        ends = [folder / "encoder" / "model.safetensors" for folder in (tmp_path / "whole", out)]
        assert ends[0].read_bytes() == ends[1].read_bytes()
        assert (out / "history.csv").read_bytes() == (tmp_path / "whole" / "history.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tempertaure", "0.1"], "a recipe has no parameter 'tempertaure'; did you mean --temperature?"),
        (["--epochs", "2.5"], "--epochs takes int, such as 5, not '2.5'"),
        (["--remine_every", "often"], "--remine_every takes int, such as 0, not 'often'"),
        (["--seed", "0", "1"], "--seed has 2 values; a recipe takes one"),
        (["--loss", "hinge"], "unknown loss 'hinge'; the losses are multiple_negatives_ranking"),
        (["--device", "cuda:7"], "unknown device 'cuda:7'; choose auto, cpu or cuda"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_wrong_word_is_refused_in_a_sentence_before_anything_is_written(words, sentence, tmp_path):
    out = tmp_path / "out"
    done = run(*words, "--out", out)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert not out.exists()


def test_another_runs_folder_is_refused(table, tmp_path):
    words = ["--dataset", table, "--epochs", "1", "--out", tmp_path]
    assert run(*words).returncode == 0
    done = run(*words, "--temperature", "0.2")
    assert done.returncode == 1
    assert "belongs to another run: temperature is 0.05 there and 0.2 here" in done.stderr


def test_the_readmes_torchrun_line_trains_in_two_processes(table, tmp_path):
    line = re.search(r"torchrun (--standalone --nproc_per_node) 4 -m gate_lessons train", README.read_text("utf-8"))
    torchrun = Path(sys.executable).with_name("torchrun")
    launcher = (str(torchrun), *line[1].split(), "2")
    os.environ["OMP_NUM_THREADS"] = "1"
    done = run("--dataset", table, "--epochs", 1, "--batch_size", 4, "--out", tmp_path, launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("dev_triplet_accuracy") == 1  # the first process speaks
    assert pd.read_csv(tmp_path / "history.csv")["steps"].tolist() == [5]  # 40 triplets, two processes of four
    NGramEncoder.load(tmp_path / "encoder")
