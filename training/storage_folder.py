"""A store in a folder of this machine, or of one that is mounted here."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from training.errors import ObjectExistsError, ObjectNotFoundError
from training.storage import StoredObject, check_key, check_prefix
from training.storage_files import is_temporary, os_errors, staged, verify


class FolderStorage:
    """Each object is a file. The folder is made by the first write."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder

    def read(self, key: str) -> bytes:
        with self._open(key) as file:
            return file.read()

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self._path(key)
        with os_errors(path):
            # A folder or a file in the way of the path's parents is no `FileExistsError` of ours.
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with staged(path, if_absent=if_absent) as temporary:
                    temporary.write_bytes(data)
            except FileExistsError as error:
                raise ObjectExistsError(f"{key} is already there") from error

    def upload(self, path: Path, key: str) -> None:
        target = self._path(key)
        with (
            os_errors(path),
            path.open("rb") as source,
            os_errors(target),
            staged(target) as temporary,
        ):
            _copy(source, temporary)

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        with self._open(key) as source, os_errors(path), staged(path) as temporary:
            _copy(source, temporary)
            verify(temporary, key, sha256)

    def list(self, prefix: str = "") -> list[StoredObject]:
        top = self._folder / check_prefix(prefix).rpartition("/")[0]
        with os_errors(self._folder):
            return sorted(
                (found for found in self._walk(top) if found.key.startswith(prefix)),
                key=lambda found: found.key,
            )

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            with os_errors(path), suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
                self._remove_empty(path.parent)

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    @contextmanager
    def _open(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with os_errors(path):
            try:
                file = path.open("rb")
            except (FileNotFoundError, IsADirectoryError) as error:
                raise ObjectNotFoundError(f"{key} is not in {self.url}") from error
            with file:
                yield file

    def _walk(self, top: Path) -> Iterator[StoredObject]:
        for folder, _, names in os.walk(top, onerror=_raise_unless_gone):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # deleted since it was listed
                    if not is_temporary(name):
                        key = path.relative_to(self._folder).as_posix()
                        yield StoredObject(key=key, size_bytes=path.stat().st_size)

    def _remove_empty(self, folder: Path) -> None:
        """A bucket has no empty folders, so a folder keeps none either."""
        with suppress(OSError):  # not empty: as it should be
            while folder != self._folder:
                folder.rmdir()
                folder = folder.parent


def _copy(source: BinaryIO, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(source, target)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
