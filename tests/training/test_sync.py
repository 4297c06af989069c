"""The node's copies in a real store, and a store that hangs or refuses."""

import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.tiny import make_recipe, make_record, make_run
from training import manifest
from training.errors import StorageError, StorageUnavailableError
from training.layout import (
    BillLine,
    RunPaths,
    Status,
    committed_checkpoints,
    decode,
    encode,
    write_atomic,
)
from training.storage_folder import FolderStorage
from training.sync import Sync

RECORD = make_record(make_recipe())


class Node:
    """A working folder and its copies."""

    def __init__(self, root: Path, store: FolderStorage, *, keep: int = 2) -> None:
        self.paths: RunPaths = make_run(root, RECORD)
        self.sync = Sync(store, self.paths, RECORD.run_id, keep=keep, every_s=60)

    def save(self, step: int, content: bytes = b"weights") -> None:
        folder = self.paths.checkpoint(step)
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(content)
        manifest.commit(folder, step=step, tokens=step)

    def write_status(self, life: int) -> None:
        write_atomic(self.paths.status, encode(make_status(life)))


def make_status(life: int) -> Status:
    bill = tuple(
        BillLine(life=n, phase="training", seconds=10, price_per_hour=1) for n in range(1, life + 1)
    )
    return Status(
        run_id=RECORD.run_id, state="training", phase="training", life=life, step=0, steps=6,
        tokens=0, updated_at=RECORD.created_at, bill=bill,
    )  # fmt: skip


class HangingStorage(FolderStorage):
    """Takes small records, but no upload ever ends until `release` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder)
        self.release = threading.Event()

    def upload(self, path: Path, key: str) -> None:
        self.release.wait(60)
        raise StorageUnavailableError("too late")


class RefusingStorage(FolderStorage):
    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        raise StorageError("the disk is full")


@pytest.fixture
def store(tmp_path: Path) -> FolderStorage:
    return FolderStorage(str(tmp_path / "store"), tmp_path / "store")


def stored_model(store: FolderStorage, step: int) -> bytes:
    return store.read(f"runs/{RECORD.run_id}/checkpoints/step-{step:08d}/model")


def test_everything_is_in_the_store_when_a_flush_returns(
    tmp_path: Path, store: FolderStorage
) -> None:
    node = Node(tmp_path / "node", store)
    node.save(2)
    node.write_status(1)
    (node.paths.folder / "logs").mkdir()
    node.paths.log("train").write_text("step 2")
    node.sync.flush(timeout_s=30, tick=lambda: None)
    assert node.sync.stored_checkpoints() == [2]
    assert store.read(f"runs/{RECORD.run_id}/logs/train.log") == b"step 2"


def test_a_store_that_hangs_is_given_up_in_time_while_the_clock_ticks(tmp_path: Path) -> None:
    store = HangingStorage(tmp_path / "store")
    node = Node(tmp_path / "node", store)
    node.save(2)
    ticks: list[int] = []
    with pytest.raises(StorageUnavailableError, match="it takes longer"):
        node.sync.flush(timeout_s=0.5, tick=lambda: ticks.append(1))
    assert ticks
    node.sync.close(encode(make_status(1)), timeout_s=30)  # the last word does not wait for it
    assert store.read(f"runs/{RECORD.run_id}/status.json")
    store.release.set()


def test_a_store_that_refuses_is_named_when_time_is_up(
    tmp_path: Path, store: FolderStorage
) -> None:
    node = Node(tmp_path / "node", store)
    node.save(2)
    (tmp_path / "store").write_text("a file in the way")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        node.sync.flush(timeout_s=0.5, tick=lambda: None)


def test_a_checkpoint_that_appears_or_goes_meanwhile_disturbs_no_record(
    tmp_path: Path, store: FolderStorage
) -> None:
    node = Node(tmp_path / "node", store)
    node.write_status(1)
    done = threading.Event()

    def train() -> None:
        while not done.is_set():
            node.save(2)
            manifest.drop(node.paths.checkpoints, 2)

    training = threading.Thread(target=train)
    training.start()
    try:
        for _ in range(300):
            node.sync.send_records()
    finally:
        done.set()
        training.join()


def test_a_damaged_checkpoint_in_the_store_is_replaced_when_training_comes_by_again(
    tmp_path: Path, store: FolderStorage
) -> None:
    first = Node(tmp_path / "node", store)
    for step in (2, 4):
        first.save(step)
        first.sync.send_checkpoints()
    store.write(f"runs/{RECORD.run_id}/checkpoints/step-00000004/model", b"damaged")

    second = Node(tmp_path / "other-node", store)
    (why,) = second.sync.fetch_newest_checkpoint()
    assert "step-00000004" in why
    assert committed_checkpoints(second.paths.checkpoints) == [2]
    second.save(4)
    second.sync.send_checkpoints()
    assert stored_model(store, 4) == b"weights"


def test_a_damaged_local_checkpoint_is_fetched_again(tmp_path: Path, store: FolderStorage) -> None:
    node = Node(tmp_path / "node", store)
    for step in (2, 4):
        node.save(step)
        node.sync.send_checkpoints()
    (node.paths.checkpoint(4) / "model").write_bytes(b"damaged")
    assert node.sync.fetch_newest_checkpoint() == []
    manifest.verify(node.paths.checkpoint(4))


def test_a_checkpoint_that_cannot_be_fetched_now_is_no_reason_to_begin_anew(
    tmp_path: Path, store: FolderStorage
) -> None:
    first = Node(tmp_path / "node", store)
    first.save(2)
    first.sync.send_checkpoints()
    second = Node(tmp_path / "other-node", RefusingStorage(store.url, tmp_path / "store"))
    with pytest.raises(StorageError, match="the disk is full"):
        second.sync.fetch_newest_checkpoint()


def test_the_bill_of_a_life_on_another_node_is_not_lost(
    tmp_path: Path, store: FolderStorage
) -> None:
    here, there = Node(tmp_path / "here", store), Node(tmp_path / "there", store)
    here.write_status(1)
    here.sync.send_records()
    there.sync.fetch_records()
    there.write_status(2)
    there.sync.send_records()
    here.sync.fetch_records()
    status = decode(here.paths.status.read_bytes(), Status, name="status")
    assert [line.life for line in status.bill] == [1, 2]


def test_what_a_killed_life_had_not_sent_yet_stays(tmp_path: Path, store: FolderStorage) -> None:
    node = Node(tmp_path / "node", store)
    node.write_status(1)
    node.sync.send_records()
    write_atomic(node.paths.status, encode(replace(make_status(1), step=5)))
    node.sync.fetch_records()
    assert decode(node.paths.status.read_bytes(), Status, name="status").step == 5


def test_the_laptops_own_log_is_left_where_it_is(tmp_path: Path, store: FolderStorage) -> None:
    node = Node(tmp_path / "node", store)
    key = f"runs/{RECORD.run_id}/logs/provision.log"
    store.write(key, b"the laptop's")
    node.sync.fetch_records()
    assert not node.paths.log("provision").exists()
    node.paths.logs.mkdir()
    node.paths.log("provision").write_bytes(b"not ours")
    node.sync.send_records()
    assert store.read(key) == b"the laptop's"


def test_logs_that_have_begun_on_a_new_node_go_on_after_those_of_earlier_lives(
    tmp_path: Path, store: FolderStorage
) -> None:
    first, second = Node(tmp_path / "first", store), Node(tmp_path / "second", store)
    first.write_status(1)
    for node, words in ((first, b"one\n"), (second, b"two\n")):
        node.paths.logs.mkdir()
        node.paths.log("setup").write_bytes(words)
    first.sync.send_records()
    with second.paths.log("setup").open("ab") as still_open:
        second.sync.fetch_records()
        still_open.write(b"three\n")
    assert second.paths.log("setup").read_bytes() == b"one\ntwo\nthree\n"
