"""What a backend of rented machines offers beyond running: a way in, a page, a check-up."""

from datetime import date
from decimal import Decimal
from typing import Protocol

from msgspec import Struct

from gptctl.backends import Backend
from gptctl.backends.sky_catalog import Catalog


class CloudAccess(Struct, frozen=True, kw_only=True):
    """Whether a cloud took its credentials when they were tried; `why` it did not.

    `has_credentials`: there are some on this machine, which is to say that it was set up.
    """

    cloud: str
    is_enabled: bool
    has_credentials: bool
    why: str = ""


class RentedBackend(Backend, Protocol):
    def ssh_command(self, run_id: str, *words: str) -> list[str] | None:
        """A shell, or a command, on the run's first node; None where there is none to reach."""

    def dashboard_url(self, run_id: str) -> str:
        """The run's page in SkyPilot's dashboard, whose server is started if need be."""

    def versions(self) -> tuple[str, str]:
        """Of SkyPilot here, and of its API server, which is started if need be."""

    def try_credentials(self) -> list[CloudAccess]:
        """Of every cloud that SkyPilot drives, each really tried."""

    def catalog_dates(self) -> dict[str, date]:
        """When the prices of each cloud were fetched; only of those that are on this machine."""

    def machines(self) -> list[str]:
        """Names of all clusters and unfinished managed jobs that SkyPilot has, ours or not."""

    def cost_report(self) -> dict[str, tuple[int, Decimal]]:
        """Seconds and dollars by run, as SkyPilot itself counted them."""

    def fetch_catalog(self, cloud: str) -> Catalog:
        """Today's, or where there is no network the last that was fetched."""
