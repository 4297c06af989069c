"""`gptctl cost`: what runs would cost, do cost and have cost."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptctl.cli.options import JsonOption, RunArgument, StoreOption, UntilOption, all_overrides

if TYPE_CHECKING:
    from gptctl.quotes import Ask, Market
    from gptctl.settings import Settings

app = typer.Typer(help="What runs would cost, and have cost.", no_args_is_help=True)

MOST_ROWS = 25


@app.command()
def estimate(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", help="Names or TOML files; else all, in one table."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe."),
    ] = None,
    cloud: Annotated[
        str | None, typer.Option("--cloud", metavar="CLOUDS", help="`lambda,runpod`; else all.")
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="GPUS", help="`A100-80GB:8,H100:8`; else the recipe's."),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=64)] = 1,
    spot: Annotated[bool, typer.Option("--spot", help="Machines that may be taken away.")] = False,
    price_per_hour: Annotated[
        str | None,
        typer.Option("--price-per-hour", metavar="USD", help="Of one machine, as you know it."),
    ] = None,
    until_val_loss: UntilOption = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="USD", help="Mark what fits it.")
    ] = None,
    sort: Annotated[str, typer.Option("--sort", metavar="usd|hours")] = "usd",
    everything: Annotated[bool, typer.Option("--all", help="Every row of a long table.")] = False,
    json: JsonOption = False,
) -> None:
    """Say what a recipe would take and cost on each offer, before anything is launched."""
    from gptctl.cli.console import data_console, print_json, talk_console
    from gptctl.errors import UsageError
    from gptctl.plan import parse_limits
    from gptctl.prices import warn_of_age
    from gptctl.quotes import Ask, quote

    if sort not in ("usd", "hours"):
        raise UsageError(f"--sort {sort!r} is not possible", hint="`--sort usd` or `--sort hours`")
    limits = parse_limits(budget=budget, max_hours=None, price_per_hour=price_per_hour)
    ask = Ask(
        overrides=all_overrides(overrides, until_val_loss),
        clouds=_words(cloud),
        gpus=_words(gpus),
        nodes=nodes,
        spot=spot,
        price_per_hour=limits.price_per_hour,
        budget_usd=limits.budget_usd,
        sort=sort,
    )
    market = _open_market()
    if not recipes:
        _estimate_all(ask, market, json=json)
        return
    answers = [quote(recipe, ask, market) for recipe in recipes]
    if json:
        print_json(answers[0] if len(answers) == 1 else answers)
        return
    from gptctl.cli.money import estimate_group

    for answer in answers:
        data_console().print(estimate_group(answer, most=None if everything else MOST_ROWS))
    offers = [offer for answer in answers for offer in answer.offers]
    if (aged := warn_of_age(offers, today=market.today)) is not None:
        talk_console().print(f"warning: {aged}")
    talk_console().print(f"next: `gptctl launch {recipes[0]} --budget USD --dry-run`")


@app.command()
def show(
    run: RunArgument,
    store: StoreOption = None,
    skypilot: Annotated[
        bool, typer.Option("--skypilot", help="Beside what SkyPilot itself counted.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show what a run has cost, by phase, and how much of the money trained."""
    from gptctl.cli.console import data_console, print_json
    from gptctl.cli.session import open_session
    from gptctl.report import cost_of
    from gptctl.runs import find_run_id, read_record, read_status

    session = open_session(store)
    record = read_record(session.store, find_run_id(session.store, run))
    cost = cost_of(record, read_status(session.store, record))
    if json:
        print_json(cost)
        return
    from gptctl.cli.money import reconciliation
    from gptctl.cli.render import cost_table

    data_console().print(cost_table(cost))
    if skypilot:
        data_console().print(reconciliation(cost, session.skypilot_cost(record)))


@app.command()
def history(
    store: StoreOption = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DATE", help="Runs since then: 2026-11-01.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="A line a run, for a spreadsheet.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what all runs have cost: each, and by month, recipe and cloud."""
    from gptctl.cli.console import data_console, print_json, warn
    from gptctl.cli.money import history_group
    from gptctl.cli.session import open_session
    from gptctl.history import to_csv, total
    from gptctl.month import read_month_budget

    session = open_session(store)
    entries, warnings = session.history(since=_date(since))
    for warning in warnings:
        warn(warning)
    if as_csv:
        sys.stdout.write(to_csv(entries))
    elif json:
        print_json({"runs": entries, "totals": total(entries)})
    else:
        limit = read_month_budget(session.settings.config)
        data_console().print(history_group(entries, total(entries), limit))


@app.command()
def budget(
    month: Annotated[
        str | None,
        typer.Option(
            "--month", metavar="USD", help="For all runs of a month; `none` takes it out."
        ),
    ] = None,
) -> None:
    """Set, or show, the budget of a month for all runs launched from here."""
    from gptctl.cli.console import say
    from gptctl.month import read_month_budget, set_month_budget
    from gptctl.plan import parse_dollars

    config = _settings().config
    if month is not None:
        usd = None if month == "none" else parse_dollars(month, flag="--month")
        set_month_budget(config, usd)
    limit = read_month_budget(config)
    say("No budget for the month." if limit is None else f"${limit} for the runs of a month.")


@app.command()
def refresh(
    cloud: Annotated[
        str | None, typer.Option("--cloud", metavar="CLOUDS", help="Those; else all of the list.")
    ] = None,
) -> None:
    """Read today's prices from SkyPilot's catalogues, for the next estimates."""
    from gptctl.cli.console import say, warn
    from gptctl.cli.session import open_session, utc_now
    from gptctl.errors import BackendError
    from gptctl.prices import newest, read_snapshot, renew_cache
    from gptctl.prices import refresh as read_prices

    session = open_session()
    names = _words(cloud) or tuple(sorted({price.cloud for price in read_snapshot()}))
    catalogs, faults = session.catalogs(names)
    if faults:  # most often one cause for all, and a long one
        warn(f"no prices of {', '.join(faults)}: {next(iter(faults.values()))}")
    now = utc_now()
    found = read_prices(catalogs, today=now.date())
    if not found:
        raise BackendError(
            "no prices could be read", hint="SkyPilot reads them: `gptctl doctor` looks at it"
        )
    cache = renew_cache(session.settings.prices, found, read_at=now)
    counts = {name: sum(price.cloud == name for price in found) for name in names}
    told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    say(f"{len(found)} prices read: {told}. {len(newest(read_snapshot(), cache))} known.")


def _estimate_all(ask: "Ask", market: "Market", *, json: bool) -> None:
    """Each recipe at its default hardware; those that cannot be had so are left out."""
    from gptctl.cli.console import data_console, print_json
    from gptctl.cli.money import recipes_table
    from gptctl.errors import PlanRefusedError
    from gptctl.quotes import quote_default
    from gptctl.recipe import recipe_names

    answers = []
    for name in recipe_names():
        try:
            answers.append(quote_default(name, ask, market))
        except PlanRefusedError:
            continue  # no loss curve of it, no spot machine for it
    answers.sort(key=lambda answer: answer.tokens * answer.flops_per_token)
    if json:
        print_json(answers)
    else:
        data_console().print(recipes_table(answers))


def _words(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(word.strip() for word in text.split(",") if word.strip()) or None


def _date(text: str | None) -> Any:
    from datetime import date

    from gptctl.errors import UsageError

    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--since {text!r} is no date", hint="such as 2026-11-01") from error


def _settings() -> "Settings":
    from gptctl.cli.session import user_home
    from gptctl.settings import read_settings

    return read_settings(os.environ, home=user_home())


def _open_market() -> "Market":
    from gptctl.cli.session import utc_now
    from gptctl.quotes import open_market

    return open_market(_settings(), today=utc_now().date())
