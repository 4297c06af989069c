"""A machine that dies under a run."""

import hashlib
from pathlib import Path

from tests.e2e.cloud_user import CloudUser
from tests.e2e.switched_off import NAMES
from tests.runs.user import User

OPTIONS = ("--set", "train.steps=1000", "--set", "checkpoint.every=100", "--set", "eval.every=500")


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_killed_vm_costs_at_most_the_steps_since_the_last_checkpoint(
    user: CloudUser, tmp_path: Path
) -> None:
    run_id = user.launch_detached("--cloud", "lambda", "--budget", "0.2", "--recover", *OPTIONS)
    view = user.wait_for_step(run_id, 200)
    assert view["state"] == "training"
    user.datacentre.kill_vm(run_id)
    view = user.wait_for_end(run_id, timeout_s=300)
    assert (view["state"], view["step"]) == ("succeeded", 1000), view

    assert view["offer"]["cloud"] == "lambda"
    assert user.datacentre.wait_until_empty(60, but=NAMES) == []  # by SkyPilot's controller
    vms = [vm for vm in user.datacentre.history() if vm.name.startswith(run_id)]
    assert [vm.status for vm in vms] == ["killed", "terminated"]
    cost = user.json("cost", "show", run_id, *user.to_store)
    assert [*cost["by_life"]] == ["1", "2"]

    whole = User(tmp_path)  # never interrupted, on this machine
    del whole.env["OMP_NUM_THREADS"]  # as on the node
    whole.launch(*OPTIONS)
    for somebody, folder in ((user, user.home / "p"), (whole, tmp_path / "p")):
        (only,) = [v["run_id"] for v in somebody.json("status", *somebody.to_store)]
        somebody.run("pull-checkpoint", only, "--to", str(folder), *somebody.to_store)
    assert sha256(user.home / "p") == sha256(tmp_path / "p")
