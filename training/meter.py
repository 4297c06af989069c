"""What the run has cost, second by second, and when it must stop to stay inside its limits."""

from decimal import Decimal
from math import ceil, inf, isinf

from msgspec import Struct
from msgspec.structs import replace

from training.layout import BillLine


class Meter:
    """The bill of all lives, to which this life's phases are added as they pass.

    Takes durations, not clock readings: the caller measures them with a monotonic clock.
    """

    def __init__(self, bill: tuple[BillLine, ...], *, life: int, price_per_hour: Decimal) -> None:
        self._earlier = bill
        self._life = life
        self._price = price_per_hour
        self._phases: dict[str, float] = {}

    def add(self, phase: str, seconds: float) -> None:
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    @property
    def bill(self) -> tuple[BillLine, ...]:
        now = (
            BillLine(
                life=self._life,
                phase=phase,
                seconds=round(seconds, 3),
                price_per_hour=self._price,
            )
            for phase, seconds in self._phases.items()
        )
        return (*self._earlier, *now)

    @property
    def spent_usd(self) -> Decimal:
        return sum((line.usd for line in self.bill), Decimal(0))

    @property
    def seconds(self) -> float:
        """Billed time of all lives."""
        return sum(line.seconds for line in self.bill)


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
        return float((self.budget_usd - meter.spent_usd) * 3600 / self.price_per_hour)

    def _time_left_s(self, meter: Meter) -> float:
        return inf if self.max_hours is None else self.max_hours * 3600 - meter.seconds


class Reserve(Struct, frozen=True, kw_only=True):
    """Seconds it takes to get out safely: reach a boundary, save, upload, go down.

    Each is the longest seen so far, so that the reserve grows with the run's experience.
    """

    boundary_s: float = 0.0
    save_s: float = 0.0
    upload_s: float = 0.0
    teardown_s: float = 0.0
    """Billed after the supervisor's last word, until the machine is gone; not learned."""

    @property
    def seconds(self) -> float:
        """Saving and sending counted twice, as they may slow down; 5 s for processes to end."""
        return 5.0 + self.boundary_s + 2 * (self.save_s + self.upload_s) + self.teardown_s

    def learn(
        self, *, boundary_s: float = 0.0, save_s: float = 0.0, upload_s: float = 0.0
    ) -> "Reserve":
        return replace(
            self,
            boundary_s=max(self.boundary_s, boundary_s),
            save_s=max(self.save_s, save_s),
            upload_s=max(self.upload_s, upload_s),
        )
