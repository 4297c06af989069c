"""`gptctl ssh`: a shell, or a command, on a run's machine."""

import os
from typing import Annotated

import typer

from gptctl.cli.options import RunArgument, StoreOption
from gptctl.cli.session import open_session
from gptctl.condition import is_managed
from gptctl.errors import BackendError


def ssh(
    run: RunArgument,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="Instead of a shell.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Open a shell on a run's machine, or run a command there."""
    session = open_session(store)
    record, backend = session.rent(run)
    run_id = record.run_id
    if is_managed(record):
        raise BackendError(
            f"{run_id} is a managed job: SkyPilot alone reaches its machine, which may change",
            hint=f"`gptctl logs {run_id} --follow` and `gptctl open {run_id}` show what it does",
        )
    if backend.state(run_id) != "running":
        raise BackendError(
            f"{run_id} has no machine that the SkyPilot here knows of (any more)",
            hint=f"what it left is in its store: `{session.command('logs', run_id)}`",
        )
    words = backend.ssh_command(run_id, *(command or ()))
    if words is None:
        raise BackendError(
            f"the machine of {run_id} cannot be reached by ssh yet",
            hint=f"it is being made: `{session.command('logs', run_id, '--follow')}`",
        )
    try:
        os.execvp(words[0], words)  # noqa: S606 - the user's own command, by no shell of ours
    except FileNotFoundError as error:
        raise BackendError(
            "there is no `ssh` on this machine", hint="install OpenSSH's client"
        ) from error
