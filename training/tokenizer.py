"""Text to token ids and back: UTF-8 bytes, or GPT-2's byte-pair encoding by tiktoken.

Ids are uint16, as the shards hold them. A document is encoded without its end-of-text, and
text that looks like a special token ("<|endoftext|>") is encoded as the ordinary text it is.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from training.config import TOKENIZER_VOCAB
from training.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tiktoken import Encoding

END_OF_TEXT = "<|endoftext|>"

_UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()
_SPACE = r"[^\S\x1c-\x1f]"  # White_Space as tiktoken's engine has it; Python's \s has four more
_LONG_SPACE = re.compile(rf"({_SPACE}{{10000,}}(?={_SPACE}(?!{_SPACE}).))", re.DOTALL)


class Tokenizer(Protocol):
    name: str
    vocab_size: int
    end_of_text: int

    def encode(self, text: str) -> NDArray[np.uint16]:
        """Ids of `text`, (n,). What UTF-8 cannot hold (a lone surrogate) is read as "?"."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of any ids, never an error: what is no text becomes U+FFFD."""


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name` in a recipe.

    Raises ConfigError for a name there is none of, DataError where its vocabulary cannot be had.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return Gpt2Tokenizer(_load_gpt2())
    raise ConfigError(
        f"there is no tokenizer {name!r}",
        hint=f"data.tokenizer is one of {', '.join(TOKENIZER_VOCAB)}",
    )


class ByteTokenizer:
    """Each byte of the UTF-8 text is its own id; 256 ends a text."""

    name = "bytes"
    vocab_size = TOKENIZER_VOCAB["bytes"]
    end_of_text = 256

    def encode(self, text: str) -> NDArray[np.uint16]:
        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self._bytes_of, ids)).decode("utf-8", errors="replace")

    def _bytes_of(self, token: int) -> bytes:
        if token == self.end_of_text:
            return END_OF_TEXT.encode()
        return bytes([token]) if 0 <= token < self.end_of_text else _UNKNOWN


class Gpt2Tokenizer:
    """GPT-2's 50,257 ids, the last of which ends a text."""

    name = "gpt2"
    vocab_size = TOKENIZER_VOCAB["gpt2"]

    def __init__(self, encoding: "Encoding") -> None:
        self._encoding = encoding
        self.end_of_text = encoding.eot_token

    def encode(self, text: str) -> NDArray[np.uint16]:
        try:
            return self._encode_piece(text)
        except ValueError:
            # A lone surrogate, or a run of white space that is too deep for tiktoken's regular
            # expression. GPT-2 makes one piece of such a run but for its last character, so
            # that a cut there changes no id.
            pieces = _LONG_SPACE.split(_utf8(text).decode())
            return np.concatenate([self._encode_piece(piece) for piece in pieces])

    def _encode_piece(self, text: str) -> NDArray[np.uint16]:
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")

    def bytes_of(self, token: int) -> bytes:
        """What it stands for, which may be part of a character."""
        if not 0 <= token < self.vocab_size:
            return _UNKNOWN
        return self._encoding.decode_single_token_bytes(int(token))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")


def _load_gpt2() -> "Encoding":
    import tiktoken  # noqa: PLC0415 - byte-level runs need neither it nor its vocabulary

    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # network errors of requests are OSErrors
        raise DataError(
            f"GPT-2's vocabulary is neither in tiktoken's cache nor can it be downloaded: {error}",
            hint="let this machine reach openaipublic.blob.core.windows.net once, or set "
            "TIKTOKEN_CACHE_DIR to a folder that holds vocab.bpe and encoder.json as tiktoken "
            "caches them",
        ) from error
