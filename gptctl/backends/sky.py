"""SkyPilot as we use it: the only module that imports it, inside functions.

Importing it takes over a second and writes to the home folder; its errors, its API and what it
prints end here. Clusters and managed jobs go by the names of their runs. Every method raises
BackendError where SkyPilot cannot be asked, or does not do it.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from gptctl.backends import Tell
from gptctl.backends.sky_errors import plain, translated
from gptctl.backends.sky_waits import Lines, silenced, wait_for
from gptctl.errors import BackendError

SKYPILOT = "0.14.1"
JOB_FIELDS = ("job_id", "job_name", "status", "schedule_state", "failure_reason")
OVER = ("SUCCEEDED", "CANCELLED", "FAILED")


class Machine(Struct, frozen=True, kw_only=True):
    """What SkyPilot took. `price_per_hour` in dollars, of one node; None where it knows none."""

    cloud: str
    region: str
    instance_type: str
    gpu: str | None
    gpu_count: int
    price_per_hour: float | None


class ManagedJob(Struct, frozen=True, kw_only=True):
    """`is_released`: its controller has given its machine back, or tried to."""

    job_id: int
    status: str
    why: str
    is_released: bool

    @property
    def is_over(self) -> bool:
        """A job has succeeded, or failed, some time before its machine is gone."""
        return self.status.startswith(OVER) and self.is_released

    @property
    def may_have_leaked(self) -> bool:
        """Also where the job itself was done: its controller could not clean up after it."""
        return self.status == "FAILED_CONTROLLER"


class SkyPilot:
    def __init__(self) -> None:
        require_skypilot()

    def enabled_clouds(self) -> list[str]:
        """Those that took their credentials when they were last tried."""
        found = self._get(lambda sky: sky.client.sdk.enabled_clouds(), "say which are enabled")
        return [str(cloud).lower() for cloud in found]

    def fetch_catalog(self, cloud: str) -> None:
        """Into its cache. Raises BackendError where there is no network, say."""
        sky = self._sky()
        try:
            with silenced():
                sky.catalog.list_accelerators(clouds=cloud, gpus_only=False)
        except Exception as error:
            raise BackendError(plain(str(error))) from error

    def launch(
        self, config: Mapping[str, Any], name: str, *, timeout_s: float, tell: Tell
    ) -> Machine:
        """Rent a machine, and start the task on it. Raises CapacityError."""
        sky, doing = self._sky(), "start the machine"
        with translated(doing), silenced():
            task = sky.Task.from_yaml_config(dict(config))
            request = sky.launch(task, cluster_name=name)
        _, handle = wait_for(
            lambda: sky.stream_and_get(request, output_stream=Lines(tell)),
            timeout_s=timeout_s,
            doing=doing,
        )
        taken = handle.launched_resources
        gpu, count = next(iter((taken.accelerators or {}).items()), (None, 0))
        price = None
        with suppress(Exception):  # the machines of one's own have none
            price = float(taken.get_cost(3600))
        return Machine(
            cloud=str(taken.cloud).lower(),
            region=str(taken.region),
            instance_type=taken.instance_type or "",
            gpu=gpu,
            gpu_count=int(count),
            price_per_hour=price,
        )

    def launch_managed(
        self, config: Mapping[str, Any], name: str, *, timeout_s: float, tell: Tell
    ) -> None:
        """Hand the task to a managed job; returns when its controller has it."""
        sky, doing = self._sky(), "start the managed job"
        with translated(doing), silenced():
            task = sky.Task.from_yaml_config(dict(config))
            request = sky.jobs.launch(task, name=name)
        wait_for(
            lambda: sky.stream_and_get(request, output_stream=Lines(tell)),
            timeout_s=timeout_s,
            doing=doing,
        )

    def has_cluster(self, name: str, *, refresh: bool = False) -> bool:
        """Whether it has one of that name; `refresh`: by asking the cloud."""

        def ask(sky: Any) -> Any:
            mode = sky.StatusRefreshMode.AUTO if refresh else sky.StatusRefreshMode.NONE
            return sky.status([name], refresh=mode)

        return bool(self._get(ask, f"say how {name} is"))

    def managed_jobs(self, name: str) -> list[ManagedJob]:
        """All that ever had that name, oldest first."""
        found = [job for job in self._managed_jobs(name_match=name) if job["job_name"] == name]
        jobs = [
            ManagedJob(
                job_id=int(job["job_id"]),
                status=_value_of(job["status"]),
                why=plain(str(job.get("failure_reason") or "")),
                is_released=_value_of(job.get("schedule_state")) in ("None", "DONE"),
            )
            for job in found
        ]
        return sorted(jobs, key=lambda job: job.job_id)

    def machine_names(self) -> list[str]:
        """Names of all clusters and unfinished managed jobs, ours or not."""
        clusters = self._get(lambda sky: sky.status(), "list its clusters")
        jobs = self._managed_jobs(skip_finished=True)
        return [str(c["name"]) for c in clusters] + [str(job["job_name"]) for job in jobs]

    def cancel_requests(self, name: str) -> None:
        """Have the API server drop what it still does for that run, such as launching it.

        A teardown goes on: the hook that saves the run is run once only.
        """
        sky = self._sky()
        with translated("cancel what is under way"), silenced():
            pending = [r.request_id for r in sky.api_status() if _starts(r, name)]
            if pending:
                sky.get(sky.api_cancel(pending, silent=True))

    def cancel_managed(self, jobs: Sequence[ManagedJob]) -> None:
        """By their ids: of several by one name SkyPilot cancels none."""
        ids = [job.job_id for job in jobs]
        self._get(lambda sky: sky.jobs.cancel(job_ids=ids), f"cancel the managed jobs {ids}")

    def managed_cluster(self, name: str, job: ManagedJob) -> str:
        """Name of the cluster that a managed job rents."""
        self._sky()
        from sky.jobs import utils  # noqa: PLC0415

        return str(utils.generate_managed_job_cluster_name(name, job.job_id))

    def take_down(self, name: str, *, timeout_s: float, tell: Tell) -> None:
        """Run the cluster's hook, and have the cloud end its machines."""
        sky, doing = self._sky(), f"take {name} down"
        with translated(doing), silenced():
            # One that is under way may be running the hook, which another would pass over.
            ours = [r for r in sky.api_status(cluster_name=name) if r.name == "sky.down"]
            request = ours[0].request_id if ours else sky.down(name)
        wait_for(
            lambda: sky.stream_and_get(request, output_stream=Lines(tell)),
            timeout_s=timeout_s,
            doing=doing,
        )

    def cost_report(self, *, days: int = 30) -> dict[str, tuple[int, Decimal]]:
        """Seconds and dollars by cluster name, of all clusters that ever had that name.

        Of those that are there, or were `days` ago. Dollars of all nodes, and 0 where SkyPilot
        knows no price; `gptctl.report.reconcile` says how it counts. A managed job's cluster goes
        by `managed_cluster`, and is known only where its controller runs.
        """
        found: dict[str, tuple[int, Decimal]] = {}
        for cluster in self._get(lambda sky: sky.cost_report(days), "say what its clusters cost"):
            seconds, usd = found.get(cluster["name"], (0, Decimal(0)))
            cost = Decimal(repr(cluster["total_cost"])).quantize(Decimal("0.0001"))
            found[cluster["name"]] = seconds + cluster["duration"], usd + cost
        return found

    def job_log(self, name: str) -> list[str]:
        """What the task on that cluster has printed so far, by lines."""
        words = io.StringIO()
        with translated(f"read the log of {name}"), suppress(SystemExit), silenced():
            self._sky().tail_logs(name, None, follow=False, output_stream=words)
        return [plain(line) for line in words.getvalue().splitlines()]

    def dashboard_url(self, page: str) -> str:
        self._sky()
        with silenced():
            from sky.server import common  # noqa: PLC0415
        return str(common.get_dashboard_url(common.get_server_url(), starting_page=page))

    def versions(self) -> tuple[str, str]:
        """Of SkyPilot here, and of its API server, which is started if need be."""
        sky = self._sky()
        with translated("reach its API server"), silenced():
            from sky.server import common  # noqa: PLC0415

            common.check_server_healthy_or_start_fn()
            return str(sky.__version__), str(sky.api_info().version)

    def credentials(self) -> dict[str, bool]:
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

    def try_clouds(self, clouds: tuple[str, ...] | None = None) -> set[str]:
        """Those of `clouds`, or of all there are, that take their credentials now."""
        # `sky.check` is a module to whoever imports the package.
        answer = self._get(
            lambda sky: sky.client.sdk.check(clouds, verbose=False), "try the credentials"
        )
        return {
            name.lower()
            for clouds in answer.values()
            for name, capabilities in clouds.items()
            if "compute" in capabilities
        }

    def why_refused(self, cloud: str) -> str:
        """SkyPilot's own words, which it only prints."""
        sky, words = self._sky(), io.StringIO()
        with suppress(BackendError), translated(f"check {cloud}"), silenced():
            request = sky.client.sdk.check((cloud,), verbose=True)
            sky.stream_and_get(request, output_stream=words)
        _, found, reason = words.getvalue().partition("Reason")
        reason = reason.partition("\n\n")[0].partition("]:")[2]
        return plain(reason) if found else ""

    def _sky(self) -> Any:
        with silenced():  # its loggers keep the stdout of the import
            import sky  # noqa: PLC0415

        return sky

    def _get(self, ask: Callable[[Any], Any], doing: str) -> Any:
        """The answer of SkyPilot's API server, which it starts if need be."""
        sky = self._sky()
        with translated(doing), silenced():
            return sky.get(ask(sky))

    def _managed_jobs(self, **which: Any) -> list[Any]:
        def ask(sky: Any) -> Any:
            return sky.jobs.queue_v2(refresh=False, fields=JOB_FIELDS, **which)

        try:
            answer = self._get(ask, "list its managed jobs")
        except BackendError as error:
            cause = error.__cause__
            # No controller was ever there, or it sleeps: one that cannot be reached knows more.
            status = _value_of(getattr(cause, "cluster_status", None))
            if type(cause).__name__ == "ClusterNotUpError" and status in ("None", "STOPPED"):
                return []
            raise
        return list(answer[0])


def _starts(request: Any, name: str) -> bool:
    """Whether that request of the API server is to bring up a machine of the run."""
    if request.name == "sky.jobs.launch":  # filed under its controller's name, not the job's
        try:
            body = json.loads(request.request_body or "null") or {}
        except ValueError:
            return False
        return bool(body.get("name") == name)
    return bool(request.cluster_name == name and request.name != "sky.down")


def _value_of(enumerated: Any) -> str:
    return str(getattr(enumerated, "value", enumerated))


def require_skypilot() -> None:
    """Raises BackendError where SkyPilot is missing, or not the one that this is written for."""
    install = "pip install 'gptctl[cloud]'"
    if find_spec("sky") is None:
        raise BackendError(
            "a cloud is reached through SkyPilot, which is not installed", hint=install
        )
    with suppress(PackageNotFoundError):
        found = version("skypilot")
        if found != SKYPILOT:
            raise BackendError(
                f"SkyPilot {found} is installed, and gptctl works with {SKYPILOT}", hint=install
            )
