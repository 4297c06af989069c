"""Parquet files → runs of tokens that fill shards: reading ∥ encoding ∥ packing ∥ writing.

One thread reads ahead, `workers` encode, one packs, and the caller writes what it gets. They are
threads, as pyarrow, gigatoken, numpy and hashlib let go of Python's lock while they work.

Memory: two shards (the one that is written and the one that is filled), `2 * workers + 2`
batches of about a MiB of text with their ids, and what the encoder holds; a document that is
larger than a batch is held as a whole. Nothing grows with the number of files or shards.

The tokens are the same with any number of workers, and from any `Position` on.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from training.encode import BatchEncoder
from training.errors import DataError
from training.layout import Position
from training.rows import Rows, read_rows
from training.shards import Tokens
from training.tokenizer import Tokenizer

CHECK_EVERY = 256
"""Every row of a file whose number is a multiple of it is encoded by the reference as well."""

T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class FileSource(Protocol):
    """Text in the column `column` of parquet files, the same ones in the same order always."""

    @property
    def revision(self) -> str: ...

    @property
    def files(self) -> Sequence[str]:
        """Their names, for people."""

    @property
    def column(self) -> str: ...

    def open(self, first: int) -> Generator[tuple[int, Path], None, None]:
        """(number, path) of each file from `first` on; a path is valid until the next is asked for.

        Closed when no more is wanted. Raises DataError where a file cannot be had.
        """


class Packed(NamedTuple):
    """A shard's tokens, and where the one after it begins."""

    tokens: Tokens
    next: Position


@dataclass(frozen=True, slots=True)
class Documents:
    """A batch of rows as tokens: an end-of-text before each document, nothing for an empty row."""

    rows: Rows
    ids: Tokens
    ends: NDArray[np.int64]
    """(n,): where each row's tokens end in `ids`."""

    def begin(self, index: int) -> int:
        return int(self.ends[index - 1]) if index else 0

    def position_after(self, tokens: int) -> Position:
        """Where reading goes on after the first `tokens` ≥ 1 of `ids`.

        It follows from the last of these tokens alone, and not from where a batch ends.
        """
        index = int(np.searchsorted(self.ends, tokens, side="left"))
        row = self.rows.first + index
        if self.ends[index] == tokens:
            return Position(file=self.rows.file, row=row + 1)
        return Position(file=self.rows.file, row=row, tokens=tokens - self.begin(index))


def pack_files(
    source: FileSource,
    encoder: BatchEncoder,
    reference: Tokenizer,
    *,
    shard_tokens: int,
    start: Position,
) -> Generator[Packed, None, None]:
    """Tokens from `start` on in runs of `shard_tokens`, the last of what is left.

    The document in which a shard begins, and all rows that CHECK_EVERY divides, are encoded by
    `reference` too. Raises DataError where the two differ, before a shard with such a document
    is given out, and where a file cannot be had or read. Close it to end its threads early.
    """

    def check(documents: Documents, index: int) -> None:
        _check(documents, index, reference, encoder.name, source.files[documents.rows.file])

    def encode(rows: Rows) -> Documents:
        documents = _with_ends(rows, *encoder.encode(rows.texts), reference.end_of_text)
        for index in range(-rows.first % CHECK_EVERY, len(documents.ends), CHECK_EVERY):
            check(documents, index)
        return documents

    stop = Event()
    rows = _one_ahead(_read(source, start))
    batches = _map_ahead(encode, rows, encoder.workers)
    wanted = takewhile(lambda _: not stop.is_set(), batches)
    with closing(rows), closing(batches):
        yield from _one_ahead(_pack(wanted, shard_tokens, start.tokens, check), stop)


def _read(source: FileSource, start: Position) -> Generator[Rows, None, None]:
    with closing(source.open(start.file)) as files:
        for file, path in files:
            first = start.row if file == start.file else 0
            yield from read_rows(path, source.column, file=file, first=first)


def _with_ends(rows: Rows, ids: Tokens, lengths: NDArray[np.int64], end_of_text: int) -> Documents:
    is_document = lengths > 0
    begins = np.cumsum(lengths) - lengths
    ids = np.insert(ids, begins[is_document], end_of_text)
    return Documents(rows, ids, np.cumsum(lengths + is_document))


def _check(documents: Documents, index: int, reference: Tokenizer, encoder: str, file: str) -> None:
    text = documents.rows.texts[index].as_py()
    ids = documents.ids[documents.begin(index) : documents.ends[index]]
    expected = np.append(np.uint16(reference.end_of_text), reference.encode(text))
    expected = expected if text else expected[:0]
    if np.array_equal(ids, expected):
        return
    shared = min(len(ids), len(expected))
    at = int(np.argmin(np.append(ids[:shared] == expected[:shared], False)))
    raise DataError(
        f"{encoder} and the reference disagree on row {documents.rows.first + index:,} of {file}, "
        f"from token {at:,} on: after {reference.decode(expected[1:at][-20:])!r} "
        f"come {ids[at:][:5].tolist()}, and {expected[at:][:5].tolist()} by the reference; "
        f"the document begins {text[:80]!r}",
        hint="nothing wrong was written; uninstall gigatoken to go on with tiktoken, and report it",
    )


def _pack(
    batches: Iterator[Documents],
    shard_tokens: int,
    skip: int,
    check: Callable[[Documents, int], None],
) -> Generator[Packed, None, None]:
    """`skip` tokens of the first document belong to an earlier shard."""
    buffer, filled, position = np.empty(shard_tokens, dtype=np.uint16), 0, Position()
    for documents in batches:
        at, skip = skip, 0
        while at < len(documents.ids):
            if not filled:
                check(documents, int(np.searchsorted(documents.ends, at, side="right")))
            taken = documents.ids[at : at + shard_tokens - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            at += len(taken)
            position = documents.position_after(at)
            if filled == shard_tokens:
                yield Packed(buffer, position)
                buffer, filled = np.empty(shard_tokens, dtype=np.uint16), 0
    if filled:
        yield Packed(buffer[:filled], position)


def _one_ahead(
    items: Generator[T, None, None], stop: Event | None = None
) -> Generator[T, None, None]:
    """The same items; a thread makes the next one while the caller has one.

    Closing waits for that thread; `stop` is set before, to tell it that nobody does.
    """
    pool = ThreadPoolExecutor(1)
    try:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
    finally:
        if stop:
            stop.set()
        pool.shutdown()
        items.close()


def _map_ahead(
    function: Callable[[T], R], items: Iterator[T], workers: int
) -> Generator[R, None, None]:
    """`map`, in order, by `workers` threads that are at most two items each ahead."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
