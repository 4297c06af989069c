"""What the store tells a node of the head's doings: how far its life is, and whether it lives.

Torch-free. Read in a thread, as a store may hang instead of failing.
"""

import threading
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from msgspec import Struct

from training.errors import ObjectNotFoundError, StorageError, TrainingError
from training.events import parse_lines
from training.layout import EVENTS, LIVING, STATUS_JSON, State, Status, decode, run_key
from training.storage import Storage

MAX_BACKOFF_S = 30.0


class News(Struct, frozen=True, kw_only=True):
    """As of one reading. `deaths`: how often training died in this life of the run."""

    state: State
    updated_at: datetime
    is_over: bool
    life: int
    deaths: int
    is_checked: bool
    """The GPUs of all nodes have been checked in this life."""
    is_open: bool
    """Training has not begun since it last died: its group can still be joined."""
    is_stalled: bool = False
    """Training hangs, and will be killed in some seconds."""


def make_news(status: Status, events: Iterable[dict[str, Any]]) -> News:
    life, deaths, is_checked, is_open, is_stalled = status.life, 0, False, True, False
    for event in events:
        match event["event"]:
            case "life_started":
                life, deaths, is_checked, is_open = event["life"], 0, False, True
                is_stalled = False
            case "phase_started":
                is_checked = is_checked or event["phase"] in ("preparing", "training")
            case "training_started" | "training_resumed":
                is_open = False
            case "training_stalled":
                is_stalled = True
            case "training_died":
                deaths, is_open, is_stalled = deaths + 1, True, False
    return News(
        state=status.state,
        updated_at=status.updated_at,
        is_over=status.is_over,
        life=life,
        deaths=deaths,
        is_checked=is_checked,
        is_open=is_open,
        is_stalled=is_stalled,
    )


def read_news(store: Storage, run_id: str) -> News | None:
    """None before there is any. Raises StorageError, and TrainingError for a damaged record."""
    try:
        data = store.read(run_key(run_id, STATUS_JSON))
    except ObjectNotFoundError:
        return None
    status = decode(data, Status, name=STATUS_JSON)
    try:
        events = store.read(run_key(run_id, EVENTS))
    except ObjectNotFoundError:
        events = b""
    return make_news(status, parse_lines(events))


class HeadWatch:
    """Reads the news every `every_s`, less often while the store is out of reach."""

    def __init__(self, store: Storage, run_id: str, *, every_s: float) -> None:
        self._store = store
        self._run_id = run_id
        self._every_s = every_s
        self._first: News | None = None
        self._changed_at = time.monotonic()
        self._closing = threading.Event()
        self.news: News | None = None
        self.trouble: str | None = None
        """Why the last reading failed; None: it did not."""
        self._thread = threading.Thread(target=self._read, name="head-news", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()

    @property
    def silence_s(self) -> float:
        """Seconds since there was anything new."""
        return time.monotonic() - self._changed_at

    def is_alive(self, news: News) -> bool:
        """Whether a head wrote it that lives now, not one of a machine lost since.

        Told by its heartbeat having moved while we looked: clocks of machines may differ.
        """
        first = self._first
        return news.state in LIVING and (first is None or news.updated_at != first.updated_at)

    def _read(self) -> None:
        pause_s = self._every_s
        is_first = True
        while True:
            try:
                news = read_news(self._store, self._run_id)
            except (StorageError, TrainingError, OSError) as error:
                self.trouble = str(error)
                pause_s = min(2 * pause_s, MAX_BACKOFF_S)
            else:
                self.trouble = None
                pause_s = self._every_s
                if is_first:
                    self._first, is_first = news, False
                if news != self.news:
                    self._changed_at = time.monotonic()
                    self.news = news
            if self._closing.wait(pause_s):
                return
