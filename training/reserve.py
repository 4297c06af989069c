"""What a run keeps back of its limits, in seconds, to get out safely (pure).

Training is asked to stop while `Reserve.seconds` are left, and what has not ended by itself is
killed while `Reserve.last_call_s` are. The first keeps what was learned since the last
checkpoint, where saving takes no longer than it did; the second keeps the limits, however long
it takes.
"""

from msgspec import Struct
from msgspec.structs import replace

SETTLE_S = 2.5
"""For processes to end that have saved."""
LAST_CALL_S = 2.5
"""To kill what has not ended, to send what is small, and to write down how the run ended."""
CLOSING_S = 1.0
"""Of that, for the last: the bill is closed within it."""
FINISH_TIMEOUT_S = 900.0
"""Longest wait at the end for a store that is out of reach, where the limits allow as much."""

SAVE_BYTES_PER_S = 125e6
"""Until a save was measured: a gp3 disk of AWS as it comes (125 MiB/s, by its documentation)."""
UPLOAD_BYTES_PER_S = 40e6
"""Until an upload was measured: a third of a line of 1 Gbit/s. Clouds have more; assumed, as the
store may be in another one."""
REQUESTS_S = 2.0
"""Beside the bytes, what the dozen requests of a checkpoint take, one after the other, to a store
over a network: a tenth of a second each, and what a busy machine adds. Assumed."""
OTHER_MACHINE = 1.5
"""The machine that takes a lost one's place may need so much longer to be ready."""


class Reserve(Struct, frozen=True, kw_only=True):
    """Seconds it takes to get out safely: reach a boundary, save, upload, go down.

    What is measured is the longest seen so far, so that the reserve grows with experience.
    """

    boundary_s: float = 0.0
    save_s: float = 0.0
    upload_s: float = 0.0
    guessed_save_s: float = 0.0
    """What stands for the two above until they are measured."""
    guessed_upload_s: float = 0.0
    teardown_s: float = 0.0
    """Billed after the supervisor's last word, until the machine is gone; not learned."""
    recovery_s: float = 0.0
    """Billed before another machine's supervisor could end a run whose machine is lost now."""

    @property
    def seconds(self) -> float:
        """Left when training is asked to stop. Saving and sending are counted twice:

        those of the checkpoint before may still be under way, or they may slow down.
        """
        save_s = self.save_s or self.guessed_save_s
        upload_s = self.upload_s or self.guessed_upload_s
        return SETTLE_S + self.boundary_s + 2 * (save_s + upload_s) + self.last_call_s

    @property
    def last_call_s(self) -> float:
        """Left when whatever has not ended is killed, its save with it."""
        return LAST_CALL_S + self.kept_s

    @property
    def kept_s(self) -> float:
        """Never to be used by what runs here."""
        return self.teardown_s + self.recovery_s

    def finish_s(self, left_s: float) -> float:
        """Longest that sending the rest may take, of what is left; at least `CLOSING_S`."""
        return max(CLOSING_S, min(FINISH_TIMEOUT_S, left_s - self.kept_s - CLOSING_S))

    def learn(
        self, *, boundary_s: float = 0.0, save_s: float = 0.0, upload_s: float = 0.0
    ) -> "Reserve":
        return replace(
            self,
            boundary_s=max(self.boundary_s, boundary_s),
            save_s=max(self.save_s, save_s),
            upload_s=max(self.upload_s, upload_s),
        )


def first_reserve(
    *,
    checkpoint_bytes: int,
    teardown_s: float,
    setup_s: float = 0.0,
    loss_s: float | None = None,
    requests_s: float = 0.0,
) -> Reserve:
    """What is known of a life before it has saved anything.

    `requests_s`: of each upload, beside its bytes.
    `loss_s`, where another machine comes by itself when this one is lost: the most that is
    billed of this one after its last heartbeat. `setup_s`: what this one took to be ready.
    """
    return Reserve(
        guessed_save_s=checkpoint_bytes / SAVE_BYTES_PER_S,
        guessed_upload_s=checkpoint_bytes / UPLOAD_BYTES_PER_S + requests_s,
        teardown_s=teardown_s,
        recovery_s=0.0 if loss_s is None else loss_s + OTHER_MACHINE * setup_s + LAST_CALL_S,
    )
