"""A store in a bucket of S3, or of a server that speaks its protocol.

With `storage_s3_errors`, the only module that knows boto3. A boto3 client may be shared by
threads, so one serves the uploads in the background and the small records in between.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, NoCredentialsError

from training.storage import S3Location, StoredObject, check_key, check_prefix
from training.storage_files import os_errors, staged, verify
from training.storage_s3_errors import s3_errors

DELETE_BATCH = 1000
"""Most keys that S3 takes in one DeleteObjects."""

_CLIENT = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"mode": "standard"},
    max_pool_connections=16,  # ten for a transfer, and some for reads and writes beside it
    # Integrity rests on signed payloads and our own sha256; many servers besides AWS cannot
    # read the trailing checksums that botocore adds by default.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
# Without "classic", boto3 changes its implementation, and its errors, by the machine it is on.
_TRANSFER = TransferConfig(preferred_transfer_client="classic")


def read_credentials(location: S3Location) -> dict[str, str]:
    """This machine's credentials, wherever boto3 found them, as environment variables."""
    with s3_errors(location):
        session = boto3.session.Session()
        found = session.get_credentials()
        if found is None:
            raise NoCredentialsError
        keys = found.get_frozen_credentials()
    named = {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token,
        "AWS_DEFAULT_REGION": session.region_name,
    }
    return {name: value for name, value in named.items() if value}


class S3Storage:
    """Keys under a prefix of one bucket, which must exist.

    Credentials, region and, where the URL names none, the endpoint are boto3's to find.
    """

    def __init__(self, url: str, location: S3Location) -> None:
        self.url = url
        self._location = location
        self._bucket = location.bucket
        self._root = f"{location.prefix}/" if location.prefix else ""
        with s3_errors(location):
            self._client = boto3.session.Session().client(
                "s3", endpoint_url=location.endpoint_url, config=_CLIENT
            )

    def read(self, key: str) -> bytes:
        name = self._name(key)
        with s3_errors(self._location, key):
            answer = self._client.get_object(Bucket=self._bucket, Key=name)
            with closing(answer["Body"]) as body:
                data: bytes = body.read()
        return data

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        name = self._name(key)
        with s3_errors(self._location, key):
            if if_absent:
                self._client.put_object(Bucket=self._bucket, Key=name, Body=data, IfNoneMatch="*")
            else:
                self._client.put_object(Bucket=self._bucket, Key=name, Body=data)

    def upload(self, path: Path, key: str) -> None:
        name = self._name(key)
        with os_errors(path), s3_errors(self._location, key):
            self._client.upload_file(str(path), self._bucket, name, Config=_TRANSFER)

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        name = self._name(key)
        with os_errors(path), s3_errors(self._location, key), staged(path) as temporary:
            try:
                self._client.download_file(self._bucket, name, str(temporary), Config=_TRANSFER)
            except ClientError as error:
                self._ask_why(error, name)
                raise
            verify(temporary, key, sha256)

    def list(self, prefix: str = "") -> list[StoredObject]:
        start = self._root + check_prefix(prefix)
        pages = self._client.get_paginator("list_objects_v2")
        with s3_errors(self._location, prefix):
            return sorted(
                (
                    StoredObject(key=found["Key"][len(self._root) :], size_bytes=found["Size"])
                    for page in pages.paginate(Bucket=self._bucket, Prefix=start)
                    for found in page.get("Contents", [])
                    if not found["Key"].endswith("/")  # a folder, as some tools mark them
                ),
                key=lambda found: found.key,
            )

    def delete(self, keys: Iterable[str]) -> None:
        names = iter([self._name(key) for key in keys])
        while batch := list(islice(names, DELETE_BATCH)):
            self._delete_batch(batch)

    def _delete_batch(self, names: Sequence[str]) -> None:
        with s3_errors(self._location, names[0]):
            answer = self._client.delete_objects(
                Bucket=self._bucket,
                Delete={"Objects": [{"Key": name} for name in names], "Quiet": True},
            )
            for refusal in answer.get("Errors", []):
                code, reason = refusal.get("Code", ""), refusal.get("Message", "")
                if code != "NoSuchKey":
                    raise ClientError({"Error": {"Code": code, "Message": reason}}, "DeleteObjects")

    def _name(self, key: str) -> str:
        return self._root + check_key(key)

    def _ask_why(self, error: ClientError, name: str) -> None:
        """Raises the reason of a refused HEAD, which comes without one: a GET has a body."""
        if error.operation_name == "HeadObject":
            answer = self._client.get_object(Bucket=self._bucket, Key=name, Range="bytes=0-0")
            answer["Body"].close()
