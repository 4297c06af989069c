"""What happened on a machine before its supervisor did: how long it took, and where it failed.

`bootstrap.sh` writes a line `<seconds of uptime> <phase>` as each phase begins; the last one
lasts until the supervisor takes over. A node that fails without being the one that owns the
record leaves a note in the store, which that one's supervisor reads when it is told to stop.
"""

from datetime import datetime
from pathlib import Path

from training.errors import ObjectNotFoundError, StorageError
from training.layout import Record, decode, encode, run_key
from training.storage import Storage

BOOTING = "booting"
UPTIME = Path("/proc/uptime")
NOTES = "nodes"


class SetupFailure(Record, frozen=True, kw_only=True):
    """Why a node could not be set up."""

    node_rank: int
    message: str
    hint: str
    at: datetime


def read_uptime_s() -> float:
    """The machine's clock that nobody sets; 0 where it has none, and no bootstrap either."""
    try:
        return float(UPTIME.read_text().split()[0])
    except FileNotFoundError:
        return 0.0


def read_setup(path: Path, *, age_s: float, now_s: float) -> list[tuple[str, float]]:
    """Phases and their seconds, none of it longer than `age_s` before the uptime `now_s`:

    that was billed, or was not ours. A machine that had booted before did not boot for us. A
    missing file, or a torn line, is no time: the bill must not stop the run.
    """
    begun = _read_lines(path)
    if not begun:
        return []
    since_s = now_s - age_s
    ends = [start for start, _ in begun[1:]] + [now_s]
    spent = []
    for (start, phase), end in zip(begun, ends, strict=True):
        if phase == BOOTING and start < since_s:
            continue
        seconds = end - max(start, since_s)
        if seconds >= 0:  # the kernel tells hundredths: a phase may be shorter
            spent.append((phase, seconds))
    return spent


def report_failure(store: Storage, run_id: str, failure: SetupFailure, log: Path) -> None:
    """Leave the note, and the log that goes with it. Raises StorageError."""
    if log.is_file():
        store.upload(log, run_key(run_id, "logs", log.name))
    store.write(run_key(run_id, NOTES, f"{failure.node_rank}.json"), encode(failure))


def take_failure(store: Storage, run_id: str, *, since: datetime) -> SetupFailure | None:
    """The note of a node that failed since then, if any. What was read is gone."""
    try:
        keys = [found.key for found in store.list(run_key(run_id, NOTES) + "/")]
        notes = [decode(store.read(key), SetupFailure, name=key) for key in keys]
        store.delete(keys)
    except (StorageError, ObjectNotFoundError):
        return None
    return next((note for note in notes if note.at >= since), None)


def _read_lines(path: Path) -> list[tuple[float, str]]:
    found = []
    if path.is_file():
        for line in path.read_text().splitlines():
            start, _, phase = line.partition(" ")
            try:
                found.append((float(start), phase))
            except ValueError:
                continue
    return found
