"""The last minutes of a machine that is about to end: `python -m training.rescue RUN_ID`.

Called by what ends the machine, without secrets in its environment. Asks the supervisor to end
its run, and waits; for one that hangs it does the least itself: has training save, sends what
is committed to the store, and writes down how the run ended.
"""

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import psutil

from training.errors import TrainingError
from training.events import append_event
from training.layout import (
    GOING_DOWN,
    RUN_JSON,
    STATUS_JSON,
    RunPaths,
    RunRecord,
    Status,
    decode,
    encode,
    write_atomic,
)
from training.meter import Limits, Meter
from training.outcome import Outcome, pass_on
from training.processes import exclusive
from training.progress import Heartbeat, Progress
from training.storage import open_store
from training.sync import Sync

HUNG_AFTER_S = 45.0
"""A supervisor that was asked to end and then writes no status for so long does not run."""
SAVE_TIMEOUT_S = 45.0
SEND_TIMEOUT_S = 60.0
"""With the two above inside the 180 s that the machine gives its last programs."""
NEARLY_S = 120.0
"""A limit that is no farther away is why the machine ends: its wall is that exact."""
POLL_S = 0.1
SECRETS = "AWS_"
"""How the variables begin by which the supervisor may use the store."""


class Holder:
    """The supervisor, seen from outside, and what only its process knows."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def ask_to_end(self) -> None:
        self._process.terminate()

    def end_ranks(self) -> None:
        """Have training save and end; each rank is asked once, and torchrun never.

        Asked twice a rank dies of it on its way out, and torchrun would kill them all.
        """
        ranks = [child for child in self._process.children(recursive=True) if _is_rank(child)]
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.terminate()
        _wait_until(lambda: not any(map(_is_alive, ranks)), timeout_s=SAVE_TIMEOUT_S)

    def read_orders(self) -> tuple[dict[str, str], dict[str, str]]:
        """(options of its command line, environment by which it may use the store)."""
        words = self._process.cmdline()
        options = {k: v for k, v in pairwise(words) if k.startswith("--")}
        environment = self._process.environ()
        return options, {k: v for k, v in environment.items() if k.startswith(SECRETS)}

    def kill(self) -> None:
        self._process.kill()


def rescue(run_id: str, root: Path, *, hung_after_s: float = HUNG_AFTER_S) -> None:
    """Raises TrainingError where the run could not be brought to its end."""
    paths = RunPaths(root, run_id)
    if not is_held(paths.lock):
        print(f"{run_id} is not alive here: nothing is to be saved", flush=True)
        return
    try:
        holder = Holder(int(paths.lock.read_text()))
        print(f"asking the supervisor of {run_id} to end", flush=True)
        holder.ask_to_end()
        if await_end(paths, hung_after_s):
            print("it has ended", flush=True)
            return
        print(
            f"it gave no sign of life for {hung_after_s:.0f} s: ending the run for it", flush=True
        )
        holder.end_ranks()
        options, credentials = holder.read_orders()
        holder.kill()
    except psutil.NoSuchProcess:
        print("it has ended", flush=True)
        return
    os.environ.update(credentials)
    with exclusive(paths.lock, timeout_s=10):  # a new supervisor is turned away by that
        end_run(paths, options)


def await_end(paths: RunPaths, hung_after_s: float) -> bool:
    """Whether the supervisor let go of the run; False where it does not even write its status.

    One that does is at work, perhaps on a long upload: nobody would be faster.
    """
    heartbeat = Heartbeat(paths.status)
    while is_held(paths.lock):
        if heartbeat.silence_s(time.monotonic()) > hung_after_s:
            return False
        time.sleep(POLL_S)
    return True


def end_run(paths: RunPaths, options: dict[str, str]) -> None:
    """Send all that is there, and how the run ended, as its supervisor would have."""
    record = decode(paths.record.read_bytes(), RunRecord, name=RUN_JSON)
    last = decode(paths.status.read_bytes(), Status, name=STATUS_JSON)
    now = datetime.now(UTC)
    if last.is_over:
        status = last  # it hung after its last word
    else:
        status = close_status(
            last,
            Progress(paths),
            silent_s=(now - last.updated_at).total_seconds(),
            teardown_s=float(options.get("--teardown-s", 0)),
            recovers=record.recover,
        )
        append_event(paths.events, "run_rescued", state=status.state, reason=status.reason)
        write_atomic(paths.status, encode(status))
    store = open_store(options["--store"])
    keep = record.recipe.checkpoint.keep
    sync = Sync(store, paths, record.run_id, keep=keep, every_s=1)
    try:
        sync.flush(timeout_s=SEND_TIMEOUT_S, tick=lambda: None)
    finally:
        sync.close(encode(status), timeout_s=10)
    print(f"{record.run_id}: {status.state} ({status.reason})", flush=True)


def close_status(
    last: Status,
    progress: Progress,
    *,
    silent_s: float,
    teardown_s: float,
    recovers: bool = False,
) -> Status:
    """`last`, what training did since, and the time that nobody billed."""
    price = last.price_per_hour
    nodes = last.bill[-1].nodes if last.bill else 1
    meter = Meter(last.bill, life=last.life, price_per_hour=price, nodes=nodes)
    meter.add("hung", max(0.0, silent_s))
    meter.add(GOING_DOWN, teardown_s)
    limits = Limits(budget_usd=last.budget_usd, max_hours=last.max_hours, price_per_hour=price)
    reason = limits.reached(meter, reserve_s=NEARLY_S) or "user"
    outcome = pass_on(Outcome.stopped(reason), recovers=recovers)
    return progress.status(
        run_id=last.run_id,
        state=outcome.state,
        phase=outcome.state,
        life=last.life,
        steps=last.steps,
        bill=meter.bill,
        budget_usd=last.budget_usd,
        max_hours=last.max_hours,
        price_per_hour=price,
        offer=last.offer,
        reason=outcome.reason,
        message=f"{outcome.message}; its supervisor hung, so the machine ended the run",
        hint=f"`gptctl launch --resume {last.run_id}` goes on from what it sent last",
    )


def is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _is_rank(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "training.train" in words and "training.ranks" not in words


def _is_alive(process: psutil.Process) -> bool:
    """A process that ended stays as a zombie while its parent hangs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(is_so: Callable[[], bool], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(POLL_S)


def main(argv: list[str]) -> str | None:
    parser = argparse.ArgumentParser(prog="training.rescue", description=__doc__)
    parser.add_argument("run_id")
    parser.add_argument("--root", type=Path, required=True, help="the node's working folder")
    parser.add_argument("--hung-after-s", type=float, default=HUNG_AFTER_S)
    options = parser.parse_args(argv)
    try:
        rescue(options.run_id, options.root.expanduser(), hung_after_s=options.hung_after_s)
    except (TrainingError, OSError) as error:
        return f"error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
