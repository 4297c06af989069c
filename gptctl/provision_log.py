"""What the cloud said while a machine was made: shown, and kept with the run's other logs."""

import time
from contextlib import suppress
from datetime import UTC, datetime

from gptctl.backends import Tell
from training.errors import StorageError
from training.layout import LOGS, run_key
from training.storage import Storage

SEND_EVERY_S = 2.0


class ProvisionLog:
    """Takes lines and passes them on; the store gets them every few seconds.

    This log alone is written from here, every other from the node. A store that does not take
    it must not keep a launch, or the end of one, from going on.
    """

    def __init__(self, store: Storage, run_id: str, tell: Tell) -> None:
        self._store = store
        self._key = run_key(run_id, LOGS, "provision.log")
        self._tell = tell
        self._text: bytes | None = None
        self._unsent = False
        self._sent_at = 0.0

    def __call__(self, line: str) -> None:
        self._tell(line)
        self.keep(line)

    def keep(self, line: str) -> None:
        """Without showing it."""
        if self._text is None:
            self._text = self._earlier()
        self._text += f"{datetime.now(UTC):%H:%M:%S} {line}\n".encode()
        self._unsent = True
        if time.monotonic() - self._sent_at >= SEND_EVERY_S:
            self.close()

    def close(self) -> None:
        """Send what is not yet sent."""
        if self._unsent and self._text is not None:
            with suppress(StorageError):
                self._store.write(self._key, self._text)
            self._unsent = False
            self._sent_at = time.monotonic()

    def _earlier(self) -> bytes:
        try:
            return self._store.read(self._key)
        except StorageError:  # a first launch has none
            return b""
