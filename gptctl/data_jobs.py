"""A plan that only prepares a data set on a rented machine: how long, for how much. Pure."""

from datetime import date
from decimal import Decimal

from msgspec.structs import replace

from gptctl.errors import PlanRefusedError
from gptctl.estimate import Billed, Estimate, bill_spans, describe_offer
from gptctl.phases import list_preparing_phases
from gptctl.plan import Plan
from gptctl.prices import warn_of_age
from training.preparation import count_shards, plan_preparation, source_tokens


def price_job(plan: Plan, *, today: date) -> Plan:
    """The plan with what it would likely cost on its first choice.

    Raises PlanRefusedError where that is over its budget.
    """
    guess = estimate_job(plan)
    aged = warn_of_age(plan.offers[:1], today=today)
    plan = replace(plan, estimate=guess, notes=(*plan.notes, *filter(None, [aged])))
    if guess.fits_budget is False and guess.usd is not None:
        cents = guess.usd.quantize(Decimal("0.01"), rounding="ROUND_CEILING")
        raise PlanRefusedError(
            f"preparing the data of {plan.recipe_name} would likely cost ${cents} there, over its "
            f"budget of ${plan.budget_usd}",
            hint=f"`--budget {cents}` is enough, most likely; without `--cloud` it is made here",
        )
    return plan


def estimate_job(plan: Plan) -> Estimate:
    recipe, offer = plan.recipe, plan.offer
    billed, source = Billed(), f"nobody knows how much there is of {recipe.data.source}"
    if not plan.whole or source_tokens(recipe.data) is not None:
        _, tokens = count_shards(recipe, whole=plan.whole)
        spans = list_preparing_phases(recipe.data, tokens, cores=offer.vcpus, cloud=offer.cloud)
        billed = bill_spans(spans, offer.price_per_hour)
        source = "by the speed of preparation measured on other cores, and assumed links"
    return describe_offer(
        offer,
        billed,
        source=source,
        budget_usd=plan.budget_usd,
        preparation=plan_preparation(recipe, cores_free=offer.vcpus, whole=plan.whole),
    )
