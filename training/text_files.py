"""Where text of the user's own lies."""

from collections.abc import Iterator
from contextlib import contextmanager
from glob import iglob
from pathlib import Path

from training.errors import DataError


def find_files(where: Path) -> list[Path]:
    """The file, all files below the folder, or those that match the glob; sorted.

    Raises DataError where it may not be read.
    """
    with translating_read_errors(where):
        if where.is_file():
            return [where]
        below = where.rglob("*") if where.is_dir() else None
        matches = map(Path, iglob(str(where), recursive=True))  # noqa: PTH207 - also absolute ones
        return sorted(path for path in below or matches if path.is_file())


@contextmanager
def translating_read_errors(path: Path) -> Iterator[None]:
    """Raises DataError for what the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="check that it is there and that you may read it",
        ) from error
