import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.encode import BatchEncoder, GigatokenEncoder, TiktokenEncoder, open_encoder
from training.errors import ConfigError, DataError
from training.tokenizer import open_tokenizer

TEXTS = [
    "Hello, wörld!\n\n    def f(x): return '🜁'\t<|endoftext|> 2026 \u00a0",
    "",
    "\x1c\x1d  \x85\u2028 x   \n\n",
    "DON'T don't 'S \u017f's e\u0301",
    " " * 50_000 + "end",
]


@pytest.fixture(params=["bytes", "gigatoken", "tiktoken"])
def encoder(
    request: pytest.FixtureRequest, gpt2_vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BatchEncoder]:
    if request.param == "tiktoken":
        monkeypatch.setitem(sys.modules, "gigatoken", None)  # as if it were not installed
    encoder = open_encoder("bytes" if request.param == "bytes" else "gpt2", workers=2)
    yield encoder
    encoder.close()


def as_reference(encoder: BatchEncoder, texts: list[str]) -> list[list[int]]:
    tokenizer = open_tokenizer("bytes" if encoder.name == "numpy" else "gpt2")
    return [tokenizer.encode(text).tolist() for text in texts]


def encode(encoder: BatchEncoder, texts: list[str]) -> list[list[int]]:
    ids, lengths = encoder.encode(pa.array(texts, pa.large_string()))
    assert ids.dtype == np.uint16
    assert lengths.dtype == np.int64
    return [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])]


def test_every_encoder_gives_the_ids_of_the_reference(encoder: BatchEncoder) -> None:
    assert encode(encoder, TEXTS) == as_reference(encoder, TEXTS)


def test_a_slice_of_a_batch_is_encoded_as_that_slice(encoder: BatchEncoder) -> None:
    ids, lengths = encoder.encode(pa.array(TEXTS, pa.large_string())[2:4])
    expected = as_reference(encoder, TEXTS[2:4])
    assert ids.tolist() == [token for piece in expected for token in piece]
    assert lengths.tolist() == [len(piece) for piece in expected]


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_has_no_ids(encoder: BatchEncoder, texts: list[str]) -> None:
    ids, lengths = encoder.encode(pa.array(texts, pa.large_string()))
    assert ids.tolist() == []
    assert lengths.tolist() == [0] * len(texts)


def test_several_threads_get_what_one_gets(encoder: BatchEncoder) -> None:
    batches = [[f"{text} {i}" for text in TEXTS[:4]] for i in range(20)]
    with ThreadPoolExecutor(encoder.workers) as pool:
        found = list(pool.map(lambda texts: encode(encoder, texts), batches))
    assert found == [as_reference(encoder, texts) for texts in batches]


def test_without_gigatoken_tiktoken_does_it_and_its_name_says_so(
    gpt2_vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(open_encoder("gpt2", workers=1), GigatokenEncoder)
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    encoder = open_encoder("gpt2", workers=1)
    assert isinstance(encoder, TiktokenEncoder)
    assert "tiktoken" in encoder.name
    assert "gigatoken is not installed" in encoder.name
    encoder.close()


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_gigatoken_and_tiktoken_agree_on_any_text() -> None:
    encoder = GigatokenEncoder(open_tokenizer("gpt2"), workers=1)
    # Letters of many scripts, and all that GPT-2's pattern treats in a way of its own.
    characters = st.one_of(
        st.characters(codec="utf-8"), st.sampled_from(" \n\t\r'\u2019stmdrevl0½\u0300")
    )

    @settings(max_examples=300)
    @given(st.lists(st.text(characters, min_size=1), min_size=1))
    def agree(texts: list[str]) -> None:
        assert encode(encoder, texts) == as_reference(encoder, texts)

    agree()


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_a_worker_that_dies_is_told_of() -> None:
    encoder = TiktokenEncoder(workers=2)
    for worker in workers_of(psutil.Process()):
        worker.kill()
    with pytest.raises(DataError, match="a process that tokenizes died"):
        encode(encoder, ["text"])
    encoder.close()


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_workers_end_with_a_killed_parent() -> None:
    program = (
        "import time\n"
        "from training.encode import TiktokenEncoder\n"
        "if __name__ == '__main__':\n"
        "    encoder = TiktokenEncoder(workers=2)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    workers = workers_of(psutil.Process(parent.pid))
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(worker.is_running() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_running() for worker in workers)


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="sentencepiece"):
        open_encoder("sentencepiece", workers=1)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children():
        with suppress(psutil.NoSuchProcess):  # or a zombie: what another test has left to be reaped
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found
