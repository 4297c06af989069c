import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from tests.hub_server import Fault, HubServer, running_hub
from training.errors import DataError
from training.hub import list_files, resolve
from training.hub_asking import Patience
from training.hub_configs import PARQUET_COPY, config_files

REPO = "owner/texts"
BRIEF = Patience(unreachable_s=0.3, refused_s=0.3, first_wait_s=0.01)
EAGER = Patience(first_wait_s=0.01)
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample
  data_files:
  - split: train
    path: [sample/b/*, sample/a/*]
  - split: test
    path: sample/test.parquet
---
# Texts
"""


def parquet(*texts: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts)}), buffer)
    return buffer.getvalue()


SAMPLED = {
    "README.md": README.encode(),
    "data/x/0.parquet": parquet("x0"),
    "data/y/0.parquet": parquet("y0"),
    "sample/a/0.parquet": parquet("a0", "a1"),
    "sample/a/1.parquet": parquet("a2"),
    "sample/b/0.parquet": parquet("b0"),
    "sample/test.parquet": parquet("t"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        yield server


def test_a_branch_a_tag_and_a_commit_are_resolved_to_the_commit(hub: HubServer) -> None:
    old = hub.commit(REPO, {"a.txt": b"1"})
    tagged = hub.commit(REPO, {"a.txt": b"2"}, revision="refs/tags/v1")
    new = hub.commit(REPO, {"a.txt": b"3"})
    assert [resolve(REPO, name) for name in ("main", "refs/tags/v1", old)] == [new, tagged, old]


@pytest.mark.parametrize("repo", ["owner/text", "owner/texts/more", "no spaces"])
def test_an_unknown_data_set_is_named_with_how_to_spell_one(hub: HubServer, repo: str) -> None:
    hub.commit(REPO, {"a.txt": b"1"})
    with pytest.raises(DataError, match=f"no data set '{repo}'") as caught:
        resolve(repo, "main")
    assert "owner/name" in caught.value.hint


def test_an_unknown_revision_is_named(hub: HubServer) -> None:
    hub.commit(REPO, {"a.txt": b"1"})
    with pytest.raises(DataError, match="no revision 'v9'"):
        resolve(REPO, "v9")


@pytest.mark.parametrize("token", [None, "hf_stranger"])
def test_a_gated_data_set_needs_a_token_that_may_read_it(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    commit = hub.commit(REPO, {"a.txt": b"1"})
    hub.gate(REPO, "hf_friend")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match="gated") as caught:
        resolve(REPO, "main")
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_friend")
    assert resolve(REPO, "main") == commit


def test_a_private_data_set_is_seen_only_with_its_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.commit(REPO, {"a.txt": b"1"})
    hub.hide(REPO, "hf_owner")
    with pytest.raises(DataError, match="or it is private"):
        resolve(REPO, "main")
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    assert resolve(REPO, "main") == commit


def test_a_token_that_is_refused_is_not_taken_for_a_missing_data_set(hub: HubServer) -> None:
    hub.commit(REPO, {"a.txt": b"1"})
    hub.inject(Fault(status=401))
    with pytest.raises(DataError, match="refused the token"):
        resolve(REPO, "main")


def test_no_network_is_told_with_the_address_that_was_tried(hub: HubServer) -> None:
    hub.stop()
    try:
        with pytest.raises(DataError, match=constants.ENDPOINT) as caught:
            resolve(REPO, "main", patience=BRIEF)
        assert "network" in caught.value.hint
    finally:
        hub.start()


def test_offline_mode_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        resolve(REPO, "main")


@pytest.mark.parametrize("kind", ["seconds", "date", "window"])
def test_a_rate_limit_is_waited_for_as_long_as_the_hub_asks(hub: HubServer, kind: str) -> None:
    commit = hub.commit(REPO, {"a.txt": b"1"})
    until_s = int(time.time()) + 2
    said = {
        "seconds": {"Retry-After": "2"},
        "date": {"Retry-After": formatdate(until_s, usegmt=True)},
        "window": {"RateLimit": '"api";r=0;t=1'},  # as the Hub itself has it
    }
    hub.inject(Fault(status=429, headers=said[kind]))
    assert resolve(REPO, "main", patience=EAGER) == commit
    assert time.time() >= until_s
    assert len(hub.requests) == 2


def test_a_rate_limit_longer_than_our_patience_is_told_at_once(hub: HubServer) -> None:
    hub.inject(Fault(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(DataError, match="asks to wait 3600 s") as caught:
        resolve(REPO, "main")
    assert "HF_TOKEN" in caught.value.hint
    assert len(hub.requests) == 1


def test_what_may_pass_is_asked_again_and_what_does_not_pass_is_told(hub: HubServer) -> None:
    commit = hub.commit(REPO, {"a.txt": b"1"})
    hub.inject(Fault(status=503, times=2), Fault(status=500))
    assert resolve(REPO, "main", patience=EAGER) == commit
    assert len(hub.requests) == 4
    hub.inject(Fault(status=503, times=1000))
    with pytest.raises(DataError, match="503"):
        resolve(REPO, "main", patience=BRIEF)


def test_nothing_but_hf_endpoint_points_a_program_at_another_hub(hub: HubServer) -> None:
    commit = hub.commit(REPO, {"a.txt": b"1"})
    program = f"from training.hub import resolve; print(resolve({REPO!r}, 'main'))"
    ran = subprocess.run(
        [sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == commit


@pytest.mark.parametrize("page_size", [2, 1000])
def test_files_come_sorted_with_size_and_hash(hub: HubServer, page_size: int) -> None:
    hub.page_size = page_size
    content = parquet("a0")
    names = ["s/c.parquet", "s/a.parquet", "s/b.parquet", "s/deep/a.parquet", "a.parquet"]
    commit = hub.commit(REPO, dict.fromkeys(names, content) | {"s/note.txt": b"note"})
    found = list_files(REPO, commit, "s/*.parquet")
    assert [file.path for file in found] == ["s/a.parquet", "s/b.parquet", "s/c.parquet"]
    assert {file.size_bytes for file in found} == {len(content)}
    assert {len(file.sha256 or "") for file in found} == {64}
    assert [(f.path, f.sha256) for f in list_files(REPO, commit, "**/*.txt")] == [
        ("s/note.txt", None)
    ]


@pytest.mark.parametrize(
    ("pattern", "there"),
    [("s/*.bin", "s/a.parquet, s/b.parquet"), ("other/*", "at its top: README.md, s/")],
)
def test_a_pattern_that_matches_nothing_is_told_with_what_there_is(
    hub: HubServer, pattern: str, there: str
) -> None:
    names = ["s/a.parquet", "s/b.parquet", "README.md"]
    commit = hub.commit(REPO, dict.fromkeys(names, b"content"))
    with pytest.raises(DataError, match="no file of owner/texts matches") as caught:
        list_files(REPO, commit, pattern)
    assert there in caught.value.hint


@pytest.mark.parametrize(
    ("config", "split"), [("default", "train"), ("sample", "train"), ("sample", "test")]
)
def test_a_config_has_the_files_and_the_order_that_datasets_gives_it(
    hub: HubServer, config: str, split: str
) -> None:
    commit = hub.commit(REPO, SAMPLED)
    found = [file.path for file in config_files(REPO, commit, config, split)]
    builder = datasets.load_dataset_builder(REPO, config, revision=commit)
    assert builder.config.data_files is not None
    theirs = builder.config.data_files[split]
    assert found == [path.partition(f"@{commit}/")[2] for path in theirs]


def test_only_the_folders_of_the_config_are_listed(hub: HubServer) -> None:
    commit = hub.commit(REPO, SAMPLED)
    config_files(REPO, commit, "sample", "train")
    assert hub.requests_for("*/tree/*")
    assert not hub.requests_for("*/tree/*/data*")


def test_no_config_is_the_default_one(hub: HubServer) -> None:
    commit = hub.commit(REPO, SAMPLED)
    assert config_files(REPO, commit, "", "train") == config_files(REPO, commit, "default", "train")
    undecided = SAMPLED["README.md"].replace(b"config_name: default", b"config_name: whole")
    commit = hub.commit(REPO, {"README.md": undecided})
    with pytest.raises(DataError, match="several configs") as caught:
        config_files(REPO, commit, "", "train")
    assert "whole, sample" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "split", "there"),
    [("sampel", "train", "default, sample"), ("sample", "val", "train, test")],
)
def test_an_unknown_config_or_split_is_told_with_those_that_there_are(
    hub: HubServer, config: str, split: str, there: str
) -> None:
    commit = hub.commit(REPO, SAMPLED)
    with pytest.raises(DataError, match=r"has no (config 'sampel'|split 'val')") as caught:
        config_files(REPO, commit, config, split)
    assert there in caught.value.hint


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], [0, 1]),
        (["train/b.parquet", "train/a.parquet", "test/a.parquet"], [1, 0]),
        (["test-1.parquet", "train-1.parquet"], [1]),
        (["b.parquet", "a.parquet"], [1, 0]),
    ],
)
def test_without_configs_the_names_of_folders_and_files_tell_the_splits(
    hub: HubServer, names: list[str], train: list[int]
) -> None:
    commit = hub.commit(REPO, dict.fromkeys(names, parquet("a")))
    found = config_files(REPO, commit, "", "train")
    assert [file.path for file in found] == [names[index] for index in train]


def test_the_copy_in_parquet_that_the_hub_keeps_has_its_configs_as_folders(hub: HubServer) -> None:
    hub.commit(REPO, {"a.csv": b"text\na\n"})
    with pytest.raises(DataError, match=r"not in parquet: a\.csv") as caught:
        config_files(REPO, resolve(REPO, "main"), "", "train")
    assert PARQUET_COPY in caught.value.hint
    names = ["en/train/0000.parquet", "en/test/0000.parquet", "de/train/0000.parquet"]
    commit = hub.commit(REPO, dict.fromkeys(names, parquet("a")), revision=PARQUET_COPY)
    assert resolve(REPO, PARQUET_COPY) == commit
    assert [file.path for file in config_files(REPO, commit, "en", "train")] == names[:1]
    with pytest.raises(DataError, match="no files for its config 'fr', which would be a folder"):
        config_files(REPO, commit, "fr", "train")


@pytest.mark.parametrize(
    "configs",
    [
        "configs: [",
        "configs: sample",
        "configs:\n- config_name: default\n  data_files: 7",
        "configs:\n- config_name: default\n  data_files:\n"
        "  - {split: train, path: a}\n  - {split: train, path: b}",
    ],
)
def test_a_readme_that_makes_no_sense_is_told(hub: HubServer, configs: str) -> None:
    readme = f"---\n{configs}\n---\n"
    commit = hub.commit(REPO, {"README.md": readme.encode(), "a.parquet": parquet("a")})
    with pytest.raises(DataError, match="the README of owner/texts does not say"):
        config_files(REPO, commit, "", "train")


def test_a_readme_that_names_files_which_are_not_there_is_told(hub: HubServer) -> None:
    hub.commit(REPO, SAMPLED)
    commit = hub.commit(REPO, {"sample/test.parquet": None})
    with pytest.raises(DataError, match="names files for its split 'test' that it does not have"):
        config_files(REPO, commit, "sample", "test")


def test_configs_survive_a_hub_that_is_busy(hub: HubServer) -> None:
    commit = hub.commit(REPO, SAMPLED)
    for path in ("*/README.md", "*/tree/*", "*/revision/*"):
        hub.inject(Fault(path=path, status=429), Fault(path=path, status=503))
    assert len(config_files(REPO, commit, "sample", "train", patience=EAGER)) == 3


def test_datasets_streams_from_the_server_of_these_tests(hub: HubServer) -> None:
    commit = hub.commit(REPO, SAMPLED)
    stream = datasets.load_dataset(REPO, "sample", split="train", revision=commit, streaming=True)
    assert [row["text"] for row in stream] == ["b0", "a0", "a1", "a2"]
