"""Parquet files of text on this disk, as a source that can be read from any file on."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(path: Path, texts: Sequence[Any], *, group: int = 100, kind: Any = None) -> Path:
    """`texts` in the column `text`, beside a column of numbers; `group` rows in a row group."""
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, kind or pa.string())})
    pq.write_table(table, path, row_group_size=group, compression="snappy")
    return path


@dataclass
class LocalFiles:
    paths: Sequence[Path]
    revision: str = "1"
    column: str = "text"

    @property
    def files(self) -> list[str]:
        return [path.name for path in self.paths]

    def open(self, first: int) -> Generator[tuple[int, Path], None, None]:
        yield from list(enumerate(self.paths))[first:]
