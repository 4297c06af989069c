"""Text out of parquet files: a column, in batches, from any row on. Knows no tokens.

A row without text (null or empty) is no document; it keeps its place as an empty one, so that
rows are counted as in the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.errors import DataError

BATCH_BYTES = 2**20
"""Of text in a batch, on average: what fits a processor's caches, encoded in milliseconds."""
_MAX_BATCH_ROWS = 2**16
_READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Rows:
    """`texts` (n,), valid UTF-8 without nulls, from row `first` of the file number `file` on."""

    file: int
    first: int
    texts: pa.LargeStringArray


def read_rows(path: Path, column: str, *, file: int = 0, first: int = 0) -> Iterator[Rows]:
    """The rows of `column` from `first` on. Memory: some batches, whatever the row groups' size.

    Raises DataError for a file that is cut or no parquet, a column that it has not or that
    holds no text, and text that is not UTF-8.
    """
    with _naming(path), pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as parquet:
        _require_text(parquet.schema_arrow, column, path)
        groups, row = _groups_from(parquet.metadata, first)
        for batch in parquet.iter_batches(
            _batch_rows(parquet, column), groups, [column], use_threads=False
        ):
            texts = batch.column(0)[max(0, first - row) :]
            row += len(batch)
            if len(texts):
                yield Rows(file, row - len(texts), _clean(texts, row - len(texts), path))


def _require_text(schema: pa.Schema, column: str, path: Path) -> None:
    if column not in schema.names:
        raise DataError(
            f"{path.name} has no column {column!r}",
            hint=f"it has {', '.join(schema.names)}: name the one that holds the text",
        )
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string)):
        raise DataError(
            f"the column {column!r} of {path.name} holds {kind}, not text",
            hint=f"it has {', '.join(schema.names)}: name the one that holds the text",
        )


def _groups_from(metadata: pq.FileMetaData, first: int) -> tuple[list[int], int]:
    """The row groups that have a row from `first` on, and the row that they begin with."""
    row = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if first < row + rows:
            return list(range(group, metadata.num_row_groups)), row
        row += rows
    return [], row


def _batch_rows(parquet: pq.ParquetFile, column: str) -> int:
    """Rows that hold about BATCH_BYTES, by what the file says of its columns' sizes."""
    metadata = parquet.metadata
    index = parquet.schema_arrow.names.index(column)
    size_bytes: int = sum(
        metadata.row_group(group).column(index).total_uncompressed_size
        for group in range(metadata.num_row_groups)
    )
    rows: int = BATCH_BYTES * metadata.num_rows // max(1, size_bytes)
    return max(1, min(rows, _MAX_BATCH_ROWS))


def _clean(texts: pa.Array, first: int, path: Path) -> pa.LargeStringArray:
    texts = pc.cast(texts, pa.large_string())
    if texts.null_count:  # only then, as the first use of a scalar looks for pandas: half a second
        texts = texts.fill_null("")
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path.name} has text that is not UTF-8 (index 0 is row {first:,}): {error}",
            hint="leave the file out, or write it anew from text that is UTF-8",
        ) from error
    return texts


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a file into a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path.name} cannot be read as parquet: {error}",
            hint="it is cut, damaged or of another format: fetch it again, or leave it out",
        ) from error
