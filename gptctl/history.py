"""What all runs of a store have cost: a line each, and together by month, recipe and cloud.

A bill has no dates, so a run that billed in two months is laid out in time: each life of it
bills without a gap, from the moment its `life_started` event tells. Where that is not known, the
last life ends at the last heartbeat, and earlier ones follow each other from the launch on.
Months are those of UTC. Pure but for reading the store.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from msgspec import Struct
from msgspec.structs import replace

from gptctl.report import cost_of
from gptctl.runs import RunView, read_all
from training.errors import ObjectNotFoundError
from training.events import parse_lines
from training.layout import EVENTS, RunRecord, State, Status, run_key
from training.storage import Storage

Starts = Callable[[str], Mapping[int, datetime]]
"""When each life of the run of that id began, as far as it is known."""

COLUMNS = (
    *("run_id", "recipe", "cloud", "gpu", "gpu_count", "nodes", "state", "created_at"),
    *("ended_at", "hours", "usd", "budget_usd"),
)


class Entry(Struct, frozen=True, kw_only=True):
    """One run. `hours` and `usd` are billed, of all lives; `gpu_count` is that of one node."""

    run_id: str
    recipe: str
    cloud: str
    gpu: str
    gpu_count: int
    nodes: int
    state: State
    created_at: datetime
    ended_at: datetime | None
    hours: float
    usd: Decimal
    budget_usd: Decimal | None
    most_usd: Decimal | None
    """What its limits let it spend in all; None where it has none that could stop it."""
    by_month: dict[str, Decimal]
    """Of `usd`, by months like `2026-11`."""


class Totals(Struct, frozen=True, kw_only=True):
    by_month: dict[str, Decimal]
    by_recipe: dict[str, Decimal]
    by_cloud: dict[str, Decimal]
    usd: Decimal


def read_history(store: Storage, *, since: date | None = None) -> tuple[list[Entry], list[str]]:
    """The runs of a store, newest first, and a warning for each that cannot be read."""
    found, warnings = read_all(store)
    listed = entries(found, since=since, starts=lambda run_id: read_starts(store, run_id))
    return listed, warnings


def read_starts(store: Storage, run_id: str) -> dict[int, datetime]:
    """When each life began. A run whose events are missing, or have a gap, has fewer."""
    try:
        data = store.read(run_key(run_id, EVENTS))
    except ObjectNotFoundError:
        return {}
    starts: dict[int, datetime] = {}
    for event in parse_lines(data):
        if event.get("event") == "life_started":
            starts.setdefault(event["life"], datetime.fromisoformat(event["at"]))
    return starts


def as_seen(
    found: Iterable[tuple[RunRecord, Status]], views: Iterable[RunView]
) -> list[tuple[RunRecord, Status]]:
    """The same, but what was seen to be over is over: a run that was killed never says so."""
    over = {view.run_id: view.state for view in views if view.is_over}
    return [
        (record, status if status.is_over else replace(status, state=over[record.run_id]))
        if record.run_id in over
        else (record, status)
        for record, status in found
    ]


def entries(
    found: Iterable[tuple[RunRecord, Status]],
    *,
    since: date | None = None,
    starts: Starts = lambda run_id: {},
) -> list[Entry]:
    """A line a run. `since` leaves out those that had their last word before that day.

    Who is listed is listed whole. `starts` is asked of runs alone that billed in two months.
    """
    return [
        _entry(record, status, starts)
        for record, status in found
        if since is None or not status.is_over or status.updated_at.astimezone(UTC).date() >= since
    ]


def total(listed: Iterable[Entry]) -> Totals:
    """Each of the three adds up to `usd`; months in order, the rest by what they cost."""
    months: dict[str, Decimal] = {}
    recipes: dict[str, Decimal] = {}
    clouds: dict[str, Decimal] = {}
    usd = Decimal(0)
    for entry in listed:
        usd += entry.usd
        for month, part in entry.by_month.items():
            _add(months, month, part)
        _add(recipes, entry.recipe, entry.usd)
        _add(clouds, entry.cloud, entry.usd)
    return Totals(
        by_month=dict(sorted(months.items())),
        by_recipe=_dearest_first(recipes),
        by_cloud=_dearest_first(clouds),
        usd=usd,
    )


def to_csv(listed: Sequence[Entry]) -> str:
    """With a head line; what is not known is empty, times are ISO 8601, money in dollars."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in listed:
        writer.writerow([_cell(getattr(entry, column)) for column in COLUMNS])
    return text.getvalue()


def month_of(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m}"


def _entry(record: RunRecord, status: Status, starts: Starts) -> Entry:
    offer = status.offer or record.offer
    return Entry(
        run_id=record.run_id,
        recipe=record.recipe_name,
        cloud=offer.cloud,
        gpu=offer.gpu,
        gpu_count=offer.gpu_count,
        nodes=record.nodes,
        state=status.state,
        created_at=record.created_at,
        ended_at=status.updated_at if status.is_over else None,
        hours=round(sum(line.seconds for line in status.bill) / 3600, 4),
        usd=status.spent_usd,
        budget_usd=status.budget_usd,
        most_usd=_most_usd(status),
        by_month=_spend_by_month(record, status, starts),
    )


def most_usd(
    budget_usd: Decimal | None, max_hours: float | None, price_per_hour: Decimal
) -> Decimal | None:
    """What such limits let a run spend in all; `price_per_hour` of all nodes. None: no end."""
    if not price_per_hour:
        return Decimal(0)
    by_time = None if max_hours is None else Decimal(str(max_hours)) * price_per_hour
    return min((limit for limit in (budget_usd, by_time) if limit is not None), default=None)


def _most_usd(status: Status) -> Decimal | None:
    if not status.price_per_hour:
        return status.spent_usd
    return most_usd(status.budget_usd, status.max_hours, status.price_per_hour)


def _spend_by_month(record: RunRecord, status: Status, starts: Starts) -> dict[str, Decimal]:
    months: dict[str, Decimal] = {}
    if month_of(record.created_at) == month_of(status.updated_at):
        return {month_of(record.created_at): status.spent_usd} if status.bill else {}
    told = starts(record.run_id)
    begin = record.created_at
    for life, spent in sorted(cost_of(record, status).by_life.items()):
        length = timedelta(seconds=spent.seconds)
        # The status of a run that was resumed and has no machine yet is the launch's.
        has_spoken = life == status.life and status.state not in ("pending", "provisioning")
        begin = told.get(life) or (max(begin, status.updated_at - length) if has_spoken else begin)
        for month, usd in _split(spent.usd, begin, begin + length):
            _add(months, month, usd)
        begin += length
    return months


def _split(usd: Decimal, begin: datetime, end: datetime) -> Iterator[tuple[str, Decimal]]:
    """The share of each month by time; they add up to `usd` to the last digit."""
    told, month = Decimal(0), begin
    while (after := _next_month(month)) < end:
        until = usd * Decimal((after - begin) / (end - begin))
        until = until.quantize(Decimal("0.0001"))
        yield month_of(month), until - told
        told, month = until, after
    yield month_of(month), usd - told


def _next_month(when: datetime) -> datetime:
    first = when.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def _add(sums: dict[str, Decimal], key: str, usd: Decimal) -> None:
    sums[key] = sums.get(key, Decimal(0)) + usd


def _dearest_first(sums: dict[str, Decimal]) -> dict[str, Decimal]:
    return dict(sorted(sums.items(), key=lambda pair: (-pair[1], pair[0])))


def _cell(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    return "" if value is None else value
