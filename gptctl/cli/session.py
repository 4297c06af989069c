"""What every command about runs needs: the store, and the backend of each run."""

import os
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from gptctl.backends import LOCAL, Backend, open_backend
from gptctl.backends.absent import AbsentBackend
from gptctl.backends.launched import Launched, Note
from gptctl.backends.rented import RentedBackend
from gptctl.cli.console import warn
from gptctl.errors import BackendError, UsageError
from gptctl.monitor import Look, see, watch
from gptctl.runs import RunView, find_run_id, read_all, read_record
from gptctl.settings import Settings, expand_home, read_settings
from training.layout import RunPaths, RunRecord
from training.storage import Storage, open_store


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    settings: Settings
    store: Storage
    store_flag: str | None
    backends: dict[tuple[str, ...], Backend] = field(default_factory=dict)
    complaints: set[str] = field(default_factory=set)

    def command(self, *words: str) -> str:
        """A command to suggest, which looks where this one did."""
        flag = f" --store {shlex.quote(self.store_flag)}" if self.store_flag else ""
        return " ".join(("gptctl", *words)) + flag

    def backend(self, *clouds: str) -> Backend:
        """The same for the same clouds, as one may remember what it has just asked."""
        if clouds not in self.backends:
            self.backends[clouds] = open_backend(
                clouds,
                node_root=self.settings.node_root,
                state=self.settings.state,
                home=_home(),
                env=os.environ,
            )
        return self.backends[clouds]

    @property
    def launched(self) -> Launched:
        return Launched(self.settings.state)

    def backend_or_none(self, cloud: str) -> Backend:
        """Where SkyPilot is not to be had, one that says so when it is needed."""
        try:
            return self.backend(cloud)
        except BackendError as error:
            return AbsentBackend(error)

    def find(self, run: str) -> tuple[str, Backend]:
        """The run's id and its backend. Raises NotFoundError."""
        run_id = find_run_id(self.store, run)
        return run_id, self.backend_or_none(read_record(self.store, run_id).offer.cloud)

    def rent(self, run: str) -> tuple[RunRecord, RentedBackend]:
        """The record of a run on a rented machine, and SkyPilot.

        Raises NotFoundError, UsageError for a run on this machine, BackendError without SkyPilot.
        """
        record = read_record(self.store, find_run_id(self.store, run))
        if record.offer.cloud == LOCAL:
            raise UsageError(
                f"{record.run_id} is a run on this machine, not on a rented one",
                hint=f"its files: {RunPaths(self.settings.node_root, record.run_id).folder}",
            )
        return record, cast(RentedBackend, self.backend(record.offer.cloud))

    def look(self, run_id: str, backend: Backend) -> Look:
        return watch(
            run_id,
            store=self.store,
            backend=backend,
            clock=utc_now,
            launched=self.launched,
            complain=self._complain,
        )

    def views(self) -> tuple[list[RunView], list[str]]:
        """All runs, newest first, and warnings about those that cannot be read."""
        found, warnings = read_all(self.store)
        views = [
            see(
                record,
                status,
                store=self.store,
                backend=self.backend_or_none(record.offer.cloud),
                clock=utc_now,
                launched=self.launched,
                complain=self._complain,
            )
            for record, status in found
        ]
        return views, warnings

    def _complain(self, why: str) -> None:
        """Once: the same fault returns with every look."""
        if why not in self.complaints:
            self.complaints.add(why)
            warn(f"what SkyPilot knows could not be asked, only the store: {why}")

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
    session = Session(settings=settings, store=opened, store_flag=store)
    for note in session.launched.cut_short():
        _warn_of_cut_short(note, session)
    return session


def _warn_of_cut_short(note: Note, session: Session) -> None:
    """Its machine may bill, whatever this command is about."""
    elsewhere = "" if note.store == session.store.url else f" --store {shlex.quote(note.store)}"
    status, stop = (f"`gptctl {verb} {note.run_id}{elsewhere}`" for verb in ("status", "stop"))
    warn(
        f"the launch of {note.run_id} was cut short and may have left a machine that bills: "
        f"{status} looks, {stop} ends it"
    )


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
