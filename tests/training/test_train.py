"""The training program as the supervisor starts it: real processes, real ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.checkpoints import read_tensors, tensor_files
from tests.tiny import make_dataset, make_recipe, make_record, make_run
from training.config import Recipe
from training.events import parse_lines
from training.layout import RunPaths, committed_checkpoints, encode, write_atomic

pytestmark = pytest.mark.slow


def start(
    root: Path, recipe: Recipe, *, ranks: int = 1, stdout: int = subprocess.DEVNULL
) -> tuple[subprocess.Popen[bytes], RunPaths]:
    """Train `recipe` in `root`, with one intra-op thread, as sums depend on their number."""
    paths = make_run(root, make_record(recipe, ranks=ranks))
    if not (root / "data").exists():
        make_dataset(root / "data", recipe)
    program = ["training.train", str(paths.folder), str(root / "data")]
    if ranks > 1:
        program = ["training.ranks", "--standalone", "--nproc-per-node", str(ranks), "-m", *program]
    process = subprocess.Popen(
        [sys.executable, "-m", *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    return process, paths


def train(root: Path, recipe: Recipe, *, ranks: int = 1) -> RunPaths:
    process, paths = start(root, recipe, ranks=ranks)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    return paths


def metrics(paths: RunPaths) -> list[dict[str, Any]]:
    return list(parse_lines(paths.metrics.read_bytes())) if paths.metrics.exists() else []


def events(paths: RunPaths, kind: str) -> list[dict[str, Any]]:
    return [e for e in parse_lines(paths.events.read_bytes()) if e["event"] == kind]


def wait_for_step(paths: RunPaths, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not any(line["step"] >= step for line in metrics(paths)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "training never got there"
        time.sleep(0.005)


def final_tensors(paths: RunPaths) -> dict[str, torch.Tensor]:
    folder = paths.checkpoint(committed_checkpoints(paths.checkpoints)[-1])
    return read_tensors(folder)


def assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_run_learns_and_says_what_it_measured(tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 40, "max_lr": 1e-2})
    paths = train(tmp_path, recipe)
    lines = metrics(paths)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 41))
    assert steps[-1]["tokens"] == 40 * 64
    assert steps[0].keys() == {
        "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_sec", "mfu"
    }  # fmt: skip
    validations = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    assert sorted(validations) == [*range(0, 40, 3), 40]
    assert validations[40] < validations[0] - 0.5
    assert committed_checkpoints(paths.checkpoints)[-1] == 40


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_again_and_again_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, ranks: int
) -> None:
    recipe = make_recipe(train={"steps": 60, "optimizer": "muon"}, checkpoint={"every": 5})
    undisturbed = train(tmp_path / "undisturbed", recipe, ranks=ranks)

    for step in (12, 33):
        process, paths = start(tmp_path / "killed", recipe, ranks=ranks)
        wait_for_step(paths, step, process)
        process.kill()
        process.communicate(timeout=60)
    paths = train(tmp_path / "killed", recipe, ranks=ranks)

    assert len(events(paths, "training_resumed")) >= 1
    assert_same_bits(final_tensors(paths), final_tensors(undisturbed))
    measured = [(line["step"], line.get("loss"), line.get("val_loss")) for line in metrics(paths)]
    expected = [
        (line["step"], line.get("loss"), line.get("val_loss")) for line in metrics(undisturbed)
    ]
    assert measured == expected


def test_two_ranks_equal_one_rank_with_accumulation(tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 20})
    one, two = (train(tmp_path / str(n), recipe, ranks=n) for n in (1, 2))
    losses = [[line["loss"] for line in metrics(p) if "loss" in line] for p in (one, two)]
    # Equal but for the order of summation in fp32.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    vals = [[line["val_loss"] for line in metrics(p) if "val_loss" in line] for p in (one, two)]
    assert vals[0] == pytest.approx(vals[1], rel=1e-4)


def test_a_target_loss_ends_training_at_the_evaluation_that_reaches_it(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "train": {"steps": 12},
        "eval": {"every": 4},
        "checkpoint": {"every": 100},
    }
    whole = train(tmp_path / "whole", make_recipe(**sections))
    losses = {line["step"]: line["val_loss"] for line in metrics(whole) if "val_loss" in line}
    target = (losses[4] + losses[8]) / 2
    sections["eval"]["until_loss"] = target
    paths = train(tmp_path / "target", make_recipe(**sections), ranks=2)
    assert committed_checkpoints(paths.checkpoints) == [8]
    (reached,) = events(paths, "target_reached")
    assert reached["step"] == 8


def test_sigterm_saves_at_the_step_boundary_and_leaves_quietly(tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 100_000}, checkpoint={"every": 100_000})
    process, paths = start(tmp_path, recipe)
    wait_for_step(paths, 5, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    last = metrics(paths)[-1]["step"]
    assert committed_checkpoints(paths.checkpoints) == [last]


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint_before_it(
    tmp_path: Path,
) -> None:
    recipe = make_recipe(
        train={"steps": 1000, "max_lr": 1e30, "warmup_steps": 900, "grad_clip": 0.0},
        checkpoint={"every": 1},
        eval={"every": 1000},
    )
    process, paths = start(tmp_path, recipe)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    (event,) = events(paths, "error")
    assert event["kind"] == "NotFiniteError"
    broken = int(event["message"].removeprefix("step ").split(":")[0])
    assert committed_checkpoints(paths.checkpoints)[-1] == broken - 1
    assert event["message"] in errors.decode()


def test_training_begins_with_the_first_shard_and_says_when_it_waits(tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 12})
    make_dataset(tmp_path / "data", recipe)
    index = tmp_path / "data" / "dataset.json"
    whole = json.loads(index.read_text())
    first = {**whole, "complete": False, "shards": whole["shards"][:2]}
    index.write_text(json.dumps(first))  # 500 training tokens: 7 steps of 64, and then no more
    process, paths = start(tmp_path, recipe)
    wait_for_step(paths, 7, process)
    deadline = time.monotonic() + 30
    while not events(paths, "waiting_for_data"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None
    index.write_text(json.dumps(whole))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert metrics(paths)[-1]["step"] == 12
    (waited,) = events(paths, "waited_for_data")
    assert 0 < waited["seconds"] < 60
    told = [event["step"] for event in events(paths, "evaluated")]
    assert told == [line["step"] for line in metrics(paths) if "val_loss" in line]


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_while_waiting_for_data_keeps_every_finished_step(
    tmp_path: Path, ranks: int
) -> None:
    # Of the step that waits, rank 0 of 2 would find all it needs in the first shard.
    recipe = make_recipe(train={"steps": 12}, checkpoint={"every": 100})
    make_dataset(tmp_path / "data", recipe)
    index = tmp_path / "data" / "dataset.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps({**whole, "complete": False, "shards": whole["shards"][:2]}))
    process, paths = start(tmp_path, recipe, ranks=ranks)
    wait_for_step(paths, 7, process)
    children = psutil.Process(process.pid).children()
    for told in children if ranks > 1 else [process]:
        told.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert committed_checkpoints(paths.checkpoints) == [7]


def test_a_validation_loss_that_is_not_finite_stops_training_too(tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 4, "max_lr": 1e38, "warmup_steps": 0}, eval={"every": 1})
    process, paths = start(tmp_path, recipe)
    process.communicate(timeout=60)
    assert process.returncode == 1
    (event,) = events(paths, "error")
    assert event["kind"] == "NotFiniteError"
    assert None not in [line.get("val_loss", 0.0) for line in metrics(paths)]


def test_a_checkpoint_that_is_passed_over_is_told_in_the_log(tmp_path: Path) -> None:
    recipe = make_recipe()
    paths = train(tmp_path, recipe)
    tensor_files(paths.checkpoint(6))[0].write_bytes(b"rubbish")
    process, _ = start(tmp_path, recipe, stdout=subprocess.PIPE)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert "passed over: step-00000006" in told.decode()
    assert len(events(paths, "checkpoint_skipped")) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_of_another_model_ends_all_ranks_with_its_reason(
    tmp_path: Path, ranks: int
) -> None:
    train(tmp_path, make_recipe())
    process, paths = start(tmp_path, make_recipe(model={"n_embd": 32}), ranks=ranks)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    told = {(event["stage"], event["kind"]) for event in events(paths, "error")}
    assert told == {("train", "CheckpointError")}
    assert "step-00000006 holds another model" in errors.decode()


def test_a_run_may_go_on_with_another_number_of_ranks_than_was_planned(tmp_path: Path) -> None:
    paths = train(tmp_path, make_recipe(train={"steps": 6}), ranks=1)
    planned = make_record(make_recipe(train={"steps": 10}), ranks=1)
    write_atomic(paths.record, encode(planned))
    ranks = ["--standalone", "--nproc-per-node", "4"]
    program = ["training.train", str(paths.folder), str(tmp_path / "data")]
    subprocess.run(
        [sys.executable, "-m", "training.ranks", *ranks, "-m", *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    last = metrics(paths)[-1]
    assert (last["step"], last["tokens"]) == (10, 640)
    assert events(paths, "training_resumed")[-1]["step"] == 6


def test_ranks_that_cannot_share_a_step_are_told_so(tmp_path: Path) -> None:
    record = make_record(make_recipe(), ranks=1)
    paths = make_run(tmp_path, record)
    make_dataset(tmp_path / "data", record.recipe)
    ranks = ["--standalone", "--nproc-per-node", "3"]
    program = ["training.train", str(paths.folder), str(tmp_path / "data")]
    ran = subprocess.run(
        [sys.executable, "-m", "training.ranks", *ranks, "-m", *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert ran.returncode == 1
    event = events(paths, "error")[0]
    assert event["kind"] == "ConfigError"
    assert "3 ranks cannot share evenly" in event["message"]
