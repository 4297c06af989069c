"""Files of token ids → runs of tokens that fill shards.

Memory: one shard, and what the files of validation hold; other files are mapped. The tokens are
the same from any `Position` on, of which only `file` and `tokens`, those of the file, are used.
"""

from collections.abc import Generator
from contextlib import closing
from itertools import islice

import numpy as np

from training.layout import Position
from training.pipeline import Packed
from training.token_source import TokenSource


def pack_tokens(
    source: TokenSource, *, shard_tokens: int, start: Position
) -> Generator[Packed, None, None]:
    """What is for validation in one run, all else in runs of `shard_tokens`, from `start` on.

    Each is valid until the next is asked for.
    """
    buffer, filled, position = np.empty(shard_tokens, dtype=np.uint16), 0, start
    with closing(source.open(start.file)) as files:
        if source.val_files and start == Position():
            validation = [tokens for _, tokens in islice(files, source.val_files)]
            yield Packed(np.concatenate(validation), Position(file=source.val_files))
        for file, tokens in files:
            at = start.tokens if file == start.file else 0
            while at < len(tokens):
                taken = tokens[at : at + shard_tokens - filled]
                buffer[filled : filled + len(taken)] = taken
                filled += len(taken)
                at += len(taken)
                ends = at == len(tokens)
                position = Position(file=file + 1) if ends else Position(file=file, tokens=at)
                if filled == shard_tokens:
                    yield Packed(buffer, position)
                    filled = 0
    if filled:
        yield Packed(buffer[:filled], position)
