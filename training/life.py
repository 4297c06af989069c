"""One life of a run: check, prepare and train side by side, finish.

Torch-free. Keeps the heartbeat and the bill, copies everything to the store, and ends at the
run's goal, its budget, its deadline, a SIGTERM or a fault.
"""

import time
from concurrent.futures import wait
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from training import stacks
from training.background import in_background
from training.check import check_node, raise_if_full
from training.cluster import CHECK, JOIN_TIMEOUT_S, OUT_OF_MEMORY, TRAIN
from training.errors import StorageError, TrainingError
from training.events import parse_lines
from training.journal import Journal
from training.layout import (
    DATASETS,
    RunPaths,
    RunRecord,
    Status,
    checkpoint_name,
    committed_checkpoints,
)
from training.machine import Machine
from training.manifest import drop
from training.meter import Limits, bill_before
from training.outcome import Outcome, cut_off, judge_check, judge_exit, pass_on
from training.preparation import BYTES_PER_PARAMETER
from training.processes import StopFlag
from training.progress import Heartbeat
from training.race import Race
from training.reserve import REQUESTS_S, first_reserve
from training.restarts import Death, give_up
from training.setup import take_failure
from training.sources import dataset_folder_key
from training.stages import Stage
from training.storage import Storage
from training.summary import write_summary
from training.sync import Sync
from training.wall import Wall

TICK_S = 0.2
STOP_GRACE_S = 120.0
"""Longest wait, beyond what the reserve has learned, for ranks to save after SIGTERM."""
TOO_LONG = "too long"
LAST_WORD_S = 60.0
"""Longest wait for the store to take the last status, which no bill can contain."""


class Life:
    def __init__(
        self,
        record: RunRecord,
        root: Path,
        store: Storage,
        limits: Limits,
        previous: Status | None,
        stop: StopFlag,
        machine: Machine,
    ) -> None:
        self.record = record
        self.recipe = record.recipe
        self.root = root
        self.paths = RunPaths(root, record.run_id)
        self.store = store
        self.limits = limits
        self.stop = stop
        self.machine = machine
        self.cluster = machine.cluster
        self.is_remote = "://" in store.url
        self.heartbeat_s = 10.0 if self.is_remote else 1.0
        earlier = bill_before(
            previous,
            now=datetime.now(UTC),
            setup_s=machine.setup_s,
            heartbeat_s=self.heartbeat_s,
            teardown_s=machine.teardown_s,
        )
        self.journal = Journal(record, self.paths, limits, previous, machine.offer, earlier)
        for phase, seconds in machine.setup:
            self.journal.meter.add(phase, seconds)
        self.progress = self.journal.progress
        self.heartbeat = Heartbeat(self.paths.heartbeat)
        self.reserve = first_reserve(
            checkpoint_bytes=self.bytes_at_end(),
            teardown_s=machine.teardown_s,
            setup_s=machine.setup_s,
            loss_s=self.heartbeat_s + machine.teardown_s if record.recover else None,
            requests_s=REQUESTS_S if self.is_remote else 0.0,
        )
        self.wall = Wall(machine.go_down_in)
        self.sync = Sync(
            store,
            self.paths,
            record.run_id,
            keep=self.recipe.checkpoint.keep,
            every_s=self.heartbeat_s,
        )
        self.stages: list[Stage] = []

    def bytes_at_end(self) -> int:
        """What is sent, as far as it can be told ahead, when the run is asked to end."""
        return self.recipe.model.parameters * BYTES_PER_PARAMETER

    def run(self, *, failed: Outcome | None = None) -> Outcome:
        """Live this life to its end; what became of the run. `failed`: before it began."""
        try:
            self.begin()
            outcome = failed or self.check_limits() or self.check_gpus() or self.work()
        except TrainingError as error:
            outcome = Outcome.failed(type(error).__name__, error.message, error.hint)
        except OSError as error:
            outcome = Outcome.refused(error)
        finally:
            for stage in self.stages:
                stage.kill()
        try:
            outcome = pass_on(self.blame_other_nodes(outcome), recovers=self.record.recover)
            return self.finish(outcome)
        finally:
            self.wall.settle()

    def begin(self) -> None:
        self.journal.event(
            "life_started",
            life=self.journal.life,
            price_per_hour=self.limits.price_per_hour,
            budget_usd=self.limits.budget_usd,
            offer=self.machine.offer,
        )
        if (minutes := self.limits.minutes_left(self.journal.meter)) is not None:
            self.wall.arm(minutes, tell=self.journal.event)
        # Before the first upload, which must not be of an old ending.
        self.journal.write_status()
        self.sync.start()

    def check_limits(self) -> Outcome | None:
        """Why there is no point in going on, as where the machine took long to come."""
        reason = self.reason_to_stop()
        return Outcome.stopped(reason) if reason else None

    def check_gpus(self) -> Outcome | None:
        """Why the GPUs, or what joins the nodes, are not fit to train on; None: they are."""
        self.journal.enter("preparing", "checking")
        ranks = self.cluster.ranks_per_node
        self.journal.event("node_checked", **check_node(self.record, self.root, ranks=ranks))
        if self.record.device == "cpu" and self.cluster.node_count == 1:
            return None
        self.journal.enter("preparing", "checking_gpus")
        program = self.cluster.torchrun(CHECK, "training.gpu_check", str(self.paths.folder))
        stage = self.start("check", program, **self.cluster.thread_settings())
        timeout_s = JOIN_TIMEOUT_S + self.recipe.node.stall_after_s
        if (killed_for := self.attend(stage, timeout_s=timeout_s)) not in (None, TOO_LONG):
            return Outcome.stopped(killed_for)
        self.journal.tick()
        log = self.paths.log("check")
        if stage.exit_code == 0:
            for measured in list(parse_lines(log.read_bytes()))[-1:]:
                self.journal.event("gpus_checked", **measured)
            return None
        return judge_check(stage.exit_code, self.progress.error, self.record.run_id)

    def work(self) -> Outcome:
        """Prepare and train, side by side."""
        self.journal.enter("preparing", "preparing")
        if (stopped_for := self.fetch_checkpoint()) is not None:
            return Outcome.stopped(stopped_for)
        dataset = self.root / DATASETS / dataset_folder_key(self.recipe.data)
        # A folder on this machine has no need of what is in the working folder already.
        prepare = self.start_preparing(sends=self.is_remote)
        self.journal.race = Race(dataset, self.recipe)
        deaths: list[Death] = []
        while True:
            training = self.start_training(dataset, deaths=len(deaths))
            ended = self.watch(training, prepare)
            if isinstance(ended, Outcome):
                return ended
            raise_if_full(self.record, self.root)
            deaths.append(ended)
            self.journal.event("training_died", step=ended.step, cause=ended.cause)
            limit, run_id = self.recipe.node.max_restarts, self.record.run_id
            if outcome := give_up(deaths, max_restarts=limit, run_id=run_id):
                return outcome

    def fetch_checkpoint(self) -> str | None:
        """Bring back the newest checkpoint; the reason to stop that came before it was here.

        Meanwhile time is billed, and limits hold. Raises what fetching it failed with.
        """
        fetched = in_background(self.sync.fetch_newest_checkpoint)
        while not fetched.done():
            wait([fetched], timeout=TICK_S)
            self.journal.tick()
            if reason := self.reason_to_stop():
                return reason
        for why in fetched.result():
            self.journal.event("checkpoint_skipped", why=why)
            self.journal.say(f"passed over: {why}")
        return None

    def watch(self, training: Stage, prepare: Stage) -> Outcome | Death:
        """Until training ends: how the run ended with it, or what may be worth a restart."""
        stop_reason: str | None = None
        is_cut_off = False
        asked_at = 0.0
        while True:
            time.sleep(TICK_S)
            self.journal.tick()
            if stop_reason is None:
                if self.journal.phase != "training" and self.progress.is_training:
                    self.journal.enter("training", "training")
                    self.wall.hurry()
                lacks_data = prepare.exit_code not in (None, 0)
                stop_reason = self.reason_to_stop() or ("data" if lacks_data else None)
                asked_at = time.monotonic()
                if stop_reason is not None:
                    self.journal.enter("finishing", "finishing")
            elif not self.progress.is_training:
                training.kill()  # it has nothing to save yet, and may not even hear us
            elif self.is_last_call(asked_at):
                is_cut_off = training.exit_code is None
                training.kill()
            else:
                training.ask_to_stop(ranks=self.cluster.uses_torchrun)
            if is_hung := self.is_hung(training):
                self.tell_stacks(training)
                is_hung = self.is_hung(training)  # it may have come to itself, or died
            if is_hung:
                is_cut_off = stop_reason is not None
                training.kill()
            if (code := training.exit_code) is not None:
                self.journal.tick()
                outcome = judge_exit(
                    code,
                    is_complete=self.progress.step >= self.recipe.train.steps,
                    is_at_target=self.progress.has_reached_target,
                    stop_reason=stop_reason,
                    error=self.progress.error,
                    run_id=self.record.run_id,
                )
                if outcome is None:
                    return self.find_cause(code, is_hung=is_hung)
                return self.tell_cut_off(outcome) if is_cut_off else outcome

    def is_hung(self, training: Stage) -> bool:
        silence_s = self.heartbeat.silence_s(time.monotonic())
        return training.exit_code is None and silence_s > self.recipe.node.stall_after_s

    def tell_stacks(self, training: Stage) -> None:
        """Save where each rank stands; wait for other nodes to look at theirs, once they hear."""
        step, log = self.progress.step, self.paths.log("stacks")
        silence_s = self.heartbeat.silence_s(time.monotonic())
        self.journal.event("training_stalled", step=step, silence_s=silence_s, log=log.name)
        why = f"no sign of life for {silence_s:.0f} s, at step {step}"
        self.journal.say(f"{why}: where the ranks stand is in {log.name}")
        pids = training.rank_pids(uses_torchrun=self.cluster.uses_torchrun)
        text = stacks.ask_stacks(self.paths.folder, pids, why=why)
        with suppress(OSError), log.open("a") as file:  # the disk may be full
            file.write(text)
        others_s = 2 * self.heartbeat_s + stacks.ANSWER_TIMEOUT_S
        deadline = time.monotonic() + (others_s if self.cluster.node_count > 1 else 0.0)
        while self.is_hung(training) and time.monotonic() < deadline and not self.reason_to_stop():
            time.sleep(TICK_S)
            self.journal.tick()

    def find_cause(self, exit_code: int, *, is_hung: bool) -> Death:
        step, missed = self.progress.step, self.progress.out_of_memory
        if is_hung:
            return Death(step=step, cause="stalled")
        if exit_code != OUT_OF_MEMORY and missed is None:
            return Death(step=step)
        size = missed["micro_batch_size"] if missed else None
        return Death(step=step, cause="out_of_memory", micro_batch_size=size)

    def is_last_call(self, asked_at: float) -> bool:
        """Whether what was asked to stop then has had all the time that there is."""
        if self.limits.reached(self.journal.meter, reserve_s=self.reserve.last_call_s):
            return True
        return time.monotonic() - asked_at > STOP_GRACE_S + self.reserve.seconds

    def tell_cut_off(self, outcome: Outcome) -> Outcome:
        saved = committed_checkpoints(self.paths.checkpoints)
        step, last = self.progress.step, saved[-1] if saved else 0
        if step == last:
            return outcome  # it had saved, and was only slow to end
        self.journal.event("training_cut_off", step=step, saved=last)
        return cut_off(outcome, step=step, saved=last)

    def reason_to_stop(self) -> str | None:
        self.reserve = self.reserve.learn(
            boundary_s=self.progress.boundary_s,
            save_s=self.progress.save_s,
            upload_s=self.sync.upload_s,
        )
        # Also where we are told to stop: it may be the wall that tells us.
        reached = self.limits.reached(self.journal.meter, reserve_s=self.reserve.seconds)
        return reached or ("user" if self.stop.is_set else None)

    def start_preparing(self, *, sends: bool) -> Stage:
        """`sends`: what it makes to the store, where it first looks for what is there."""
        arguments = ["--root", str(self.root), "--run-id", self.record.run_id]
        to_store = ["--store", self.store.url, "--send"] if sends else []
        return self.start("prepare", ["training.prepare", *arguments, *to_store])

    def start_training(self, dataset: Path, *, deaths: int) -> Stage:
        self.heartbeat.restart(time.monotonic())
        self.progress.restart()
        folders = str(self.paths.folder), str(dataset)
        program = self.cluster.torchrun(TRAIN + deaths, "training.train", *folders)
        return self.start("train", program, **self.cluster.thread_settings())

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
            finish_s = self.reserve.finish_s(self.limits.left_s(self.journal.meter))
            self.send_rest(timeout_s=finish_s)
        except StorageError as error:
            is_sent = False
            if outcome.state != "failed":  # else the first fault is what the user must hear of
                outcome = Outcome.failed(type(error).__name__, error.message, error.hint)
        status = self.journal.close(outcome, teardown_s=self.machine.teardown_s)
        write_summary(self.paths, self.record, status)
        self.sync.close(status, timeout_s=LAST_WORD_S)
        if is_sent:
            for step in committed_checkpoints(self.paths.checkpoints):
                drop(self.paths.checkpoints, step)  # the store has them
        return outcome

    def send_rest(self, *, timeout_s: float) -> None:
        """Raises StorageError where the store does not take it in that time."""
        self.sync.flush(timeout_s=timeout_s, tick=self.journal.tick)

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
        self.attend(stage, timeout_s=self.recipe.node.stall_after_s)
        if stage.exit_code:
            self.journal.event("sampling_failed", why=f"exit code {stage.exit_code}")

    def attend(self, stage: Stage, *, timeout_s: float) -> str | None:
        """Until it ends by itself; else it was killed for the reason that is returned."""
        started = time.monotonic()
        while stage.exit_code is None:
            time.sleep(TICK_S)
            self.journal.tick()
            is_late = time.monotonic() - started > timeout_s
            if reason := self.reason_to_stop() or (TOO_LONG if is_late else None):
                stage.kill()
                return reason
        return None

    def blame_other_nodes(self, outcome: Outcome) -> Outcome:
        """What failed on another node is why this one came no further."""
        if self.cluster.node_count == 1 or outcome.state == "succeeded":
            return outcome
        failure = take_failure(self.store, self.record.run_id, since=self.machine.since)
        if failure is None:
            return outcome
        where = f"node {failure.node_rank} of {self.cluster.node_count}"
        return Outcome.failed("setup", f"{where}: {failure.message}", failure.hint)
