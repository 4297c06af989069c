"""A rented run made one line: heartbeat, machine and launch, and how it is ended."""

import subprocess
import sys
from datetime import timedelta
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.backends.launched import Launched, Note, this_process
from gptctl.cli import main
from gptctl.cli.render import machine_of, state_of
from gptctl.errors import BackendError
from gptctl.monitor import watch
from gptctl.report import cost_of
from gptctl.runs import read_status, view_run
from gptctl.stopping import stop_rented
from tests.gptctl.run_folder import NOW, OFFER, FakeBackend, RunFolder, make_record, make_status
from training.layout import encode, run_key

RUN = "small-3f9a"
LAMBDA = replace(
    OFFER,
    cloud="lambda",
    region="us-east-1",
    instance_type="gpu_8x_a100_80gb",
    gpu="A100-80GB",
    gpu_count=8,
    price_per_hour=Decimal("22.32"),
)
DEAD = (2**22 + 1, 0.0)
"""A process that is no more: beyond the largest id there can be."""


def view(backend="running", age_s=1.0, launching="none", record=None, **status):
    return view_run(
        record or make_record(offer=LAMBDA),
        make_status(**status),
        backend,
        store="s3://b/p",
        now=NOW + timedelta(seconds=age_s),
        launching=launching,
    )


def test_running_run_is_as_its_heartbeat_says_and_bills():
    seen = view()

    assert (seen.state, seen.is_stale, seen.is_billing, seen.message) == (
        *("training", False, True),
        None,
    )


def test_run_on_this_machine_bills_nobody():
    assert not view(record=make_record()).is_billing


def test_machine_that_was_taken_is_shown_rather_than_the_planned_one():
    taken = replace(LAMBDA, region="us-west-2")
    seen = view(
        offer=taken, price_per_hour=Decimal("44.64"), record=make_record(offer=LAMBDA, nodes=2)
    )

    assert seen.offer == taken
    assert machine_of(seen) == (
        "2 x 8x A100-80GB, gpu_8x_a100_80gb in us-west-2 of lambda, $44.64 an hour, bills now"
    )


def test_price_of_all_nodes_is_still_the_offers_own():
    record = make_record(offer=LAMBDA, nodes=2)

    assert cost_of(record, make_status(price_per_hour=Decimal("44.64"))).price_source == (
        LAMBDA.price_source
    )


@pytest.mark.parametrize("launching", ["none", "under_way"])
@pytest.mark.parametrize("age_s", [1.0, 4000.0])
def test_run_without_a_heartbeat_yet_is_provisioning_and_not_stale(launching, age_s):
    seen = view("running", age_s, launching, state="provisioning")

    assert (seen.state, seen.is_stale) == ("provisioning", False)
    assert seen.message
    assert f"gptctl logs {RUN} --follow" in seen.hint


def test_launch_that_waits_for_capacity_is_not_taken_for_dead():
    seen = view("gone", 4000.0, "under_way", state="provisioning")

    assert (seen.state, seen.is_launching) == ("provisioning", True)


def test_launcher_that_died_is_said_to_have_and_what_ends_it():
    alive, lost = (view(b, 100, "cut_short", state="provisioning") for b in ("running", "gone"))

    assert (alive.state, lost.state, lost.reason) == ("provisioning", "failed", "killed")
    for seen in (alive, lost):
        assert "cut short" in seen.message
        assert f"gptctl stop {RUN}" in seen.hint


def test_launcher_that_died_after_training_began_changes_nothing():
    assert view("running", 1.0, "cut_short").message is None


def test_silent_machine_is_said_to_bill_and_how_to_end_it():
    seen = view("running", 90)

    assert (seen.state, seen.is_stale, seen.is_billing) == ("training", True, True)
    assert "up and bills, but gives no sign of life for 90 s" in seen.message
    assert seen.hint == f"`gptctl stop {RUN}` ends it"


def test_machine_gone_without_a_last_word_is_killed_once_its_heartbeat_is_old():
    assert view("gone", 5).state == "training"
    seen = view("gone", 75)

    assert (seen.state, seen.reason, seen.is_billing) == ("failed", "killed", False)
    assert f"gptctl launch --resume {RUN}" in seen.hint


def test_machine_gone_during_its_set_up_is_killed():
    assert view("gone", 75, state="provisioning").reason == "killed"


@pytest.mark.parametrize(
    "record",
    [
        make_record(offer=LAMBDA, recover=True),
        make_record(offer=replace(LAMBDA, spot=True)),
    ],
)
def test_managed_run_whose_machine_died_is_preempted(record):
    seen = view("running", 90, record=record)

    assert (seen.state, seen.is_stale, seen.is_over) == ("preempted", False, False)
    assert "SkyPilot is looking for another machine" in seen.message


def test_heartbeat_decides_where_this_laptop_never_launched_it():
    assert view("unknown", 30).state == "training"
    seen = view("unknown", 90)

    assert (seen.state, seen.is_stale, seen.is_billing) == ("training", True, False)
    assert view("unknown", 45, state="pending").reason == "killed"


def test_ended_run_that_still_bills_says_so_without_being_a_fault_at_first():
    soon, late = (
        view("running", s, state="stopped", reason="budget", message="at $1") for s in (60, 600)
    )

    assert (soon.state, soon.reason, soon.is_stale) == ("stopped", "budget", False)
    assert soon.message == (
        "at $1; its machine still bills; it should go down by itself within two minutes"
    )
    assert "still bills, 10 minutes after the end" in late.message
    assert f"gptctl stop {RUN}" in soon.hint
    assert state_of(soon) == "stopped (budget) (still bills)"


def test_ended_run_without_a_machine_is_as_it_ended():
    seen = view(
        "gone", 600, state="failed", reason="setup", message="no driver", hint="take another"
    )

    assert (seen.message, seen.hint, seen.is_billing) == ("no driver", "take another", False)


class CountingBackend(FakeBackend):
    """Asking it takes seconds, as it does SkyPilot."""

    asked_state = 0

    def state(self, run_id):
        self.asked_state += 1
        return super().state(run_id)


@pytest.fixture
def run(tmp_path):
    return RentedRun(tmp_path / "store")


@pytest.fixture
def launched(tmp_path):
    return Launched(tmp_path / "launched")


class RentedRun(RunFolder):
    def __init__(self, folder, run_id=RUN, **status):
        super().__init__(folder, run_id, **status)
        self.record = make_record(run_id, offer=LAMBDA, store=str(folder))
        self.store.write(run_key(run_id, "run.json"), encode(self.record))

    def note(self, launched, **fields):
        note = Note(run_id=self.run_id, store=str(self.folder), clouds=("lambda",), managed=False)
        launched.write(replace(note, **fields))


def look(run, backend, launched, age_s=1.0, complain=print):
    clock = lambda: NOW + timedelta(seconds=age_s)  # noqa: E731
    return watch(
        run.run_id,
        store=run.store,
        backend=backend,
        clock=clock,
        launched=launched,
        complain=complain,
    )()


def test_run_that_is_over_and_was_seen_to_be_gone_is_not_asked_after_again(run, launched):
    run.note(launched)
    run.write_status(state="succeeded")
    backend = CountingBackend("running")

    seen = [look(run, backend, launched, age_s=10**6)]
    backend.now = "gone"
    seen += [look(run, backend, launched, age_s=10**6) for _ in range(3)]

    assert [v.backend for v in seen] == ["running", "gone", "gone", "gone"]
    assert backend.asked_state == 2


def test_run_launched_elsewhere_is_asked_after_for_a_day(run, launched):
    run.write_status(state="succeeded")
    backend = CountingBackend("unknown")

    look(run, backend, launched, age_s=3600)
    look(run, backend, launched, age_s=3 * 86400)

    assert backend.asked_state == 1


def test_run_that_fell_silent_is_asked_after_and_ended_in_between_is_over(run, launched):
    run.note(launched)
    run.write_status(updated_at=NOW - timedelta(seconds=90))

    class EndsMeanwhile(FakeBackend):
        def state(self, run_id):
            run.write_status(state="succeeded")
            return "gone"

    assert look(run, EndsMeanwhile(), launched).state == "succeeded"


def test_run_whose_node_has_just_told_of_itself_is_not_asked_after(run, launched):
    class Slow(FakeBackend):
        def state(self, run_id):
            raise AssertionError("that takes seconds")

    run.note(launched)

    assert look(run, Slow(), launched).backend == "running"


def test_skypilot_that_cannot_be_asked_leaves_the_heartbeat_and_is_told_of(run, launched):
    class Broken(FakeBackend):
        def state(self, run_id):
            raise BackendError("no answer")

    run.note(launched)
    run.write_status(updated_at=NOW - timedelta(seconds=90))
    told = []

    seen = look(run, Broken(), launched, complain=told.append)

    assert (seen.state, seen.backend, told) == ("training", "unknown", ["no answer"])


def stop(run, backend, launched, tell=lambda line: None, age_s=1.0):
    return stop_rented(
        run.record,
        store=run.store,
        backend=backend,
        launched=launched,
        clock=lambda: NOW + timedelta(seconds=age_s),
        tell=tell,
    )


def test_stop_leaves_the_last_word_to_the_supervisor(run, launched):
    run.note(launched)

    class Saves(FakeBackend):
        def stop(self, run_id, *, tell):
            super().stop(run_id, tell=tell)
            run.write_status(state="stopped", reason="user", message="saved at step 60", step=60)

    status = stop(run, Saves("running"), launched)

    assert (status.step, status.message) == (60, "saved at step 60")
    assert launched.read(RUN).is_given_back


def test_stop_says_the_last_word_of_a_machine_that_could_not(run, launched):
    run.note(launched)
    told = []

    stop(run, FakeBackend("running"), launched, told.append)

    status = read_status(run.store, run.record)
    assert (status.state, status.reason) == ("stopped", "user")
    assert status.bill == make_status().bill
    assert told[0].startswith(f"Stopping {RUN}")
    assert told[-1] == "Its machine is gone: nothing of it bills."


def test_stop_of_a_launch_that_was_cut_short_cleans_up_and_notes_its_failure(run, launched):
    run.note(launched, launcher=DEAD)
    run.write_status(state="provisioning", phase="provisioning")
    backend = FakeBackend("gone")
    assert [note.run_id for note in launched.cut_short()] == [RUN]

    status = stop(run, backend, launched)

    assert backend.stopped == [RUN]
    assert (status.state, status.reason, status.message) == (
        *("failed", "killed"),
        "its launch was cut short",
    )
    assert launched.cut_short() == []


def test_stop_of_what_had_not_begun_is_a_stop(run, launched):
    run.note(launched)
    run.write_status(state="provisioning")

    assert stop(run, FakeBackend("running"), launched).state == "stopped"


@pytest.mark.parametrize("machine", ["running", "gone"])
def test_stop_of_what_is_over_keeps_how_it_ended_and_ends_what_bills(run, launched, machine):
    run.note(launched)
    run.write_status(state="failed", reason="setup", message="no driver")
    backend = FakeBackend(machine)

    for _ in range(2):
        assert stop(run, backend, launched).message == "no driver"

    assert backend.stopped == [RUN, RUN]


def test_stop_leaves_alone_the_machine_of_a_run_of_that_name_in_another_store(run, launched):
    run.note(launched, store="s3://elsewhere/runs")
    backend = FakeBackend("running")

    with pytest.raises(BackendError, match="in s3://elsewhere/runs, not for the one in") as error:
        stop(run, backend, launched)

    assert f"`gptctl stop {RUN} --store 's3://elsewhere/runs'`" in error.value.hint
    assert backend.stopped == []


def test_stop_ends_a_run_that_was_left_open_for_another_machine(run, launched):
    run.note(launched, managed=True)

    class TakesAway(FakeBackend):
        def stop(self, run_id, *, tell):
            super().stop(run_id, tell=tell)
            run.write_status(state="preempted", reason="machine", message="saved")

    status = stop(run, TakesAway("running"), launched)

    assert (status.state, status.reason) == ("stopped", "user")
    assert status.message == "stopped on request"


def test_stop_of_a_run_from_elsewhere_says_what_is_known(run, launched):
    backend, told = FakeBackend("unknown"), []
    with pytest.raises(BackendError, match="as of 9 s ago, was not launched from here") as error:
        stop(run, backend, launched, age_s=9)
    assert "lambda's own console" in error.value.hint

    run.write_status(state="succeeded")
    assert stop(run, backend, launched, told.append).state == "succeeded"
    assert told == [
        f"{RUN} was succeeded already, and the SkyPilot of this machine knows of no machine of it."
    ]
    assert backend.stopped == []


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("GPTCTL_CLOUD", "GPTCTL_NODE_ROOT", "GPTCTL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GPTCTL_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def sky(monkeypatch):
    """Stands in for SkyPilot, and counts how often a backend was opened."""
    backend = CountingBackend("running")
    monkeypatch.setattr("gptctl.cli.session.open_backend", lambda *_, **__: backend)
    return backend


def test_each_command_warns_once_of_a_launch_that_was_cut_short(home, run, sky, capsys):
    here, elsewhere = Launched(home / "data" / "gptctl" / "launched"), "s3://other/runs"
    run.note(here, launcher=DEAD)
    run.note(here, run_id="other-0001", launcher=DEAD, store=elsewhere)
    run.note(here, run_id="fine-0001", launcher=this_process())

    for command in (["status"], ["status", RUN, "--json"], ["cost", "show", RUN]):
        assert main(command) == 0
        warnings = [w for w in capsys.readouterr().err.splitlines() if w.startswith("warning: ")]
        assert len(warnings) == 2
        assert f"`gptctl status {RUN}` looks, `gptctl stop {RUN}` ends it" in warnings[1]
        assert f"`gptctl stop other-0001 --store {elsewhere}` ends it" in warnings[0]


def test_status_without_skypilot_tells_what_the_store_knows(home, run, monkeypatch, capsys):
    def fail(*_, **__):
        raise BackendError("SkyPilot is not installed", hint="install it")

    monkeypatch.setattr("gptctl.cli.session.open_backend", fail)
    run.write_status(updated_at=NOW - timedelta(days=365))

    assert main(["status", RUN]) == 0
    told = capsys.readouterr()
    assert "lambda" in told.out
    assert told.err.count("SkyPilot is not installed") == 1
    assert main(["stop", RUN]) == 8
    assert "hint: install it" in capsys.readouterr().err


def test_attached_launch_gives_the_machine_back_when_the_run_is_over(home, run, sky, capsys):
    from gptctl.cli.follow import follow_to_end
    from gptctl.cli.session import open_session

    run.note(Launched(home / "data" / "gptctl" / "launched"))
    run.write_status(state="succeeded", reason="completed", step=100)

    import typer

    with pytest.raises(typer.Exit) as end:
        follow_to_end(open_session(), RUN, sky, detach=False, json=False)

    assert end.value.exit_code == 0
    assert sky.stopped == [RUN]
    told = capsys.readouterr()
    assert "giving its machine back" in told.err
    assert f"{RUN}: succeeded at step 100" in told.out


def test_ssh_runs_what_it_is_told_on_the_machine(home, run, sky, monkeypatch, capsys):
    ran = []
    sky.ssh_command = lambda run_id, *words: ["ssh", run_id, *words]
    monkeypatch.setattr("os.execvp", lambda file, words: ran.append((file, words)))

    assert main(["ssh", RUN, "--", "nvidia-smi", "-l", "1"]) == 0
    assert ran == [("ssh", ["ssh", RUN, "nvidia-smi", "-l", "1"])]
    sky.now = "gone"
    assert main(["ssh", RUN]) == 8
    assert "has no machine" in capsys.readouterr().err


def test_ssh_to_a_run_on_this_machine_is_a_mistake(home, tmp_path, capsys):
    RunFolder(tmp_path / "store", "local-0001")

    assert main(["ssh", "local-0001"]) == 2
    assert main(["open", "local-0001"]) == 2
    assert "on this machine" in capsys.readouterr().err


def test_open_prints_the_page_and_needs_no_display(home, run, sky, monkeypatch, capsys):
    opened = []
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("webbrowser.open", opened.append)
    sky.dashboard_url = lambda run_id: f"http://here/{run_id}"

    assert main(["open", RUN]) == 0
    assert capsys.readouterr().out == f"http://here/{RUN}\n"
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(["open", RUN]) == 0
    assert opened == [f"http://here/{RUN}"]


def test_status_of_runs_that_are_long_over_does_not_load_skypilot(home, run):
    run.note(Launched(home / "data" / "gptctl" / "launched"), is_given_back=True)
    run.write_status(state="succeeded")
    code = (
        "import sys; from gptctl.cli import main\n"
        "print(main(['status']), main(['status', 'small']), 'sky' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stderr.splitlines()[-1] == "0 0 False"
