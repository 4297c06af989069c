"""The wall behind the meter: the machine's own daemon ends it when the limits are used up.

It strikes however sick the supervisor is by then, and with nobody else awake.
"""

import subprocess
import threading
from collections.abc import Callable

ARM_TIMEOUT_S = 60.0
"""Setting the time of the end writes one row; a cold Python may take seconds to come to it."""


class Wall:
    """`go_down_in` is a program that takes minutes; None where there is no machine to end."""

    def __init__(self, go_down_in: str | None) -> None:
        self._go_down_in = go_down_in
        self._arming: threading.Thread | None = None

    def arm(self, minutes: int, *, tell: Callable[..., None]) -> None:
        """Have the machine end in so many minutes. Returns at once; `tell` hears what came of it.

        It is called with an event's name and fields, from another thread.
        """
        if self._go_down_in is not None:
            command = [self._go_down_in, str(minutes)]
            self._arming = threading.Thread(target=_arm, args=(command, minutes, tell), daemon=True)
            self._arming.start()

    def settle(self) -> None:
        """Wait until it is armed or is known not to be: later it would undo what comes after."""
        if self._arming is not None:
            self._arming.join(ARM_TIMEOUT_S + 1)


def _arm(command: list[str], minutes: int, tell: Callable[..., None]) -> None:
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
