"""Runs on two nodes: two working folders on this machine, each with its own program and ranks."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from tests.processes import find_processes
from tests.tiny import make_recipe, make_record
from training.events import parse_lines
from training.layout import (
    RunPaths,
    RunRecord,
    Status,
    committed_checkpoints,
    decode,
    encode,
    run_key,
)
from training.sources import dataset_folder_key
from training.storage_folder import FolderStorage

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two_nodes")]
RUN_ID = "tiny-0001"
CORES = sorted(os.sched_getaffinity(0))


def free_ports(count: int) -> int:
    """The first of so many ports that nobody has."""
    for first in range(30000 + os.getpid() % 2000 * 10, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


class Nodes:
    """A store and two nodes on loopback, which talk as two machines would."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = FolderStorage(str(home / "store"), home / "store")
        self.stored = home / "store" / "runs" / RUN_ID
        self.port = free_ports(10)
        self.programs: list[subprocess.Popen[bytes]] = []
        self.text = home / "text.txt"
        self.text.write_text("the cat sat on a mat. " * 4_000)

    def record(self, *, nodes: int = 2, ranks: int = 2, **sections: dict[str, Any]) -> RunRecord:
        sections.setdefault("data", {}).update(
            source="text", path=str(self.text), shard_tokens=20_000
        )
        record = make_record(make_recipe(**sections), ranks=ranks, nodes=nodes)
        self.store.write(run_key(RUN_ID, "run.json"), encode(record))
        return record

    def start(self, node: int) -> None:
        """Each on a core of its own: the bits of a sum depend on the number of threads."""
        addresses = "127.0.0.1\n127.0.0.1"
        self.run(
            "training.follower" if node else "training.supervise",
            *("--root", str(self.root(node)), "--node-count", "2", "--node-rank", str(node)),
            *("--node-ips", addresses, "--port", str(self.port)),
            cores={CORES[node % len(CORES)]},
            log=self.home / f"node{node}.log",
        )

    def run(self, module: str, *arguments: str, cores: set[int], log: Path) -> None:
        with log.open("ab") as output:
            self.programs.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, RUN_ID, "--store", self.store.url, *arguments],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=output,
                    stderr=output,
                    preexec_fn=lambda: os.sched_setaffinity(0, cores),
                )
            )

    def root(self, node: int) -> Path:
        return self.home / f"node{node}"

    def paths(self, node: int) -> RunPaths:
        return RunPaths(self.root(node), RUN_ID)

    def status(self) -> Status | None:
        path = self.stored / "status.json"
        return decode(path.read_bytes(), Status, name="status.json") if path.exists() else None

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.paths(0).events
        data = path.read_bytes() if path.exists() else b""
        return [event for event in parse_lines(data) if event["event"] == kind]

    def metrics(self) -> list[tuple[int, float]]:
        path = self.stored / "metrics.jsonl"
        lines = parse_lines(path.read_bytes()) if path.exists() else []
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    def ranks(self, node: int) -> list[psutil.Process]:
        root = str(self.root(node))
        return find_processes(
            lambda line: root in line and "training.train" in line and "ranks" not in line
        )

    def wait(self, is_there: Callable[[], object], timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_there():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.05)

    def wait_for_end(self, timeout_s: float = 90) -> tuple[Status, list[int]]:
        """(the last status, exit codes of both programs), when both have ended."""
        self.wait(lambda: all(p.poll() is not None for p in self.programs), timeout_s)
        status = self.status()
        assert status is not None
        return status, [program.returncode for program in self.programs]

    def told(self) -> str:
        logs = [p for p in sorted(self.home.rglob("*.log")) if "store" not in p.parts]
        return "\n".join(f"--- {p}\n{p.read_text()[-3000:]}" for p in logs)

    def end(self) -> None:
        for program in self.programs:
            program.kill()
            program.wait()
        time.sleep(0.2)
        for process in find_processes(lambda line: f"{self.home}/node" in line):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    both = Nodes(tmp_path)
    yield both
    both.end()


def test_two_nodes_train_as_one_with_as_many_ranks(nodes: Nodes, tmp_path: Path) -> None:
    record = nodes.record(train={"steps": 20})
    nodes.start(1)  # a follower may well be there first
    nodes.start(0)
    status, codes = nodes.wait_for_end()
    assert (status.state, status.step, codes) == ("succeeded", 20, [0, 0]), nodes.told()
    (checked,) = nodes.events("gpus_checked")
    assert [device["node"] for device in checked["devices"]] == [0, 1]
    assert not list(nodes.root(1).rglob("*.safetensors"))  # only the head has checkpoints

    (tmp_path / "alone").mkdir()
    alone = Nodes(tmp_path / "alone")
    alone.store.write(run_key(RUN_ID, "run.json"), encode(replace(record, nodes=1)))
    one = alone.home / "one.log"
    alone.run("training.supervise", "--root", str(alone.root(0)), cores={*CORES[:2]}, log=one)
    alone.wait_for_end()
    assert [step for step, _ in nodes.metrics()] == list(range(1, 21))
    assert nodes.metrics() == alone.metrics()


def test_a_rank_that_is_killed_and_then_a_head_are_replaced_on_both_nodes(nodes: Nodes) -> None:
    nodes.record(train={"steps": 400}, checkpoint={"every": 20}, eval={"every": 100})
    nodes.start(0)
    nodes.start(1)
    nodes.wait(lambda: len(nodes.metrics()) > 30)
    (rank,) = nodes.ranks(1)
    rank.kill()
    nodes.wait(lambda: nodes.events("training_resumed"))
    (died,) = nodes.events("training_died")
    (resumed,) = nodes.events("training_resumed")
    assert died["step"] - 20 <= resumed["step"] <= died["step"]

    head = nodes.programs.pop(0)
    head.kill()
    head.wait()
    nodes.start(0)
    status, codes = nodes.wait_for_end()
    assert (status.state, status.step, codes) == ("succeeded", 400, [0, 0]), nodes.told()
    assert [event["life"] for event in nodes.events("life_started")] == [1, 2]
    assert [step for step, _ in nodes.metrics()] == list(range(1, 401))


def test_a_node_may_go_and_come_back_and_both_end_on_a_stop(nodes: Nodes) -> None:
    nodes.record(train={"steps": 100_000}, checkpoint={"every": 100_000}, eval={"every": 5000})
    nodes.start(0)
    nodes.start(1)
    nodes.wait(lambda: len(nodes.metrics()) > 10)
    gone = nodes.programs.pop()
    gone.send_signal(signal.SIGTERM)
    assert gone.wait(30) == 0
    nodes.wait(lambda: nodes.events("training_died"))
    nodes.start(1)
    nodes.wait(lambda: nodes.events("training_resumed"))
    (died,) = nodes.events("training_died")
    (resumed,) = nodes.events("training_resumed")
    assert resumed["step"] == died["step"] > 10  # no step is lost

    nodes.wait(lambda: nodes.events("phase_started")[-1]["phase"] == "training")
    nodes.wait(lambda: len(nodes.metrics()) > resumed["step"] + 10)
    nodes.programs[0].send_signal(signal.SIGTERM)
    status, codes = nodes.wait_for_end(timeout_s=30)
    assert (status.state, status.reason, codes) == ("stopped", "user", [0, 0]), nodes.told()
    assert committed_checkpoints(nodes.stored / "checkpoints")[-1] == status.step
    nodes.start(1)  # as where its machine comes back: there is nothing left to do
    assert nodes.programs[-1].wait(30) == 0


def test_data_that_a_follower_cannot_prepare_fails_the_run_with_its_reason(nodes: Nodes) -> None:
    record = nodes.record(train={"steps": 300})
    folder = nodes.root(1) / "datasets" / dataset_folder_key(record.recipe.data)
    (folder / ".lock").mkdir(parents=True)  # where a file should be
    nodes.start(0)
    nodes.start(1)
    status, codes = nodes.wait_for_end()
    assert (status.state, status.step) == ("failed", 0), nodes.told()
    assert status.message is not None
    assert status.message.startswith("node 1: "), nodes.told()
    assert codes == [1, 0]


def test_a_rank_that_hangs_is_shown_on_its_own_node_and_all_begin_again(nodes: Nodes) -> None:
    nodes.record(
        train={"steps": 400},
        checkpoint={"every": 20},
        eval={"every": 100},
        node={"stall_after_s": 30.0},
    )
    nodes.start(0)
    nodes.start(1)
    nodes.wait(lambda: len(nodes.metrics()) > 30)
    (stopped,) = nodes.ranks(1)
    (waiting,) = nodes.ranks(0)
    stopped.suspend()
    status, codes = nodes.wait_for_end(timeout_s=150)
    assert (status.state, status.step, codes) == ("succeeded", 400, [0, 0]), nodes.told()
    (died,) = nodes.events("training_died")
    (resumed,) = nodes.events("training_resumed")
    assert died["cause"] == "stalled"
    assert died["step"] - 20 <= resumed["step"] <= died["step"]
    assert f"rank 0 (process {waiting.pid}, " in (nodes.stored / "logs" / "stacks.log").read_text()
    said = (nodes.home / "node1.log").read_text()
    assert f"rank 1 (process {stopped.pid}, stopped):\nno answer" in said
