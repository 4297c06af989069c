"""Runs that nobody looks after: the laptop goes off, or a machine falls silent.

They mostly wait, and therefore run while others do.
"""

import time
from decimal import Decimal

import pytest

from gptctl.condition import STALE_AFTER_S
from tests.e2e.cloud_user import CloudUser
from tests.runs.user import ENDLESS

FINISHING, SPENDING, HANGING = RUNS = ("off-finishing", "off-spending", "off-hanging")
STARTING = "off-starting"
BUDGET_USD = "0.020"  # at $0.20 an hour 6 min, of which 1 min 39 s are kept back to end
OPTIONS = {
    FINISHING: ("--set", "train.steps=600", "--budget", "0.10"),
    SPENDING: (*ENDLESS, "--set", "checkpoint.every=100000", "--budget", BUDGET_USD),
    HANGING: (*ENDLESS, "--set", "checkpoint.every=100000", "--max-hours", "0.11"),
}


def launch_all(user: CloudUser) -> None:
    """All at once, as three shells would."""
    launches = [
        user.start(
            *(*user.launch_arguments, "--cloud", "lambda", "--detach"),
            *("--name", name, *OPTIONS[name]),
        )
        for name in RUNS
    ]
    for launch in launches:
        out, err = launch.communicate(timeout=300)
        assert launch.returncode == 0, (out, err)


@pytest.mark.background("off")
def test_runs_finish_or_stop_at_their_limit_and_go_down_and_what_was_starting_is_found(
    user: CloudUser,
) -> None:
    centre = user.datacentre
    launch_all(user)
    for name in (HANGING, SPENDING):
        user.wait_for_step(name, 1)
        centre.make_way(name)
    user.on_node(HANGING, "pkill -STOP -f training.supervise")
    step_when_hung = user.status(HANGING)["step"]
    starting = user.start(
        *(*user.launch_arguments, "--cloud", "lambda", "--budget", "1", "--name", STARTING)
    )
    centre.wait_for_vm(STARTING)
    starting.kill()
    centre.kill_api_server(user.sky_home)
    starting.communicate()

    # Later, the laptop is on again. What was being launched is the only one that needs a hand.
    told = user.run("status", *user.to_store)
    assert f"gptctl stop {STARTING}" in told.stderr
    user.run("stop", STARTING, *user.to_store)
    assert centre.wait_until_empty(5, STARTING) == []
    assert user.status(STARTING)["state"] == "failed"
    assert STARTING in user.run("stop", STARTING, *user.to_store).stderr
    assert "cut short" not in user.run("status", *user.to_store).stderr
    centre.kill_api_server(user.sky_home)

    assert centre.wait_until_empty(400, "off-") == []
    by_nodes = [
        request
        for request in centre.requests()
        if request["path"].endswith("/terminate") and request["from"].startswith("10.99.")
    ]
    assert len(by_nodes) >= len(RUNS)
    views = {view["run_id"]: view for view in user.status_all()}
    finished, spent, hung = (views[name] for name in RUNS)
    assert (finished["state"], finished["step"]) == ("succeeded", 600)
    assert (spent["state"], spent["reason"]) == ("stopped", "budget")
    assert centre.billed_usd(SPENDING) <= Decimal(BUDGET_USD)
    assert (hung["state"], hung["reason"]) == ("stopped", "deadline")
    assert hung["step"] >= step_when_hung
    for view in (finished, spent, hung):
        folder = str(user.home / view["run_id"])
        pulled = user.json("pull-checkpoint", view["run_id"], "--to", folder, *user.to_store)
        assert pulled["step"] == view["step"]  # nothing was lost


@pytest.mark.background("off")
def test_a_machine_without_a_sign_of_life_is_found_and_stopped(user: CloudUser) -> None:
    run_id = user.launch_detached(
        "--cloud", "lambda", "--budget", "0.05", *ENDLESS, "--name", "off-silent"
    )
    user.wait_for_step(run_id, 1)
    user.datacentre.make_way(run_id)
    stranger = CloudUser(user.datacentre, "elsewhere", home=user.sky_home)
    clash = stranger.run(
        *stranger.launch_arguments, "--cloud", "lambda", "--name", run_id, exit_code=8
    ).stderr
    assert "already has" in clash
    user.on_node(run_id, "sudo pkill -KILL -f '[b]ootstrap.sh|[s]kylet|[t]raining'")
    time.sleep(STALE_AFTER_S)
    view = user.wait_for(run_id, lambda view: "no sign of life" in (view["message"] or ""))
    assert view["is_billing"]
    assert f"gptctl stop {run_id}" in view["hint"]
    user.run("stop", run_id, *user.to_store)
    assert user.datacentre.wait_until_empty(5, run_id) == []
    assert user.status(run_id)["state"] == "stopped"
    user.run("stop", run_id, *user.to_store)
