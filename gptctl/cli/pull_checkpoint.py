"""`gptctl pull-checkpoint`: a run's model on this machine."""

from enum import StrEnum
from typing import Annotated

import typer

from gptctl.checkpoints import parse_which, pull, pull_exported
from gptctl.cli.console import data_console, print_json, talk_console
from gptctl.cli.options import JsonOption, RunArgument, StoreOption
from gptctl.cli.session import absolute_path, open_session
from gptctl.runs import find_run_id


class Format(StrEnum):
    native = "native"
    hf = "hf"


def pull_checkpoint(
    run: RunArgument,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="A new folder for it.")],
    step: Annotated[str, typer.Option("--step", help="A step, `latest` or `best`.")] = "latest",
    format: Annotated[
        Format, typer.Option("--format", help="native, or hf: for transformers.")
    ] = Format.native,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Download a checkpoint, verified, also while the run goes on."""
    session = open_session(store)
    run_id = find_run_id(session.store, run)
    bring = pull if format is Format.native else pull_exported
    pulled = bring(session.store, run_id, parse_which(step), absolute_path(to))
    for warning in pulled.warnings:
        talk_console().print(f"warning: {warning}")
    if json:
        print_json(pulled)
        return
    from gptctl.cli.render import files_table

    data_console().print(files_table(pulled))
    load = (
        f'GPT2LMHeadModel.from_pretrained("{pulled.path}") loads it'
        if format is Format.hf
        else f"Hear it speak: `{session.command('sample', run_id, '--step', str(pulled.step))}`"
    )
    talk_console().print(load)
