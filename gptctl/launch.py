"""Start a run, go on with one, stop one: recorded first, asked of the backend second."""

import subprocess
import sys
from datetime import datetime
from glob import iglob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import gptctl
from gptctl.backends import Backend, Job
from gptctl.errors import BackendError, PlanRefusedError
from gptctl.plan import Limits, Plan
from gptctl.runs import (
    change_state,
    create_run,
    new_run_id,
    read_record,
    read_status,
    view_run,
    write_status,
)
from training.config import DataConfig
from training.layout import RunRecord
from training.storage import Storage

RECORDED_PACKAGES = ("gptctl", "torch", "numpy")


def check_data_here(data: DataConfig) -> None:
    """Raises PlanRefusedError where this machine lacks the text that it would train on."""
    if data.source != "text":
        return
    hint = "`--data` takes a file, a folder or a glob such as 'books/*.txt'"
    try:
        # Globs as the node reads them, which pathlib's are not.
        is_there = Path(data.path).exists() or any(iglob(data.path, recursive=True))  # noqa: PTH207
    except OSError as error:
        raise PlanRefusedError(f"{data.path} cannot be read: {error.strerror}", hint=hint) from (
            error
        )
    if not is_there:
        raise PlanRefusedError(f"there is no text at {data.path}", hint=hint)


def launch(
    plan: Plan, *, store: Storage, backend: Backend, versions: dict[str, str], now: datetime
) -> RunRecord:
    """Record the plan as a run and have the backend start it. Raises BackendError.

    Whatever comes in between, Ctrl-C included, is written to the run's status, and nothing
    is left running.
    """
    record = create_run(store, make_record(plan, store=store.url, versions=versions, now=now))
    _submit(Job(record=record, store=store.url), store=store, backend=backend, now=now)
    return record


def resume(
    run_id: str, limits: Limits, *, store: Storage, backend: Backend, now: datetime
) -> RunRecord:
    """Go on with a run that was stopped, failed or killed.

    Raises what `plan_resume` does, and BackendError.
    """
    job = plan_resume(run_id, limits, store=store, backend=backend, now=now)
    status = read_status(store, job.record)
    # Pending again, the bill kept: whoever looks before the first heartbeat finds no old ending.
    ended = status if status.is_over else change_state(status, "failed", now=now, reason="killed")
    write_status(store, change_state(ended, "pending", now=now))
    _submit(job, store=store, backend=backend, now=now)
    return job.record


def plan_resume(
    run_id: str, limits: Limits, *, store: Storage, backend: Backend, now: datetime
) -> Job:
    """What going on with the run would ask of the backend; limits not given stay as they were.

    Raises PlanRefusedError for a run that is alive or done, or would stop again at once.
    """
    record = read_record(store, run_id)
    status = read_status(store, record)
    view = view_run(record, status, backend.state(run_id), store=store.url, now=now)
    if view.state == "succeeded":
        raise PlanRefusedError(
            f"{run_id} has finished all its {view.steps:,} steps",
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
    price = limits.price_per_hour
    return Job(
        record=record,
        store=store.url,
        budget_usd=budget_usd,
        max_hours=max_hours,
        price_per_hour=status.price_per_hour if price is None else price,
    )


def _submit(job: Job, *, store: Storage, backend: Backend, now: datetime) -> None:
    run_id = job.record.run_id
    try:
        backend.submit(job)
    except KeyboardInterrupt:
        backend.stop(run_id)
        _note_end(job, store, state="stopped", reason="user", message="interrupted at its start",
                  now=now)  # fmt: skip
        raise
    except BackendError as error:
        # Another launch may have taken hold of the run: then its status is not ours to write.
        if backend.state(run_id) != "running":
            _note_end(job, store, state="failed", reason="backend", message=error.message, now=now)
        raise


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
    if status.state != "pending":
        return  # its supervisor has spoken, and knows better
    hint = f"`gptctl launch --resume {job.record.run_id}` tries again"
    end = change_state(status, state, now=now, reason=reason, message=message, hint=hint)
    write_status(store, end)


def make_record(plan: Plan, *, store: str, versions: dict[str, str], now: datetime) -> RunRecord:
    """What `run.json` says of a plan, under a new id."""
    return RunRecord(
        run_id=new_run_id(plan.recipe_name),
        recipe_name=plan.recipe_name,
        recipe=plan.recipe,
        offer=plan.offer,
        nodes=plan.nodes,
        ranks=plan.ranks,
        device=plan.device,
        micro_batch_size=plan.micro_batch_size,
        grad_accum_steps=plan.grad_accum_steps,
        budget_usd=plan.budget_usd,
        max_hours=plan.max_hours,
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
