"""Runs on tokens that are ready made: a file of the user's own, and shards on the Hub."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import running_hub
from tests.runs.user import User, leave_nothing_running
from tests.training.test_token_files import write_llmc, write_nanogpt
from training.layout import DATASET_JSON

pytestmark = pytest.mark.slow

GPT2 = ("--set", "data.tokenizer=gpt2", "--set", "model.vocab_size=50257", "--set", "train.steps=4")


@pytest.fixture
def user(tmp_path: Path, gpt2_vocabulary: Path) -> Iterator[User]:
    (tmp_path / "user").mkdir()
    somebody = User(tmp_path / "user")
    yield somebody
    leave_nothing_running(somebody)


def make_ids(count: int) -> list[int]:
    return random.Random(count).choices(range(50257), k=count)


def launch(user: User, *options: str) -> list[str]:
    return ["launch", str(user.recipe), "--yes", *user.to_store, *GPT2, *options]


def shards(user: User) -> list[tuple[str, int]]:
    (path,) = user.node.glob(f"datasets/*/{DATASET_JSON}")
    return [(shard["split"], shard["tokens"]) for shard in json.loads(path.read_bytes())["shards"]]


def test_a_token_file_is_trained_on_as_it_is(user: User, tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    write_nanogpt(path, make_ids(30_000))
    run = user.json(*launch(user, "--data", str(path)))
    assert (run["state"], run["step"]) == ("succeeded", 4)
    assert shards(user) == [("val", 20_000), ("train", 10_000)]


def test_a_token_file_that_another_vocabulary_made_fails_the_run_with_the_place(
    user: User, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.bin"
    write_nanogpt(path, [*make_ids(30_000), 50257])
    run = user.json(*launch(user, "--data", str(path)), exit_code=4)
    assert (run["state"], run["reason"]) == ("failed", "data")
    assert "token 30,000 is 50257" in run["message"]


def test_shards_on_the_hub_are_pinned_and_trained_on(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_hub(tmp_path / "hub", monkeypatch) as hub:
        user.env["HF_ENDPOINT"] = hub.url
        files = {}
        for name, count in (("x_val_000000", 5_000), ("x_train_000001", 20_000)):
            write_llmc(tmp_path / "made.bin", make_ids(count))
            files[f"{name}.bin"] = (tmp_path / "made.bin").read_bytes()
        commit = hub.commit("owner/shards", files)
        run = user.json(*launch(user, "--set", "data.source=hub-shards:owner/shards"))
    assert (run["state"], run["step"]) == ("succeeded", 4)
    assert shards(user) == [("val", 5_000), ("train", 20_000)]
    record = json.loads((user.folder(run["run_id"]) / "run.json").read_bytes())
    assert record["recipe"]["data"]["revision"] == commit
