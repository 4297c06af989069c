"""Where runs execute: the port that every cloud, and this machine, stands behind."""

from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from gptctl.errors import UsageError
from training.layout import Offer, RunRecord

BackendState = Literal["running", "gone", "unknown"]
"""`unknown`: this backend cannot tell, as it never saw the run."""

BACKENDS = ("local",)


class Job(Struct, frozen=True, kw_only=True):
    """A recorded run and the store it is recorded in. What is not None overrides the record."""

    record: RunRecord
    store: str
    budget_usd: Decimal | None = None
    max_hours: float | None = None
    price_per_hour: Decimal | None = None


class Backend(Protocol):
    """Where runs execute. Every method raises BackendError where the backend cannot be asked."""

    def offers(self, *, price_per_hour: Decimal | None, today: date) -> list[Offer]:
        """Machines to be had now. A price that is given stands in for the backend's own."""

    def submit(self, job: Job) -> None:
        """Start a life of the run; returns once its supervisor has taken hold of it.

        Raises BackendError, with the end of the supervisor's log, where it does not.
        """

    def state(self, run_id: str) -> BackendState:
        """Whether a supervisor is alive. A run it never saw is `unknown`, no error."""

    def logs(self, run_id: str) -> Iterator[str]:
        """What the machine itself said, a line each, before anything reached the store."""

    def stop(self, run_id: str) -> None:
        """Ask the supervisor to end the run; does not wait. Stopping what is gone is no error."""


def open_backend(cloud: str, *, node_root: Path, env: Mapping[str, str]) -> Backend:
    """The backend named `cloud`. `env` is what the programs it starts get to see."""
    if cloud == "local":
        from gptctl.backends.local import LocalBackend  # noqa: PLC0415 - only the one in use

        return LocalBackend(node_root, env)
    raise UsageError(
        f"there is no cloud {cloud!r} in this version", hint=f"one of: {', '.join(BACKENDS)}"
    )
