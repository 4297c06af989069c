"""Token shards in llm.c's `.bin` format, and the `dataset.json` that says which of them exist.

A shard is 256 little-endian int32 (magic, version, token count, zeros) and then that many
little-endian uint16 ids. Source: llm.c `dev/data/data_common.py`.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError, NoSpaceError
from training.layout import (
    DATASET_JSON,
    Dataset,
    Shard,
    encode,
    read_dataset,
    sha256_file,
    write_atomic,
)

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
TOKEN_BYTES = 2
MAX_TOKENS = 2**31 - 1

Split = Literal["val", "train"]
Tokens = NDArray[np.uint16]


def write_shard(path: Path, tokens: Tokens, *, split: Split) -> Shard:
    """Write `tokens` (n,) to `path`, all of them or nothing; returns its record.

    One writer at a time: the temporary file has a fixed name, so that what a killed writer
    left is overwritten by the next. Raises NoSpaceError, DataError.
    """
    if not 0 < tokens.size <= MAX_TOKENS:
        raise DataError(
            f"{path} cannot hold {tokens.size:,} tokens",
            hint=f"a shard holds 1 to {MAX_TOKENS:,}; choose another data.val_fraction",
        )
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens.size
    parts = header.tobytes(), np.ascontiguousarray(tokens, dtype="<u2").data.cast("B")
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.tmp")
    with translating_write_errors(path):
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
                    digest.update(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return Shard(
        name=path.name,
        split=split,
        tokens=tokens.size,
        size_bytes=_size_bytes(tokens.size),
        sha256=digest.hexdigest(),
    )


def open_shard(path: Path) -> Tokens:
    """The ids of the shard at `path`, (n,) uint16, mapped read-only: nothing is loaded yet.

    Raises DataError, naming the file, where its header and its size do not describe a shard.
    """
    try:
        size_bytes = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    if len(header) < HEADER_INTS:
        raise _damaged(path, f"{size_bytes:,} bytes are less than its header of {HEADER_BYTES:,}")
    magic, version, count = (int(value) for value in header[:3])
    if magic != MAGIC:
        raise _damaged(path, f"it begins with {magic}, not with {MAGIC}: no token shard")
    if version != VERSION:
        raise _damaged(path, f"its format has version {version}; version {VERSION} is known")
    if count < 1:
        raise _damaged(path, f"its header promises {count:,} tokens")
    if size_bytes != _size_bytes(count):
        raise _damaged(
            path,
            f"its header promises {count:,} tokens, {_size_bytes(count):,} bytes in all, "
            f"but it has {size_bytes:,}",
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def verify_shard(folder: Path, shard: Shard) -> None:
    """Raise DataError, naming the file, unless it is the one that was recorded."""
    path = folder / shard.name
    try:
        size_bytes = path.stat().st_size
        if size_bytes != shard.size_bytes:
            raise _damaged(path, f"it has {size_bytes:,} bytes, not {shard.size_bytes:,}")
        if sha256_file(path) != shard.sha256:
            raise _damaged(path, "its content is not what was written (sha256 differs)")
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error


def write_dataset(folder: Path, dataset: Dataset) -> None:
    """Replace `dataset.json` in one step. Raises NoSpaceError, DataError."""
    path = folder / DATASET_JSON
    with translating_write_errors(path):
        write_atomic(path, encode(dataset))


def verify_dataset(folder: Path) -> Dataset:
    """The data set in `folder`, complete or not, once every shard it names has been verified."""
    dataset = read_dataset(folder)
    if dataset is None:
        raise DataError(
            f"{folder} holds no {DATASET_JSON}",
            hint="prepare it: `python -m training.prepare`",
        )
    for shard in dataset.shards:
        verify_shard(folder, shard)
    return dataset


@contextmanager
def translating_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError on the way to `path` into NoSpaceError, or DataError for any other."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"the disk is full: {path} could not be written",
                hint="free some space, then prepare again: finished shards are kept",
            ) from error
        raise DataError(
            f"{path} could not be written: {error.strerror or error}",
            hint="check that the folder exists and that you may write to it",
        ) from error


def _size_bytes(tokens: int) -> int:
    return HEADER_BYTES + TOKEN_BYTES * tokens


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"token shard {path} cannot be used: {what}",
        hint="prepare the data again: damaged shards are rewritten, good ones kept",
    )
