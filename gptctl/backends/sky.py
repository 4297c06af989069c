"""Runs on machines that SkyPilot rents: the only module that imports it, inside functions.

Importing SkyPilot takes over a second and writes to the home folder; its errors and its API
end here. A run is a cluster of its name, or a managed job where it is to be recovered.
"""

import io
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

import training
from gptctl.backends import ANY, BackendState, Job, Tell, Wanted
from gptctl.backends.launched import Launched, Note, this_process
from gptctl.backends.node_requirements import node_requirements
from gptctl.backends.rented import CloudAccess
from gptctl.backends.sky_catalog import UNPRICED, Catalog, find_offers, offer_unpriced
from gptctl.backends.sky_errors import plain, translated
from gptctl.backends.sky_task import NODE_ROOT, compose_task, redact, to_yaml
from gptctl.errors import BackendError, CapacityError, PlanRefusedError
from training.layout import Offer, RunPaths
from training.storage import node_environment

SKYPILOT = "0.14.1"
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
OVER = ("SUCCEEDED", "CANCELLED", "FAILED")
T = TypeVar("T")


class SkyBackend:
    """`clouds` by SkyPilot's names, or `any`; `state`: a folder of our own on this machine."""

    def __init__(
        self, clouds: tuple[str, ...], *, state: Path, home: Path, env: Mapping[str, str]
    ) -> None:
        self._clouds = clouds
        self._launched = Launched(state)
        self._home = home
        self._env = dict(env)
        self._seen: dict[str, tuple[float, BackendState]] = {}
        require_skypilot()

    def offers(self, wanted: Wanted) -> list[Offer]:
        clouds = self._enabled() if self._clouds == (ANY,) else self._clouds
        own = [offer for c in clouds if c in UNPRICED for offer in offer_unpriced(c, wanted)]
        priced = [cloud for cloud in clouds if cloud not in UNPRICED]
        if not priced:
            return own
        return own + find_offers([self._catalog(cloud) for cloud in priced], wanted)

    def check(self, offers: list[Offer]) -> None:
        clouds = tuple(dict.fromkeys(offer.cloud for offer in offers))
        enabled = self._enabled(clouds)
        missing = [cloud for cloud in clouds if cloud not in enabled]
        if missing:
            raise PlanRefusedError(
                f"{' and '.join(missing)} is not enabled in SkyPilot, or refused its credentials",
                hint=f"`sky check {' '.join(missing)}` says what it lacks; "
                "`gptctl doctor` shows all of them",
            )

    def describe(self, job: Job) -> str:
        return to_yaml(redact(self._compose(job)))

    def submit(self, job: Job, *, tell: Tell) -> Offer:
        run_id = job.record.run_id
        if self._cluster(run_id) is not None:
            raise BackendError(
                f"SkyPilot already has a cluster named {run_id}",
                hint=f"`gptctl stop {run_id}` ends it; `--name` gives this run another name",
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
            taken = self._launch_patiently(job, managed=note.managed, tell=tell)
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
        if note is not None and note.managed:
            alive = self._managed_is_alive(run_id)
        else:
            alive = self._cluster(run_id, refresh=True) is not None
        state: BackendState = "running" if alive else "gone" if note else "unknown"
        self._seen[run_id] = (time.monotonic(), state)
        return state

    def logs(self, run_id: str) -> Iterator[str]:
        if self._cluster(run_id) is None:
            return
        words = io.StringIO()
        with translated(f"read the log of {run_id}"), suppress(SystemExit):
            self._sky().tail_logs(run_id, None, follow=False, output_stream=words)
        yield from (plain(line) + "\n" for line in words.getvalue().splitlines())

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
        self._cancel_requests(run_id)
        if note is not None and note.managed:
            self._end_managed(run_id, tell)
        self._take_down(run_id, tell)
        self._seen.pop(run_id, None)
        if note is not None and note.launcher is not None:
            self._launched.write(replace(note, launcher=None))

    def ssh_command(self, run_id: str, *words: str) -> list[str] | None:
        """A shell, or a command, on the run's first node; None where there is none to reach."""
        config = self._home / SSH_CONFIGS / run_id
        return ["ssh", "-F", str(config), run_id, *words] if config.exists() else None

    def cut_short(self) -> list[Note]:
        return self._launched.cut_short()

    def _find_text(self, job: Job) -> Path | None:
        """Where the run's text lies here: as said now, or as it was when it was first launched."""
        if job.record.recipe.data.source != "text":
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

    # Below: SkyPilot itself.

    def _sky(self) -> Any:
        with redirect_stdout(io.StringIO()):  # its loggers keep the stdout of the import
            import sky  # noqa: PLC0415

        return sky

    def _get(self, ask: Callable[[Any], Any], doing: str) -> Any:
        """The answer of SkyPilot's API server, which it starts if need be. Raises BackendError."""
        sky = self._sky()
        with translated(doing), redirect_stdout(io.StringIO()):
            return sky.get(ask(sky))

    def _enabled(self, clouds: tuple[str, ...] | None = None) -> list[str]:
        """Clouds whose credentials work, each really tried where they are named."""
        doing = "say which clouds are enabled"
        if clouds is not None:
            # `sky.check` is a module to whoever imports the package.
            self._get(lambda sky: sky.client.sdk.check(clouds, verbose=False), doing)
        found = self._get(lambda sky: sky.client.sdk.enabled_clouds(), doing)
        return [str(cloud).lower() for cloud in found]

    def _catalog(self, cloud: str) -> Catalog:
        folder = self._home / CATALOGS
        try:
            return Catalog(folder, cloud)
        except FileNotFoundError:
            sky = self._sky()
            try:
                with redirect_stdout(io.StringIO()):
                    sky.catalog.list_accelerators(clouds=cloud, gpus_only=False)
                return Catalog(folder, cloud)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                raise BackendError(
                    f"SkyPilot has no catalogue of {cloud} on this machine, and could not fetch "
                    f"it: {plain(str(error))}",
                    hint="it is fetched from GitHub when there is a network: check yours, then "
                    f"`sky show-gpus --infra {cloud}`",
                ) from error

    def _compose(self, job: Job) -> dict[str, Any]:
        return compose_task(
            job,
            source=Path(training.__file__).parent,
            requirements=node_requirements(),
            secrets=node_environment(job.store),
        )

    def _launch_patiently(self, job: Job, *, managed: bool, tell: Tell) -> Offer:
        sky = self._sky()
        config = self._compose(job)
        deadline = time.monotonic() + job.wait_s
        for attempt in range(10**6):
            with translated("read the task"):
                task = sky.Task.from_yaml_config(config)
            try:
                launch = self._launch_managed if managed else self._launch_cluster
                return launch(sky, task, job, tell)
            except CapacityError as error:
                pause_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                if time.monotonic() + pause_s > deadline:
                    raise
                tell(f"{error.message}; asking again in {pause_s:.0f} s")
                time.sleep(pause_s)
        raise AssertionError

    def _launch_cluster(self, sky: Any, task: Any, job: Job, tell: Tell) -> Offer:
        run_id = job.record.run_id
        with translated("start the machine"), redirect_stdout(io.StringIO()):
            request = sky.launch(task, cluster_name=run_id)
        answer = _in_time(
            lambda: sky.stream_and_get(request, output_stream=_Lines(tell)),
            timeout_s=job.boot_timeout_s,
            doing="start the machine",
        )
        _, handle = answer
        return _offer_taken(handle.launched_resources, job.offers)

    def _launch_managed(self, sky: Any, task: Any, job: Job, tell: Tell) -> Offer:
        """Returns once the job runs; its controller goes on alone, and recovers it."""
        run_id = job.record.run_id
        with translated("start the managed job"), redirect_stdout(io.StringIO()):
            request = sky.jobs.launch(task, name=run_id)
        _in_time(
            lambda: sky.stream_and_get(request, output_stream=_Lines(tell)),
            timeout_s=job.boot_timeout_s,
            doing="start the managed job",
        )
        deadline = time.monotonic() + job.boot_timeout_s
        told = ""
        while True:
            record = self._managed(run_id)
            status = _status_name(record) if record else "PENDING"
            if status != told:
                tell(f"managed job: {status.lower()}")
                told = status
            if status == "RUNNING" or status.startswith("SUCCEEDED"):
                return job.offers[0]
            if status.startswith(OVER):
                why = plain(str((record or {}).get("failure_reason") or status))
                error = CapacityError if "NO_RESOURCE" in status else BackendError
                raise error(f"the managed job ended before it ran: {why}")
            if time.monotonic() > deadline:
                raise BackendError(
                    f"the managed job is still {status.lower()} after {job.boot_timeout_s:.0f} s",
                    hint="`--boot-timeout` waits longer",
                )
            time.sleep(2.0)

    def _clean_up(self, run_id: str, error: BaseException, tell: Tell) -> None:
        """After a launch that did not succeed. Raises BackendError for what may still bill."""
        tell("making sure that nothing is left that bills ...")
        try:
            self.stop(run_id, tell=tell)
        except KeyboardInterrupt:
            raise _still_bills(run_id, "the clean-up was interrupted") from error
        except BackendError as failed:
            raise _still_bills(run_id, f"{failed.message} (after: {error})") from error

    def _cluster(self, name: str, *, refresh: bool = False) -> Any:
        """SkyPilot's record of the cluster; None where it has none (any more)."""

        def ask(sky: Any) -> Any:
            mode = sky.StatusRefreshMode.AUTO if refresh else sky.StatusRefreshMode.NONE
            return sky.status([name], refresh=mode)

        found = self._get(ask, f"say how {name} is")
        return found[0] if found else None

    def _managed(self, name: str) -> Any:
        answer = self._get(
            lambda sky: sky.jobs.queue_v2(refresh=False, name_match=name),
            f"say how the managed job {name} is",
        )
        jobs = [job for job in answer[0] if job.get("job_name") == name]
        return max(jobs, key=lambda job: int(job["job_id"])) if jobs else None

    def _managed_is_alive(self, name: str) -> bool:
        record = self._managed(name)
        return record is not None and not _status_name(record).startswith(OVER)

    def _cancel_requests(self, run_id: str) -> None:
        """Have the API server drop what it still does for the run, such as launching it."""
        sky = self._sky()
        with translated("cancel what is under way"), redirect_stdout(io.StringIO()):
            pending = [r.request_id for r in sky.api_status(cluster_name=run_id)]
            if pending:
                sky.get(sky.api_cancel(pending, silent=True))

    def _end_managed(self, run_id: str, tell: Tell) -> None:
        if self._managed_is_alive(run_id):
            self._get(lambda sky: sky.jobs.cancel(name=run_id), f"cancel {run_id}")
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while self._managed_is_alive(run_id):
            if time.monotonic() > deadline:
                raise BackendError(f"the managed job {run_id} does not end")
            time.sleep(2.0)

    def _take_down(self, run_id: str, tell: Tell) -> None:
        """Have the cloud end the machine, again where it refuses, until SkyPilot has none."""
        sky = self._sky()
        for pause_s in (*DOWN_RETRY_S, None):
            if self._cluster(run_id) is None:
                return
            try:
                with translated(f"take {run_id} down"), redirect_stdout(io.StringIO()):
                    request = sky.down(run_id)
                _in_time(
                    lambda: sky.stream_and_get(request, output_stream=_Lines(tell)),  # noqa: B023
                    timeout_s=DOWN_TIMEOUT_S,
                    doing=f"take {run_id} down",
                )
            except BackendError as error:
                if pause_s is None:
                    raise
                tell(f"{error.message}; trying again in {pause_s:.0f} s")
                time.sleep(pause_s)
        if self._cluster(run_id) is not None:
            raise _still_bills(run_id, "SkyPilot still has its cluster")

    # For whoever wants to look, and for `gptctl doctor`: RentedBackend.

    def dashboard_url(self, run_id: str) -> str:
        note = self._launched.read(run_id)
        if note is not None and note.managed:
            record = self._managed(run_id)
            page = f"jobs/{record['job_id']}" if record else "jobs"
        else:
            page = f"clusters/{run_id}" if self._cluster(run_id) is not None else "clusters"
        with redirect_stdout(io.StringIO()):
            from sky.server import common  # noqa: PLC0415
        return str(common.get_dashboard_url(common.get_server_url(), starting_page=page))

    def versions(self) -> tuple[str, str]:
        sky = self._sky()
        with translated("reach its API server"), redirect_stdout(io.StringIO()):
            from sky.server import common  # noqa: PLC0415

            common.check_server_healthy_or_start_fn()
            return str(sky.__version__), str(sky.api_info().version)

    def try_credentials(self) -> list[CloudAccess]:
        doing = "try the credentials"
        answer = self._get(lambda sky: sky.client.sdk.check(None, verbose=False), doing)
        enabled = {
            name.lower()
            for clouds in answer.values()
            for name, capabilities in clouds.items()
            if "compute" in capabilities
        }
        return [
            CloudAccess(
                cloud=name,
                is_enabled=name in enabled,
                has_credentials=has_credentials,
                why=self._why_refused(name) if has_credentials and name not in enabled else "",
            )
            for name, has_credentials in self._credentials().items()
        ]

    def catalog_dates(self) -> dict[str, date]:
        found = (self._home / CATALOGS).glob("*/vms.csv")
        return {
            path.parent.name: datetime.fromtimestamp(path.stat().st_mtime, UTC).date()
            for path in sorted(found)
        }

    def machines(self) -> list[str]:
        def ask_jobs(sky: Any) -> Any:
            return sky.jobs.queue_v2(refresh=False, skip_finished=True)

        clusters = self._get(lambda sky: sky.status(), "list its clusters")
        names = [str(cluster["name"]) for cluster in clusters]
        try:
            jobs = self._get(ask_jobs, "list its managed jobs")[0]
        except BackendError as error:
            if type(error.__cause__).__name__ != "ClusterNotUpError":  # there is no controller
                raise
            jobs = []
        return names + [str(job.get("job_name")) for job in jobs]

    def _credentials(self) -> dict[str, bool]:
        """Every cloud by name, and whether a file of credentials for it is on this machine."""
        self._sky()
        from sky.utils import registry  # noqa: PLC0415

        found = {}
        for cloud in registry.CLOUD_REGISTRY.values():
            files: list[str] = []
            with suppress(Exception):  # some look into a configuration that is not there
                files = [str(path) for path in cloud.get_credential_file_mounts().values()]
            found[repr(cloud).lower()] = any(Path(path).expanduser().exists() for path in files)
        return dict(sorted(found.items()))

    def _why_refused(self, cloud: str) -> str:
        """SkyPilot's own words, which it only prints."""
        sky, words = self._sky(), io.StringIO()
        with suppress(BackendError), translated(f"check {cloud}"), redirect_stdout(io.StringIO()):
            request = sky.client.sdk.check((cloud,), verbose=True)
            sky.stream_and_get(request, output_stream=words)
        _, found, reason = words.getvalue().partition("Reason")
        reason = reason.partition("\n\n")[0].partition("]:")[2]
        return plain(reason) if found else ""


class _Lines(io.TextIOBase):
    """Passes on what is written to it, a line at a time and without colours."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if words := plain(line):
                self._tell(words)
        return len(text)


def require_skypilot() -> None:
    """Raises BackendError where SkyPilot is missing, or not the one that this is written for."""
    install = "pip install 'gptctl[cloud]'"
    if find_spec("sky") is None:
        raise BackendError("a cloud is reached through SkyPilot, which is not installed",
                           hint=install)  # fmt: skip
    with suppress(PackageNotFoundError):
        found = version("skypilot")
        if found != SKYPILOT:
            raise BackendError(
                f"SkyPilot {found} is installed, and gptctl works with {SKYPILOT}", hint=install
            )


def _in_time(work: Callable[[], T], *, timeout_s: float, doing: str) -> T:
    """What `work` returns, in a thread of its own: SkyPilot's waits have no limit.

    Raises BackendError when the time is up; KeyboardInterrupt at once.
    """
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    deadline = time.monotonic() + timeout_s
    with redirect_stdout(io.StringIO()):
        thread.start()
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(POLL_S)
    if thread.is_alive():
        raise BackendError(
            f"SkyPilot did not {doing} in {timeout_s / 60:.0f} minutes",
            hint="the machine never came up, or never answered: `--boot-timeout` waits longer",
        )
    if errors:
        with translated(doing):
            raise errors[0]
    return outcome[0]


def _offer_taken(resources: Any, offers: tuple[Offer, ...]) -> Offer:
    """The offer that SkyPilot's choice amounts to, at the price that it really has."""
    cloud, region = str(resources.cloud).lower(), str(resources.region)
    gpu, count = next(iter((resources.accelerators or {"CPU": 0}).items()))
    same = [o for o in offers if (o.cloud, o.gpu_count, o.gpu) == (cloud, int(count), gpu)]
    model = next((o for o in same if o.region == region), (same or list(offers))[0])
    price = model.price_per_hour
    if model.cloud not in UNPRICED:
        with suppress(Exception):  # a machine without a price keeps the planned one
            price = Decimal(str(round(resources.get_cost(3600), 6)))
    return replace(
        model,
        region=region,
        instance_type=resources.instance_type or model.instance_type,
        gpu=gpu,
        gpu_count=int(count),
        price_per_hour=price,
    )


def _status_name(record: Any) -> str:
    status = record.get("status")
    return str(getattr(status, "value", status))


def _still_bills(run_id: str, why: str) -> BackendError:
    return BackendError(
        f"a machine of {run_id} may still run, and bill: {why}",
        hint=f"`gptctl stop {run_id}` tries again; the cloud's own console shows and ends it too",
    )
