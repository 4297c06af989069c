"""Runs as the store tells of them, and what is shown of them. Time enters as a value."""

import re
import secrets
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches

from msgspec import Struct
from msgspec.structs import replace

from gptctl.backends import LOCAL, BackendState
from gptctl.condition import Launching, judge
from gptctl.errors import NotFoundError, UsageError
from training.errors import ObjectExistsError, ObjectNotFoundError, TrainingError
from training.layout import (
    RUN_JSON,
    RUNS,
    STATUS_JSON,
    TERMINAL,
    Lead,
    Offer,
    RunJob,
    RunRecord,
    SlowRank,
    State,
    Status,
    decode,
    encode,
    run_key,
)
from training.storage import Storage

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")

CHANGES: dict[State, frozenset[State]] = {
    "pending": frozenset({"provisioning", "preparing", "stopped", "failed"}),
    "provisioning": frozenset({"preparing", "stopped", "failed", "preempted"}),
    "preparing": frozenset({"training", "finishing", "stopped", "failed", "preempted"}),
    "training": frozenset({"finishing", "stopped", "failed", "preempted"}),
    "finishing": frozenset({"succeeded", "stopped", "failed", "preempted"}),
    "preempted": frozenset({"pending", "stopped", "failed"}),
    "stopped": frozenset({"pending"}),
    "failed": frozenset({"pending"}),
    "succeeded": frozenset(),
}
"""From each state, the states that may follow. A resumed run is pending again."""


class RunView(Struct, frozen=True, kw_only=True):
    """A run as it is shown and as `--json` prints it; `read_at` is when it was looked at.

    `offer`: the machine it got, or is planned on, `nodes` of it. `is_billing`: a rented machine
    of it exists. `is_launching`: somebody on this machine is at starting it.
    """

    run_id: str
    job: RunJob
    recipe: str
    cloud: str
    offer: Offer
    nodes: int
    is_billing: bool
    is_launching: bool
    state: State
    reason: str | None
    message: str | None
    hint: str | None
    is_stale: bool
    backend: BackendState
    phase: str
    step: int
    steps: int
    tokens: int
    loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    hellaswag_acc: float | None
    hellaswag_acc_norm: float | None
    hellaswag_missing: str | None
    """Why there is no score now, of a run that should have one."""
    hellaswag_reference: float | None
    """acc_norm, as whoever measured the recipe's reference has it."""
    tokens_per_sec: float | None
    mfu: float | None
    shards: int
    lead: Lead | None
    """Of preparation, before training; None where nothing is prepared."""
    slow_rank: SlowRank | None
    """The one that held the others up last; None where none does, or the run is over."""
    spent_usd: Decimal
    budget_usd: Decimal | None
    max_hours: float | None
    price_per_hour: Decimal
    store: str
    created_at: datetime
    updated_at: datetime
    read_at: datetime
    phases: dict[str, float]
    """Billed seconds of each phase, all lives together."""

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL

    @property
    def seconds_left(self) -> float | None:
        """Of training, at its present speed."""
        if not self.tokens_per_sec or not self.step or self.is_over:
            return None
        return (self.steps - self.step) * self.tokens / self.step / self.tokens_per_sec


def new_run_id(recipe_name: str) -> str:
    """`gpt2-124m-3f9a`: safe as a folder's name and as part of a URL."""
    slug = re.sub(r"[^a-z0-9]+", "-", recipe_name.lower()).strip("-") or "run"
    return f"{slug}-{secrets.token_hex(2)}"


def check_name(name: str) -> str:
    """A run's name that the user chose. Raises UsageError where a cloud would refuse it."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a run",
            hint="letters, digits and `-`, a letter first, at most 40: `--name gpt2-first-try`",
        )
    return name


def create_run(store: Storage, record: RunRecord, *, may_rename: bool = True) -> RunRecord:
    """Record the run before anything is asked for; under another id where its own is taken.

    Raises UsageError where it is, and may not have another.
    """
    while True:
        try:
            store.write(run_key(record.run_id, RUN_JSON), encode(record), if_absent=True)
        except ObjectExistsError as error:
            if not may_rename:
                raise UsageError(
                    f"there is a run {record.run_id!r} in {store.url} already",
                    hint=f"choose another name, or go on with it: "
                    f"`gptctl launch --resume {record.run_id}`",
                ) from error
            record = replace(record, run_id=new_run_id(record.recipe_name))
        else:
            write_status(store, first_status(record))
            return record


def first_status(record: RunRecord) -> Status:
    return Status(
        run_id=record.run_id,
        state="pending",
        phase="pending",
        life=0,
        step=0,
        steps=record.recipe.train.steps,
        tokens=0,
        updated_at=record.created_at,
        budget_usd=record.budget_usd,
        max_hours=record.max_hours,
        price_per_hour=record.offer.price_per_hour * record.nodes,
    )


def write_status(store: Storage, status: Status) -> None:
    store.write(run_key(status.run_id, STATUS_JSON), encode(status))


def change_state(
    status: Status,
    state: State,
    *,
    now: datetime,
    reason: str | None = None,
    message: str | None = None,
    hint: str | None = None,
) -> Status:
    """The status after that change. Raises ValueError, a bug, where it is not a legal one."""
    if state not in CHANGES[status.state]:
        raise ValueError(f"a run that is {status.state} cannot become {state}")
    return replace(
        status,
        state=state,
        phase=state,
        updated_at=now,
        reason=reason,
        message=message,
        hint=hint,
    )


def find_run_id(store: Storage, text: str) -> str:
    """The run that `text` names, whole or by a beginning that no other has."""
    known = list_run_ids(store)
    if text in known:
        return text
    matches = [run_id for run_id in known if text and run_id.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{text!r} could be {', '.join(matches)}", hint="type one more character")
    near = get_close_matches(text, known, n=3, cutoff=0.5)
    raise NotFoundError(
        f"there is no run {text!r} in {store.url}",
        hint=f"did you mean {' or '.join(near)}?"
        if near
        else "`gptctl status` lists them; `--store` looks in another store",
    )


def list_run_ids(store: Storage) -> list[str]:
    keys = (found.key.split("/") for found in store.list(f"{RUNS}/"))
    return [key[1] for key in keys if len(key) == 3 and key[2] == RUN_JSON]


def read_record(store: Storage, run_id: str) -> RunRecord:
    """Raises NotFoundError for a run that is not in the store."""
    try:
        data = store.read(run_key(run_id, RUN_JSON))
    except ObjectNotFoundError as error:
        raise NotFoundError(
            f"there is no run {run_id!r} in {store.url}", hint="`gptctl status` lists them"
        ) from error
    return decode(data, RunRecord, name=f"{run_id}/{RUN_JSON}")


def read_status(store: Storage, record: RunRecord) -> Status:
    """The last heartbeat; of a run whose launch was cut short, its first status."""
    try:
        data = store.read(run_key(record.run_id, STATUS_JSON))
    except ObjectNotFoundError:
        return first_status(record)
    return decode(data, Status, name=f"{record.run_id}/{STATUS_JSON}")


def read_all(store: Storage) -> tuple[list[tuple[RunRecord, Status]], list[str]]:
    """Every run, newest first, and a warning for each that cannot be read."""
    found, warnings = [], []
    for run_id in list_run_ids(store):
        try:
            record = read_record(store, run_id)
            found.append((record, read_status(store, record)))
        except NotFoundError:
            continue  # deleted since it was listed
        except TrainingError as error:
            warnings.append(f"{run_id} is left out: {error.message}")
    found.sort(key=lambda pair: pair[0].created_at, reverse=True)
    return found, warnings


def view_run(
    record: RunRecord,
    status: Status,
    backend: BackendState,
    *,
    store: str,
    now: datetime,
    launching: Launching = "none",
) -> RunView:
    """What is known of the run, made one: its heartbeat, its machine, its launch."""
    condition = judge(record, status, backend=backend, launching=launching, now=now)
    status, offer = condition.status, status.offer or record.offer
    reference = record.recipe.reference
    phases: dict[str, float] = {}
    for line in status.bill:
        phases[line.phase] = round(phases.get(line.phase, 0.0) + line.seconds, 3)
    return RunView(
        run_id=record.run_id,
        job=record.job,
        recipe=record.recipe_name,
        cloud=offer.cloud,
        offer=offer,
        nodes=record.nodes,
        is_billing=offer.cloud != LOCAL and backend == "running",
        is_launching=launching == "under_way",
        state=status.state,
        reason=status.reason,
        message=status.message,
        hint=status.hint,
        is_stale=condition.is_stale,
        backend=backend,
        phase=status.phase,
        step=status.step,
        steps=status.steps,
        tokens=status.tokens,
        loss=status.loss,
        val_loss=status.val_loss,
        best_val_loss=status.best_val_loss,
        hellaswag_acc=status.hellaswag_acc,
        hellaswag_acc_norm=status.hellaswag_acc_norm,
        hellaswag_missing=status.hellaswag_missing,
        hellaswag_reference=reference.hellaswag if reference else None,
        tokens_per_sec=status.tokens_per_sec,
        mfu=status.mfu,
        shards=status.shards,
        lead=None if status.is_over else status.lead,
        slow_rank=None if status.is_over else status.slow_rank,
        spent_usd=status.spent_usd,
        budget_usd=status.budget_usd,
        max_hours=status.max_hours,
        price_per_hour=status.price_per_hour,
        store=store,
        created_at=record.created_at,
        updated_at=status.updated_at,
        read_at=now,
        phases=phases,
    )
