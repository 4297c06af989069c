"""Processes that end when they are asked to, and do not outlive the one that started them."""

import atexit
import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARENT_PID = "TRAINING_PARENT_PID"
"""Environment variable in which a parent tells its children who they belong to."""

_PR_SET_PDEATHSIG = 1


class StopFlag:
    """Set by SIGTERM, for a loop to read where it can stop.

    A process that is on its way out is not told again: Python takes its handlers down while it
    ends, and what has saved and left well would seem to have been killed.
    """

    def __init__(self) -> None:
        self.is_set = False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "is_set", True))
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies, even by SIGKILL (Linux: prctl(2)).

    The parent says by PARENT_PID who it is, as it may have died while this process was loading.
    """
    if sys.platform != "linux":
        return
    parent = int(os.environ.get(PARENT_PID, os.getppid()))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def exclusive(path: Path, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lock on `path`, in which this process's id stands; None: wait without end.

    The kernel lets go of it when the process dies, however that happens. Raises
    BlockingIOError where another process held it for all of `timeout_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        deadline = time.monotonic() + (timeout_s or 0)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if timeout_s is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        os.pwrite(file.fileno(), f"{os.getpid():<20}".encode(), 0)  # over the old one: no gap
        yield


def available_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
