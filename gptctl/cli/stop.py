"""`gptctl stop`: end a run, its last checkpoint saved and uploaded."""

import time
from typing import Annotated

import typer

from gptctl.backends import LOCAL, Backend
from gptctl.cli.console import print_json, say, warn
from gptctl.cli.options import JsonOption, StoreOption
from gptctl.cli.session import Session, open_session, utc_now
from gptctl.errors import BackendError, UsageError
from gptctl.leaks import find_leaks, stop_leaked
from gptctl.monitor import await_end, follow
from gptctl.runs import RunView, read_record
from gptctl.stopping import stop_rented
from training.storage import open_store


def stop(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run, or how its id begins.")
    ] = None,
    store: StoreOption = None,
    all_leaked: Annotated[
        bool, typer.Option("--all-leaked", help="Every machine that may bill for nothing.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds to wait for one on this machine.")
    ] = 300.0,
    json: JsonOption = False,
) -> None:
    """Stop a run: it saves a checkpoint, uploads it, and can be resumed."""
    if (run is None) != all_leaked:
        raise UsageError("stop what?", hint="a run of `gptctl status`, or `--all-leaked`")
    session = open_session(store)
    if run is None:
        _stop_leaked(session, json=json)
        return
    run_id, backend = session.find(run)
    record = read_record(session.store, run_id)
    if record.offer.cloud == LOCAL:
        view = _stop_here(session, run_id, backend, wait_s, json=json)
    else:
        try:
            stop_rented(
                record,
                store=session.store,
                backend=backend,
                launched=session.launched,
                clock=utc_now,
                tell=say,
            )
            session.correct_bill(run_id)
        except KeyboardInterrupt:
            say(f"\nA machine of {run_id} may still run, and bill. To end it:")
            say(f"  {session.command('stop', run_id)}")
            raise
        view = session.look(run_id, backend)()
        if json:
            print_json(view)
    from gptctl.cli.render import describe_end

    say(f"{run_id} is {describe_end(view)}.")
    if view.state != "succeeded":
        say(f"Go on with it: `{session.command('launch --resume', run_id)}`")


def _stop_leaked(session: Session, *, json: bool) -> None:
    views, warnings = session.views()
    for warning in warnings:
        warn(warning)
    leaks = find_leaks(views, session.launched.read_all(), store=session.store.url)
    for leak in leaks:
        say(f"{leak.run_id}: {leak.why}")
    ended = stop_leaked(
        leaks,
        open_store=open_store,
        backend_of=session.backend_or_none,
        launched=session.launched,
        clock=utc_now,
        tell=say,
    )
    if json:
        print_json({"leaks": leaks, "ended": ended})
    elif leaks:
        say(f"Ended: {', '.join(ended) or 'none'}.")
    else:
        say("Nothing that is known here bills for nothing.")


def _stop_here(
    session: Session, run_id: str, backend: Backend, wait_s: float, *, json: bool
) -> RunView:
    """Raises BackendError where it does not run here, or has not ended in time."""
    look = session.look(run_id, backend)
    view = look()
    runs_here = view.backend == "running"
    if runs_here:
        say(f"Stopping {run_id}: it saves a checkpoint and uploads it ...")
        backend.stop(run_id, tell=say)
        deadline = time.monotonic() + wait_s
        view = await_end(
            follow(look, wait=lambda: time.sleep(0.2)), lambda: time.monotonic() > deadline
        )
    if json:
        print_json(view)
    if not (runs_here or view.is_over):
        raise BackendError(
            f"{run_id} is {view.state}, and nothing of it runs on this machine",
            hint="stop it where it was launched",
        )
    if not view.is_over or view.backend == "running":
        raise BackendError(
            f"{run_id} was told to stop and is still {view.state} after {wait_s:.0f} s",
            hint=f"it goes on ending by itself: `gptctl status {run_id}`",
        )
    return view
