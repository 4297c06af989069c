"""Start a run, go on with one, stop one: recorded first, asked of the backend second."""

import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

import gptctl
from gptctl.backends import LOCAL, Backend, Job, Tell, Wanted
from gptctl.backends.launched import Launched
from gptctl.errors import BackendError, PlanRefusedError
from gptctl.history import most_usd
from gptctl.month import MonthBudget
from gptctl.plan import Limits, Plan, default_hours, needs_limit
from gptctl.provision_log import ProvisionLog
from gptctl.runs import (
    change_state,
    check_name,
    create_run,
    new_run_id,
    read_record,
    read_status,
    view_run,
    write_status,
)
from training.errors import ObjectExistsError
from training.layout import CLAIMS, Offer, RunRecord, Status, run_key
from training.storage import Storage

BOOT_TIMEOUT_S = 1800.0
"""A machine that does not come up, or does not answer, for so long is given back."""
CLAIM_S = 60.0
"""Between a claim to go on with a run and the status that says so there is one write."""
RECORDED_PACKAGES = ("gptctl", "torch", "numpy")


class Patience(Struct, frozen=True, kw_only=True):
    """How long to wait for a machine, in seconds: as in Job."""

    wait_s: float = 0.0
    boot_timeout_s: float = BOOT_TIMEOUT_S


def launch(
    plan: Plan,
    *,
    store: Storage,
    backend: Backend,
    patience: Patience,
    versions: dict[str, str],
    now: datetime,
    tell: Tell,
    name: str | None = None,
    month: MonthBudget | None = None,
) -> tuple[RunRecord, Offer]:
    """Record the plan as a run and have the backend start it: the run, and what it got.

    Raises PlanRefusedError where the month's budget has no room for it, and BackendError.
    Whatever comes in between, Ctrl-C included, is written to the run's status, and nothing is
    left running.
    """
    planned = make_record(plan, store=store.url, versions=versions, now=now, name=name)
    record = _create(planned, store, month, may_rename=name is None)
    job = make_job(plan, record, patience)
    return record, _submit(job, store=store, backend=backend, now=now, tell=tell)


def _create(
    planned: RunRecord, store: Storage, month: MonthBudget | None, *, may_rename: bool
) -> RunRecord:
    """The run, recorded; first of all, what it may spend is taken from the month's budget."""
    if month is None:
        return create_run(store, planned, may_rename=may_rename)
    usd = most_usd(
        planned.budget_usd, planned.max_hours, planned.offer.price_per_hour * planned.nodes
    )
    month.take(planned.run_id, usd)
    try:
        record = create_run(store, planned, may_rename=may_rename)
    except BaseException:
        month.give_back(planned.run_id)
        raise
    if record.run_id != planned.run_id:
        month.give_back(planned.run_id)
        month.take(record.run_id, usd)
    return record


def make_job(plan: Plan, record: RunRecord, patience: Patience) -> Job:
    """What the backend is given to start the run that was made of the plan."""
    return Job(
        record=record,
        store=record.store,
        offers=plan.offers,
        budget_usd=record.budget_usd,
        max_hours=record.max_hours,
        text=plan.text,
        recover=plan.recover,
        wait_s=patience.wait_s,
        boot_timeout_s=patience.boot_timeout_s,
    )


def resume(
    job: Job,
    *,
    store: Storage,
    backend: Backend,
    now: datetime,
    tell: Tell,
    month: MonthBudget | None = None,
) -> Offer:
    """Go on with a run as `plan_resume` planned it.

    Raises BackendError, and PlanRefusedError where another has gone on with it meanwhile, or the
    month's budget has no room for it.
    """
    status = read_status(store, job.record)
    if month is not None:
        price = job.offers[0].price_per_hour * job.record.nodes
        month.take(job.record.run_id, most_usd(job.budget_usd, job.max_hours, price))
    _claim(job, status, store, now)
    # Pending again, the bill kept: whoever looks before the first heartbeat finds no old ending.
    ended = status if status.is_over else change_state(status, "failed", now=now, reason="killed")
    write_status(store, change_state(ended, "pending", now=now))
    return _submit(job, store=store, backend=backend, now=now, tell=tell)


def _claim(job: Job, status: Status, store: Storage, now: datetime) -> None:
    """Of all who go on with a run from the same last word, on two laptops say, one may rent."""
    run_id = job.record.run_id
    taken = PlanRefusedError(
        f"{run_id} is being resumed by another gptctl",
        hint=f"`gptctl logs {run_id} --follow` watches it, `gptctl stop {run_id}` stops it",
    )
    if status.updated_at != job.planned_after:
        raise taken
    key = run_key(run_id, CLAIMS, f"after-{status.updated_at:%Y%m%dT%H%M%S.%f}")
    try:
        store.write(key, now.isoformat().encode(), if_absent=True)
    except ObjectExistsError as error:
        age_s = (now - datetime.fromisoformat(store.read(key).decode())).total_seconds()
        if age_s < CLAIM_S:
            raise taken from error
        store.write(key, now.isoformat().encode())  # that one died before it wrote a status


def plan_resume(
    run_id: str,
    limits: Limits,
    *,
    store: Storage,
    backend: Backend,
    patience: Patience,
    now: datetime,
    text: Path | None = None,
    launched: Launched | None = None,
) -> Job:
    """What going on with the run would ask of the backend; limits not given stay as they were.

    Raises PlanRefusedError for a run that is alive or done, or would stop again at once.
    `launched` tells of a launch that another process here is still at, with no machine yet.
    """
    note = launched.read(run_id) if launched else None
    if note is not None and note.launcher is not None and not note.is_cut_short:
        raise PlanRefusedError(
            f"{run_id} is being launched by another gptctl on this machine",
            hint=f"`gptctl logs {run_id} --follow` watches it, `gptctl stop {run_id}` stops it",
        )
    record = read_record(store, run_id)
    status = read_status(store, record)
    view = view_run(record, status, backend.state(run_id), store=store.url, now=now)
    if view.state == "succeeded" and view.job == "prepare":
        raise PlanRefusedError(
            f"{run_id} has prepared its data", hint="`gptctl data list` shows what the store has"
        )
    if view.state == "succeeded":
        done = "reached its loss" if view.reason == "target" else "finished all its steps"
        raise PlanRefusedError(
            f"{run_id} has {done}, at step {view.step:,}",
            hint=f"`gptctl pull-checkpoint {run_id} --to FOLDER` brings its model",
        )
    if view.backend == "running" or not (view.is_over or view.is_stale):
        raise PlanRefusedError(
            f"{run_id} is still {view.state}",
            hint=f"`gptctl logs {run_id} --follow` watches it, `gptctl stop {run_id}` stops it",
        )
    # What stopped at a limit left there what it takes to save and upload, and no more than that.
    stopped_at = view.reason if view.state == "stopped" else None
    budget_usd = limits.budget_usd or status.budget_usd
    is_spent = budget_usd is not None and 0 < budget_usd <= status.spent_usd
    if is_spent or (stopped_at == "budget" and limits.budget_usd is None):
        raise PlanRefusedError(
            f"{run_id} has spent ${status.spent_usd} of its budget of ${budget_usd}",
            hint=f"give it more in all: `gptctl launch --resume {run_id} --budget USD`",
        )
    max_hours = limits.max_hours or status.max_hours
    hours = sum(line.seconds for line in status.bill) / 3600
    is_over_time = max_hours is not None and hours >= max_hours
    if is_over_time or (stopped_at == "deadline" and limits.max_hours is None):
        raise PlanRefusedError(
            f"{run_id} has run for {hours:.3g} of its {max_hours or 0:.3g} hours",
            hint=f"give it more in all: `gptctl launch --resume {run_id} --max-hours HOURS`",
        )
    offers = _offers_again(record, status, limits.price_per_hour, backend, now)
    if needs_limit(offers, budget_usd, max_hours):
        max_hours = hours + default_hours(record.recipe)
    return Job(
        record=record,
        store=store.url,
        offers=tuple(offers),
        planned_after=status.updated_at,
        budget_usd=budget_usd,
        max_hours=max_hours,
        spent_usd=status.spent_usd,
        spent_hours=hours,
        text=text,
        recover=record.recover,
        wait_s=patience.wait_s,
        boot_timeout_s=patience.boot_timeout_s,
    )


def _offers_again(
    record: RunRecord,
    status: Status,
    price_per_hour: Decimal | None,
    backend: Backend,
    now: datetime,
) -> list[Offer]:
    """Machines for a run that was recorded: this one as it was, a cloud's at today's prices."""
    offer = record.offer
    if offer.cloud == LOCAL:
        same = status.price_per_hour if price_per_hour is None else price_per_hour
        return [replace(offer, price_per_hour=same)]
    return backend.offers(
        Wanted(
            gpus=record.recipe.node.gpus if offer.gpu_count else (),
            cpu_ranks=record.recipe.node.cpu_ranks,
            region=record.region,
            spot=offer.spot,
            price_per_hour=price_per_hour,
            today=now.date(),
        )
    )


def _submit(job: Job, *, store: Storage, backend: Backend, now: datetime, tell: Tell) -> Offer:
    run_id = job.record.run_id
    if job.offers[0].cloud != LOCAL:
        status = read_status(store, job.record)
        write_status(store, change_state(status, "provisioning", now=now))
    log = ProvisionLog(store, run_id, tell)
    try:
        return backend.submit(job, tell=log)
    except KeyboardInterrupt:
        _note_end(job, store, state="stopped", reason="user", message="interrupted at its start",
                  now=now)  # fmt: skip
        raise
    except BackendError as error:
        log.keep(f"error: {error.message}")  # shown by whoever catches it
        # Another launch may have taken hold of the run: then its status is not ours to write.
        if job.offers[0].cloud != LOCAL or backend.state(run_id) != "running":
            _note_end(job, store, state="failed", reason="backend", message=error.message, now=now)
        raise
    finally:
        log.close()


def _note_end(
    job: Job,
    store: Storage,
    *,
    state: Literal["stopped", "failed"],
    reason: str,
    message: str,
    now: datetime,
) -> None:
    status = read_status(store, job.record)
    if status.state not in ("pending", "provisioning"):
        return  # its supervisor has spoken, and knows better
    hint = f"`gptctl launch --resume {job.record.run_id}` tries again"
    end = change_state(status, state, now=now, reason=reason, message=message, hint=hint)
    write_status(store, end)


def make_record(
    plan: Plan, *, store: str, versions: dict[str, str], now: datetime, name: str | None = None
) -> RunRecord:
    """What `run.json` says of a plan, under a new id or the name that was chosen."""
    return RunRecord(
        run_id=check_name(name) if name else new_run_id(plan.recipe_name),
        job=plan.job,
        whole=plan.whole,
        recipe_name=plan.recipe_name,
        recipe=plan.recipe,
        offer=plan.offer,
        nodes=plan.nodes,
        ranks=plan.ranks,
        region=plan.region,
        recover=plan.recover,
        device=plan.device,
        micro_batch_size=plan.micro_batch_size,
        grad_accum_steps=plan.grad_accum_steps,
        budget_usd=plan.budget_usd,
        max_hours=plan.max_hours,
        estimate_usd=plan.estimate.usd if plan.estimate else None,
        estimate_hours=plan.estimate.hours if plan.estimate else None,
        store=store,
        created_at=now,
        versions=versions,
    )


def read_versions() -> dict[str, str]:
    """What the run is made with: Python, packages, and the commit of a checkout."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    checkout = Path(gptctl.__file__).parents[1]
    if (checkout / ".git").exists():
        try:
            found = subprocess.run(
                ["git", "-C", str(checkout), "rev-parse", "HEAD"],
                capture_output=True, text=True, check=True, timeout=10,
            )  # fmt: skip
            versions["git_commit"] = found.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass  # a checkout without git or without a commit
    return versions
