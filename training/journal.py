"""What the supervisor has to say of a life: the bill, the heartbeat, events, and lines to read."""

import time
from contextlib import suppress
from typing import Any

from training.events import append_event
from training.layout import (
    GOING_DOWN,
    BillLine,
    Lead,
    Offer,
    RunPaths,
    RunRecord,
    State,
    Status,
    encode,
    write_atomic,
)
from training.meter import Limits, Meter
from training.outcome import Outcome
from training.progress import Progress
from training.race import Race

STATUS_EVERY_S = 1.0


class Journal:
    """Bills time to the current phase, by a monotonic clock: that of the day may jump.

    A full disk must not keep a run from ending well: what it will not take is left out.
    """

    def __init__(
        self,
        record: RunRecord,
        paths: RunPaths,
        limits: Limits,
        previous: Status | None,
        offer: Offer | None = None,
        earlier: tuple[BillLine, ...] = (),
    ) -> None:
        """`earlier`: the bill of the lives before this one."""
        self._record = record
        self._paths = paths
        self._limits = limits
        self._offer = offer
        self.life = previous.life + 1 if previous else 1
        self.meter = Meter(
            earlier,
            life=self.life,
            price_per_hour=limits.price_per_hour,
            nodes=record.nodes,
        )
        self.progress = Progress(paths)
        self.race: Race | None = None
        """As soon as data is prepared."""
        self._is_loss_told = False
        self.state: State = "preparing"
        self.phase = "checking"
        self._ticked_at = time.monotonic()
        self._wrote_status_at = 0.0

    def enter(self, state: State, phase: str) -> None:
        self.tick()
        self.state, self.phase = state, phase
        self.event("phase_started", phase=phase)
        self.say(phase)
        self.write_status()

    def tick(self) -> None:
        """Bill the time since the last tick to the current phase; read what training said.

        What it says it spent beside training goes out of `training` then.
        """
        now = time.monotonic()
        self.meter.add(self.phase, now - self._ticked_at)
        self._ticked_at = now
        self.progress.read()
        for phase, seconds in self.progress.take_asides().items():
            self.meter.move(seconds, to=phase)
        if now - self._wrote_status_at >= STATUS_EVERY_S:
            self.write_status()

    def close(self, outcome: Outcome, *, teardown_s: float = 0.0) -> bytes:
        """Say how the life ended; the last status, also where the disk did not take it.

        `teardown_s` is what the machine will still be billed for, of which nobody can tell then.
        """
        self.event("run_ended", state=outcome.state, reason=outcome.reason)
        self.say(f"{outcome.state} ({outcome.reason}). {outcome.message or ''}")
        self.tick()
        if teardown_s:
            self.meter.add(GOING_DOWN, teardown_s)
        self.state, self.phase = outcome.state, outcome.state
        return self.write_status(outcome)

    def say(self, line: str) -> None:
        """To the log, for people; what programs read is in the events."""
        with suppress(OSError):
            print(f"{self._record.run_id}: {line}", flush=True)

    def event(self, event: str, **fields: Any) -> None:
        with suppress(OSError):
            append_event(self._paths.events, event, **fields)

    def _take_lead(self) -> Lead | None:
        """How far preparation leads; once a life is told that it is about to lose."""
        if self.race is None:
            return None
        lead = self.race.lead(
            self.progress.pace,
            trained_tokens=self.progress.tokens,
            trained_per_sec=self.progress.tokens_per_sec,
            is_waiting=self.progress.is_waiting,
            now=time.monotonic(),
        )
        if lead.is_losing and not self._is_loss_told:
            self._is_loss_told = True
            self.event("data_is_late", waits_s=lead.waits_s, tokens_per_sec=lead.tokens_per_sec)
            self.say(
                f"data is prepared at {lead.tokens_per_sec:,.0f} tokens/s: "
                f"training will wait about {lead.waits_s:,.0f} s for it"
            )
        return lead

    def write_status(self, outcome: Outcome | None = None) -> bytes:
        self._wrote_status_at = time.monotonic()
        status = self.progress.status(
            run_id=self._record.run_id,
            state=self.state,
            phase=self.phase,
            life=self.life,
            steps=self.progress.last_step or self._record.recipe.train.steps,
            bill=self.meter.bill,
            budget_usd=self._limits.budget_usd,
            max_hours=self._limits.max_hours,
            price_per_hour=self._limits.price_per_hour,
            offer=self._offer,
            lead=None if outcome else self._take_lead(),
            reason=outcome.reason if outcome else None,
            message=outcome.message if outcome else None,
            hint=outcome.hint if outcome else None,
        )
        with suppress(OSError):
            write_atomic(self._paths.status, encode(status))
        return encode(status)
