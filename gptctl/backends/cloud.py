"""Runs on rented machines: what a launch, a look and an end ask of SkyPilot, and in which order.

A run is a SkyPilot cluster of its name, or a managed job where it is to be recovered.
"""

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from msgspec.structs import replace

import training
from gptctl.backends import ANY, BackendState, Job, Tell, Wanted
from gptctl.backends.launched import Launched, Note, this_process
from gptctl.backends.node_requirements import node_requirements
from gptctl.backends.rented import CloudAccess
from gptctl.backends.sky import OVER, Machine, ManagedJob, SkyPilot
from gptctl.backends.sky_catalog import UNPRICED, Catalog, find_offers, offer_unpriced
from gptctl.backends.sky_task import NODE_ROOT, compose_task, redact, to_yaml
from gptctl.errors import BackendError, CapacityError, PlanRefusedError
from gptctl.offers import GIVEN_PRICE
from training.layout import Offer, RunPaths
from training.preparation import reads_hub
from training.storage import node_environment

CATALOGS = Path(".sky", "catalogs", "v8")
SSH_CONFIGS = Path(".sky", "generated", "ssh")
POLL_S = 0.5
STATE_EVERY_S = 10.0
"""For so long an answer stands before SkyPilot, and through it the cloud, is asked again."""
RETRY_S = (30.0, 60.0, 120.0, 300.0)
"""Pauses between attempts to get a machine: Lambda allows one launch in ten seconds."""
DOWN_RETRY_S = (2.0, 5.0, 10.0, 20.0, 40.0)
DOWN_TIMEOUT_S = 600.0
"""A teardown first runs the hook that saves the run, which may take minutes."""


class CloudBackend:
    """`clouds` by SkyPilot's names, or `any`; `state`: a folder of our own on this machine."""

    def __init__(self, clouds: tuple[str, ...], *, state: Path, home: Path) -> None:
        self._clouds = clouds
        self._launched = Launched(state)
        self._home = home
        self._skypilot = SkyPilot()
        self._seen: dict[str, tuple[float, BackendState]] = {}

    def offers(self, wanted: Wanted) -> list[Offer]:
        is_any = self._clouds == (ANY,)
        clouds = self._skypilot.enabled_clouds() if is_any else self._clouds
        own = [offer for c in clouds if c in UNPRICED for offer in offer_unpriced(c, wanted)]
        priced = [cloud for cloud in clouds if cloud not in UNPRICED]
        if not priced:
            return own
        return own + find_offers([self._catalog(cloud) for cloud in priced], wanted)

    def check(self, offers: list[Offer]) -> None:
        clouds = tuple(dict.fromkeys(offer.cloud for offer in offers))
        enabled = self._skypilot.try_clouds(clouds)
        missing = [cloud for cloud in clouds if cloud not in enabled]
        if missing:
            raise PlanRefusedError(
                f"{' and '.join(missing)} is not enabled in SkyPilot, or refused its credentials",
                hint=f"`sky check {' '.join(missing)}` says what it lacks; "
                "`gptctl doctor` shows all of them",
            )

    def describe(self, job: Job) -> str:
        return to_yaml(redact(_compose(job)))

    def submit(self, job: Job, *, tell: Tell) -> Offer:
        run_id = job.record.run_id
        self._skypilot.cancel_requests(run_id)  # of a launch that was killed
        if self._has_machine(run_id, managed=job.is_managed):
            known = self._launched.read(run_id)
            store = f" --store '{known.store}'" if known else ""
            raise BackendError(
                f"SkyPilot already has a machine of the name {run_id}",
                hint=f"`gptctl stop {run_id}{store}` ends it; `--name` gives this run another name",
            )
        job = replace(job, text=self._find_text(job))
        note = Note(
            run_id=run_id,
            store=job.store,
            clouds=self._clouds,
            managed=job.is_managed,
            text=str(job.text) if job.text else None,
            launcher=this_process(),
        )
        self._launched.write(note)
        try:
            taken = self._launch_patiently(job, tell)
        except BaseException as error:
            self._clean_up(run_id, error, tell)
            raise
        self._launched.write(replace(note, launcher=None))
        self._seen.pop(run_id, None)
        return taken

    def state(self, run_id: str) -> BackendState:
        at, seen = self._seen.get(run_id, (-STATE_EVERY_S, "unknown"))
        if time.monotonic() - at < STATE_EVERY_S:
            return seen
        note = self._launched.read(run_id)
        alive = self._has_machine(run_id, managed=note is not None and note.managed)
        state: BackendState = "running" if alive else "gone" if note else "unknown"
        self._seen[run_id] = (time.monotonic(), state)
        return state

    def logs(self, run_id: str) -> Iterator[str]:
        if self._skypilot.has_cluster(run_id):
            yield from (f"{line}\n" for line in self._skypilot.job_log(run_id))

    def follow_log(self, run_id: str, stage: str, offset: int) -> Iterator[bytes]:
        path = RunPaths(Path(NODE_ROOT), run_id).log(stage)
        # A log that is shorter than that is not yet joined to what earlier machines wrote.
        has_it = f'test "$(stat -c %s {path})" -ge {offset}'
        command = self.ssh_command(
            run_id, f"{has_it} && exec tail --bytes=+{offset + 1} --follow {path}"
        )
        if command is None:
            return
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as tail:
            try:
                assert tail.stdout is not None
                while True:
                    if not select.select([tail.stdout], [], [], POLL_S)[0]:
                        yield b""
                    elif chunk := os.read(tail.stdout.fileno(), 65536):
                        yield chunk
                    else:
                        return
            finally:
                tail.kill()

    def stop(self, run_id: str, *, tell: Tell) -> None:
        note = self._launched.read(run_id)
        self._skypilot.cancel_requests(run_id)
        if note is not None and note.managed:
            self._end_managed(run_id, tell)
        else:
            self._take_down(run_id, tell)
        self._seen.pop(run_id, None)
        if note is not None and note.launcher is not None:
            self._launched.write(replace(note, launcher=None))

    # Beside running: RentedBackend.

    def ssh_command(self, run_id: str, *words: str) -> list[str] | None:
        config = self._home / SSH_CONFIGS / run_id
        return ["ssh", "-F", str(config), run_id, *words] if config.exists() else None

    def dashboard_url(self, run_id: str) -> str:
        note = self._launched.read(run_id)
        if note is not None and note.managed:
            jobs = self._skypilot.managed_jobs(run_id)
            page = f"jobs/{jobs[-1].job_id}" if jobs else "jobs"
        else:
            page = f"clusters/{run_id}" if self._skypilot.has_cluster(run_id) else "clusters"
        return self._skypilot.dashboard_url(page)

    def versions(self) -> tuple[str, str]:
        return self._skypilot.versions()

    def try_credentials(self) -> list[CloudAccess]:
        enabled = self._skypilot.try_clouds()
        found = []
        for name, has_credentials in self._skypilot.credentials().items():
            is_enabled = name in enabled
            is_refused = has_credentials and not is_enabled
            found.append(
                CloudAccess(
                    cloud=name,
                    is_enabled=is_enabled,
                    has_credentials=has_credentials,
                    why=self._skypilot.why_refused(name) if is_refused else "",
                )
            )
        return found

    def catalog_dates(self) -> dict[str, date]:
        found = (self._home / CATALOGS).glob("*/vms.csv")
        return {
            path.parent.name: datetime.fromtimestamp(path.stat().st_mtime, UTC).date()
            for path in sorted(found)
        }

    def machines(self) -> list[str]:
        return self._skypilot.machine_names()

    def cost_report(self) -> dict[str, tuple[int, Decimal]]:
        return self._skypilot.cost_report()

    def fetch_catalog(self, cloud: str) -> Catalog:
        with suppress(BackendError):  # then the one that is here, with its date, or an error
            self._skypilot.fetch_catalog(cloud)
        return self._catalog(cloud)

    def _catalog(self, cloud: str) -> Catalog:
        folder = self._home / CATALOGS
        try:
            return Catalog(folder, cloud)
        except FileNotFoundError:
            pass  # the first time
        try:
            self._skypilot.fetch_catalog(cloud)
            return Catalog(folder, cloud)
        except (BackendError, FileNotFoundError) as error:
            raise BackendError(
                f"SkyPilot has no catalogue of {cloud} on this machine, and could not fetch it: "
                f"{error}",
                hint="it is fetched from GitHub when there is a network: check yours, then "
                f"`sky show-gpus --infra {cloud}`",
            ) from error
        except (ValueError, IndexError) as error:
            raise BackendError(
                f"SkyPilot's catalogue of {cloud} on this machine is damaged: {error}",
                hint=f"remove {folder / cloud}, and it is fetched anew",
            ) from error

    def _find_text(self, job: Job) -> Path | None:
        """Where the run's text lies here: as said now, or as it was when it was first launched."""
        if not job.record.recipe.data.takes_path:
            return None
        note = self._launched.read(job.record.run_id)
        text = job.text or (Path(note.text) if note and note.text else None)
        if text is None or not text.exists():
            raise PlanRefusedError(
                f"{job.record.run_id} trains on a text that is not at "
                f"{text or 'a place known to this machine'}",
                hint="`--data PATH` says where it lies",
            )
        return text

    def _launch_patiently(self, job: Job, tell: Tell) -> Offer:
        config = _compose(job)
        deadline = time.monotonic() + job.wait_s
        attempt = 0
        while True:
            try:
                if job.is_managed:
                    return self._launch_managed(config, job, tell)
                taken = self._skypilot.launch(
                    config, job.record.run_id, timeout_s=job.boot_timeout_s, tell=tell
                )
                return recognise(taken, job.offers)
            except CapacityError as error:
                pause_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                if time.monotonic() + pause_s > deadline:
                    raise
                tell(f"{error.message}; asking again in {pause_s:.0f} s")
                time.sleep(pause_s)
                attempt += 1
                self._raise_if_stopped(job.record.run_id)

    def _launch_managed(self, config: dict[str, Any], job: Job, tell: Tell) -> Offer:
        """Returns once the job runs; its controller goes on alone, and recovers it.

        Which offer it got is for the node to say: the controller does not.
        """
        run_id, timeout_s = job.record.run_id, job.boot_timeout_s
        self._skypilot.launch_managed(config, run_id, timeout_s=timeout_s, tell=tell)
        deadline = time.monotonic() + max(timeout_s, job.wait_s)
        told = ""
        while True:
            managed = next(reversed(self._skypilot.managed_jobs(run_id)), None)
            status = managed.status if managed else "PENDING"
            if status != told:
                tell(f"managed job: {status.lower()}")
                told = status
            if status in ("RUNNING", "SUCCEEDED"):
                return job.offers[0]
            if managed is not None and status.startswith(OVER):
                kind = CapacityError if "NO_RESOURCE" in status else BackendError
                raise kind(f"the managed job ended before it ran: {managed.why or status}")
            if time.monotonic() > deadline:
                raise BackendError(
                    f"the managed job is still {status.lower()} after {timeout_s / 60:.1f} minutes",
                    hint="`--boot-timeout` waits longer",
                )
            time.sleep(2.0)

    def _clean_up(self, run_id: str, error: BaseException, tell: Tell) -> None:
        """After a launch that did not succeed. Raises BackendError for what may still bill."""
        tell("making sure that nothing is left that bills ...")
        try:
            self.stop(run_id, tell=tell)
        except KeyboardInterrupt:
            raise still_bills(run_id, "the clean-up was interrupted") from error
        except BackendError as failed:
            raise still_bills(run_id, f"{failed.message} (after: {error})") from error

    def _raise_if_stopped(self, run_id: str) -> None:
        """While we waited, somebody may have stopped the run, and been told that nothing bills."""
        note = self._launched.read(run_id)
        if note is None or note.launcher != this_process():
            raise BackendError(
                f"{run_id} was stopped while it waited for a machine",
                hint=f"`gptctl launch --resume {run_id}` asks again",
            )

    def _has_machine(self, run_id: str, *, managed: bool) -> bool:
        if not managed:
            return self._skypilot.has_cluster(run_id, refresh=True)
        jobs = self._skypilot.managed_jobs(run_id)
        return any(not job.is_over or self._leaked(run_id, job) for job in jobs)

    def _leaked(self, run_id: str, job: ManagedJob) -> str | None:
        """The cluster that a managed job's controller could not give back, where there is one."""
        if not job.may_have_leaked:
            return None
        cluster = self._skypilot.managed_cluster(run_id, job)
        return cluster if self._skypilot.has_cluster(cluster, refresh=True) else None

    def _end_managed(self, run_id: str, tell: Tell) -> None:
        """Cancel all jobs of that name; their controller has the hook run, and ends the machine."""
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        is_told = False
        while alive := [job for job in self._skypilot.managed_jobs(run_id) if not job.is_over]:
            running = [job for job in alive if not job.status.startswith(OVER)]
            if running and not is_told:
                self._skypilot.cancel_managed(running)
                is_told = True
            elif time.monotonic() > deadline:
                raise still_bills(run_id, "its managed job does not end")
            else:
                time.sleep(2.0)
        for job in self._skypilot.managed_jobs(run_id):
            if (cluster := self._leaked(run_id, job)) is not None:
                self._take_down(cluster, tell)

    def _take_down(self, run_id: str, tell: Tell) -> None:
        """Have the cloud end the machine, again where it refuses, until SkyPilot has none."""
        for pause_s in (*DOWN_RETRY_S, None):
            if not self._skypilot.has_cluster(run_id):
                return
            try:
                self._skypilot.take_down(run_id, timeout_s=DOWN_TIMEOUT_S, tell=tell)
            except BackendError as error:
                if pause_s is None:
                    raise
                tell(f"{error.message}; trying again in {pause_s:.0f} s")
                time.sleep(pause_s)
        if self._skypilot.has_cluster(run_id):
            raise still_bills(run_id, "SkyPilot still has its cluster")


def recognise(taken: Machine, offers: tuple[Offer, ...]) -> Offer:
    """The offer that SkyPilot's choice amounts to, at the price that it really has."""
    gpu = taken.gpu or "CPU"
    same = [
        o for o in offers if (o.cloud, o.gpu_count, o.gpu) == (taken.cloud, taken.gpu_count, gpu)
    ]
    model = next((o for o in same if o.region == taken.region), (same or list(offers))[0])
    price = model.price_per_hour
    is_told = model.cloud not in UNPRICED and model.price_source != GIVEN_PRICE
    if is_told and taken.price_per_hour is not None:
        price = Decimal(str(round(taken.price_per_hour, 6)))
    return replace(
        model,
        region=taken.region,
        instance_type=taken.instance_type or model.instance_type,
        gpu=gpu,
        gpu_count=taken.gpu_count,
        price_per_hour=price,
    )


def still_bills(run_id: str, why: str) -> BackendError:
    return BackendError(
        f"a machine of {run_id} may still run, and bill: {why}",
        hint=f"`gptctl stop {run_id}` tries again; the cloud's own console shows and ends it too",
    )


def _compose(job: Job) -> dict[str, Any]:
    secrets = node_environment(job.store)
    asks_hub = reads_hub(job.record.recipe)
    if asks_hub:
        from training import hub  # noqa: PLC0415 - the Hub's client takes long

        secrets |= hub.node_environment()
    return compose_task(
        job,
        source=Path(training.__file__).parent,
        requirements=node_requirements(trains=job.record.job == "train", reads_hub=asks_hub),
        secrets=secrets,
    )
