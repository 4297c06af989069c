"""Stay with a run until it is over, or leave it alone; then say how it ended."""

import time
from typing import NoReturn

import typer

from gptctl.backends import Backend
from gptctl.cli.console import data_console, print_json, say, talk_console, warn
from gptctl.cli.live import open_progress
from gptctl.cli.render import summary
from gptctl.cli.session import Session
from gptctl.errors import EXIT_INTERRUPTED, BackendError, RunFailedError
from gptctl.monitor import Look, exit_code_of, follow
from gptctl.report import cost_of, read_curves, read_samples
from gptctl.runs import RunView, read_record, read_status


def follow_to_end(
    session: Session, run_id: str, backend: Backend, *, detach: bool, json: bool
) -> None:
    """Raises typer.Exit with the code of the run's end, or RunFailedError."""
    look = session.look(run_id, backend)
    if detach:
        view = look()
        if json:
            print_json(view)
        _say_how_to_come_back(session, run_id)
        return
    console = talk_console()
    try:
        with open_progress(console, lambda: read_curves(session.store, run_id)) as progress:
            for view in follow(look, wait=lambda: time.sleep(session.poll_s)):
                progress.show(view)
                if view.is_over and view.is_billing:
                    break
    except KeyboardInterrupt:
        console.print(f"\n{run_id} goes on without us.")
        _say_how_to_come_back(session, run_id)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if view.is_billing:
        view = _give_back(session, run_id, backend, look)
    session.learn(run_id)
    if json:
        print_json(view)
    else:
        _show_summary(session, view)
    _exit(view)


def _give_back(session: Session, run_id: str, backend: Backend, look: Look) -> RunView:
    """End the machine of a run that is over now, rather than when it does so by itself."""
    say(f"{run_id} is over: giving its machine back ...")
    try:
        backend.stop(run_id, tell=say)
        session.correct_bill(run_id)
    except KeyboardInterrupt:
        say("\nIts machine goes down by itself within two minutes. To make sure:")
        say(f"  {session.command('stop', run_id)}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BackendError as error:
        warn(f"{error.message}\n  hint: {error.hint}")
    return look()


def _show_summary(session: Session, view: RunView) -> None:
    record = read_record(session.store, view.run_id)
    status = read_status(session.store, record)
    data_console().print(
        summary(
            view,
            curves=read_curves(session.store, view.run_id),
            samples=read_samples(session.store, view.run_id),
            cost=cost_of(record, status),
            record=record,
            command=session.command,
        )
    )


def _exit(view: RunView) -> NoReturn:
    if view.state == "failed":
        raise RunFailedError(
            f"{view.run_id} failed ({view.reason}): {view.message or 'no word of why'}",
            hint=view.hint or f"`gptctl logs {view.run_id} --stage supervise`",
        )
    if view.state == "stopped" and view.message:
        talk_console().print(f"{view.run_id} was stopped: {view.message}.")
    raise typer.Exit(exit_code_of(view))


def _say_how_to_come_back(session: Session, run_id: str) -> None:
    for words in (("status", run_id), ("logs", run_id, "--follow"), ("stop", run_id)):
        talk_console().print(f"  {session.command(*words)}", soft_wrap=True)
