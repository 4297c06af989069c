"""One life of a run, from checking the node to the last upload: `python -m training.supervise`.

Torch-free. Starts preparation and training side by side, keeps the heartbeat and the bill,
copies everything to the store, and ends the run at its goal, its budget, its deadline, a
SIGTERM or a fault. The same program runs on a cloud node and for `--cloud local`.
"""

import argparse
import os
import sys
import time
from decimal import Decimal
from pathlib import Path

from training.check import check_node, raise_if_full
from training.errors import StorageError, TrainingError
from training.journal import Journal
from training.layout import (
    DATASETS,
    RUN_JSON,
    STATUS_JSON,
    RunPaths,
    RunRecord,
    Status,
    checkpoint_name,
    committed_checkpoints,
    decode,
    run_key,
    write_atomic,
)
from training.manifest import drop
from training.meter import Limits, Reserve
from training.outcome import Outcome, judge_exit
from training.processes import StopFlag, available_cores, exclusive
from training.progress import Heartbeat
from training.sources import dataset_folder_key
from training.stages import Stage
from training.storage import Storage, open_store
from training.sync import Sync

TICK_S = 0.2
STOP_GRACE_S = 120.0
"""Longest wait, beyond what the reserve has learned, for ranks to save after SIGTERM."""
FINISH_TIMEOUT_S = 900.0
"""Longest wait at the end for a store that is out of reach, where the limits allow as much."""
LAST_CHANCE_S = 3.0
"""Of that, what is left where the limits allow nothing more."""
LAST_WORD_S = 60.0
"""Longest wait for the store to take the last status, which no bill can contain."""


class Supervisor:
    def __init__(
        self,
        record: RunRecord,
        root: Path,
        store: Storage,
        limits: Limits,
        previous: Status | None,
        stop: StopFlag,
    ) -> None:
        self.record = record
        self.recipe = record.recipe
        self.root = root
        self.paths = RunPaths(root, record.run_id)
        self.limits = limits
        self.stop = stop
        self.journal = Journal(record, self.paths, limits, previous)
        self.progress = self.journal.progress
        self.heartbeat = Heartbeat(self.paths.heartbeat)
        self.reserve = Reserve()
        self.sync = Sync(
            store,
            self.paths,
            record.run_id,
            keep=self.recipe.checkpoint.keep,
            every_s=1.0 if "://" not in store.url else 10.0,
        )
        self.stages: list[Stage] = []

    def run(self) -> Outcome:
        """Live this life to its end; what became of the run."""
        try:
            self.journal.event(
                "life_started",
                life=self.journal.life,
                price_per_hour=self.limits.price_per_hour,
                budget_usd=self.limits.budget_usd,
            )
            # Before the first upload, which must not be of an old ending.
            self.journal.write_status()
            self.sync.start()
            outcome = self.prepare_and_train()
        except TrainingError as error:
            outcome = Outcome.failed(type(error).__name__, error.message, error.hint)
        except OSError as error:
            outcome = Outcome.refused(error)
        finally:
            for stage in self.stages:
                stage.kill()
        return self.finish(outcome)

    def prepare_and_train(self) -> Outcome:
        self.journal.enter("preparing", "checking")
        found = check_node(self.record, self.root)
        self.journal.event("node_checked", **found)
        for why in self.sync.fetch_newest_checkpoint():
            self.journal.event("checkpoint_skipped", why=why)
            self.journal.say(f"passed over: {why}")
        self.journal.enter("preparing", "preparing")
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
            self.journal.event("training_died", step=died_at[-1])
            if len(died_at) > self.recipe.node.max_restarts or died_at[-1] in died_at[:-1]:
                again = "again at the same step" if died_at[-1] in died_at[:-1] else "once more"
                return Outcome.failed(
                    "crashed",
                    f"training died at step {died_at[-1]}, {again} ({len(died_at) - 1} restarts)",
                    f"`gptctl logs {self.record.run_id} --stage train` shows its last words",
                )

    def watch(self, training: Stage, prepare: Stage) -> Outcome | None:
        """Until training ends: how the run ended with it, or None where it is worth a restart."""
        stop_reason: str | None = None
        asked_at = 0.0
        while True:
            time.sleep(TICK_S)
            self.journal.tick()
            if stop_reason is None:
                if self.journal.phase != "training" and self.progress.is_training:
                    self.journal.enter("training", "training")
                stop_reason, asked_at = self.reason_to_stop(prepare), time.monotonic()
                if stop_reason is not None:
                    self.journal.enter("finishing", "finishing")
            elif not self.progress.is_training:
                training.kill()  # it has nothing to save yet, and may not even hear us
            elif time.monotonic() - asked_at > STOP_GRACE_S + self.reserve.seconds:
                training.kill()
            else:
                training.ask_to_stop(ranks=self.record.ranks > 1)
            silence_s = self.heartbeat.silence_s(time.monotonic())
            if training.exit_code is None and silence_s > self.recipe.node.stall_after_s:
                training.kill()
                return Outcome.failed(
                    "stalled",
                    f"training gave no sign of life for {silence_s:.0f} s "
                    f"at step {self.progress.step} and was killed; its last checkpoint is safe",
                    "a hung collective or a sick GPU; "
                    f"`gptctl launch --resume {self.record.run_id}` goes on from the checkpoint",
                )
            if (code := training.exit_code) is not None:
                self.journal.tick()
                return judge_exit(
                    code,
                    is_complete=self.progress.step >= self.recipe.train.steps,
                    stop_reason=stop_reason,
                    error=self.progress.error,
                    run_id=self.record.run_id,
                )

    def reason_to_stop(self, prepare: Stage) -> str | None:
        if self.stop.is_set:
            return "user"
        self.reserve = self.reserve.learn(
            boundary_s=self.progress.boundary_s,
            save_s=self.progress.save_s,
            upload_s=self.sync.upload_s,
        )
        if reached := self.limits.reached(self.journal.meter, reserve_s=self.reserve.seconds):
            return reached
        return None if prepare.exit_code in (None, 0) else "data"

    def start_training(self, dataset: Path) -> Stage:
        self.heartbeat.restart(time.monotonic())
        self.progress.restart()
        program = ["training.train", str(self.paths.folder), str(dataset)]
        if self.record.ranks > 1:
            ranks = str(self.record.ranks)
            program = ["training.ranks", "--standalone", "--nproc-per-node", ranks, "-m", *program]
        threads = str(max(1, available_cores() // self.record.ranks))
        # GNU OpenMP lets idle threads spin for milliseconds: on a machine that is also doing
        # something else, a step then takes many times as long.
        defaults = {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "50000"}
        return self.start("train", program, **{**defaults, **_threads_asked_for()})

    def start(self, stage: str, program: list[str], **env: str) -> Stage:
        started = Stage(program, log=self.paths.log(stage), env=env)
        self.stages.append(started)
        return started

    def finish(self, outcome: Outcome) -> Outcome:
        """Write samples, send what is left, and say how it ended, in that order."""
        self.journal.enter("finishing", "finishing")
        is_sent = True
        try:
            if outcome.state == "succeeded":
                self.write_samples()
            self.sync.flush(timeout_s=self.time_to_finish_s(), tick=self.journal.tick)
        except StorageError as error:
            is_sent = False
            if outcome.state != "failed":  # else the first fault is what the user must hear of
                outcome = Outcome.failed(type(error).__name__, error.message, error.hint)
        status = self.journal.close(outcome)
        self.sync.close(status, timeout_s=LAST_WORD_S)
        if is_sent:
            for step in committed_checkpoints(self.paths.checkpoints):
                drop(self.paths.checkpoints, step)  # the store has them
        return outcome

    def time_to_finish_s(self) -> float:
        left_s = self.limits.left_s(self.journal.meter) - 1.0  # to write down how it ended
        return max(LAST_CHANCE_S, min(FINISH_TIMEOUT_S, left_s))

    def write_samples(self) -> None:
        """What the finished model writes. A failure here is told, and costs nothing else."""
        steps = committed_checkpoints(self.paths.checkpoints)
        if not steps or not self.recipe.sample.count:
            return
        checkpoint = self.paths.checkpoint(steps[-1])
        output = self.paths.samples / f"{checkpoint_name(steps[-1])}.txt"
        arguments = ["training.sample", "--checkpoint", str(checkpoint), "--to", str(output)]
        try:
            stage = self.start("sample", arguments)
        except OSError as error:
            self.journal.event("sampling_failed", why=str(error))
            return
        started = time.monotonic()
        while stage.exit_code is None:
            time.sleep(TICK_S)
            self.journal.tick()
            too_long = time.monotonic() - started > self.recipe.node.stall_after_s
            reserve_s = self.reserve.seconds
            reached = self.limits.reached(self.journal.meter, reserve_s=reserve_s)
            if too_long or reached or self.stop.is_set:
                stage.kill()
        if stage.exit_code:
            self.journal.event("sampling_failed", why=f"exit code {stage.exit_code}")


def _threads_asked_for() -> dict[str, str]:
    """OpenMP's settings of whoever started us: they know what else the machine has to do."""
    return {k: v for k, v in os.environ.items() if k in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}


def supervise(run_id: str, root: Path, store: Storage, overrides: dict[str, str | None]) -> int:
    """Take hold of the run, bring back what earlier lives left, live one more. An exit code."""
    paths = RunPaths(root, run_id)
    stop = StopFlag()  # whoever sees the lock may ask us to stop
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
        outcome = Supervisor(record, root, store, limits, previous, stop).run()
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
    except OSError as error:
        return f"error: the node's folder {root} cannot be used: {error}"
    except TrainingError as error:
        return error.report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
