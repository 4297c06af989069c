"""Data sets in a folder and in a real S3 server, and stores that lose, damage or refuse."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.tiny import make_dataset, make_recipe
from training.dataset_store import fetch, list_datasets, publish, remove
from training.errors import (
    ObjectDamagedError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from training.layout import DATASET_JSON, Dataset, Shard, decode, encode, read_dataset
from training.shards import verify_dataset
from training.storage import Storage, open_store
from training.storage_folder import FolderStorage

KEY = "x-bytes-0123"
PREFIX = f"datasets/{KEY}/"


class WatchedStorage(FolderStorage):
    """A folder that remembers what was sent, and fails as it is told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder)
        self.sent: list[str] = []
        self.loses: set[str] = set()
        self.cuts: list[str] = []
        """Names whose download fails, once for each time they are in here."""

    def upload(self, path: Path, key: str) -> None:
        self.sent.append(path.name)
        if path.name not in self.loses:
            super().upload(path, key)

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        if path.name in self.cuts:
            self.cuts.remove(path.name)
            raise StorageUnavailableError("the connection was cut")
        super().download(key, path, sha256=sha256)

    def damage(self, name: str) -> None:
        path = self._folder / PREFIX / name
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "here")


@pytest.fixture
def store(tmp_path: Path) -> WatchedStorage:
    return WatchedStorage(tmp_path / "store")


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    server = request.getfixturevalue("aws")
    return open_store(server.url("datasets", f"{os.getpid()}/{tmp_path.name}"))


def made(root: Path) -> Path:
    """A validation shard and three training shards under `root`, complete."""
    make_dataset(root / KEY, make_recipe())
    return root / KEY


def dataset_in(folder: Path) -> Dataset:
    dataset = read_dataset(folder)
    assert dataset is not None
    return dataset


def so_far(folder: Path, count: int) -> Dataset:
    dataset = dataset_in(folder)
    return replace(dataset, complete=False, shards=dataset.shards[:count])


def nothing_yet(folder: Path) -> Dataset:
    return so_far(folder, 0)


def stored(store: Storage) -> Dataset:
    return decode(store.read(PREFIX + DATASET_JSON), Dataset, name="stored")


def fetch_all(store: Storage, folder: Path, kept: Dataset) -> tuple[Dataset, str, list[str]]:
    """(what is in the folder, fault, names that were told of)"""
    folder.mkdir(parents=True, exist_ok=True)
    told: list[Shard] = []
    fetched = fetch(store, folder, kept, told.append, pauses_s=(0, 0))
    return fetched.dataset, fetched.fault, [shard.name for shard in told]


def test_what_one_machine_sends_another_fetches_byte_for_byte(
    any_store: Storage, folder: Path, tmp_path: Path
) -> None:
    dataset = dataset_in(folder)
    assert publish(any_store, folder, dataset) == 4
    there = tmp_path / "there" / KEY
    fetched, fault, told = fetch_all(any_store, there, nothing_yet(folder))
    assert (fetched, fault) == (dataset, "")
    assert told == [shard.name for shard in dataset.shards]
    assert verify_dataset(there) == dataset
    for shard in dataset.shards:
        assert (there / shard.name).read_bytes() == (folder / shard.name).read_bytes()


def test_a_fetched_shard_is_told_of_once_dataset_json_names_it(
    store: WatchedStorage, folder: Path, tmp_path: Path
) -> None:
    publish(store, folder, dataset_in(folder))
    there = tmp_path / "there" / KEY
    there.mkdir(parents=True)
    named = []

    def on_shard(shard: Shard) -> None:
        dataset = verify_dataset(there)
        assert dataset.shards[-1] == shard
        assert not dataset.complete
        named.append(len(dataset.shards))

    fetch(store, there, nothing_yet(folder), on_shard)
    assert named == [1, 2, 3, 4]


def test_what_is_in_the_store_is_not_sent_again(store: WatchedStorage, folder: Path) -> None:
    assert publish(store, folder, so_far(folder, 2)) == 2
    assert not stored(store).complete
    assert publish(store, folder, dataset_in(folder)) == 2
    assert publish(store, folder, dataset_in(folder)) == 0
    assert store.sent == [shard.name for shard in dataset_in(folder).shards]
    assert stored(store) == dataset_in(folder)


def test_the_store_never_names_a_shard_that_it_does_not_hold(
    store: WatchedStorage, folder: Path
) -> None:
    names = [shard.name for shard in dataset_in(folder).shards]
    store.loses = {names[2]}
    with pytest.raises(StorageUnavailableError, match=f"took .*{names[2]}, and does not have it"):
        publish(store, folder, dataset_in(folder))
    assert [shard.name for shard in stored(store).shards] == names[:2]
    store.loses.clear()
    assert publish(store, folder, dataset_in(folder)) == 2
    assert stored(store) == dataset_in(folder)


def test_a_shard_that_the_store_has_lost_since_is_sent_again(
    store: WatchedStorage, folder: Path
) -> None:
    publish(store, folder, dataset_in(folder))
    lost = dataset_in(folder).shards[1].name
    store.delete([PREFIX + lost])
    assert publish(store, folder, dataset_in(folder)) == 1
    assert store.sent[-1] == lost


def test_one_that_is_behind_takes_nothing_from_what_another_machine_sent(
    store: WatchedStorage, folder: Path
) -> None:
    publish(store, folder, dataset_in(folder))
    assert publish(store, folder, so_far(folder, 1)) == 0
    assert stored(store) == dataset_in(folder)


def test_a_shard_that_was_damaged_here_is_not_sent(store: WatchedStorage, folder: Path) -> None:
    shard = dataset_in(folder).shards[1]
    (folder / shard.name).write_bytes(b"rot")
    with pytest.raises(ObjectDamagedError, match=shard.name):
        publish(store, folder, dataset_in(folder))
    assert store.sent == [dataset_in(folder).shards[0].name]


def test_shards_of_the_store_that_differ_from_ours_are_replaced_and_not_named_meanwhile(
    store: WatchedStorage, folder: Path
) -> None:
    right = dataset_in(folder)
    publish(store, folder, right)
    wrong = replace(right.shards[1], sha256="0" * 64)
    claim = replace(right, shards=(right.shards[0], wrong, *right.shards[2:]))
    store.write(PREFIX + DATASET_JSON, encode(claim))
    store.delete([PREFIX + wrong.name])
    store.loses = {wrong.name}
    with pytest.raises(StorageUnavailableError):
        publish(store, folder, right)
    assert stored(store).shards == right.shards[:1]
    store.loses.clear()
    publish(store, folder, right)
    assert stored(store) == right


def test_a_wrong_shard_is_refused_and_the_one_made_in_its_place_is_sent(
    store: WatchedStorage, folder: Path, tmp_path: Path
) -> None:
    dataset = dataset_in(folder)
    publish(store, folder, dataset)
    wrong = dataset.shards[2].name
    store.damage(wrong)
    there = tmp_path / "there" / KEY
    fetched, fault, _ = fetch_all(store, there, nothing_yet(folder))
    assert fetched == so_far(folder, 2)
    assert wrong in fault
    assert not (there / wrong).exists()
    assert publish(store, folder, dataset) == 1
    assert store.sent[-1] == wrong
    assert fetch_all(store, there, fetched)[0] == dataset


def test_a_download_that_is_cut_is_tried_again(
    store: WatchedStorage, folder: Path, tmp_path: Path
) -> None:
    dataset = dataset_in(folder)
    publish(store, folder, dataset)
    store.cuts = [dataset.shards[1].name] * 2
    there = tmp_path / "there" / KEY
    assert fetch_all(store, there, nothing_yet(folder))[:2] == (dataset, "")


def test_a_store_that_stays_away_leaves_what_came_and_says_why(
    store: WatchedStorage, folder: Path, tmp_path: Path
) -> None:
    dataset = dataset_in(folder)
    publish(store, folder, dataset)
    store.cuts = [dataset.shards[1].name] * 3
    there = tmp_path / "there" / KEY
    fetched, fault, told = fetch_all(store, there, nothing_yet(folder))
    assert fetched == dataset_in(there) == so_far(folder, 1)
    assert fault == "the connection was cut"
    assert len(told) == 1
    assert publish(store, folder, dataset) == 0  # nothing was taken out of the store for that


def test_only_what_is_not_here_already_is_fetched(
    store: WatchedStorage, folder: Path, tmp_path: Path
) -> None:
    publish(store, folder, dataset_in(folder))
    store.cuts = [shard.name for shard in dataset_in(folder).shards[:3]] * 3
    there = made(tmp_path / "there")
    fetched, fault, told = fetch_all(store, there, so_far(folder, 3))
    assert (fetched, fault) == (dataset_in(folder), "")
    assert told == [dataset_in(folder).shards[3].name]


def test_other_data_under_the_same_key_is_not_taken(
    store: WatchedStorage, folder: Path, tmp_path: Path
) -> None:
    publish(store, folder, dataset_in(folder))
    kept = replace(nothing_yet(folder), revision="2")
    fetched, fault, told = fetch_all(store, tmp_path / "there" / KEY, kept)
    assert (fetched, told) == (kept, [])
    assert "not the same data" in fault


def test_a_name_that_leads_out_of_the_folder_is_not_followed(
    store: WatchedStorage, folder: Path, tmp_path: Path
) -> None:
    dataset = so_far(folder, 1)
    shard = replace(dataset.shards[0], name="../out.bin")
    store.write(PREFIX + DATASET_JSON, encode(replace(dataset, shards=(shard,))))
    store.write("datasets/out.bin", (folder / dataset.shards[0].name).read_bytes())
    _, fault, told = fetch_all(store, tmp_path / "there" / KEY, nothing_yet(folder))
    assert told == []
    assert "no plain file" in fault
    assert not (tmp_path / "there" / "out.bin").exists()


def test_a_full_disk_ends_fetching_with_whole_shards(
    store: WatchedStorage, tmp_path: Path, small_disk: Path
) -> None:
    recipe = make_recipe(data={"shard_tokens": 200_000})
    make_dataset(tmp_path / "large" / KEY, recipe)
    folder = tmp_path / "large" / KEY
    publish(store, folder, dataset_in(folder))
    there = small_disk / KEY
    fetched, fault, _ = fetch_all(store, there, nothing_yet(folder))
    assert len(fetched.shards) == 2  # of 0.4 MB each, on 1 MiB
    assert "No space left" in fault
    assert verify_dataset(there) == fetched


def test_an_empty_store_has_nothing_to_fetch(store: WatchedStorage, folder: Path) -> None:
    kept = nothing_yet(folder)
    assert fetch_all(store, folder, kept) == (kept, "", [])


def test_the_list_tells_what_is_whole_and_what_is_of_no_use(
    any_store: Storage, folder: Path
) -> None:
    assert list_datasets(any_store) == []
    publish(any_store, folder, dataset_in(folder))
    any_store.write("datasets/b-broken/dataset.json", b"{")
    any_store.write("datasets/c-cut/x_val_000000.bin", b"12345")
    broken, cut, whole = list_datasets(any_store)
    assert (whole.key, whole.dataset, whole.fault) == (KEY, dataset_in(folder), "")
    assert whole.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert (broken.key, broken.dataset) == ("b-broken", None)
    assert "cannot be read" in broken.fault
    assert (cut.key, cut.dataset, cut.size_bytes) == ("c-cut", None, 5)
    assert "no dataset.json" in cut.fault


def test_removing_takes_all_of_one_data_set_and_nothing_of_its_neighbours(
    any_store: Storage, folder: Path
) -> None:
    publish(any_store, folder, dataset_in(folder))
    any_store.write(f"datasets/{KEY}4/x.bin", b"12345")
    any_store.write("runs/a/run.json", b"{}")
    assert remove(any_store, KEY) == sum(path.stat().st_size for path in folder.iterdir())
    assert [found.key for found in any_store.list()] == [
        f"datasets/{KEY}4/x.bin",
        "runs/a/run.json",
    ]
    with pytest.raises(ObjectNotFoundError, match=KEY):
        remove(any_store, KEY)


def test_removal_that_is_cut_short_leaves_no_data_set(
    store: WatchedStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, folder, dataset_in(folder))
    delete = FolderStorage.delete

    def delete_one(self: FolderStorage, keys: list[str]) -> None:
        delete(self, keys[:1])
        if len(keys) > 1:
            raise StorageError("cut short")

    monkeypatch.setattr(FolderStorage, "delete", delete_one)
    with pytest.raises(StorageError, match="cut short"):
        remove(store, KEY)
    assert [found.dataset for found in list_datasets(store)] == [None]
    monkeypatch.undo()
    remove(store, KEY)
    assert store.list() == []
