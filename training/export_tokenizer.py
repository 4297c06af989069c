"""GPT-2's tokenizer as the files that transformers reads, made from tiktoken's vocabulary alone.

    vocab.json, merges.txt    OpenAI's own two files, told again
    tokenizer.json            the same as one, for the `tokenizers` library
    tokenizer_config.json     which class reads them, and the one special token
    special_tokens_map.json   that token again, for older versions

transformers writes bytes as printable characters (OpenAI's encoder.py, `bytes_to_unicode`). It
reads `<|endoftext|>` in a text as the special token, where training reads ordinary text.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from training.layout import write_atomic
from training.tokenizer import END_OF_TEXT, Gpt2Tokenizer

_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(0xAE, 0x100))
_UNPRINTABLE = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_CHARACTERS = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + n) for n, byte in enumerate(_UNPRINTABLE)
}
"""The character that stands for each byte."""


def write_tokenizer(tokenizer: Gpt2Tokenizer, folder: Path, *, block_size: int) -> None:
    """Everything that `AutoTokenizer.from_pretrained(folder)` needs. Raises OSError."""
    tokens = [tokenizer.bytes_of(token) for token in range(tokenizer.end_of_text)]
    vocabulary = {_spell(token): id for id, token in enumerate(tokens)}
    vocabulary[END_OF_TEXT] = tokenizer.end_of_text
    merges = [[_spell(first), _spell(second)] for first, second in find_merges(tokens)]
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": block_size,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_atomic(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
    write_json(folder / "vocab.json", vocabulary)
    write_json(folder / "tokenizer.json", _as_one_file(vocabulary, merges))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def find_merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """For each token of several bytes the two that it is made of; `tokens` in the order of ids.

    An id is also the rank of its merge, so that merging by the lower ranks leaves those two.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, len(tokens)) for a, b in pairwise(parts)]
            at = pairs.index(min(pairs))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value)) + b"\n")


def _spell(token: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


def _as_one_file(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    """As `tokenizers` saves a byte-level BPE."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    end_of_text = {"id": vocabulary[END_OF_TEXT], "content": END_OF_TEXT, "special": True}
    as_it_is = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end_of_text | as_it_is],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"trim_offsets": True},
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level | {"trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
