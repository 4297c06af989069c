"""The tables of figures that come with gptctl, as they stand in `gptctl/data`."""

import csv
from pathlib import Path

FOLDER = Path(__file__).with_name("data")


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a table, each by its header; lines that begin with `#` say where it is from."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))
