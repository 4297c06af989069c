"""A node of a run that is not its head: `python -m training.follower RUN_ID --store URL …`

Torch-free. Prepares the data here too and joins each stage that the head starts, until the
record in the store says that the run is over. Never writes to the store: a fault of this node
reaches the head through the group of the ranks (`node_error.py`).
"""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path

from training import stacks
from training.check import check_node, list_gpus
from training.cluster import CHECK, DEFAULT_PORT, TRAIN, Cluster, make_cluster
from training.errors import (
    ObjectNotFoundError,
    StorageUnavailableError,
    TrainingError,
)
from training.events import Tail
from training.head_news import HeadWatch, News
from training.layout import (
    DATASETS,
    RUN_JSON,
    RunPaths,
    RunRecord,
    decode,
    encode,
    run_key,
    write_atomic,
)
from training.node_error import clear_node_error, make_error, write_node_error
from training.processes import StopFlag, exclusive
from training.sources import dataset_folder_key
from training.stages import Stage
from training.storage import Storage, open_store

TICK_S = 0.2
SILENCE_S = 900.0
"""Nothing runs here, and for so long nothing new has come from the head: it is gone."""
GRACE_S = 20.0
"""For the ranks to save after SIGTERM; SkyPilot kills what is left 30 s after its own."""
CHECK_AGAIN_S = 10.0
LAST_WORDS = 60
"""Lines of a failed stage's log that are repeated in this program's own, which clouds keep."""


class Follower:
    def __init__(
        self, record: RunRecord, root: Path, cluster: Cluster, watch: HeadWatch, stop: StopFlag
    ) -> None:
        self.record = record
        self.root = root
        self.paths = RunPaths(root, record.run_id)
        self.cluster = cluster
        self.watch = watch
        self.stop = stop
        self.ranks: Stage | None = None
        self.life = 0
        self.offset = CHECK
        """Of the stage that the ranks were last started for."""
        self.ended_at: float | None = None
        self.has_told_stacks = False
        """Of a hang that the head still speaks of."""
        self.prepare: Stage | None = None
        self.prepare_life = 0
        self.is_fault_told = False
        self.events = Tail(self.paths.events)
        self.events.read()  # earlier followers' errors are over

    def run(self) -> int:
        """0 when the run is over, or SIGTERM came; 1 when the head is gone."""
        try:
            while not self.stop.is_set:
                news = self.watch.news
                if news is not None and news.is_over:
                    self.say(f"the run is over: {news.state}")
                    return 0
                if news is not None and self.watch.is_alive(news):
                    self.follow(news)
                    self.tell_stacks(news)
                self.notice_ends()
                if not self.is_running and self.watch.silence_s > SILENCE_S:
                    why = self.watch.trouble or "its heartbeat stands still"
                    self.say(f"nothing from the head for {self.watch.silence_s:.0f} s: {why}")
                    return 1
                time.sleep(TICK_S)
            self.let_ranks_save()
            return 0
        finally:
            self.watch.close()
            for stage in (self.ranks, self.prepare):
                if stage is not None:
                    stage.kill()

    @property
    def is_running(self) -> bool:
        return self.ranks is not None and self.ranks.exit_code is None

    def follow(self, news: News) -> None:
        """Have the ranks, and the data, that the head's present stage needs."""
        own_check_passed = (
            (self.life, self.offset) == (news.life, CHECK)
            and self.ranks is not None
            and self.ranks.exit_code == 0
        )
        has_trained = self.life == news.life and self.offset >= TRAIN
        if news.is_checked or own_check_passed or has_trained:
            offset = TRAIN + news.deaths
            self.have_data(news.life)
        else:
            offset = CHECK
        if self.is_running and self.offset == offset:
            self.life = news.life  # the next life of the head may have been joined already
        elif self.is_to_join(news, offset):
            self.join(news.life, offset)

    def is_to_join(self, news: News, offset: int) -> bool:
        if offset >= TRAIN and not news.is_open:
            return False  # it went on without us: it will die of that, and begin again
        if self.ranks is None or (self.life, self.offset) != (news.life, offset):
            return True
        # A check that failed here while the head still checks: it was another head's.
        waited_s = time.monotonic() - (self.ended_at or time.monotonic())
        return offset == CHECK and self.ranks.exit_code != 0 and waited_s > CHECK_AGAIN_S

    def join(self, life: int, offset: int) -> None:
        if self.ranks is not None:
            self.ranks.kill()
        stage, program = "train", ["training.train", str(self.paths.folder), str(self.dataset)]
        if offset == CHECK:
            stage, program = "check", ["training.gpu_check", str(self.paths.folder)]
            clear_node_error(self.paths)
            try:
                check_node(self.record, self.root, ranks=self.cluster.ranks_per_node)
            except TrainingError as error:
                self.tell_head(error)
        self.say(f"joins {stage} of life {life}" + (f", try {offset}" if offset > TRAIN else ""))
        settings = self.cluster.thread_settings()
        self.ranks = self.start(stage, self.cluster.torchrun(offset, *program), **settings)
        self.life, self.offset, self.ended_at = life, offset, None

    def tell_stacks(self, news: News) -> None:
        """Where the ranks stand that hang with the head's: it waits some seconds for this."""
        is_new = news.is_stalled and not self.has_told_stacks
        self.has_told_stacks = news.is_stalled
        if not is_new or (self.life, self.offset) != (news.life, TRAIN + news.deaths):
            return
        if self.ranks is not None and self.is_running:
            pids = self.ranks.rank_pids(uses_torchrun=self.cluster.uses_torchrun)
            self.say(stacks.ask_stacks(self.paths.folder, pids, why="the head says that we hang"))

    def have_data(self, life: int) -> None:
        """Start preparing it, once; again where it failed in an earlier life of the run."""
        if self.prepare is not None and (
            life == self.prepare_life or self.prepare.exit_code in (None, 0)
        ):
            return
        clear_node_error(self.paths)
        self.prepare_life, self.is_fault_told = life, False
        arguments = ["--root", str(self.root), "--run-id", self.record.run_id]
        if "://" in self.record.store:
            arguments += ["--store", self.record.store]
        self.prepare = self.start("prepare", ["training.prepare", *arguments])

    def notice_ends(self) -> None:
        """Say how a stage ended; have the ranks tell the head of data that will not come."""
        if self.ranks is not None and not self.is_running and self.ended_at is None:
            self.ended_at = time.monotonic()
            self.say_end("check" if self.offset == CHECK else "train", self.ranks.exit_code)
        if self.prepare is None or self.prepare.exit_code in (None, 0) or self.is_fault_told:
            return
        self.is_fault_told = True
        self.say_end("prepare", self.prepare.exit_code)
        named = ("error", "prepare")
        errors = [e for e in self.events.read() if (e["event"], e.get("stage")) == named]
        if errors:
            kind, message, hint = (errors[-1][key] for key in ("kind", "message", "hint"))
        else:
            kind, message = "DataError", "preparing the data died without a word"
            hint = "as where the memory is used up"
        self.tell_head(make_error(kind, message, hint))

    def tell_head(self, error: TrainingError) -> None:
        message = f"node {self.cluster.node_rank}: {error.message}"
        write_node_error(self.paths, make_error(type(error).__name__, message, error.hint))

    def let_ranks_save(self) -> None:
        """Pass SIGTERM on: all ranks, the head's too, then agree to save and to end."""
        self.say("told to end")
        deadline = time.monotonic() + GRACE_S
        while self.ranks is not None and self.is_running and time.monotonic() < deadline:
            if self.offset == CHECK:
                return
            self.ranks.ask_to_stop(ranks=self.cluster.uses_torchrun)
            time.sleep(TICK_S)

    @property
    def dataset(self) -> Path:
        return self.root / DATASETS / dataset_folder_key(self.record.recipe.data)

    def start(self, stage: str, program: list[str], **env: str) -> Stage:
        return Stage(program, log=self.paths.log(stage), env=env)

    def say_end(self, stage: str, exit_code: int | None) -> None:
        self.say(f"{stage} ended with exit code {exit_code}")
        if exit_code:
            lines = self.paths.log(stage).read_text(errors="replace").splitlines()
            self.say("its last words:\n" + "\n".join(lines[-LAST_WORDS:]))

    def say(self, line: str) -> None:
        with suppress(OSError):  # whoever listened may be gone
            print(f"{self.record.run_id}, node {self.cluster.node_rank}: {line}", flush=True)


def wait_for_record(store: Storage, run_id: str, stop: StopFlag) -> RunRecord | None:
    """`run.json`, which the head may have yet to write; None where SIGTERM comes first.

    Raises ObjectNotFoundError or StorageUnavailableError where it never came, StorageError.
    """
    deadline = time.monotonic() + SILENCE_S
    pause_s = 0.5
    while not stop.is_set:
        try:
            return decode(store.read(run_key(run_id, RUN_JSON)), RunRecord, name=RUN_JSON)
        except (ObjectNotFoundError, StorageUnavailableError):
            if time.monotonic() > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)
    return None


def follow(options: argparse.Namespace, store: Storage) -> int:
    stop = StopFlag()
    record = wait_for_record(store, options.run_id, stop)
    if record is None:
        return 0
    paths = RunPaths(options.root, record.run_id)
    # Not the run's own lock: whoever holds that owns its record.
    with exclusive(paths.folder / ".follower", timeout_s=GRACE_S):
        write_atomic(paths.record, encode(record))
        gpus = len(list_gpus()) if record.device == "cuda" else 0
        cluster = make_cluster(
            node_rank=options.node_rank,
            node_ips=options.node_ips,
            port=options.port,
            node_count=options.node_count,
            ranks=gpus * options.node_count or record.ranks,
        )
        watch = HeadWatch(store, record.run_id, every_s=1.0 if "://" not in store.url else 5.0)
        watch.start()
        return Follower(record, options.root, cluster, watch, stop).run()


def main(argv: list[str]) -> str | int:
    parser = argparse.ArgumentParser(prog="training.follower", description=__doc__)
    parser.add_argument("run_id")
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", type=Path, required=True, help="this node's working folder")
    parser.add_argument("--node-count", type=int, required=True)
    parser.add_argument("--node-rank", type=int, required=True)
    parser.add_argument("--node-ips", required=True, help="one a line, the head's first")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="first that torchrun takes")
    options = parser.parse_args(argv)
    try:
        return follow(options, open_store(options.store))
    except BlockingIOError:
        return f"error: {options.run_id} is already being followed on this machine"
    except OSError as error:
        return f"error: the node's folder {options.root} cannot be used: {error}"
    except TrainingError as error:
        return error.report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
