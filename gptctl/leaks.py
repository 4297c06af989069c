"""Machines that may bill for nothing: how they are found, and all ended at once.

A leak is rented: this machine bills nobody. What is still being launched is none, nor is a
run whose machine died and for which SkyPilot looks for another.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal

from msgspec import Struct

from gptctl.backends import LOCAL, Backend, Tell
from gptctl.backends.launched import Launched, Note
from gptctl.condition import END_GRACE_S
from gptctl.errors import BackendError, GptctlError, NotFoundError
from gptctl.runs import RunView, read_record
from gptctl.stopping import stop_rented
from training.errors import TrainingError
from training.storage import Storage

Kind = Literal["silent", "over", "cut_short", "unrecorded", "unended"]

UNENDED_AFTER_S = 1800.0
"""For so long a machine may take to come up, on another laptop, before it is heard of."""


class Leak(Struct, frozen=True, kw_only=True):
    """`silent`: its machine bills, and nothing is heard of it. `over`: it has ended, and bills.

    `cut_short`: whoever launched it died at it. `unrecorded`: launched from here into this store,
    which has no such run. `unended`: it fell silent, and nobody here knows its machine.
    """

    run_id: str
    store: str
    cloud: str
    kind: Kind
    why: str
    is_billing: bool
    """Whether a machine is known to be there; else there may be one."""
    price_per_hour: Decimal | None = None
    """Of all nodes together; None where it is not known."""


def find_leaks(views: Sequence[RunView], notes: Sequence[Note], *, store: str) -> list[Leak]:
    """`views`: all runs of `store`; `notes`: read after them, as looking settles some."""
    noted = {note.run_id: note for note in notes}
    leaks = []
    for view in views:
        if found := _judge(view, noted.get(view.run_id)):
            kind, why = found
            leaks.append(
                Leak(
                    run_id=view.run_id,
                    store=view.store,
                    cloud=view.cloud,
                    kind=kind,
                    why=why,
                    is_billing=view.is_billing,
                    price_per_hour=view.price_per_hour,
                )
            )
    seen = {view.run_id for view in views}
    return leaks + [
        leak
        for note in notes
        if not (note.store == store and note.run_id in seen)
        and (leak := _judge_note(note, store)) is not None
    ]


def _judge(view: RunView, note: Note | None) -> tuple[Kind, str] | None:
    if view.cloud == LOCAL or view.is_launching:
        return None
    if note is not None and note.store != view.store and not note.is_given_back:
        return None  # the machine of that name is of the other store's run
    silent_s = (view.read_at - view.updated_at).total_seconds()
    has_begun = view.state not in ("pending", "provisioning") and not view.is_over
    if note is not None and note.is_cut_short and not has_begun:
        return "cut_short", "its launch was cut short, and may have left a machine"
    if view.is_over and view.is_billing and silent_s > END_GRACE_S:
        return "over", f"it ended {silent_s / 60:,.0f} minutes ago, and its machine still bills"
    if view.is_stale and view.is_billing:
        return "silent", f"its machine bills, and gave no sign of life for {silent_s:,.0f} s"
    if view.is_stale and silent_s > UNENDED_AFTER_S:
        return "unended", f"no sign of life for {silent_s:,.0f} s, and its machine is not known"
    return None


def _judge_note(note: Note, store: str) -> Leak | None:
    """Of a launch from here whose run is not among those of `store`."""
    if note.is_cut_short:
        kind: Kind = "cut_short"
        why = "its launch was cut short, and may have left a machine"
    elif note.store == store and note.launcher is None and not note.is_given_back:
        kind, why = "unrecorded", "it was launched from here, and its store has no record of it"
    else:
        return None
    return Leak(
        run_id=note.run_id,
        store=note.store,
        cloud=note.clouds[0],
        kind=kind,
        why=why,
        is_billing=False,
    )


def stop_leaked(
    leaks: Sequence[Leak],
    *,
    open_store: Callable[[str], Storage],
    backend_of: Callable[[str], Backend],
    launched: Launched,
    clock: Callable[[], datetime],
    tell: Tell,
) -> list[str]:
    """End each, and make sure that nothing of it bills: the runs that were ended.

    One that cannot be ended does not keep the others from it. Raises BackendError at the end,
    naming those of which something may still bill, and why.
    """
    ended, left = [], []
    for leak in leaks:
        note = launched.read(leak.run_id)
        if note is not None and note.launcher is not None and not note.is_cut_short:
            tell(f"{leak.run_id} is being launched anew: it is let be.")
            continue
        try:
            _end(leak, open_store, backend_of(leak.cloud), launched, clock, tell)
            ended.append(leak.run_id)
        except (GptctlError, TrainingError) as error:
            tell(f"{leak.run_id} could not be ended: {error.message}")
            left.append((leak, error))
    if left:
        raise BackendError(
            "not ended, and may bill: "
            + "; ".join(f"{leak.run_id} ({error.message})" for leak, error in left),
            hint=" ".join(dict.fromkeys(error.hint for _, error in left if error.hint)),
        )
    return ended


def _end(
    leak: Leak,
    open_store: Callable[[str], Storage],
    backend: Backend,
    launched: Launched,
    clock: Callable[[], datetime],
    tell: Tell,
) -> None:
    try:
        store = open_store(leak.store)
        record = read_record(store, leak.run_id)
    except (NotFoundError, TrainingError) as error:
        note = launched.read(leak.run_id)
        if note is None or note.store != leak.store:
            raise
        # A machine bills whether or not its record can be had.
        backend.stop(leak.run_id, tell=tell)
        launched.settle(leak.run_id)
        tell(f"Nothing of {leak.run_id} bills; its record stays as it is: {error.message}")
        return
    stop_rented(record, store=store, backend=backend, launched=launched, clock=clock, tell=tell)
