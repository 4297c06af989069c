"""`gptctl status`: how runs are."""

from typing import Annotated

import typer

from gptctl.cli.console import data_console, print_json, talk_console
from gptctl.cli.options import JsonOption, StoreOption
from gptctl.cli.session import open_session
from gptctl.leaks import find_leaks


def status(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="One run; all of them without it.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show how runs are: state, step, loss, spend."""
    session = open_session(store)
    if run is not None:
        view = session.look(*session.find(run))()
        if json:
            print_json(view)
            return
        from gptctl.cli.render import run_details

        data_console().print(run_details(view))
        if view.is_over:
            session.learn(view.run_id)
        return
    views, warnings = session.views()
    for warning in warnings:
        talk_console().print(f"warning: {warning}")
    leaks = find_leaks(views, session.launched.read_all(), store=session.store.url)
    for leak in leaks:
        talk_console().print(f"LEAK: {leak.run_id}: {leak.why}", soft_wrap=True)
    if leaks:
        talk_console().print(f"`{session.command('stop', '--all-leaked')}` ends what may bill.")
    if json:
        print_json(views)
    elif views:
        from gptctl.cli.render import runs_table

        data_console().print(runs_table(views))
        talk_console().print(f"One of them: `{session.command('status', views[0].run_id)}`")
    else:
        talk_console().print(
            f"There are no runs in {session.store.url}. "
            f"A first one: `{session.command('launch', 'demo')}`"
        )
