import fcntl
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken

from tests.tiny import make_recipe, make_record, make_run
from training.config import DataConfig
from training.errors import DataError, NoSpaceError
from training.events import parse_lines
from training.layout import Dataset, RunPaths, Shard, read_dataset
from training.prepare import main, prepare
from training.shards import open_shard, verify_dataset, verify_shard
from training.sources import dataset_folder_key, open_source

END = 256


def text_data(path: Path | str, **changes: Any) -> DataConfig:
    fields: dict[str, Any] = {"source": "text", "tokenizer": "bytes", "shard_tokens": 100}
    return DataConfig(path=str(path), **fields | changes)


def ignore(shard: Shard) -> None:
    pass


def prepare_text(path: Path | str, folder: Path, *, block_size: int = 8, **changes: Any) -> Dataset:
    return prepare(text_data(path, **changes), folder, block_size=block_size, on_shard=ignore)


def read_tokens(folder: Path, dataset: Dataset, split: str) -> list[int]:
    shards = [shard for shard in dataset.shards if shard.split == split]
    return np.concatenate([open_shard(folder / shard.name) for shard in shards]).tolist()


def read_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def write_text(folder: Path, characters: int = 1000) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(chr(97 + i % 23) for i in range(characters)))
    return path


def test_documents_run_across_shards_each_after_an_end_of_text(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    (texts / "b").mkdir(parents=True)
    (texts / "a.txt").write_text("a" * 150)
    (texts / "b" / "c.md").write_text("ç" * 60)
    (texts / "empty.txt").touch()
    dataset = prepare_text(texts, tmp_path / "out")
    names = [(shard.name, shard.split, shard.tokens) for shard in dataset.shards]
    assert names == [
        ("text_val_000000.bin", "val", 100),
        ("text_train_000001.bin", "train", 100),
        ("text_train_000002.bin", "train", 72),
    ]
    stream = [END, *b"a" * 150, END, *("ç" * 60).encode()]
    assert read_tokens(tmp_path / "out", dataset, "val") == stream[:100]
    assert read_tokens(tmp_path / "out", dataset, "train") == stream[100:]


def test_every_shard_is_told_of_once_dataset_json_names_it(tmp_path: Path) -> None:
    told: list[Shard] = []

    def on_shard(shard: Shard) -> None:
        told.append(shard)
        dataset = read_dataset(tmp_path / "out")
        assert dataset is not None
        assert dataset.shards == tuple(told)
        assert not dataset.complete

    data = text_data(write_text(tmp_path))
    dataset = prepare(data, tmp_path / "out", block_size=8, on_shard=on_shard)
    assert dataset.complete
    assert dataset == verify_dataset(tmp_path / "out")
    assert dataset.shards == tuple(told)


def test_validation_is_exactly_the_last_part_of_the_text(tmp_path: Path) -> None:
    path = write_text(tmp_path, 1003)
    text = path.read_bytes()
    dataset = prepare_text(path, tmp_path / "out", val_fraction=0.2)
    cut = int(1003 * 0.8)
    assert [shard.name for shard in dataset.shards][:2] == [
        "text_val_000000.bin",
        "text_train_000001.bin",
    ]
    assert read_tokens(tmp_path / "out", dataset, "val") == [END, *text[cut:]]
    assert read_tokens(tmp_path / "out", dataset, "train") == [END, *text[:cut]]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.4, 0.5, 0.6, 0.77, 0.9])
def test_the_cut_for_validation_loses_no_character(tmp_path: Path, fraction: float) -> None:
    (tmp_path / "texts").mkdir()
    documents = ["ab🜁" * 30, "é" * 50, "z" * 100]
    for index, document in enumerate(documents):
        (tmp_path / "texts" / f"{index}.txt").write_text(document)
    dataset = prepare_text(tmp_path / "texts", tmp_path / "out", val_fraction=fraction)
    both = [
        bytes(token for token in read_tokens(tmp_path / "out", dataset, split) if token != END)
        for split in ("train", "val")
    ]
    total = sum(len(document.encode()) for document in documents)
    assert both[0].decode() + both[1].decode() == "".join(documents)
    assert 0 <= len(both[0]) - int(total * (1 - fraction)) < 4


def test_gpt2_shards_hold_what_tiktoken_makes_of_each_document(
    tmp_path: Path,
    gpt2_vocabulary: Path,
) -> None:
    (tmp_path / "texts").mkdir()
    documents = ["First <|endoftext|> document.\n" * 20, "Zweites Dokument, ähnlich.\n" * 20]
    for index, document in enumerate(documents):
        (tmp_path / "texts" / f"{index}.txt").write_text(document)
    dataset = prepare_text(tmp_path / "texts", tmp_path / "out", tokenizer="gpt2")
    encoding = tiktoken.get_encoding("gpt2")
    expected = [i for document in documents for i in [50256, *encoding.encode_ordinary(document)]]
    tokens = [read_tokens(tmp_path / "out", dataset, split) for split in ("val", "train")]
    assert tokens[0] + tokens[1] == expected


def test_the_standard_library_becomes_shards(tmp_path: Path) -> None:
    data = DataConfig(source="python-stdlib", tokenizer="bytes", shard_tokens=10_000_000)
    dataset = prepare(data, tmp_path, block_size=256, on_shard=ignore)
    source = open_source(data)
    documents = list(source.documents())
    version = ".".join(map(str, sys.version_info[:3]))
    assert dataset.revision.startswith(f"cpython-{version}-")
    assert sum(shard.tokens for shard in dataset.shards) == source.size_bytes + len(documents)
    argparse = Path(sysconfig.get_path("stdlib"), "argparse.py").read_text(encoding="utf-8")
    assert argparse in documents
    assert dataset.shards[0].name == "python-stdlib_val_000000.bin"
    assert set(open_shard(tmp_path / dataset.shards[0].name).tolist()) <= set(range(257))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"abc\xff", "not UTF-8: byte 0xff at offset 3"),
        (b"too short", "10 tokens for validation, at least 65 needed"),
        (b"x" * 120, "21 tokens for training, at least 65 needed"),
        (b"x" * 99, "0 tokens for training, at least 65 needed"),
    ],
)
def test_unfit_text_is_refused_with_the_reason(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=what):
        prepare_text(tmp_path / "a.txt", tmp_path / "out", block_size=64)


def test_a_text_of_one_shard_says_how_to_get_a_training_split(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    with pytest.raises(DataError, match="0 tokens for training") as caught:
        prepare_text(path, tmp_path / "out", shard_tokens=100_000)
    assert "lower it, or set data.val_fraction" in caught.value.hint


@pytest.mark.parametrize(
    ("fraction", "what"), [(1e-20, "0 tokens for val"), (0.01, "11 tokens for val")]
)
def test_too_small_a_validation_part_is_refused(tmp_path: Path, fraction: float, what: str) -> None:
    path = write_text(tmp_path)
    with pytest.raises(DataError, match=what):
        prepare_text(path, tmp_path / "out", val_fraction=fraction, block_size=16)


def test_training_may_be_of_shards_shorter_than_a_block(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    prepare_text(path, tmp_path / "out", val_fraction=0.5, shard_tokens=10, block_size=64)


def test_shards_made_for_a_short_block_are_refused_for_a_longer_one(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    prepare_text(path, tmp_path / "out")
    with pytest.raises(DataError, match="100 tokens for validation, at least 201 needed"):
        prepare_text(path, tmp_path / "out", block_size=200)


def test_equal_input_makes_equal_bytes(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    for name in ("one", "two"):
        prepare_text(path, tmp_path / name)
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two")


def test_a_complete_data_set_is_used_as_it_is(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    dataset = prepare_text(path, tmp_path / "out")
    written: list[Shard] = []
    again = prepare(text_data(path), tmp_path / "out", block_size=8, on_shard=written.append)
    assert again == dataset
    assert written == []


@pytest.mark.parametrize("damage", [b"", b"not a shard"])
def test_from_a_damaged_shard_on_all_are_written_again(tmp_path: Path, damage: bytes) -> None:
    path = write_text(tmp_path)
    prepare_text(path, tmp_path / "out")
    before = read_files(tmp_path / "out")
    (tmp_path / "out" / "text_train_000008.bin").write_bytes(damage)
    written: list[str] = []
    prepare(
        text_data(path), tmp_path / "out", block_size=8, on_shard=lambda s: written.append(s.name)
    )
    assert written == [f"text_train_{index:06d}.bin" for index in (8, 9, 10)]
    assert read_files(tmp_path / "out") == before


def test_what_an_earlier_preparation_left_counts_only_once_it_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path)
    made = prepare_text(path, tmp_path / "out")
    seen = []

    def verify_and_look(folder: Path, shard: Shard) -> None:
        dataset = read_dataset(folder)
        seen.append((shard.name, len(dataset.shards) if dataset else 0))
        if shard == made.shards[3]:
            raise KeyboardInterrupt  # as good as killed, half way through
        verify_shard(folder, shard)

    monkeypatch.setattr("training.kept_shards.verify_shard", verify_and_look)
    with pytest.raises(KeyboardInterrupt):
        prepare_text(path, tmp_path / "out")
    monkeypatch.undo()
    assert seen == [(shard.name, n) for n, shard in enumerate(made.shards[:4])]

    written: list[Shard] = []
    again = prepare(text_data(path), tmp_path / "out", block_size=8, on_shard=written.append)
    assert again == made
    assert written == []  # nothing that was there was forgotten


def test_a_damaged_dataset_json_is_written_again(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    prepare_text(path, tmp_path / "out")
    before = read_files(tmp_path / "out")
    (tmp_path / "out" / "dataset.json").write_text('{"shards": [')
    prepare_text(path, tmp_path / "out")
    assert read_files(tmp_path / "out") == before


KILLED_AFTER_THREE = """
import os, signal, sys
from pathlib import Path
from training.config import DataConfig
from training.prepare import prepare

shards = []
def on_shard(shard):
    shards.append(shard)
    if len(shards) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

data = DataConfig(source="text", tokenizer="bytes", shard_tokens=100, path=sys.argv[1])
prepare(data, Path(sys.argv[2]), block_size=8, on_shard=on_shard)
"""


def test_a_killed_preparation_is_taken_up_after_its_last_shard(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_THREE, str(path), str(tmp_path / "out")], check=False
    )
    assert killed.returncode == -9
    left = read_dataset(tmp_path / "out")
    assert left is not None
    assert not left.complete
    assert len(left.shards) == 3
    # As kills in the middle of a write would leave it.
    for name in (".text_train_000003.bin.tmp", ".dataset.json.123.tmp"):
        (tmp_path / "out" / name).write_bytes(b"torn")
    written: list[str] = []
    prepare(
        text_data(path), tmp_path / "out", block_size=8, on_shard=lambda s: written.append(s.name)
    )
    assert written[0] == "text_train_000003.bin"
    assert list((tmp_path / "out").glob(".*.tmp")) == []
    prepare_text(path, tmp_path / "undisturbed")
    assert read_files(tmp_path / "out") == read_files(tmp_path / "undisturbed")


def test_a_second_preparation_waits_and_uses_the_first_ones_shards(tmp_path: Path) -> None:
    data, folder = text_data(write_text(tmp_path)), tmp_path / "out"
    first_is_writing, go_on = threading.Event(), threading.Event()
    first: list[Shard] = []
    second: list[Shard] = []

    def hold(shard: Shard) -> None:
        first.append(shard)
        first_is_writing.set()
        go_on.wait()

    def run(on_shard: Any) -> threading.Thread:
        thread = threading.Thread(
            target=prepare, args=(data, folder), kwargs={"block_size": 8, "on_shard": on_shard}
        )
        thread.start()
        return thread

    one = run(hold)
    first_is_writing.wait()
    two = run(second.append)
    two.join(0.3)
    assert two.is_alive()
    go_on.set()
    one.join()
    two.join()
    assert len(first) == 11
    assert second == []
    assert verify_dataset(folder).complete


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    assert prepare_text(path, tmp_path / "out").complete


def test_a_full_disk_keeps_the_finished_shards(tmp_path: Path, small_disk: Path) -> None:
    path = write_text(tmp_path, 1_000_000)
    with pytest.raises(NoSpaceError, match="disk is full"):
        prepare_text(path, small_disk / "out", shard_tokens=100_000)
    dataset = verify_dataset(small_disk / "out")
    assert not dataset.complete
    assert len(dataset.shards) >= 3


def start_run(
    root: Path, path: Path, run_id: str = "run-0001", *, batch_tokens: int = 320
) -> RunPaths:
    """Of six batches: the whole text, and once more."""
    data = {"source": "text", "path": str(path), "shard_tokens": 100}
    recipe = make_recipe(data=data, train={"batch_tokens": batch_tokens})
    return make_run(root, make_record(recipe, run_id=run_id))


def read_events(paths: RunPaths) -> list[dict[str, Any]]:
    return list(parse_lines(paths.events.read_bytes()))


def test_the_program_prepares_what_the_run_record_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = start_run(tmp_path, write_text(tmp_path))
    assert main(["--root", str(tmp_path), "--run-id", "run-0001"]) == 0
    key = dataset_folder_key(text_data(tmp_path / "text.txt"))
    dataset = verify_dataset(tmp_path / "datasets" / key)
    *shards, ready = read_events(paths)
    assert [event["event"] for event in shards] == ["shard_written"] * 11
    assert [(event["name"], event["tokens"]) for event in shards] == [
        (shard.name, shard.tokens) for shard in dataset.shards
    ]
    assert (ready["event"], ready["tokens"], ready["shards"]) == ("dataset_ready", 1001, 11)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("text_val_000000.bin: 100 tokens in ")
    assert lines[-1] == f"{key}: 1,001 tokens in 11 shards are ready"


def test_the_program_says_when_it_reuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_text(tmp_path)
    start_run(tmp_path, path)
    assert main(["--root", str(tmp_path), "--run-id", "run-0001"]) == 0
    capsys.readouterr()
    paths = start_run(tmp_path, path, "run-0002")
    assert main(["--root", str(tmp_path), "--run-id", "run-0002"]) == 0
    assert capsys.readouterr().out.endswith(
        "1,001 tokens in 11 shards are ready, reused as it was\n"
    )
    assert [event["event"] for event in read_events(paths)] == ["dataset_ready"]


def test_the_program_reports_unfit_text_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    paths = start_run(tmp_path, tmp_path / "bad.txt")
    result = subprocess.run(
        [sys.executable, "-m", "training.prepare", "--root", tmp_path, "--run-id", "run-0001"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"{tmp_path}/bad.txt is not UTF-8")
    assert "Traceback" not in result.stderr
    [event] = read_events(paths)
    assert (event["event"], event["stage"], event["kind"]) == ("error", "prepare", "DataError")
    assert event["message"] in result.stderr
    assert "iconv" in event["hint"]


def test_the_program_names_a_run_record_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path), "--run-id", "nobody"]) == 1
    error = capsys.readouterr().err
    assert "runs/nobody/run.json cannot be read: No such file" in error
    assert "check --root and --run-id" in error


def test_preparing_loads_no_torch() -> None:
    program = "import sys, training.prepare; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
