"""`gptctl stop`: end a run, its last checkpoint saved and uploaded."""

import time
from typing import Annotated

import typer

from gptctl.backends import LOCAL, Backend
from gptctl.cli.console import print_json, say
from gptctl.cli.options import JsonOption, RunArgument, StoreOption
from gptctl.cli.session import Session, open_session, utc_now
from gptctl.errors import BackendError
from gptctl.monitor import await_end, follow
from gptctl.runs import RunView, read_record
from gptctl.stopping import stop_rented


def stop(
    run: RunArgument,
    store: StoreOption = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds to wait for one on this machine.")
    ] = 300.0,
    json: JsonOption = False,
) -> None:
    """Stop a run: it saves a checkpoint, uploads it, and can be resumed."""
    session = open_session(store)
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
        except KeyboardInterrupt:
            say(f"\nA machine of {run_id} may still run, and bill. To end it:")
            say(f"  {session.command('stop', run_id)}")
            raise
        view = session.look(run_id, backend)()
        if json:
            print_json(view)
    say(f"{run_id} is {view.state} ({view.reason}) at step {view.step:,} of {view.steps:,}.")
    if view.state != "succeeded":
        say(f"Go on with it: `{session.command('launch --resume', run_id)}`")


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
