"""Takes hold of a run on this node and lives one life of it: `python -m training.supervise`.

Torch-free. The same program runs for `--cloud local` and on the head node of a cloud run, where
`bootstrap.sh` starts it and tells it of the machine. A node that could not be set up has it
record that.
"""

import argparse
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from training.cluster import DEFAULT_PORT
from training.data_life import DataLife
from training.errors import ObjectExistsError, ObjectNotFoundError, TrainingError
from training.layout import (
    RUN_JSON,
    STATUS_JSON,
    RunPaths,
    RunRecord,
    State,
    Status,
    decode,
    run_key,
    write_atomic,
)
from training.life import Life
from training.machine import describe_machine, take_limits, take_offer
from training.outcome import Outcome
from training.processes import StopFlag, exclusive
from training.setup import SetupFailure, report_failure
from training.storage import Storage, open_store
from training.sync import Sync

SAVE_S = 60.0
EXIT_IS_ALIVE = 75
"""`bootstrap.sh` must not end a machine on which another one keeps the run."""


def supervise(options: argparse.Namespace, store: Storage) -> int:
    """Take hold of the run, bring back what earlier lives left, live one more. An exit code.

    A run that has ended is let be: a machine that comes back must not begin it anew.
    """
    paths = RunPaths(options.root, options.run_id)
    stop = StopFlag()  # whoever sees the lock may ask us to stop
    # Whoever asks whether the run is alive holds the lock for a moment.
    with exclusive(paths.lock, timeout_s=1):
        record = take_record(options, store, paths)
        if (ended := read_ending(store, record.run_id)) is not None:
            print(f"{record.run_id} has {ended} already: nothing is left to do", flush=True)
            return exit_code(ended)
        here = read_status(paths)  # of an earlier life on this very machine
        Sync(store, paths, record.run_id, keep=1, every_s=1).fetch_records()
        previous = read_status(paths)
        offer = take_offer(options)
        limits = take_limits(options, record, offer)
        since = here.updated_at if here else record.created_at
        failed = failure_told(options)
        if failed is not None:
            await_ranks(paths)
        machine = describe_machine(options, record, offer, since=since)
        kind = DataLife if record.job == "prepare" else Life
        life = kind(record, options.root, store, limits, previous, stop, machine)
        return exit_code(life.run(failed=failed).state)


def take_record(options: argparse.Namespace, store: Storage, paths: RunPaths) -> RunRecord:
    """`run.json` from the store; where it has none, from the environment, and then into it."""
    key = run_key(options.run_id, RUN_JSON)
    try:
        data = store.read(key)
        record = decode(data, RunRecord, name=RUN_JSON)
    except ObjectNotFoundError:
        if not options.record_env:
            raise
        data = os.environ.get("RUN_RECORD", "").encode()
        record = decode(data, RunRecord, name="RUN_RECORD")
        with suppress(ObjectExistsError):
            store.write(key, data, if_absent=True)
    write_atomic(paths.record, data)
    return record


def read_ending(store: Storage, run_id: str) -> State | None:
    """How the run has ended, as far as the store tells; None where it has not."""
    with suppress(ObjectNotFoundError):
        status = decode(store.read(run_key(run_id, STATUS_JSON)), Status, name=STATUS_JSON)
        return status.state if status.is_over else None
    return None


def read_status(paths: RunPaths) -> Status | None:
    if not paths.status.exists():
        return None
    return decode(paths.status.read_bytes(), Status, name=STATUS_JSON)


def failure_told(options: argparse.Namespace) -> Outcome | None:
    if options.setup_error is None:
        return None
    return Outcome.failed(options.setup_reason, options.setup_error, options.setup_hint)


def await_ranks(paths: RunPaths) -> None:
    """Let ranks whose supervisor was killed finish their save: nobody comes after us to send it."""
    with suppress(BlockingIOError), exclusive(paths.folder / ".training", timeout_s=SAVE_S):
        pass


def exit_code(state: State) -> int:
    return 1 if state == "failed" else 0


def tell_head(options: argparse.Namespace, store: Storage) -> int:
    """Leave word of a node that could not be set up for the one that owns the record."""
    failure = SetupFailure(
        node_rank=options.node_rank,
        message=options.setup_error,
        hint=options.setup_hint,
        at=datetime.now(UTC),
    )
    log = RunPaths(options.root, options.run_id).log(f"setup-{options.node_rank}")
    report_failure(store, options.run_id, failure, log)
    return 1


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="training.supervise", description=__doc__)
    parser.add_argument("run_id")
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", type=Path, required=True, help="the node's working folder")
    limits = parser.add_argument_group("limits, where they are not the record's")
    limits.add_argument("--budget-usd", type=Decimal)
    limits.add_argument("--max-hours", type=float)
    limits.add_argument("--price-per-hour", type=Decimal, help="of all machines together")
    cloud = parser.add_argument_group("on a machine that was rented")
    cloud.add_argument(
        "--record-env", action="store_true", help="RUN_RECORD stands in for a missing run.json"
    )
    cloud.add_argument("--offers", help="JSON: the machines that this may be, preferred first")
    cloud.add_argument("--place", default="{}", help="JSON: the cloud and the region")
    cloud.add_argument("--node-count", type=int, default=1)
    cloud.add_argument("--node-rank", type=int, default=0)
    cloud.add_argument("--node-ips", default="", help="one a line, the head's first")
    cloud.add_argument("--port", type=int, default=DEFAULT_PORT, help="first that torchrun takes")
    cloud.add_argument("--go-down-in", help="program that ends the machine in so many MINUTES")
    cloud.add_argument(
        "--teardown-s", type=float, default=0.0, help="billed between our end and the machine's"
    )
    cloud.add_argument("--setup-file", type=Path, help="when each phase of the set-up began")
    cloud.add_argument("--setup-error", help="record that the run failed so, and do no more")
    cloud.add_argument("--setup-hint", default="")
    cloud.add_argument("--setup-reason", default="setup")
    return parser.parse_args(argv)


def main(argv: list[str]) -> str | int:
    options = parse_arguments(argv)
    try:
        store = open_store(options.store)
        if options.setup_error is not None and options.node_rank:
            return tell_head(options, store)
        return supervise(options, store)
    except BlockingIOError:
        print(f"error: {options.run_id} is already being supervised on this machine", flush=True)
        return EXIT_IS_ALIVE
    except OSError as error:
        return f"error: the node's folder {options.root} cannot be used: {error}"
    except TrainingError as error:
        return error.report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
