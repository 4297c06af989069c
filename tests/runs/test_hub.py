"""Runs on a data set of the Hub: the real clients, against a server on this machine."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import Fault, HubServer, running_hub
from tests.parquet_files import write_parquet
from tests.runs.user import User, leave_nothing_running
from tests.s3_server import S3Server
from training.layout import DATASET_JSON
from training.storage import open_store

pytestmark = pytest.mark.slow

REPO = "owner/texts"
FILES = 6
LARGE_STEPS = ("--set", "train.batch_tokens=1024", "--set", "train.micro_batch_size=64")
SOURCE = ("--set", f"data.source=hub:{REPO}", "--set", "train.steps=250", *LARGE_STEPS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """It has `REPO`, of some 20,000 tokens a file, at a commit of its branch `main`."""
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        chosen = random.Random(11)
        names = ["the", "cat", "sat", "on", "a", "mat", *map(str, range(200))]
        files: dict[str, Any] = {}
        for number in range(FILES):
            texts = [" ".join(chosen.choices(names, k=100)) for _ in range(150)]
            path = write_parquet(tmp_path / f"{number}.parquet", texts)
            files[f"data/train-{number:05d}-of-{FILES:05d}.parquet"] = path
        server.commit(REPO, files)
        yield server


@pytest.fixture
def user(hub: HubServer, tmp_path: Path) -> Iterator[User]:
    (tmp_path / "user").mkdir()
    somebody = User(tmp_path / "user", HF_ENDPOINT=hub.url)
    yield somebody
    leave_nothing_running(somebody)


def launch(user: User, *options: str) -> list[str]:
    return ["launch", str(user.recipe), "--yes", *user.to_store, *SOURCE, *options]


def read_dataset(user: User) -> Any:
    (path,) = user.node.glob(f"datasets/*/{DATASET_JSON}")
    return json.loads(path.read_bytes())


def hashes(user: User) -> dict[str, str]:
    """Of every shard of what 250 steps need, by its name."""
    dataset = read_dataset(user)
    assert sum(shard["tokens"] for shard in dataset["shards"]) == 280_000
    assert not [*user.node.glob("datasets/*/fetched")]
    return {shard["name"]: shard["sha256"] for shard in dataset["shards"]}


def test_training_eats_shards_as_they_are_made_and_a_kill_in_the_middle_changes_none(
    hub: HubServer, user: User, tmp_path: Path
) -> None:
    hub.inject(Fault(path="*/train-*", bytes_per_s=4_000, times=1000))
    launched = user.json(*launch(user, "--detach"))
    run_id = launched["run_id"]
    deadline = time.monotonic() + 90
    while (view := user.status(run_id))["shards"] < 2 or view["step"] < 10:
        assert time.monotonic() < deadline, view
        time.sleep(0.2)
    assert 20_000 <= view["lead"]["ready_tokens"] < view["lead"]["wanted_tokens"] == 260_000
    user.kill(user.processes(run_id, "training.supervise"))
    while user.processes(run_id):
        assert time.monotonic() < deadline, "something outlived its supervisor"
        time.sleep(0.1)
    assert not read_dataset(user)["complete"]
    hub.clear_faults()
    hub.commit(REPO, {"data/train-00000-of-00006.parquet": None})  # the run keeps to its commit
    resumed = user.json("launch", "--resume", run_id, "--yes", *user.to_store)
    assert (resumed["state"], resumed["step"]) == ("succeeded", 250)
    assert resumed["lead"] is None
    assert user.events(run_id, "waiting_for_data")  # it began before the data was whole

    (tmp_path / "clean").mkdir()
    clean = User(tmp_path / "clean", HF_ENDPOINT=hub.url)
    commit = json.loads((user.folder(run_id) / "run.json").read_bytes())["recipe"]["data"]
    clean.run(*launch(clean, "--set", f"data.revision={commit['revision']}"))
    assert hashes(clean) == hashes(user)


def test_the_next_run_fetches_what_an_earlier_one_sent_and_makes_what_is_damaged(
    hub: HubServer, aws: S3Server, tmp_path: Path
) -> None:
    url = aws.url("runs-hub", tmp_path.name)

    def train(name: str) -> tuple[User, str]:
        (tmp_path / name).mkdir()
        somebody = User(tmp_path / name, store=url, HF_ENDPOINT=hub.url)
        hub.requests.clear()
        try:
            ended = somebody.json(*launch(somebody, "--set", "train.steps=37"))
            assert ended["state"] == "succeeded"
            return somebody, ended["run_id"]
        finally:
            leave_nothing_running(somebody)

    first, run_id = train("first")
    made = [event["name"] for event in first.events(run_id, "shard_written")]
    assert len(made) == 3  # validation, and 37,888 tokens: no more than it needs
    shards = read_dataset(first)["shards"]
    (row,) = first.json("data", "list", *first.to_store)
    assert (row["shards"], row["complete"]) == (3, False)

    second, run_id = train("second")
    assert [event["name"] for event in second.events(run_id, "shard_fetched")] == made
    assert second.events(run_id, "shard_written") == []
    assert hub.requests_for("*/train-*") == []
    assert read_dataset(second)["shards"] == shards

    store, damaged = open_store(url), f"datasets/{row['key']}/{made[1]}"
    store.write(damaged, store.read(damaged)[:-1] + b"\xff")
    third, run_id = train("third")
    assert [event["name"] for event in third.events(run_id, "shard_fetched")] == made[:1]
    assert [event["name"] for event in third.events(run_id, "shard_written")] == made[1:]
    assert read_dataset(third)["shards"] == shards
    assert any(made[1] in event["text"] for event in third.events(run_id, "note"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.source=hub:owner/text", "no data set 'owner/text'"),
        ("data.revision=v9", "no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_told_before_anything_starts(
    user: User, change: str, told: str
) -> None:
    assert told in user.run(*launch(user, "--set", change), exit_code=4).stderr
    assert user.processes() == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.split=test", "train"),
        ("data.column=words", "text"),
        ("data.config=big", "config 'big'"),
    ],
)
def test_a_part_that_the_data_set_lacks_fails_the_run_with_what_there_is(
    user: User, change: str, told: str
) -> None:
    view = user.json(*launch(user, "--set", change), exit_code=4)
    assert (view["state"], view["reason"]) == ("failed", "data")
    assert told in view["message"] + view["hint"]
