"""Rebuild the list of prices that comes with gptctl from the catalogues that SkyPilot fetched.

    python scripts/build_prices.py [FOLDER]

FOLDER holds `<cloud>/vms.csv`, as SkyPilot's own `~/.sky/catalogs/v8` does, which is the default:
`sky gpus list --infra <cloud>` fetches one, dated today. Clouds that are not in it keep the rows
they have, which were collected from the price lists that each of them names as its source.
"""

import argparse
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from gptctl.backends import CLOUDS
from gptctl.backends.sky_catalog import Catalog
from gptctl.prices import SNAPSHOT, newest, read_snapshot, refresh, write_cache


def main(arguments: list[str] | None = None, *, snapshot: Path = SNAPSHOT) -> str:
    """Writes `snapshot`; returns what there is to say of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path.home() / ".sky" / "catalogs" / "v8"
    )
    folder: Path = parser.parse_args(arguments).folder
    now = datetime.now(UTC)
    found = [cloud for cloud in CLOUDS if (folder / cloud / "vms.csv").is_file()]
    if not found:
        parser.error(f"{folder} holds no <cloud>/vms.csv")
    fresh = refresh((Catalog(folder, cloud) for cloud in found), today=now.date())
    prices = newest(read_snapshot(snapshot), fresh)
    write_cache(snapshot, prices, read_at=now)
    counts = Counter(price.cloud for price in prices)
    return "\n".join(
        f"{cloud}: {count} prices, " + ("from the catalogue" if cloud in found else "as they were")
        for cloud, count in sorted(counts.items())
    )


if __name__ == "__main__":
    sys.stdout.write(f"{main()}\n")
