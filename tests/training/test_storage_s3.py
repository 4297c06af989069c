"""What a bucket can refuse, told by a real server; and what only other servers say."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.s3_server import S3Server
from training.errors import ObjectNotFoundError, StorageError, StorageUnavailableError
from training.storage import S3Location, Storage, open_store
from training.storage_s3_errors import explain


def verbs(store: Storage, folder: Path) -> dict[str, Callable[[], object]]:
    """Every verb of the store, with what it needs."""
    source = folder / "source"
    source.write_bytes(b"x")
    return {
        "read": lambda: store.read("a"),
        "write": lambda: store.write("a", b"x"),
        "write if absent": lambda: store.write("a", b"x", if_absent=True),
        "upload": lambda: store.upload(source, "a"),
        "download": lambda: store.download("a", folder / "to" / "a"),
        "list": lambda: store.list(),
        "delete": lambda: store.delete(["a"]),
    }


def assert_all_raise(kind: type[StorageError], store: Storage, folder: Path, *, hint: str) -> None:
    for name, verb in verbs(store, folder).items():
        with pytest.raises(StorageError) as caught:
            verb()
        assert type(caught.value) is kind, name
        assert hint in caught.value.hint, name
    assert not (folder / "to" / "a").exists()


def test_a_missing_bucket_says_how_to_create_it(aws: S3Server, tmp_path: Path) -> None:
    store = open_store(f"s3://nobody-made-it/x?endpoint_url={aws.endpoint_url}")
    assert_all_raise(
        StorageError,
        store,
        tmp_path,
        hint=f"aws s3 mb s3://nobody-made-it --endpoint-url {aws.endpoint_url}",
    )


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_name_the_variables(
    aws: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    url = aws.url("storage", "wrong")
    monkeypatch.setenv(variable, "wrong")
    assert_all_raise(StorageError, open_store(url), tmp_path, hint="AWS_ACCESS_KEY_ID")


def test_no_credentials_name_the_variables(
    aws: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = aws.url("storage", "none")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_all_raise(StorageError, open_store(url), tmp_path, hint="AWS_ACCESS_KEY_ID")


def test_an_unknown_profile_names_the_variables(
    aws: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = aws.url("storage", "profile")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match="nobody") as caught:
        open_store(url)
    assert "AWS_PROFILE" in caught.value.hint


def test_an_endpoint_that_was_down_works_again(
    aws: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = open_store(aws.url("storage", "down"))
    store.write("before", b"kept")
    aws.stop()
    try:
        assert_all_raise(StorageUnavailableError, store, tmp_path, hint="endpoint_url")
    finally:
        aws.start()
    assert store.read("before") == b"kept"
    store.write("after", b"x")
    assert [found.key for found in store.list()] == ["after", "before"]


def test_the_endpoint_may_come_from_the_environment(
    aws: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.url("storage")
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
    store = open_store("s3://storage/environment")
    store.write("a", b"x")
    assert store.read("a") == b"x"


def test_more_objects_than_a_page_or_a_batch_holds(aws: S3Server) -> None:
    store = open_store(aws.url("storage", "many"))
    keys = [f"shard-{i:04}" for i in range(1001)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.write(key, b""), keys))
    assert [found.key for found in store.list()] == keys
    store.delete(keys)
    assert store.list() == []


def test_stores_of_one_bucket_do_not_see_each_other(aws: S3Server) -> None:
    store, neighbour = (open_store(aws.url("storage", f"near/{name}")) for name in ("a", "ab"))
    neighbour.write("x", b"theirs")
    assert store.list() == []
    with pytest.raises(ObjectNotFoundError):
        store.read("x")


@pytest.mark.parametrize(
    ("code", "status", "kind", "told"),
    [
        ("SlowDown", 503, StorageUnavailableError, "again"),
        ("InternalError", 500, StorageUnavailableError, "again"),
        ("", 502, StorageUnavailableError, "again"),
        ("TooManyRequests", 429, StorageUnavailableError, "again"),
        ("RequestTimeout", 400, StorageUnavailableError, "again"),
        ("ConditionalRequestConflict", 409, StorageUnavailableError, "again"),
        ("NotImplemented", 501, StorageError, "speaks S3"),
        ("AccessDenied", 403, StorageError, "s3:PutObject"),
        ("ExpiredToken", 400, StorageError, "AWS_SESSION_TOKEN"),
        ("RequestTimeTooSkewed", 403, StorageError, "clock"),
        ("AuthorizationHeaderMalformed", 400, StorageError, "AWS_DEFAULT_REGION"),
    ],
)
def test_an_answer_says_whether_to_try_again(
    code: str, status: int, kind: type[StorageError], told: str
) -> None:
    answer = ClientError(
        {
            "Error": {"Code": code, "Message": "as the server put it"},
            "ResponseMetadata": {"HTTPStatusCode": status},
        },
        "PutObject",
    )
    location = S3Location(bucket="bucket", prefix="", endpoint_url=None)
    error = explain(answer, location, "key")
    assert type(error) is kind
    assert "as the server put it" in error.message
    assert told in error.hint
