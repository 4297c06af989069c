"""Launching on a cloud: what is recorded when, and what is left when it fails."""

from datetime import timedelta
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.backends.launched import Launched, Note, this_process
from gptctl.errors import BackendError, CapacityError, PlanRefusedError, UsageError
from gptctl.launch import Patience, launch, make_job, make_record, plan_resume, resume
from gptctl.plan import Limits, make_plan
from gptctl.runs import read_all, read_record, read_status, write_status
from tests.gptctl.run_folder import NOW, OFFER, RECIPE, FakeBackend, RunFolder
from training.layout import encode, run_key
from training.storage import open_store

RENTED = replace(OFFER, cloud="lambda", region="us-east-1", price_per_hour=Decimal(2))
ELSEWHERE = replace(RENTED, region="us-west-1")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def told():
    return []


def make(plan_offers=(RENTED, ELSEWHERE), **fields):
    return replace(make_plan("small", RECIPE, plan_offers, budget_usd=Decimal(1)), **fields)


def start(store, backend, tell=print, **fields):
    return launch(
        make(),
        store=store,
        backend=backend,
        patience=Patience(),
        versions={},
        now=NOW,
        tell=tell,
        **fields,
    )


class Watching(FakeBackend):
    """Remembers how the run was recorded at the moment it was asked to start it."""

    def __init__(self, store, **fields):
        super().__init__(**fields)
        self._store = store
        self.seen = None

    def submit(self, job, *, tell):
        self.seen = read_status(self._store, read_record(self._store, job.record.run_id))
        tell("asking lambda")
        return super().submit(job, tell=tell)


def provision_log(store, run_id):
    text = store.read(run_key(run_id, "logs", "provision.log")).decode()
    return [line.partition(" ")[2] for line in text.splitlines()]


def test_run_is_recorded_as_provisioning_before_a_cloud_is_asked(store, told):
    backend = Watching(store)
    record, taken = start(store, backend, told.append)

    assert (backend.seen.state, backend.seen.price_per_hour) == ("provisioning", 2)
    assert taken == ELSEWHERE  # what the cloud had, not what was hoped for
    assert record.offer == RENTED
    assert told == provision_log(store, record.run_id) == ["asking lambda"]


def test_job_is_made_of_the_plan_the_record_and_the_users_patience(tmp_path):
    plan = make(text=tmp_path / "book.txt", recover=True)
    record = make_record(plan, store="s3://b/p", versions={}, now=NOW, name="mine")
    job = make_job(plan, record, Patience(wait_s=60, boot_timeout_s=5))

    assert (job.store, job.offers, job.text) == ("s3://b/p", plan.offers, plan.text)
    assert (job.budget_usd, job.max_hours, job.recover) == (1, None, True)
    assert (job.wait_s, job.boot_timeout_s) == (60, 5)
    assert (record.run_id, record.recover) == ("mine", True)


def test_failure_is_in_the_status_and_the_log_and_shown_once(store, told):
    backend = Watching(store, error=CapacityError("no machine", hint="wait"))

    with pytest.raises(CapacityError):
        start(store, backend, told.append)

    ((record, status),), _ = read_all(store)
    assert (status.state, status.reason, status.message) == ("failed", "backend", "no machine")
    assert f"--resume {record.run_id}" in status.hint
    assert provision_log(store, record.run_id) == ["asking lambda", "error: no machine"]
    assert told == ["asking lambda"]  # the error is printed by whoever catches it


def test_ctrl_c_at_the_start_is_recorded(store):
    backend = Watching(store, error=KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        start(store, backend)

    ((_, status),), _ = read_all(store)
    assert (status.state, status.reason) == ("stopped", "user")


def test_status_of_a_node_that_has_spoken_is_not_overwritten(store):
    class Late(FakeBackend):
        def submit(self, job, *, tell):
            run = read_record(store, job.record.run_id)
            speaks = replace(read_status(store, run), state="training", step=7)
            store.write(run_key(run.run_id, "status.json"), encode(speaks))
            raise BackendError("lost sight of it")

    with pytest.raises(BackendError):
        start(store, Late())

    ((_, status),), _ = read_all(store)
    assert (status.state, status.step) == ("training", 7)


def test_name_that_is_taken_is_refused_before_a_cloud_is_asked(store):
    start(store, FakeBackend(), name="mine")

    with pytest.raises(UsageError, match="there is a run 'mine'") as refused:
        start(store, backend := FakeBackend(), name="mine")

    assert "gptctl launch --resume mine" in refused.value.hint
    assert not backend.jobs


@pytest.mark.parametrize("name", ["Mine", "1st", "a_b", "a/b", "../x", "x" * 41, "a b"])
def test_name_that_a_cloud_would_refuse_is_refused_here(store, name):
    with pytest.raises(UsageError, match="cannot be the name"):
        start(store, FakeBackend(), name=name)


class TestResume:
    def run(self, tmp_path, **status):
        run = RunFolder(tmp_path, state="stopped", reason="user", **status)
        run.store.write(
            run_key(run.run_id, "run.json"), encode(replace(run.record, offer=RENTED, recover=True))
        )
        return run

    def plan(self, run, backend, launched=None, **limits):
        return plan_resume(
            run.run_id,
            Limits(**limits),
            store=run.store,
            backend=backend,
            patience=Patience(wait_s=60),
            now=NOW,
            launched=launched,
        )

    def test_cloud_is_asked_again_what_it_has_today(self, tmp_path):
        backend = FakeBackend(offers=[ELSEWHERE])
        job = self.plan(self.run(tmp_path), backend)

        assert job.offers == (ELSEWHERE,)
        assert (job.recover, job.wait_s) == (True, 60)
        assert (backend.asked[0].gpus, backend.asked[0].cpu_ranks) == ((), 2)

    def test_run_is_provisioning_again_with_its_bill(self, tmp_path):
        run = self.run(tmp_path)
        backend = Watching(run.store, offers=[ELSEWHERE])
        bill = read_status(run.store, run.record).bill

        resume(self.plan(run, backend), store=run.store, backend=backend, now=NOW, tell=print)

        assert (backend.seen.state, backend.seen.bill) == ("provisioning", bill)

    def test_of_two_who_resume_at_once_one_rents(self, tmp_path):
        run = self.run(tmp_path)
        backend = FakeBackend(offers=[ELSEWHERE])
        jobs = [self.plan(run, backend), self.plan(run, backend)]
        stopped = read_status(run.store, run.record)

        def go_on(job, later_s):
            now = NOW + timedelta(seconds=later_s)
            resume(job, store=run.store, backend=backend, now=now, tell=print)

        go_on(jobs[0], 1)
        with pytest.raises(PlanRefusedError, match="by another"):  # planned long ago
            go_on(jobs[1], 3600)
        write_status(run.store, stopped)  # as if the first had not yet written its status
        with pytest.raises(PlanRefusedError, match="by another"):
            go_on(jobs[1], 2)
        assert len(backend.jobs) == 1
        go_on(jobs[1], 3600)  # the first has died there
        assert len(backend.jobs) == 2

    def test_nothing_is_planned_that_would_stop_at_once(self, tmp_path):
        run = self.run(tmp_path, budget_usd=Decimal("0.01"))

        with pytest.raises(PlanRefusedError, match="spent"):
            self.plan(run, FakeBackend(offers=[ELSEWHERE]))

    def test_machine_without_a_price_gets_a_time_limit(self, tmp_path):
        free = replace(ELSEWHERE, price_per_hour=Decimal(0))
        job = self.plan(self.run(tmp_path), FakeBackend(offers=[free]))

        assert job.max_hours == pytest.approx(24 + 63.5 / 3600)

    def test_launch_that_another_process_is_at_is_left_to_it(self, tmp_path):
        run = self.run(tmp_path)
        launched = Launched(tmp_path / "launched")
        note = Note(
            run_id=run.run_id,
            store=run.store.url,
            clouds=("lambda",),
            managed=False,
            launcher=this_process(),
        )
        launched.write(note)
        backend = FakeBackend(offers=[ELSEWHERE])

        with pytest.raises(PlanRefusedError, match="is being launched by another gptctl"):
            self.plan(run, backend, launched)

        launched.write(replace(note, launcher=None))
        assert self.plan(run, backend, launched).offers == (ELSEWHERE,)
