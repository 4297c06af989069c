"""The supervisor's children: started, watched and ended; their output goes to the run's logs."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from training.processes import PARENT_PID

KILL_TIMEOUT_S = 10.0
"""A process that outlives SIGKILL for so long is stuck in the kernel, as behind a sick GPU."""


class Stage:
    """One child program and whatever it starts in turn."""

    def __init__(self, arguments: list[str], *, log: Path, env: Mapping[str, str]) -> None:
        self._asked: set[int] = set()
        self._is_given_up = False
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", PARENT_PID: str(os.getpid()), **env},
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that killed it."""
        return -signal.SIGKILL if self._is_given_up else self._process.poll()

    def ask_to_stop(self, *, ranks: bool = False) -> None:
        """SIGTERM; to the ranks that torchrun has started, not to itself, where `ranks`.

        torchrun, asked to stop, would kill its ranks after 30 s, in the middle of a save; as
        it would where one of them died of being asked again on its way out. So each is asked
        once, also where this is called again for ranks that were not there yet.
        """
        pids = self.rank_pids(uses_torchrun=ranks)
        self._signal(signal.SIGTERM, [pid for pid in pids if pid not in self._asked])
        self._asked.update(pids)

    def rank_pids(self, *, uses_torchrun: bool) -> list[int]:
        """Process ids of what trains: torchrun's children, or the program itself."""
        if self.exit_code is not None:
            return []
        return self._children() if uses_torchrun else [self._process.pid]

    def kill(self) -> None:
        """SIGKILL, to everything below it too."""
        self._signal(signal.SIGKILL, [self._process.pid, *self._children(recursive=True)])
        try:
            self._process.wait(timeout=KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._is_given_up = True

    def _children(self, *, recursive: bool = False) -> list[int]:
        try:
            children = psutil.Process(self._process.pid).children(recursive=recursive)
        except psutil.NoSuchProcess:
            return []
        return [child.pid for child in children]

    def _signal(self, number: signal.Signals, pids: list[int]) -> None:
        if self.exit_code is None:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
