"""Real runs with a price and a tiny budget: the bill stays within it, and nearly all is used."""

import json
import signal
import time
from decimal import Decimal

import pytest

from tests.runs.user import ENDLESS, User

pytestmark = pytest.mark.slow

SELDOM = ("--set", "eval.every=200", "--set", "checkpoint.every=200")
CENT_A_SECOND = ("--price-per-hour", "36")
DOLLAR_A_SECOND = ("--price-per-hour", "3600")


def test_a_tiny_budget_is_kept_and_nine_tenths_of_it_are_used(user: User) -> None:
    budget = Decimal("0.70")
    view = user.launch(*ENDLESS, *SELDOM, *CENT_A_SECOND, "--budget", str(budget), exit_code=5)
    assert (view["state"], view["reason"]) == ("stopped", "budget")
    assert Decimal("0.9") * budget <= Decimal(view["spent_usd"]) <= budget, view["phases"]
    assert user.steps(view["run_id"])[-1] == view["step"] > 0
    assert user.events(view["run_id"], "training_cut_off") == []

    # What was measured is what the bill says. The first evaluation may be over before the
    # supervisor hears that training has begun, and is preparation then.
    first, *later = (event["seconds"] for event in user.events(view["run_id"], "evaluated"))
    assert -0.1 <= view["phases"]["evaluation"] - sum(later) <= first + 0.1
    saved = user.events(view["run_id"], "checkpoint_saved")
    assert view["phases"]["checkpoints"] == pytest.approx(sum(e["stall_s"] for e in saved), abs=0.1)
    assert view["phases"]["training"] > 30


def test_training_that_hangs_at_the_budget_is_cut_off_inside_it(user: User) -> None:
    run_id = user.launch_detached(*ENDLESS, *DOLLAR_A_SECOND, "--budget", "25")
    user.wait_for_step(run_id, 15)
    halt_between_saves(user, run_id)  # as one that writes to a dead disk
    view = user.wait_for_end(run_id)
    assert (view["state"], view["reason"]) == ("stopped", "budget")
    assert Decimal("0.8") * 25 <= Decimal(view["spent_usd"]) <= 25
    (cut_off,) = user.events(run_id, "training_cut_off")
    assert cut_off["saved"] == user.steps(run_id)[-1] < cut_off["step"] == view["step"]
    assert f"step {view['step']} could not be saved" in view["message"]


def test_a_budget_holds_over_all_lives_and_the_gap_between_them_is_billed(user: User) -> None:
    run_id = user.launch_detached(*ENDLESS, *DOLLAR_A_SECOND, "--budget", "40")
    user.wait_for_step(run_id, 15)
    user.kill(user.processes(run_id, "training.supervise"))
    deadline = time.monotonic() + 40
    while user.processes(run_id):
        assert time.monotonic() < deadline, "training outlived its supervisor"
        time.sleep(0.1)
    first = Decimal(user.status(run_id)["spent_usd"])
    view = user.json("launch", "--resume", run_id, "--yes", *user.to_store, exit_code=5)
    assert (view["state"], view["reason"]) == ("stopped", "budget")
    assert view["phases"]["lost"] == 1.0  # until a heartbeat would have come
    assert first < Decimal("0.75") * 40 <= Decimal(view["spent_usd"]) <= 40


def halt_between_saves(user: User, run_id: str) -> None:
    """At a step that is not saved already, as one in ten is."""
    metrics = user.node / "runs" / run_id / "metrics.jsonl"
    while True:
        user.kill(user.ranks(run_id), signal.SIGSTOP)
        whole, _, _ = metrics.read_text().rpartition("\n")
        if json.loads(whole.splitlines()[-1])["step"] % 10:
            return
        user.kill(user.ranks(run_id), signal.SIGCONT)
        time.sleep(0.01)
