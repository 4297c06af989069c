"""Watch a run through its store. How to wait, and what time it is, come in as values."""

from collections.abc import Callable, Iterator
from datetime import datetime

from gptctl.backends import Backend
from gptctl.errors import (
    EXIT_STOPPED_BY_BUDGET,
    EXIT_STOPPED_BY_USER,
    NotFoundError,
    RunFailedError,
)
from gptctl.runs import RunView, read_record, read_status, view_run
from training.errors import ObjectNotFoundError, StorageUnavailableError
from training.layout import LOGS, STAGES, run_key
from training.storage import Storage

Look = Callable[[], RunView]
Wait = Callable[[], None]

_EXIT_CODES = {"budget": EXIT_STOPPED_BY_BUDGET, "deadline": EXIT_STOPPED_BY_BUDGET, "target": 0}


def watch(run_id: str, *, store: Storage, backend: Backend, clock: Callable[[], datetime]) -> Look:
    """A look at the run, to be taken again and again. Raises NotFoundError here, not later."""
    record = read_record(store, run_id)

    def look() -> RunView:
        # The backend first: a run that ends in between is then seen as over, never as killed.
        alive = backend.state(run_id)
        return view_run(record, read_status(store, record), alive, store=store.url, now=clock())

    return look


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


def follow_log(store: Storage, key: str, views: Iterator[RunView]) -> Iterator[bytes]:
    """What is in the log under `key`, then what is added to it, as long as `views` last."""
    offset = 0
    for _ in views:
        chunk, offset = _read_new(store, key, offset)
        if chunk:
            yield chunk
    chunk, _ = _read_new(store, key, offset)  # what came between the last look and the end
    if chunk:
        yield chunk


def _read_new(store: Storage, key: str, offset: int) -> tuple[bytes, int]:
    size = next((found.size_bytes for found in store.list(key) if found.key == key), 0)
    if size == offset:
        return b"", offset
    data = store.read(key)
    start = offset if len(data) >= offset else 0  # a log that shrank began anew
    return data[start:], len(data)


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
