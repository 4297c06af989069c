"""What every command about runs needs: the store, and the backend of each run."""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import cast

from msgspec.structs import replace

from gptctl.backends import LOCAL, Backend, open_backend
from gptctl.backends.absent import AbsentBackend
from gptctl.backends.launched import Launched, Note
from gptctl.backends.rented import RentedBackend
from gptctl.backends.sky_catalog import Catalog
from gptctl.bill import correct_going_down
from gptctl.cli.console import warn
from gptctl.errors import BackendError, UsageError
from gptctl.experience import add_experience, measured_by, read_experience
from gptctl.history import Entry, as_seen, entries, read_starts
from gptctl.monitor import Look, see, watch
from gptctl.month import MonthBudget, read_month_budget, settle_month
from gptctl.quotes import Market, open_market
from gptctl.report import Spent
from gptctl.runs import RunView, find_run_id, read_all, read_record, read_status, write_status
from gptctl.settings import Settings, expand_home, read_settings
from training.layout import RunPaths, RunRecord, Status
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
                home=user_home(),
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
        return [self._see(record, status) for record, status in found], warnings

    def _see(self, record: RunRecord, status: Status) -> RunView:
        return see(
            record,
            status,
            store=self.store,
            backend=self.backend_or_none(record.offer.cloud),
            clock=utc_now,
            launched=self.launched,
            complain=self._complain,
        )

    def market(self) -> Market:
        return open_market(self.settings, today=utc_now().date())

    def history(self, *, since: date | None = None) -> tuple[list[Entry], list[str]]:
        """All runs as they are seen now: one that was killed never says so itself."""
        found, warnings = read_all(self.store)
        seen = as_seen(found, [self._see(record, status) for record, status in found])
        starts = lambda run_id: read_starts(self.store, run_id)  # noqa: E731
        listed = entries(seen, since=since, starts=starts)
        if since is None:
            settle_month(self.settings.ledger, store=self.store.url, entries=listed, now=utc_now())
        return listed, warnings

    def month(self) -> MonthBudget | None:
        """The month's budget as a launch now finds it; None where none is set."""
        limit = read_month_budget(self.settings.config)
        if limit is None:
            return None
        return MonthBudget(
            folder=self.settings.ledger,
            store=self.store.url,
            limit=limit,
            entries=tuple(self.history()[0]),
            now=utc_now(),
        )

    def learn(self, run_id: str) -> None:
        """Keep how fast a run was, for the next estimate; that it cannot be kept is no fault."""
        record = read_record(self.store, run_id)
        measured = measured_by(record, read_status(self.store, record))
        known = {m.source for m in read_experience(self.settings.experience)}
        if measured is not None and measured.source not in known:
            with suppress(OSError):
                add_experience(self.settings.experience, measured)

    def correct_bill(self, run_id: str) -> None:
        """After its machine was given back from here: billed ahead was what that may take."""
        record = read_record(self.store, run_id)
        status = read_status(self.store, record)
        if not status.is_over:
            return
        down_s = (utc_now() - status.updated_at).total_seconds()
        bill = correct_going_down(status.bill, down_s)
        if sum(line.usd for line in bill) < status.spent_usd:
            write_status(self.store, replace(status, bill=bill))

    def catalogs(self, clouds: Sequence[str]) -> tuple[list[Catalog], dict[str, str]]:
        """Those that SkyPilot has or can fetch, and why the others, by cloud, could not be had."""
        found, faults = [], {}
        for cloud in clouds:
            try:
                backend = cast(RentedBackend, self.backend(cloud))
                found.append(backend.fetch_catalog(cloud))
            except BackendError as error:
                faults[cloud] = error.message
        return found, faults

    def skypilot_cost(self, record: RunRecord) -> Spent | None:
        """What SkyPilot's own report says of a rented run; None where it knows of none."""
        _, backend = self.rent(record.run_id)
        found = backend.cost_report().get(record.run_id)
        return None if found is None else Spent(seconds=float(found[0]), usd=found[1])

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
    settings = read_settings(os.environ, home=user_home(), store=store, cloud=cloud)
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
    return Path(expand_home(path, user_home())).absolute()


def _absolute_url(url: str) -> str:
    scheme, colon, rest = url.partition(":")
    if not colon or "/" in scheme:
        return str(absolute_path(url))
    if scheme == "file" and not rest.startswith("//"):
        return str(absolute_path(rest))
    return url


def user_home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise UsageError("this user has no home folder", hint="name one: `HOME=...`") from error
