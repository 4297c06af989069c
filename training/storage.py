"""Where runs live: a folder or a bucket, behind six verbs.

Knows the protocol, the keys and the URLs. `storage_folder` and `storage_s3` implement it; boto3
is loaded only where a bucket is opened.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct

from training.errors import StorageError

ACCEPTED = "a store is a folder, `file:FOLDER`, or `s3://bucket/prefix[?endpoint_url=URL]`"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class StoredObject(Struct, frozen=True, kw_only=True):
    key: str
    size_bytes: int


class Storage(Protocol):
    """Named bytes under a prefix. Keys are relative, `/`-separated, and never escape the prefix.

    Every verb raises StorageUnavailableError for what may pass (network, 5xx, throttling),
    StorageError for what will not (credentials, missing bucket, read-only folder, full disk).
    One store may be used from several threads at once.
    """

    url: str
    """What `open_store` was given: no secret is part of it."""

    def read(self, key: str) -> bytes:
        """Raises ObjectNotFoundError."""

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """All of it or nothing. Raises ObjectExistsError where `if_absent` and it is there."""

    def upload(self, path: Path, key: str) -> None:
        """Store the file at `path`, of any size, all of it or nothing."""

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Write to `path`, all of it or nothing. Raises ObjectDamagedError if `sha256` differs."""

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Objects whose key starts with `prefix`, sorted by key."""

    def delete(self, keys: Iterable[str]) -> None:
        """What is already gone is no error."""


class S3Location(Struct, frozen=True, kw_only=True):
    """`endpoint_url` None leaves the server to boto3's own configuration."""

    bucket: str
    prefix: str
    endpoint_url: str | None


def open_store(url: str) -> Storage:
    """The store at a folder, `file:FOLDER`, or `s3://bucket/prefix[?endpoint_url=URL]`.

    Asks nothing of the store yet. Raises StorageError where `url` is none of these.
    """
    scheme = _SCHEME.match(url)
    if scheme and scheme[1] == "s3":
        # Imported here because boto3 takes as long to load as the rest of a command.
        from training.storage_s3 import S3Storage  # noqa: PLC0415

        return S3Storage(url, parse_s3_url(url))
    if scheme and scheme[1] != "file":
        raise StorageError(f"`{scheme[1]}:` is not a kind of store", hint=ACCEPTED)
    # Imported here because it imports this module.
    from training.storage_folder import FolderStorage  # noqa: PLC0415

    return FolderStorage(url, _parse_file_url(url) if scheme else _parse_folder(url))


def node_environment(url: str) -> dict[str, str]:
    """What a machine elsewhere needs in its environment to reach that store: secrets.

    Raises StorageError for a folder, which no other machine sees, and where there are none.
    """
    scheme = _SCHEME.match(url)
    if not scheme or scheme[1] != "s3":
        raise StorageError(
            f"{url} is a folder of this machine, which a rented one cannot reach",
            hint="keep the runs in a bucket: `--store s3://bucket/prefix`, or set GPTCTL_STORE",
        )
    from training.storage_s3 import read_credentials  # noqa: PLC0415

    return read_credentials(parse_s3_url(url))


def check_key(key: str) -> str:
    """`key` itself. Raises StorageError for one that is empty or could leave the prefix."""
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError(
            f"{key!r} is not a key of a store",
            hint="a key is a relative path such as `runs/ID/run.json`, without `.`, `..` or `//`",
        )
    return key


def check_prefix(prefix: str) -> str:
    """As `check_key`, for the start of a key: it may be empty, and may end in `/`."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def parse_s3_url(url: str) -> S3Location:
    """Raises StorageError, which never repeats what could be a secret."""
    if "@" in unquote(url):
        raise StorageError(
            "a store's URL must not carry a user name or a password: it is written to records",
            hint="give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    parts = _split(url)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise StorageError(f"{bucket!r} is not the name of a bucket", hint=ACCEPTED)
    if parts.fragment:
        raise StorageError("an s3 URL has no `#`", hint=ACCEPTED)
    check_prefix(prefix)
    endpoint_url = None
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name != "endpoint_url" or endpoint_url is not None:
            raise StorageError(f"an s3 URL takes no (other) `{name}`", hint=ACCEPTED)
        endpoint_url = _check_endpoint(value)
    return S3Location(bucket=bucket, prefix=prefix, endpoint_url=endpoint_url)


def _check_endpoint(url: str) -> str:
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise StorageError(
            "endpoint_url is not the address of a server",
            hint="it looks like `https://s3.example.com` or `http://127.0.0.1:9000`",
        )
    return url


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # read for its check
    except ValueError as error:
        raise StorageError(f"the store's URL cannot be read: {error}", hint=ACCEPTED) from error
    return parts


def _parse_file_url(url: str) -> Path:
    rest = url.removeprefix("file:")
    if rest.startswith("//"):
        host, slash, path = rest.removeprefix("//").partition("/")
        if host not in ("", "localhost"):
            raise StorageError(
                f"`file://{host}` would be another machine", hint="write `file:///FOLDER`"
            )
        rest = unquote(slash + path)
    return _parse_folder(rest)


def _parse_folder(folder: str) -> Path:
    if not folder.strip() or "\0" in folder:
        raise StorageError("the store has no name", hint=ACCEPTED)
    return Path(folder).expanduser().absolute()
