"""`gptctl data`: token shards, in the store and on this machine."""

import sys
import time
from typing import Annotated

import typer

from gptctl.cli.options import JsonOption, StoreOption

RENT = "On a rented machine"

app = typer.Typer(help="Data sets: list, prepare, verify, remove.", no_args_is_help=True)


@app.command("list")
def list_datasets(store: StoreOption = None, json: JsonOption = False) -> None:
    """List the data sets in the store, which runs fetch instead of making them."""
    from gptctl.cli.console import data_console, print_json, say
    from gptctl.cli.data_view import datasets_table
    from gptctl.cli.session import open_session
    from gptctl.datasets import list_rows

    session = open_session(store)
    rows = list_rows(session.store)
    if json:
        print_json(rows)
    elif not rows:
        say(f"No data set is in {session.store.url} yet: `gptctl data prepare RECIPE` makes one.")
    else:
        data_console().print(datasets_table(rows))


@app.command()
def prepare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or a path to a TOML.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH", help="Your own text, or token files.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="DIR", help="Shards go to DIR/datasets/KEY; else where runs here look."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe."),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--all", help="All of the source, not only what the recipe trains on.")
    ] = False,
    cloud: Annotated[
        str | None,
        typer.Option(
            "--cloud", metavar="CLOUDS", help="On a rented CPU machine there.", rich_help_panel=RENT
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region", metavar="REGION", help="There and nowhere else.", rich_help_panel=RENT
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="USD",
            help="Stop and tear down before it costs more.",
            rich_help_panel=RENT,
        ),
    ] = None,
    max_hours: Annotated[
        float | None,
        typer.Option(
            "--max-hours",
            metavar="HOURS",
            help="The same, before it takes longer.",
            rich_help_panel=RENT,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the job.", rich_help_panel=RENT)
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask.", rich_help_panel=RENT)
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Start it and leave; `gptctl status` finds it.",
            rich_help_panel=RENT,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, no more.", rich_help_panel=RENT)
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write the shards of a recipe's data set here, and send them to the store.

    Shards that the store has are fetched. Interrupted, it goes on at the last finished shard.
    """
    from gptctl import data_programs
    from gptctl.cli.console import print_json, say, talk_console
    from gptctl.cli.data_view import open_progress
    from gptctl.cli.render import counted, duration
    from gptctl.cli.session import absolute_path, open_session
    from gptctl.datasets import choose_data
    from gptctl.errors import UsageError

    session = open_session(store)
    path = absolute_path(data) if data else None
    if cloud is not None:
        from gptctl.cli.data_cloud import prepare_on_cloud
        from gptctl.order import Order
        from gptctl.plan import parse_limits

        if to is not None:
            raise UsageError("--to is a folder on this machine, and --cloud another machine")
        order = Order(
            recipe=recipe,
            overrides=tuple(overrides or ()),
            data=path,
            cloud=cloud,
            region=region,
            limits=parse_limits(budget=budget, max_hours=max_hours, price_per_hour=None),
            job="prepare",
            whole=whole,
        )
        prepare_on_cloud(session, order, name, yes=yes, detach=detach, dry_run=dry_run, json=json)
        return
    if region or budget or max_hours or name or yes or detach or dry_run:
        raise UsageError(
            "--region, --budget, --max-hours, --name, --yes, --detach and --dry-run are about a "
            "rented machine",
            hint="`--cloud lambda` rents one",
        )
    chosen = choose_data(recipe, tuple(overrides or ()), path)
    with open_progress(talk_console()) as show:
        done = data_programs.prepare(
            chosen,
            absolute_path(to) if to else session.settings.node_root.absolute(),
            store=session.store.url,
            clock=time.monotonic,
            show=show,
            tell=say,
            whole=whole,
        )
    if json:
        print_json(done)
        return
    sys.stdout.write(f"{done.folder}\n")
    say(
        f"{done.tokens:,} tokens in {counted(done.shards, 'shard')}: {done.made:,} made and "
        f"{done.fetched:,} fetched in {duration(done.seconds)}, {done.sent:,} sent to {done.store}"
    )
    if not done.complete:
        say(f"That is what {recipe} trains on; `--all` makes the rest.")
    say(f"next: `gptctl data verify {done.folder}`, `{session.command('data', 'list')}`")


@app.command()
def verify(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder of shards, or a file.")],
    json: JsonOption = False,
) -> None:
    """Check shards against what was written down, and token files that you bring."""
    from gptctl import data_programs
    from gptctl.cli.console import print_json, say, warn
    from gptctl.cli.session import absolute_path
    from gptctl.errors import RunFailedError

    def show(file: data_programs.CheckedFile) -> None:
        if not json:
            sys.stdout.write(f"{file.name}: {file.fault or f'{file.tokens:,} tokens, good'}\n")
            sys.stdout.flush()

    checked = data_programs.verify(absolute_path(path), show=show)
    if json:
        print_json(checked)
    for name in checked.extra:
        warn(f"{name} belongs to no data set here: nothing reads it")
    if checked.complete is False:
        warn("these are the shards so far: `gptctl data prepare` makes more where more are needed")
    if checked.faults:
        raise RunFailedError(
            f"{len(checked.faults)} of {len(checked.files)} files in {checked.path} are not good",
            hint="preparing the data again makes those anew, and keeps the others",
        )
    say(f"All of {checked.path} is good.")


@app.command()
def remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Of `gptctl data list`.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Delete a data set from the store; runs that want it make it anew."""
    from gptctl.cli.console import print_json, say
    from gptctl.cli.session import open_session
    from gptctl.datasets import remove_dataset

    session = open_session(store)
    removed, size_bytes = remove_dataset(session.store, key)
    if json:
        print_json({"key": removed, "size_bytes": size_bytes})
    else:
        say(f"Removed {removed}: {size_bytes / 1e6:,.1f} MB.")
