"""Processes that must not outlive the one that started them."""

import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies, even by SIGKILL (Linux: prctl(2))."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def exclusive(path: Path, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lock on `path`, in which this process's id stands; None: wait without end.

    The kernel lets go of it when the process dies, however that happens. Raises
    BlockingIOError where another process held it for all of `timeout_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "w+b") as file:
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
