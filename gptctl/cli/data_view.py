"""How data sets look, and how one that is being made does: a bar on a terminal, else lines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from gptctl.cli.render import counted, duration, new_table, number
from gptctl.data_programs import Progress
from gptctl.datasets import Row

PLAIN_EVERY_S = 10.0


def datasets_table(rows: Sequence[Row]) -> Table:
    table = new_table("key", "source", "revision", "tokens", "shards", "size", "state")
    for row in rows:
        table.add_row(
            row.key,
            row.source or "-",
            (row.revision or "-")[:16],
            f"{row.tokens:,}",
            f"{row.shards:,}",
            f"{row.size_bytes / 1e6:,.1f} MB",
            row.fault or ("complete" if row.complete else "so far"),
        )
    return table


def progress_line(seen: Progress) -> str:
    """`3 shards  300,000,000 of about 10,255,000,000 tokens  24.1 M tokens/s  left 6 min`"""
    total = "" if seen.total_tokens is None else f" of about {seen.total_tokens:,}"
    speed = seen.tokens_per_sec
    parts = [
        counted(seen.shards, "shard"),
        f"{seen.tokens:,}{total} tokens",
        f"{number(None if speed is None else speed / 1e6, ',.2f')} M tokens/s",
        f"left {duration(seen.seconds_left)}",
    ]
    return "  ".join(parts)


@contextmanager
def open_progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Something to call with how far it is."""
    if not console.is_terminal:
        yield _plain(console)
        return
    with Bars(
        BarColumn(), TextColumn("{task.description}"), console=console, transient=True
    ) as bars:
        task = bars.add_task("reading the source", total=None)
        yield lambda seen: bars.update(
            task, completed=seen.tokens, total=seen.total_tokens, description=progress_line(seen)
        )


def _plain(console: Console) -> Callable[[Progress], None]:
    shown_at = float("-inf")

    def show(seen: Progress) -> None:
        nonlocal shown_at
        if seen.seconds - shown_at >= PLAIN_EVERY_S:
            console.print(progress_line(seen), soft_wrap=True)
            shown_at = seen.seconds

    return show
