"""Preparations that end with what is wanted, and those that find shards in the store."""

import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.parquet_files import LocalFiles, write_parquet
from tests.tiny import make_recipe, make_record, make_run
from training import dataset_store
from training.config import DataConfig
from training.dataset_store import publish
from training.events import parse_lines
from training.layout import Dataset, RunPaths, Shard, read_dataset
from training.prepare import main, prepare
from training.shards import verify_dataset
from training.storage import Storage
from training.storage_folder import FolderStorage

KEY = "hub-a-b-bytes-0123"
DATA = DataConfig(source="hub:a/b", tokenizer="bytes", shard_tokens=500)
TOKENS = 4 * 1001
"""Of the files, in eight shards and a short one."""


def make_files(folder: Path) -> LocalFiles:
    """Two files of two documents of 1,000 bytes each."""
    folder.mkdir(exist_ok=True)
    texts = [chr(97 + i) * 1000 for i in range(4)]
    paths = [write_parquet(folder / f"{i}.parquet", texts[2 * i :][:2]) for i in range(2)]
    return LocalFiles(paths)


class Silent(LocalFiles):
    """A source that nobody may read."""

    def open(self, first: int) -> Generator[tuple[int, Path], None, None]:
        raise AssertionError("the files were read")
        yield


def prepare_files(
    source: LocalFiles, root: Path, train_tokens: int | None, *, store: Storage | None = None
) -> tuple[Dataset, list[str], list[str], list[str]]:
    """(what there is, names of shards made, names of shards fetched, what was said)"""
    made: list[str] = []
    fetched: list[str] = []
    said: list[str] = []
    dataset = prepare(
        DATA,
        root / KEY,
        block_size=8,
        on_shard=lambda shard: made.append(shard.name),
        on_fetched=lambda shard: fetched.append(shard.name),
        train_tokens=train_tokens,
        source=source,
        store=store,
        say=said.append,
    )
    return dataset, made, fetched, said


def read_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.fixture
def source(tmp_path: Path) -> LocalFiles:
    return make_files(tmp_path / "in")


@pytest.fixture
def clean(source: LocalFiles, tmp_path: Path) -> Path:
    """The folder of all shards, made in one go."""
    prepare_files(source, tmp_path / "clean", None)
    return tmp_path / "clean" / KEY


@pytest.fixture
def store(tmp_path: Path) -> FolderStorage:
    return FolderStorage(str(tmp_path / "store"), tmp_path / "store")


@pytest.mark.parametrize(
    ("wanted", "shards", "complete"),
    [(1, 2, False), (500, 2, False), (501, 3, False), (3500, 8, False), (3501, 9, True)],
)
def test_no_more_whole_shards_are_made_than_are_wanted(
    source: LocalFiles, tmp_path: Path, wanted: int, shards: int, complete: bool
) -> None:
    dataset, made, *_ = prepare_files(source, tmp_path, wanted)
    assert (len(dataset.shards), dataset.complete) == (shards, complete)
    assert len(made) == shards
    assert verify_dataset(tmp_path / KEY) == dataset


def test_one_that_needs_more_goes_on_and_ends_with_the_shards_of_one_go(
    source: LocalFiles, clean: Path, tmp_path: Path
) -> None:
    for wanted, made_now in ((600, 3), (600, 0), (1501, 2), (10**9, 4)):
        assert len(prepare_files(source, tmp_path, wanted)[1]) == made_now
    assert read_files(tmp_path / KEY) == read_files(clean)
    assert prepare_files(Silent(source.paths), tmp_path, 600)[0].complete


def test_a_text_is_continued_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(chr(97 + i % 23) for i in range(1000)))
    data = DataConfig(
        source="text", path=str(tmp_path / "a.txt"), tokenizer="bytes", shard_tokens=100,
        val_fraction=0.2,
    )  # fmt: skip

    def go(name: str, train_tokens: int | None) -> Dataset:
        ignore = [].append
        return prepare(
            data, tmp_path / name, block_size=8, on_shard=ignore, train_tokens=train_tokens
        )

    assert [shard.tokens for shard in go("out", 150).shards] == [201, 100, 100]
    go("out", None)
    go("clean", None)
    assert read_files(tmp_path / "out") == read_files(tmp_path / "clean")


def test_shards_that_the_store_has_are_fetched_and_the_files_not_read(
    source: LocalFiles, clean: Path, store: FolderStorage, tmp_path: Path
) -> None:
    publish(store, clean, verify_dataset(clean))
    dataset, made, fetched, said = prepare_files(Silent(source.paths), tmp_path, None, store=store)
    assert (len(made), len(fetched), said) == (0, 9, [])
    assert dataset.complete
    assert read_files(tmp_path / KEY) == read_files(clean)


def test_no_more_are_fetched_than_are_wanted(
    source: LocalFiles, clean: Path, store: FolderStorage, tmp_path: Path
) -> None:
    publish(store, clean, verify_dataset(clean))
    dataset, _, fetched, _ = prepare_files(Silent(source.paths), tmp_path, 600, store=store)
    assert len(fetched) == 3
    assert not dataset.complete
    assert len(prepare_files(Silent(source.paths), tmp_path, 1500, store=store)[2]) == 1


def test_what_the_store_lacks_is_made_after_what_it_has(
    source: LocalFiles, clean: Path, store: FolderStorage, tmp_path: Path
) -> None:
    prepare_files(source, tmp_path / "before", 1000)
    publish(store, tmp_path / "before" / KEY, verify_dataset(tmp_path / "before" / KEY))
    _, made, fetched, _ = prepare_files(source, tmp_path, None, store=store)
    assert (len(made), len(fetched)) == (6, 3)
    assert read_files(tmp_path / KEY) == read_files(clean)


def test_a_damaged_shard_of_the_store_is_made_anew_and_told_of(
    source: LocalFiles,
    clean: Path,
    store: FolderStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dataset_store, "PAUSES_S", (0,))
    publish(store, clean, verify_dataset(clean))
    path = tmp_path / "store" / "datasets" / KEY / "hub-a-b_train_000002.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    _, made, fetched, said = prepare_files(source, tmp_path, 1000, store=store)
    assert (made, len(fetched)) == ([path.name], 2)
    assert path.name in said[0]
    prepare_files(source, tmp_path, None)
    assert read_files(tmp_path / KEY) == read_files(clean)
    assert publish(store, clean, verify_dataset(clean)) == 1  # the damaged one was taken out


KILLED_AFTER_THREE = """
import os, signal, sys
from pathlib import Path
from tests.parquet_files import LocalFiles
from tests.training.test_prepare_reuse import DATA, KEY
from training.prepare import prepare

shards = []
def on_shard(shard):
    shards.append(shard)
    if len(shards) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

source = LocalFiles([Path(name) for name in sys.argv[2:]])
prepare(DATA, Path(sys.argv[1]), block_size=8, on_shard=on_shard, source=source)
"""


def test_one_that_was_killed_goes_on_after_its_last_shard(
    source: LocalFiles, clean: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED_AFTER_THREE, str(tmp_path / KEY)]
    killed = subprocess.run([*command, *map(str, source.paths)], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = read_dataset(tmp_path / KEY)
    assert left is not None
    assert len(left.shards) == 3
    _, made, *_ = prepare_files(source, tmp_path, None)
    assert len(made) == 6
    assert read_files(tmp_path / KEY) == read_files(clean)


def test_of_two_at_once_the_second_makes_only_what_the_first_did_not_need(
    source: LocalFiles, clean: Path, tmp_path: Path
) -> None:
    is_writing, go_on = threading.Event(), threading.Event()
    second: list[str] = []

    def hold(shard: Shard) -> None:
        is_writing.set()
        go_on.wait(60)

    def first() -> None:
        prepare(DATA, tmp_path / KEY, block_size=8, on_shard=hold, train_tokens=1000, source=source)

    one = threading.Thread(target=first)
    two = threading.Thread(target=lambda: second.extend(prepare_files(source, tmp_path, 2000)[1]))
    one.start()
    is_writing.wait(60)
    two.start()
    two.join(0.2)
    assert two.is_alive()
    go_on.set()
    one.join()
    two.join()
    assert [name[-10:] for name in second] == ["000003.bin", "000004.bin"]
    prepare_files(source, tmp_path, None)
    assert read_files(tmp_path / KEY) == read_files(clean)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, RunPaths]:
    """A working folder with a run that needs four of the eleven shards of its text."""
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i % 23) for i in range(1000)))
    data = {"source": "text", "path": str(text), "shard_tokens": 100}
    recipe = make_recipe(data=data, train={"steps": 4})
    root = tmp_path / "node"
    return root, make_run(root, make_record(recipe))


def prepare_run(root: Path, *options: str) -> int:
    return main(["--root", str(root), "--run-id", "tiny-0001", *options])


def read_events(paths: RunPaths) -> list[dict[str, Any]]:
    return list(parse_lines(paths.events.read_bytes()))


def test_a_run_sends_what_it_made_and_fetches_what_is_there(
    run: tuple[Path, RunPaths], store: FolderStorage
) -> None:
    root, paths = run
    to_store = ("--store", store.url)
    assert prepare_run(root, *to_store) == 0
    assert store.list("datasets/") == []  # it was not told to
    assert prepare_run(root, *to_store, "--send") == 0
    (folder,) = (root / "datasets").iterdir()
    sent = {found.key.rpartition("/")[2] for found in store.list(f"datasets/{folder.name}/")}
    assert sent == set(read_files(folder))
    assert len(sent) == 5  # 4 shards and what names them: 256 tokens to train on, and validation

    before = read_files(folder)
    for path in folder.iterdir():
        path.unlink()
    paths.events.unlink()
    assert prepare_run(root, *to_store, "--send") == 0
    assert [event["event"] for event in read_events(paths)] == [
        *["shard_fetched"] * 4,
        "dataset_ready",
    ]
    assert read_files(folder) == before


def test_a_store_that_fails_keeps_no_run_from_its_data_and_is_told_of(
    run: tuple[Path, RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.prepare.PATIENCE_S", 0.1)
    root, paths = run
    (tmp_path / "file").touch()
    assert prepare_run(root, "--store", str(tmp_path / "file"), "--send") == 0
    told = [event["text"] for event in read_events(paths) if event["event"] == "note"]
    assert [line.partition(":")[0] for line in told] == [
        "the store did not give all that it has, so it is made",
        "shards do not reach the store, which is tried again",
        "the store did not take all shards",
    ]
    assert {event["event"] for event in read_events(paths)} >= {"shard_written", "dataset_ready"}
