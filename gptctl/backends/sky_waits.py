"""Waiting for SkyPilot: its own waits have no limit, and it talks to stdout. Knows no SkyPilot."""

import io
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TypeVar

from gptctl.backends import Tell
from gptctl.backends.sky_errors import plain, translated
from gptctl.errors import BackendError

POLL_S = 0.5
T = TypeVar("T")


def silenced() -> "redirect_stdout[io.StringIO]":
    """Our stdout is for data: what SkyPilot prints is kept from it."""
    return redirect_stdout(io.StringIO())


class Lines(io.TextIOBase):
    """Passes on what is written to it, a line at a time and without colours."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if words := plain(line):
                self._tell(words)
        return len(text)


def wait_for(work: Callable[[], T], *, timeout_s: float, doing: str) -> T:
    """What `work` returns, in a thread of its own.

    Raises BackendError when the time is up or `work` failed; KeyboardInterrupt at once.
    """
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    deadline = time.monotonic() + timeout_s
    with silenced():
        thread.start()
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(POLL_S)
    if thread.is_alive():
        raise BackendError(
            f"SkyPilot did not {doing} in {timeout_s / 60:.1f} minutes",
            hint="the machine never came up, or never answered: `--boot-timeout` waits longer",
        )
    if errors:
        with translated(doing):
            raise errors[0]
    return outcome[0]
