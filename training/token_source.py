"""What sources of ready-made tokens are to preparation: files of ids, those of validation first."""

import re
from collections.abc import Generator, Sequence
from pathlib import PurePath
from typing import Protocol, runtime_checkable

from training.shards import Tokens

_VALIDATION = re.compile(r"(^|[^a-z])val(id|idation)?([^a-z]|$)")


@runtime_checkable
class TokenSource(Protocol):
    """Token ids in files, the same ones in the same order always, those of validation first."""

    @property
    def revision(self) -> str: ...

    @property
    def files(self) -> Sequence[str]:
        """Their names, for people."""

    @property
    def val_files(self) -> int:
        """How many files, from the first on, are for validation."""

    def open(self, first: int) -> Generator[tuple[int, Tokens], None, None]:
        """(number, ids) of each file from `first` on, ids of (n,) that the vocabulary has.

        Closed when no more is wanted. Raises DataError where a file cannot be had or used.
        """


def is_validation(name: str) -> bool:
    """Whether a file of this name is for validation: `fineweb_val_000000.bin`, not `valley.bin`."""
    return _VALIDATION.search(PurePath(name).stem.lower()) is not None
