"""How estimates, histories and reconciled bills look."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gptctl.cli.render import describe_preparation, dollars, duration, new_table, number
from gptctl.estimate import Estimate, RecipeEstimate
from gptctl.history import Entry, Totals
from gptctl.quotes import warn_of_preparation
from gptctl.report import Cost, Reconciliation, Spent, reconcile


def estimate_group(answer: RecipeEstimate, *, most: int | None) -> Group:
    """The offers of one recipe, and where the money of the first would go."""
    table = new_table("machine", "cloud", "an hour", "MFU", "tokens/s", "hours", "likely", "range")
    has_budget = any(offer.fits_budget is not None for offer in answer.offers)
    if has_budget:
        table.add_column("fits")
    for offer in answer.offers[:most]:
        row = _estimate_row(offer)
        table.add_row(*row, *([_fits(offer)] if has_budget else []))
    title = Text(
        f"{answer.recipe}: {answer.steps:,} steps, {answer.tokens:,} tokens, "
        f"{answer.flops_per_token:.3g} FLOPs each",
        style="bold",
    )
    parts: list[Any] = [title, table]
    if most is not None and len(answer.offers) > most:
        parts.append(Text(f"{len(answer.offers) - most} more: `--all`"))
    first = next((offer for offer in answer.offers if offer.usd is not None), None)
    if first is not None:
        parts.append(Text(f"{_machine(first)} on {first.cloud}: {_phases(first)}"))
        per_dollar = answer.tokens_per_usd(first)
        value = f"; {per_dollar / 1e6:,.0f} million tokens a dollar" if per_dollar else ""
        parts.append(Text(f"speed: {first.mfu_source}{value}"))
        if first.preparation.is_fetched:
            parts.append(Text(f"data: {describe_preparation(first.preparation)}"))
        parts += [Text(f"warning: {why}") for why in warn_of_preparation(first.preparation)]
        parts.append(Text(f"price: {first.price_source} ({first.price_as_of})"))
    elif answer.offers:
        parts.append(Text(f"how fast it would be: {answer.offers[0].mfu_source}"))
    return Group(*parts)


def recipes_table(answers: Sequence[RecipeEstimate]) -> Table:
    """One line a recipe: its default hardware, where that is cheapest."""
    table = new_table(
        "recipe", "tokens", *("machine", "cloud", "an hour", "hours", "likely"), "range"
    )
    for answer in answers:
        for offer in answer.offers:
            row = _estimate_row(offer)
            table.add_row(answer.recipe, f"{answer.tokens / 1e9:.3g} B", *row[:3], *row[5:])
    return table


def history_group(entries: Sequence[Entry], totals: Totals, limit: Decimal | None) -> Group:
    table = new_table("run", "state", "machine", "cloud", "began", "hours", "cost", "budget")
    for entry in entries:
        nodes = f"{entry.nodes} x " if entry.nodes > 1 else ""
        gpus = f"{entry.gpu_count}x {entry.gpu}" if entry.gpu_count else entry.gpu
        table.add_row(
            entry.run_id,
            entry.state,
            f"{nodes}{gpus}",
            entry.cloud,
            f"{entry.created_at:%Y-%m-%d}",
            f"{entry.hours:.2f}",
            dollars(entry.usd),
            dollars(entry.budget_usd),
        )
    parts: list[Any] = [table]
    for name, found in (
        ("month", totals.by_month),
        ("recipe", totals.by_recipe),
        ("cloud", totals.by_cloud),
    ):
        told = ", ".join(f"{key} {dollars(usd)}" for key, usd in found.items())
        parts.append(Text(f"by {name}: {told or '-'}"))
    of_limit = "" if limit is None else f"; the budget of a month is {dollars(limit)}"
    parts.append(Text(f"all: {dollars(totals.usd)}{of_limit}", style="bold"))
    return Group(*parts)


def reconciliation(cost: Cost, theirs: Spent | None) -> Text:
    """Our bill beside SkyPilot's own."""
    if theirs is None:
        return Text("SkyPilot's cost report here does not know of it")
    seconds = sum(spent.seconds for spent in cost.by_phase.values())
    found: Reconciliation = reconcile(Spent(seconds=seconds, usd=cost.spent_usd), theirs)
    beside = f"SkyPilot's own count: {duration(theirs.seconds)}, {dollars(theirs.usd)}"
    return Text(". ".join((beside, *found.why)) + ".")


def _estimate_row(offer: Estimate) -> list[str]:
    is_known = offer.usd is not None
    return [
        _machine(offer),
        offer.cloud,
        dollars(offer.price_per_hour * offer.nodes),
        number(offer.mfu, ".0%"),
        number(offer.tokens_per_sec),
        number(offer.hours, ".3g"),
        dollars(offer.usd),
        f"{dollars(offer.usd_low)} - {dollars(offer.usd_high)}" if is_known else "-",
    ]


def _fits(offer: Estimate) -> str:
    return {True: "yes", False: "no", None: "-"}[offer.fits_budget]


def _machine(offer: Estimate) -> str:
    nodes = f"{offer.nodes} x " if offer.nodes > 1 else ""
    gpus = f"{offer.gpu_count}x {offer.gpu}" if offer.gpu_count else offer.gpu
    return f"{nodes}{gpus}{', spot' if offer.spot else ''}"


def _phases(offer: Estimate) -> str:
    return ", ".join(
        f"{name} {duration(phase.seconds)} {dollars(phase.usd)}"
        for name, phase in offer.phases.items()
        if phase.seconds >= 0.5
    )
