"""Machines that may bill for nothing, told from those that are only slow, and all ended."""

from datetime import timedelta
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.backends.launched import Launched, Note, this_process
from gptctl.errors import BackendError
from gptctl.leaks import find_leaks, stop_leaked
from gptctl.runs import read_status, view_run
from tests.gptctl.run_folder import NOW, OFFER, FakeBackend, RunFolder, make_record, make_status
from training.errors import StorageUnavailableError
from training.layout import encode, run_key

RUN = "small-3f9a"
STORE = "s3://ada/runs"
LAMBDA = replace(OFFER, cloud="lambda", price_per_hour=Decimal("22.32"))
DEAD = (2**22 + 1, 0.0)
"""A process that is no more: beyond the largest id there can be."""


def view(run_id=RUN, *, backend="running", age_s=1.0, launching="none", record=None, **status):
    return view_run(
        record or make_record(run_id, offer=LAMBDA),
        make_status(run_id, price_per_hour=LAMBDA.price_per_hour, **status),
        backend,
        store=STORE,
        now=NOW + timedelta(seconds=age_s),
        launching=launching,
    )


def note(run_id=RUN, **fields):
    values = {"store": STORE, "clouds": ("lambda",), "managed": False}
    return Note(run_id=run_id, **(values | fields))


def find(views, notes=()):
    return [(leak.run_id, leak.kind) for leak in find_leaks(views, notes, store=STORE)]


def test_nothing_leaks_where_all_is_well():
    healthy = [
        view("trains-1"),
        view("has-ended-2", backend="gone", age_s=4000, state="succeeded"),
        view("goes-down-3", age_s=100, state="stopped"),
        view("is-made-4", age_s=900, state="provisioning"),
        view("died-5", backend="gone", age_s=900),
    ]

    assert find(healthy, [note("trains-1"), note("is-made-4")]) == []


def test_machine_that_bills_without_a_heartbeat_is_one():
    (leak,) = find_leaks([view(age_s=90)], [note()], store=STORE)

    assert (leak.kind, leak.is_billing, leak.price_per_hour) == ("silent", True, Decimal("22.32"))
    assert leak.why == "its machine bills, and gave no sign of life for 90 s"


def test_machine_that_outlives_its_run_is_one():
    (leak,) = find_leaks([view(age_s=600, state="succeeded")], [note()], store=STORE)

    assert (leak.kind, leak.is_billing) == ("over", True)
    assert "ended 10 minutes ago" in leak.why


@pytest.mark.parametrize("backend", ["gone", "running", "unknown"])
def test_launch_that_was_cut_short_is_one_whatever_skypilot_says(backend):
    seen = view(backend=backend, age_s=100, launching="cut_short", state="provisioning")

    assert find([seen], [note(launcher=DEAD)]) == [(RUN, "cut_short")]


def test_launcher_that_died_after_training_began_left_no_leak():
    assert find([view(launching="cut_short")], [note(launcher=DEAD)]) == []


def test_launch_that_goes_on_is_none():
    seen = view(backend="gone", age_s=4000, launching="under_way", state="provisioning")

    assert find([seen], [note(launcher=this_process())]) == []


def test_launch_cut_short_into_another_store_is_one_too():
    leaks = find_leaks([], [note(store="elsewhere", launcher=DEAD)], store=STORE)

    assert [(leak.kind, leak.store, leak.cloud) for leak in leaks] == [
        ("cut_short", "elsewhere", "lambda")
    ]


def test_launch_note_whose_run_the_store_does_not_have_is_one():
    notes = [
        note("lost-1"),
        note("elsewhere-2", store="elsewhere"),
        note("d-3", is_given_back=True),
    ]

    assert find([], notes) == [("lost-1", "unrecorded")]


def test_record_that_was_never_ended_is_one_after_half_an_hour():
    soon, late = (view(backend="unknown", age_s=age_s) for age_s in (600, 2000))

    assert find([soon]) == []
    assert find([late]) == [(RUN, "unended")]


def test_run_that_skypilot_finds_another_machine_for_is_none():
    record = make_record(offer=LAMBDA, recover=True)

    assert find([view(record=record, age_s=4000)], [note(managed=True)]) == []


def test_this_machine_bills_nobody():
    assert find([view(record=make_record(), age_s=4000)]) == []


def test_machine_of_another_stores_run_of_that_name_is_not_ours_to_end():
    seen = view(age_s=600, state="succeeded")

    assert find([seen], [note(store="elsewhere")]) == []


@pytest.fixture
def launched(tmp_path):
    return Launched(tmp_path / "launched")


class RentedRun(RunFolder):
    def __init__(self, folder, run_id, **status):
        super().__init__(folder, run_id, **status)
        self.record = make_record(run_id, offer=LAMBDA, store=str(folder))
        self.store.write(run_key(run_id, "run.json"), encode(self.record))

    def leak(self, launched, **fields):
        """A view of it that leaks, the note of its launch written."""
        launched.write(note(self.run_id, store=self.store.url, **fields))
        seen = view_run(
            self.record,
            read_status(self.store, self.record),
            "running",
            store=self.store.url,
            now=NOW + timedelta(seconds=90),
        )
        return find_leaks([seen], launched.read_all(), store=self.store.url)[0]


def stop(leaks, launched, store, backend, told=None):
    return stop_leaked(
        leaks,
        open_store=lambda url: store,
        backend_of=lambda cloud: backend,
        launched=launched,
        clock=lambda: NOW + timedelta(seconds=90),
        tell=(told if told is not None else []).append,
    )


def test_all_are_ended_and_said_to_have_been(tmp_path, launched):
    runs = [RentedRun(tmp_path / "store", run_id) for run_id in ("a-1", "b-2")]
    leaks = [run.leak(launched) for run in runs]

    class Both(FakeBackend):
        def state(self, run_id):
            return "gone" if run_id in self.stopped else "running"

    backend = Both()
    assert stop(leaks, launched, runs[0].store, backend) == ["a-1", "b-2"]

    assert backend.stopped == ["a-1", "b-2"]
    assert {read_status(run.store, run.record).state for run in runs} == {"stopped"}
    assert all(left.is_given_back for left in launched.read_all())


def test_one_that_cannot_be_ended_does_not_keep_the_others_from_it(tmp_path, launched):
    runs = [RentedRun(tmp_path / "store", run_id) for run_id in ("a-1", "b-2")]
    leaks = [run.leak(launched) for run in runs]

    class Stubborn(FakeBackend):
        def stop(self, run_id, *, tell):
            super().stop(run_id, tell=tell)
            if run_id == "a-1":
                raise BackendError("the API says 500", hint="ask again")

    backend = Stubborn("running")
    with pytest.raises(BackendError, match=r"may bill: a-1 \(the API says 500\)$") as raised:
        stop(leaks, launched, runs[0].store, backend)

    assert raised.value.hint == "ask again"
    assert backend.stopped == ["a-1", "b-2"]
    assert [left.is_given_back for left in launched.read_all()] == [False, True]


def test_machine_whose_run_is_not_recorded_is_ended_all_the_same(tmp_path, launched):
    store = RunFolder(tmp_path / "store", "another-1").store
    launched.write(note(store=store.url))
    leaks = find_leaks([view("another-1")], launched.read_all(), store=store.url)
    backend = FakeBackend("running")

    assert stop(leaks, launched, store, backend) == [RUN]
    assert backend.stopped == [RUN]
    assert launched.read(RUN).is_given_back


def test_machine_is_ended_also_where_its_store_is_out_of_reach(tmp_path, launched):
    leaks = [RentedRun(tmp_path / "store", RUN).leak(launched)]
    backend, told = FakeBackend("running"), []

    class Away:
        url = leaks[0].store

        def read(self, key):
            raise StorageUnavailableError("no route to it")

    assert stop(leaks, launched, Away(), backend, told) == [RUN]
    assert backend.stopped == [RUN]
    assert told[-1] == f"Nothing of {RUN} bills; its record stays as it is: no route to it"


def test_run_that_is_launched_anew_meanwhile_is_let_be(tmp_path, launched):
    run = RentedRun(tmp_path / "store", RUN)
    leaks = [run.leak(launched)]
    launched.write(replace(launched.read(RUN), launcher=this_process()))
    backend, told = FakeBackend("running"), []

    assert stop(leaks, launched, run.store, backend, told) == []
    assert backend.stopped == []
    assert told == [f"{RUN} is being launched anew: it is let be."]
