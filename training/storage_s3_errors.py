"""What S3 and boto3 raise, in our words: who can mend it, how, and whether to try again."""

from collections.abc import Iterator
from contextlib import contextmanager

from boto3.exceptions import Boto3Error, RetriesExceededError, S3UploadFailedError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from s3transfer.exceptions import S3DownloadFailedError

from training.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from training.storage import S3Location

_OUT_OF_REACH = (
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    RetriesExceededError,
    S3DownloadFailedError,  # replaced while it was read
)
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    SSOError,
    ProfileNotFound,
)
_WRONG_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
}
_MAY_PASS = {
    "InternalError",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ConditionalRequestConflict",
    "OperationAborted",
}
_CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary keys), "
    "or AWS_PROFILE"
)


@contextmanager
def s3_errors(location: S3Location, key: str = "") -> Iterator[None]:
    """Turns what boto3 raises about `key` into StorageError and its kinds."""
    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, S3DownloadFailedError) as error:
        raise explain(error, location, key) from error


def explain(error: Exception, location: S3Location, key: str) -> StorageError:
    """The error to raise in place of one of boto3, botocore or s3transfer."""
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, ClientError):
        error = error.__context__  # boto3 keeps only the text of the answer
    if isinstance(error, ClientError):
        return _explain_answer(error, location, key)
    if isinstance(error, _OUT_OF_REACH):
        return StorageUnavailableError(
            f"{_server(location)} cannot be reached: {error}",
            hint="check the network, and the address in endpoint_url or AWS_ENDPOINT_URL",
        )
    if isinstance(error, _NO_CREDENTIALS):
        return StorageError(
            f"no credentials for bucket {location.bucket}: {error}", hint=_CREDENTIALS_HINT
        )
    return StorageError(
        f"bucket {location.bucket} cannot be used: {error}", hint="check the AWS settings"
    )


def _explain_answer(error: ClientError, location: S3Location, key: str) -> StorageError:
    answer = error.response.get("Error", {})
    code = answer.get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    reason = f"{code}: {answer.get('Message', '')}".rstrip(": ")
    bucket = location.bucket
    if code == "NoSuchBucket":
        return StorageError(f"there is no bucket {bucket}", hint=_create_hint(location))
    if code in ("NoSuchKey", "404"):
        return ObjectNotFoundError(f"{key} is not in bucket {bucket}")
    if code == "PreconditionFailed":
        return ObjectExistsError(f"{key} is already there")
    if code in _WRONG_CREDENTIALS:
        return StorageError(
            f"{_server(location)} refused the credentials ({reason})", hint=_CREDENTIALS_HINT
        )
    if code in _MAY_PASS or status == 429 or (status >= 500 and status != 501):
        return StorageUnavailableError(
            f"{_server(location)} cannot answer now ({reason})", hint="try again in a while"
        )
    if code == "RequestTimeTooSkewed":
        return StorageError(
            f"{_server(location)} refused the request ({reason})",
            hint="this machine's clock is wrong: set it",
        )
    if status == 403 or code in ("AccessDenied", "403"):
        return StorageError(
            f"bucket {bucket} does not allow this ({reason})",
            hint="the key needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket; "
            "AWS_ACCESS_KEY_ID names the key in use",
        )
    return StorageError(
        f"{_server(location)} refused the request ({reason})",
        hint="check the bucket's region (AWS_DEFAULT_REGION), and that the server speaks S3",
    )


def _server(location: S3Location) -> str:
    return location.endpoint_url or f"the server of bucket {location.bucket}"


def _create_hint(location: S3Location) -> str:
    endpoint = f" --endpoint-url {location.endpoint_url}" if location.endpoint_url else ""
    return f"create it: `aws s3 mb s3://{location.bucket}{endpoint}`"
