"""Many texts to ids at once. gigatoken is the fast path, tiktoken in processes the fallback.

All encoders give the ids of `training.tokenizer`, which stays the reference.
"""

import base64
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from tempfile import NamedTemporaryFile
from threading import local
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.errors import DataError
from training.processes import PARENT_PID, end_with_parent
from training.tokenizer import Tokenizer, open_tokenizer

if TYPE_CHECKING:
    import gigatoken

Encoded = tuple[NDArray[np.uint16], NDArray[np.int64]]
"""(ids of all texts end to end, how many ids each text has)"""

MAX_WORKERS = 16
"""More would only wait for Python's lock, and encode a hundred times as fast as GPUs train."""


class BatchEncoder(Protocol):
    name: str
    """What does the work, as a user should read it."""
    workers: int

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Called from `workers` threads at once. No text is null; an empty one has no ids.

        Raises DataError where a process that does the work died.
        """

    def close(self) -> None: ...


def usable_workers() -> int:
    """One a core that this process may use, and no more than help."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)


def open_encoder(name: str, *, workers: int) -> BatchEncoder:
    """The fastest encoder there is for the tokenizer `name`.

    Raises ConfigError for a name there is none of, DataError where its vocabulary cannot be had.
    """
    reference = open_tokenizer(name)
    if name == "bytes":
        return ByteEncoder(workers)
    try:
        import gigatoken  # noqa: F401, PLC0415 - it may not be installed
    except ImportError:
        return TiktokenEncoder(workers)
    return GigatokenEncoder(reference, workers)


class ByteEncoder:
    """Arrow holds text as UTF-8 already, which is what the ids are."""

    name = "numpy"

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        _, offsets, data = texts.buffers()
        at = np.frombuffer(offsets, dtype=np.int64)[texts.offset :][: len(texts) + 1]
        utf8 = np.frombuffer(data or b"", dtype=np.uint8)[at[0] : at[-1]]
        return utf8.astype(np.uint16), np.diff(at)

    def close(self) -> None:
        pass


class GigatokenEncoder:
    """A tokenizer a thread: one shared by two threads makes them wait for each other."""

    name = "gigatoken"

    def __init__(self, reference: Tokenizer, workers: int) -> None:
        self.workers = workers
        self._ranks = _rank_file(reference)
        self._of_thread = local()

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        import awkward  # noqa: PLC0415 - gigatoken's own array type, as slow to load as it

        if not len(texts):
            return np.empty(0, dtype=np.uint16), np.empty(0, dtype=np.int64)
        found = self.tokenizer().encode_batch(awkward.from_arrow(texts), parallel=False).layout
        offsets = found.offsets.data
        ids = found.content.data[offsets[0] : offsets[-1]]
        return ids.astype(np.uint16), np.diff(offsets)

    def tokenizer(self) -> "gigatoken.Tokenizer":
        """This thread's own."""
        tokenizer: gigatoken.Tokenizer | None = getattr(self._of_thread, "tokenizer", None)
        if tokenizer is None:
            tokenizer = self._of_thread.tokenizer = _load_gigatoken(self._ranks)
        return tokenizer

    def close(self) -> None:
        pass


class TiktokenEncoder:
    """The reference itself, in processes, as most of its work holds Python's lock."""

    name = "tiktoken (gigatoken is not installed, which is many times as fast)"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin_worker,
            initargs=(os.getpid(),),
        )
        # All are started here, as the kernel ends them with the thread that did it.
        for started in [self._pool.submit(_encode_in_worker, []) for _ in range(workers)]:
            started.result()

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        try:
            return self._pool.submit(_encode_in_worker, texts.to_pylist()).result()
        except BrokenProcessPool as error:
            raise DataError(
                f"a process that tokenizes died: {error}",
                hint="most likely memory ran out: prepare again, with fewer workers",
            ) from error

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _rank_file(reference: Tokenizer) -> bytes:
    """GPT-2's vocabulary in the form that gigatoken reads: base64 and rank, a line each."""
    import tiktoken  # noqa: PLC0415 - `reference` has loaded it already

    encoding = tiktoken.get_encoding(reference.name)
    tokens = map(encoding.decode_single_token_bytes, range(reference.end_of_text))
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    return b"".join(lines)


def _load_gigatoken(ranks: bytes) -> "gigatoken.Tokenizer":
    """Without special tokens, so that text which looks like one is ordinary text."""
    import gigatoken  # noqa: PLC0415 - it may not be installed

    with NamedTemporaryFile(suffix=".tiktoken") as file:
        file.write(ranks)
        file.flush()
        return gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer="gpt2")


def _begin_worker(parent: int) -> None:
    os.environ[PARENT_PID] = str(parent)
    end_with_parent()


_tokenizer_of_worker = cache(open_tokenizer)


def _encode_in_worker(texts: list[str]) -> Encoded:
    tokenizer = _tokenizer_of_worker("gpt2")
    pieces = [tokenizer.encode(text) for text in texts]
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    return np.concatenate([np.empty(0, dtype=np.uint16), *pieces]), lengths
