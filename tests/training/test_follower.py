"""A follower on its own: how it ends where the head says nothing, or something final."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from tests.tiny import make_recipe, make_record
from training import follower
from training.cluster import Cluster
from training.events import append_event
from training.head_news import HeadWatch
from training.layout import RunPaths, Status, encode, run_key
from training.processes import StopFlag
from training.storage_folder import FolderStorage


def make_status(state: str, *, second: int = 0) -> bytes:
    return encode(
        Status(
            run_id="tiny-0001",
            state=state,  # type: ignore[arg-type]
            phase=state,
            life=1,
            step=0,
            steps=6,
            tokens=0,
            updated_at=datetime(2026, 11, 21, second=second, tzinfo=UTC),
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> FolderStorage:
    folder = tmp_path / "store"
    store = FolderStorage(str(folder), folder)
    record = make_record(make_recipe(), ranks=2, nodes=2)
    store.write(run_key("tiny-0001", "run.json"), encode(record))
    return store


def start(tmp_path: Path, store: FolderStorage) -> "subprocess.Popen[str]":
    program = [
        *(sys.executable, "-m", "training.follower", "tiny-0001", "--store", store.url),
        *("--root", str(tmp_path / "node"), "--node-count", "2", "--node-rank", "1"),
        *("--node-ips", "127.0.0.1\n127.0.0.1", "--port", "59999"),
    ]
    return subprocess.Popen(program, env=dict(os.environ), stdout=subprocess.PIPE, text=True)


def test_a_run_that_is_over_is_left_alone(tmp_path: Path, store: FolderStorage) -> None:
    store.write(run_key("tiny-0001", "status.json"), make_status("succeeded"))
    process = start(tmp_path, store)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "the run is over: succeeded" in told
    assert "joins" not in told


def test_sigterm_ends_a_follower_and_what_it_has_started(
    tmp_path: Path, store: FolderStorage
) -> None:
    key = run_key("tiny-0001", "status.json")
    store.write(key, make_status("preparing"))
    process = start(tmp_path, store)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 30
    second = 0
    while not children:  # it joins the check of a head whose heart beats
        assert time.monotonic() < deadline
        second = (second + 1) % 60
        store.write(key, make_status("preparing", second=second))
        time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "joins check of life 1" in told
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_sigterm_ends_the_wait_for_a_record(tmp_path: Path) -> None:
    process = start(tmp_path, FolderStorage(str(tmp_path / "empty"), tmp_path / "empty"))
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode in (0, -signal.SIGTERM)  # it may not have been listening yet


def test_a_head_that_is_gone_is_not_waited_for_without_end(
    tmp_path: Path,
    store: FolderStorage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(follower, "SILENCE_S", 0.5)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        record = make_record(make_recipe(), ranks=2, nodes=2)
        paths = RunPaths(tmp_path / "node", record.run_id)
        append_event(_made(paths.events), "error", message="of an earlier one")
        watch = HeadWatch(store, record.run_id, every_s=0.05)
        watch.start()
        program = follower.Follower(
            record, tmp_path / "node", Cluster(node_rank=1, node_count=2), watch, StopFlag()
        )
        assert program.run() == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "nothing from the head" in capsys.readouterr().out


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path
