"""Real processes that hang, asked where."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from training import stacks

HANG = """
import sys, threading
from pathlib import Path
from training import stacks

def wait_for_the_others():
    print("ready", flush=True)
    threading.Event().wait()

stacks.register(Path(sys.argv[1]))
wait_for_the_others()
"""


class Ranks:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, rank: int, code: str = HANG) -> int:
        """Its process id, when it hangs."""
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.folder)],
            env={**os.environ, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process.pid

    def ask(self) -> str:
        pids = [process.pid for process in self.started]
        return stacks.ask_stacks(self.folder, pids, why="no sign of life")


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    several = Ranks(tmp_path)
    yield several
    for process in several.started:
        with process:
            process.kill()


def test_every_rank_says_where_it_stands_and_lives_on(ranks: Ranks) -> None:
    for rank in (10, 2):
        ranks.start(rank)
    told = ranks.ask()
    assert told.startswith("20")
    assert "UTC: no sign of life" in told
    assert told.count("in wait_for_the_others") == 2
    assert told.index("rank 2 ") < told.index("rank 10 ")
    assert "no answer" not in told
    assert [process.poll() for process in ranks.started] == [None, None]


def test_a_rank_that_is_asked_twice_is_told_of_once_each_time(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.ask()
    assert ranks.ask().count("in wait_for_the_others") == 1


def test_a_rank_that_does_not_answer_is_named_with_its_state(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "ANSWER_TIMEOUT_S", 2.0)
    ranks.start(0)
    stopped = ranks.start(1)
    os.kill(stopped, signal.SIGSTOP)
    told = ranks.ask()
    assert told.count("in wait_for_the_others") == 1
    assert f"rank 1 (process {stopped}, stopped):\nno answer in 2 s" in told


def test_a_process_that_is_not_yet_a_rank_is_told_and_not_signalled(ranks: Ranks) -> None:
    pid = ranks.start(0, "import time; print('ready', flush=True); time.sleep(60)")
    assert f"process {pid} (sleeping) was not training yet" in ranks.ask()
    assert ranks.started[0].poll() is None


def test_what_an_earlier_rank_left_is_not_told_again(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.ask()
    with ranks.started.pop() as killed:
        killed.kill()
    pid = ranks.start(0)
    told = ranks.ask()
    assert told.count("in wait_for_the_others") == 1
    assert f"process {pid}," in told
