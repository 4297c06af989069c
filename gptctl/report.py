"""What a run reached and what it cost, read from its store."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from msgspec import Struct

from gptctl.offers import GIVEN_PRICE
from training.errors import ObjectNotFoundError
from training.events import parse_lines
from training.layout import METRICS, SAMPLES, BillLine, RunRecord, Status, run_key
from training.storage import Storage

Point = tuple[int, float]
"""(step, loss in nats per token)"""


class Curves(Struct, frozen=True, kw_only=True):
    train: tuple[Point, ...] = ()
    val: tuple[Point, ...] = ()

    @property
    def can_be_drawn(self) -> bool:
        return len(self.train) + len(self.val) > 1


class Spent(Struct, frozen=True, kw_only=True):
    seconds: float
    usd: Decimal

    def plus(self, line: BillLine) -> "Spent":
        seconds = round(self.seconds + line.seconds, 3)
        return Spent(seconds=seconds, usd=self.usd + line.usd)


NOTHING = Spent(seconds=0.0, usd=Decimal(0))


class Cost(Struct, frozen=True, kw_only=True):
    """`cost show`: the phases add up to `spent_usd` to the last digit."""

    run_id: str
    price_per_hour: Decimal
    price_source: str
    price_as_of: str
    spent_usd: Decimal
    budget_usd: Decimal | None
    by_phase: dict[str, Spent]
    by_life: dict[int, Spent]
    """A run that was resumed, or recovered, has more than one."""


def cost_of(record: RunRecord, status: Status) -> Cost:
    """The bill by phase, all lives together. Price: the one in force in the last life."""
    by_phase: dict[str, Spent] = {}
    by_life: dict[int, Spent] = {}
    for line in status.bill:
        by_phase[line.phase] = by_phase.get(line.phase, NOTHING).plus(line)
        by_life[line.life] = by_life.get(line.life, NOTHING).plus(line)
    offer = status.offer or record.offer
    is_own = status.price_per_hour == offer.price_per_hour * record.nodes
    return Cost(
        run_id=record.run_id,
        price_per_hour=status.price_per_hour,
        price_source=offer.price_source if is_own else GIVEN_PRICE,
        price_as_of=offer.price_as_of,
        spent_usd=status.spent_usd,
        budget_usd=status.budget_usd,
        by_phase=by_phase,
        by_life=by_life,
    )


def read_curves(store: Storage, run_id: str) -> Curves:
    """Loss by step; a run that has measured nothing yet has empty ones."""
    try:
        data = store.read(run_key(run_id, METRICS))
    except ObjectNotFoundError:
        return Curves()
    return curves_of(parse_lines(data))


def curves_of(lines: Iterable[dict[str, Any]]) -> Curves:
    """The last line of a step wins: a resumed run measures some steps again."""
    train: dict[int, float] = {}
    val: dict[int, float] = {}
    for line in lines:
        for curve, name in ((train, "loss"), (val, "val_loss")):
            if line.get(name) is not None and isinstance(line.get("step"), int):
                curve[line["step"]] = float(line[name])
    return Curves(train=tuple(sorted(train.items())), val=tuple(sorted(val.items())))


def read_samples(store: Storage, run_id: str) -> str | None:
    """The text that the model wrote at its newest sampling; None where it wrote none."""
    found = store.list(run_key(run_id, SAMPLES) + "/")
    if not found:
        return None
    return store.read(found[-1].key).decode("utf-8", errors="replace")
