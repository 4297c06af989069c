"""`gptctl logs`: what the programs of a run wrote."""

import codecs
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Annotated

import typer

from gptctl.backends import LOCAL, Backend
from gptctl.cli.console import talk_console
from gptctl.cli.options import RunArgument, StoreOption
from gptctl.cli.session import Session, open_session
from gptctl.errors import BackendError, NotFoundError, UsageError
from gptctl.log_stream import BEGINNING, follow_log
from gptctl.monitor import logged_stages, read_log
from gptctl.runs import read_record
from training.layout import STAGES

SAID_BY_THE_MACHINE = ("setup", "supervise")
"""Stages that a machine tells of itself before anything of them is in the store."""


def logs(
    run: RunArgument,
    stage: Annotated[
        str | None,
        typer.Option("--stage", help=f"Only that: {', '.join(STAGES)}."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run is over.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Print the log of a run, from its machine's making to its training."""
    if stage is not None and stage not in STAGES:
        raise UsageError(f"there is no stage {stage!r}", hint=f"one of: {', '.join(STAGES)}")
    session = open_session(store)
    run_id, backend = session.find(run)
    record = read_record(session.store, run_id)
    is_rented = record.offer.cloud != LOCAL
    story = (*BEGINNING, record.job) if is_rented else (record.job,)  # a job has a stage's name
    stages = (stage,) if stage else story
    if follow and not session.look(run_id, backend)().is_over:
        texts = [_follow(session, run_id, backend, name, is_rented=is_rented) for name in stages]
    elif len(stages) == 1:
        texts = [_read(session, run_id, backend, stages[0])]
    else:
        texts = _read_story(session, run_id, backend, stages)
    if not sum([_print(text) for text in texts]):
        where = f"its log of stage {stages[0]!r}" if len(stages) == 1 else "its logs"
        talk_console().print(f"{run_id} has written nothing to {where}.")


def _follow(
    session: Session, run_id: str, backend: Backend, stage: str, *, is_rented: bool
) -> Iterator[bytes]:
    has_live = is_rented and stage != "provision"  # which is written from here
    return follow_log(
        session.store,
        run_id,
        stage,
        session.look(run_id, backend),
        open_live=partial(backend.follow_log, run_id, stage) if has_live else None,
        wait=lambda: time.sleep(session.poll_s),
        poll_s=session.poll_s,
    )


def _read_story(
    session: Session, run_id: str, backend: Backend, stages: tuple[str, ...]
) -> list[Iterator[bytes]]:
    """The stages that there is something of. Raises NotFoundError where there is nothing."""
    logged = [stage for stage in stages if stage in logged_stages(session.store, run_id)]
    texts = [_read(session, run_id, backend, stage) for stage in logged]
    if not {"setup", "train"} & {*logged}:
        said = _ask_machine(backend, run_id)
        texts += [iter([said])] if said else []
    if not texts:
        raise NotFoundError(
            f"{run_id} has logged nothing yet", hint=f"`gptctl status {run_id}` says how it is"
        )
    return texts


def _read(session: Session, run_id: str, backend: Backend, stage: str) -> Iterator[bytes]:
    """The log as the store has it; where it never got there, as its machine has it.

    Raises NotFoundError.
    """
    try:
        yield read_log(session.store, run_id, stage)
    except NotFoundError:
        said = _ask_machine(backend, run_id) if stage in SAID_BY_THE_MACHINE else b""
        if not said:
            raise
        yield said


def _ask_machine(backend: Backend, run_id: str) -> bytes:
    try:
        return "".join(backend.logs(run_id)).encode()
    except BackendError:
        return b""  # what the store lacks is the better answer


def _print(chunks: Iterator[bytes]) -> int:
    """Returns how many bytes there were. A character may lie in two chunks."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    size = 0
    for chunk in chunks:
        size += len(chunk)
        sys.stdout.write(decoder.decode(chunk))
        sys.stdout.flush()
    sys.stdout.write(decoder.decode(b"", final=True))
    return size
