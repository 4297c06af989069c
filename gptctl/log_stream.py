"""A log as it grows: live from the node while it can be had, else from the store."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

from gptctl.backends import LOCAL
from gptctl.errors import BackendError
from gptctl.monitor import Look, Wait
from gptctl.runs import RunView
from gptctl.transcript import Transcript
from training.errors import ObjectNotFoundError, StorageUnavailableError
from training.layout import LOGS, run_key
from training.storage import Storage

BEGINNING = ("provision", "setup")
"""The stages of a rented run before that of its job, in order."""
SILENT_S = 30.0
"""A live source that is silent for so long may be dead: the store is asked, too."""

OpenLive = Callable[[int], Iterator[bytes]]
"""The node's log from that byte on; an empty chunk now and then while nothing comes."""


def is_past(stage: str, view: RunView) -> bool:
    """Whether nothing more is to be expected of the stage's log."""
    if view.is_over and (view.cloud != LOCAL or view.backend != "running"):
        return True  # a rented machine has sent its logs before it says so
    has_begun = view.state not in ("pending", "provisioning")
    if stage == "provision":
        return not view.is_launching and (has_begun or view.backend == "running")
    return stage == "setup" and has_begun


def follow_log(
    store: Storage,
    run_id: str,
    stage: str,
    look: Look,
    *,
    open_live: OpenLive | None = None,
    wait: Wait,
    poll_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[bytes]:
    """The stage's log from its start, and what is added to it until it is past.

    The run is looked at every `poll_s`, which is also how long `wait` lasts. A store that is
    out of reach for a while only makes for a pause, once it was reached.
    """
    text, live = Transcript(), _Live(open_live)
    read = _reader(store, run_key(run_id, LOGS, f"{stage}.log"))
    view = look()
    try:
        while not is_past(stage, view):
            if not live.is_heard(now=clock()):
                with suppress(StorageUnavailableError):
                    yield text.take(read())
                live.keep_within(text.size)
            if view.backend == "running":
                live.open(text.size)
            yield from live.listen(text, until=clock() + poll_s, clock=clock)
            if not live.is_open:
                wait()
            with suppress(StorageUnavailableError):
                view = look()
        if stage == "provision":
            wait()  # the launcher says that it is done, then sends its last lines
        yield from live.drain(text)
    finally:
        live.close()
    yield text.take(read())


def _reader(store: Storage, key: str) -> Callable[[], bytes]:
    """The log as the store has it, not read again while it is no longer than it was."""
    last = b""

    def read() -> bytes:
        nonlocal last
        size = next((found.size_bytes for found in store.list(key) if found.key == key), 0)
        if size != len(last):
            with suppress(ObjectNotFoundError):
                last = store.read(key)
        return last

    return read


class _Live:
    """The live source, while there is one. `at`: the place of its next byte in the log."""

    def __init__(self, open_live: OpenLive | None) -> None:
        self._open_live = open_live
        self._chunks: Iterator[bytes] | None = None
        self._at = 0
        self._heard_at: float | None = None

    @property
    def is_open(self) -> bool:
        return self._chunks is not None

    def open(self, at: int) -> None:
        if self._open_live is not None and self._chunks is None:
            self._chunks, self._at, self._heard_at = self._open_live(at), at, None

    def is_heard(self, *, now: float) -> bool:
        """Whether it said something lately: else it may be dead, or never have been there."""
        return self._heard_at is not None and now - self._heard_at < SILENT_S

    def keep_within(self, size: int) -> None:
        """Close it where it is beyond what was shown: its next words would leave a gap."""
        if self._at > size:
            self.close()

    def listen(
        self, text: Transcript, *, until: float, clock: Callable[[], float]
    ) -> Iterator[bytes]:
        """What it says that is new, until then or until it ends."""
        while self._chunks is not None and (now := clock()) < until:
            if chunk := self._next():
                self._heard_at = now
                yield self._add(chunk, text)

    def drain(self, text: Transcript) -> Iterator[bytes]:
        """What it has already said."""
        while self._chunks is not None and (chunk := self._next()):
            yield self._add(chunk, text)

    def close(self) -> None:
        if isinstance(self._chunks, Generator):
            self._chunks.close()
        self._chunks, self._heard_at = None, None

    def _add(self, chunk: bytes, text: Transcript) -> bytes:
        at, self._at = self._at, self._at + len(chunk)
        return text.add(chunk, at)

    def _next(self) -> bytes:
        """Nothing where it has ended, or the node cannot be had: then it is closed."""
        try:
            return next(self._chunks or iter(()))
        except (StopIteration, BackendError):
            self.close()
            return b""
