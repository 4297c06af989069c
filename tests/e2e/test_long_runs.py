"""Runs of several minutes, on machines that die, or that are two."""

import hashlib
from pathlib import Path

from tests.checkpoints import read_tensors
from tests.e2e.cloud_user import CloudUser
from tests.runs.user import User

STEPS = 2000  # of half a minute in all, as the store hears of them every ten seconds
LAMBDA = ("--cloud", "lambda", "--budget", "0.05")


def sha256(checkpoint: Path) -> str:
    """Of its tensors: the files name theirs in no fixed order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(checkpoint).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_a_killed_vm_costs_at_most_the_steps_since_the_last_checkpoint(user: CloudUser) -> None:
    options = [
        word
        for setting in (
            f"train.steps={STEPS}",
            "train.batch_tokens=512",
            "checkpoint.every=100",
            "eval.every=500",
        )
        for word in ("--set", setting)
    ]
    run_id = user.launch_detached("--cloud", "lambda", "--budget", "0.2", "--recover", *options)
    user.wait_for_step(run_id, 100)
    user.datacentre.kill_vm(run_id)
    view = user.wait_for_end(run_id)
    assert (view["state"], view["step"]) == ("succeeded", STEPS), view
    assert view["offer"]["cloud"] == "lambda"
    assert user.datacentre.wait_until_empty(150, run_id) == []  # by SkyPilot's controller

    vms = [vm for vm in user.datacentre.history() if vm.name.startswith(run_id)]
    assert [vm.status for vm in vms] == ["killed", "terminated"]
    cost = user.json("cost", "show", run_id, *user.to_store)
    assert [*cost["by_life"]] == ["1", "2"]

    here = user.home / "never-interrupted"
    here.mkdir()
    whole = User(here)  # on this machine
    del whole.env["OMP_NUM_THREADS"]  # as on the node
    whole.patience_s = user.patience_s  # the machine has other tests' VMs to run
    whole_id = whole.launch_detached(*options)
    assert whole.wait_for_end(whole_id)["state"] == "succeeded"
    for somebody, name in ((user, run_id), (whole, whole_id)):
        folder = str(somebody.home / "pulled")
        somebody.run("pull-checkpoint", name, "--to", folder, *somebody.to_store)
    assert sha256(user.home / "pulled") == sha256(whole.home / "pulled")


def test_two_nodes_train_one_model_and_the_logs_follow(user: CloudUser) -> None:
    run_id = user.launch_detached(*LAMBDA, "--nodes", "2", "--set", "train.steps=200")
    follower = user.start("logs", run_id, "--follow", *user.to_store)
    try:
        view = user.wait_for_end(run_id)
        assert view["state"] == "succeeded", view
        assert view["nodes"] == 2
        vms = [vm for vm in user.datacentre.history() if vm.name.startswith(run_id)]
        assert len(vms) == 2
        user.run("stop", run_id, *user.to_store)
        assert user.datacentre.wait_until_empty(5, run_id) == []
        followed, _ = follower.communicate(timeout=60)
    finally:
        follower.kill()
    whole = user.run("logs", run_id, *user.to_store).stdout
    assert followed == whole  # nothing twice, nothing missing, live or from the store
    assert "2 ranks" in whole
    assert sum(line.startswith("step 200/200  loss") for line in whole.splitlines()) == 1
