"""`gptctl publish`: a run's model on the Hub, with a card that tells how it came about."""

from typing import TYPE_CHECKING, Annotated

import typer

from gptctl.cli.options import JsonOption, RunArgument, StoreOption

if TYPE_CHECKING:
    from rich.table import Table

    from gptctl.publishing import Publication

EXIT_DECLINED = 3
"""As of a plan that the user refused."""


def publish(
    run: RunArgument,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A model repository.")],
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="STEP", help="A step, `latest` or `best`."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Where it is made: for you alone.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, and its card.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Put a run's model on the Hub, as transformers loads it, with a card of its facts."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from gptctl.checkpoints import pull_cached
    from gptctl.cli.console import data_console, print_json, say, warn
    from gptctl.cli.session import open_session
    from gptctl.model_hub import look_at, send
    from gptctl.publishing import (
        as_judged,
        check_visibility,
        choose_checkpoint,
        prepare_publication,
    )
    from gptctl.runs import read_record, read_status

    if not yes and not dry_run:
        _check_can_ask()  # before anything is downloaded
    session = open_session(store)
    run_id, backend = session.find(run)
    view = session.look(run_id, backend)()
    which = choose_checkpoint(view, checkpoint)
    target = look_at(repo)
    check_visibility(target, private=private)
    pulled = pull_cached(session.store, run_id, which, session.cache)
    record = read_record(session.store, run_id)
    status = as_judged(read_status(session.store, record), view)
    with TemporaryDirectory(prefix="gptctl-publish-") as parent:
        folder = Path(parent) / "model"
        publication = prepare_publication(
            session.store, record, status, pulled, target, folder, private=private
        )
        for warning in publication.warnings:
            warn(warning)
        if not json:
            say(_describe(publication))
            data_console().print(_table(publication))
        if dry_run:
            if json:
                print_json(publication)
            else:
                data_console().print(publication.card)
            say("Nothing was sent.")
            return
        # A mere Enter is No: others see it at once.
        if not yes and not typer.confirm("Publish it?", err=True):
            say("Nothing was sent.")
            raise typer.Exit(EXIT_DECLINED)
        commit_url = send(
            target, folder, private=private, message=f"Step {pulled.step} of {run_id}, by gptctl"
        )
    if json:
        print_json({"publication": publication, "commit_url": commit_url})
    say(f"{publication.url} has it: {commit_url}")
    say(f'AutoModelForCausalLM.from_pretrained("{repo}") loads it')


def _table(publication: "Publication") -> "Table":
    from gptctl.cli.render import new_table

    table = new_table("file", "bytes", "there now")
    for file in publication.files:
        replaced = "is replaced" if file.name in publication.replaced else ""
        table.add_row(file.name, f"{file.size_bytes:,}", replaced)
    for name in publication.kept:
        table.add_row(name, "", "stays")
    return table


def _describe(publication: "Publication") -> str:
    is_there = "new" if publication.is_new else "there already"
    seen = "private" if publication.private else "public"
    return (
        f"Step {publication.step:,} of {publication.run_id} for {publication.url} "
        f"({is_there}, {seen}):"
    )


def _check_can_ask() -> None:
    """Raises UsageError without a terminal."""
    from gptctl.cli.console import is_terminal
    from gptctl.errors import UsageError

    if not is_terminal():
        raise UsageError(
            "it asks before it publishes, and there is no terminal to ask on",
            hint="`--yes` publishes without a question, `--dry-run` only shows what would be sent",
        )
