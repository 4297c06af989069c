"""Ranks that hang, run out of memory, or are told to end: every fault is a real one."""

import json
import os
import shutil
import time
from pathlib import Path
from signal import SIGSTOP, SIGTERM, SIGUSR2

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import read_tensors
from tests.runs.user import ENDLESS, User
from training import manifest
from training.events import parse_lines

pytestmark = pytest.mark.slow

TWO_RANKS = ("--set", "node.cpu_ranks=2")
STALL = ("--set", "node.stall_after_s=20")


def losses(folder: Path) -> dict[int, float]:
    path = folder / "metrics.jsonl"
    lines = parse_lines(path.read_bytes()) if path.exists() else ()
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def wait_for_step(user: User, run_id: str, step: int) -> None:
    """By what training writes: a few hundred steps are over before a command has answered."""
    deadline = time.monotonic() + user.patience_s
    while max(losses(user.working_folder(run_id)), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_rank_that_hangs_is_shown_and_replaced_and_the_end_is_the_same(user: User) -> None:
    options = ("--set", "train.steps=200", *TWO_RANKS, *STALL)
    undisturbed = user.launch(*options)["run_id"]
    run_id = user.launch_detached(*options)
    wait_for_step(user, run_id, 20)
    stopped = user.ranks(run_id)[-1]
    user.kill([stopped], SIGSTOP)
    view = user.wait_for_end(run_id)
    assert view["state"] == "succeeded", view
    assert user.processes(run_id) == []

    *_, stalled = user.events(run_id, "training_stalled")
    (died,) = user.events(run_id, "training_died")
    (resumed,) = user.events(run_id, "training_resumed")
    assert stalled["log"] == "stacks.log"
    assert stalled["silence_s"] > 20
    assert (died["step"], died["cause"]) == (stalled["step"], "stalled")
    assert 10 <= resumed["step"] <= died["step"]  # that of step 20 may not be whole yet
    told = user.run("logs", run_id, "--stage", "stacks", *user.to_store).stdout
    assert f"process {stopped.pid}, stopped):\nno answer" in told
    assert "training/train.py" in told  # where the other one waits

    tensors = read_tensors(user.checkpoint(run_id, 200))
    expected = read_tensors(user.checkpoint(undisturbed, 200))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_training_that_hangs_and_may_not_begin_again_fails_with_its_stacks(user: User) -> None:
    run_id = user.launch_detached(*ENDLESS, *TWO_RANKS, *STALL, "--set", "node.max_restarts=0")
    wait_for_step(user, run_id, 15)
    user.kill(user.ranks(run_id)[-1:], SIGSTOP)
    view = user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("failed", "stalled")
    assert "no sign of life at step" in view["message"]
    assert f"gptctl logs {run_id} --stage stacks" in view["hint"]
    assert user.steps(run_id)
    assert user.processes(run_id) == []


def test_training_that_hangs_as_it_is_told_to_end_is_stopped_not_failed(user: User) -> None:
    run_id = user.launch_detached(*ENDLESS, *TWO_RANKS, *STALL)
    wait_for_step(user, run_id, 15)
    user.kill(user.ranks(run_id)[-1:], SIGSTOP)
    user.run("stop", run_id, *user.to_store)
    view = user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("stopped", "user")
    assert user.events(run_id, "training_stalled")
    assert user.events(run_id, "training_died") == []
    assert user.steps(run_id)


@pytest.fixture
def short_of_memory(user: User) -> User:
    """Its programs find no memory where SIGUSR2 reaches them: as torch says it, of a GPU."""
    (user.home / "sitecustomize.py").write_text(
        "import signal\n"
        "def find_none(*_):\n"
        "    import torch\n"
        "    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')\n"
        "signal.signal(signal.SIGUSR2, find_none)\n"
    )
    paths = [str(user.home), user.env.get("PYTHONPATH", "")]
    user.env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return user


@pytest.mark.parametrize("ranks", [1, 2])
def test_memory_that_runs_out_late_has_training_go_on_with_half_the_micro_batch(
    short_of_memory: User, ranks: int
) -> None:
    user = short_of_memory
    run_id = user.launch_detached("--set", "train.steps=200", "--set", f"node.cpu_ranks={ranks}")
    wait_for_step(user, run_id, 20)
    user.kill(user.ranks(run_id)[-1:], SIGUSR2)
    view = user.wait_for_end(run_id)
    assert (view["state"], view["step"]) == ("succeeded", 200), view

    (missed,) = user.events(run_id, "out_of_memory")
    (died,) = user.events(run_id, "training_died")
    assert missed["micro_batch_size"] == 4
    assert died["cause"] == "out_of_memory"
    assert user.events(run_id, "training_resumed")[0]["step"] >= 10
    log = (user.folder(run_id) / "logs" / "train.log").read_text()
    assert log.index("× 4 sequences") < log.index("× 2 sequences")
    assert list(losses(user.folder(run_id))) == list(range(1, 201))


def test_memory_that_does_not_do_for_one_sequence_fails_the_run(short_of_memory: User) -> None:
    user = short_of_memory
    run_id = user.launch_detached(*ENDLESS, "--set", "train.micro_batch_size=1")
    wait_for_step(user, run_id, 15)
    user.kill(user.ranks(run_id), SIGUSR2)
    view = user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("failed", "out_of_memory"), view
    assert view["hint"]
    assert user.steps(run_id)


@pytest.mark.parametrize("told", [1, 2])
def test_sigterm_that_reaches_ranks_alone_or_apart_saves_one_step_on_all(
    user: User, told: int
) -> None:
    run_id = user.launch_detached(*ENDLESS, *TWO_RANKS)
    wait_for_step(user, run_id, 15)
    for number, rank in enumerate(user.ranks(run_id)[-told:]):
        time.sleep(number)  # a second apart
        try:
            rank.send_signal(SIGTERM)
        except psutil.NoSuchProcess:
            assert number, "the first was there"
    view = user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("stopped", "user")
    assert user.events(run_id, "training_died") == []
    assert user.steps(run_id)[-1] == view["step"] >= 15
    assert user.processes(run_id) == []


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_run_goes_on_with_another_number_of_ranks_as_if_it_had_always_had_it(
    user: User, before: int, after: int
) -> None:
    # A rate that does not depend on how many steps there are to be.
    keys = ("train.dtype=float32", "train.min_lr=1e-2", "train.micro_batch_size=2")
    same = [word for key in keys for word in ("--set", key)]
    sixty = ("--set", "train.steps=60", "--set", f"node.cpu_ranks={after}")
    undisturbed = user.launch(*same, *sixty)["run_id"]
    run_id = user.launch_detached(*ENDLESS, *same, "--set", f"node.cpu_ranks={before}")
    wait_for_step(user, run_id, 15)
    user.run("stop", run_id, *user.to_store)
    stopped = user.wait_for_end(run_id)["step"]

    shutil.rmtree(user.node)  # another machine, with more or fewer of them
    path = user.folder(run_id) / "run.json"
    record = json.loads(path.read_bytes())
    record["ranks"] = after
    record["recipe"]["train"]["steps"] = max(60, stopped + 20)
    path.write_text(json.dumps(record))
    view = user.json("launch", "--resume", run_id, "--yes", *user.to_store)
    assert view["state"] == "succeeded", view
    assert [e["step"] for e in user.events(run_id, "training_resumed")] == [stopped]
    assert f"{after} rank" in (user.working_folder(run_id) / "logs" / "train.log").read_text()
    told, expected = (losses(user.folder(run)) for run in (run_id, undisturbed))
    for step in expected:
        assert told[step] == pytest.approx(expected[step], abs=1e-4), step  # order of summation


def poison(checkpoint: Path, step: int) -> None:
    """One NaN in a checkpoint that is whole, by its manifest."""
    tokens = manifest.verify(checkpoint).tokens
    for path in checkpoint.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("wte.weight"):
                tensor[65, 0] = float("nan")
        save_file(tensors, path)
    (checkpoint / "manifest.json").unlink()
    manifest.commit(checkpoint, step=step, tokens=tokens)


def test_a_nan_ends_all_ranks_and_no_checkpoint_with_one_is_kept(user: User) -> None:
    run_id = user.launch_detached(*ENDLESS, *TWO_RANKS, "--set", "checkpoint.every=1")
    wait_for_step(user, run_id, 10)
    user.run("stop", run_id, *user.to_store)
    user.wait_for_end(run_id)
    newest = user.steps(run_id)[-1]
    poison(user.checkpoint(run_id, newest), newest)
    shutil.rmtree(user.node)

    view = user.json("launch", "--resume", run_id, "--yes", *user.to_store, exit_code=4)
    assert (view["state"], view["reason"]) == ("failed", "not_finite")
    assert user.events(run_id, "training_died") == []
    assert user.steps(run_id)[-1] == newest
    assert user.processes(run_id) == []


def test_a_rate_that_is_too_high_leaves_only_checkpoints_that_are_finite(user: User) -> None:
    diverging = ("train.max_lr=1e30", "train.warmup_steps=900", "train.grad_clip=0.0")
    more = ("checkpoint.every=1", "train.log_every=4", "node.cpu_ranks=2")
    options = [word for key in (*diverging, *more) for word in ("--set", key)]
    view = user.launch(*ENDLESS, *options, exit_code=4)
    assert (view["state"], view["reason"]) == ("failed", "not_finite")
    for step in user.steps(view["run_id"]):
        for name, tensor in read_tensors(user.checkpoint(view["run_id"], step)).items():
            assert tensor.isfinite().all(), (step, name)
    assert user.processes(view["run_id"]) == []
