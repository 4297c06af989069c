"""Whatever happens to a launch, to a run, or to who launched it: nothing goes on billing."""

import signal
import subprocess

from tests.e2e.cloud_user import CloudUser

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
    assert centre.wait_until_empty(5) == []
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
    user.datacentre.inject("terminate", status=500, name="ctrl-c")
    launch.send_signal(signal.SIGINT)
    _, told = launch.communicate(timeout=120)
    assert launch.returncode == 130, told
    assert "Traceback" not in told
    assert user.datacentre.wait_until_empty(5) == []
    view = user.status("ctrl-c")
    assert (view["state"], view["reason"]) == ("stopped", "user")


def test_a_machine_that_never_boots_is_given_back_in_time(user: CloudUser) -> None:
    user.datacentre.inject("launch", hang=True, name="never")
    options = (*LAMBDA, "--name", "never", "--boot-timeout", "0.3")
    told = user.run(*user.launch_arguments, *options, exit_code=8).stderr
    assert "--boot-timeout" in told
    assert user.datacentre.wait_until_empty(5) == []
