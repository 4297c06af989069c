"""`gptctl logs`: what the programs of a run wrote."""

import codecs
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from gptctl.backends import Backend
from gptctl.cli.console import talk_console
from gptctl.cli.options import RunArgument, StoreOption
from gptctl.cli.session import Session, open_session
from gptctl.errors import NotFoundError, UsageError
from gptctl.monitor import follow as follow_run
from gptctl.monitor import follow_log, read_log
from training.layout import LOGS, STAGES, run_key


def logs(
    run: RunArgument,
    stage: Annotated[
        str, typer.Option("--stage", help="supervise, prepare, train or sample.")
    ] = "train",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run is over.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Print the log of a stage of a run."""
    if stage not in STAGES:
        raise UsageError(f"there is no stage {stage!r}", hint=f"one of: {', '.join(STAGES)}")
    session = open_session(store)
    run_id, backend = session.find(run)
    views = follow_run(session.look(run_id, backend), wait=lambda: time.sleep(session.poll_s))
    if follow and not next(views).is_over:
        chunks = follow_log(session.store, run_key(run_id, LOGS, f"{stage}.log"), views)
    else:
        chunks = _read(session, run_id, backend, stage)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    is_empty = True
    for chunk in chunks:
        is_empty = is_empty and not chunk
        sys.stdout.write(decoder.decode(chunk))
        sys.stdout.flush()
    if is_empty:
        talk_console().print(f"{run_id} has written nothing to its log of stage {stage!r}.")


def _read(session: Session, run_id: str, backend: Backend, stage: str) -> Iterator[bytes]:
    """The log as the store has it; the supervisor's, where it never got there, as its machine does.

    Raises NotFoundError.
    """
    try:
        yield read_log(session.store, run_id, stage)
    except NotFoundError:
        lines = "".join(backend.logs(run_id)) if stage == "supervise" else ""
        if not lines:
            raise
        yield lines.encode()
