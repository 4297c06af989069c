"""What was shown of a log, so that each of its bytes is shown once, wherever it came from."""


class Transcript:
    """A log has one text: every source has the same bytes at the same places, or not yet."""

    def __init__(self) -> None:
        self._shown = bytearray()

    @property
    def size(self) -> int:
        return len(self._shown)

    def add(self, data: bytes, at: int) -> bytes:
        """What is new of `data`, which begins at byte `at`: nothing that lies beyond a gap."""
        if at > self.size:
            return b""
        news = data[self.size - at :]
        self._shown += news
        return news

    def take(self, whole: bytes) -> bytes:
        """What is new of the log as the store has it.

        The store lags behind: what it lacks is not taken back. Where it differs, a machine was
        lost with its last lines, and another goes on from before them: from that line on, it is
        new.
        """
        common = min(len(whole), self.size)
        if whole[:common] != self._shown[:common]:
            differs = _first_difference(whole, self._shown)
            del self._shown[whole.rfind(b"\n", 0, differs) + 1 :]
        return self.add(whole, 0)


def _first_difference(one: bytes, other: bytes | bytearray) -> int:
    """Where they first differ, by halves: a comparison of bytes is quick, a loop is not."""
    same, differs = 0, min(len(one), len(other))
    while differs - same > 1:
        middle = (same + differs) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differs = middle
    return same
