"""`gptctl eval`: how good a run's model is, measured on this machine."""

import sys
from typing import Annotated

import typer

from gptctl.cli.options import JsonOption, RunArgument, StoreOption

app = typer.Typer(help="Score a run's model, on this machine.", no_args_is_help=True)


@app.callback()
def _keep_subcommands() -> None:
    """Score a run's model, on this machine."""


@app.command()
def hellaswag(
    run: RunArgument,
    step: Annotated[str, typer.Option("--step", help="A step, `latest` or `best`.")] = "latest",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many examples, the first ones.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Score a checkpoint on HellaSwag: 10,042 questions of four answers, of which it picks one."""
    from gptctl.checkpoints import parse_which, pull_cached
    from gptctl.cli.console import print_json, say, talk_console, warn
    from gptctl.cli.counting import open_counter
    from gptctl.cli.render import describe_hellaswag
    from gptctl.cli.session import open_session
    from gptctl.runs import find_run_id, read_record
    from gptctl.scoring import score_hellaswag
    from training.layout import DATASETS

    session = open_session(store)
    run_id = find_run_id(session.store, run)
    pulled = pull_cached(session.store, run_id, parse_which(step), session.cache)
    for warning in pulled.warnings:
        warn(warning)
    say(f"{run_id}, step {pulled.step:,}:")
    datasets = session.settings.node_root.absolute() / DATASETS
    with open_counter(talk_console(), "batches") as show:
        found = score_hellaswag(pulled, datasets, limit=limit, show=show)
    if json:
        print_json(found)
        return
    reference = read_record(session.store, run_id).recipe.reference
    told = describe_hellaswag(
        acc=found.acc, acc_norm=found.acc_norm, reference=reference.hellaswag if reference else None
    )
    cut = f", {found.cut:,} of them cut to the model's context" if found.cut else ""
    sys.stdout.write(f"HellaSwag: {told}; {found.count:,} examples{cut}\n")
    if found.cut or limit:
        say("Published scores are of all examples, none of them cut: this one compares with none.")
