"""Recipe + offer + limits → Plan: what would run, on what, for how much. Pure."""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

from msgspec import Struct

from gptctl.backends import LOCAL
from gptctl.errors import PlanRefusedError, UsageError
from gptctl.estimate import Estimate
from gptctl.offers import describe_machine
from training.config import HUB_REPOS, DataConfig, Recipe, split_batch
from training.layout import Offer, RunJob

SOURCES = ("python-stdlib", "text", "tokens")
"""What can be prepared, and is not on the Hub."""

_MOST_USD = Decimal(1_000_000)
_MOST_HOURS = 10_000.0
_MOST_RANKS = 64
DEFAULT_HOURS = 24.0
"""Longest run on a rented machine for which nobody has named a limit."""


class Limits(Struct, frozen=True, kw_only=True):
    """What the user set for this launch. None: as the recipe, or the record, says."""

    budget_usd: Decimal | None = None
    max_hours: float | None = None
    price_per_hour: Decimal | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """Priced, not sent. `notes` are what the user should know before saying yes.

    `ranks` and how they share a step are those of the first choice.
    """

    recipe_name: str
    recipe: Recipe
    offers: tuple[Offer, ...]
    nodes: int
    ranks: int
    device: Literal["cpu", "cuda"]
    micro_batch_size: int
    grad_accum_steps: int
    budget_usd: Decimal | None
    max_hours: float | None
    notes: tuple[str, ...] = ()
    text: Path | None = None
    """On this machine, to be brought to the node."""
    region: str | None = None
    """The only one it may run in, where the user named one."""
    recover: bool = False
    job: RunJob = "train"
    whole: bool = False
    """To prepare all of the source."""
    estimate: Estimate | None = None
    """Of the first choice; None until it was made."""

    @property
    def offer(self) -> Offer:
        """The first choice; the rest are taken, in order, where it is not to be had."""
        return self.offers[0]

    @property
    def price_per_hour(self) -> Decimal:
        """Of all nodes together."""
        return self.offer.price_per_hour * self.nodes

    @property
    def budget_hours(self) -> float | None:
        """What the budget buys at the offer's price; None where it buys without end."""
        if self.budget_usd is None or not self.price_per_hour:
            return None
        return float(self.budget_usd / self.price_per_hour)


def make_plan(
    recipe_name: str,
    recipe: Recipe,
    offers: Sequence[Offer],
    *,
    nodes: int = 1,
    budget_usd: Decimal | None = None,
    max_hours: float | None = None,
) -> Plan:
    """The recipe on the best of those offers; limits that are not given are the recipe's own.

    Raises PlanRefusedError where it could not, or should not, be launched there.
    """
    check_source(recipe.data)
    offers = [o for o in offers if _can_share(recipe, _ranks(recipe, o, nodes))] or offers
    offer = offers[0]
    if recipe.node.gpus and not offer.gpu_count:
        raise PlanRefusedError(
            f"`{recipe_name}` wants {' or '.join(recipe.node.gpus)}, and there is no GPU on "
            f"{offer.instance_type}",
            hint="`--set node.gpus=[]` runs it on the CPU anyway, slowly; "
            "`gptctl recipes` names smaller ones",
        )
    ranks = _ranks(recipe, offer, nodes)
    micro_batch_size, grad_accum_steps = _share_batch(recipe, ranks, offer)
    if budget_usd is None:
        budget_usd = recipe.budget.usd
    if max_hours is None:
        max_hours = recipe.budget.max_hours
    notes = []
    if needs_limit(offers, budget_usd, max_hours):
        max_hours = default_hours(recipe)
        most = Decimal(str(max_hours)) * max(o.price_per_hour for o in offers) * nodes
        notes.append(
            f"no limit was given that could stop it, so it stops after {max_hours:g} hours "
            f"(${most:.2f} at most); `--budget USD` and `--max-hours HOURS` set others"
        )
    if budget_usd is not None and not offer.price_per_hour:
        notes.append(
            f"the machine has no price, so the budget of ${budget_usd} cannot stop the run; "
            "`--price-per-hour` gives it one"
        )
    return Plan(
        recipe_name=recipe_name,
        recipe=recipe,
        offers=tuple(offers),
        nodes=nodes,
        ranks=ranks,
        device="cuda" if offer.gpu_count else "cpu",
        micro_batch_size=micro_batch_size,
        grad_accum_steps=grad_accum_steps,
        budget_usd=budget_usd,
        max_hours=max_hours,
        notes=tuple(notes),
    )


def _ranks(recipe: Recipe, offer: Offer, nodes: int) -> int:
    return (offer.gpu_count or recipe.node.cpu_ranks) * nodes


def needs_limit(
    offers: Sequence[Offer], budget_usd: Decimal | None, max_hours: float | None
) -> bool:
    """Whether a run on one of those machines could go on for ever: no rented one may."""
    is_free = any(not offer.price_per_hour for offer in offers)
    return offers[0].cloud != LOCAL and max_hours is None and (budget_usd is None or is_free)


def default_hours(recipe: Recipe) -> float:
    """Half as long again as the reference took, and half an hour to begin and end."""
    reference = recipe.reference
    return DEFAULT_HOURS if reference is None else round(1.5 * reference.hours + 0.5, 1)


def check_source(data: DataConfig) -> None:
    """Raises PlanRefusedError for data that cannot be prepared."""
    if data.source not in SOURCES and not data.hub_repo:
        known = *SOURCES, *HUB_REPOS, "hub:owner/name", "hub-shards:owner/name"
        raise PlanRefusedError(
            f"there is no data source {data.source!r}, only {', '.join(known)}",
            hint="train on your own text: `--data PATH` (a file, a folder or a glob)",
        )
    if data.takes_path and not data.path:
        what = "tokens" if data.is_tokens else "a text"
        raise PlanRefusedError(
            f"this recipe trains on {what} that you choose",
            hint="name it: `--data PATH` (a file, a folder or a glob)",
        )


def _can_share(recipe: Recipe, ranks: int) -> bool:
    return not recipe.train.batch_tokens % (recipe.model.block_size * ranks)


def _share_batch(recipe: Recipe, ranks: int, offer: Offer) -> tuple[int, int]:
    batch_tokens, block_size = recipe.train.batch_tokens, recipe.model.block_size
    try:
        return split_batch(
            batch_tokens=batch_tokens,
            block_size=block_size,
            micro_batch_size=recipe.train.micro_batch_size,
            ranks=ranks,
        )
    except ValueError as error:
        sequences = batch_tokens // block_size
        fitting = [str(n) for n in range(1, _MOST_RANKS + 1) if sequences % n == 0]
        raise PlanRefusedError(
            f"on {describe_machine(offer)}: {error}",
            hint=f"it would run on {', '.join(fitting)} ranks; "
            f"or make train.batch_tokens a multiple of {block_size * ranks:,} with `--set`",
        ) from error


def parse_limits(
    *, budget: str | None, max_hours: float | None, price_per_hour: str | None
) -> Limits:
    """The limits as typed. Raises UsageError, naming the flag."""
    return Limits(
        budget_usd=None if budget is None else parse_dollars(budget, flag="--budget"),
        max_hours=None if max_hours is None else check_hours(max_hours, flag="--max-hours"),
        price_per_hour=None
        if price_per_hour is None
        else parse_dollars(price_per_hour, flag="--price-per-hour", allow_zero=True),
    )


def parse_dollars(text: str, *, flag: str, allow_zero: bool = False) -> Decimal:
    """An amount of money as a user types it. Raises UsageError, naming the flag."""
    try:
        usd = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation as error:
        raise UsageError(
            f"{flag} {text!r} is not an amount of dollars", hint=f"such as `{flag} 12.50`"
        ) from error
    if not usd.is_finite() or usd > _MOST_USD or usd < 0 or (usd == 0 and not allow_zero):
        least = "0" if allow_zero else "more than 0"
        raise UsageError(f"{flag} {text} is not possible", hint=f"{least} and at most {_MOST_USD}")
    return usd


def check_hours(hours: float, *, flag: str) -> float:
    """Raises UsageError for a time limit that makes no sense, NaN included."""
    if not 0 < hours <= _MOST_HOURS:
        raise UsageError(
            f"{flag} {hours} is not possible", hint=f"more than 0 and at most {_MOST_HOURS:.0f}"
        )
    return hours
