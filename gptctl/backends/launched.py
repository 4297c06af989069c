"""What was launched from this machine: one small file a run, in a folder of our own.

It tells a run whose machine is gone from one that was never here, and finds what a launch
that was killed half way may have left behind, without asking any cloud.
"""

import os
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct
from msgspec.structs import replace

from training.layout import write_atomic


class Note(Struct, frozen=True, kw_only=True):
    """`launcher`: the process that is starting the run; None once it runs."""

    run_id: str
    store: str
    clouds: tuple[str, ...]
    managed: bool
    text: str | None = None
    launcher: tuple[int, float] | None = None
    """Its id and when it began: an id alone may by now be another's."""
    is_given_back: bool = False
    """Whether the run was seen to be over, and its machine to be gone: nothing is left to ask."""

    @property
    def is_cut_short(self) -> bool:
        """Whether a launch was under way, and whoever was at it is no more."""
        if self.launcher is None:
            return False
        pid, began = self.launcher
        try:
            return abs(psutil.Process(pid).create_time() - began) > 10
        except psutil.Error:
            return True


class Launched:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, note: Note) -> None:
        write_atomic(self._path(note.run_id), msgspec.json.encode(note))

    def read(self, run_id: str) -> Note | None:
        try:
            return msgspec.json.decode(self._path(run_id).read_bytes(), type=Note)
        except (OSError, msgspec.DecodeError):
            return None

    def forget(self, run_id: str) -> None:
        self._path(run_id).unlink(missing_ok=True)

    def settle(self, run_id: str) -> None:
        """Note that nothing of the run is left that could bill. A new launch notes anew."""
        note = self.read(run_id)
        if note is not None and not note.is_given_back:
            with suppress(OSError):  # then it is asked after once more
                self.write(replace(note, launcher=None, is_given_back=True))

    def read_all(self) -> list[Note]:
        notes = (self.read(path.stem) for path in sorted(self._folder.glob("*.json")))
        return [note for note in notes if note is not None]

    def cut_short(self) -> list[Note]:
        """Launches that were killed before they could clean up after themselves."""
        return [note for note in self.read_all() if note.is_cut_short]

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.json"


def this_process() -> tuple[int, float]:
    return os.getpid(), psutil.Process().create_time()
