"""One life of a run, from checking the node to the last upload: `python -m training.supervise`.

Torch-free. Starts preparation and training side by side, keeps the heartbeat and the bill,
copies everything to the store, and ends the run at its goal, its budget, its deadline, a
SIGTERM or a fault. The same program runs on a cloud node and for `--cloud local`.
"""

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from training.check import check_node, raise_if_full
from training.errors import StorageError, TrainingError
from training.events import append_event
from training.layout import (
    DATASETS,
    RUN_JSON,
    STATUS_JSON,
    RunPaths,
    RunRecord,
    State,
    Status,
    checkpoint_name,
    committed_checkpoints,
    decode,
    encode,
    run_key,
    write_atomic,
)
from training.manifest import drop
from training.meter import Limits, Meter, Reserve
from training.outcome import Outcome, judge_exit
from training.processes import exclusive
from training.progress import Progress
from training.sources import dataset_folder_key
from training.stages import Stage
from training.storage import Storage, open_store
from training.sync import Sync

TICK_S = 0.2
STATUS_EVERY_S = 1.0
STOP_GRACE_S = 120.0
"""Longest wait, beyond what the reserve has learned, for ranks to save after SIGTERM."""
FINISH_TIMEOUT_S = 900.0
"""Longest wait at the end for a store that is out of reach."""


class Supervisor:
    def __init__(
        self, record: RunRecord, root: Path, store: Storage, limits: Limits, previous: Status | None
    ) -> None:
        self.record = record
        self.recipe = record.recipe
        self.root = root
        self.paths = RunPaths(root, record.run_id)
        self.limits = limits
        self.life = previous.life + 1 if previous else 1
        self.meter = Meter(
            previous.bill if previous else (),
            life=self.life,
            price_per_hour=limits.price_per_hour,
        )
        self.reserve = Reserve()
        self.progress = Progress(self.paths)
        self.sync = Sync(
            store,
            self.paths,
            record.run_id,
            keep=self.recipe.checkpoint.keep,
            every_s=1.0 if "://" not in store.url else 10.0,
        )
        self.state: State = "preparing"
        self.phase = "checking"
        self.stop_reason: str | None = None
        self.stages: list[Stage] = []
        self._ticked_at = time.monotonic()
        self._wrote_status_at = 0.0
        signal.signal(signal.SIGTERM, lambda *_: self.request_stop("user"))

    def request_stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason

    def run(self) -> Outcome:
        """Live this life to its end; what became of the run."""
        try:
            self.event(
                "life_started",
                life=self.life,
                price_per_hour=self.limits.price_per_hour,
                budget_usd=self.limits.budget_usd,
            )
            self.write_status()  # before the first upload, which must not be of an old ending
            self.sync.start()
            outcome = self.prepare_and_train()
        except TrainingError as error:
            outcome = Outcome.failed(type(error).__name__, error.message, error.hint)
        finally:
            for stage in self.stages:
                stage.kill()
        return self.finish(outcome)

    def prepare_and_train(self) -> Outcome:
        self.enter("preparing", "checking")
        found = check_node(self.record, self.root)
        self.event("node_checked", **found)
        for why in self.sync.fetch_newest_checkpoint():
            self.event("checkpoint_skipped", why=why)
        self.enter("preparing", "preparing")
        dataset = self.root / DATASETS / dataset_folder_key(self.recipe.data)
        prepare = self.start(
            "prepare",
            ["training.prepare", "--root", str(self.root), "--run-id", self.record.run_id],
        )
        died_at: list[int] = []
        while True:
            outcome = self.watch(self.start_training(dataset), prepare)
            if outcome is not None:
                return outcome
            raise_if_full(self.record, self.root)
            died_at.append(self.progress.step)
            self.event("training_died", step=died_at[-1])
            if len(died_at) > self.recipe.node.max_restarts or died_at[-1] in died_at[:-1]:
                again = "again at the same step" if died_at[-1] in died_at[:-1] else "once more"
                return Outcome.failed(
                    "crashed",
                    f"training died at step {died_at[-1]}, {again} ({len(died_at) - 1} restarts)",
                    f"`gptctl logs {self.record.run_id} --stage train` shows its last words",
                )

    def watch(self, training: Stage, prepare: Stage) -> Outcome | None:
        """Until training ends: how the run ended with it, or None where it is worth a restart."""
        asked_at: float | None = None
        while True:
            time.sleep(TICK_S)
            self.tick()
            if self.phase != "training" and asked_at is None and self.progress.is_training:
                self.enter("training", "training")
            if asked_at is None:
                self.check_limits(prepare)
                if self.stop_reason is not None:
                    asked_at = time.monotonic()
                    self.enter("finishing", "finishing")
            elif time.monotonic() - asked_at > STOP_GRACE_S + self.reserve.seconds:
                training.kill()
            else:
                training.ask_to_stop(ranks=self.record.ranks > 1)  # ranks may only now be there
            if training.exit_code is None and self.is_stalled():
                training.kill()
                return Outcome.failed(
                    "stalled",
                    f"training gave no sign of life for {self.recipe.node.stall_after_s:.0f} s "
                    f"at step {self.progress.step} and was killed; its last checkpoint is safe",
                    "a hung collective or a sick GPU; "
                    f"`gptctl launch --resume {self.record.run_id}` goes on from the checkpoint",
                )
            if (code := training.exit_code) is not None:
                self.tick()
                return judge_exit(
                    code,
                    is_complete=self.progress.step >= self.recipe.train.steps,
                    stop_reason=self.stop_reason,
                    error=self.progress.error,
                )

    def check_limits(self, prepare: Stage) -> None:
        """Find a reason to stop, if there is one now."""
        self.reserve = self.reserve.learn(
            boundary_s=self.progress.boundary_s,
            save_s=self.progress.save_s,
            upload_s=self.sync.upload_s,
        )
        reached = self.limits.reached(self.meter, reserve_s=self.reserve.seconds)
        if reached:
            self.request_stop(reached)
        elif prepare.exit_code not in (None, 0):
            self.request_stop("data")

    def is_stalled(self) -> bool:
        age_s = time.time() - self.paths.heartbeat.stat().st_mtime
        return age_s > self.recipe.node.stall_after_s

    def start_training(self, dataset: Path) -> Stage:
        self.paths.heartbeat.touch()
        self.progress.restart()
        program = ["training.train", str(self.paths.folder), str(dataset)]
        if self.record.ranks > 1:
            ranks = str(self.record.ranks)
            program = ["training.ranks", "--standalone", "--nproc-per-node", ranks, "-m", *program]
        cores = max(1, len(os.sched_getaffinity(0)) // self.record.ranks)
        return self.start("train", program, OMP_NUM_THREADS=str(cores))

    def start(self, stage: str, program: list[str], **env: str) -> Stage:
        started = Stage(program, log=self.paths.log(stage), env=env)
        self.stages.append(started)
        return started

    def finish(self, outcome: Outcome) -> Outcome:
        """Write samples, send what is left, and say how it ended, in that order."""
        self.enter("finishing", "finishing")
        if outcome.state == "succeeded":
            self.write_samples()
        try:
            self.tick()
            self.sync.finish(timeout_s=FINISH_TIMEOUT_S)
        except StorageError as error:
            outcome = Outcome.failed("StorageError", error.message, error.hint)
        self.event("run_ended", state=outcome.state, reason=outcome.reason)
        self.say(f"{outcome.state} ({outcome.reason}). {outcome.message or ''}")
        self.tick()
        self.state, self.phase = outcome.state, outcome.state
        status = self.write_status(outcome)
        if outcome.reason != "store":
            self.sync.finish(timeout_s=FINISH_TIMEOUT_S, status=status)
            for step in committed_checkpoints(self.paths.checkpoints):
                drop(self.paths.checkpoints, step)  # the store has them
        return outcome

    def write_samples(self) -> None:
        """What the finished model writes. A failure here is told, and costs nothing else."""
        steps = committed_checkpoints(self.paths.checkpoints)
        if not steps or not self.recipe.sample.count:
            return
        checkpoint = self.paths.checkpoint(steps[-1])
        output = self.paths.samples / f"{checkpoint_name(steps[-1])}.txt"
        arguments = ["training.sample", "--checkpoint", str(checkpoint), "--to", str(output)]
        stage = self.start("sample", arguments)
        while stage.exit_code is None:
            time.sleep(TICK_S)
            self.tick()
            if self.limits.reached(self.meter, reserve_s=self.reserve.seconds):
                stage.kill()
        if stage.exit_code:
            self.event("sampling_failed", exit_code=stage.exit_code)

    def enter(self, state: State, phase: str) -> None:
        self.tick()
        self.state, self.phase = state, phase
        self.event("phase_started", phase=phase)
        self.say(phase)
        self.write_status()

    def say(self, line: str) -> None:
        """To the log, for people; what programs read is in the events."""
        with suppress(OSError):  # a full disk must not keep the run from ending well
            print(f"{self.record.run_id}: {line}", flush=True)

    def event(self, event: str, **fields: Any) -> None:
        with suppress(OSError):
            append_event(self.paths.events, event, **fields)

    def tick(self) -> None:
        """Bill the time since the last tick to the current phase; read what training said."""
        now = time.monotonic()
        self.meter.add(self.phase, now - self._ticked_at)
        self._ticked_at = now
        self.progress.read()
        if now - self._wrote_status_at >= STATUS_EVERY_S:
            self.write_status()

    def write_status(self, outcome: Outcome | None = None) -> bytes:
        self._wrote_status_at = time.monotonic()
        status = self.progress.status(
            run_id=self.record.run_id,
            state=self.state,
            phase=self.phase,
            life=self.life,
            steps=self.recipe.train.steps,
            bill=self.meter.bill,
            budget_usd=self.limits.budget_usd,
            max_hours=self.limits.max_hours,
            price_per_hour=self.limits.price_per_hour,
            reason=outcome.reason if outcome else None,
            message=outcome.message if outcome else None,
            hint=outcome.hint if outcome else None,
        )
        with suppress(OSError):
            write_atomic(self.paths.status, encode(status))
        return encode(status)


def supervise(run_id: str, root: Path, store: Storage, overrides: dict[str, str | None]) -> int:
    """Take hold of the run, bring back what earlier lives left, live one more. An exit code."""
    paths = RunPaths(root, run_id)
    # Whoever asks whether the run is alive holds the lock for a moment.
    with exclusive(paths.lock, timeout_s=1):
        data = store.read(run_key(run_id, RUN_JSON))
        record = decode(data, RunRecord, name=RUN_JSON)
        write_atomic(paths.record, data)
        Sync(store, paths, run_id, keep=1, every_s=1).fetch_records()
        previous = None
        if paths.status.exists():
            previous = decode(paths.status.read_bytes(), Status, name=STATUS_JSON)
        budget, hours, price = (overrides[k] for k in ("budget_usd", "max_hours", "price_per_hour"))
        limits = Limits(
            budget_usd=Decimal(budget) if budget else record.budget_usd,
            max_hours=float(hours) if hours else record.max_hours,
            price_per_hour=Decimal(price) if price else record.offer.price_per_hour,
        )
        outcome = Supervisor(record, root, store, limits, previous).run()
    return 1 if outcome.state == "failed" else 0


def main(argv: list[str]) -> str | int:
    parser = argparse.ArgumentParser(prog="training.supervise", description=__doc__)
    parser.add_argument("run_id")
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", type=Path, required=True, help="the node's working folder")
    parser.add_argument("--budget-usd")
    parser.add_argument("--max-hours")
    parser.add_argument("--price-per-hour")
    arguments = vars(parser.parse_args(argv))
    run_id, url, root = (arguments.pop(name) for name in ("run_id", "store", "root"))
    try:
        return supervise(run_id, root, open_store(url), arguments)
    except BlockingIOError:
        return f"error: {run_id} is already being supervised on this machine"
    except TrainingError as error:
        return error.report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
