"""Tokens that are ready made, through `prepare`: from files of one's own, and from the Hub."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.hub_server import Fault, HubServer, running_hub
from tests.training.test_token_files import (
    WRITERS,
    write_build_nanogpt,
    write_llmc,
    write_nanogpt,
)
from training.config import DataConfig
from training.errors import DataError
from training.layout import Dataset, read_dataset
from training.prepare import prepare
from training.shards import open_shard

REPO = "owner/shards"
SHARD_TOKENS = 1000


def make_ids(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(50257), k=count)


def prepare_tokens(source: Path | str, folder: Path, **changes: Any) -> Dataset:
    """`source`: a path here, or a commit of REPO."""
    where = {"path": str(source)} if isinstance(source, Path) else {"revision": source}
    name = "tokens" if isinstance(source, Path) else f"hub-shards:{REPO}"
    fields: dict[str, Any] = {"source": name, "tokenizer": "gpt2", "shard_tokens": SHARD_TOKENS}
    data = DataConfig(**{**fields, **where, **changes})
    return prepare(data, folder, block_size=8, on_shard=lambda shard: None)


def sizes(dataset: Dataset) -> list[tuple[str, int]]:
    return [(shard.split, shard.tokens) for shard in dataset.shards]


def read(folder: Path, split: str) -> list[int]:
    dataset = read_dataset(folder)
    assert dataset is not None
    arrays = [open_shard(folder / s.name) for s in dataset.shards if s.split == split]
    return [int(token) for array in arrays for token in array]


def contents(folder: Path) -> dict[str, bytes]:
    """Of shards and `dataset.json`; nothing else is left."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        yield server


def publish(hub: HubServer, tmp_path: Path, **files: list[int] | bytes) -> str:
    """Files in llm.c's format, or of any bytes; the commit."""
    path = tmp_path / "made.bin"
    made: dict[str, Any] = {}
    for name, content in files.items():
        if isinstance(content, list):
            write_llmc(path, content)
            content = path.read_bytes()
        made[f"{name}.bin"] = content
    return hub.commit(REPO, made)


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_each_project_become_shards_of_the_size_that_was_asked_for(
    tmp_path: Path, writer: str
) -> None:
    write, val, train = WRITERS[writer]
    (tmp_path / "brought").mkdir()
    write(tmp_path / "brought" / val, make_ids(1300, 1))
    write(tmp_path / "brought" / train, make_ids(2500, 2))
    dataset = prepare_tokens(tmp_path / "brought", tmp_path / "out")
    assert dataset.complete
    assert sizes(dataset) == [("val", 1300), ("train", 1000), ("train", 1000), ("train", 500)]
    assert read(tmp_path / "out", "val") == make_ids(1300, 1)
    assert read(tmp_path / "out", "train") == make_ids(2500, 2)


def test_equal_tokens_make_equal_shards_whatever_files_they_come_in(tmp_path: Path) -> None:
    ids = make_ids(4100)
    for name, write in (
        ("a.bin", write_llmc),
        ("b.bin", write_nanogpt),
        ("c.npy", write_build_nanogpt),
    ):
        write(tmp_path / name, ids)
        prepare_tokens(tmp_path / name, tmp_path / f"out-{name}")
    assert len({str(contents(tmp_path / f"out-{n}")) for n in ("a.bin", "b.bin", "c.npy")}) == 1


def test_without_a_file_for_validation_the_first_shard_is_and_files_run_into_each_other(
    tmp_path: Path,
) -> None:
    (tmp_path / "brought").mkdir()
    for index, count in enumerate((700, 900, 1, 1400)):
        write_llmc(tmp_path / "brought" / f"{index}.bin", make_ids(count, index))
    dataset = prepare_tokens(tmp_path / "brought", tmp_path / "out")
    assert sizes(dataset) == [("val", 1000), ("train", 1000), ("train", 1000), ("train", 1)]
    assert read(tmp_path / "out", "val") + read(tmp_path / "out", "train") == [
        *(make_ids(700, 0) + make_ids(900, 1) + make_ids(1, 2) + make_ids(1400, 3)),
    ]


def test_shards_of_llmc_on_the_hub_are_taken_byte_for_byte(hub: HubServer, tmp_path: Path) -> None:
    files = {
        "fineweb_train_000001": make_ids(SHARD_TOKENS, 1),
        "fineweb_train_000002": make_ids(300, 2),
        "fineweb_val_000000": make_ids(SHARD_TOKENS, 0),
    }
    commit = publish(hub, tmp_path, **files)
    hub.commit(REPO, {"fineweb_train_000001.bin": None})  # the commit that was named stays
    dataset = prepare_tokens(commit, tmp_path / "out")
    assert sizes(dataset) == [("val", 1000), ("train", 1000), ("train", 300)]
    made = {
        name.removeprefix("hub-shards-owner-shards_"): content
        for name, content in contents(tmp_path / "out").items()
    }
    assert set(made) == {
        "val_000000.bin",
        "train_000001.bin",
        "train_000002.bin",
        "dataset.json",
    }
    for name in ("val_000000.bin", "train_000001.bin", "train_000002.bin"):
        assert made[name] == (hub.tree(REPO, commit) / f"fineweb_{name}").read_bytes()


def test_ours_are_taken_byte_for_byte(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "all.bin", make_ids(3300))
    prepare_tokens(tmp_path / "all.bin", tmp_path / "one")
    prepare_tokens(tmp_path / "one", tmp_path / "two")
    first, second = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert first.pop("dataset.json") != second.pop("dataset.json")
    assert first == second


KILLED_AFTER_TWO = """
import os, signal, sys
from pathlib import Path
import msgspec
from training.config import DataConfig
from training.prepare import prepare

shards = []
def on_shard(shard):
    shards.append(shard)
    if len(shards) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

data = msgspec.json.decode(sys.argv[1], type=DataConfig)
prepare(data, Path(sys.argv[2]), block_size=8, on_shard=on_shard)
"""


def prepare_and_be_killed(folder: Path, **data: Any) -> None:
    fields = {"tokenizer": "gpt2", "shard_tokens": SHARD_TOKENS, **data}
    program = [sys.executable, "-c", KILLED_AFTER_TWO, msgspec.json.encode(fields), str(folder)]
    killed = subprocess.run(program, check=False, env=dict(os.environ))
    assert killed.returncode == -9
    left = read_dataset(folder)
    assert left is not None
    assert len(left.shards) == 2


@pytest.mark.parametrize("val", ["val", "first"])
def test_killed_it_goes_on_in_the_middle_of_a_file_of_ones_own(tmp_path: Path, val: str) -> None:
    (tmp_path / "brought").mkdir()
    for index, name in enumerate((val, "x", "y")):
        write_llmc(tmp_path / "brought" / f"{name}.bin", make_ids(1700, index))
    prepare_and_be_killed(tmp_path / "out", source="tokens", path=str(tmp_path / "brought"))
    prepare_tokens(tmp_path / "brought", tmp_path / "out")
    prepare_tokens(tmp_path / "brought", tmp_path / "clean")
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_killed_it_goes_on_without_the_files_of_the_hub_that_are_done(
    hub: HubServer, tmp_path: Path
) -> None:
    files = {f"x_train_{index}": make_ids(1000, index) for index in range(1, 6)}
    commit = publish(hub, tmp_path, x_val_0=make_ids(1000), **files)
    prepare_and_be_killed(tmp_path / "out", source=f"hub-shards:{REPO}", revision=commit)
    before = len(hub.requests)
    prepare_tokens(commit, tmp_path / "out")
    again = {Path(r.path).name for r in hub.requests[before:] if r.path.startswith("/lfs/")}
    assert "x_train_5.bin" in again
    assert not again & {"x_val_0.bin", "x_train_1.bin"}
    prepare_tokens(commit, tmp_path / "clean")
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_a_whole_data_set_asks_the_hub_for_nothing(hub: HubServer, tmp_path: Path) -> None:
    commit = publish(hub, tmp_path, val=make_ids(100), train=make_ids(100))
    prepare_tokens(commit, tmp_path / "out")
    before = len(hub.requests)
    prepare_tokens(commit, tmp_path / "out")
    assert len(hub.requests) == before


def header(magic: int, version: int, count: int) -> bytes:
    return np.array([magic, version, count, *[0] * 253], dtype="<i4").tobytes()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (header(20240521, 1, 100) + bytes(200), "begins with 20240521"),
        (header(20240520, 2, 100) + bytes(200), "has version 2"),
        (header(20240520, 1, 100) + bytes(198), "promises 100 tokens"),
        (header(20240520, 1, 100) + bytes(202), "promises 100 tokens"),
        (header(20240520, 1, 100)[:500], "less than its header"),
        (header(20240520, 1, 3) + b"\x00\x00\x51\xc4\x01\x00", "token 1 is 50257"),
    ],
)
def test_what_is_no_shard_on_the_hub_stops_with_its_name_and_keeps_what_is_good(
    hub: HubServer, tmp_path: Path, content: bytes, told: str
) -> None:
    commit = publish(hub, tmp_path, val=make_ids(50), x_1=make_ids(1200), x_2=content)
    with pytest.raises(DataError, match=rf"x_2\.bin of {REPO}.*no shard.*{told}") as caught:
        prepare_tokens(commit, tmp_path / "out")
    assert "`hub:owner/name` takes text" in caught.value.hint
    left = read_dataset(tmp_path / "out")
    assert left is not None
    assert (left.complete, sizes(left)) == (False, [("val", 50), ("train", 1000)])


def test_bytes_that_are_not_what_the_hub_says_never_become_shards(
    hub: HubServer, tmp_path: Path
) -> None:
    commit = publish(hub, tmp_path, val=make_ids(50), train=make_ids(1200))
    hub.inject(Fault(path="/lfs/*/train.bin", times=3, wrong_bytes=True))
    with pytest.raises(DataError, match=r"train\.bin of owner/shards arrived 3 times"):
        prepare_tokens(commit, tmp_path / "out")
    left = read_dataset(tmp_path / "out")
    assert left is not None
    assert sizes(left) == [("val", 50)]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.txt": b"1"}, r"no file of owner/shards matches \*\*/\*\.bin"),
        ({"x_val_000.bin": b"1", "sub/val.bin": b"2"}, "for validation only"),
    ],
)
def test_a_repository_without_shards_to_train_on_is_told_of(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes], told: str
) -> None:
    commit = hub.commit(REPO, files)
    with pytest.raises(DataError, match=told):
        prepare_tokens(commit, tmp_path / "out")


def test_an_unknown_repository_is_named(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set 'owner/shards'"):
        prepare_tokens("0" * 40, tmp_path / "out")


def test_tokens_that_all_go_into_validation_say_what_to_lower(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "train.bin", make_ids(900))
    with pytest.raises(DataError, match="0 tokens for training") as caught:
        prepare_tokens(tmp_path / "train.bin", tmp_path / "out")
    assert caught.value.hint.endswith("are for validation: lower it")
