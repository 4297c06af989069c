"""Sends a data set to the store while it is being made. A store that fails stops nothing."""

import threading
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic

from training.dataset_store import publish
from training.errors import TrainingError
from training.layout import Shard, read_dataset
from training.storage import Storage

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
PATIENCE_S = 300.0
"""With a store that fails, when all else is done."""
POLL_S = 0.1


class Publisher:
    """A thread that sends what `dataset.json` in `folder` names, whenever it has been woken.

    `tell` hears once that the store is out of reach, and once that it is back.
    """

    def __init__(
        self,
        store: Storage,
        folder: Path,
        *,
        tell: Callable[[str], None],
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._store = store
        self._folder = folder
        self._tell = tell
        self._first_pause_s = first_pause_s
        self._changed = threading.Condition()
        self._asked = 0
        self._done = 0
        self._is_closed = False
        self._fault = ""
        self._failing_since = inf
        self.sent = 0
        """Shards that the store lacked."""
        # A daemon: an upload that hangs must not keep the process, and a node, up.
        threading.Thread(target=self._run, name="publish", daemon=True).start()

    def wake(self) -> None:
        """There are more shards than before."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def close(self, *, timeout_s: float = inf, patience_s: float = inf) -> str:
        """Wait until all is sent, and end; why it is not, if it is not.

        It is not waited for longer than `timeout_s`, nor for a store that has failed for
        `patience_s`; an upload that is slow may take its time.
        """
        self.wake()
        deadline = monotonic() + timeout_s
        with self._changed:
            while (is_unsent := self._done != self._asked) and monotonic() < deadline:
                if monotonic() - self._failing_since > patience_s:
                    break
                self._changed.wait(POLL_S)
            self._is_closed = True
            self._changed.notify_all()
            return (self._fault or f"it takes longer than {timeout_s:.0f} s") if is_unsent else ""

    def _run(self) -> None:
        pause_s = self._first_pause_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._done != self._asked)
                if self._is_closed:
                    return
                asked = self._asked
            try:
                if (dataset := read_dataset(self._folder)) is not None:
                    publish(self._store, self._folder, dataset, self._count)
            except (TrainingError, OSError) as error:
                self._hear(str(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._hear("")
                pause_s = self._first_pause_s
                with self._changed:
                    self._done = asked
                    self._changed.notify_all()

    def _count(self, shard: Shard) -> None:
        self.sent += 1
        self._hear("")

    def _hear(self, fault: str) -> None:
        if fault and not self._fault:
            self._failing_since = monotonic()
            self._tell(f"shards do not reach the store, which is tried again: {fault}")
        elif self._fault and not fault:
            self._failing_since = inf
            self._tell("the store takes shards again")
        self._fault = fault
