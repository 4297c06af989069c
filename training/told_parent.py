"""Programs that tell the one that started them what happens, as JSON lines on stdout."""

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from training.errors import TrainingError
from training.processes import end_with_parent


def say(event: str, **fields: Any) -> None:
    """One line `{"event": event, **fields}`, written at once."""
    sys.stdout.buffer.write(msgspec.json.encode({"event": event, **fields}) + b"\n")
    sys.stdout.buffer.flush()


def run_program(work: Callable[[], None]) -> int:
    """Its exit code; what it fails with is an event `error` with kind, message and hint."""
    end_with_parent()
    try:
        work()
    except TrainingError as error:
        say("error", kind=type(error).__name__, message=error.message, hint=error.hint)
        return 1
    return 0
