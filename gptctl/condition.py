"""How a run is: its heartbeat, its machine and its launch, made one. Pure: `now` is a value.

No one of them tells the truth alone: a heartbeat says nothing of a machine that went on to
bill, a machine nothing of whether it still trains, and a launch that was killed left neither.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gptctl.backends import LOCAL, BackendState
from training.layout import RunRecord, State, Status

Launching = Literal["none", "under_way", "cut_short"]
"""As this machine knows: `cut_short` when whoever launched the run died before it was done."""

STALE_AFTER_S = 60.0
"""A heartbeat comes each second from a folder, each ten from a bucket."""
START_GRACE_S = 30.0
"""A run may be recorded for this long before anything must be alive."""
END_GRACE_S = 180.0
"""Within this a rented machine goes down by itself when its run is over."""

_BEFORE_HEARTBEAT: frozenset[State] = frozenset({"pending", "provisioning"})


class Condition(Struct, frozen=True, kw_only=True):
    """`status` as it is to be shown. `is_stale`: nobody can say whether it goes on."""

    status: Status
    is_stale: bool = False


def judge(
    record: RunRecord,
    status: Status,
    *,
    backend: BackendState,
    launching: Launching = "none",
    now: datetime,
) -> Condition:
    age_s = (now - status.updated_at).total_seconds()
    if record.offer.cloud == LOCAL:
        return _judge_here(record, status, backend, age_s)
    if status.is_over:
        return Condition(status=_judge_end(record, status, backend, age_s))
    if status.state in _BEFORE_HEARTBEAT and (launching != "none" or backend == "running"):
        return Condition(status=_judge_start(record, status, backend, launching))
    return _judge_rented(record, status, backend, age_s)


def is_managed(record: RunRecord) -> bool:
    """Whether SkyPilot looks for another machine when the run's own dies."""
    return record.recover or record.offer.spot


def _judge_here(
    record: RunRecord, status: Status, backend: BackendState, age_s: float
) -> Condition:
    if status.is_over:
        return Condition(status=status)
    if backend != "running":
        was_started = status.state != "pending"
        if age_s > START_GRACE_S if not was_started else backend == "gone":
            return Condition(
                status=_killed(
                    record,
                    status,
                    f"its supervisor died in phase {status.phase}"
                    if was_started
                    else "it was recorded but never started",
                )
            )
    return _judge_silence(record, status, age_s)


def _judge_silence(record: RunRecord, status: Status, age_s: float) -> Condition:
    """Of what nothing but the heartbeat can tell."""
    if age_s <= STALE_AFTER_S:
        return Condition(status=status)
    return Condition(
        status=replace(
            status,
            message=f"no sign of life for {age_s:,.0f} s: its store may be out of reach",
            hint=f"if its machine is gone, {_resume(record)}",
        ),
        is_stale=True,
    )


def _judge_start(
    record: RunRecord, status: Status, backend: BackendState, launching: Launching
) -> Status:
    """Before the first heartbeat, when there is a launch or a machine to tell of."""
    run_id = record.run_id
    watch = f"`gptctl logs {run_id} --follow` shows what goes on"
    if launching == "under_way":
        return replace(status, message="a machine is being found and made for it", hint=watch)
    if launching == "none":
        return replace(status, message="its machine bills, and is being set up", hint=watch)
    if backend == "running":
        return replace(
            status,
            message="its launch was cut short; its machine bills, and may yet begin to train",
            hint=f"`gptctl stop {run_id}` ends it; {watch}",
        )
    return replace(
        _killed(record, status, "its launch was cut short, and may have left a machine that bills"),
        hint=f"`gptctl stop {run_id}` makes sure that nothing does",
    )


def _judge_rented(
    record: RunRecord, status: Status, backend: BackendState, age_s: float
) -> Condition:
    stop = f"`gptctl stop {record.run_id}`"
    if status.state == "pending" and age_s > START_GRACE_S:
        return Condition(status=_killed(record, status, "it was recorded but never started"))
    if age_s <= STALE_AFTER_S:
        # The heartbeat is younger than what SkyPilot says, and its last word may be on its way.
        return Condition(status=status)
    silence = f"no sign of life for {age_s:,.0f} s"
    if backend == "unknown":
        return _judge_silence(record, status, age_s)
    if backend == "gone":
        lost = f"its machine went away in phase {status.phase}, without a last word"
        return Condition(status=_killed(record, status, lost))
    if is_managed(record):
        message = f"{silence}: its machine is lost; SkyPilot is looking for another machine"
        return Condition(
            status=replace(
                status, state="preempted", message=message, hint=f"{stop} gives the run up"
            )
        )
    message = f"its machine is up and bills, but gives no sign of life for {age_s:,.0f} s"
    return Condition(status=replace(status, message=message, hint=f"{stop} ends it"), is_stale=True)


def _judge_end(record: RunRecord, status: Status, backend: BackendState, age_s: float) -> Status:
    if backend != "running":
        return status
    bills = (
        "its machine still bills; it should go down by itself within two minutes"
        if age_s <= END_GRACE_S
        else f"its machine still bills, {age_s / 60:,.0f} minutes after the end"
    )
    return replace(
        status,
        message=_join(status.message, bills),
        hint=_join(status.hint, f"`gptctl stop {record.run_id}` ends it now"),
    )


def _killed(record: RunRecord, status: Status, message: str) -> Status:
    return replace(status, state="failed", reason="killed", message=message, hint=_resume(record))


def _resume(record: RunRecord) -> str:
    since = "checkpoint" if record.job == "train" else "shard that is in the store"
    return f"`gptctl launch --resume {record.run_id}` goes on from the last {since}"


def _join(first: str | None, second: str) -> str:
    return f"{first}; {second}" if first else second
