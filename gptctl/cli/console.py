"""The two streams: data goes to stdout, talk goes to stderr.

rich is imported on first use, so that a command that writes JSON never waits for it.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 120
"""Columns of a table that goes to a file or a pipe, which has no width of its own."""


def data_console() -> "Console":
    """For what was asked for: tables and text on stdout."""
    return _console(stderr=False)


def talk_console() -> "Console":
    """For everything around it on stderr: plans, questions, progress, the next command."""
    return _console(stderr=True)


def say(line: str) -> None:
    """A line of talk, as it comes."""
    talk_console().print(line, soft_wrap=True)


def warn(line: str) -> None:
    """Also beside a command that never loads rich."""
    sys.stderr.write(f"warning: {line}\n")


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    class OwnConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # the error being handled: rich would exit with 1, our boundary knows better

    # Our own text is never markup or an emoji code: a path such as `a[0]` must come out as it is.
    console = OwnConsole(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and console.width < PIPE_WIDTH:
        console.width = PIPE_WIDTH
    return console


def is_terminal() -> bool:
    """Can we ask a question here, and will its answer come from a person?"""
    return sys.stdin.isatty() and sys.stderr.isatty()


def print_json(value: Any) -> None:
    """One document on stdout: `Decimal` as a string, times in ISO 8601, nothing rounded."""
    data = msgspec.json.format(msgspec.json.encode(value, enc_hook=_encode), indent=2)
    sys.stdout.write(data.decode() + "\n")


def _encode(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no form in JSON")
