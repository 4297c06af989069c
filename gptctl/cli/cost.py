"""`gptctl cost`: what runs have cost."""

import typer

from gptctl.cli.console import data_console, print_json
from gptctl.cli.options import JsonOption, RunArgument, StoreOption
from gptctl.cli.session import open_session
from gptctl.report import cost_of
from gptctl.runs import find_run_id, read_record, read_status

app = typer.Typer(help="What runs have cost.", no_args_is_help=True)


@app.callback()
def _cost() -> None:
    """Keeps `show` a subcommand while it is the only one."""


@app.command()
def show(run: RunArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show what a run has cost, by phase."""
    session = open_session(store)
    record = read_record(session.store, find_run_id(session.store, run))
    cost = cost_of(record, read_status(session.store, record))
    if json:
        print_json(cost)
        return
    from gptctl.cli.render import cost_table

    data_console().print(cost_table(cost))
