"""What runs would cost: what was asked for → estimates; a plan beside its budget.

The market is what is known of prices and of speed: the list that came with gptctl or a later one,
and what others and the runs of this installation measured.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from importlib.util import find_spec

from msgspec import Struct
from msgspec.structs import replace

from gptctl.backends import ANY, LOCAL
from gptctl.calibration import Measured, read_calibration
from gptctl.errors import PlanRefusedError, UsageError
from gptctl.estimate import Estimate, RecipeEstimate, estimate
from gptctl.experience import read_experience
from gptctl.loss_curves import openai_loss, steps_to_reach
from gptctl.offers import offer_this_machine
from gptctl.plan import Plan
from gptctl.price_file import Price
from gptctl.prices import list_offers, newest, read_cache, read_snapshot, warn_of_age
from gptctl.recipe import read_recipe
from gptctl.settings import Settings
from training.config import Recipe
from training.layout import Offer
from training.preparation import (
    GIGATOKEN_TOKENS_PER_S,
    LINK_BYTES_PER_S,
    TIKTOKEN,
    TIKTOKEN_TOKENS_PER_S,
    Preparation,
)

MOST_WAYS = 4


class Market(Struct, frozen=True, kw_only=True):
    """All that is known of prices and speeds, as of `today`.

    `has_gigatoken`: whether this machine has; those that are rented get it.
    """

    prices: tuple[Price, ...]
    known: tuple[Measured, ...]
    today: date
    has_gigatoken: bool = True


class Ask(Struct, frozen=True, kw_only=True):
    """What `cost estimate` is asked; None is what was not said. `sort`: `usd` or `hours`."""

    overrides: tuple[str, ...] = ()
    clouds: tuple[str, ...] | None = None
    gpus: tuple[str, ...] | None = None
    nodes: int = 1
    spot: bool = False
    price_per_hour: Decimal | None = None
    budget_usd: Decimal | None = None
    sort: str = "usd"


def open_market(settings: Settings, *, today: date) -> Market:
    """Raises UsageError for a list of prices that is damaged."""
    return Market(
        prices=tuple(newest(read_snapshot(), read_cache(settings.prices))),
        known=(*read_calibration(), *read_experience(settings.experience)),
        today=today,
        has_gigatoken=find_spec("gigatoken") is not None,
    )


def quote(recipe: str, ask: Ask, market: Market) -> RecipeEstimate:
    """Of all offers that fit, the cheapest (or quickest) first, those that nobody knows last.

    Raises UsageError and PlanRefusedError.
    """
    name, found = read_recipe(recipe, ask.overrides)
    target = found.eval.until_loss
    steps = None if target is None else steps_to_reach(found, target)
    budget_usd = found.budget.usd if ask.budget_usd is None else ask.budget_usd
    answer = estimate(
        name,
        found,
        _find_offers(found, ask, market),
        nodes=ask.nodes,
        known=market.known,
        steps=steps,
        budget_usd=budget_usd,
        has_gigatoken=market.has_gigatoken,
    )
    return replace(answer, offers=tuple(sorted(answer.offers, key=lambda o: _rank(o, ask.sort))))


def quote_default(recipe: str, ask: Ask, market: Market) -> RecipeEstimate:
    """The cheapest offer of the hardware that the recipe names first."""
    _, found = read_recipe(recipe, ask.overrides)
    first = replace(ask, gpus=ask.gpus or found.node.gpus[:1] or None)
    answer = quote(recipe, first, market)
    return replace(answer, offers=answer.offers[:1])


def price_plan(plan: Plan, market: Market, *, over_budget_ok: bool = False) -> Plan:
    """The plan with what it would likely cost on its first choice.

    Raises PlanRefusedError, with what would fit, where that is over its budget.
    """
    if over_budget_ok and plan.budget_usd is None:
        raise UsageError(
            "--over-budget-ok is for a run that may stop before it is done",
            hint="name the budget at which it stops: `--budget USD`",
        )
    guess = _estimate_plan(plan, plan.offers[:1], market, steps=_likely_steps(plan)).offers[0]
    notes = [*warn_of_preparation(guess.preparation)]
    if (aged := warn_of_age(plan.offers[:1], today=market.today)) is not None:
        notes.append(aged)
    plan = replace(plan, estimate=guess, notes=(*plan.notes, *notes))
    budget_usd = plan.budget_usd
    if guess.usd is None or budget_usd is None or guess.usd <= budget_usd:
        return plan
    if over_budget_ok:
        short = f"it likely costs ${_cents(guess.usd)} and will stop at ${budget_usd}, not done"
        return replace(plan, notes=(*plan.notes, short))
    message = f"{plan.recipe_name} would likely cost ${_cents(guess.usd)} there, over its budget "
    message += f"of ${budget_usd}"
    if guess.fixed_usd is not None and guess.fixed_usd >= budget_usd:
        message += f": what comes before and after training alone is ${_cents(guess.fixed_usd)}"
    ways = _ways_that_fit(plan, guess, market)
    anyway = "`--over-budget-ok` begins it anyway and stops it, resumable, at the budget"
    hint = f"fits: {'; '.join(ways)}. Or: " if ways else "nothing that is known fits. "
    raise PlanRefusedError(message, hint=hint + anyway)


def warn_of_preparation(needs: Preparation) -> Iterator[str]:
    """What the user should know of the data before money is spent."""
    speed, made = needs.tokens_per_sec or 0.0, needs.made_per_sec or 0.0
    if needs.waiting:
        yield (
            f"preparation would lose the race: training takes {speed / 1e6:.2g} M tokens a second, "
            f"{needs.maker} makes {made / 1e6:.2g} M there, so it would wait "
            f"{needs.waiting / (1 + needs.waiting):.0%} of its time, which the estimate counts; "
            "`gptctl data prepare` makes the shards before a machine is rented"
        )
    if needs.maker == TIKTOKEN:
        slower = GIGATOKEN_TOKENS_PER_S / TIKTOKEN_TOKENS_PER_S
        yield (
            f"gigatoken is not installed here, and tiktoken takes {slower:.0f} times its cores: "
            "`pip install gigatoken`"
        )
    fetched = needs.fetched_bytes_per_s or 0.0
    if fetched > LINK_BYTES_PER_S:
        yield (
            f"training takes {fetched / 1e6:.0f} MB/s from the Hub, and more than "
            f"{LINK_BYTES_PER_S / 1e6:.0f} is not likely"
        )


def _ways_that_fit(plan: Plan, guess: Estimate, market: Market) -> list[str]:
    """The cheapest of each kind: another cloud, spot, fewer GPUs; and a target that is nearer."""
    assert plan.budget_usd is not None
    kinds: dict[str, tuple[Decimal, str]] = {}
    for spot in (False, True):
        try:
            offers = list_offers(market.prices, spot=spot, today=market.today)
        except (UsageError, PlanRefusedError):
            continue
        founds = _estimate_plan(plan, offers, market, steps=_likely_steps(plan)).offers
        for offer, found in zip(offers, founds, strict=True):
            if found.usd is None or found.usd > plan.budget_usd:
                continue
            is_fewer = offer.gpu_count < guess.gpu_count
            kind = "spot" if spot else "fewer" if is_fewer else "elsewhere"
            flags = f"--cloud {offer.cloud} --gpus {offer.gpu}:{offer.gpu_count}"
            way = f"`{flags}{' --spot' if spot else ''}` (${_cents(found.usd)})"
            if kind not in kinds or found.usd < kinds[kind][0]:
                kinds[kind] = found.usd, way
    ways = [way for _, way in sorted(kinds.values())]
    if (target := _nearer_target(plan, market)) is not None:
        ways.append(target)
    return ways[:MOST_WAYS]


def _nearer_target(plan: Plan, market: Market) -> str | None:
    """What the plan costs as far as OpenAI's GPT-2 of its size, where that fits."""
    try:
        val_loss = round(openai_loss(plan.recipe), 3)
        steps = steps_to_reach(plan.recipe, val_loss)
    except (PlanRefusedError, UsageError):
        return None
    found = _estimate_plan(plan, plan.offers[:1], market, steps=steps).offers[0]
    if found.usd is None or plan.budget_usd is None or found.usd > plan.budget_usd:
        return None
    return f"`--until-val-loss {val_loss:g}`, OpenAI's own (${_cents(found.usd)})"


def _likely_steps(plan: Plan) -> int | None:
    """To the plan's target; None, which is all, without one or where no curve tells of it."""
    if plan.recipe.eval.until_loss is None:
        return None
    try:
        return steps_to_reach(plan.recipe, plan.recipe.eval.until_loss)
    except PlanRefusedError:
        return None


def _estimate_plan(
    plan: Plan, offers: Sequence[Offer], market: Market, *, steps: int | None = None
) -> RecipeEstimate:
    return estimate(
        plan.recipe_name,
        plan.recipe,
        offers,
        nodes=plan.nodes,
        known=market.known,
        steps=steps,
        budget_usd=plan.budget_usd,
        has_gigatoken=market.has_gigatoken,
    )


def _find_offers(recipe: Recipe, ask: Ask, market: Market) -> list[Offer]:
    """As asked for; else on the recipe's hardware, or for one without GPUs on CPUs, here too."""
    gpus = recipe.node.gpus if ask.gpus is None else ask.gpus
    clouds = [*(ask.clouds or (ANY,))]
    here: list[Offer] = []
    if not gpus and (LOCAL in clouds or ask.clouds is None):
        here = [offer_this_machine([], price_per_hour=ask.price_per_hour, today=market.today)]
        clouds = [cloud for cloud in clouds if cloud != LOCAL]
        if not clouds:
            return here
    return here + list_offers(
        market.prices,
        clouds=clouds,
        gpus=gpus,
        spot=ask.spot,
        price_per_hour=ask.price_per_hour,
        today=market.today,
    )


def _rank(offer: Estimate, sort: str) -> tuple[bool, Decimal | float, Decimal | float]:
    if offer.usd is None or offer.hours is None:
        return True, offer.price_per_hour, 0
    pair = (offer.usd, offer.hours)
    return False, *(pair if sort == "usd" else pair[::-1])


def _cents(usd: Decimal) -> Decimal:
    return usd.quantize(Decimal("0.01"), rounding="ROUND_CEILING")
