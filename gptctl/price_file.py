"""A list of prices as a file: CSV, after a line that tells a whole list from one that is not.

That line says the format, how many rows follow and when they were read, so that a list that was
cut, or comes from a newer gptctl, is refused instead of quietly lacking machines.
"""

import csv
import io
import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import msgspec
from msgspec import Struct

from gptctl.errors import UsageError
from training.layout import write_atomic

FORMAT = 1
UNDATED = "undated"
CPU = "CPU"
MOST_USD_PER_GPU_HOUR = Decimal(100)
"""Beyond it a price is a placeholder: the dearest in the snapshot is $16 (H100, Azure)."""
_FIRST_LINE = re.compile(r"# gptctl prices, format (\d+), (\d+) rows, read at \S+")


class Price(Struct, frozen=True, kw_only=True):
    """One machine in one region. Prices in dollars an hour; None: not to be had that way.

    `gpu` as `normalize_gpu` has it, or `CPU` with a count of 0; `as_of` an ISO date, or `undated`.
    """

    cloud: str
    instance_type: str
    region: str
    gpu: str
    gpu_count: int
    price_per_hour: Decimal | None
    spot_price_per_hour: Decimal | None
    source: str
    as_of: str

    def usd(self, *, spot: bool) -> Decimal | None:
        return self.spot_price_per_hour if spot else self.price_per_hour


COLUMNS = Price.__struct_fields__


def is_real(usd: Decimal, gpu_count: int) -> bool:
    """Neither zero nor a number that stands for none."""
    return usd.is_finite() and 0 < usd < MOST_USD_PER_GPU_HOUR * max(gpu_count, 1)


def write_prices(path: Path, prices: Sequence[Price], *, read_at: datetime) -> None:
    """Replace the list at `path` in one step. `read_at` is aware."""
    text = io.StringIO()
    stamp = read_at.isoformat(timespec="seconds")
    text.write(f"# gptctl prices, format {FORMAT}, {len(prices)} rows, read at {stamp}\n")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(msgspec.structs.astuple(price) for price in prices)  # None becomes ""
    write_atomic(path, text.getvalue().encode())


def read_prices(path: Path, *, hint: str) -> list[Price]:
    """Raises FileNotFoundError; UsageError with `hint` for what is no whole list of this format."""
    try:
        first, _, table = path.read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint=hint) from error
    match = _FIRST_LINE.fullmatch(first)
    if match is None:
        raise UsageError(f"{path} is no list of prices", hint=hint)
    if int(match[1]) > FORMAT:
        raise UsageError(
            f"{path} was written by a newer gptctl: format {match[1]}, this one reads {FORMAT}",
            hint=hint,
        )
    try:
        rows = list(csv.reader(io.StringIO(table)))
        if len(rows) != 1 + int(match[2]) or not table.endswith("\n"):
            raise UsageError(f"{path} was cut: {match[2]} rows should be there", hint=hint)
        return [_decode(rows[0], row) for row in rows[1:]]
    except (csv.Error, ValueError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint=hint) from error


def _decode(columns: list[str], row: list[str]) -> Price:
    """Raises ValueError."""
    cells: dict[str, str | None] = dict(zip(columns, row, strict=True))
    for column in ("price_per_hour", "spot_price_per_hour"):
        cells[column] = cells.get(column) or None
    price = msgspec.convert(cells, Price, strict=False)
    for spot in (False, True):
        usd = price.usd(spot=spot)
        if usd is not None and not is_real(usd, price.gpu_count):
            raise ValueError(f"a price of {usd} for {price.instance_type}")
    return price
