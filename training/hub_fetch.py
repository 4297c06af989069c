"""Brings files of a data set from the Hub, a few ahead of whoever reads them.

Plain HTTP with ranges, in huggingface_hub's session. Its own `hf_hub_download` is not used: it
repeats refused requests without hearing Retry-After, cannot be stopped in the middle of a file,
and with Xet begins a file anew after a kill.
"""

import hashlib
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from threading import Event

from training.errors import DataError
from training.hub import HubFile, open_file
from training.hub_asking import Asked, Patience, ask
from training.layout import sha256_file
from training.shards import translating_write_errors

PATIENCE = Patience(unreachable_s=360.0)
"""A network that fails while a machine trains is waited for longer than one that never was."""

_TRIES = 3
_PREFIX = "hub-"
_PART = ".part"


class _StoppedError(Exception):
    """Nobody waits for the file any more."""


def fetch_ahead(
    repo: str,
    commit: str,
    files: Sequence[HubFile],
    folder: Path,
    *,
    first: int = 0,
    ahead: int = 2,
    patience: Patience = PATIENCE,
) -> Generator[Path, None, None]:
    """Paths of `files[first:]`, in order, each whole and with the size and hash of the Hub.

    While one is read the next `ahead` are fetched, all at once; the first comes alone, as it is
    waited for. A file is removed when the next one is asked for, so that `folder` never holds
    more than `ahead` + 1. What was fetched of a file in an earlier life is used; what is not
    needed any more is removed. Close the iterator to stop fetching: files that were not read yet,
    and parts of files, stay for the next life.

    Raises DataError where a file cannot be had, or thrice is not what the Hub says; NoSpaceError.
    """
    wanted = [(file, folder / _local_name(commit, file)) for file in files[first:]]
    _clear(folder, {path.name for _, path in wanted[: ahead + 1]})
    stopped = Event()
    begun: list[Future[None]] = []

    with ThreadPoolExecutor(max(1, ahead), thread_name_prefix="fetch") as pool:

        def begin(count: int) -> None:
            for file, path in wanted[len(begun) : count]:
                begun.append(pool.submit(_fetch, repo, commit, file, path, patience, stopped))

        try:
            for index, (_, path) in enumerate(wanted):
                begin(index + 1)
                begun[index].result()
                begin(index + 1 + ahead)
                yield path
                path.unlink(missing_ok=True)
        finally:
            stopped.set()


def _local_name(commit: str, file: HubFile) -> str:
    """Files of one name from several folders, or commits, do not meet."""
    origin = hashlib.sha256(f"{commit}/{file.path}".encode()).hexdigest()[:16]
    return f"{_PREFIX}{origin}-{PurePosixPath(file.path).name}"


def _clear(folder: Path, kept: set[str]) -> None:
    """Make the folder, and remove what an earlier life left there that this one will not read."""
    with translating_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{_PREFIX}*"):
            if path.name.removesuffix(_PART) not in kept:
                path.unlink()


def _fetch(
    repo: str, commit: str, file: HubFile, path: Path, patience: Patience, stopped: Event
) -> None:
    """Have `file` at `path`, whole and checked."""
    part = path.with_name(path.name + _PART)

    def received() -> int:
        return part.stat().st_size if part.exists() else 0

    with translating_write_errors(part):
        if path.exists():
            path.replace(part)  # of an earlier life: checked again, as its machine may have crashed
        for _ in range(_TRIES):
            ask(
                lambda: _receive(repo, commit, file, part, stopped),
                Asked(repo=repo, revision=commit),
                patience,
                progress=received,
                wait=stopped.wait,
            )
            if received() == file.size_bytes and file.sha256 in (None, sha256_file(part)):
                part.replace(path)
                return
            part.unlink()
    raise DataError(
        f"{file.path} of {repo} arrived {_TRIES} times, and never was what the Hub says it is: "
        f"{file.size_bytes:,} bytes with sha256 {file.sha256 or 'unknown'}",
        hint="something between here and the Hub changes what it sends (a proxy?); try elsewhere",
    )


def _receive(repo: str, commit: str, file: HubFile, part: Path, stopped: Event) -> None:
    """Append to `part` what it lacks of the file."""
    with part.open("ab") as into:
        if stopped.is_set():
            raise _StoppedError
        if into.tell() >= file.size_bytes:
            return
        with open_file(repo, commit, file.path, first_byte=into.tell()) as answer:
            if answer.status_code != HTTPStatus.PARTIAL_CONTENT:
                into.truncate(0)  # it sends the file from its beginning
            for chunk in answer.iter_bytes():
                if stopped.is_set():
                    raise _StoppedError
                into.write(chunk)
