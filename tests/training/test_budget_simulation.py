"""Ten thousand runs with the real meter, limits and reserve, in time that is only counted.

The order of things is that of `Life`: ask at the reserve, kill at the last call, send for as long
as is left, close. Saves, uploads, evaluations and preemptions take what chance says, a save now
and then far longer than any before it. What is assumed of the world, and is not shown here:

- The supervisor looks at least each half second, and what it kills is dead in another half.
- A machine takes no longer to go down than was told, `teardown_s`; one that is preempted neither.
- The machine in a lost one's place costs the same, is ready in at most half as long again as
  that one was, and is not lost itself before it trains: nothing here could keep money for that.
- The budget holds what no run can be without: one set-up, one last call, one way down. A launch
  refuses others.
"""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from heapq import heappop, heappush
from itertools import count
from math import inf

import pytest

from training.layout import GOING_DOWN, BillLine, Status
from training.meter import Limits, Meter, bill_before
from training.reserve import SAVE_BYTES_PER_S, Reserve, first_reserve

RUNS = 10_000
TICK_S = 0.2
LATE_S = 0.3
KILL_S = 0.5
NOW = datetime(2026, 11, 21, tzinfo=UTC)


class Lost(Exception):  # noqa: N818
    """The machine is gone, without a last word."""


@dataclass
class Run:
    seed: int
    lives: int = 0
    used_s: float = 0.0
    """Time of machines, which is what a cloud charges for."""
    is_sent: bool = False
    """The last step trained is in the store."""
    has_measured: bool = False
    """It had saved and sent before it came to its end."""
    kept_back_s: float = 0.0
    bill: tuple[BillLine, ...] = ()
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        chance = self.chance = random.Random(self.seed)
        self.price = Decimal(str(round(10 ** chance.uniform(-1.3, 2), 2)))
        is_rented, self.recovers = chance.choice([(False, False), (True, False), (True, True)])
        self.heartbeat_s = 10.0 if is_rented else 1.0
        self.teardown_s = 90.0 if is_rented else 0.0
        self.setup_s = chance.uniform(60, 400) if is_rented else 0.0
        self.save_s = 10 ** chance.uniform(-2, 2)
        self.upload_s = 10 ** chance.uniform(-2, 2.5)
        self.boundary_s = 10 ** chance.uniform(-2, 1.5)
        self.spread = chance.choice([0.1, 0.3, 1.0])
        """Of the logarithm: 1 is a save in a hundred that takes ten times as long as most."""
        self.hangs = chance.choice([0.0, 0.02])
        self.every_s = (self.save_s + self.upload_s) * 10 ** chance.uniform(0, 1.5)
        self.checkpoint_bytes = int(self.save_s * SAVE_BYTES_PER_S * 10 ** chance.uniform(-1, 1))
        least_s = 1.2 * self.setup_s + self.reserve(1.2 * self.setup_s).last_call_s
        budget_s = least_s + self.every_s * chance.uniform(0, 12)
        self.mean_life_s = budget_s * chance.uniform(0.1, 2) if self.recovers else inf
        self.budget = round(Decimal(budget_s) * self.price / 3600 + Decimal("0.01"), 2)
        self.limits = Limits(budget_usd=self.budget, max_hours=None, price_per_hour=self.price)

    def reserve(self, setup_s: float) -> Reserve:
        return first_reserve(
            checkpoint_bytes=self.checkpoint_bytes,
            teardown_s=self.teardown_s,
            setup_s=setup_s,
            loss_s=self.heartbeat_s + self.teardown_s if self.recovers else None,
        )

    def take(self, usual_s: float) -> float:
        """So long this time; in half of the runs one in fifty hangs."""
        hangs = self.chance.random() < self.hangs
        return (1000 if hangs else 1) * usual_s * self.chance.lognormvariate(0, self.spread)

    def live(self) -> "Run":
        while True:
            life = Life(self)
            try:
                life.live()
            except Lost:
                self.bill = life.bill_after_loss()
                continue
            self.bill = life.meter.bill
            return self

    @property
    def spent(self) -> Decimal:
        return sum((line.usd for line in self.bill), Decimal(0))

    @property
    def true_usd(self) -> Decimal:
        return Decimal(self.used_s) * self.price / 3600


class Life:
    def __init__(self, run: Run) -> None:
        run.lives += 1
        self.run, self.chance = run, run.chance
        self.setup_s = run.setup_s * self.chance.uniform(0.8, 1.2)
        self.meter = Meter(run.bill, life=run.lives, price_per_hour=run.price)
        if self.setup_s:
            self.meter.add("installing", self.setup_s)
        run.used_s += self.setup_s
        self.reserve = run.reserve(self.setup_s)
        self.now = 0.0
        self.upload_ends = self.save_ends = 0.0
        self.events: list[tuple[float, int, str, float]] = []
        self.order = count()
        self.dies_at = inf
        if not self.is_reached(self.reserve.seconds):  # else it never trains
            self.dies_at = self.chance.expovariate(1 / run.mean_life_s) if run.recovers else inf

    def live(self) -> None:
        self.plan(self.run.boundary_s, "evaluated", self.run.boundary_s)
        self.plan(self.run.every_s, "save")
        while not self.is_reached(self.reserve.seconds):
            self.pass_until_due(self.left_s - self.reserve.seconds)
        is_saved = self.now == 0 or self.stop()
        self.finish(is_saved)

    def plan(self, in_s: float, what: str, seconds: float = 0.0) -> None:
        heappush(self.events, (self.now + in_s, next(self.order), what, seconds))

    def is_reached(self, reserve_s: float) -> bool:
        return self.run.limits.reached(self.meter, reserve_s=reserve_s) is not None

    @property
    def left_s(self) -> float:
        return self.run.limits.left_s(self.meter)

    def pass_until_due(self, most_s: float) -> None:
        """To the next event, or to the first look at the clock after `most_s`."""
        due, _, what, seconds = self.events[0]
        if due - self.now > most_s:
            self.spend("training", most_s + self.chance.uniform(0, TICK_S + LATE_S))
            return
        heappop(self.events)
        self.spend("training", max(0.0, due - self.now))
        match what:
            case "evaluated":
                self.reserve = self.reserve.learn(boundary_s=seconds)
            case "save":
                save_s = self.run.take(self.run.save_s)
                self.save_ends = self.now + save_s
                self.plan(save_s, "saved", save_s)
                self.plan(max(save_s, self.run.every_s), "save")
            case "saved":
                self.reserve = self.reserve.learn(save_s=seconds)
                upload_s = self.run.take(self.run.upload_s)
                self.upload_ends = max(self.now, self.upload_ends) + upload_s
                self.plan(self.upload_ends - self.now, "sent", upload_s)
            case "sent":
                self.reserve = self.reserve.learn(upload_s=seconds)

    def stop(self) -> bool:
        """Whether training saved its last step before the last call."""
        to_boundary_s = self.run.take(self.run.boundary_s) * self.chance.random()
        begun_s = max(0.0, self.save_ends - self.now)  # the save before this one
        ends_at = self.now + to_boundary_s + begun_s + self.run.take(self.run.save_s)
        ends_at += self.chance.uniform(0.2, 2)
        while self.now < ends_at:
            if self.is_reached(self.reserve.last_call_s):
                self.spend("finishing", self.chance.uniform(0, KILL_S))
                return False
            look_s = max(TICK_S, self.left_s - self.reserve.last_call_s)
            late_s = self.chance.uniform(0, LATE_S)
            self.spend("finishing", min(ends_at - self.now, look_s) + late_s)
        return True

    def finish(self, is_saved: bool) -> None:
        self.run.has_measured = bool(self.reserve.save_s and self.reserve.upload_s)
        self.run.kept_back_s = self.reserve.seconds
        needed_s = max(0.0, self.upload_ends - self.now)
        if is_saved and self.now:
            needed_s += self.run.take(self.run.upload_s)
        allowed_s = self.reserve.finish_s(self.left_s)
        late_s = self.chance.uniform(0, TICK_S)
        self.spend("finishing", min(needed_s, allowed_s) + late_s)
        self.spend("finishing", self.chance.uniform(0, 0.1))
        self.run.is_sent = is_saved and needed_s <= allowed_s
        self.dies_at = inf
        self.run.used_s += self.run.teardown_s * self.chance.uniform(0.2, 1)
        if self.run.teardown_s:
            self.meter.add(GOING_DOWN, self.run.teardown_s)

    def spend(self, phase: str, seconds: float) -> None:
        is_lost = self.now + seconds > self.dies_at
        seconds = min(seconds, self.dies_at - self.now)
        self.now += seconds
        self.run.used_s += seconds
        self.heard_s = self.chance.uniform(0, min(self.run.heartbeat_s, seconds))
        self.meter.add(phase, seconds - self.heard_s if is_lost else seconds)
        if is_lost:
            raise Lost

    def bill_after_loss(self) -> tuple[BillLine, ...]:
        """As the next life finds it, on a machine that came some time after this one was gone."""
        gone_s = self.run.teardown_s * self.chance.random()
        self.run.used_s += gone_s
        heartbeat = Status(
            run_id="-", state="training", phase="training", life=self.run.lives, step=0, steps=1,
            tokens=0, updated_at=NOW, bill=self.meter.bill,
        )  # fmt: skip
        silent_s = self.heard_s + gone_s + self.chance.uniform(0, 900)
        return bill_before(
            heartbeat,
            now=NOW + timedelta(seconds=silent_s),
            setup_s=0.0,
            heartbeat_s=self.run.heartbeat_s,
            teardown_s=self.run.teardown_s,
        )


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return [Run(seed).live() for seed in range(RUNS)]


def test_no_bill_of_ten_thousand_exceeds_its_budget(runs: list[Run]) -> None:
    assert [run.seed for run in runs if run.spent > run.budget] == []


def test_what_their_machines_cost_is_on_the_bill(runs: list[Run]) -> None:
    cent_hundredth = Decimal("0.0001")
    assert [run.seed for run in runs if run.true_usd > run.spent + cent_hundredth] == []
    assert max(run.lives for run in runs) > 5  # many were preempted


def test_where_saving_takes_about_as_long_as_before_the_last_step_is_kept(runs: list[Run]) -> None:
    steady = [run for run in runs if run.spread < 1 and not run.hangs and run.has_measured]
    assert len(steady) > 2000
    assert sum(run.is_sent for run in steady) > 0.95 * len(steady)


def test_no_more_is_left_of_a_budget_than_was_kept_back(runs: list[Run]) -> None:
    """Less a cent that rounds the budget up, and what rounds the lines of a bill up."""
    rounding = Decimal("0.03")
    for run in runs:
        kept_back_usd = Decimal(run.kept_back_s) * run.price / 3600
        assert run.budget - run.spent <= kept_back_usd + rounding, run.seed
