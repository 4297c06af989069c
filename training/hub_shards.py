"""Shards that somebody has made and put on the Hub: llm.c's `.bin` files at one commit.

FineWeb's are `hub-shards:kjj0/fineweb10B-gpt2`. Each is brought with the size and the hash that
the Hub publishes, its header and its ids are checked, and it is removed once it is packed.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from training.config import TOKENIZER_VOCAB, DataConfig
from training.errors import DataError
from training.hub_source import HubFiles, require_pinned
from training.shards import Tokens, open_shard
from training.token_files import require_ids
from training.token_source import is_validation

if TYPE_CHECKING:
    from training.hub import HubFile

_PATTERN = "**/*.bin"


@dataclass(frozen=True)
class HubShards(HubFiles):
    """A `TokenSource`."""

    @property
    def revision(self) -> str:
        return self.commit

    @cached_property
    def _files(self) -> "list[HubFile]":
        from training.hub import list_files  # noqa: PLC0415

        found = list_files(self.repo, self.commit, _PATTERN)
        if all(is_validation(file.path) for file in found):
            raise DataError(
                f"{self.repo} has tokens for validation only at {self.commit}",
                hint="files without `val` in their names are for training",
            )
        return sorted(found, key=lambda file: not is_validation(file.path))

    @property
    def files(self) -> Sequence[str]:
        return [file.path for file in self._files]

    @property
    def val_files(self) -> int:
        return sum(map(is_validation, self.files))

    def open(self, first: int) -> Generator[tuple[int, Tokens], None, None]:
        with closing(self.fetch(self._files, first)) as paths:
            for number, path in paths:
                yield number, self._read(number, path)

    def _read(self, number: int, path: Path) -> Tokens:
        try:
            tokens = open_shard(path)
            require_ids(path, tokens, vocab_size=TOKENIZER_VOCAB["gpt2"])
        except DataError as error:
            raise DataError(
                f"{self.files[number]} of {self.repo}, as the Hub has it, is no shard of GPT-2's "
                f"tokens: {error.message}",
                hint="`hub-shards:` takes files in llm.c's format; `hub:owner/name` takes text",
            ) from error
        return tokens


def open_hub_shards(data: DataConfig) -> HubShards:
    """Raises DataError where the revision is none that stays the same."""
    require_pinned(data)
    assert data.hub_repo is not None
    return HubShards(repo=data.hub_repo, commit=data.revision)
