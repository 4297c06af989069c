"""`gptctl launch`: plan, ask, start, follow."""

from typing import Annotated

import typer
from msgspec.structs import replace

from gptctl.backends import Backend
from gptctl.cli.console import is_terminal, print_json, talk_console
from gptctl.cli.follow import follow_to_end
from gptctl.cli.options import JsonOption, StoreOption
from gptctl.cli.session import Session, absolute_path, open_session, utc_now
from gptctl.errors import UsageError
from gptctl.launch import check_data_here, plan_resume, read_versions
from gptctl.launch import launch as start_run
from gptctl.launch import resume as resume_run
from gptctl.plan import Limits, Plan, make_plan, parse_limits
from gptctl.recipe import read_recipe

EXIT_DECLINED = 3
"""A plan that the user refused is a refused plan."""


def launch(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe's name, or a TOML file.")
    ] = None,
    cloud: Annotated[
        str | None, typer.Option("--cloud", help="Where to run: `local` is this machine.")
    ] = None,
    store: StoreOption = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH", help="Train on your own UTF-8 text.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="USD", help="Stop before it costs more.")
    ] = None,
    max_hours: Annotated[float | None, typer.Option("--max-hours", help="Stop after that.")] = None,
    price_per_hour: Annotated[
        str | None,
        typer.Option("--price-per-hour", metavar="USD", help="What this machine costs."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with that run.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and leave.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, no more.")] = False,
    json: JsonOption = False,
) -> None:
    """Train a GPT: show the plan, ask once, start the run and follow it."""
    limits = parse_limits(budget=budget, max_hours=max_hours, price_per_hour=price_per_hour)
    session = open_session(store, cloud)
    if resume is not None:
        if recipe or overrides or data or cloud or dry_run:
            raise UsageError(
                "--resume goes on with a run as it was recorded",
                hint="only --budget, --max-hours and --price-per-hour can change",
            )
        run_id, backend = session.find(resume)
        _resume(session, run_id, backend, limits, yes=yes)
    elif recipe is None:
        raise UsageError("launch what?", hint="such as `gptctl launch demo`; `gptctl recipes`")
    else:
        backend = session.backend(session.settings.cloud)
        plan = _plan(recipe, overrides or [], data, backend, limits)
        _show_plan(plan, session, json=dry_run and json)
        if dry_run:
            return
        run_id = _launch(plan, session, backend, yes=yes)
    follow_to_end(session, run_id, backend, detach=detach, json=json)


def _plan(
    name: str, overrides: list[str], data: str | None, backend: Backend, limits: Limits
) -> Plan:
    recipe_name, recipe = read_recipe(name, overrides)
    if data is not None:
        recipe = replace(recipe, data=replace(recipe.data, source="text", path=data, revision=""))
    if recipe.data.path:
        path = str(absolute_path(recipe.data.path))
        recipe = replace(recipe, data=replace(recipe.data, path=path))
    offer = backend.offers(price_per_hour=limits.price_per_hour, today=utc_now().date())[0]
    plan = make_plan(
        recipe_name,
        recipe,
        offer,
        budget_usd=limits.budget_usd,
        max_hours=limits.max_hours,
    )
    check_data_here(recipe.data)
    return plan


def _show_plan(plan: Plan, session: Session, *, json: bool) -> None:
    if json:
        print_json(plan)
        return
    from gptctl.cli.render import plan_table

    talk_console().print(plan_table(plan, store=session.store.url))


def _launch(plan: Plan, session: Session, backend: Backend, *, yes: bool) -> str:
    _ask(f"Launch {plan.recipe_name}?", yes=yes)
    try:
        record = start_run(
            plan,
            store=session.store,
            backend=backend,
            versions=read_versions(),
            now=utc_now(),
        )
    except KeyboardInterrupt:
        _say_nothing_runs()
        raise
    talk_console().print(f"Launched {record.run_id}.")
    return record.run_id


def _resume(session: Session, run_id: str, backend: Backend, limits: Limits, *, yes: bool) -> None:
    from gptctl.cli.render import run_details

    talk_console().print(run_details(session.look(run_id, backend)()))
    plan_resume(run_id, limits, store=session.store, backend=backend, now=utc_now())
    _ask(f"Go on with {run_id}?", yes=yes)
    try:
        resume_run(run_id, limits, store=session.store, backend=backend, now=utc_now())
    except KeyboardInterrupt:
        _say_nothing_runs()
        raise
    talk_console().print(f"Resumed {run_id}.")


def _ask(question: str, *, yes: bool) -> None:
    """Once, with No as the answer of a mere Enter. Raises UsageError without a terminal."""
    if yes:
        return
    if not is_terminal():
        raise UsageError(
            "a launch asks before it starts, and there is no terminal to ask on",
            hint="`--yes` starts it without a question, `--dry-run` only shows the plan",
        )
    try:
        agreed = typer.confirm(question, err=True)
    except (typer.Abort, KeyboardInterrupt):
        _say_nothing_runs()
        raise KeyboardInterrupt from None
    if not agreed:
        talk_console().print("Nothing was launched.")
        raise typer.Exit(EXIT_DECLINED)


def _say_nothing_runs() -> None:
    talk_console().print("\nInterrupted before it started: nothing is running.")
