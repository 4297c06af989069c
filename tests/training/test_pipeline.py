import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiktoken

from tests.parquet_files import LocalFiles, write_parquet
from training import encode
from training.config import DataConfig
from training.encode import Encoded, open_encoder
from training.errors import ConfigError, DataError, NoSpaceError
from training.layout import Dataset, Position, Shard, read_dataset
from training.pipeline import CHECK_EVERY, pack_files
from training.prepare import prepare
from training.shards import open_shard, verify_dataset
from training.tokenizer import open_tokenizer

END = 256
HARD = [None, "", "", "a", "ß" * 700, None]
"""No document, several empty ones, and one that is larger than two shards."""


def make_texts(count: int, seed: int) -> list[str | None]:
    draw = random.Random(seed)
    texts = ["ab ç"[: draw.randrange(5)] * draw.randrange(60) for _ in range(count)]
    return [*texts[: count // 2], *HARD, *texts[count // 2 :]]


def make_files(folder: Path) -> LocalFiles:
    """Three files and one without rows, in row groups of different sizes."""
    folder.mkdir(exist_ok=True)
    texts = [*(make_texts(count, count) for count in (700, 40)), [], make_texts(300, 3)]
    return LocalFiles(
        [
            write_parquet(folder / f"{index}.parquet", rows, group=10 + 97 * index)
            for index, rows in enumerate(texts)
        ]
    )


def read_texts(source: LocalFiles) -> list[str]:
    import pyarrow.parquet as pq

    rows = [text for path in source.paths for text in pq.read_table(path)["text"].to_pylist()]
    return [text for text in rows if text]


def prepare_files(
    source: LocalFiles, folder: Path, *, on_shard: Any = lambda _: None, **changes: Any
) -> Dataset:
    options = {key: changes.pop(key) for key in ("workers", "say") if key in changes}
    fields = {"source": "hub:a/b", "tokenizer": "bytes", "shard_tokens": 500} | changes
    return prepare(
        DataConfig(**fields), folder, block_size=8, on_shard=on_shard, source=source, **options
    )


def read_tokens(folder: Path, dataset: Dataset) -> list[int]:
    return np.concatenate([open_shard(folder / shard.name) for shard in dataset.shards]).tolist()


def read_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def test_shards_hold_each_document_after_an_end_of_text_and_no_empty_one(tmp_path: Path) -> None:
    source = make_files(tmp_path / "in")
    dataset = prepare_files(source, tmp_path / "out")
    assert verify_dataset(tmp_path / "out") == dataset
    expected = [token for text in read_texts(source) for token in (END, *text.encode())]
    assert read_tokens(tmp_path / "out", dataset) == expected
    assert [shard.tokens for shard in dataset.shards[:-1]] == [500] * (len(expected) // 500)
    names = [shard.name for shard in dataset.shards]
    assert names[:2] == ["hub-a-b_val_000000.bin", "hub-a-b_train_000001.bin"]


def test_gpt2_shards_are_what_tiktoken_makes(tmp_path: Path, gpt2_vocabulary: Path) -> None:
    source = make_files(tmp_path / "in")
    dataset = prepare_files(source, tmp_path / "out", tokenizer="gpt2")
    tiktoken_ids = tiktoken.get_encoding("gpt2").encode_ordinary
    expected = [token for text in read_texts(source) for token in (50256, *tiktoken_ids(text))]
    assert read_tokens(tmp_path / "out", dataset) == expected


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("batch_bytes", [1, 1000, 2**20])
def test_bytes_do_not_depend_on_workers_or_batches(
    tmp_path: Path, workers: int, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_files(tmp_path / "in")
    prepare_files(source, tmp_path / "one", workers=1)
    monkeypatch.setattr("training.rows.BATCH_BYTES", batch_bytes)
    prepare_files(source, tmp_path / "two", workers=workers)
    assert read_files(tmp_path / "two") == read_files(tmp_path / "one")


def test_tiktoken_in_processes_makes_the_same_shards_and_says_that_it_does(
    tmp_path: Path, gpt2_vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, said = make_files(tmp_path / "in"), []
    prepare_files(source, tmp_path / "fast", tokenizer="gpt2", workers=2, say=said.append)
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    prepare_files(source, tmp_path / "slow", tokenizer="gpt2", workers=2, say=said.append)
    assert read_files(tmp_path / "slow") == read_files(tmp_path / "fast")
    assert said[0] == "tokenizing with gigatoken, 2 at once, checked by the reference"
    assert "tiktoken (gigatoken is not installed" in said[1]


def test_every_shard_says_where_the_next_begins(tmp_path: Path) -> None:
    source = make_files(tmp_path / "in")
    dataset = prepare_files(source, tmp_path / "out")
    tokens = read_tokens(tmp_path / "out", dataset)
    encoder, reference = open_encoder("bytes", workers=1), open_tokenizer("bytes")
    for done, shard in enumerate(dataset.shards, 1):
        assert shard.next is not None
        rest = pack_files(source, encoder, reference, shard_tokens=500, start=shard.next)
        assert [token for packed in rest for token in packed.tokens] == tokens[500 * done :]


class ReadsOn(LocalFiles):
    def open(self, first: int) -> Generator[tuple[int, Path], None, None]:
        self.opened = first
        yield from super().open(first)


def test_a_preparation_goes_on_in_the_file_where_it_was_cut(tmp_path: Path) -> None:
    files = make_files(tmp_path / "in")
    whole = prepare_files(files, tmp_path / "whole")
    in_last_file = next(i for i, s in enumerate(whole.shards) if s.next and s.next.file == 3)
    told: list[Shard] = []

    def cut(shard: Shard) -> None:
        told.append(shard)
        if len(told) == in_last_file + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_files(files, tmp_path / "cut", on_shard=cut)
    source = ReadsOn(files.paths)
    prepare_files(source, tmp_path / "cut", on_shard=told.append)
    assert source.opened == 3
    assert tuple(told) == whole.shards
    assert read_files(tmp_path / "cut") == read_files(tmp_path / "whole")


def test_any_number_of_interruptions_changes_no_byte(tmp_path: Path) -> None:
    source = make_files(tmp_path / "in")

    def interrupt(_: Shard) -> None:
        raise KeyboardInterrupt

    for workers in (1, 2, 3) * 100:
        try:
            prepare_files(source, tmp_path / "cut", on_shard=interrupt, workers=workers)
            break
        except KeyboardInterrupt:
            continue
    prepare_files(source, tmp_path / "whole")
    assert read_files(tmp_path / "cut") == read_files(tmp_path / "whole")


def test_shards_without_a_position_are_kept_and_made_again_unwritten(tmp_path: Path) -> None:
    source = make_files(tmp_path / "in")
    prepare_files(source, tmp_path / "out")
    before = read_files(tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    assert dataset is not None
    text = (tmp_path / "out" / "dataset.json").read_text()
    (tmp_path / "out" / "dataset.json").write_text(text.replace('"next"', '"unknown"'))
    (tmp_path / "out" / dataset.shards[5].name).write_bytes(b"damaged")
    again = prepare_files(source, tmp_path / "out")
    assert len(again.shards) == len(dataset.shards)
    after = read_files(tmp_path / "out")
    assert {n: b for n, b in after.items() if n.endswith("bin")} == {
        n: b for n, b in before.items() if n.endswith("bin")
    }


@dataclass
class Wrong:
    """Bytes, with an error in each document that begins with `text`."""

    text: str
    name = "a wrong encoder"
    workers = 2

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        ids, lengths = encode.ByteEncoder(1).encode(texts)
        for row, begin in enumerate(np.cumsum(lengths) - lengths):
            if texts[row].as_py().startswith(self.text):
                ids[begin + 5] += 1
        return ids, lengths

    def close(self) -> None:
        pass


@pytest.mark.parametrize("row", [0, CHECK_EVERY, 3 * CHECK_EVERY])
def test_a_wrong_document_of_the_sample_stops_it_before_its_shard(
    tmp_path: Path, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"document {i:04d}" for i in range(1000)]
    path = write_parquet(tmp_path / "a.parquet", texts)
    monkeypatch.setattr("training.splits.open_encoder", lambda *_, **__: Wrong(texts[row]))
    with pytest.raises(DataError, match=rf"row {row:,} of a\.parquet, from token 6 on") as caught:
        prepare_files(LocalFiles([path]), tmp_path / "out")
    assert "after 'docum' come [102," in caught.value.message
    assert f"'document {row:04d}'" in caught.value.message
    dataset = read_dataset(tmp_path / "out")
    assert dataset is None or sum(shard.tokens for shard in dataset.shards) <= 14 * row


def test_the_document_in_which_a_shard_begins_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"document {i:04d}" for i in range(200)]  # 14 tokens each, 500 a shard
    path = write_parquet(tmp_path / "a.parquet", texts)
    row = 1000 // 14
    monkeypatch.setattr("training.splits.open_encoder", lambda *_, **__: Wrong(texts[row]))
    with pytest.raises(DataError, match=rf"row {row} of a\.parquet"):
        prepare_files(LocalFiles([path]), tmp_path / "out")
    dataset = verify_dataset(tmp_path / "out")
    assert len(dataset.shards) <= 2


def test_a_part_for_validation_cannot_be_had_from_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0\.1"):
        prepare_files(make_files(tmp_path / "in"), tmp_path / "out", val_fraction=0.1)


def test_files_without_text_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [None, "", ""])
    with pytest.raises(DataError, match="0 tokens for validation"):
        prepare_files(LocalFiles([path]), tmp_path / "out")


def test_a_cut_file_keeps_the_shards_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.rows.BATCH_BYTES", 100)
    source = make_files(tmp_path / "in")
    last = source.paths[3]
    data = last.read_bytes()
    last.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"3\.parquet cannot be read"):
        prepare_files(source, tmp_path / "out")
    kept = verify_dataset(tmp_path / "out")
    last.write_bytes(data)
    told: list[Shard] = []
    prepare_files(source, tmp_path / "out", on_shard=told.append)
    assert kept.shards
    assert told[0].name.endswith(f"{len(kept.shards):06d}.bin")
    prepare_files(source, tmp_path / "clean")
    assert read_files(tmp_path / "out") == read_files(tmp_path / "clean")


def test_a_full_disk_ends_all_threads(tmp_path: Path, small_disk: Path) -> None:
    texts = [f"document {i:04d}" * 100 for i in range(2000)]
    source = LocalFiles([write_parquet(tmp_path / "a.parquet", texts)])
    before = threading.active_count()
    with pytest.raises(NoSpaceError, match="disk is full"):
        prepare_files(source, small_disk / "out", shard_tokens=100_000)
    assert threading.active_count() == before
    assert len(verify_dataset(small_disk / "out").shards) >= 3


def test_a_source_that_fails_is_heard_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.rows.BATCH_BYTES", 100)
    path = write_parquet(tmp_path / "a.parquet", [f"{i:>600}" for i in range(100)])

    class Fails(LocalFiles):
        is_closed = False

        def open(self, first: int) -> Generator[tuple[int, Path], None, None]:
            try:
                yield 0, path
                raise DataError("the network is gone")
            finally:
                self.is_closed = True

    source = Fails([path])
    with pytest.raises(DataError, match="network is gone"):
        prepare_files(source, tmp_path / "out")
    assert source.is_closed
    assert len(verify_dataset(tmp_path / "out").shards) > 100  # of 120


class Endless(LocalFiles):
    """Gives its one file again and again, and counts how often."""

    given = 0

    def open(self, first: int) -> Generator[tuple[int, Path], None, None]:
        while True:
            self.given += 1
            yield 0, self.paths[0]


def test_reading_stays_a_bounded_way_ahead_of_a_slow_writer(tmp_path: Path) -> None:
    source = Endless([write_parquet(tmp_path / "a.parquet", ["x" * 99] * 100)])  # 10,000 tokens
    encoder = open_encoder("bytes", workers=2)
    packed = pack_files(
        source, encoder, open_tokenizer("bytes"), shard_tokens=10_000, start=Position()
    )
    for _ in range(5):
        next(packed)
        time.sleep(0.2)
    # 5 given out, 1 packed, 4 encoded or waiting for it, 1 being packed, 2 read.
    assert source.given <= 13
    packed.close()


PEAK = """
import sys
from pathlib import Path
from tests.parquet_files import LocalFiles
from tests.training.test_pipeline import prepare_files

if __name__ == "__main__":
    path, out, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    dataset = prepare_files(LocalFiles([path] * times), out, shard_tokens=2_000_000, workers=2)
    status = Path("/proc/self/status").read_text()  # getrusage begins with the parent's peak
    peak_kib = status.partition("VmHWM:")[2].split()[0]
    print(int(peak_kib) // 1024, sum(shard.tokens for shard in dataset.shards))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", [f"{i:>1000}" for i in range(20_000)], group=20_000
    )
    peaks = []
    for times in (1, 10):
        command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / str(times)), str(times)]
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": "."},
        )
        peak, tokens = map(int, ran.stdout.split())
        assert tokens == 1001 * 20_000 * times
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 40  # MiB; the data grew by 180
