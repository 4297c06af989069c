"""The programs of `training` that need torch: started as processes, never imported."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from gptctl.errors import BackendError
from training import errors as training_errors
from training.errors import TrainingError
from training.events import parse_lines

GRACE_S = 10.0
"""For a program that was asked to end."""


def training_program(module: str, *arguments: str) -> list[str]:
    """Command line of `python -m training.<module>`. Raises BackendError without torch."""
    if find_spec("torch") is None:
        raise BackendError(
            "torch is not installed in this Python, so nothing can be trained or sampled here",
            hint="pip install 'gptctl[train]'",
        )
    # -P: what lies in the folder that the user is in cannot shadow a module.
    return [sys.executable, "-P", "-m", f"training.{module}", *arguments]


def program_events(command: list[str], *, what: str) -> Iterator[dict[str, Any]]:
    """What the program says, as it says it; it ends with us, however we end.

    Raises the error that it reports, BackendError where it died without a word.
    """
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                for event in parse_lines(line):
                    if event["event"] == "error":
                        raise _as_raised(event)
                    yield event
        except BaseException:
            _end(process)
            raise
        if process.wait():
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise BackendError(f"{what}: {words or 'no word of why'}", hint="try once more")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _as_raised(event: dict[str, Any]) -> TrainingError:
    kind = getattr(training_errors, event["kind"], TrainingError)
    error: TrainingError = kind(event["message"], hint=event["hint"])
    return error
