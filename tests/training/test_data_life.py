"""A life that only prepares data: what must be in the store before it has succeeded."""

import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.tiny import make_recipe, make_record, make_run
from training import reserve
from training.cluster import make_cluster
from training.data_life import DataLife
from training.dataset_store import list_datasets
from training.errors import StorageUnavailableError
from training.layout import DATASETS, RunRecord
from training.machine import Machine
from training.meter import Limits
from training.processes import StopFlag
from training.storage import StoredObject
from training.storage_folder import FolderStorage

ONE_NODE = make_cluster(node_rank=0, node_ips="", port=0, node_count=1, ranks=1)


class Forgetful(FolderStorage):
    """Loses a shard that it took, and takes no other."""

    def list(self, prefix: str) -> list[StoredObject]:
        return [found for found in super().list(prefix) if "_train_000002" not in found.key]

    def upload(self, path: Path, key: str) -> None:
        raise StorageUnavailableError("the store is full")


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    before = signal.getsignal(signal.SIGTERM)
    yield StopFlag()
    signal.signal(signal.SIGTERM, before)


def record_of(text: Path, *, whole: bool = False) -> RunRecord:
    """Four steps of 64 tokens: validation and one shard of the ten that the text makes."""
    data = {"source": "text", "path": str(text)}
    recipe = make_recipe(data=data, train={"steps": 4})
    return replace(make_record(recipe), job="prepare", whole=whole)


def make_life(record: RunRecord, root: Path, store: FolderStorage, stop: StopFlag) -> DataLife:
    make_run(root, record)
    limits = Limits(budget_usd=None, max_hours=None, price_per_hour=Decimal(1))
    machine = Machine(cluster=ONE_NODE, since=datetime.now(UTC))
    return DataLife(record, root, store, limits, None, stop, machine)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("abcde" * 999)
    return path


@pytest.mark.parametrize(("whole", "shards"), [(False, 2), (True, 10)])
def test_what_the_recipe_trains_on_is_prepared_or_all_of_the_source(
    tmp_path: Path, text: Path, stop: StopFlag, whole: bool, shards: int
) -> None:
    store = FolderStorage(str(tmp_path / "store"), tmp_path / "store")
    outcome = make_life(record_of(text, whole=whole), tmp_path / "node", store, stop).run()

    assert (outcome.state, outcome.reason) == ("succeeded", "completed")
    (found,) = list_datasets(store)
    assert found.dataset is not None
    assert (len(found.dataset.shards), found.dataset.complete) == (shards, whole)
    assert f"{found.key} is in the store: " in str(outcome.message)


def test_a_store_that_has_not_taken_everything_fails_it(
    tmp_path: Path, text: Path, stop: StopFlag, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "FINISH_TIMEOUT_S", 1.0)
    store = Forgetful(str(tmp_path / "store"), tmp_path / "store")
    outcome = make_life(record_of(text, whole=True), tmp_path / "node", store, stop).run()

    assert (outcome.state, outcome.reason) == ("failed", "store")
    assert "the store is full" in str(outcome.message)
    assert list((tmp_path / "node" / DATASETS).glob("*/*_train_000002.bin"))  # as it may be resumed


def test_data_that_cannot_be_prepared_fail_it_with_what_is_wrong(
    tmp_path: Path, text: Path, stop: StopFlag
) -> None:
    store = FolderStorage(str(tmp_path / "store"), tmp_path / "store")
    text.write_bytes(b"\xff\xfe\xfd" * 999)
    outcome = make_life(record_of(text), tmp_path / "node", store, stop).run()

    assert (outcome.state, outcome.reason) == ("failed", "data")
    assert "UTF-8" in str(outcome.message)
    text.unlink()
    outcome = make_life(record_of(text), tmp_path / "other", store, stop).run()
    assert (outcome.state, outcome.reason) == ("failed", "data")
    assert list_datasets(store) == []
