"""Real processes: who ends with whom."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from training.processes import PARENT_PID, exclusive
from training.stages import Stage

SLEEP = "import time; time.sleep(60)"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")


def write_program(folder: Path, body: str) -> dict[str, str]:
    """A module `program` for a Stage to start, and the environment that finds it."""
    (folder / "program.py").write_text(body)
    path = [str(folder), *(p for p in sys.path if p)]
    return {"PYTHONPATH": os.pathsep.join(path)}


def wait_for_line(log: Path, line: str) -> None:
    deadline = time.monotonic() + 30
    while line not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


@linux_only
def test_a_child_whose_parent_died_while_it_was_loading_ends_itself() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"from training.processes import end_with_parent; end_with_parent(); {SLEEP}"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, PARENT_PID: str(gone.pid)}
    )
    assert child.wait(30) == -signal.SIGTERM


def test_a_child_is_asked_to_stop_only_once(tmp_path: Path) -> None:
    body = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked"))
print("ready")
while True:
    time.sleep(0.05)
"""
    log = tmp_path / "stage.log"
    stage = Stage(["program"], log=log, env=write_program(tmp_path, body))
    wait_for_line(log, "ready")
    stage.ask_to_stop()
    wait_for_line(log, "asked")
    for _ in range(5):
        stage.ask_to_stop()
        time.sleep(0.1)
    stage.kill()
    assert stage.exit_code == -signal.SIGKILL
    assert log.read_text().count("asked") == 1


def test_a_sigterm_that_comes_as_a_process_ends_changes_nothing() -> None:
    code = """
import os, signal
from training.processes import StopFlag

class LastWord:  # taken down with the module, after Python's signal handlers
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

stop, last = StopFlag(), LastWord()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_killing_a_stage_takes_what_it_started_with_it(tmp_path: Path) -> None:
    body = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "{SLEEP}"], start_new_session=True).pid, "started")
{SLEEP}
"""
    log = tmp_path / "stage.log"
    stage = Stage(["program"], log=log, env=write_program(tmp_path, body))
    wait_for_line(log, "started")
    child = psutil.Process(int(log.read_text().split()[0]))
    stage.kill()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_lock_is_held_by_one_and_keeps_its_holders_name(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock, timeout_s=0):
        with pytest.raises(BlockingIOError), exclusive(lock, timeout_s=0):
            pass
        assert int(lock.read_text()) == os.getpid()
