"""What every store promises, asked of a folder and of a real S3 server alike."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.errors import ObjectExistsError, ObjectNotFoundError, StorageError
from training.storage import Storage, StoredObject, open_store

PART_BYTES = 8 * 1024 * 1024
"""boto3 sends a larger file in parts of this size."""

RACE = """
import sys
from training.errors import ObjectExistsError
from training.storage import open_store

url, name = sys.argv[1:]
store = open_store(url)
store.list()
print("ready", flush=True)
sys.stdin.readline()
for i in range(40):
    try:
        store.write(f"race/{i:02}", name.encode() * 1000, if_absent=True)
    except ObjectExistsError:
        continue
    print(i)
"""


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    server = request.getfixturevalue("aws")
    return open_store(server.url("contracts", f"{os.getpid()}/{tmp_path.name}"))


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """20 MB that no part of which repeats another."""
    path = tmp_path / "large.bin"
    path.write_bytes(hashlib.shake_128(b"large").digest(20_000_000))
    return path


def test_read_returns_what_was_written(store: Storage) -> None:
    store.write("runs/a/status.json", b"\x00\xff{}")
    assert store.read("runs/a/status.json") == b"\x00\xff{}"


def test_write_replaces_what_was_there(store: Storage) -> None:
    store.write("a", b"a longer first version")
    store.write("a", b"second")
    assert store.read("a") == b"second"


def test_an_empty_object_is_an_object(store: Storage, tmp_path: Path) -> None:
    store.write("logs/empty.log", b"")
    store.download("logs/empty.log", tmp_path / "copy")
    assert store.read("logs/empty.log") == (tmp_path / "copy").read_bytes() == b""
    assert store.list() == [StoredObject(key="logs/empty.log", size_bytes=0)]


def test_reading_what_is_not_there_says_so(store: Storage, tmp_path: Path) -> None:
    store.write("runs/a/run.json", b"{}")
    for key in ("nothing", "runs", "runs/a"):
        with pytest.raises(ObjectNotFoundError, match=key):
            store.read(key)
        with pytest.raises(ObjectNotFoundError, match=key):
            store.download(key, tmp_path / "to" / "file")
    assert not (tmp_path / "to" / "file").exists()


def test_if_absent_keeps_what_is_there(store: Storage) -> None:
    store.write("run.json", b"first", if_absent=True)
    with pytest.raises(ObjectExistsError, match=r"run\.json"):
        store.write("run.json", b"second", if_absent=True)
    assert store.read("run.json") == b"first"


def test_if_absent_has_one_winner_among_processes(store: Storage) -> None:
    racers = {
        name: subprocess.Popen(
            [sys.executable, "-c", RACE, store.url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("x", "y")
    }
    for racer in racers.values():
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers.values():
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = {name: racer.communicate()[0].split() for name, racer in racers.items()}
    assert [racer.returncode for racer in racers.values()] == [0, 0]
    assert sorted(int(i) for wins in won.values() for i in wins) == list(range(40))
    for name, wins in won.items():
        for i in wins:
            assert store.read(f"race/{int(i):02}") == name.encode() * 1000


def test_a_reader_never_sees_half_an_object(store: Storage) -> None:
    versions = [letter * 300_000 for letter in (b"a", b"b")]
    store.write("log", versions[0])
    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(write_often, store, "log", data) for data in versions]
        while not all(writer.done() for writer in writers):
            assert store.read("log") in versions
        for writer in writers:
            writer.result()
    assert store.read("log") in versions


def write_often(store: Storage, key: str, data: bytes) -> None:
    for _ in range(15):
        store.write(key, data)


def test_a_file_in_several_parts_comes_back_whole(
    store: Storage, large_file: Path, tmp_path: Path
) -> None:
    data = large_file.read_bytes()
    assert len(data) > 2 * PART_BYTES
    store.upload(large_file, "checkpoints/step-00000001/model.safetensors")
    copy = tmp_path / "deep" / "down" / "model.safetensors"
    store.download(
        "checkpoints/step-00000001/model.safetensors",
        copy,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    assert copy.read_bytes() == data
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_small_records_are_written_while_a_file_is_uploaded(
    store: Storage, large_file: Path
) -> None:
    with ThreadPoolExecutor() as threads:
        upload = threads.submit(store.upload, large_file, "model.safetensors")
        for i in range(10):
            store.write("status.json", f"{i}".encode())
            assert store.read("status.json") == f"{i}".encode()
        upload.result()
    assert [found.size_bytes for found in store.list("model")] == [large_file.stat().st_size]


def test_a_changed_object_is_found_out_and_leaves_nothing(store: Storage, tmp_path: Path) -> None:
    path = tmp_path / "to" / "model"
    store.write("model", b"tampered")
    with pytest.raises(StorageError, match="model is not what was stored"):
        store.download("model", path, sha256=hashlib.sha256(b"trained").hexdigest())
    assert list(path.parent.iterdir()) == []


def test_a_failed_download_keeps_the_file_that_was_there(store: Storage, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    store.write("model", b"tampered")
    with pytest.raises(StorageError):
        store.download("model", path, sha256="0" * 64)
    assert path.read_bytes() == b"old"
    store.download("model", path)
    assert path.read_bytes() == b"tampered"


def test_uploading_a_file_that_is_gone_names_it(store: Storage, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.bin"):
        store.upload(tmp_path / "gone.bin", "gone.bin")
    assert store.list() == []


def test_download_to_where_a_file_is_in_the_way_names_it(store: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store.write("a", b"a")
    with pytest.raises(StorageError, match="file") as caught:
        store.download("a", tmp_path / "file" / "a")
    assert caught.value.hint


def test_list_is_sorted_and_by_prefix(store: Storage) -> None:
    for key in ("runs/b/z", "runs/a/run.json", "runs/a.b", "runs/a/logs/train.log", "data/x"):
        store.write(key, key.encode())
    assert [found.key for found in store.list()] == [
        "data/x",
        "runs/a.b",
        "runs/a/logs/train.log",
        "runs/a/run.json",
        "runs/b/z",
    ]
    assert [found.key for found in store.list("runs/a/")] == [
        "runs/a/logs/train.log",
        "runs/a/run.json",
    ]
    assert store.list("runs/a")[0].key == "runs/a.b"
    assert store.list("runs/a/run") == [StoredObject(key="runs/a/run.json", size_bytes=15)]
    assert store.list("nowhere/") == []


def test_a_store_that_nobody_wrote_to_is_empty(store: Storage) -> None:
    assert store.list() == []
    assert store.list("runs/") == []


def test_keys_may_hold_any_letters(store: Storage) -> None:
    keys = ["a b+c%20d", "q?x=1&y#z", "été/日本", "~tilde'\"(quote)"]
    for key in keys:
        store.write(key, key.encode())
    assert [found.key for found in store.list()] == sorted(keys)
    assert [store.read(key) for key in keys] == [key.encode() for key in keys]


def test_delete_removes_what_is_named_and_no_more(store: Storage) -> None:
    for key in ("a/1", "a/2", "b"):
        store.write(key, b"x")
    store.delete(["a/1", "never/was", "b"])
    assert [found.key for found in store.list()] == ["a/2"]
    store.delete(found.key for found in store.list())
    store.delete([])
    assert store.list() == []


def test_keys_do_not_escape_the_prefix(store: Storage, tmp_path: Path) -> None:
    for key in ("", "/etc/passwd", "../out", "a/../../out", "a//b", "a/", "./a", "a\0b"):
        for verb in (
            lambda key=key: store.write(key, b"x"),
            lambda key=key: store.read(key),
            lambda key=key: store.upload(Path(__file__), key),
            lambda key=key: store.download(key, tmp_path / "x"),
            lambda key=key: store.delete([key]),
        ):
            with pytest.raises(StorageError, match="not a key"):
                verb()
    with pytest.raises(StorageError, match="not a key"):
        store.list("../")


def test_a_store_knows_the_url_it_was_opened_by(store: Storage) -> None:
    store.write("a", b"x")
    assert open_store(store.url).read("a") == b"x"
