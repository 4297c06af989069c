"""A budget for all runs of a month, taken from before a launch and not after.

What is taken stands in one file on this machine, under a lock: of two launches that race for
the last of it, one is refused. A run that goes on holds all that it may yet spend, one that has
ended what it spent. Runs of another store, or of another laptop, count as far as this machine
has seen of them. Months are those of UTC.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gptctl.errors import PlanRefusedError, UsageError
from gptctl.history import Entry, month_of
from gptctl.settings import read_config, write_number
from training.layout import write_atomic

KEY = "month_budget_usd"
ORPHAN_AFTER = timedelta(minutes=10)
"""A launch that was killed may have taken money for a run that was then never recorded."""


class Reservation(Struct, frozen=True, kw_only=True):
    """`usd`: all that the run may spend, in all lives and months; `at`: when it was (re)launched.

    `spent`: by month, once it was seen to have ended.
    """

    store: str
    run_id: str
    usd: Decimal
    at: datetime
    spent: dict[str, Decimal] | None = None


class Claim(Struct, frozen=True, kw_only=True):
    """What a run has spent in a month, and where it goes on, may yet spend."""

    run_id: str
    usd: Decimal
    goes_on: bool


class MonthBudget(Struct, frozen=True, kw_only=True):
    """The month's budget as a launch into `store` finds it; `entries` are the runs of the store."""

    folder: Path
    store: str
    limit: Decimal
    entries: tuple[Entry, ...]
    now: datetime

    def take(self, run_id: str, usd: Decimal | None) -> None:
        """All that the run may spend; None: nothing limits it. Raises PlanRefusedError."""
        if usd is None:
            raise PlanRefusedError(
                f"{run_id} has no limit, and there is a budget of ${self.limit} for the month",
                hint="`--budget USD` gives the run its own",
            )
        reserve_month(
            self.folder,
            store=self.store,
            run_id=run_id,
            usd=usd,
            limit=self.limit,
            entries=self.entries,
            now=self.now,
        )

    def give_back(self, run_id: str) -> None:
        release_month(self.folder, store=self.store, run_id=run_id)


def read_month_budget(config: Path) -> Decimal | None:
    """Dollars, as that file says; None where it sets no budget. Raises UsageError."""
    return read_config(config).month_budget_usd


def set_month_budget(config: Path, usd: Decimal | None) -> None:
    """In that file, which otherwise stays as it is; None takes the budget out.

    Raises UsageError for an amount that makes no sense, or a file that does not.
    """
    write_number(config, KEY, usd)


def reserve_month(
    folder: Path,
    *,
    store: str,
    run_id: str,
    usd: Decimal,
    limit: Decimal,
    entries: Sequence[Entry],
    now: datetime,
) -> None:
    """Take what the run may spend, `usd` in all its lives, from the month's budget of `limit`.

    `entries`: all runs of `store`, which may be older than the ledger. A run that is resumed
    reserves anew, for its new total. Raises PlanRefusedError, with who holds the money, where
    not so much is left; UsageError where the ledger cannot be read.
    """
    month = month_of(now)
    with _ledger(folder) as path:
        held = settle(_read(path), entries, store=store, now=now)
        held = [taken for taken in held if (taken.store, taken.run_id) != (store, run_id)]
        claims = claim(
            held, [entry for entry in entries if entry.run_id != run_id], store=store, month=month
        )
        mine = next((entry for entry in entries if entry.run_id == run_id), None)
        wanted = usd - (_before(mine, month) if mine else 0)
        left = max(Decimal(0), limit - sum(taken.usd for taken in claims))
        if wanted > left:
            raise _refused(run_id, wanted, left, limit, month, claims)
        _write(path, [*held, Reservation(store=store, run_id=run_id, usd=usd, at=now)])


def release_month(folder: Path, *, store: str, run_id: str) -> None:
    """Give back what a launch had taken that came to nothing. To do it again is no error."""
    with _ledger(folder) as path:
        held = _read(path)
        kept = [taken for taken in held if (taken.store, taken.run_id) != (store, run_id)]
        if kept != held:
            _write(path, kept)


def settle_month(folder: Path, *, store: str, entries: Sequence[Entry], now: datetime) -> None:
    """Note what ended runs of that store have spent, for launches into other stores."""
    with _ledger(folder) as path:
        held = _read(path)
        if (kept := settle(held, entries, store=store, now=now)) != held:
            _write(path, kept)


def settle(
    held: Sequence[Reservation], entries: Sequence[Entry], *, store: str, now: datetime
) -> list[Reservation]:
    """The reservations, given how the runs of `store` are now.

    An ending from before a reservation is not of the life that it is for: it goes on.
    """
    known = {entry.run_id: entry for entry in entries}
    kept = []
    for taken in held:
        entry = known.get(taken.run_id) if taken.store == store else None
        if taken.spent is not None and max(taken.spent, default="") < month_of(now):
            continue
        if taken.store == store and entry is None and now - taken.at > ORPHAN_AFTER:
            continue
        if entry is not None and entry.ended_at is not None and entry.ended_at >= taken.at:
            taken = replace(taken, spent=entry.by_month)
        kept.append(taken)
    return kept


def claim(
    held: Sequence[Reservation], entries: Sequence[Entry], *, store: str, month: str
) -> list[Claim]:
    """What all runs take of the month; `held` is settled, `entries` are the runs of `store`."""
    known = {entry.run_id: entry for entry in entries}
    found = {(store, entry.run_id): _claim_of(entry, month) for entry in entries}
    for taken in held:
        key, entry = (taken.store, taken.run_id), known.get(taken.run_id)
        if taken.store != store or entry is None:
            usd = taken.usd if taken.spent is None else taken.spent.get(month, Decimal(0))
            found[key] = Claim(run_id=taken.run_id, usd=usd, goes_on=taken.spent is None)
        elif taken.spent is None:
            usd = max(taken.usd - _before(entry, month), found[key].usd)
            found[key] = Claim(run_id=taken.run_id, usd=usd, goes_on=True)
    return list(found.values())


def _claim_of(entry: Entry, month: str) -> Claim:
    """Of a run that nobody reserved for here: it was launched elsewhere, or before a budget was."""
    if entry.ended_at is not None or entry.most_usd is None:
        usd, goes_on = entry.by_month.get(month, Decimal(0)), entry.ended_at is None
    else:
        usd, goes_on = max(entry.most_usd, entry.usd) - _before(entry, month), True
    return Claim(run_id=entry.run_id, usd=usd, goes_on=goes_on)


def _before(entry: Entry, month: str) -> Decimal:
    """Dollars that it spent in earlier months."""
    return sum((usd for m, usd in entry.by_month.items() if m < month), Decimal(0))


def _refused(
    run_id: str, wanted: Decimal, left: Decimal, limit: Decimal, month: str, claims: list[Claim]
) -> PlanRefusedError:
    spent = sum((taken.usd for taken in claims if not taken.goes_on), Decimal(0))
    holders = sorted((c for c in claims if c.goes_on and c.usd), key=lambda c: -c.usd)
    held = "".join(f", {c.run_id} may spend ${_cents(c.usd)}" for c in holders)
    return PlanRefusedError(
        f"{run_id} may spend ${_cents(wanted)}, and of the ${limit} for {month} "
        f"${_cents(left, ROUND_FLOOR)} is left: ${_cents(spent)} is spent{held}",
        hint="give it a smaller `--budget`, or the month more: `gptctl cost budget --month USD`",
    )


def _cents(usd: Decimal, rounding: str = ROUND_CEILING) -> Decimal:
    return usd.quantize(Decimal("0.01"), rounding=rounding)


@contextmanager
def _ledger(folder: Path) -> Iterator[Path]:
    """The file, which nobody else reads or writes meanwhile. The lock ends with its process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder / "reservations.json"
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be used: {error.strerror}",
            hint="what runs take of the month's budget is kept there: make it writable",
        ) from error


def _read(path: Path) -> list[Reservation]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Reservation])
    except FileNotFoundError:
        return []
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path} cannot be read: {error}",
            hint="remove it: runs that go on are then counted from their store",
        ) from error


def _write(path: Path, held: Sequence[Reservation]) -> None:
    write_atomic(path, msgspec.json.encode(held) + b"\n")
