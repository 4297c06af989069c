"""Append-only JSON lines: what happened in a run, and what training measured.

Each line is one `write` to a file opened for appending, so that the supervisor, the
preparation and rank 0 can share `events.jsonl` without a lock.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec


def append_line(path: Path, line: dict[str, Any]) -> None:
    data = msgspec.json.encode(line) + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def append_event(path: Path, event: str, **fields: Any) -> None:
    """Add `{"at": <aware UTC>, "event": event, **fields}` to `path`."""
    append_line(path, {"at": datetime.now(UTC), "event": event, **fields})


def parse_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """The whole lines of `data`; a torn line, as a killed writer leaves, is passed over."""
    for line in data.split(b"\n"):
        if line:
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue


class Tail:
    """Reads what was added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """New whole lines. A file that was replaced by a shorter one is read from its start."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(parse_lines(whole))
