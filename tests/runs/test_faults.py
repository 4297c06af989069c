"""What goes wrong in a run, and what the user is told: every fault is a real one."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from tests.checkpoints import read_tensors, tensor_files
from tests.runs.user import ENDLESS, User, leave_nothing_running
from tests.s3_server import S3Server
from training.layout import committed_checkpoints

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"caf\xe9 " * 5000, "UTF-8"),
        (b"too short", "tokens"),
    ],
)
def test_text_that_cannot_be_trained_on_fails_the_run_with_its_reason(
    user: User, content: bytes, message: str
) -> None:
    user.text.write_bytes(content)
    view = user.launch(exit_code=4)
    assert (view["state"], view["reason"]) == ("failed", "data")
    assert message in view["message"]
    assert view["hint"]


def test_a_missing_data_file_is_refused_before_anything_is_recorded(user: User) -> None:
    user.text.unlink()
    told = user.run(*user.launch_arguments, exit_code=3).stderr
    assert "text.txt" in told
    assert not Path(user.store).exists() or not list(Path(user.store).rglob("run.json"))


def test_the_budget_ends_the_run_inside_it_with_a_checkpoint(user: User) -> None:
    # $3600 an hour is $1 a second: some seconds of training, and the reserve of five.
    view = user.launch(*ENDLESS, "--price-per-hour", "3600", "--budget", "14", exit_code=5)
    assert (view["state"], view["reason"]) == ("stopped", "budget")
    assert Decimal("7") < Decimal(view["spent_usd"]) <= Decimal("14")
    assert user.steps(view["run_id"])[-1] == view["step"] > 0

    refused = user.run("launch", "--resume", view["run_id"], "--yes", *user.to_store, exit_code=3)
    assert "budget" in refused.stderr
    more = user.json(
        "launch", "--resume", view["run_id"], "--yes", "--budget", "26", *user.to_store,
        exit_code=5,
    )  # fmt: skip
    assert Decimal(view["spent_usd"]) < Decimal(more["spent_usd"]) <= Decimal("26")
    assert more["step"] > view["step"]


def test_the_deadline_ends_the_run(user: User) -> None:
    view = user.launch(*ENDLESS, "--max-hours", "0.004", exit_code=5)
    assert (view["state"], view["reason"]) == ("stopped", "deadline")
    assert sum(view["phases"].values()) < 0.004 * 3600


def test_a_loss_that_is_not_finite_fails_the_run_and_names_the_step(user: User) -> None:
    diverging = ("train.max_lr=1e30", "train.warmup_steps=900", "train.grad_clip=0.0")
    options = [word for key in diverging for word in ("--set", key)]
    view = user.launch(*ENDLESS, *options, "--set", "checkpoint.every=1", exit_code=4)
    assert (view["state"], view["reason"]) == ("failed", "not_finite")
    step = int(view["message"].removeprefix("step ").split(":")[0])
    assert user.steps(view["run_id"])[-1] == step - 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_rank_is_replaced_and_the_end_is_the_same(user: User, ranks: int) -> None:
    options = ("--set", "train.steps=200", "--set", f"node.cpu_ranks={ranks}")
    undisturbed = user.launch(*options)["run_id"]
    run_id = user.launch_detached(*options)
    user.wait_for_step(run_id, 20)
    user.kill(user.ranks(run_id)[-1:])
    view = user.wait_for_end(run_id)
    assert view["state"] == "succeeded"
    assert len(user.events(run_id, "training_died")) == 1
    tensors = read_tensors(user.checkpoint(run_id, 200))
    expected = read_tensors(user.checkpoint(undisturbed, 200))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_training_that_dies_twice_at_the_same_step_is_not_tried_a_third_time(user: User) -> None:
    run_id = user.launch_detached(*ENDLESS)
    for death in (1, 2):
        deadline = time.monotonic() + 60
        while not user.ranks(run_id) or len(user.events(run_id, "training_died")) < death - 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        user.kill(user.ranks(run_id))  # before it has made a step
    view = user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("failed", "crashed")
    assert "same step" in view["message"]


def test_a_killed_supervisor_takes_training_with_it_and_the_run_can_be_resumed(user: User) -> None:
    run_id = user.launch_detached("--set", "train.steps=2000", "--set", "node.cpu_ranks=2")
    user.wait_for_step(run_id, 15)
    user.kill(user.processes(run_id, "training.supervise"))
    deadline = time.monotonic() + 40
    while user.processes(run_id):
        assert time.monotonic() < deadline, "training outlived its supervisor"
        time.sleep(0.1)
    view = user.status(run_id)
    assert (view["state"], view["reason"]) == ("failed", "killed")
    assert f"--resume {run_id}" in view["hint"]
    resumed = user.json("launch", "--resume", run_id, "--yes", *user.to_store)
    assert (resumed["state"], resumed["step"]) == ("succeeded", 2000)
    assert user.events(run_id, "training_resumed")[0]["step"] >= 10


def test_a_killed_launcher_leaves_the_run_alone(user: User) -> None:
    launcher = user.start(*user.launch_arguments, "--set", "train.steps=300")
    deadline = time.monotonic() + 60
    while not user.ranks(""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.kill()
    launcher.communicate()
    (listed,) = user.json("status", *user.to_store)
    assert user.wait_for_end(listed["run_id"])["state"] == "succeeded"


def test_ctrl_c_while_following_detaches_and_says_how_to_come_back(user: User) -> None:
    launcher = user.start(*user.launch_arguments, "--set", "train.steps=300")
    deadline = time.monotonic() + 60
    while not user.ranks(""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.send_signal(signal.SIGINT)
    _, told = launcher.communicate(timeout=30)
    assert launcher.returncode == 130, told
    (listed,) = user.json("status", *user.to_store)
    assert f"gptctl logs {listed['run_id']} --follow" in told
    assert user.wait_for_end(listed["run_id"])["state"] == "succeeded"


@pytest.mark.parametrize("after_s", [0.15, 0.3, 0.45, 0.6, 0.8])
def test_ctrl_c_during_the_launch_leaves_nothing_that_nobody_knows_of(
    user: User, after_s: float
) -> None:
    launcher = user.start(*user.launch_arguments, "--set", "train.steps=300")
    time.sleep(after_s)
    launcher.send_signal(signal.SIGINT)
    _, told = launcher.communicate(timeout=30)
    assert launcher.returncode in (130, -signal.SIGINT), told
    listed = user.json("status", *user.to_store)
    if "goes on" in told:
        assert user.wait_for_end(listed[0]["run_id"])["state"] == "succeeded"
    else:
        for view in listed:
            user.wait_for_end(view["run_id"])
        assert user.processes() == []


def test_a_killed_preparation_ends_the_run_with_what_it_has_learned(user: User) -> None:
    user.text.write_text("the cat sat. " * 1_500_000)  # ten thousand shards
    run_id = user.launch_detached(*ENDLESS, "--set", "data.shard_tokens=2_000")
    user.wait_for_step(run_id, 15)
    user.kill(user.processes(run_id, "training.prepare"))
    view = user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("failed", "data")
    assert f"gptctl logs {run_id} --stage prepare" in view["hint"]
    assert user.steps(run_id)[-1] == view["step"] >= 15
    assert user.processes(run_id) == []


def test_a_tampered_checkpoint_in_the_store_is_passed_over_for_the_one_before_it(
    user: User,
) -> None:
    run_id = user.launch_detached(*ENDLESS)
    user.wait_for_step(run_id, 25)
    user.run("stop", run_id, *user.to_store)
    user.wait_for_end(run_id)
    before, newest = user.steps(run_id)[-2:]
    path = tensor_files(user.checkpoint(run_id, newest))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    pulled = user.run("pull-checkpoint", run_id, "--to", str(user.home / "p"), *user.to_store)
    assert f"step-{newest:08d}" in pulled.stderr
    user.json("launch", "--resume", run_id, "--yes", "--detach", *user.to_store)
    user.wait_for_step(run_id, newest + 1)
    assert user.events(run_id, "training_resumed")[-1]["step"] == before
    assert f"step-{newest:08d}" in user.events(run_id, "checkpoint_skipped")[-1]["why"]


def test_a_run_can_be_resumed_on_a_node_that_never_saw_it(user: User) -> None:
    run_id = user.launch_detached(*ENDLESS)
    user.wait_for_step(run_id, 15)
    user.run("stop", run_id, *user.to_store)
    stopped = user.wait_for_end(run_id)
    shutil.rmtree(user.node)
    user.json("launch", "--resume", run_id, "--yes", "--detach", *user.to_store)
    user.wait_for_step(run_id, stopped["step"] + 5)
    billed = stopped["phases"]["training"]
    user.wait_for(run_id, lambda view: view["phases"]["training"] > billed)
    metrics = (user.folder(run_id) / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, metrics) if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))  # the curve has no gap and no repeat


def test_a_full_disk_fails_the_run_and_leaves_its_last_checkpoint(
    user: User, small_disk: Path
) -> None:
    user.env["GPTCTL_NODE_ROOT"] = str(small_disk)
    user.node = small_disk
    run_id = user.launch_detached(*ENDLESS)
    user.wait_for_step(run_id, 15)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    view = user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("failed", "no_space")
    assert "no space left" in view["message"]
    assert user.steps(run_id)
    ballast.unlink()
    user.json("launch", "--resume", run_id, "--yes", "--detach", *user.to_store)
    user.wait_for_step(run_id, user.steps(run_id)[-1] + 1)


def test_a_store_that_cannot_be_written_is_told_before_anything_starts(user: User) -> None:
    in_the_way = user.home / "file"
    in_the_way.write_text("not a folder")
    user.store = str(in_the_way / "store")
    told = user.run(*user.launch_arguments, exit_code=7).stderr
    assert "store" in told
    assert user.processes() == []


@pytest.fixture
def s3_user(tmp_path: Path, s3_server: S3Server) -> Iterator[User]:
    somebody = User(tmp_path, store=s3_server.url("runs-faults", "team"), **s3_server.env)
    yield somebody
    leave_nothing_running(somebody)


def test_a_missing_bucket_is_named_with_the_command_that_makes_it(
    s3_user: User, s3_server: S3Server
) -> None:
    s3_user.store = s3_user.store.replace("runs-faults", "never-made")
    told = s3_user.run(*s3_user.launch_arguments, exit_code=7).stderr
    assert "never-made" in told
    assert "hint:" in told


def test_wrong_credentials_are_told_and_not_repeated(s3_user: User) -> None:
    s3_user.env["AWS_SECRET_ACCESS_KEY"] = "wrong-secret-wrong-secret"
    told = s3_user.run(*s3_user.launch_arguments, exit_code=7).stderr
    assert "AWS_ACCESS_KEY_ID" in told
    assert "wrong-secret" not in told


def test_a_store_that_is_down_at_the_end_is_not_waited_for_beyond_the_budget(
    s3_user: User, s3_server: S3Server
) -> None:
    run_id = s3_user.launch_detached(*ENDLESS, "--price-per-hour", "3600", "--budget", "60")
    s3_user.wait_for_step(run_id, 1)
    s3_server.stop()
    try:
        deadline = time.monotonic() + 120
        while not s3_user.events(run_id, "run_ended"):
            assert time.monotonic() < deadline, "the supervisor went on beyond its budget"
            time.sleep(0.2)
    finally:
        s3_server.start()
    view = s3_user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("failed", "store")
    assert Decimal(view["spent_usd"]) <= Decimal("60")
    assert committed_checkpoints(s3_user.working_folder(run_id) / "checkpoints")  # to be sent yet


def test_a_store_that_is_down_for_a_while_costs_nothing_but_time(
    s3_user: User, s3_server: S3Server
) -> None:
    options = ("--set", "train.steps=1000", "--set", "checkpoint.every=500")
    run_id = s3_user.launch_detached(*options)
    s3_user.wait_for_step(run_id, 1)
    s3_server.stop()
    try:
        deadline = time.monotonic() + 200
        while not s3_user.events(run_id, "store_unreachable"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        told = s3_user.run("status", run_id, *s3_user.to_store, exit_code=7).stderr
        assert "127.0.0.1" in told
        while s3_user.events(run_id, "phase_started")[-1]["phase"] != "finishing":
            assert time.monotonic() < deadline, "training waited for the store"
            time.sleep(0.2)
    finally:
        s3_server.start()
    view = s3_user.wait_for_end(run_id)
    assert (view["state"], view["step"]) == ("succeeded", 1000)
    pulled = s3_user.json(
        "pull-checkpoint", run_id, "--to", str(s3_user.home / "p"), *s3_user.to_store
    )
    assert pulled["step"] == 1000
