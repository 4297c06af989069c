"""Whatever happens to a launch, to a run, or to who launched it: nothing goes on billing."""

import signal
import subprocess

from tests.e2e.cloud_user import CloudUser
from tests.e2e.switched_off import BUDGET_USD, FINISHING, HANGING, NAMES, SPENDING, SwitchedOff
from tests.runs.user import ENDLESS

LAMBDA = ("--cloud", "lambda", "--budget", "0.05")
A100, H100 = "gpu_8x_a100_80gb_sxm4", "gpu_8x_h100_sxm5"


def start_launch(user: CloudUser, name: str) -> "subprocess.Popen[str]":
    """A launch whose machine is there, and is being set up."""
    launch = user.start(*user.launch_arguments, *LAMBDA, "--name", name)
    user.datacentre.wait_for_vm(name)
    return launch


def test_a_node_that_is_not_what_was_promised_is_told_of_and_given_back(user: CloudUser) -> None:
    centre = user.datacentre
    centre.inject_no_capacity(instance_type=A100, times=None)
    centre.inject("launch", instance_type=H100, defect={"driver_version": "470.57.02"})
    options = ("--gpus", "A100-80GB:8,H100:8", "--region", "us-east-1", "--budget", "5")
    told = user.run(
        *(*user.launch_arguments, "--cloud", "lambda", *options, "--name", "old-driver"),
        exit_code=4,
    ).stderr
    assert "470.57.02" in told
    assert "525" in told
    assert centre.wait_until_empty(5, but=NAMES) == []
    view = user.status("old-driver")
    assert (view["state"], view["reason"]) == ("failed", "setup")
    assert (view["offer"]["gpu"], view["offer"]["price_per_hour"]) == ("H100", "31.92")
    setup = user.run("logs", "old-driver", "--stage", "setup", *user.to_store).stdout
    assert "NVIDIA H100 80GB HBM3" in setup

    centre.inject_no_capacity(instance_type=H100, times=None)
    none = user.run(*user.launch_arguments, "--cloud", "lambda", *options, exit_code=8).stderr
    assert "capacity" in none
    assert "--wait" in none


def test_ctrl_c_and_a_cloud_that_refuses_to_end_a_machine(user: CloudUser) -> None:
    launch = start_launch(user, "ctrl-c")
    user.datacentre.inject("terminate", status=500)
    launch.send_signal(signal.SIGINT)
    _, told = launch.communicate(timeout=120)
    assert launch.returncode == 130, told
    assert "Traceback" not in told
    assert user.datacentre.wait_until_empty(0, but=NAMES) == []
    view = user.status("ctrl-c")
    assert (view["state"], view["reason"]) == ("stopped", "user")


def test_a_launch_that_is_killed_is_found_and_ended_by_the_next_command(user: CloudUser) -> None:
    launch = start_launch(user, "killed")
    launch.kill()
    user.datacentre.kill_api_server()
    launch.communicate()
    told = user.run("status", *user.to_store)
    assert "gptctl stop killed" in told.stderr
    assert "killed" in told.stdout
    user.run("stop", "killed", *user.to_store)
    assert user.datacentre.wait_until_empty(0, but=NAMES) == []
    assert user.status("killed")["state"] == "failed"
    again = user.run("stop", "killed", *user.to_store)
    assert "killed" in again.stderr
    assert "cut short" not in user.run("status", *user.to_store).stderr


def test_a_machine_that_never_boots_is_given_back_in_time(user: CloudUser) -> None:
    user.datacentre.inject("launch", hang=True)
    options = (*LAMBDA, "--name", "never", "--boot-timeout", "0.3")
    told = user.run(*user.launch_arguments, *options, exit_code=8).stderr
    assert "--boot-timeout" in told
    assert user.datacentre.wait_until_empty(0, but=NAMES) == []


def test_a_machine_without_a_sign_of_life_is_found_and_stopped(user: CloudUser) -> None:
    run_id = user.launch_detached(*LAMBDA, *ENDLESS, "--name", "silent")
    user.wait_for_step(run_id, 1)
    taken = CloudUser(user.datacentre, "elsewhere")
    clash = taken.run(*taken.launch_arguments, *LAMBDA, "--name", "silent", exit_code=8).stderr
    assert "already has" in clash
    user.on_node(run_id, "sudo pkill -KILL -f '[b]ootstrap.sh|[s]kylet|[t]raining'")
    view = user.wait_for(run_id, lambda view: "no sign of life" in (view["message"] or ""), 120)
    assert view["is_billing"]
    assert f"gptctl stop {run_id}" in view["hint"]
    user.run("stop", run_id, *user.to_store)
    assert user.datacentre.wait_until_empty(0, but=NAMES) == []
    assert user.status(run_id)["state"] == "stopped"
    user.run("stop", run_id, *user.to_store)


def test_with_the_laptop_off_runs_finish_or_stop_at_their_limit_and_go_down(
    switched_off: SwitchedOff, user: CloudUser
) -> None:
    switched_off.wait(timeout_s=540)
    centre = user.datacentre
    user.store, another = switched_off.user.store, user  # another laptop, the same store
    views = {view["run_id"]: view for view in another.status_all()}
    assert {*NAMES} == {*views}
    ended_by = {vm.name: vm.status for vm in centre.history() if vm.name.startswith("off-")}
    assert {*ended_by.values()} == {"terminated"}
    ends = [r for r in centre.requests() if r["path"].endswith("/terminate")]
    assert sum(r["from"].startswith("10.99.") for r in ends) >= len(NAMES)  # by the nodes

    finished, spent, hung = (views[name] for name in (FINISHING, SPENDING, HANGING))
    assert (finished["state"], finished["step"]) == ("succeeded", 1500)
    assert (spent["state"], spent["reason"]) == ("stopped", "budget")
    assert centre.billed_usd(SPENDING) <= float(BUDGET_USD)
    assert (hung["state"], hung["reason"]) == ("stopped", "deadline")
    assert hung["step"] >= switched_off.step_when_hung
    for view in (finished, spent, hung):
        folder = str(user.home / view["run_id"])
        pulled = another.json("pull-checkpoint", view["run_id"], "--to", folder, *another.to_store)
        assert pulled["step"] == view["step"]  # nothing was lost
