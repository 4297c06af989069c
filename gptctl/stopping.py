"""End a rented run, whatever state it is in, and see to it that nothing of it bills."""

from collections.abc import Callable
from datetime import datetime

from gptctl.backends import Backend, Tell
from gptctl.backends.launched import Launched, Note
from gptctl.errors import BackendError
from gptctl.runs import change_state, read_status, write_status
from training.layout import RunRecord, Status
from training.storage import Storage


def stop_rented(
    record: RunRecord,
    *,
    store: Storage,
    backend: Backend,
    launched: Launched,
    clock: Callable[[], datetime],
    tell: Tell,
) -> Status:
    """Returns how the run ended, once nothing of it bills. To do it again is no error.

    Raises BackendError where that could not be made sure, or where nothing here knows of it.
    """
    run_id = record.run_id
    note = launched.read(run_id)
    if note is not None and note.store != store.url:
        if not note.is_given_back:
            raise _of_another_store(record, store, note)
        note = None
    status = read_status(store, record)
    had_machine = backend.state(run_id) == "running"
    if note is None and not had_machine:
        return _know_nothing(record, status, now=clock(), tell=tell)
    if not status.is_over:
        tell(f"Stopping {run_id}: it saves and uploads what it has, its machine goes ...")
    elif had_machine:
        tell(f"{run_id} was {status.state} already, its machine still bills: giving it back ...")
    else:
        tell(f"{run_id} was {status.state} already: making sure that nothing of it bills ...")
    is_cut_short = note is not None and note.is_cut_short
    backend.stop(run_id, tell=tell)
    status = read_status(store, record)
    if not status.is_over:
        status = _end(status, is_cut_short=is_cut_short, now=clock())
        write_status(store, status)
    launched.settle(run_id)
    tell(f"{'Its machine is gone' if had_machine else 'It has no machine'}: nothing of it bills.")
    return status


def _end(status: Status, *, is_cut_short: bool, now: datetime) -> Status:
    """The last word of a run that could not say it itself."""
    again = f"`gptctl launch --resume {status.run_id}`"
    if status.state == "preempted":  # it saved, and was left open for another machine
        message, hint = "stopped on request", f"{again} goes on from what it sent last"
        return change_state(status, "stopped", now=now, reason="user", message=message, hint=hint)
    if status.state not in ("pending", "provisioning"):
        message = "its machine was given back without its last word"
        hint = f"{again} goes on from what it sent last"
        return change_state(status, "stopped", now=now, reason="user", message=message, hint=hint)
    if is_cut_short:
        message, hint = "its launch was cut short", f"{again} tries again"
        return change_state(status, "failed", now=now, reason="killed", message=message, hint=hint)
    return change_state(
        status, "stopped", now=now, reason="user", message="stopped before it began",
        hint=f"{again} starts it",
    )  # fmt: skip


def _of_another_store(record: RunRecord, store: Storage, note: Note) -> BackendError:
    """A machine is known by its run's name alone, which runs of two stores may share."""
    run_id = record.run_id
    return BackendError(
        f"the machine called {run_id} was rented for the run of that name in {note.store}, "
        f"not for the one in {store.url}",
        hint=f"`gptctl stop {run_id} --store '{note.store}'` stops that one; "
        f"`sky down {run_id}` ends the machine, whoever it is of",
    )


def _know_nothing(record: RunRecord, status: Status, *, now: datetime, tell: Tell) -> Status:
    """Of a run that was not launched here, and that the SkyPilot here has no machine of."""
    unknown = "the SkyPilot of this machine knows of no machine of it"
    if status.is_over:
        tell(f"{record.run_id} was {status.state} already, and {unknown}.")
        return status
    age_s = (now - status.updated_at).total_seconds()
    cloud = (status.offer or record.offer).cloud
    raise BackendError(
        f"{record.run_id} is {status.state} as of {age_s:,.0f} s ago, was not launched from here, "
        f"and {unknown}",
        hint=f"stop it where it was launched; {cloud}'s own console shows, and ends, what bills",
    )
