"""Runs that bring a data set into a bucket and train nothing, on machines as a cloud has them."""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gptctl.backends import Job, Tell
from gptctl.cli import main
from gptctl.datasets import list_rows
from gptctl.runs import change_state, read_record, read_status, write_status
from tests.gptctl.run_folder import FakeBackend
from tests.hub_server import Fault, HubServer, running_hub
from tests.parquet_files import write_parquet
from tests.runs.node import OFFER, Node
from tests.runs.user import User
from tests.s3_server import S3Server
from training.dataset_store import list_datasets
from training.layout import CHECKPOINTS, LOGS, METRICS, Dataset, Offer, RunRecord, Status, run_key
from training.storage import Storage, open_store

pytestmark = pytest.mark.slow

REPO = "owner/texts"
FILES = 12
TOKENS = 1_000_000
"""That the recipe trains on: more than there are, so all of the source is prepared."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """It has `REPO`, of some 45,000 tokens a file; batches of six files are under way at once."""
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        chosen = random.Random(11)
        files = {}
        for number in range(FILES):
            texts = [" ".join(chosen.choices(["the", "cat", "sat"], k=100)) for _ in range(120)]
            path = write_parquet(tmp_path / f"{number}.parquet", texts)
            files[f"data/train-{number:05d}-of-{FILES:05d}.parquet"] = path
        server.commit(REPO, files)
        yield server


@pytest.fixture
def store(aws: S3Server, tmp_path: Path) -> Storage:
    return open_store(aws.url("data-jobs", tmp_path.name))


class Machine(Node):
    """One that is rented to prepare `REPO`; what it works on is empty, as on a new one."""

    def __init__(self, home: Path, hub: HubServer, aws: S3Server, store: Storage) -> None:
        home.mkdir()
        super().__init__(home)
        self.bucket = store
        record = msgspec.json.decode(self.env["RUN_RECORD"], type=RunRecord)
        recipe = record.recipe
        repository = hub.repository(REPO)
        assert repository is not None
        commit = repository.commits[-1]
        data = replace(recipe.data, source=f"hub:{REPO}", path="", revision=commit)
        train = replace(recipe.train, steps=TOKENS // recipe.train.batch_tokens)
        recipe = replace(recipe, data=data, train=train)
        record = replace(record, job="prepare", recipe=recipe, store=store.url)
        self.env |= {
            "RUN_RECORD": msgspec.json.encode(record).decode(),
            "RUN_STORE": store.url,
            "RUN_TEARDOWN_S": "2",
            "HF_ENDPOINT": hub.url,
            **aws.env,
        }

    @property
    def status(self) -> Status:
        return read_status(self.bucket, read_record(self.bucket, self.run_id))


class OneMachine(FakeBackend):
    """A cloud of one machine, which is this one: it lives a run while it is submitted."""

    def __init__(self, root: Path) -> None:
        super().__init__(offers=[OFFER])
        self.root = root

    def submit(self, job: Job, *, tell: Tell) -> Offer:
        assert job.text is not None
        (self.root / "text").mkdir(parents=True)
        shutil.copy(job.text, self.root / job.record.recipe.data.path)
        subprocess.run(
            [
                *(sys.executable, "-m", "training.supervise", job.record.run_id),
                *("--store", job.store, "--root", str(self.root)),
            ],
            cwd=self.root,
            check=True,
        )
        return OFFER


def stored(store: Storage) -> Dataset:
    (found,) = list_datasets(store)
    assert found.dataset is not None
    return found.dataset


def test_a_machine_that_prepares_leaves_its_shards_in_the_store_and_goes_down(
    hub: HubServer, aws: S3Server, store: Storage, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "one", hub, aws, store)
    try:
        said = machine.live()
        status = machine.status
    finally:
        machine.clean_up()
    assert (status.state, status.reason, status.step) == ("succeeded", "completed", 0), said

    (row,) = list_rows(store)
    dataset = stored(store)
    assert row.complete
    assert row.shards == len(dataset.shards) > 20
    assert row.size_bytes > 2 * row.tokens
    assert f"{row.key} is in the store: {row.tokens:,} tokens" in str(status.message)
    assert status.shards == row.shards

    phases = {line.phase for line in status.bill}
    assert {"installing", "preparing", "finishing", "going_down"} <= phases
    assert phases.isdisjoint({"training", "checking_gpus", "evaluation"})
    assert machine.asked[-1] == 0
    keys = [found.key for found in store.list(run_key(machine.run_id))]
    assert run_key(machine.run_id, LOGS, "prepare.log") in keys
    assert [key for key in keys if METRICS in key or CHECKPOINTS in key or "train.log" in key] == []


def test_a_budget_that_ends_it_keeps_the_finished_shards_and_another_machine_makes_the_rest(
    hub: HubServer, aws: S3Server, store: Storage, tmp_path: Path
) -> None:
    last = f"*{FILES - 1:05d}-of-{FILES:05d}.parquet"
    hub.inject(Fault(path=last, times=100, bytes_per_s=10))
    first = Machine(tmp_path / "one", hub, aws, store)
    first.env["RUN_BUDGET_USD"] = "0.45"  # 45 s
    try:
        said = first.live()
        status = first.status
        assert (status.state, status.reason) == ("stopped", "budget"), said
        assert status.spent_usd <= status.budget_usd
        assert first.asked[-1] == 0
    finally:
        first.clean_up()
    kept = stored(store)
    assert len(kept.shards) > 3
    assert not kept.complete

    hub.clear_faults()
    asked = len(hub.requests)
    write_status(store, change_state(status, "pending", now=datetime.now(UTC)))
    second = Machine(tmp_path / "two", hub, aws, store)
    try:
        said = second.live()
        status = second.status
    finally:
        second.clean_up()
    assert (status.state, status.life) == ("succeeded", 2), said
    assert {line.life for line in status.bill} == {1, 2}
    whole = stored(store)
    assert whole.shards[: len(kept.shards)] == kept.shards
    assert whole.complete
    assert second.count_events("shard_fetched") == len(kept.shards)
    assert second.count_events("shard_written") == len(whole.shards)  # each once, by one of them
    files = {r.path for r in hub.requests[asked:] if "/lfs/" in r.path}
    assert not [path for path in files if f"{0:05d}-of" in path]


def test_what_is_typed_ends_with_the_data_in_the_store_and_what_it_cost(
    store: Storage,
    user: User,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, user.env[name])
    backend = OneMachine(tmp_path / "machine")
    monkeypatch.setattr("gptctl.cli.session.open_backend", lambda clouds, **_: backend)
    prepare = ("data", "prepare", str(user.recipe), "--data", str(user.text), "--name", "shards")

    def call(*words: str) -> tuple[int, str]:
        code = main([*words, "--store", store.url])
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return code, " ".join((said.out + said.err).split())

    code, told = call(*prepare, "--cloud", "lambda", "--budget", "30", "--yes")
    assert code == 0, told
    (row,) = list_rows(store)
    assert (row.shards, row.tokens, row.complete) == (2, 40_000, False)
    for words in (
        "at most 2 shards, 40,000 tokens, by one process",
        "Launched shards on cpu_4x in us-east-1 of lambda, $36.00 an hour.",
        "shards: succeeded, preparing data: 2 shards",
        f"{row.key} is in the store: 40,000 tokens in 2 shards",
        "gptctl data list",
    ):
        assert words in told
    assert "step" not in told

    _, shown = call("status", "shards")
    assert "preparing data: 2 shards" in shown
    _, shown = call("cost", "show", "shards")
    assert "preparing" in shown
    assert call("launch", "--resume", "shards", "--yes")[0] == 3
    for words in (("sample", "shards"), ("pull-checkpoint", "shards", "--to", "x")):
        code, told = call(*words)
        assert (code, told.count("prepared data and trained nothing")) == (6, 1)
