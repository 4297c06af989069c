"""What `gptctl doctor` makes of what it is told, and what it says."""

import json
from datetime import date, timedelta

import pytest
from msgspec.structs import replace

from gptctl.backends.launched import Launched, Note
from gptctl.backends.rented import CloudAccess
from gptctl.cli import main
from gptctl.doctor import (
    examine_clouds,
    examine_machine,
    examine_store,
    judge_access,
    judge_prices,
    prove_writable,
)
from gptctl.errors import BackendError, NotFoundError
from tests.gptctl.run_folder import FakeBackend
from tests.gptctl.test_cloud_view import DEAD, RUN, RentedRun, view
from training.errors import ObjectDamagedError, StorageError
from training.storage import open_store

TODAY = date(2026, 11, 21)
ACCEPTED = CloudAccess(cloud="lambda", is_enabled=True, has_credentials=True)
REFUSED = CloudAccess(cloud="lambda", is_enabled=False, has_credentials=True, why="bad key")
NOT_SET_UP = CloudAccess(cloud="aws", is_enabled=False, has_credentials=False)


class FakeSky(FakeBackend):
    """SkyPilot, healthy, of one cloud."""

    def __init__(self):
        super().__init__("gone")
        self.access = [NOT_SET_UP, ACCEPTED]
        self.server = "0.14.1"
        self.names = []

    def versions(self):
        return "0.14.1", self.server

    def try_credentials(self):
        return self.access

    def catalog_dates(self):
        return {"lambda": TODAY}

    def machines(self):
        return self.names


@pytest.fixture
def sky():
    return FakeSky()


@pytest.fixture
def launched(tmp_path):
    return Launched(tmp_path / "launched")


def note_run(launched, run_id=RUN, **fields):
    note = Note(run_id=run_id, store="s3://b/p", clouds=("lambda",), managed=False)
    launched.write(replace(note, **fields))


def examine(sky, launched, wanted=(), look=lambda run_id, store: view()):
    def open_backend():
        if isinstance(sky, BackendError):
            raise sky
        return sky

    found = examine_clouds(open_backend, wanted=wanted, launched=launched, look=look, today=TODAY)
    return {finding.subject: finding for finding in found}


def verdicts(found):
    return {subject: finding.verdict for subject, finding in found.items()}


def test_healthy_cloud_is_all_ok(sky, launched):
    assert verdicts(examine(sky, launched)) == {
        "SkyPilot": "ok",
        "lambda": "ok",
        "prices of lambda": "ok",
        "machines": "ok",
    }


def test_server_of_another_version_fails_with_what_mends_it(sky, launched):
    sky.server = "0.13.0"

    finding = examine(sky, launched)["SkyPilot"]

    assert finding.verdict == "FAIL"
    assert "0.13.0" in finding.text
    assert "sky api stop" in finding.mend


def test_skypilot_is_needed_by_who_chose_a_cloud_or_launched_on_one(launched):
    missing = BackendError("not installed", hint="pip install 'gptctl[cloud]'")

    assert verdicts(examine(missing, launched)) == {"SkyPilot": "warning"}
    assert verdicts(examine(missing, launched, wanted=("lambda",))) == {"SkyPilot": "FAIL"}
    note_run(launched, launcher=DEAD)
    found = examine(missing, launched)
    assert verdicts(found) == {"SkyPilot": "FAIL", RUN: "FAIL"}
    assert found["SkyPilot"].mend == "pip install 'gptctl[cloud]'"


@pytest.mark.parametrize(
    ("accesses", "wanted", "expected"),
    [
        ([NOT_SET_UP], (), {"clouds": "warning"}),
        ([NOT_SET_UP], ("aws",), {"aws": "FAIL"}),
        ([REFUSED, NOT_SET_UP], (), {"lambda": "FAIL"}),
        ([REFUSED, replace(ACCEPTED, cloud="gcp")], (), {"lambda": "warning", "gcp": "ok"}),
        ([REFUSED, replace(ACCEPTED, cloud="gcp")], ("lambda",), {"lambda": "FAIL", "gcp": "ok"}),
        ([ACCEPTED, NOT_SET_UP], ("lambda",), {"lambda": "ok"}),
    ],
)
def test_cloud_fails_when_it_was_chosen_or_nothing_else_works(accesses, wanted, expected):
    found = {finding.subject: finding for finding in judge_access(accesses, wanted)}

    assert verdicts(found) == expected
    assert all(f.mend for f in found.values() if f.verdict != "ok")
    if found.get("lambda") and found["lambda"].verdict == "FAIL":
        assert "credentials were refused: bad key" in found["lambda"].text


def test_prices_are_old_after_a_week():
    dates = {"lambda": TODAY - timedelta(days=7), "aws": TODAY - timedelta(days=8)}

    found = list(judge_prices(dates, ["lambda", "aws", "gcp"], today=TODAY))

    assert [(f.subject, f.verdict) for f in found] == [
        ("prices of lambda", "ok"),
        ("prices of aws", "warning"),
    ]
    assert "8 days ago" in found[1].text
    assert "--infra aws" in found[1].mend


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (view("running", 1), None),
        (view("running", 90), "FAIL"),
        (view("running", 600, state="succeeded"), "FAIL"),
    ],
)
def test_machine_that_bills_for_nothing_is_found(sky, launched, seen, verdict):
    note_run(launched)
    sky.names = [RUN, "not-ours"]

    found = examine(sky, launched, look=lambda run_id, store: seen)

    assert verdicts(found).get(RUN) == verdict
    assert "not-ours" not in found
    assert ("machines" in found) == (verdict is None)
    if verdict:
        assert found[RUN].mend == f"`gptctl stop {RUN} --store 's3://b/p'`"


def test_machine_whose_run_cannot_be_read_is_told_of(sky, launched):
    note_run(launched)
    sky.names = [RUN]

    def fail(run_id, store):
        raise NotFoundError("no such run")

    assert verdicts(examine(sky, launched, look=fail))[RUN] == "warning"


def test_fault_of_one_check_hides_no_other(sky, launched):
    def fail():
        raise BackendError("no answer", hint="`gptctl doctor` looks for what is wrong")

    sky.try_credentials = sky.machines = fail
    note_run(launched, launcher=DEAD)

    found = examine(sky, launched)

    assert verdicts(found) == {
        "SkyPilot": "ok",
        "clouds": "FAIL",
        "machines": "FAIL",
        RUN: "FAIL",
    }
    assert found["clouds"].mend is None


def test_old_python_fails(tmp_path):
    found = {
        f.subject: f
        for f in examine_machine(python=(3, 10, 2), gptctl="1", node_root=tmp_path / "not" / "yet")
    }

    assert (found["Python"].verdict, found["gptctl"].verdict) == ("FAIL", "ok")
    assert str(tmp_path) in found["disk"].text


def test_store_is_proven_and_left_as_it_was(tmp_path):
    store = open_store(str(tmp_path / "store"))

    assert examine_store(store).verdict == "ok"
    assert store.list() == []


def test_store_in_a_bucket_is_proven_and_left_as_it_was(aws):
    store = open_store(aws.url("runs", "doctor"))

    prove_writable(store)

    assert store.list() == []


def test_store_that_takes_nothing_fails(tmp_path):
    (tmp_path / "file").write_text("in the way")

    finding = examine_store(open_store(str(tmp_path / "file" / "store")))

    assert finding.verdict == "FAIL"
    assert finding.mend


def test_store_that_gives_back_something_else_fails(tmp_path):
    store = open_store(str(tmp_path))
    store.read = lambda key: b"stale"

    with pytest.raises(ObjectDamagedError):
        prove_writable(store)
    assert store.list() == []


@pytest.fixture
def home(tmp_path, monkeypatch, sky):
    for name in ("GPTCTL_CLOUD", "GPTCTL_NODE_ROOT", "GPTCTL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GPTCTL_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("gptctl.cli.session.open_backend", lambda *_, **__: sky)
    return tmp_path


def test_doctor_prints_a_line_for_each_check_and_what_mends_it(home, sky, capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ok       lambda: enabled, its credentials were accepted" in lines
    assert f"ok       store: {home / 'store'} can be written and read" in lines

    sky.access = [REFUSED]
    assert main(["doctor"]) == 8
    out = capsys.readouterr().out
    assert "FAIL     lambda: its credentials were refused: bad key\n         mend it: " in out


def test_doctor_as_json_is_one_document(home, sky, capsys):
    sky.access = [REFUSED]

    assert main(["doctor", "--json"]) == 8
    found = json.loads(capsys.readouterr().out)
    assert {"subject": "lambda", "verdict": "FAIL"}.items() <= found[-2].items()
    assert {entry["verdict"] for entry in found} <= {"ok", "warning", "FAIL"}


def test_doctor_finds_a_run_of_another_store_that_bills_on(home, sky, capsys):
    run = RentedRun(home / "other", state="succeeded")
    run.note(Launched(home / "data" / "gptctl" / "launched"))
    sky.names, sky.now = [RUN], "running"

    assert main(["doctor"]) == 8
    assert f"`gptctl stop {RUN} --store '{home / 'other'}'`" in capsys.readouterr().out


def test_cloud_launch_is_refused_before_anything_is_recorded_where_the_store_is_not(
    home, sky, monkeypatch
):
    from gptctl.cli import launch as command

    store = open_store(str(home / "store"))

    class Plan:
        offer = view().offer
        offers = (offer,)
        recipe_name = "small"

    def fail(store):
        raise StorageError("read-only")

    class Session:
        pass

    Session.store = store
    monkeypatch.setattr(command, "prove_writable", fail)
    with pytest.raises(StorageError, match="read-only"):
        command.launch_plan(Plan(), Session(), sky, command.Patience(), None, "Launch?", yes=True)
    assert store.list() == []
    assert sky.jobs == []
