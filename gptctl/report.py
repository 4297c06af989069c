"""What a run reached and what it cost, read from its store."""

from collections.abc import Iterable, Mapping, Sequence
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

OTHER = "other"
KINDS: dict[str, tuple[str, ...]] = {
    "training": ("training",),
    "set-up": (
        *("booting", "checking_hardware", "installing", "starting", "checking", "checking_gpus"),
        *("provisioning", "setup", "compile"),
    ),
    "data": ("preparing", "waiting_for_data", "first_shard"),
    "evaluation": ("evaluation",),
    "checkpoints": ("checkpoints", "finishing", "upload"),
    "idle": ("hung", "lost", "going_down", "teardown", "preemptions", "billing_granularity"),
}
"""What the phases of a bill, and those of an estimate, were good for."""
_KIND_OF = {phase: kind for kind, phases in KINDS.items() for phase in phases}


class Cost(Struct, frozen=True, kw_only=True):
    """`cost show`: the phases add up to `spent_usd` to the last digit."""

    run_id: str
    price_per_hour: Decimal
    price_source: str
    price_as_of: str
    spent_usd: Decimal
    budget_usd: Decimal | None
    nodes: int
    """They come and go together: each has the same share of every line."""
    by_phase: dict[str, Spent]
    by_life: dict[int, Spent]
    """A run that was resumed, or recovered, has more than one."""
    shares: dict[str, float]
    """Of the money, or where it cost none of the time, by kind: they add up to 1."""


class Reconciliation(Struct, frozen=True, kw_only=True):
    """Our bill beside SkyPilot's. `time_usd` and `price_usd` add up to theirs less ours."""

    ours: Spent
    theirs: Spent
    time_usd: Decimal
    """Of the difference, what the seconds make at our price."""
    price_usd: Decimal
    why: tuple[str, ...]
    """A sentence for each thing that differs; none where nothing does."""


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
        nodes=record.nodes,
        by_phase=by_phase,
        by_life=by_life,
        shares=share_by_kind(status.bill),
    )


def share_by_kind(bill: Sequence[BillLine]) -> dict[str, float]:
    """The share of each kind that has one, in the order of KINDS; a phase of no kind is OTHER.

    Of the money before it is rounded, which would give short phases of a small bill too much; of
    the time where nothing has a price.
    """
    is_free = not any(line.price_per_hour for line in bill)
    found = dict.fromkeys((*KINDS, OTHER), 0.0)
    for line in bill:
        price = 1.0 if is_free else float(line.price_per_hour)
        found[_KIND_OF.get(line.phase, OTHER)] += line.seconds * price
    whole = sum(found.values())
    return {kind: share / whole for kind, share in found.items() if share}


def describe_shares(shares: Mapping[str, float]) -> str:
    """`training 91 %, set-up 4 %, data 5 %`: whole per cents that add up to 100."""
    percent = {kind: int(100 * share) for kind, share in shares.items()}
    lost = 100 - sum(percent.values())  # goes to those that were cut by most
    for kind in sorted(shares, key=lambda k: percent[k] - 100 * shares[k])[:lost]:
        percent[kind] += 1
    return ", ".join(f"{kind} {n} %" for kind, n in percent.items() if n)


def reconcile(ours: Spent, theirs: Spent) -> Reconciliation:
    """What differs between our bill and SkyPilot's cost report of the same machines, and why.

    SkyPilot counts from when it set about making a machine (its record is written before the
    cloud is asked, anew for each region that it tries) until it removes that record: after its
    own teardown at once, after a machine went down by itself only when somebody asks for its
    status. Each second costs what its catalogue says now. Read in SkyPilot 0.14.1.
    """
    difference = theirs.usd - ours.usd
    per_second = ours.usd / Decimal(repr(ours.seconds)) if ours.seconds >= 1 else Decimal(0)
    more_s = theirs.seconds - ours.seconds
    time_usd = (Decimal(repr(more_s)) * per_second).quantize(Decimal("0.0001"))
    price_usd = difference - time_usd
    why = []
    if abs(time_usd) > _near(ours):
        why.append(
            f"SkyPilot counted {more_s:,.0f} s more: it begins before there is a machine, and "
            "ends when it sees that one is gone, perhaps long after"
            if more_s > 0
            else f"SkyPilot counted {-more_s:,.0f} s less: we bill ahead what going down may "
            "take, and its report forgets machines that were long ago"
        )
    if abs(price_usd) > _near(ours):
        why.append(
            "SkyPilot took another price: what its catalogue says now"
            if theirs.usd
            else "SkyPilot knows no price for this machine"
        )
    return Reconciliation(
        ours=ours, theirs=theirs, time_usd=time_usd, price_usd=price_usd, why=tuple(why)
    )


def _near(ours: Spent) -> Decimal:
    """Bills that differ by less than a cent, or a per cent, agree."""
    return max(Decimal("0.01"), ours.usd / 100)


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
