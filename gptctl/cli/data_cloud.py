"""`gptctl data prepare --cloud`: a data set, prepared by a machine that is rented for it."""

from gptctl.cli.follow import follow_to_end
from gptctl.cli.launch import launch_plan, show_plan
from gptctl.cli.session import Session, utc_now
from gptctl.data_jobs import price_job
from gptctl.launch import Patience
from gptctl.order import Order, plan_order
from gptctl.runs import check_name


def prepare_on_cloud(
    session: Session,
    order: Order,
    name: str | None,
    *,
    yes: bool,
    detach: bool,
    dry_run: bool,
    json: bool,
) -> None:
    """Show the plan, ask once, start it and follow it, as a launch does."""
    if name is not None:
        check_name(name)
    today = utc_now().date()
    plan, backend = plan_order(
        order, open_backend=session.backend, store=session.store.url, today=today
    )
    plan = price_job(plan, today=today)
    show_plan(plan, session, json=dry_run and json)
    if dry_run:
        return
    question = f"Rent a machine to prepare the data of {plan.recipe_name}?"
    run_id = launch_plan(plan, session, backend, Patience(), name, question, yes=yes)
    follow_to_end(session, run_id, backend, detach=detach, json=json)
