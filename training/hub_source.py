"""Files of a data set on the Hub at one commit, brought as they are read: here parquet, for text.

The Hub's client takes a second to import, and only who reads such a data set needs it.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from training.config import DataConfig
from training.errors import DataError

if TYPE_CHECKING:
    from training.hub import HubFile

SAMPLES = {
    "sample-10BT": "sample/10BT/*.parquet",
    "sample-100BT": "sample/100BT/*.parquet",
    "sample-350BT": "sample/350BT/*.parquet",
}
"""Configs of FineWeb and FineWeb-Edu, known by heart: to ask takes `datasets` seconds."""


@dataclass(frozen=True)
class HubFiles:
    """A repository at a commit. Nothing is asked of the Hub before its files are."""

    repo: str
    commit: str
    folder: Path | None = field(default=None, kw_only=True)
    """Where files are put that are being read."""

    def fetch(
        self, files: "Sequence[HubFile]", first: int
    ) -> Generator[tuple[int, Path], None, None]:
        """(number, path) of each of `files` from `first` on, as `fetch_ahead` brings them."""
        from training.hub_fetch import fetch_ahead  # noqa: PLC0415

        assert self.folder is not None
        paths = fetch_ahead(self.repo, self.commit, files, self.folder, first=first)
        with closing(paths):
            yield from enumerate(paths, first)


@dataclass(frozen=True)
class HubText(HubFiles):
    """A `FileSource`."""

    config: str
    split: str
    column: str

    @property
    def revision(self) -> str:
        """The commit, and what is read of it."""
        return "/".join((self.commit, self.config or "default", self.split, self.column))

    @cached_property
    def _files(self) -> "list[HubFile]":
        from training.hub import list_files  # noqa: PLC0415
        from training.hub_configs import config_files  # noqa: PLC0415

        if self.repo.startswith("HuggingFaceFW/") and self.config in SAMPLES:
            return list_files(self.repo, self.commit, SAMPLES[self.config])
        return config_files(self.repo, self.commit, self.config, self.split)

    @property
    def files(self) -> Sequence[str]:
        return [file.path for file in self._files]

    def open(self, first: int) -> Generator[tuple[int, Path], None, None]:
        return self.fetch(self._files, first)


def require_pinned(data: DataConfig) -> None:
    """Raise DataError where the revision is none that stays the same."""
    if not data.is_pinned:
        raise DataError(
            f"{data.source} is at revision {data.revision or 'main'!r}, which may change",
            hint="name a commit in data.revision; `gptctl launch` does it where a branch is named",
        )


def open_hub(data: DataConfig) -> HubText:
    """Raises DataError as `require_pinned` does."""
    require_pinned(data)
    assert data.hub_repo is not None
    return HubText(
        repo=data.hub_repo,
        commit=data.revision,
        config=data.config or data.default_config,
        split=data.split,
        column=data.column,
    )
