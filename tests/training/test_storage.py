"""Store URLs, and a store in a folder where the system refuses."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from training.errors import StorageError, StorageUnavailableError
from training.storage import S3Location, open_store, parse_s3_url
from training.storage_files import os_errors


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "file://localhost{}"])
def test_a_folder_may_be_named_in_several_ways(tmp_path: Path, form: str) -> None:
    open_store(form.format(tmp_path / "store")).write("a", b"x")
    assert (tmp_path / "store" / "a").read_bytes() == b"x"


def test_a_file_url_is_decoded(tmp_path: Path) -> None:
    open_store((tmp_path / "with space").as_uri()).write("a", b"x")
    assert (tmp_path / "with space" / "a").read_bytes() == b"x"


def test_a_relative_folder_stays_where_it_was_when_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("file:runs here")
    monkeypatch.chdir("/")
    store.write("a", b"x")
    assert (tmp_path / "runs here" / "a").read_bytes() == b"x"


def test_an_s3_url_is_bucket_prefix_and_endpoint() -> None:
    assert parse_s3_url("s3://my-bucket/a/b/?endpoint_url=http://127.0.0.1:9000") == S3Location(
        bucket="my-bucket", prefix="a/b", endpoint_url="http://127.0.0.1:9000"
    )
    assert parse_s3_url("s3://my-bucket") == S3Location(
        bucket="my-bucket", prefix="", endpoint_url=None
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "  ",
        "file:",
        "gs://x",
        "https://bucket.s3.amazonaws.com/x",
        "s3:",
        "s3://",
        "s3:///prefix",
        "s3:bucket/prefix",
        "s3://ab",
        "s3://Bucket_Name/x",
        "s3://bucket:9000/x",
        "s3://bucket:port/x",
        "s3://bucket/x#y",
        "s3://bucket/x?region=eu-west-1",
        "s3://bucket/x?endpoint_url=http://one:1&endpoint_url=http://two:2",
    ],
)
def test_what_is_no_store_is_refused_with_the_accepted_forms(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_store(url)
    assert "file:FOLDER" in caught.value.hint
    assert "s3://bucket/prefix" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "file://other-host/folder",
        "s3://bucket/../other",
        "s3://bucket/a//b",
        "s3://bucket/x?endpoint_url=",
        "s3://bucket/x?endpoint_url=127.0.0.1:9000",
        "s3://bucket/x?endpoint_url=ftp://host",
        "s3://bucket/x?endpoint_url=http://host:port",
        "s3://bucket/x?endpoint_url=http://host/%3Ftoken%3Dx",
    ],
)
def test_what_is_nearly_a_store_is_refused_with_a_hint(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_store(url)
    assert caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/x",
        "s3://bucket/x?endpoint_url=http://AKIA:hunter2@127.0.0.1:9000",
        "s3://bucket/x?endpoint_url=http%3A%2F%2FAKIA%3Ahunter2%40127.0.0.1",
        "s3://bucket/x?endpoint_url=http://AKIA:hun/ter2@127.0.0.1:9000",
        "s3://bucket/x?aws_secret_access_key=hunter2",
        "s3://bucket/x?endpoint_url=http://127.0.0.1/?token=hunter2",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_store(url)
    told = f"{caught.value.message} {caught.value.hint} {caught.value.__cause__}"
    assert "hunter2" not in told
    assert "hun/ter2" not in told


def test_opening_a_folder_loads_no_boto3(tmp_path: Path) -> None:
    code = (
        "import sys; from training.storage import open_store; open_store(sys.argv[1]).list();"
        "assert not {'boto3', 'botocore', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "store"):
        store = open_store(str(folder))
        with pytest.raises(StorageError, match="file is where a folder should be") as caught:
            store.write("runs/a", b"x", if_absent=True)
        assert "another folder" in caught.value.hint
        with pytest.raises(StorageError, match="file is where a folder should be"):
            store.upload(Path(__file__), "runs/a")
        with pytest.raises(StorageError, match="file is where a folder should be"):
            store.read("runs/a")


def test_a_folder_where_nothing_can_be_made_is_named() -> None:
    with pytest.raises(StorageError, match="/proc/gptctl-runs") as caught:
        open_store("/proc/gptctl-runs").write("a", b"x")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "permissions"),
        (errno.EROFS, "permissions"),
        (errno.ENOTDIR, "in the way"),
        (errno.EIO, "check the path"),
    ],
)
def test_what_the_system_refuses_has_a_hint(code: int, hint: str) -> None:
    with pytest.raises(StorageError, match="/store/a") as caught, os_errors(Path("/store/a")):
        raise OSError(code, os.strerror(code))
    assert hint in caught.value.hint
    assert not isinstance(caught.value, StorageUnavailableError)


def test_a_network_folder_that_is_away_is_worth_another_try() -> None:
    with pytest.raises(StorageUnavailableError), os_errors(Path("/store/a")):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_no_room_leaves_the_old_object_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.write("a", b"old")
    big = tmp_path / "big"
    big.write_bytes(b"x" * 100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # files cannot grow beyond it
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            store.write("a", b"x" * 100_000)
        with pytest.raises(StorageError, match="cannot be written"):
            store.upload(big, "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.read("a") == b"old"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]


def test_what_a_killed_writer_left_is_not_listed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    code = (
        "import os, sys; from pathlib import Path; from training.storage_files import staged\n"
        "with staged(Path(sys.argv[1], 'a')) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert store.list() == []
    store.write("a", b"whole", if_absent=True)
    assert store.read("a") == b"whole"


def test_deleting_the_last_object_of_a_folder_deletes_the_folder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.write("checkpoints/step-00000001/manifest.json", b"{}")
    store.write("checkpoints/step-00000002/manifest.json", b"{}")
    store.delete(["checkpoints/step-00000001/manifest.json"])
    names = [path.name for path in (tmp_path / "store" / "checkpoints").iterdir()]
    assert names == ["step-00000002"]
    store.delete(["checkpoints/step-00000002/manifest.json"])
    assert list((tmp_path / "store").iterdir()) == []
