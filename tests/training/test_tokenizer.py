import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from tests.gpt2_vocabulary import link_vocabulary
from training.config import TOKENIZER_VOCAB
from training.errors import ConfigError
from training.tokenizer import open_tokenizer

TEXT = "Hello, wörld!\n\n    def f(x): return '🜁'\t<|endoftext|> 2026 \u00a0"
with_gpt2 = pytest.mark.usefixtures("gpt2_vocabulary")


@with_gpt2
@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_text_comes_back_from_its_ids(name: str) -> None:
    tokenizer = open_tokenizer(name)
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == TEXT
    assert len(tokenizer.encode("")) == 0


@with_gpt2
@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_tokenizers_keep_to_the_vocabulary_of_the_recipe(name: str) -> None:
    tokenizer = open_tokenizer(name)
    assert tokenizer.name == name
    assert tokenizer.vocab_size == TOKENIZER_VOCAB[name]
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1


@with_gpt2
@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_end_of_text_in_a_document_is_ordinary_text(name: str) -> None:
    tokenizer = open_tokenizer(name)
    ids = tokenizer.encode("<|endoftext|>")
    assert len(ids) > 1
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


@with_gpt2
@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_any_ids_decode_to_something(name: str) -> None:
    tokenizer = open_tokenizer(name)
    assert tokenizer.decode(np.array([50303, -1, 300_000])).endswith("\ufffd")
    assert tokenizer.decode(tokenizer.encode("é")[:1]) in ("\ufffd", "é")


@with_gpt2
@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_a_lone_surrogate_is_read_as_a_question_mark(name: str) -> None:
    tokenizer = open_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode("a\udcffb")) == "a?b"


@given(st.text())
def test_bytes_are_those_of_utf8(text: str) -> None:
    assert bytes(open_tokenizer("bytes").encode(text).tolist()) == text.encode()


@with_gpt2
def test_gpt2_ids_are_those_of_tiktoken() -> None:
    expected = tiktoken.get_encoding("gpt2").encode_ordinary(TEXT)
    assert open_tokenizer("gpt2").encode(TEXT).tolist() == expected


@with_gpt2
def test_gpt2_encodes_runs_of_white_space_that_tiktoken_refuses() -> None:
    encoding = tiktoken.get_encoding("gpt2")
    text = "a \n" + " " * 2_000_000 + "word\x1c" + "\n" * 2_000_000 + "\x1cend"
    with pytest.raises(ValueError, match="stack"):
        encoding.encode_to_numpy(text, disallowed_special=())
    tokenizer = open_tokenizer("gpt2")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@with_gpt2
@pytest.mark.parametrize("after", ["word", "\x1c", "\n"])
def test_a_cut_in_a_long_run_of_white_space_changes_no_id(after: str) -> None:
    text = "before" + "\t " * 10_000 + after
    expected = tiktoken.get_encoding("gpt2").encode_ordinary(text)
    # A lone surrogate takes the path by which long runs are cut.
    ids = open_tokenizer("gpt2").encode(text + "\n.\udcff").tolist()
    assert ids[: len(expected) - 1] == expected[:-1]


def test_an_unknown_tokenizer_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="sentencepiece") as caught:
        open_tokenizer("sentencepiece")
    assert caught.value.hint == "data.tokenizer is one of bytes, gpt2"


def test_a_vocabulary_out_of_reach_says_where_to_put_it(tmp_path: Path) -> None:
    told = open_without_network(tmp_path)
    assert "neither in tiktoken's cache nor can it be downloaded" in told
    assert "TIKTOKEN_CACHE_DIR" in told


@pytest.mark.parametrize("index", [0, 1])
def test_a_vocabulary_that_fails_its_hash_is_never_used(tmp_path: Path, index: int) -> None:
    link_vocabulary(tmp_path)
    assert open_without_network(tmp_path) == ""
    file = sorted(tmp_path.iterdir())[index]
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.unlink()
    file.write_bytes(damaged)
    assert "can it be downloaded" in open_without_network(tmp_path)


def open_without_network(cache: Path) -> str:
    """What is said of GPT-2's vocabulary where only `cache` may have it; nothing where it has."""
    program = (
        "from training.tokenizer import open_tokenizer\n"
        "from training.errors import DataError\n"
        "try: open_tokenizer('gpt2')\n"
        "except DataError as error: print(error.message, error.hint)\n"
    )
    env = {**os.environ, "TIKTOKEN_CACHE_DIR": str(cache), "https_proxy": "http://127.0.0.1:9"}
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        env.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
