"""Watch a run through its store. How to wait, and what time it is, come in as values."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from gptctl.backends import LOCAL, Backend, BackendState, Tell
from gptctl.backends.launched import Launched, Note
from gptctl.condition import STALE_AFTER_S, Launching
from gptctl.errors import (
    EXIT_STOPPED_BY_BUDGET,
    EXIT_STOPPED_BY_USER,
    BackendError,
    NotFoundError,
    RunFailedError,
)
from gptctl.runs import RunView, read_record, read_status, view_run
from training.errors import ObjectNotFoundError, StorageUnavailableError
from training.layout import LOGS, STAGES, RunRecord, Status, run_key
from training.storage import Storage

Look = Callable[[], RunView]
Wait = Callable[[], None]

FORGOTTEN_AFTER = timedelta(days=1)
"""A run that ended before that, and was not launched from here, has no machine any more."""

_EXIT_CODES = {"budget": EXIT_STOPPED_BY_BUDGET, "deadline": EXIT_STOPPED_BY_BUDGET, "target": 0}


def watch(
    run_id: str,
    *,
    store: Storage,
    backend: Backend,
    clock: Callable[[], datetime],
    launched: Launched | None = None,
    complain: Tell = lambda line: None,
) -> Look:
    """A look at the run, to be taken again and again. Raises NotFoundError here, not later.

    `complain` is told why the backend could not be asked: the store may still know.
    """
    record = read_record(store, run_id)

    def look() -> RunView:
        return see(
            record,
            read_status(store, record),
            store=store,
            backend=backend,
            clock=clock,
            launched=launched,
            complain=complain,
        )

    return look


def see(
    record: RunRecord,
    status: Status,
    *,
    store: Storage,
    backend: Backend,
    clock: Callable[[], datetime],
    launched: Launched | None,
    complain: Tell,
) -> RunView:
    """The run as it is now; `status` is what the store had just said."""
    note = launched.read(record.run_id) if launched else None
    launching = _launching(note)
    alive: BackendState = "gone" if note else "unknown"
    if is_beating(record, status, now=clock()):
        alive = "running"
    elif is_worth_asking(record, status, note, now=clock()):
        try:
            alive = backend.state(record.run_id)
        except BackendError as error:
            alive = "unknown"
            complain(error.message)
        if not status.is_over:
            # After the backend: a run that ended in between is seen as over, never as killed.
            status = read_status(store, record)
        if launched and status.is_over and alive == "gone" and launching != "under_way":
            launched.settle(record.run_id)
    return view_run(record, status, alive, store=store.url, now=clock(), launching=launching)


def is_beating(record: RunRecord, status: Status, *, now: datetime) -> bool:
    """Whether a rented node has just told of itself: SkyPilot takes seconds, and knows no better.

    Before the first heartbeat the status is the launcher's, which is no sign of a machine.
    """
    if record.offer.cloud == LOCAL or status.is_over or not status.life:
        return False
    is_fresh = now - status.updated_at < timedelta(seconds=STALE_AFTER_S)
    return is_fresh and status.state not in ("pending", "provisioning", "preempted")


def is_worth_asking(record: RunRecord, status: Status, note: Note | None, *, now: datetime) -> bool:
    """Whether the backend can know more. SkyPilot takes seconds to say that all is long over."""
    if record.offer.cloud == LOCAL or not status.is_over:
        return True
    if note is not None:
        return not note.is_given_back
    return now - status.updated_at < FORGOTTEN_AFTER


def _launching(note: Note | None) -> Launching:
    if note is None or note.launcher is None:
        return "none"
    return "cut_short" if note.is_cut_short else "under_way"


def follow(look: Look, *, wait: Wait) -> Iterator[RunView]:
    """One view after the other until the run is over and its supervisor has gone.

    A store that is out of reach for a while only makes for a pause, once it was reached.
    """
    seen = False
    while True:
        try:
            view = look()
        except StorageUnavailableError:
            if not seen:
                raise
        else:
            seen = True
            yield view
            if view.is_over and view.backend != "running":
                return
        wait()


def read_log(store: Storage, run_id: str, stage: str) -> bytes:
    """Raises NotFoundError, naming the stages that have a log."""
    try:
        return store.read(run_key(run_id, LOGS, f"{stage}.log"))
    except ObjectNotFoundError as error:
        stages = logged_stages(store, run_id)
        raise NotFoundError(
            f"{run_id} has no log of stage {stage!r}",
            hint=f"it has: {', '.join(stages)}" if stages else "nothing has been logged yet",
        ) from error


def logged_stages(store: Storage, run_id: str) -> list[str]:
    prefix = run_key(run_id, LOGS) + "/"
    names = (found.key.removeprefix(prefix) for found in store.list(prefix))
    stages = [name.removesuffix(".log") for name in names if name.endswith(".log")]
    return sorted(stages, key=lambda s: (STAGES.index(s) if s in STAGES else len(STAGES), s))


def exit_code_of(view: RunView) -> int:
    """The exit code of a launch whose run ended like that."""
    if view.state == "succeeded":
        return 0
    if view.state == "stopped":
        return _EXIT_CODES.get(view.reason or "user", EXIT_STOPPED_BY_USER)
    return RunFailedError.exit_code


def await_end(views: Iterator[RunView], is_late: Callable[[], bool]) -> RunView:
    """The last of `views`, or the one at which `is_late` gave up waiting."""
    view = next(views)
    for view in views:  # noqa: B007 - the last one is what is asked for
        if is_late():
            break
    return view
