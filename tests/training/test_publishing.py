"""Shards that go to the store while they are written, through faults of the store."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import make_dataset, make_recipe
from training.errors import StorageUnavailableError
from training.layout import DATASET_JSON
from training.publishing import Publisher
from training.storage_folder import FolderStorage

KEY = "x-bytes-0123"


class FaultyStorage(FolderStorage):
    """Refuses uploads while `is_away`, and holds them up until `release` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder)
        self.is_away = False
        self.release = threading.Event()
        self.release.set()

    def upload(self, path: Path, key: str) -> None:
        self.release.wait(60)
        if self.is_away:
            raise StorageUnavailableError("it is away")
        super().upload(path, key)


@pytest.fixture
def store(tmp_path: Path) -> FaultyStorage:
    return FaultyStorage(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / KEY
    make_dataset(folder, make_recipe(), shards=1, complete=False)
    return folder


def stored_shards(store: FaultyStorage) -> list[str]:
    names = (found.key.rpartition("/")[2] for found in store.list("datasets/"))
    return [name for name in names if name.endswith(".bin")]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_shards_are_sent_as_they_are_written(store: FaultyStorage, folder: Path) -> None:
    publisher = Publisher(store, folder, tell=pytest.fail)
    publisher.wake()
    wait_until(lambda: len(stored_shards(store)) == 2)
    make_dataset(folder, make_recipe(), shards=3)
    assert publisher.close(timeout_s=30) == ""
    assert len(stored_shards(store)) == 4
    assert store.read(f"datasets/{KEY}/{DATASET_JSON}") == (folder / DATASET_JSON).read_bytes()


def test_a_store_that_was_away_has_everything_in_the_end_and_is_told_of_twice(
    store: FaultyStorage, folder: Path
) -> None:
    store.is_away = True
    told: list[str] = []
    publisher = Publisher(store, folder, tell=told.append, first_pause_s=0.01)
    publisher.wake()
    wait_until(lambda: bool(told))
    time.sleep(0.05)  # for more tries, of which nothing is told
    store.is_away = False
    assert publisher.close(timeout_s=30) == ""
    assert len(stored_shards(store)) == 2
    assert told == [
        "shards do not reach the store, which is tried again: it is away",
        "the store takes shards again",
    ]
    assert publisher.sent == 2


def test_a_store_that_stays_away_is_given_up_with_its_reason(
    store: FaultyStorage, folder: Path
) -> None:
    store.is_away = True
    publisher = Publisher(store, folder, tell=lambda text: None, first_pause_s=0.01)
    assert publisher.close(patience_s=0.2) == "it is away"


def test_an_upload_that_hangs_is_not_waited_for_without_end(
    store: FaultyStorage, folder: Path
) -> None:
    store.release.clear()
    publisher = Publisher(store, folder, tell=pytest.fail)
    assert "longer than" in publisher.close(timeout_s=0.2)
    store.release.set()
