"""In which order SkyPilot is asked, with its answers made up: the real one is in tests/e2e."""

from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.backends import Job, cloud
from gptctl.backends.cloud import CloudBackend, recognise
from gptctl.backends.launched import Launched
from gptctl.backends.sky import Machine, ManagedJob
from gptctl.errors import BackendError, CapacityError
from tests.gptctl.run_folder import OFFER, make_record

LAMBDA = replace(
    OFFER,
    cloud="lambda",
    region="us-east-1",
    instance_type="cpu_4x_general",
    price_source="a catalogue",
)
TAKEN = Machine(
    cloud="lambda",
    region="us-west-1",
    instance_type="cpu_4x_general",
    gpu=None,
    gpu_count=0,
    price_per_hour=0.25,
)


class FakeSkyPilot:
    """Remembers what was asked. `launches` and `downs` are errors to raise, None for success."""

    def __init__(self):
        self.asked = []
        self.clusters = set()
        self.jobs = []
        self.launches = []
        self.downs = []

    def has_cluster(self, name, *, refresh=False):
        return name in self.clusters

    def managed_jobs(self, name):
        return list(self.jobs)

    def managed_cluster(self, name, job):
        return f"{name}-{job.job_id}"

    def cancel_requests(self, name):
        self.asked.append("cancel requests")

    def cancel_managed(self, jobs):
        self.asked.append(("cancel", [job.job_id for job in jobs]))
        self.jobs = [replace(job, status="CANCELLED", is_released=True) for job in self.jobs]

    def launch(self, config, name, *, timeout_s, tell):
        self.asked.append("launch")
        self.clusters.add(name)
        if self.launches and (error := self.launches.pop(0)) is not None:
            raise error
        return TAKEN

    def take_down(self, name, *, timeout_s, tell):
        self.asked.append(("down", name))
        if self.downs and (error := self.downs.pop(0)) is not None:
            raise error
        self.clusters.discard(name)


@pytest.fixture
def skypilot(monkeypatch):
    fake = FakeSkyPilot()
    monkeypatch.setattr(cloud, "SkyPilot", lambda: fake)
    monkeypatch.setattr(cloud, "_compose", lambda job: {})
    monkeypatch.setattr(cloud.time, "sleep", lambda seconds: fake.asked.append(seconds))
    return fake


@pytest.fixture
def backend(skypilot, tmp_path):
    return CloudBackend(("lambda",), state=tmp_path / "state", home=tmp_path)


def make_job(**fields):
    values = {"record": make_record(offer=LAMBDA), "store": "s3://b/p", "offers": (LAMBDA,)}
    return Job(**(values | {"budget_usd": Decimal(1)} | fields))


def ignore(line):
    pass


def test_machine_that_was_taken_is_told_at_its_own_price(backend):
    taken = backend.submit(make_job(), tell=ignore)

    assert (taken.region, taken.price_per_hour) == ("us-west-1", Decimal("0.25"))
    assert backend.state("small-3f9a") == "running"


def test_price_that_the_user_gave_stands():
    given = replace(LAMBDA, price_source="given by --price-per-hour")

    assert recognise(TAKEN, (given,)).price_per_hour == given.price_per_hour


def test_launch_that_fails_is_cancelled_and_taken_down(backend, skypilot, tmp_path):
    skypilot.launches = [BackendError("it broke")]

    with pytest.raises(BackendError, match="it broke"):
        backend.submit(make_job(), tell=ignore)
    assert skypilot.asked[-2:] == ["cancel requests", ("down", "small-3f9a")]
    assert skypilot.clusters == set()
    assert Launched(tmp_path / "state").cut_short() == []


def test_machine_that_cannot_be_ended_is_named(backend, skypilot):
    skypilot.launches = [KeyboardInterrupt()]
    skypilot.downs = [BackendError("the API says 500")] * 10

    with pytest.raises(BackendError, match=r"may still run, and bill.*the API says 500") as raised:
        backend.submit(make_job(), tell=ignore)
    assert "gptctl stop small-3f9a" in raised.value.hint


def test_a_cloud_that_refuses_at_first_is_asked_again(backend, skypilot):
    skypilot.clusters = {"small-3f9a"}
    skypilot.downs = [BackendError("500"), BackendError("500"), None]

    backend.stop("small-3f9a", tell=ignore)
    assert [a for a in skypilot.asked if a == ("down", "small-3f9a")] == [
        ("down", "small-3f9a")
    ] * 3


def test_no_capacity_is_waited_for_up_to_the_deadline(backend, skypilot, monkeypatch):
    skypilot.launches = [CapacityError("full"), CapacityError("full"), None]

    assert backend.submit(make_job(wait_s=3600), tell=ignore).cloud == "lambda"
    assert [a for a in skypilot.asked if isinstance(a, float)] == [30.0, 60.0]


def test_no_capacity_is_an_answer_where_nobody_waits(backend, skypilot):
    skypilot.launches = [CapacityError("full")]

    with pytest.raises(CapacityError):
        backend.submit(make_job(), tell=ignore)


def test_run_that_was_stopped_while_it_waited_rents_nothing(
    backend, skypilot, monkeypatch, tmp_path
):
    skypilot.launches = [CapacityError("full"), None]
    elsewhere = CloudBackend(("lambda",), state=tmp_path / "state", home=tmp_path)
    monkeypatch.setattr(
        cloud.time, "sleep", lambda seconds: elsewhere.stop("small-3f9a", tell=ignore)
    )

    with pytest.raises(BackendError, match="was stopped while it waited"):
        backend.submit(make_job(wait_s=3600), tell=ignore)
    assert skypilot.asked.count("launch") == 1
    assert skypilot.clusters == set()


def test_name_of_a_machine_that_lives_is_not_launched_again(backend, skypilot):
    skypilot.clusters = {"small-3f9a"}

    with pytest.raises(BackendError, match="already has a machine"):
        backend.submit(make_job(), tell=ignore)
    assert skypilot.clusters == {"small-3f9a"}  # it is not ours to end


def managed(job_id, status, *, is_released=False):
    return ManagedJob(job_id=job_id, status=status, why="", is_released=is_released)


@pytest.fixture
def managed_run(backend, tmp_path):
    from tests.gptctl.test_launched import make_note

    Launched(tmp_path / "state").write(make_note(managed=True))
    return backend


def test_all_managed_jobs_of_a_name_are_cancelled(managed_run, skypilot):
    skypilot.jobs = [managed(1, "RECOVERING"), managed(2, "RUNNING")]

    managed_run.stop("small-3f9a", tell=ignore)
    assert ("cancel", [1, 2]) in skypilot.asked


def test_managed_job_is_alive_until_its_machine_is_given_back(managed_run, skypilot):
    skypilot.jobs = [managed(1, "SUCCEEDED")]
    assert managed_run.state("small-3f9a") == "running"

    managed_run._seen.clear()
    skypilot.jobs = [managed(1, "SUCCEEDED", is_released=True)]
    assert managed_run.state("small-3f9a") == "gone"


def test_machine_that_a_controller_left_behind_is_taken_down(managed_run, skypilot):
    skypilot.jobs = [managed(1, "FAILED_CONTROLLER", is_released=True)]
    skypilot.clusters = {"small-3f9a-1"}
    assert managed_run.state("small-3f9a") == "running"

    managed_run.stop("small-3f9a", tell=ignore)
    assert ("down", "small-3f9a-1") in skypilot.asked
