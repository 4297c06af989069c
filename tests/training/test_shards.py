import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.errors import DataError, NoSpaceError, TrainingError
from training.layout import Dataset, Shard, read_dataset
from training.shards import open_shard, verify_dataset, verify_shard, write_dataset, write_shard

IDS = [50256, 15496, 11, 995, 0]
BY_HAND = struct.pack("<256i", 20240520, 1, len(IDS), *[0] * 253) + struct.pack("<5H", *IDS)


def make_shard(folder: Path) -> Shard:
    return write_shard(folder / "x_val_000000.bin", np.array(IDS, dtype=np.uint16), split="val")


def make_dataset(shard: Shard) -> Dataset:
    return Dataset(
        source="x",
        revision="1",
        tokenizer="gpt2",
        shard_tokens=5,
        val_fraction=0.0,
        shards=(shard,),
    )


def test_a_shard_is_the_reference_format_byte_for_byte(tmp_path: Path) -> None:
    shard = make_shard(tmp_path)
    assert (tmp_path / shard.name).read_bytes() == BY_HAND
    assert shard == Shard(
        name="x_val_000000.bin",
        split="val",
        tokens=5,
        size_bytes=1034,
        sha256=hashlib.sha256(BY_HAND).hexdigest(),
    )
    assert [path.name for path in tmp_path.iterdir()] == [shard.name]


def test_a_shard_of_the_reference_opens_as_its_ids(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(BY_HAND)
    tokens = open_shard(tmp_path / "a.bin")
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == IDS


def test_every_second_id_of_an_array_is_written_as_it_reads(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(10, dtype=np.uint16)[::2], split="train")
    assert open_shard(tmp_path / "a.bin").tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "0 bytes are less than its header"),
        (BY_HAND[:1000], "1,000 bytes are less than its header"),
        (struct.pack("<i", 20240519) + BY_HAND[4:], "begins with 20240519"),
        (BY_HAND[:4] + struct.pack("<i", 2) + BY_HAND[8:], "version 2"),
        (BY_HAND[:8] + struct.pack("<i", 6) + BY_HAND[12:], "promises 6 tokens"),
        (BY_HAND[:8] + struct.pack("<i", -5) + BY_HAND[12:], "promises -5 tokens"),
        (BY_HAND[:8] + struct.pack("<i", 0) + BY_HAND[12:1024], "promises 0 tokens"),
        (BY_HAND[:-1], "but it has 1,033"),
        (BY_HAND + b"\0", "but it has 1,035"),
    ],
)
def test_a_file_that_is_no_shard_is_refused_by_name(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(DataError, match=what) as caught:
        open_shard(tmp_path / "a.bin")
    assert "a.bin" in caught.value.message


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.bin .*No such file"):
        open_shard(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: path.write_bytes(BY_HAND[:-2]), "it has 1,032 bytes, not 1,034"),
        (lambda path: path.write_bytes(BY_HAND[:-1] + b"\1"), "sha256 differs"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_damaged_shard_is_found(
    tmp_path: Path, damage: Callable[[Path], object], what: str
) -> None:
    shard = make_shard(tmp_path)
    write_dataset(tmp_path, make_dataset(shard))
    verify_shard(tmp_path, shard)
    assert verify_dataset(tmp_path) == make_dataset(shard)
    damage(tmp_path / shard.name)
    with pytest.raises(DataError, match=what):
        verify_shard(tmp_path, shard)
    with pytest.raises(DataError, match=shard.name):
        verify_dataset(tmp_path)


def test_a_folder_without_dataset_json_holds_none(tmp_path: Path) -> None:
    assert read_dataset(tmp_path) is None
    with pytest.raises(DataError, match=r"no dataset\.json"):
        verify_dataset(tmp_path)


def test_a_damaged_dataset_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(TrainingError, match=r"dataset\.json"):
        read_dataset(tmp_path)


def test_an_empty_shard_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 tokens"):
        write_shard(tmp_path / "a.bin", np.empty(0, dtype=np.uint16), split="train")


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".x_val_000000.bin.tmp").write_bytes(BY_HAND * 2)
    make_shard(tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [BY_HAND]


def test_a_full_disk_leaves_the_old_shard_and_no_litter(small_disk: Path) -> None:
    shard = make_shard(small_disk)
    with pytest.raises(NoSpaceError, match=r"disk is full.*x_val_000000\.bin"):
        write_shard(small_disk / shard.name, np.zeros(600_000, dtype=np.uint16), split="val")
    assert [path.read_bytes() for path in small_disk.iterdir()] == [BY_HAND]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="could not be written: No such file"):
        make_shard(tmp_path / "gone")
