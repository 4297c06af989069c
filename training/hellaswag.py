"""HellaSwag's examples as token ids, in llm.c's file format for multiple-choice questions.

256 little-endian int32 (magic, version, number of examples, bytes of the longest, zeros), then
each example as little-endian uint16: 65535, its own bytes, its index, its label, the number of
endings (4), and the context and each ending as a count and that many ids.
Source: llm.c `dev/data/data_common.py`, `write_evalfile`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError
from training.layout import FileEntry, write_atomic
from training.shards import HEADER_BYTES, HEADER_INTS, TOKEN_BYTES, translating_write_errors

FILE_NAME = "hellaswag_val.bin"
ENDINGS = 4
MAGIC = 20240522
VERSION = 1
_START = 0xFFFF
_HEAD_IDS = 5  # start, bytes, index, label, number of endings

Ids = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A context, four ways to go on, and which of them is right: ids (n,) uint16, none empty."""

    context: Ids
    endings: tuple[Ids, ...]
    label: int


def examples_path(datasets: Path, tokenizer: str) -> Path:
    """Where the examples lie: beside the data sets, once for each tokenizer."""
    return datasets / f"hellaswag-{tokenizer}" / FILE_NAME


def write_examples(path: Path, examples: Sequence[Example]) -> FileEntry:
    """Write `examples` to `path`, all or nothing. Raises NoSpaceError, DataError."""
    rows = [_pack(index, example) for index, example in enumerate(examples)]
    longest_bytes = TOKEN_BYTES * max((row.size for row in rows), default=0)
    if not rows or max(longest_bytes, len(rows)) > _START:
        raise DataError(
            f"{path} cannot hold {len(rows):,} examples, the longest of {longest_bytes:,} bytes",
            hint=f"it holds 1 to {_START:,} examples of at most {_START:,} bytes each",
        )
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:4] = MAGIC, VERSION, len(rows), longest_bytes
    data = header.tobytes() + np.concatenate(rows).astype("<u2").tobytes()
    with translating_write_errors(path):
        write_atomic(path, data)
    return FileEntry(name=path.name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_examples(path: Path, *, vocab_size: int) -> list[Example]:
    """The examples in `path`. Raises DataError, naming it, where it is missing or damaged."""
    try:
        return list(_unpack(path.read_bytes(), vocab_size))
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise DataError(
        f"HellaSwag's examples in {path} cannot be used: {reason}",
        hint="prepare the data again: the file is rendered anew where it is not whole",
    )


def _pack(index: int, example: Example) -> NDArray[np.int64]:
    """Wider than it is written, so that the writer sees a number that is too large for it."""
    parts = example.context, *example.endings
    counted = [np.concatenate([[part.size], part]) for part in parts]
    size = _HEAD_IDS + sum(part.size for part in counted)
    head = [_START, TOKEN_BYTES * size, index, example.label, len(example.endings)]
    return np.concatenate([head, *counted])


def _unpack(data: bytes, vocab_size: int) -> Iterator[Example]:
    """Raises ValueError, saying what is wrong with the bytes."""
    if len(data) < HEADER_BYTES or len(data) % TOKEN_BYTES:
        raise ValueError(f"{len(data):,} bytes are no header and whole ids")
    magic, version, count = np.frombuffer(data, dtype="<i4", count=3).tolist()
    if (magic, version) != (MAGIC, VERSION) or count < 1:
        raise ValueError(f"it begins with {magic}, {version}, {count}: no examples")
    stream = np.frombuffer(data, dtype="<u2", offset=HEADER_BYTES)
    for index in range(count):
        head = stream[:_HEAD_IDS].tolist()
        if len(head) < _HEAD_IDS:
            raise ValueError(f"it ends after {index:,} of {count:,} examples")
        start, size_bytes, number, label, endings = head
        row, stream = np.split(stream, [size_bytes // TOKEN_BYTES])
        parts = _split(row[_HEAD_IDS:])
        is_whole = (
            (start, number, endings) == (_START, index, ENDINGS)
            and label < ENDINGS
            and TOKEN_BYTES * row.size == size_bytes
            and len(parts) == 1 + ENDINGS
            and all(part.size and part.max() < vocab_size for part in parts)
        )
        if not is_whole:
            raise ValueError(f"its example {index:,} is none of {vocab_size:,} ids")
        yield Example(context=parts[0], endings=tuple(parts[1:]), label=label)
    if stream.size:
        raise ValueError(f"it goes on after its {count:,} examples")


def _split(row: Ids) -> list[Ids]:
    """The counted parts of a row; one that would go beyond it comes out empty."""
    parts = []
    while row.size:
        size = int(row[0])
        part, row = np.split(row[1:], [size])
        parts.append(part if part.size == size else part[:0])
    return parts
