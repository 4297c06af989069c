"""Machines and prices, as SkyPilot's cached catalogues have them.

Reads the CSV files that SkyPilot fetched, without SkyPilot, whose import alone takes longer
than a dry run may. Columns: https://docs.skypilot.co, "Cloud catalogs", version 8.
"""

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gptctl.backends import Wanted
from gptctl.backends.sky_hosts import Row, add_hosts
from gptctl.errors import PlanRefusedError, UsageError
from gptctl.gpu_names import is_asked_for, normalize_gpu
from gptctl.offers import GIVEN_PRICE, OWN_MACHINE
from gptctl.strict_toml import nearest
from training.layout import Offer

UNPRICED = ("kubernetes", "slurm", "ssh")
"""Machines of one's own: SkyPilot has no price list of them."""
SOURCE = "SkyPilot's catalogue"
LEAST_VCPUS = 4
_MOST_NAMES = 20


class Gpus(Struct, frozen=True, kw_only=True):
    """`A100-80GB:8`"""

    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


class Catalog:
    """The catalogue of one cloud, in `folder/<cloud>/vms.csv`. Raises FileNotFoundError."""

    def __init__(self, folder: Path, cloud: str) -> None:
        path = folder / cloud / "vms.csv"
        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        self.cloud = cloud
        self.as_of = modified.date().isoformat()
        with path.open(newline="", encoding="utf-8") as file:
            self.rows = list(add_hosts(list(_read_rows(file, cloud))))


def parse_gpus(text: str) -> Gpus:
    """`A100-80GB:8`; the count is 1 where none is given. Raises UsageError."""
    name, _, count = text.partition(":")
    if not name or (count and not count.isdecimal()) or count == "0":
        raise UsageError(f"{text!r} names no GPUs", hint="such as A100-80GB:8")
    return Gpus(name=name, count=int(count or 1))


def find_offers(catalogs: list[Catalog], wanted: Wanted) -> list[Offer]:
    """What fits, best first: by the recipe's order of GPUs, then by price.

    One offer for each cloud and region: the instance type that SkyPilot takes there is the
    cheapest. GPUs that these clouds do not have are passed over as long as others are there.
    Raises UsageError for names that nobody knows, PlanRefusedError where none fits.
    """
    rows = [row for catalog in catalogs for row in catalog.rows]
    dates = {catalog.cloud: catalog.as_of for catalog in catalogs}
    clouds = ", ".join(dates)
    choices = [parse_gpus(text) for text in wanted.gpus]
    if wanted.region is not None:
        wanted = replace(wanted, region=_find_region(wanted.region, rows, clouds))
    offers: list[Offer] = []
    asked: list[Gpus | None] = [*choices] or [None]
    for gpus in asked:
        fitting = [row for row in rows if _fits(row, gpus, wanted)]
        cheapest: dict[tuple[str, str], Offer] = {}
        for row in fitting:
            offer = _offer(row, wanted, as_of=dates[row.cloud])
            if offer is not None:
                best = cheapest.get((row.cloud, row.region))
                if best is None or offer.price_per_hour < best.price_per_hour:
                    cheapest[row.cloud, row.region] = offer
        offers += sorted(cheapest.values(), key=lambda offer: offer.price_per_hour)
    if not offers:
        faults = [_find_fault(choice, rows, clouds) for choice in choices]
        if (fault := next(iter(faults), None)) is not None and all(faults):
            raise fault
        raise _refuse(rows, choices, wanted, clouds)
    return offers


def offer_unpriced(cloud: str, wanted: Wanted) -> list[Offer]:
    """One's own machines, at the price that the user gives them, or none."""
    given = wanted.price_per_hour
    asked: list[Gpus | None] = [parse_gpus(text) for text in wanted.gpus] or [None]
    return [
        Offer(
            cloud=cloud,
            region=wanted.region or "",
            instance_type="",
            gpu=gpus.name if gpus else "CPU",
            gpu_count=gpus.count if gpus else 0,
            spot=wanted.spot,
            price_per_hour=given or Decimal(0),
            price_source=OWN_MACHINE if given is None else GIVEN_PRICE,
            price_as_of=wanted.today.isoformat(),
        )
        for gpus in asked
    ]


def _fits(row: Row, gpus: Gpus | None, wanted: Wanted) -> bool:
    if wanted.region not in (None, row.region):
        return False
    if gpus is None:
        return not row.gpu and row.vcpus >= max(LEAST_VCPUS, wanted.cpu_ranks)
    return row.gpu_count == gpus.count and _is_named(row, gpus.name)


def _is_named(row: Row, name: str) -> bool:
    """By the catalogue's own name, or by the one that all clouds have in common."""
    if not row.gpu or row.gpu.lower() == name.lower():
        return bool(row.gpu)
    ours = normalize_gpu(row.gpu, cloud=row.cloud, instance_type=row.instance_type)
    return ours is not None and is_asked_for(name, ours)


def _offer(row: Row, wanted: Wanted, *, as_of: str) -> Offer | None:
    price = row.spot_price if wanted.spot else row.price
    if price is None:
        return None
    given = wanted.price_per_hour
    return Offer(
        cloud=row.cloud,
        region=row.region,
        instance_type=row.instance_type,
        gpu=row.gpu or "CPU",
        gpu_count=row.gpu_count,
        spot=wanted.spot,
        price_per_hour=price if given is None else given,
        price_source=SOURCE if given is None else GIVEN_PRICE,
        price_as_of=as_of,
        vcpus=row.vcpus or None,
    )


def _find_region(name: str, rows: list[Row], clouds: str) -> str:
    """As the catalogues spell it. Raises UsageError, the nearest named."""
    known = {row.region.lower(): row.region for row in rows}
    if name.lower() in known:
        return known[name.lower()]
    near = nearest(name.lower(), list(known))
    names = sorted(known.values())
    some = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    raise UsageError(
        f"{clouds} has no region {name!r}" + (f"; nearest: {known[near]!r}" if near else ""),
        hint=f"one of: {some}",
    )


def _find_fault(gpus: Gpus, rows: list[Row], clouds: str) -> UsageError | None:
    """What is wrong with a GPU, or a number of them, that no machine of those clouds has."""
    known = {row.gpu.lower(): row.gpu for row in rows if row.gpu}
    counts = sorted({row.gpu_count for row in rows if _is_named(row, gpus.name)})
    if not counts:
        near = nearest(gpus.name.lower(), list(known))
        return UsageError(
            f"{clouds} has no GPU {gpus.name!r}" + (f"; nearest: {known[near]!r}" if near else ""),
            hint=f"one of: {', '.join(sorted(known.values())) or 'none'}",
        )
    if gpus.count not in counts:
        return UsageError(
            f"no machine of {clouds} has {gpus.count} {gpus.name}",
            hint=f"they come in {', '.join(map(str, counts))}; `--nodes N` takes several machines",
        )
    return None


def _refuse(rows: list[Row], choices: list[Gpus], wanted: Wanted, clouds: str) -> PlanRefusedError:
    if wanted.spot and not any(row.spot_price for row in rows):
        return PlanRefusedError(
            f"{clouds} has no spot machines", hint="leave out `--spot`, or choose another cloud"
        )
    anywhere = replace(wanted, region=None)
    asked: list[Gpus | None] = [*choices] or [None]
    fitting = [row for row in rows if any(_fits(row, gpus, anywhere) for gpus in asked)]
    regions = sorted({r.region for r in fitting if (r.spot_price if wanted.spot else r.price)})
    cores = max(LEAST_VCPUS, wanted.cpu_ranks)
    what = " or ".join(map(str, choices)) or f"CPU machine of {cores} cores"
    where = f"region {wanted.region} of {clouds}" if wanted.region else clouds
    elsewhere = "leave out `--spot`" if wanted.spot else "choose another cloud, or other `--gpus`"
    return PlanRefusedError(
        f"{where} has no {what}" + (" as a spot machine" if wanted.spot else ""),
        hint=f"regions that have: {', '.join(regions)}" if regions else elsewhere,
    )


def _read_rows(lines: Iterable[str], cloud: str) -> Iterator[Row]:
    """Machines of which a whole one can be had, with a processor that the node's image runs on."""
    table = csv.reader(lines)
    header = next(table, [])
    place = {name: header.index(name) for name in header}

    def cell(line: list[str], name: str) -> str:
        return line[place[name]] if name in place else ""

    for line in table:
        gpu, count = cell(line, "AcceleratorName"), float(cell(line, "AcceleratorCount") or 0)
        if (gpu and count < 1) or cell(line, "Arch") in ("arm64", "i386"):
            continue
        yield Row(
            cloud=cloud,
            instance_type=cell(line, "InstanceType"),
            gpu=gpu,
            gpu_count=int(count) if gpu else 0,
            vcpus=float(cell(line, "vCPUs") or 0),
            region=cell(line, "Region"),
            price=_price(cell(line, "Price")),
            spot_price=_price(cell(line, "SpotPrice")),
        )


def _price(text: str) -> Decimal | None:
    """None where there is none: some clouds leave it out, some write nan, some 0."""
    try:
        price = Decimal(text)
    except InvalidOperation:
        return None
    return price if price.is_finite() and price > 0 else None
