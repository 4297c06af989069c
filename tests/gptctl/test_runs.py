import fcntl
import os
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal

import pytest

from gptctl import runs
from gptctl.backends.local import LocalBackend
from gptctl.errors import BackendError, NotFoundError, PlanRefusedError, UsageError
from gptctl.launch import Patience, launch, plan_resume, resume
from gptctl.plan import Limits, make_plan
from gptctl.runs import create_run, find_run_id, new_run_id, read_all, read_status, view_run
from tests.gptctl.run_folder import (
    NOW,
    OFFER,
    RECIPE,
    FakeBackend,
    RunFolder,
    make_bill,
    make_record,
    make_status,
)
from training.layout import RunPaths, encode
from training.storage import open_store


def view(backend="running", age_s=1.0, **status):
    now = NOW + timedelta(seconds=age_s)
    return view_run(make_record(), make_status(**status), backend, store="s", now=now)


def start(store, backend):
    record, _ = launch(
        make_plan("small", RECIPE, [OFFER]),
        store=store,
        backend=backend,
        patience=Patience(),
        versions={},
        now=NOW,
        tell=ignore,
    )
    return record


def ignore(line):
    pass


def test_run_id_is_safe_as_a_folder_name():
    assert new_run_id("My Recipe/2").startswith("my-recipe-2-")


def test_taken_run_id_is_replaced_and_never_overwritten(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    monkeypatch.setattr(runs.secrets, "token_hex", lambda n: "beef")

    created = create_run(run.store, make_record("small-3f9a", store="other"))

    assert created.run_id == "small-beef"
    assert runs.read_record(run.store, "small-3f9a") == run.record
    assert read_status(run.store, created).state == "pending"


def test_running_run_is_shown_as_its_status_says():
    seen = view()

    assert (seen.state, seen.reason, seen.is_stale) == ("training", None, False)
    assert seen.phases == {"preparing": 3.5, "training": 60.0}
    assert seen.spent_usd == Decimal("0.0635")
    assert seen.seconds_left == 12.8


def test_phases_of_all_lives_are_added_up():
    bill = (make_bill("training", 1.25), make_bill("training", 2.5, life=2))

    assert view(bill=bill).phases == {"training": 3.75}


def test_dead_supervisor_makes_a_run_killed_and_says_how_to_go_on():
    seen = view("gone")

    assert (seen.state, seen.reason) == ("failed", "killed")
    assert "gptctl launch --resume small-3f9a" in seen.hint


def test_old_heartbeat_is_stale_and_says_so():
    assert not view(age_s=59).is_stale
    seen = view(age_s=75)
    assert seen.is_stale
    assert seen.state == "training"
    assert "75 s" in seen.message


def test_run_on_another_machine_is_stale_rather_than_killed():
    seen = view("unknown", age_s=75)

    assert (seen.state, seen.is_stale) == ("training", True)


def test_recorded_run_has_a_grace_before_it_counts_as_never_started():
    assert view("unknown", age_s=5, state="pending").state == "pending"
    seen = view("unknown", age_s=45, state="pending")
    assert (seen.state, seen.reason) == ("failed", "killed")
    assert "never started" in seen.message


@pytest.mark.parametrize("state", ["succeeded", "stopped", "failed"])
def test_ended_run_is_never_stale_or_killed(state):
    seen = view("gone", age_s=1e6, state=state, reason="budget")

    assert (seen.state, seen.reason, seen.is_stale) == (state, "budget", False)


def test_run_is_found_by_a_unique_beginning(tmp_path):
    store = RunFolder(tmp_path, "small-3f9a").store
    RunFolder(tmp_path, "small-77aa")

    assert find_run_id(store, "small-3") == "small-3f9a"
    assert find_run_id(store, "small-77aa") == "small-77aa"
    with pytest.raises(UsageError, match="small-3f9a, small-77aa"):
        find_run_id(store, "small")


def test_unknown_run_names_the_nearest(tmp_path):
    store = RunFolder(tmp_path, "small-3f9a").store

    with pytest.raises(NotFoundError) as error:
        find_run_id(store, "smal-3f9a")

    assert "small-3f9a" in error.value.hint


def test_runs_are_listed_newest_first_and_damaged_ones_warned_of(tmp_path):
    store = RunFolder(tmp_path, "old-0001").store
    later = make_record("new-0002", created_at=NOW + timedelta(hours=1))
    store.write("runs/new-0002/run.json", encode(later))
    store.write("runs/torn-0003/run.json", b"{")

    found, warnings = read_all(store)

    assert [record.run_id for record, _ in found] == ["new-0002", "old-0001"]
    assert len(warnings) == 1
    assert "torn-0003" in warnings[0]


def test_launch_records_the_run_before_it_asks_the_backend(tmp_path):
    store, backend = open_store(str(tmp_path)), FakeBackend()

    record = start(store, backend)

    assert runs.read_record(store, record.run_id) == record
    assert [job.record for job in backend.jobs] == [record]
    assert read_status(store, record).state == "pending"


def test_backend_that_refuses_leaves_a_failed_run_behind(tmp_path):
    store = open_store(str(tmp_path))

    with pytest.raises(BackendError):
        start(store, FakeBackend(error=BackendError("no room")))

    ((_, status),), _ = read_all(store)
    assert (status.state, status.reason, status.message) == ("failed", "backend", "no room")


def go_on(run, backend, **limits):
    job = plan_resume(
        run.run_id,
        Limits(**limits),
        store=run.store,
        backend=backend,
        patience=Patience(),
        now=NOW,
    )
    resume(job, store=run.store, backend=backend, now=NOW, tell=ignore)


def test_resume_makes_a_stopped_run_pending_and_keeps_its_bill(tmp_path):
    run = RunFolder(tmp_path, state="stopped", reason="user")
    backend = FakeBackend()

    go_on(run, backend, budget_usd=Decimal(2))

    status = read_status(run.store, run.record)
    assert (status.state, status.reason) == ("pending", None)
    assert status.bill == make_status().bill
    assert backend.jobs[0].budget_usd == 2
    assert backend.jobs[0].offers[0].price_per_hour == Decimal("3.60")


def test_resume_takes_up_a_run_whose_supervisor_was_killed(tmp_path):
    backend = FakeBackend("gone")

    go_on(RunFolder(tmp_path, state="training"), backend)

    assert len(backend.jobs) == 1


def test_resume_keeps_the_limits_of_the_life_before(tmp_path):
    run = RunFolder(tmp_path, state="stopped", budget_usd=Decimal(9), max_hours=5.0)
    backend = FakeBackend()

    go_on(run, backend)

    assert (backend.jobs[0].budget_usd, backend.jobs[0].max_hours) == (9, 5.0)


@pytest.mark.parametrize(
    ("status", "backend", "word"),
    [
        ({"state": "succeeded"}, "gone", "finished"),
        ({"state": "training"}, "running", "still training"),
        ({"state": "stopped", "budget_usd": Decimal("0.06")}, "gone", "spent"),
        ({"state": "stopped", "max_hours": 0.01}, "gone", "hours"),
        ({"state": "stopped", "reason": "budget"}, "gone", "spent"),  # all but the reserve
        ({"state": "stopped", "reason": "deadline", "max_hours": 5.0}, "gone", "hours"),
    ],
)
def test_resume_refuses_what_cannot_go_on(tmp_path, status, backend, word):
    machine = FakeBackend(backend)

    with pytest.raises(PlanRefusedError, match=word):
        go_on(RunFolder(tmp_path, **status), machine)

    assert not machine.jobs


HOLD_LOCK = """
import sys
from pathlib import Path
from training.processes import exclusive
with exclusive(Path(sys.argv[1]), timeout_s=0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_local_run_is_alive_as_long_as_its_lock_is_held(tmp_path):
    backend, lock = LocalBackend(tmp_path, os.environ), RunPaths(tmp_path, "small-3f9a").lock
    assert backend.state("small-3f9a") == "unknown"

    command = [sys.executable, "-c", HOLD_LOCK, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        assert backend.state("small-3f9a") == "running"
        backend.stop("small-3f9a", tell=ignore)
        process.wait()

    assert backend.state("small-3f9a") == "gone"
    backend.stop("small-3f9a", tell=ignore)  # twice is no error


def test_stop_trusts_the_lock_and_not_the_process_id_in_it(tmp_path):
    lock = RunPaths(tmp_path, "small-3f9a").lock
    lock.parent.mkdir(parents=True)
    lock.write_text(str(os.getpid()))

    LocalBackend(tmp_path, os.environ).stop("small-3f9a", tell=ignore)  # we would not live to tell


def test_machine_whose_folder_cannot_be_used_knows_of_no_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    backend = LocalBackend(tmp_path / "file", os.environ)

    assert backend.state("small-3f9a") == "unknown"
    with pytest.raises(BackendError, match="could not be told to stop"):
        backend.stop("small-3f9a", tell=ignore)


def test_supervisor_that_cannot_start_gives_its_last_words(tmp_path):
    backend = LocalBackend(tmp_path / "node", os.environ)
    run = RunFolder(tmp_path / "store")
    lock = RunPaths(tmp_path / "node", run.run_id).lock
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BackendError, match="already being supervised"):
            go_on(run, StaleState(backend))

    assert read_status(run.store, run.record).state == "pending"


class StaleState:
    """A backend that believes a run to be gone which another launch has just taken up."""

    def __init__(self, backend):
        self._answers = iter(["gone"])
        self._backend = backend
        self.submit = backend.submit

    def state(self, run_id):
        return next(self._answers, self._backend.state(run_id))
