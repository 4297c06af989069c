"""Which updates to skip: those whose loss or gradient lies far above the last ones' (llm.c's rule).

Pure. A z-score is taken over the last WINDOW values, the new one among them, which bounds it by
√(WINDOW - 1) = 7.9. A skipped value leaves the window as it was; from the third in a row on they
stay in it, so that values which have changed for good are soon usual. Source: llm.c,
`llmc/outlier_detector.h`.
"""

from math import sqrt

from training.layout import Record

WINDOW = 64
PATIENCE = 3


class Recent(Record, frozen=True, kw_only=True):
    """The last values, oldest first, and how many before now were skipped in a row."""

    values: tuple[float, ...] = ()
    skipped: int = 0

    def take(self, value: float, *, limit: float) -> tuple["Recent", float | None]:
        """The window with `value` in it, and its z-score where the update is to be skipped.

        `limit` is of the z-score; 0: never skip.
        """
        values = (*self.values, value)[-WINDOW:]
        if len(self.values) < WINDOW:
            return Recent(values=values), None
        z = _z_score(values)
        if not limit or z <= limit:
            return Recent(values=values), None
        skipped = self.skipped + 1
        return Recent(values=self.values if skipped < PATIENCE else values, skipped=skipped), z


def _z_score(values: tuple[float, ...]) -> float:
    """Of the last of them."""
    mean = sum(values) / len(values)
    deviation = sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return (values[-1] - mean) / deviation if deviation else 0.0
