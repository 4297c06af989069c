"""What the run has cost, second by second, and how much is left of its limits.

Pure: it takes durations, which the caller measures with a monotonic clock.
"""

from datetime import datetime
from decimal import Decimal
from math import ceil, inf, isinf

from msgspec import Struct
from msgspec.structs import replace

from training.layout import LIVING, ROUNDING_USD, BillLine, Status

LOST = "lost"
TRAINING = "training"
LINES_TO_COME = 6
"""At most so many a life: three of time beside training, `finishing`, `hung`, `going_down`."""


class Meter:
    """The bill of all lives, to which this life's phases are added as they pass."""

    def __init__(
        self, bill: tuple[BillLine, ...], *, life: int, price_per_hour: Decimal, nodes: int = 1
    ) -> None:
        """`price_per_hour`: of all `nodes` together."""
        self._earlier = bill
        self._earlier_usd = _sum_usd(bill)
        self._life = life
        self._price = price_per_hour
        self._nodes = nodes
        self._phases: dict[str, float] = {}

    def add(self, phase: str, seconds: float) -> None:
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    def move(self, seconds: float, *, to: str) -> None:
        """Out of `training`, where they were billed as they passed; no more than there is."""
        seconds = min(seconds, self._phases.get(TRAINING, 0.0))
        if seconds > 0:
            self.add(TRAINING, -seconds)
            self.add(to, seconds)

    @property
    def bill(self) -> tuple[BillLine, ...]:
        now = (
            BillLine(
                life=self._life,
                phase=phase,
                seconds=round(seconds, 3),
                price_per_hour=self._price,
                nodes=self._nodes,
            )
            for phase, seconds in self._phases.items()
        )
        return (*self._earlier, *now)

    @property
    def spent_usd(self) -> Decimal:
        return _sum_usd(self.bill)

    @property
    def most_usd(self) -> Decimal:
        """What a bill of no more time may come to, each line that it has or may get rounded up."""
        exact = Decimal(sum(self._phases.values())) * self._price / 3600
        return self._earlier_usd + exact + ROUNDING_USD * (len(self._phases) + LINES_TO_COME)

    @property
    def seconds(self) -> float:
        """Billed time of all lives."""
        return sum(line.seconds for line in self._earlier) + sum(self._phases.values())


class Limits(Struct, frozen=True, kw_only=True):
    """Where the run must stop, all lives together."""

    budget_usd: Decimal | None
    max_hours: float | None
    price_per_hour: Decimal

    def reached(self, meter: Meter, *, reserve_s: float) -> str | None:
        """`budget` or `deadline` when no more than `reserve_s` seconds are left before it."""
        if self._budget_left_s(meter) <= reserve_s:
            return "budget"
        return "deadline" if self._time_left_s(meter) <= reserve_s else None

    def left_s(self, meter: Meter) -> float:
        """Seconds until the first of the two; infinite where there is neither."""
        return min(self._budget_left_s(meter), self._time_left_s(meter))

    def minutes_left(self, meter: Meter) -> int | None:
        """Whole minutes, at least one, after which a limit has been passed; None: there is none."""
        left_s = self.left_s(meter)
        return None if isinf(left_s) else max(1, ceil(left_s / 60))

    def _budget_left_s(self, meter: Meter) -> float:
        if self.budget_usd is None or not self.price_per_hour:
            return inf
        return float((self.budget_usd - meter.most_usd) * 3600 / self.price_per_hour)

    def _time_left_s(self, meter: Meter) -> float:
        return inf if self.max_hours is None else self.max_hours * 3600 - meter.seconds


def bill_before(
    previous: Status | None,
    *,
    now: datetime,
    setup_s: float,
    heartbeat_s: float,
    teardown_s: float,
) -> tuple[BillLine, ...]:
    """The bill of the lives before this one, and what nobody billed of one without a last word.

    Nobody knows when its machine was lost. It is billed from its last heartbeat until this life
    is, which began `setup_s` ago, but for no longer than until the next heartbeat and the time
    that going down takes. Silence no longer than between two heartbeats is none.
    """
    if previous is None or previous.state not in LIVING or not previous.bill:
        return previous.bill if previous else ()
    silent_s = (now - previous.updated_at).total_seconds() - setup_s
    if silent_s <= heartbeat_s:
        return previous.bill
    seconds = round(min(silent_s, heartbeat_s + teardown_s), 3)
    return (*previous.bill, replace(previous.bill[-1], phase=LOST, seconds=seconds))


def _sum_usd(bill: tuple[BillLine, ...]) -> Decimal:
    return sum((line.usd for line in bill), Decimal(0))
