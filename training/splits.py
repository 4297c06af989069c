"""What shards are made of: validation first, then training, from a text or from files.

The token stream is, for each document, an end-of-text and then its tokens; documents run
across shards. Tokens that are ready made are taken as they are. A text is read anew from its
beginning, and the shards that exist are passed over; files are read on from where the last shard
says that the next begins.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice

import numpy as np

from training.config import DataConfig
from training.encode import open_encoder, usable_workers
from training.errors import ConfigError
from training.layout import Dataset, Position
from training.pipeline import FileSource, Packed, pack_files
from training.shards import Split, Tokens
from training.sources import Source, text_after, text_before
from training.token_packing import pack_tokens
from training.token_source import TokenSource
from training.tokenizer import Tokenizer, open_tokenizer

AnySource = Source | FileSource | TokenSource
SplitTokens = tuple[Split, Tokens, Position | None]
"""A shard to be written, and where the next begins."""


def missing_shards(
    source: AnySource,
    data: DataConfig,
    dataset: Dataset,
    workers: int | None,
    say: Callable[[str], None],
) -> Generator[SplitTokens, None, None]:
    """The shards after those that `dataset` names."""
    if isinstance(source, FileSource | TokenSource):
        yield from _split_files(source, data, dataset, workers or usable_workers(), say)
    else:
        pieces = _split_tokens(source, open_tokenizer(data.tokenizer), data)
        for split, tokens in islice(pieces, len(dataset.shards), None):
            yield split, tokens, None


def _split_files(
    source: FileSource | TokenSource,
    data: DataConfig,
    dataset: Dataset,
    workers: int,
    say: Callable[[str], None],
) -> Generator[SplitTokens, None, None]:
    """Reads on where the last shard of `dataset` says that the next one begins."""
    if data.val_fraction:
        raise ConfigError(
            f"{data.source} has no end to take data.val_fraction={data.val_fraction} from",
            hint="leave it out: the first shard is for validation",
        )
    done = len(dataset.shards)
    start = dataset.shards[-1].next if done else Position()
    skip = 0 if start else done  # shards that do not say where they end: made again, not written
    if isinstance(source, TokenSource):
        packed = pack_tokens(source, shard_tokens=data.shard_tokens, start=start or Position())
    else:
        packed = _encode_files(source, data, start or Position(), workers, say)
    with closing(packed):
        for index, (tokens, following) in enumerate(packed, done - skip):
            if index >= done:
                yield "train" if index else "val", tokens, following


def _encode_files(
    source: FileSource,
    data: DataConfig,
    start: Position,
    workers: int,
    say: Callable[[str], None],
) -> Generator[Packed, None, None]:
    reference = open_tokenizer(data.tokenizer)
    with closing(open_encoder(data.tokenizer, workers=workers)) as encoder:
        say(f"tokenizing with {encoder.name}, {workers} at once, checked by the reference")
        size = data.shard_tokens
        packed = pack_files(source, encoder, reference, shard_tokens=size, start=start)
        with closing(packed):
            yield from packed


def _split_tokens(
    source: Source, tokenizer: Tokenizer, data: DataConfig
) -> Iterator[tuple[Split, Tokens]]:
    """Every shard's tokens in the order of writing, each valid until the next is asked for."""
    documents = source.documents()
    if data.val_fraction:
        cut = int(source.size_bytes * (1 - data.val_fraction))
        pieces = _encode(text_after(documents, cut), tokenizer)
        yield "val", np.concatenate([np.empty(0, dtype=np.uint16), *pieces])
        documents = text_before(source.documents(), cut)
        for tokens in _pack(_encode(documents, tokenizer), data.shard_tokens):
            yield "train", tokens
    else:
        for index, tokens in enumerate(_pack(_encode(documents, tokenizer), data.shard_tokens)):
            yield "train" if index else "val", tokens


def _encode(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[Tokens]:
    end_of_text = np.array([tokenizer.end_of_text], dtype=np.uint16)
    for document in documents:
        yield end_of_text
        yield tokenizer.encode(document)


def _pack(pieces: Iterable[Tokens], size: int) -> Iterator[Tokens]:
    """The same tokens in runs of `size`, the last of what is left; one buffer holds each."""
    buffer = np.empty(size, dtype=np.uint16)
    filled = 0
    for piece in pieces:
        rest = piece
        while len(rest):
            taken = rest[: size - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            rest = rest[len(taken) :]
            if filled == size:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]
