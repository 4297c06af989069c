"""Tokens that the user brings ready made: shards of llm.c, nanoGPT's and build-nanogpt's files.

- `.bin` of llm.c and modded-nanogpt, and our own: a header of 1024 bytes (see `shards`), uint16.
- `.bin` of nanoGPT (`train.bin`, `val.bin`): uint16 and nothing else.
- `.npy` of build-nanogpt: one row of uint16.

Every file is read through once when it is opened, so that ids no model of the vocabulary has
are found before anything is trained, and equal tokens have an equal revision in any format.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from glob import iglob
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from training.config import TOKEN_SUFFIXES
from training.errors import DataError
from training.shards import MAGIC, Tokens, open_shard
from training.token_source import is_validation

PIECE_TOKENS = 2**22
"""8 MiB: what of a file is looked at at a time."""

_LLAMA_MAGIC = 20240801
"""llm.c's shards of Llama 3's tokens, which are uint32."""
_META = "meta.pkl"
"""Where nanoGPT keeps the vocabulary of characters that its own ids stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFiles:
    """A `TokenSource`. In the order of their names, but those of validation come first."""

    revision: str
    paths: tuple[Path, ...]
    val_files: int
    vocab_size: int

    @property
    def files(self) -> Sequence[str]:
        return [path.name for path in self.paths]

    def open(self, first: int) -> Generator[tuple[int, Tokens], None, None]:
        """Of ids that are mapped, and not loaded.

        Raises DataError for a file that has been cut, or replaced by something else, since.
        """
        for number, path in enumerate(self.paths[first:], first):
            tokens = open_tokens(path)
            require_ids(path, tokens, vocab_size=self.vocab_size)
            yield number, tokens


def open_token_files(where: str, *, vocab_size: int) -> TokenFiles:
    """The files at `where`, a file, a folder or a glob, every id of them below `vocab_size`.

    The revision follows from the tokens alone. Raises DataError, naming the file, for what is
    no such file, is cut, holds ids beyond the vocabulary, or leaves nothing to train on.
    """
    digest = hashlib.sha256()
    found = find_token_files(Path(where).expanduser())
    paths = sorted(found, key=lambda path: not is_validation(path.name))
    for path in paths:
        tokens = open_tokens(path)
        split = "val" if is_validation(path.name) else "train"
        digest.update(f"{split} {len(tokens)} ".encode())
        for piece in check_ids(path, tokens, vocab_size=vocab_size):
            digest.update(np.ascontiguousarray(piece, dtype="<u2").data)
    val_files = sum(is_validation(path.name) for path in paths)
    if val_files == len(paths):
        raise DataError(
            f"{where} holds tokens for validation only: {', '.join(path.name for path in paths)}",
            hint="name the folder that has those for training, too",
        )
    return TokenFiles(
        revision=digest.hexdigest()[:16],
        paths=tuple(paths),
        val_files=val_files,
        vocab_size=vocab_size,
    )


def open_tokens(path: Path) -> Tokens:
    """The ids of the file at `path`, (n,) uint16, mapped: nothing is loaded yet.

    Raises DataError, naming the file, where it is in none of the formats, empty or cut.
    """
    try:
        if path.suffix == ".npy":
            tokens = _open_npy(path)
        elif path.suffix == ".bin":
            tokens = open_shard(path) if _magic(path) == MAGIC else _open_raw(path)
        else:
            raise _useless(path, f"it is no {' or '.join(TOKEN_SUFFIXES)} file")
    except OSError as error:
        raise _useless(path, error.strerror or str(error)) from error
    if not len(tokens):
        raise _useless(path, "it is empty")
    return tokens


def check_ids(path: Path, tokens: Tokens, *, vocab_size: int) -> Iterator[Tokens]:
    """`tokens` piece by piece. Raises DataError at the first that holds an unknown id."""
    for start in range(0, len(tokens), PIECE_TOKENS):
        piece = tokens[start : start + PIECE_TOKENS]
        if (largest := int(piece.max())) >= vocab_size:
            at = start + int(np.argmax(piece >= vocab_size))
            raise _useless(
                path,
                f"token {at:,} is {tokens[at]}, and there are ids up to {largest} where the "
                f"tokenizer has {vocab_size:,}",
            )
        yield piece


def require_ids(path: Path, tokens: Tokens, *, vocab_size: int) -> None:
    """Raise DataError unless all of `tokens` are ids that the vocabulary has."""
    deque(check_ids(path, tokens, vocab_size=vocab_size), maxlen=0)


def find_token_files(where: Path) -> list[Path]:
    """The file, those in the folder, or those that match the glob; sorted. Raises DataError."""
    try:
        found = list(where.iterdir()) if where.is_dir() else []
        if where.is_file():
            found = [where]
        elif not found:
            found = [Path(name) for name in iglob(str(where), recursive=True)]  # noqa: PTH207
    except OSError as error:
        raise _useless(where, error.strerror or str(error)) from error
    files = sorted(p for p in found if p.suffix in TOKEN_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(
            f"there are no token files at {where}",
            hint="shards of llm.c (.bin), train.bin and val.bin of nanoGPT, or .npy of "
            "build-nanogpt; text is taken as it is, and tokenized",
        )
    return files


def _magic(path: Path) -> int | None:
    with path.open("rb") as file:
        head = file.read(4)
    return int.from_bytes(head, "little") if len(head) == 4 else None


def _open_raw(path: Path) -> Tokens:
    """nanoGPT's: as many ids as there is room for. What else has this suffix is told apart."""
    size_bytes = path.stat().st_size
    if _magic(path) == _LLAMA_MAGIC:
        raise _useless(path, "it holds Llama 3's tokens, of 32 bits each")
    if (path.parent / _META).exists():
        raise _useless(
            path, f"{_META} beside it says that its ids are of a vocabulary of its own, not GPT-2's"
        )
    if size_bytes % 2:
        raise _useless(path, f"{size_bytes:,} bytes are no whole number of uint16: it has been cut")
    if not size_bytes:
        raise _useless(path, "it is empty")
    tokens = np.memmap(path, dtype="<u2", mode="r")
    if len(tokens) >= 64 and not tokens[1:PIECE_TOKENS:2].any():
        raise _useless(path, "every other uint16 is 0: it holds ids of 32 bits")
    return tokens


def _open_npy(path: Path) -> Tokens:
    try:
        tokens = open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:  # what numpy raises for a cut or a foreign file
        raise _useless(path, str(error)) from error
    if tokens.ndim != 1 or tokens.dtype != np.uint16:
        shape = " x ".join(map(str, tokens.shape))
        raise _useless(path, f"it holds {shape} {tokens.dtype}, not one row of uint16")
    return tokens


def _useless(path: Path, what: str) -> DataError:
    return DataError(
        f"token file {path} cannot be used: {what}",
        hint="bring the file again, or the text that it was made of: `--data PATH`",
    )
