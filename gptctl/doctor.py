"""Is everything there that a launch needs? Each check returns what it found; nothing is mended."""

import secrets
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from msgspec import Struct

from gptctl.backends.launched import Launched
from gptctl.backends.rented import CloudAccess, RentedBackend
from gptctl.errors import GptctlError
from gptctl.runs import RunView
from training.errors import ObjectDamagedError, StorageError, TrainingError
from training.storage import Storage

Verdict = Literal["ok", "warning", "FAIL"]

OLD_PRICES_DAYS = 7
LEAST_FREE_BYTES = 5_000_000_000
"""A data set's shards, and two checkpoints of a small model."""
LEAST_PYTHON = (3, 11)
LAMBDA_KEYS = "https://cloud.lambda.ai/api-keys"


class Finding(Struct, frozen=True, kw_only=True):
    """`mend`: the command or the page that mends a fault."""

    subject: str
    verdict: Verdict
    text: str
    mend: str | None = None


def examine_machine(*, python: tuple[int, ...], gptctl: str, node_root: Path) -> Iterator[Finding]:
    """What runs on this machine need; one may well do without them."""
    shown = ".".join(map(str, python[:3]))
    if python >= LEAST_PYTHON:
        yield Finding(subject="Python", verdict="ok", text=shown)
    else:
        yield Finding(
            subject="Python",
            verdict="FAIL",
            text=f"{shown}, and gptctl needs {'.'.join(map(str, LEAST_PYTHON))}",
            mend="https://www.python.org/downloads",
        )
    yield Finding(subject="gptctl", verdict="ok", text=gptctl)
    if find_spec("torch") is not None:
        yield Finding(subject="torch", verdict="ok", text="installed: runs on this machine can be")
    else:
        yield Finding(
            subject="torch",
            verdict="warning",
            text="not installed: nothing can be trained or sampled on this machine",
            mend="pip install 'gptctl[train]'",
        )
    yield _examine_disk(node_root)


def _examine_disk(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:,.0f} GB free at {there}"
    if free >= LEAST_FREE_BYTES:
        return Finding(subject="disk", verdict="ok", text=text)
    mend = "free some, or name another folder: `node_root` in the settings, GPTCTL_NODE_ROOT"
    return Finding(subject="disk", verdict="warning", text=text, mend=mend)


def examine_store(store: Storage) -> Finding:
    try:
        prove_writable(store)
    except TrainingError as error:
        return Finding(subject="store", verdict="FAIL", text=error.message, mend=error.hint or None)
    return Finding(subject="store", verdict="ok", text=f"{store.url} can be written and read")


def prove_writable(store: Storage) -> None:
    """Write, read back and delete one small object. Raises StorageError.

    Under a name of its own, which no run and nobody else's check can have.
    """
    key, data = f"checks/{secrets.token_hex(8)}", secrets.token_bytes(16)
    store.write(key, data)
    try:
        if store.read(key) != data:
            raise ObjectDamagedError(
                f"{store.url} gave back something else than was written to it",
                hint="a cache or a proxy in between: name the server itself as endpoint_url",
            )
    finally:
        store.delete([key])


def examine_clouds(
    open_backend: Callable[[], RentedBackend],
    *,
    wanted: tuple[str, ...],
    launched: Launched,
    look: Callable[[str, str], RunView],
    today: date,
) -> Iterator[Finding]:
    """`wanted`: the clouds that the user has chosen. `look`: at a run, by its id and store."""
    try:
        backend = open_backend()
        here, server = backend.versions()
    except GptctlError as error:
        is_needed = bool(wanted or launched.read_all())
        yield _fault("SkyPilot", error, verdict="FAIL" if is_needed else "warning")
        yield from _examine_launches(launched, machines=None, look=look)
        return
    if here == server:
        yield Finding(subject="SkyPilot", verdict="ok", text=f"{here}, and so is its API server")
    else:
        yield Finding(
            subject="SkyPilot",
            verdict="FAIL",
            text=f"{here} is installed, and its API server is {server}",
            mend="`sky api stop`, then `sky api start`",
        )
    accesses: list[CloudAccess] = []
    try:
        accesses = backend.try_credentials()
        yield from judge_access(accesses, wanted)
    except GptctlError as error:
        yield _fault("clouds", error)
    enabled = [access.cloud for access in accesses if access.is_enabled]
    yield from judge_prices(backend.catalog_dates(), enabled, today=today)
    try:
        machines: list[str] | None = backend.machines()
    except GptctlError as error:
        machines = None
        yield _fault("machines", error)
    yield from _examine_launches(launched, machines=machines, look=look)


def judge_access(accesses: list[CloudAccess], wanted: tuple[str, ...]) -> Iterator[Finding]:
    """A cloud that was chosen must work; one that was set up should; others need not."""
    none_works = not any(access.is_enabled for access in accesses)
    for access in accesses:
        name = access.cloud
        if access.is_enabled:
            yield Finding(subject=name, verdict="ok", text="enabled, its credentials were accepted")
        elif name in wanted or access.has_credentials:
            is_needed = name in wanted or (none_works and not wanted)
            what = "its credentials were refused" if access.has_credentials else "not set up"
            yield Finding(
                subject=name,
                verdict="FAIL" if is_needed else "warning",
                text=f"{what}{': ' if access.why else ''}{access.why}",
                mend=f"a new key: {LAMBDA_KEYS}, into ~/.lambda_cloud/lambda_keys"
                if name == "lambda"
                else f"`sky check {name}` says what it lacks",
            )
    if none_works and not wanted and not any(access.has_credentials for access in accesses):
        yield Finding(
            subject="clouds",
            verdict="warning",
            text="none is set up: only runs on this machine can be",
            mend=f"Lambda: a key from {LAMBDA_KEYS}, as `api_key = ...` in "
            "~/.lambda_cloud/lambda_keys; others: `sky check`",
        )


def judge_prices(dates: dict[str, date], enabled: list[str], *, today: date) -> Iterator[Finding]:
    for cloud in enabled:
        subject = f"prices of {cloud}"
        if cloud not in dates:
            continue  # fetched when they are first asked for; some clouds have none
        age = (today - dates[cloud]).days
        text = f"as of {dates[cloud].isoformat()}"
        if age <= OLD_PRICES_DAYS:
            yield Finding(subject=subject, verdict="ok", text=text)
        else:
            mend = f"`sky show-gpus --infra {cloud}` fetches new ones"
            yield Finding(
                subject=subject, verdict="warning", text=f"{text}, {age} days ago", mend=mend
            )


def _examine_launches(
    launched: Launched, *, machines: list[str] | None, look: Callable[[str, str], RunView]
) -> Iterator[Finding]:
    """What of our runs may bill for nothing; `machines` None where SkyPilot could not say."""
    faults = []
    for note in launched.read_all():
        name = note.run_id
        stop = f"`gptctl stop {name} --store '{note.store}'`"
        if note.is_cut_short:
            text = "its launch was cut short, and may have left a machine that bills"
            faults.append(Finding(subject=name, verdict="FAIL", text=text, mend=stop))
        elif machines is not None and name in machines:
            try:
                view = look(name, note.store)
            except (GptctlError, StorageError) as error:
                text = f"it has a machine, and its store does not tell how it is: {error.message}"
                faults.append(Finding(subject=name, verdict="warning", text=text, mend=stop))
                continue
            if view.is_over or view.is_stale:
                text = f"{view.state}: {view.message or 'its machine still bills'}"
                faults.append(Finding(subject=name, verdict="FAIL", text=text, mend=stop))
    yield from faults
    if not faults and machines is not None:
        yield Finding(subject="machines", verdict="ok", text="none bills for nothing")


def _fault(subject: str, error: GptctlError, *, verdict: Verdict = "FAIL") -> Finding:
    mend = None if "gptctl doctor" in error.hint else error.hint or None  # that is where we are
    return Finding(subject=subject, verdict=verdict, text=error.message, mend=mend)
