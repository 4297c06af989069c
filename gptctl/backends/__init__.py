"""Where runs execute: the port that every cloud, and this machine, stands behind."""

from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from gptctl.errors import UsageError
from gptctl.strict_toml import nearest
from training.layout import Offer, RunRecord

BackendState = Literal["running", "gone", "unknown"]
"""`running`: its supervisor, or a machine of it that bills, is there. `unknown`: this backend
cannot tell, as it never saw the run."""

LOCAL = "local"
ANY = "any"
CLOUDS = (
    *("aws", "azure", "cudo", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "kubernetes"),
    *("lambda", "mithril", "nebius", "oci", "paperspace", "primeintellect", "runpod", "scp"),
    *("seeweb", "shadeform", "slurm", "ssh", "vast", "verda", "vsphere", "yotta"),
)
"""Those that SkyPilot drives, by its names; a test compares them with SkyPilot's own list."""
_ALIASES = {"k8s": "kubernetes"}

Tell = Callable[[str], None]
"""Called with a line about what is happening, while something takes long."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What a run needs of a machine. `gpus` in order of preference (`A100-80GB:8`); none: a CPU.

    `price_per_hour`, where the user named one, stands in for every price a backend knows.
    """

    gpus: tuple[str, ...]
    cpu_ranks: int
    region: str | None = None
    spot: bool = False
    price_per_hour: Decimal | None = None
    today: date


class Job(Struct, frozen=True, kw_only=True):
    """A recorded run, the store it is recorded in, and the machines it may get, best first.

    The limits are those now in force, which a resumption may have changed, and of all lives
    together; what earlier ones spent is beside them, and when they had the last word. `text` is
    where the run's text lies on this machine. `recover`: come back elsewhere when the machine dies.
    The waits are in seconds: for capacity (0: do not), and for a machine to be made and answer.
    """

    record: RunRecord
    store: str
    offers: tuple[Offer, ...]
    budget_usd: Decimal | None = None
    max_hours: float | None = None
    spent_usd: Decimal = Decimal(0)
    spent_hours: float = 0.0
    planned_after: datetime | None = None
    text: Path | None = None
    recover: bool = False
    wait_s: float = 0.0
    boot_timeout_s: float = 1800.0

    @property
    def is_managed(self) -> bool:
        """Whether SkyPilot's managed jobs watch over it."""
        return self.recover or self.offers[0].spot


class Backend(Protocol):
    """Where runs execute. Every method raises BackendError where the backend cannot be asked."""

    def offers(self, wanted: Wanted) -> list[Offer]:
        """Machines that fit, best first. Raises UsageError for what no machine can be.

        Raises PlanRefusedError, with what there is instead, where nothing fits.
        """

    def check(self, offers: list[Offer]) -> None:
        """Raises PlanRefusedError where a launch on them would fail before it began."""

    def describe(self, job: Job) -> str:
        """The job in the backend's own words, without secrets, for whoever wants to do without us.

        Raises UsageError where it has none.
        """

    def submit(self, job: Job, *, tell: Tell) -> Offer:
        """Start a life of the run; returns, once its supervisor can, the offer that was taken.

        Whatever is raised, KeyboardInterrupt included, nothing is left that bills; where that
        could not be made sure, a BackendError says what bills and how to end it.
        """

    def state(self, run_id: str) -> BackendState:
        """Whether it is alive, or bills. A run it never saw is `unknown`, no error."""

    def logs(self, run_id: str) -> Iterator[str]:
        """What the machine itself said, a line each, before anything reached the store."""

    def follow_log(self, run_id: str, stage: str, offset: int) -> Iterator[bytes]:
        """A stage's log from that byte on, live from the node, for as long as it can be had.

        While nothing comes, an empty chunk each second or so: whoever follows may look elsewhere.
        """

    def stop(self, run_id: str, *, tell: Tell) -> None:
        """End the run, its checkpoint saved, and give its machine back.

        A cloud's returns when nothing bills any more; this machine's does not wait. Stopping
        what is gone is no error.
        """


def parse_clouds(text: str) -> tuple[str, ...]:
    """`lambda,runpod` as names. Raises UsageError, the nearest name offered."""
    names = [_ALIASES.get(name, name) for name in (w.strip().lower() for w in text.split(","))]
    for name in names:
        if name not in (LOCAL, ANY, *CLOUDS):
            near = nearest(name, [LOCAL, ANY, *CLOUDS])
            raise UsageError(
                f"there is no cloud {name!r}" + (f"; nearest: {near!r}" if near else ""),
                hint=f"`{LOCAL}`, `{ANY}`, or one or several of: {', '.join(CLOUDS)}",
            )
    if len(names) > 1 and {LOCAL, ANY} & {*names}:
        raise UsageError(
            f"--cloud {text}: `{LOCAL}` and `{ANY}` stand alone", hint="such as lambda,runpod"
        )
    return tuple(dict.fromkeys(names))


def open_backend(
    clouds: tuple[str, ...], *, node_root: Path, state: Path, home: Path, env: Mapping[str, str]
) -> Backend:
    """The backend of those clouds. `state`: its own folder on this machine.

    `env` is what the programs it starts get to see.
    """
    if clouds == (LOCAL,):
        from gptctl.backends.local import LocalBackend  # noqa: PLC0415 - only the one in use

        return LocalBackend(node_root, env)
    from gptctl.backends.cloud import CloudBackend  # noqa: PLC0415

    return CloudBackend(clouds, state=state, home=home)
