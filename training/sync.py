"""Copies a run from the node's working folder to the store, for as long as the run lives.

Two lanes, each a thread: small records every few seconds, and checkpoints, which may take
minutes and must not hold up the heartbeat. A store that is out of reach stops neither
training nor this: what could not be sent is sent later.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from training import manifest
from training.errors import (
    CheckpointError,
    ObjectDamagedError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from training.events import append_event, parse_lines
from training.layout import (
    CHECKPOINTS,
    LOGS,
    MANIFEST,
    RUN_JSON,
    STATUS_JSON,
    RunPaths,
    Status,
    checkpoint_name,
    checkpoint_step,
    checkpoints_to_drop,
    committed_checkpoints,
    decode,
    run_key,
    write_atomic,
)
from training.storage import Storage

WRITTEN_ELSEWHERE = frozenset({RUN_JSON, f"{LOGS}/provision.log"})
"""Small files that are the laptop's: they only ever lie in the store."""
MAX_BACKOFF_S = 30.0
POLL_S = 0.2


class Sync:
    def __init__(
        self, store: Storage, paths: RunPaths, run_id: str, *, keep: int, every_s: float
    ) -> None:
        self._store = store
        self._paths = paths
        self._run_id = run_id
        self._keep = keep
        self._sent: dict[str, tuple[int, int]] = {}
        self._records_lock = threading.Lock()
        self._checkpoints_lock = threading.Lock()
        self._damaged: set[int] = set()
        self._closing = threading.Event()
        self._is_unreachable = False
        self.upload_s = 0.0
        """The longest that a checkpoint took to send: part of what going down costs."""
        self._threads = [
            threading.Thread(target=self._lane, args=(verb, every_s), name=verb.__name__)
            for verb in (self.send_records, self.send_checkpoints)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.daemon = True  # an upload that hangs must not keep the node up
            thread.start()

    def flush(
        self,
        *,
        timeout_s: float,
        tick: Callable[[], None],
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """Send all that is not yet sent, calling `tick` meanwhile; the lanes go on.

        `first` sends what else there is. Raises StorageError if `timeout_s` did not suffice.
        """

        def send() -> None:
            first()
            self.send_checkpoints()
            self.send_records()

        self._insist(send, timeout_s, tick)

    def close(self, status: bytes, *, timeout_s: float) -> None:
        """Send the last records, and last of all `status`, the run's last word.

        Raises StorageError if `timeout_s` did not suffice.
        """
        self._closing.set()

        def send() -> None:
            self.send_records()
            # From memory: a full disk may not have taken it.
            self._store.write(run_key(self._run_id, STATUS_JSON), status)

        self._insist(send, timeout_s, tick=lambda: None)

    def send_records(self) -> None:
        """Every small file that changed since it was last sent. Raises StorageError."""
        with self._records_lock:
            folder = self._paths.folder
            for path in sorted(self._records()):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    version = (stat.st_mtime_ns, stat.st_size)
                    name = path.relative_to(folder).as_posix()
                    if self._sent.get(name) != version:
                        self._store.write(run_key(self._run_id, name), path.read_bytes())
                        self._sent[name] = version

    def send_checkpoints(self) -> None:
        """Every committed checkpoint that the store lacks, then retention on both sides."""
        with self._checkpoints_lock:
            self._retain()
            stored = [s for s in self.stored_checkpoints() if s not in self._damaged]
            for step in committed_checkpoints(self._paths.checkpoints):
                if step not in stored:
                    started = time.monotonic()
                    if self._send_checkpoint(step):
                        stored.append(step)
                        self._damaged.discard(step)
                        self.upload_s = max(self.upload_s, time.monotonic() - started)
            for step in checkpoints_to_drop(stored, keep=self._keep, best=self._best(stored)):
                self._drop_stored(step)

    def fetch_records(self) -> None:
        """Bring back what earlier lives on other nodes wrote. Raises StorageError.

        What this node has itself may be newer than the store, but for a life it knows nothing of.
        On a node that is new to the run, its own logs have begun: theirs go before them.
        """
        prefix = run_key(self._run_id) + "/"
        elsewhere, is_new = self._was_elsewhere(), not self._paths.status.exists()
        for stored in self._store.list(prefix):
            name = stored.key.removeprefix(prefix)
            path = self._paths.folder / name
            if name.startswith(CHECKPOINTS) or name in WRITTEN_ELSEWHERE:
                continue
            if elsewhere or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._store.download(stored.key, path)
            elif is_new and name.startswith(LOGS):
                _put_before(path, self._store.read(stored.key))

    def fetch_newest_checkpoint(self) -> list[str]:
        """Have the newest whole checkpoint in the working folder; why newer ones were not taken.

        Raises StorageError where the store, or the disk, would not have it.
        """
        skipped = []
        whole, _ = manifest.newest_valid(self._paths.checkpoints)
        local = checkpoint_step(whole.name) if whole else None
        for step in reversed(self.stored_checkpoints()):
            if local is not None and step <= local:
                break
            manifest.drop(self._paths.checkpoints, step)
            try:
                self.fetch_checkpoint(step)
            except (ObjectDamagedError, ObjectNotFoundError, CheckpointError) as error:
                manifest.drop(self._paths.checkpoints, step)
                self._damaged.add(step)  # training comes by there again: then it is sent anew
                skipped.append(error.message)
            else:
                break
        return skipped

    def stored_checkpoints(self) -> list[int]:
        """Steps of the checkpoints that are whole in the store, oldest first."""
        prefix = run_key(self._run_id, CHECKPOINTS) + "/"
        keys = [o.key.removeprefix(prefix).split("/") for o in self._store.list(prefix)]
        steps = [checkpoint_step(k[0]) for k in keys if len(k) == 2 and k[1] == MANIFEST]
        return sorted(step for step in steps if step is not None)

    def fetch_checkpoint(self, step: int) -> None:
        """Bring a stored checkpoint into the working folder, verified, manifest last."""
        name = checkpoint_name(step)
        folder = self._paths.checkpoint(step)
        key = run_key(self._run_id, CHECKPOINTS, name)
        data = self._store.read(f"{key}/{MANIFEST}")
        folder.mkdir(parents=True, exist_ok=True)
        for entry in manifest.parse(data, name).files:
            path = folder / entry.name
            self._store.download(f"{key}/{entry.name}", path, sha256=entry.sha256)
        write_atomic(folder / MANIFEST, data)

    def _records(self) -> Iterator[Path]:
        """All small files. Keeps out of the checkpoints, which training renames meanwhile."""
        for folder, folders, names in os.walk(self._paths.folder):
            folders[:] = [name for name in folders if name != CHECKPOINTS]
            for name in names:
                path = Path(folder, name)
                is_ours = path.relative_to(self._paths.folder).as_posix() not in WRITTEN_ELSEWHERE
                if is_ours and not name.startswith("."):
                    yield path

    def _was_elsewhere(self) -> bool:
        """Whether the store tells of a later life than the working folder does."""
        try:
            local = decode(self._paths.status.read_bytes(), Status, name=STATUS_JSON)
            stored = self._store.read(run_key(self._run_id, STATUS_JSON))
        except (FileNotFoundError, ObjectNotFoundError):
            return False
        return decode(stored, Status, name=STATUS_JSON).life > local.life

    def _send_checkpoint(self, step: int) -> bool:
        folder = self._paths.checkpoint(step)
        try:
            files = manifest.verify(folder).files
        except CheckpointError:
            return False  # damaged since, or let go of: a newer one is on its way
        key = run_key(self._run_id, CHECKPOINTS, folder.name)
        for name in (*(entry.name for entry in files), MANIFEST):
            self._store.upload(folder / name, f"{key}/{name}")
        return True

    def _drop_stored(self, step: int) -> None:
        prefix = run_key(self._run_id, CHECKPOINTS, checkpoint_name(step)) + "/"
        self._store.delete([prefix + MANIFEST])
        self._store.delete([o.key for o in self._store.list(prefix)])

    def _retain(self) -> None:
        steps = committed_checkpoints(self._paths.checkpoints)
        for step in checkpoints_to_drop(steps, keep=self._keep, best=self._best(steps)):
            manifest.drop(self._paths.checkpoints, step)

    def _best(self, steps: list[int]) -> int | None:
        """Of these steps the one with the lowest validation loss measured at it."""
        try:
            lines = parse_lines(self._paths.metrics.read_bytes())
        except FileNotFoundError:
            return None
        losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
        evaluated = [step for step in steps if step in losses]
        return min(evaluated, key=losses.__getitem__, default=None)

    def _insist(self, send: Callable[[], None], timeout_s: float, tick: Callable[[], None]) -> None:
        """Try `send` until it works; in a thread, as a store may hang instead of failing."""
        given_up, sent = threading.Event(), threading.Event()
        why = "it takes longer"

        def attempt() -> None:
            nonlocal why
            pause_s = 0.5
            while not given_up.is_set():
                try:
                    send()
                except (StorageError, OSError) as error:
                    why = str(error)
                    given_up.wait(pause_s)
                    pause_s = min(2 * pause_s, MAX_BACKOFF_S)
                else:
                    sent.set()
                    return

        sending = threading.Thread(target=attempt, daemon=True)
        sending.start()
        deadline = time.monotonic() + timeout_s
        while sending.is_alive() and time.monotonic() < deadline:
            sending.join(POLL_S)
            tick()
        given_up.set()
        if not sent.is_set():
            raise StorageUnavailableError(
                f"the store did not take everything in the {timeout_s:.0f} s there were: {why}",
                hint="what it lacks is still in the node's folder, and sent when the run resumes",
            )

    def _lane(self, verb: Callable[[], None], every_s: float) -> None:
        pause_s = every_s
        while not self._closing.wait(pause_s):
            try:
                verb()
            except (StorageError, OSError) as error:
                pause_s = min(2 * pause_s, MAX_BACKOFF_S)
                if not self._is_unreachable:
                    self._is_unreachable = True
                    self._tell("store_unreachable", why=str(error))
            else:
                pause_s = every_s
                if self._is_unreachable:
                    self._is_unreachable = False
                    self._tell("store_recovered")

    def _tell(self, event: str, **fields: str) -> None:
        with contextlib.suppress(OSError):  # the disk may be full
            append_event(self._paths.events, event, **fields)


def _put_before(path: Path, data: bytes) -> None:
    """In place, as another process has the file open to append to it."""
    with path.open("r+b") as file:
        own = file.read()
        file.seek(0)
        file.write(data + own)
