"""A run while it goes on, on stderr: a live view on a terminal, plain lines elsewhere."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gptctl.cli.render import (
    LossCurve,
    counted,
    describe_lead,
    describe_step,
    duration,
    hellaswag_of,
    number,
    slow_rank_of,
    spending,
    state_of,
)
from gptctl.report import Curves
from gptctl.runs import RunView
from training.errors import StorageError

PLAIN_EVERY = timedelta(seconds=10)
LEAVE = Text("Ctrl-C leaves; the run goes on", style="dim")
_CURVE_WIDTH, _CURVE_HEIGHT = 72, 11


class Progress(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def show(self, view: RunView) -> None: ...


def open_progress(console: Console, read_curves: Callable[[], Curves]) -> Progress:
    """`read_curves` is called for each view that is drawn with a curve."""
    return LiveProgress(console, read_curves) if console.is_terminal else PlainProgress(console)


class PlainProgress:
    """A line when the phase changes and each ten seconds: for a log file, or a CI job."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._shown_at: datetime | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, view: RunView) -> None:
        is_due = self._shown_at is None or view.read_at - self._shown_at >= PLAIN_EVERY
        if view.phase != self._phase or is_due or view.is_over:
            self._console.print(progress_line(view), soft_wrap=True)
            self._phase, self._shown_at = view.phase, view.read_at


class LiveProgress:
    def __init__(self, console: Console, read_curves: Callable[[], Curves]) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._read_curves = read_curves
        self._curves = Curves()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, view: RunView) -> None:
        with suppress(StorageError):  # whether the store is in reach is for the follower to say
            self._curves = self._read_curves()
        self._live.update(live_view(view, self._curves), refresh=True)


def progress_line(view: RunView) -> str:
    """`training  step 120/400  loss 2.31  val 2.40  52,000 tokens/s  $0.01 of $1.00 …`"""
    if view.job == "prepare":
        said = f"  ({view.message})" if view.message else ""
        return f"{_phase(view)}  {describe_step(view)}  {spending(view)}{said}"
    parts = [
        _phase(view),
        f"step {view.step:,}/{view.steps:,}",
        f"loss {number(view.loss, '.4f')}",
        f"val {number(view.val_loss, '.4f')}",
        *_hellaswag(view),
        f"{number(view.tokens_per_sec)} tokens/s",
        spending(view),
        f"left {duration(view.seconds_left)}",
    ]
    if view.lead and not view.lead.is_done:
        parts.append(f"data {describe_lead(view.lead)}")
    if view.slow_rank is not None:
        parts.append(f"rank {view.slow_rank.rank} is slow")
    return "  ".join(parts) + (f"  ({view.message})" if view.message else "")


def _hellaswag(view: RunView) -> list[str]:
    if view.hellaswag_missing is not None:
        return ["no HellaSwag score"]
    return [] if view.hellaswag_acc_norm is None else [f"HellaSwag {view.hellaswag_acc_norm:.4f}"]


def _phase(view: RunView) -> str:
    """What it does, where it is known to do anything."""
    is_at_it = not (view.is_over or view.is_stale or view.state == "preempted")
    return view.phase if is_at_it else state_of(view)


def live_view(view: RunView, curves: Curves) -> Group:
    if view.job == "prepare":
        return Group(Text(view.run_id, style="bold"), Text(progress_line(view)), LEAVE)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(view.run_id, style="bold"),
        Text(_phase(view)),
        ProgressBar(total=view.steps, completed=view.step, width=30),
        Text(f"step {view.step:,} of {view.steps:,}"),
    )
    facts = Table.grid(padding=(0, 3))
    facts.add_row(
        f"loss {number(view.loss, '.4f')}",
        f"val {number(view.val_loss, '.4f')}",
        f"{number(view.tokens_per_sec)} tokens/s",
        f"MFU {number(view.mfu, '.1%')}",
        f"spent {spending(view)}",
        f"left {duration(view.seconds_left)}",
    )
    parts: list[RenderableType] = [head, facts]
    if curves.can_be_drawn:
        parts.append(LossCurve(curves, width=_CURVE_WIDTH, height=_CURVE_HEIGHT))
    else:
        parts.append(Text(f"{counted(view.shards, 'shard')} written; no loss measured yet"))
    if told := hellaswag_of(view):
        parts.append(Text(f"HellaSwag {told}"))
    if told := slow_rank_of(view):
        parts.append(Text(f"slow: {told}"))
    if view.lead and not view.lead.is_done:
        parts.append(Text(f"data: {describe_lead(view.lead)}"))
    if view.message:
        parts.append(Text(view.message))
    return Group(*parts, LEAVE)
