"""The local files of every store: whole or absent, checked, and their errors in our words."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import ObjectDamagedError, StorageError, StorageUnavailableError
from training.layout import sha256_file

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_MAY_PASS = {errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN}


def is_temporary(name: str) -> bool:
    """True for what `staged` left behind where its process was killed."""
    return name.startswith(".") and name.endswith(".tmp")


@contextmanager
def staged(path: Path, *, if_absent: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` on leaving unless the block raises.

    The name is the thread's own, so that two of them may write the same file: the later wins.
    With `if_absent` the file appears whole or FileExistsError is raised, whoever else tries.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if if_absent:
            os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def verify(path: Path, key: str, sha256: str | None) -> None:
    """Raises ObjectDamagedError where `path`, fetched from `key`, is not what `sha256` says."""
    if sha256 is not None and (found := sha256_file(path)) != sha256:
        raise ObjectDamagedError(
            f"{key} is not what was stored: its sha256 is {found}, not {sha256}",
            hint="the stored copy is damaged or was changed; use an older checkpoint",
        )


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turns what the system refuses about `path` into StorageError or StorageUnavailableError."""
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


def _explain(error: OSError, path: Path) -> StorageError:
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        return StorageError(
            f"{path} cannot be written: {reason}", hint="free some space, or use another store"
        )
    if error.errno in _NOT_ALLOWED:
        return StorageError(
            f"{path} is not open to this user: {reason}",
            hint="use a folder that you may read and write, or change its permissions",
        )
    if error.errno in _IN_THE_WAY:
        return StorageError(
            f"{path} cannot be used: a file is where a folder should be, or the reverse",
            hint="use another folder, or move away what is in the way",
        )
    if error.errno in _MAY_PASS or isinstance(error, ConnectionError | TimeoutError):
        return StorageUnavailableError(
            f"{path} is out of reach: {reason}", hint="check the disk or the network it is on"
        )
    return StorageError(f"{path} cannot be used: {reason}", hint="check the path")
