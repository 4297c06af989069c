"""What every command about runs needs: the store, and the backend of each run."""

import os
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gptctl.backends import BACKENDS, Backend, open_backend
from gptctl.errors import UsageError
from gptctl.monitor import Look, watch
from gptctl.runs import RunView, find_run_id, read_all, read_record, view_run
from gptctl.settings import Settings, expand_home, read_settings
from training.storage import Storage, open_store


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    settings: Settings
    store: Storage
    store_flag: str | None

    def command(self, *words: str) -> str:
        """A command to suggest, which looks where this one did."""
        flag = f" --store {shlex.quote(self.store_flag)}" if self.store_flag else ""
        return " ".join(("gptctl", *words)) + flag

    def backend(self, cloud: str) -> Backend:
        return open_backend(cloud, node_root=self.settings.node_root, env=os.environ)

    def find(self, run: str) -> tuple[str, Backend]:
        """The run's id and its backend. Raises NotFoundError."""
        run_id = find_run_id(self.store, run)
        return run_id, self.backend(read_record(self.store, run_id).offer.cloud)

    def look(self, run_id: str, backend: Backend) -> Look:
        return watch(run_id, store=self.store, backend=backend, clock=utc_now)

    def views(self) -> tuple[list[RunView], list[str]]:
        """All runs, newest first, and warnings about those that cannot be read."""
        found, warnings = read_all(self.store)
        views = []
        for record, status in found:
            cloud = record.offer.cloud
            alive = self.backend(cloud).state(record.run_id) if cloud in BACKENDS else "unknown"
            views.append(view_run(record, status, alive, store=self.store.url, now=utc_now()))
        return views, warnings

    @property
    def poll_s(self) -> float:
        """How often to look: a bucket is written every ten seconds, and each look is a request."""
        return 5.0 if "://" in self.store.url else 0.5

    @property
    def cache(self) -> Path:
        """Checkpoints that were brought here to be sampled."""
        return self.settings.node_root / "pulled"


def open_session(store: str | None = None, cloud: str | None = None) -> Session:
    settings = read_settings(os.environ, home=_home(), store=store, cloud=cloud)
    opened = open_store(_absolute_url(settings.store))
    return Session(settings=settings, store=opened, store_flag=store)


def absolute_path(path: str) -> Path:
    """As every process sees it: the supervisor works in another folder than we do."""
    return Path(expand_home(path, _home())).absolute()


def _absolute_url(url: str) -> str:
    scheme, colon, rest = url.partition(":")
    if not colon or "/" in scheme:
        return str(absolute_path(url))
    if scheme == "file" and not rest.startswith("//"):
        return str(absolute_path(rest))
    return url


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise UsageError("this user has no home folder", hint="name one: `HOME=...`") from error
