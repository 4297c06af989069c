"""`gptctl data` on real shards: what it says, to which stream, and with which exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from gptctl.cli import main
from gptctl.cli.data_view import progress_line
from gptctl.data_programs import Progress, prepare
from gptctl.datasets import choose_data
from tests.tiny import make_dataset, make_recipe
from training.errors import StorageUnavailableError
from training.layout import Dataset, decode, read_dataset
from training.shards import write_dataset, write_shard

PIECE = ("--set", "data.shard_tokens=2000")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A person with an empty home, no settings, and a text of 10,000 bytes."""
    for name in ("GPTCTL_STORE", "GPTCTL_CLOUD", "GPTCTL_NODE_ROOT", "GPTCTL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("".join(chr(97 + i % 23) for i in range(10_000)))
    return tmp_path


@pytest.fixture
def call(capsys):
    """Runs one command line: (exit code, stdout, stderr)."""

    def run(*argv):
        code = main(["data", *(str(word) for word in argv)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "bug" not in err
        return code, out, err

    return run


@pytest.fixture
def call_json(call):
    def run(*argv):
        code, out, _ = call(*argv, "--json")
        assert code == 0
        return json.loads(out)

    return run


def test_what_was_prepared_here_is_listed_verified_and_removed(call, call_json, home):
    made = call_json("prepare", "demo", "--data", "book.txt", *PIECE)
    folder = Path(made["folder"])
    assert folder == home / "data" / "gptctl" / "node" / "datasets" / made["key"]
    assert (made["shards"], made["tokens"], made["made"], made["sent"]) == (6, 10_001, 6, 6)

    (row,) = call_json("list")
    assert (row["key"], row["source"], row["tokenizer"]) == (made["key"], "text", "bytes")
    assert (row["shards"], row["tokens"], row["complete"]) == (6, 10_001, True)
    stored = home / "data" / "gptctl" / "store" / "datasets" / made["key"]
    assert row["size_bytes"] == sum(path.stat().st_size for path in stored.iterdir())

    for place in (folder, stored):
        checked = call_json("verify", place)
        assert checked["complete"] is True
        assert [file["fault"] for file in checked["files"]] == [""] * 6

    removed = call_json("remove", made["key"][:7])
    assert removed == {"key": made["key"], "size_bytes": row["size_bytes"]}
    assert call_json("list") == []
    assert folder.is_dir()


def test_the_second_time_nothing_is_made_or_sent(call, call_json):
    first = call_json("prepare", "demo", "--data", "book.txt", *PIECE)
    again = call_json("prepare", "demo", "--data", "book.txt", *PIECE)
    assert (again["made"], again["sent"]) == (0, 0)
    assert again["tokens"] == first["tokens"]


def test_no_more_is_made_than_the_recipe_trains_on_unless_all_is_asked_for(call, call_json):
    words = ("prepare", "demo", "--data", "book.txt", *PIECE)
    little = ("--set", "train.steps=4", "--set", "train.batch_tokens=1024")
    short = ("--set", "train.warmup_steps=0", "--set", "train.cooldown_steps=0")
    code, _, err = call(*words, *little, *short)
    assert code == 0
    assert "of about 8,000 tokens" in err  # validation, and 4,096 and a block in whole shards
    assert "4 shards: 4 made and 0 fetched" in err
    assert "That is what demo trains on; `--all` makes the rest." in err
    whole = call_json(*words, *little, *short, "--all")
    assert (whole["made"], whole["shards"], whole["complete"]) == (2, 6, True)


def test_what_the_store_has_is_fetched_and_not_made(call, call_json, home):
    words = ("prepare", "demo", "--data", "book.txt", *PIECE)
    made = call_json(*words)
    there = call_json(*words, "--to", "elsewhere")
    assert (there["made"], there["fetched"], there["sent"]) == (0, 6, 0)
    for name in (path.name for path in Path(made["folder"]).glob("*.bin")):
        assert (Path(there["folder"]) / name).read_bytes() == (
            Path(made["folder"]) / name
        ).read_bytes()


def test_a_folder_of_ones_own_gets_the_shards_and_stdout_its_name(call, home):
    code, out, err = call("prepare", "demo", "--data", "book.txt", "--to", "out", *PIECE)
    assert code == 0
    (folder,) = (home / "out" / "datasets").iterdir()
    assert out == f"{folder}\n"
    assert "of about 10,001 tokens" in err
    assert "6 shards: 6 made" in err
    assert not (home / "data" / "gptctl" / "node").exists()


def test_people_see_a_table_and_the_first_time_what_to_do(call):
    code, out, err = call("list")
    assert (code, out) == (0, "")
    assert "`gptctl data prepare RECIPE` makes one" in err
    call("prepare", "demo", "--data", "book.txt", *PIECE)
    code, out, _ = call("list")
    assert "10,001" in out
    assert "complete" in out


def test_shards_that_are_wrong_short_missing_or_extra_are_named(call, call_json, home):
    make_dataset(home / "set", make_recipe(), shards=4)
    folder = home / "set"
    wrong, short, missing = (folder / f"x_train_{index:06d}.bin" for index in (1, 2, 3))
    wrong.write_bytes(wrong.read_bytes()[:-1] + b"\x01")
    short.write_bytes(short.read_bytes()[:-4])
    missing.rename(folder / "x_train_000009.bin")

    code, out, err = call("verify", folder)

    assert code == 4
    lines = {line.partition(":")[0]: line for line in out.splitlines()}
    assert lines["x_val_000000.bin"] == "x_val_000000.bin: 500 tokens, good"
    assert "sha256 differs" in lines[wrong.name]
    assert "bytes, not" in lines[short.name]
    assert "No such file" in lines[missing.name]
    assert "x_train_000009.bin belongs to no data set here" in err
    assert "3 of 5 files" in err


def test_shards_of_a_preparation_that_was_cut_short_are_good_so_far(call, home):
    make_dataset(home / "set", make_recipe(), complete=False)
    code, _, err = call("verify", home / "set")
    assert code == 0
    assert "these are the shards so far" in err


def test_recorded_shards_with_ids_that_the_tokenizer_lacks_are_not_good(call, home):
    make_dataset(home / "set", make_recipe())
    path = home / "set" / "dataset.json"
    path.write_text(path.read_text().replace('"bytes"', '"gpt2"'))
    assert call("verify", home / "set")[0] == 0
    dataset = read_dataset(home / "set")
    shard = write_shard(
        home / "set" / dataset.shards[0].name, np.array([50257], dtype=np.uint16), split="val"
    )
    write_dataset(home / "set", replace(dataset, shards=(shard, *dataset.shards[1:])))
    code, out, _ = call("verify", home / "set")
    assert code == 4
    assert "token 0 is 50257" in out


def test_files_that_a_user_brings_are_checked_too(call_json, home):
    (home / "train.bin").write_bytes(bytes(range(100)))
    (home / "val.bin").write_bytes(b"odd")
    checked = [call_json("verify", "train.bin")["files"]]
    assert checked == [[{"name": "train.bin", "tokens": 50, "fault": ""}]]


@pytest.mark.parametrize(
    ("argv", "code", "what"),
    [
        (("prepare", "nope"), 6, "there is no recipe `nope`"),
        (("prepare", "demo", "--data", "absent.txt"), 3, "there is no text at"),
        (("prepare", "demo", "--data", "empty.txt"), 4, "empty.txt is empty"),
        (("prepare", "demo", "--data", "bad.txt"), 4, "is not UTF-8"),
        (("prepare", "demo", "--data", "short.txt"), 4, "the text is too short"),
        (("prepare", "demo", "--data", "book.txt", "--to", "book.txt"), 4, "book.txt"),
        (("verify", "absent"), 4, "no token files at"),
        (("remove", "nope"), 6, "there is no data set 'nope'"),
        (("remove", ""), 6, "there is no data set ''"),
        (("list", "--store", "book.txt"), 7, "book.txt"),
    ],
)
def test_what_cannot_be_done_is_said_on_stderr_with_what_to_do_next(call, home, argv, code, what):
    (home / "empty.txt").touch()
    (home / "bad.txt").write_bytes(b"\xff")
    (home / "short.txt").write_text("short")
    found, out, err = call(*argv)
    assert (found, out) == (code, "")
    assert what in err
    assert "hint: " in err


def test_of_several_that_begin_so_none_is_removed(call, call_json):
    call_json("prepare", "demo", "--data", "book.txt", *PIECE)
    call_json("prepare", "demo", "--data", "book.txt", "--set", "data.shard_tokens=3000")
    code, _, err = call("remove", "text")
    assert code == 2
    assert "2 data sets begin with 'text'" in err
    assert len(call_json("list")) == 2


def test_an_interrupted_preparation_ends_with_its_program_and_goes_on_later(home, call_json):
    (home / "book.txt").write_text("word " * 4_000_000)
    words = ("prepare", "demo", "--data", "book.txt", "--all", "--set", "data.shard_tokens=200000")
    program = [sys.executable, "-m", "gptctl", "data", *words]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, start_new_session=True)
    datasets = home / "data" / "gptctl" / "node" / "datasets"
    deadline = time.monotonic() + 60
    while not list(datasets.glob("*/*_train_000002.bin")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith(b"interrupted\n")
    (record,) = datasets.glob("*/dataset.json")
    left = decode(record.read_bytes(), Dataset, name="left")
    assert not left.complete
    time.sleep(0.3)
    assert decode(record.read_bytes(), Dataset, name="left") == left  # nobody writes on

    done = call_json(*words)
    assert done["made"] == done["shards"] - len(left.shards)
    assert done["tokens"] == 20_000_001


def test_a_store_that_does_not_take_the_shards_costs_none_of_them(home):
    recipe = choose_data("demo", PIECE[1:], home / "book.txt")
    (home / "file").touch()
    told: list[str] = []

    def run(store: Path):
        return prepare(
            recipe,
            home / "out",
            store=str(store),
            clock=time.monotonic,
            show=lambda seen: None,
            tell=told.append,
            patience_s=0.1,
        )

    with pytest.raises(StorageUnavailableError, match="the store did not take all of it"):
        run(home / "file")
    assert any("do not reach the store" in line for line in told)
    again = run(home / "store")
    assert (again.made, again.sent) == (0, 6)


def test_progress_tells_throughput_and_time_left_once_they_are_known():
    first = Progress(shards=0, tokens=0, made_tokens=0, seconds=1, total_tokens=None)
    assert progress_line(first) == "0 shards  0 tokens  - M tokens/s  left -"
    # 100 M tokens were there before this run of it
    seen = Progress(
        shards=3, tokens=300_000_000, made_tokens=200_000_000, seconds=8, total_tokens=10**9
    )
    assert progress_line(seen) == (
        "3 shards  300,000,000 of about 1,000,000,000 tokens  25.00 M tokens/s  left 28 s"
    )
