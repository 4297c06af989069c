"""The supervisor's children: started, watched and ended; their output goes to the run's logs."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil


class Stage:
    """One child program and whatever it starts in turn."""

    def __init__(self, arguments: list[str], *, log: Path, env: Mapping[str, str]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that killed it."""
        return self._process.poll()

    def ask_to_stop(self, *, ranks: bool = False) -> None:
        """SIGTERM; to the ranks that torchrun has started, not to itself, where `ranks`.

        torchrun, asked to stop, would kill its ranks after 30 s, in the middle of a save.
        """
        self._signal(signal.SIGTERM, self._children() if ranks else [self._process.pid])

    def kill(self) -> None:
        """SIGKILL, to everything below it too."""
        self._signal(signal.SIGKILL, [self._process.pid, *self._children(recursive=True)])
        self._process.wait()

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
