"""So many of so many: a bar on a terminal, a line each ten seconds elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


@contextmanager
def open_counter(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Something to call with (done, of how many)."""
    if not console.is_terminal:
        yield _plain(console, what)
        return
    columns = BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(console: Console, what: str) -> Callable[[int, int], None]:
    shown_at = monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown_at
        if monotonic() - shown_at >= PLAIN_EVERY_S:
            console.print(f"{done:,} of {total:,} {what}", soft_wrap=True)
            shown_at = monotonic()

    return show
