"""What machines cost: the list that comes with gptctl, one that was refreshed since, the newest.

Knows nothing of networks: what SkyPilot fetched comes in as `Catalog`s.
"""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

from gptctl.backends import ANY, LOCAL, Wanted, parse_clouds
from gptctl.backends.sky_catalog import (
    LEAST_VCPUS,
    SOURCE,
    UNPRICED,
    Catalog,
    Gpus,
    offer_unpriced,
    parse_gpus,
)
from gptctl.backends.sky_hosts import Row
from gptctl.errors import GptctlError, PlanRefusedError, UsageError
from gptctl.gpu_names import GPU_NAMES, is_asked_for, normalize_gpu
from gptctl.offers import GIVEN_PRICE, OWN_MACHINE, Priced
from gptctl.price_file import CPU, UNDATED, Price, is_real, read_prices, write_prices
from gptctl.strict_toml import nearest
from training.layout import Offer

SNAPSHOT = Path(__file__).with_name("data") / "prices.csv"
OLD_AFTER_DAYS = 30


def read_snapshot(path: Path = SNAPSHOT) -> list[Price]:
    """The list that this version of gptctl came with. Raises UsageError where it is not whole."""
    hint = "it is a part of gptctl: install that again"
    try:
        return read_prices(path, hint=hint)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: the list of prices is missing", hint=hint) from error


def read_cache(path: Path) -> list[Price]:
    """What `cost refresh` wrote there, [] where it never did. Raises UsageError."""
    try:
        return read_prices(path, hint="`gptctl cost refresh` writes it anew")
    except FileNotFoundError:
        return []


def write_cache(path: Path, prices: Sequence[Price], *, read_at: datetime) -> None:
    write_prices(path, prices, read_at=read_at)


def renew_cache(path: Path, fresh: Sequence[Price], *, read_at: datetime) -> list[Price]:
    """Put `fresh` in place of what the cache has of the same clouds: all that it has then.

    One that cannot be read is written anew, which is what its error advises.
    """
    try:
        cached = read_cache(path)
    except UsageError:
        cached = []
    clouds = {price.cloud for price in fresh}
    renewed = [*(price for price in cached if price.cloud not in clouds), *fresh]
    write_cache(path, renewed, read_at=read_at)
    return renewed


def newest(snapshot: Sequence[Price], cached: Sequence[Price]) -> list[Price]:
    """Of each cloud the later list, whole: a machine that it lacks is not to be had any more."""
    shipped, since = _dates(snapshot), _dates(cached)
    refreshed = {cloud for cloud, as_of in since.items() if as_of >= shipped.get(cloud, "")}
    return [price for price in snapshot if price.cloud not in refreshed] + [
        price for price in cached if price.cloud in refreshed
    ]


def refresh(backend_catalogs: Iterable[Catalog], *, today: date) -> list[Price]:
    """SkyPilot's catalogues as prices: what can be the best choice, of GPUs that we know."""
    return _keep_best(
        _make_price(row, source=SOURCE, as_of=min(catalog.as_of, today.isoformat()))
        for catalog in backend_catalogs
        for row in catalog.rows
        if row.gpu or row.vcpus >= LEAST_VCPUS
    )


def _make_price(row: Row, *, source: str, as_of: str) -> Price | None:
    """None for a GPU that is unknown, and where the price is zero or a placeholder.

    A spot price that is no lower than the other is none: some catalogues repeat that one.
    """
    gpu = (
        normalize_gpu(row.gpu, cloud=row.cloud, instance_type=row.instance_type) if row.gpu else CPU
    )
    on_demand, spot = (
        usd if usd is not None and is_real(usd, row.gpu_count) else None
        for usd in (row.price, row.spot_price)
    )
    if on_demand is not None and spot is not None and spot >= on_demand:
        spot = None
    if gpu is None or (on_demand is None and spot is None):
        return None
    return Price(
        cloud=row.cloud,
        instance_type=row.instance_type,
        region=row.region,
        gpu=gpu,
        gpu_count=row.gpu_count,
        price_per_hour=on_demand,
        spot_price_per_hour=spot,
        source=source,
        as_of=as_of,
    )


def _keep_best(prices: Iterable[Price | None]) -> list[Price]:
    """For each cloud, region and number of GPUs the cheapest machine, and the cheapest as spot."""
    best: dict[tuple[str, str, int, str, bool], tuple[Decimal, Price]] = {}
    for price in prices:
        for spot in (False, True):
            if price is not None and (usd := price.usd(spot=spot)) is not None:
                key = (price.cloud, price.gpu, price.gpu_count, price.region, spot)
                if key not in best or usd < best[key][0]:
                    best[key] = usd, price
    return list(dict.fromkeys(best[key][1] for key in sorted(best)))


def list_offers(
    prices: Sequence[Price],
    *,
    clouds: Sequence[str] | None = None,
    gpus: Sequence[str] | None = None,
    spot: bool = False,
    price_per_hour: Decimal | None = None,
    today: date,
) -> list[Offer]:
    """One offer for each cloud, GPU and number of them, cheapest first: its cheapest machine.

    `gpus` as `--gpus` takes them: None is every machine with GPUs, an empty list those without, as
    in a recipe. Those that no cloud has are passed over while others are there. `price_per_hour`
    stands in for every price; a cloud whose prices nobody lists needs it.

    Raises UsageError for a cloud or a GPU that is unknown or nowhere to be had, PlanRefusedError
    for one that is, but not as a spot machine.
    """
    names = parse_clouds(",".join(clouds)) if clouds else (ANY,)
    choices = None if gpus is None else [_parse_known(text) for text in gpus]
    there = [price for price in prices if ANY in names or price.cloud in names]
    best: dict[tuple[str, str, int], tuple[Decimal, Price]] = {}
    for price in there:
        usd = price.usd(spot=spot)
        if usd is not None and _fits(price, choices):
            key = (price.cloud, price.gpu, price.gpu_count)
            if key not in best or usd < best[key][0]:
                best[key] = usd, price
    offers = [
        Offer(
            cloud=price.cloud,
            region=price.region,
            instance_type=price.instance_type,
            gpu=price.gpu,
            gpu_count=price.gpu_count,
            spot=spot,
            price_per_hour=usd if price_per_hour is None else price_per_hour,
            price_source=price.source if price_per_hour is None else GIVEN_PRICE,
            price_as_of=price.as_of if price_per_hour is None else today.isoformat(),
        )
        for usd, price in best.values()
    ]
    if choices is not None:
        listed = {price.cloud for price in there}
        wanted = Wanted(
            gpus=tuple(f"{normalize_gpu(gpus.name)}:{gpus.count}" for gpus in choices),
            cpu_ranks=1,
            spot=spot,
            price_per_hour=price_per_hour,
            today=today,
        )
        for cloud in names:
            is_priced_by_user = price_per_hour is not None and cloud not in (ANY, *listed)
            if cloud in (LOCAL, *UNPRICED) or is_priced_by_user:
                offers += offer_unpriced(cloud, wanted)
    if not offers:
        raise _refuse(there, choices, spot=spot, where=" or ".join(names))
    return sorted(offers, key=lambda o: (o.price_per_hour, o.cloud, o.gpu, o.gpu_count))


def age_days(offer: Priced, *, today: date) -> int | None:
    """How old its price is; None where nobody knows."""
    try:
        as_of = date.fromisoformat(offer.price_as_of)
    except ValueError:
        return None
    return max((today - as_of).days, 0)


def warn_of_age(offers: Iterable[Priced], *, today: date) -> str | None:
    """What to say of prices that are old or undated; None where all are fresh, or the user's."""
    ages: dict[str, list[int | None]] = {}
    for offer in offers:
        if offer.price_source not in (GIVEN_PRICE, OWN_MACHINE):
            ages.setdefault(offer.cloud, []).append(age_days(offer, today=today))
    undated = sorted(cloud for cloud, of_cloud in ages.items() if None in of_cloud)
    old = {
        cloud: oldest
        for cloud, of_cloud in sorted(ages.items())
        if (oldest := max((age for age in of_cloud if age is not None), default=0)) > OLD_AFTER_DAYS
    }
    parts = []
    if old:
        parts.append(f"those of {', '.join(old)} are up to {max(old.values())} days old")
    if undated:
        parts.append(f"those of {', '.join(undated)} bear no date")
    if not parts:
        return None
    return f"prices may have changed: {'; '.join(parts)}; `gptctl cost refresh` reads today's"


def _parse_known(text: str) -> Gpus:
    gpus = parse_gpus(text)
    if normalize_gpu(gpus.name) is None:
        near = nearest(gpus.name.upper(), list(GPU_NAMES))
        raise UsageError(
            f"there is no GPU {gpus.name!r}" + (f"; nearest: {near!r}" if near else ""),
            hint=f"one of: {', '.join(GPU_NAMES)}",
        )
    return gpus


def _fits(price: Price, choices: Sequence[Gpus] | None) -> bool:
    if choices is None:
        return price.gpu_count > 0
    if not choices:
        return price.gpu_count == 0
    return any(
        gpus.count == price.gpu_count and is_asked_for(gpus.name, price.gpu) for gpus in choices
    )


def _refuse(
    there: Sequence[Price], choices: Sequence[Gpus] | None, *, spot: bool, where: str
) -> GptctlError:
    """`where`: the clouds as they were asked for, `there`: all prices of them."""
    what = " or ".join(map(str, choices or ())) or ("GPUs" if choices is None else CPU)
    if not there:
        return UsageError(
            f"no price of {where} is known",
            hint="`gptctl cost refresh` asks SkyPilot; or say one: `--gpus A100-80GB:8 "
            "--price-per-hour 20`",
        )
    if any(_fits(price, choices) for price in there):
        return PlanRefusedError(
            f"{where} has {what} "
            + ("not as a spot machine" if spot else "as a spot machine only"),
            hint="leave out `--spot`, or choose another cloud" if spot else "`--spot` takes it",
        )
    alike = [p for p in there if any(is_asked_for(gpus.name, p.gpu) for gpus in choices or ())]
    counts = ", ".join(map(str, sorted({price.gpu_count for price in alike})))
    kinds = ", ".join(sorted({price.gpu for price in there if price.gpu_count}))
    return UsageError(
        f"no machine of {where} has {what}",
        hint=f"they come in {counts}; `--nodes N` takes several machines"
        if counts
        else f"it has: {kinds or 'no GPUs'}",
    )


def _dates(prices: Sequence[Price]) -> dict[str, str]:
    """The newest date of each cloud; an empty one, before all others, where none is known."""
    dates: dict[str, str] = {}
    for price in prices:
        as_of = "" if price.as_of == UNDATED else price.as_of
        dates[price.cloud] = max(as_of, dates.get(price.cloud, ""))
    return dates
