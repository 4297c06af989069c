"""`gptctl launch`: plan, ask, start, follow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gptctl.backends import LOCAL, Backend
from gptctl.cli.console import is_terminal, print_json, say, talk_console
from gptctl.cli.follow import follow_to_end
from gptctl.cli.options import JsonOption, StoreOption, UntilOption, all_overrides
from gptctl.cli.session import Session, absolute_path, open_session, utc_now
from gptctl.doctor import prove_writable
from gptctl.errors import UsageError
from gptctl.launch import (
    BOOT_TIMEOUT_S,
    Patience,
    make_job,
    make_record,
    plan_resume,
    read_versions,
)
from gptctl.launch import launch as start_run
from gptctl.launch import resume as resume_run
from gptctl.offers import describe_machine
from gptctl.order import Order, plan_order
from gptctl.plan import Limits, Plan, parse_limits
from gptctl.questions import note_missing_questions
from gptctl.quotes import price_plan
from gptctl.runs import check_name
from training.layout import Offer

WHAT, WHERE, LIMITS = "What to train", "Where", "Limits"
EXIT_DECLINED = 3
"""A plan that the user refused is a refused plan."""


def launch(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe's name, or a TOML file.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the recipe.", rich_help_panel=WHAT
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Train on your own text (UTF-8), or token files.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    until_val_loss: UntilOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Of the run; else the recipe's and four more characters.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with that run, from its last checkpoint.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    store: StoreOption = None,
    cloud: Annotated[
        str | None,
        typer.Option(
            "--cloud",
            metavar="CLOUDS",
            help="`local`, a cloud, several (`lambda,runpod`), or `any`; else the recipe's.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="GPUS",
            help="Of each machine, best first: `A100-80GB:8,H100:8`; else the recipe's.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region", metavar="REGION", help="There and nowhere else.", rich_help_panel=WHERE
        ),
    ] = None,
    nodes: Annotated[
        int,
        typer.Option("--nodes", min=1, max=64, help="How many machines.", rich_help_panel=WHERE),
    ] = 1,
    spot: Annotated[
        bool,
        typer.Option(
            "--spot",
            help="Cheaper machines that may be taken away; the run then goes on elsewhere.",
            rich_help_panel=WHERE,
        ),
    ] = False,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover",
            help="Go on elsewhere when a machine dies, at the full price too.",
            rich_help_panel=WHERE,
        ),
    ] = False,
    wait_hours: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="HOURS",
            min=0.0,
            help="Keep asking for so long where there is no machine.",
            rich_help_panel=WHERE,
        ),
    ] = 0.0,
    boot_timeout: Annotated[
        float,
        typer.Option(
            "--boot-timeout",
            metavar="MINUTES",
            min=0.1,
            help="Give a machine back that has not come up by then.",
            rich_help_panel=WHERE,
        ),
    ] = BOOT_TIMEOUT_S / 60,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="USD",
            help="Save, stop and tear down before it costs more.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    over_budget_ok: Annotated[
        bool,
        typer.Option(
            "--over-budget-ok",
            help="Also where it likely costs more: it then stops at the budget.",
            rich_help_panel=LIMITS,
        ),
    ] = False,
    max_hours: Annotated[
        float | None,
        typer.Option(
            "--max-hours",
            metavar="HOURS",
            help="The same, before it takes longer.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    price_per_hour: Annotated[
        str | None,
        typer.Option(
            "--price-per-hour",
            metavar="USD",
            help="Of one machine, where you know better than the price list.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start it and leave; `gptctl status` finds it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, no more.")] = False,
    emit: Annotated[
        Path | None,
        typer.Option("--emit", metavar="FILE", help="Write the SkyPilot task, without secrets."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train a GPT: show the plan, ask once, start the run and follow it."""
    limits = parse_limits(budget=budget, max_hours=max_hours, price_per_hour=price_per_hour)
    patience = Patience(wait_s=wait_hours * 3600, boot_timeout_s=boot_timeout * 60)
    session = open_session(store, cloud)
    text = absolute_path(data) if data else None
    if name is not None:
        check_name(name)
    changes = all_overrides(overrides, until_val_loss)
    if resume is not None:
        fixed = recipe or changes or cloud or gpus or region or spot or recover or name or emit
        if fixed or over_budget_ok:
            raise UsageError(
                "--resume goes on with a run as it was recorded",
                hint="only --budget, --max-hours and --price-per-hour can change",
            )
        run_id, backend = session.find(resume)
        _resume(session, run_id, backend, limits, patience, text, yes=yes, dry_run=dry_run)
    elif recipe is None:
        raise UsageError("launch what?", hint="such as `gptctl launch demo`; `gptctl recipes`")
    else:
        order = Order(
            recipe=recipe,
            overrides=changes,
            data=text,
            cloud=session.settings.cloud,
            gpus=gpus,
            region=region,
            nodes=nodes,
            spot=spot,
            recover=recover,
            limits=limits,
        )
        plan, backend = plan_order(
            order, open_backend=session.backend, store=session.store.url, today=utc_now().date()
        )
        plan = price_plan(plan, session.market(), over_budget_ok=over_budget_ok)
        plan = note_missing_questions(plan)
        show_plan(plan, session, json=dry_run and json)
        if emit is not None:
            _emit(plan, session, backend, name, to=emit)
        if not dry_run:
            question = f"Launch {name or plan.recipe_name}?"
            run_id = launch_plan(plan, session, backend, patience, name, question, yes=yes)
    if not dry_run:
        follow_to_end(session, run_id, backend, detach=detach, json=json)


def show_plan(plan: Plan, session: Session, *, json: bool) -> None:
    if json:
        print_json(plan)
        return
    from gptctl.cli.render import plan_table

    talk_console().print(plan_table(plan, store=session.store.url))


def _emit(plan: Plan, session: Session, backend: Backend, name: str | None, *, to: Path) -> None:
    record = make_record(
        plan, store=session.store.url, versions=read_versions(), now=utc_now(), name=name
    )
    to.write_text(backend.describe(make_job(plan, record, Patience())), encoding="utf-8")
    say(f"Wrote {to}: what SkyPilot would be given, without its secrets.")


def launch_plan(
    plan: Plan,
    session: Session,
    backend: Backend,
    patience: Patience,
    name: str | None,
    question: str,
    *,
    yes: bool,
) -> str:
    """Start the plan when its `question` was answered with yes; the run's id."""
    _ask(question, yes=yes)
    _check(session, backend, plan.offers)
    record, offer = start_run(
        plan,
        store=session.store,
        backend=backend,
        patience=patience,
        versions=read_versions(),
        now=utc_now(),
        tell=say,
        name=name,
        month=session.month(),
    )
    say(f"Launched {record.run_id}{_where(offer, record.nodes)}.")
    return record.run_id


def _resume(
    session: Session,
    run_id: str,
    backend: Backend,
    limits: Limits,
    patience: Patience,
    text: Path | None,
    *,
    yes: bool,
    dry_run: bool,
) -> None:
    from gptctl.cli.render import run_details

    talk_console().print(run_details(session.look(run_id, backend)()))
    job = plan_resume(
        run_id,
        limits,
        store=session.store,
        backend=backend,
        patience=patience,
        now=utc_now(),
        text=text,
        launched=session.launched,
    )
    if dry_run:
        return
    _ask(f"Go on with {run_id}?", yes=yes)
    _check(session, backend, job.offers)
    offer = resume_run(
        job,
        store=session.store,
        backend=backend,
        now=utc_now(),
        tell=say,
        month=session.month(),
    )
    say(f"Resumed {run_id}{_where(offer, job.record.nodes)}.")


def _check(session: Session, backend: Backend, offers: Sequence[Offer]) -> None:
    """Nothing is rented for a run that could not be kept, or by nobody."""
    if offers[0].cloud != LOCAL:
        prove_writable(session.store)
    backend.check(list(offers))


def _where(offer: Offer, nodes: int) -> str:
    """` on 2 x 8x A100-80GB in us-east-1 of lambda, $44.64 an hour`; nothing for this machine."""
    if offer.cloud == LOCAL:
        return ""
    from gptctl.cli.render import dollars

    place = f"{offer.region} of {offer.cloud}" if offer.region else offer.cloud
    count = f"{nodes} x " if nodes > 1 else ""
    price = dollars(offer.price_per_hour * nodes)
    return f" on {count}{describe_machine(offer)} in {place}, {price} an hour"


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
        say("\nInterrupted before it started: nothing is running.")
        raise KeyboardInterrupt from None
    if not agreed:
        say("Nothing was launched.")
        raise typer.Exit(EXIT_DECLINED)
