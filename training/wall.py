"""The wall behind the meter: the machine's own daemon ends it when the limits are used up.

It strikes however sick the supervisor is by then, and with nobody else awake.
"""

import subprocess
import threading
from collections.abc import Callable

ARM_AFTER_S = 20.0
"""SkyPilot has armed it before our first line ran; arming it anew, at the same time as torch is
imported and the first shard is written, would keep two processors of a small machine from that."""
ARM_TIMEOUT_S = 60.0
"""Setting the time of the end writes one row; a cold Python may take seconds to come to it."""


class Wall:
    """`go_down_in` is a program that takes minutes; None where there is no machine to end."""

    def __init__(self, go_down_in: str | None) -> None:
        self._go_down_in = go_down_in
        self._arming: threading.Thread | None = None
        self._is_due = threading.Event()

    def arm(self, minutes: int, *, tell: Callable[..., None]) -> None:
        """Have the machine end in so many minutes, from when training begins or soon after now.

        Returns at once; `tell` is called with an event's name and fields, from another thread.
        """
        if self._go_down_in is not None:
            command = [self._go_down_in, str(minutes)]
            arguments = (self._is_due, command, minutes, tell)
            self._arming = threading.Thread(target=_arm, args=arguments, daemon=True)
            self._arming.start()

    def hurry(self) -> None:
        """There is time for it now."""
        self._is_due.set()

    def settle(self) -> None:
        """Wait until it is armed or is known not to be: later it would undo what comes after."""
        self.hurry()
        if self._arming is not None:
            self._arming.join(ARM_TIMEOUT_S + 1)


def _arm(
    is_due: threading.Event, command: list[str], minutes: int, tell: Callable[..., None]
) -> None:
    is_due.wait(ARM_AFTER_S)
    try:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=ARM_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        tell("wall_not_armed", why=f"{error}: {error.stderr.strip()[-500:]}")
    except (OSError, subprocess.SubprocessError) as error:
        tell("wall_not_armed", why=str(error))
    else:
        tell("wall_armed", minutes=minutes)
