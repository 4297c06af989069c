"""`gptctl stop`: end a run, its last checkpoint saved and uploaded."""

import time
from typing import Annotated

import typer

from gptctl.cli.console import print_json, talk_console
from gptctl.cli.options import JsonOption, RunArgument, StoreOption
from gptctl.cli.session import open_session
from gptctl.errors import BackendError
from gptctl.monitor import await_end, follow


def stop(
    run: RunArgument,
    store: StoreOption = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds to wait for it to end.")
    ] = 300.0,
    json: JsonOption = False,
) -> None:
    """Stop a run: it saves a checkpoint, uploads it, and can be resumed."""
    session = open_session(store)
    run_id, backend = session.find(run)
    look = session.look(run_id, backend)
    view = look()
    runs_here = view.backend == "running"
    if runs_here:
        talk_console().print(f"Stopping {run_id}: it saves a checkpoint and uploads it ...")
        backend.stop(run_id)
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
    talk_console().print(
        f"{run_id} is {view.state} ({view.reason}) at step {view.step:,} of {view.steps:,}."
    )
    if view.state != "succeeded":
        talk_console().print(f"Go on with it: `{session.command('launch --resume', run_id)}`")
