from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.errors import PlanRefusedError, UsageError
from gptctl.plan import check_hours, make_plan, parse_dollars, parse_limits
from tests.gptctl.run_folder import OFFER, RECIPE
from training.config import BudgetConfig, NodeConfig, ReferenceConfig

GPUS = replace(OFFER, gpu="NVIDIA H200", gpu_count=4)


def with_data(**fields):
    return replace(RECIPE, data=replace(RECIPE.data, **fields))


def test_cpu_takes_the_ranks_of_the_recipe():
    plan = make_plan("small", RECIPE, [OFFER])

    assert (plan.ranks, plan.device) == (2, "cpu")
    assert plan.ranks * plan.micro_batch_size * plan.grad_accum_steps * 32 == 256


def test_gpu_machine_runs_a_rank_on_each_gpu():
    plan = make_plan("small", RECIPE, [GPUS])

    assert (plan.ranks, plan.device) == (4, "cuda")


def test_plan_refuses_ranks_that_cannot_share_the_batch_and_names_those_that_can():
    with pytest.raises(PlanRefusedError, match="3 ranks cannot share") as refused:
        make_plan("small", replace(RECIPE, node=NodeConfig(cpu_ranks=3)), [OFFER])

    assert "1, 2, 4, 8 ranks" in refused.value.hint


def test_plan_refuses_a_recipe_for_gpus_on_a_machine_without_one():
    recipe = replace(RECIPE, node=NodeConfig(gpus=("A100-80GB:8",)))

    with pytest.raises(PlanRefusedError, match="A100-80GB:8") as refused:
        make_plan("big", recipe, [OFFER])

    assert "--set node.gpus=[]" in refused.value.hint


@pytest.mark.parametrize("source", ["fineweb-10b", "text"])
def test_plan_refuses_data_that_it_cannot_prepare(source):
    with pytest.raises(PlanRefusedError) as refused:
        make_plan("small", with_data(source=source), [OFFER])

    assert "--data PATH" in refused.value.hint


def test_budget_given_goes_before_the_one_of_the_recipe():
    recipe = replace(RECIPE, budget=BudgetConfig(usd=Decimal(7), max_hours=2.0))

    assert make_plan("small", recipe, [OFFER]).budget_usd == 7
    plan = make_plan("small", recipe, [OFFER], budget_usd=Decimal("3.60"), max_hours=1.0)
    assert (plan.budget_usd, plan.max_hours) == (Decimal("3.60"), 1.0)
    assert plan.budget_hours == 1.0


def test_budget_without_a_price_is_noted_as_toothless():
    free = replace(OFFER, price_per_hour=Decimal(0))
    plan = make_plan("small", RECIPE, [free], budget_usd=Decimal(5))

    assert plan.budget_hours is None
    assert "--price-per-hour" in plan.notes[0]
    assert make_plan("small", RECIPE, [free]).notes == ()


RENTED = replace(GPUS, cloud="lambda", region="us-east-1", price_per_hour=Decimal(2))
OWN_CLUSTER = replace(RENTED, cloud="kubernetes", price_per_hour=Decimal(0))


def test_rented_machine_always_has_a_limit_and_the_plan_says_which():
    plan = make_plan("small", RECIPE, [RENTED], nodes=2)

    assert (plan.budget_usd, plan.max_hours) == (None, 24.0)
    assert "24 hours ($96.00 at most)" in plan.notes[0]
    assert make_plan("small", RECIPE, [RENTED], budget_usd=Decimal(1)).max_hours is None
    assert make_plan("small", RECIPE, [RENTED], max_hours=100.0).max_hours == 100


def test_limit_without_being_asked_for_is_half_as_long_again_as_the_reference_took():
    reference = ReferenceConfig(
        source="x", gpus="A100:8", hours=2.0, step_ms=1.0,
        price_per_hour=Decimal(1), price_as_of="2026-11-21", usd=Decimal(2),
    )  # fmt: skip

    assert make_plan("small", replace(RECIPE, reference=reference), [RENTED]).max_hours == 3.5


@pytest.mark.parametrize("offers", [[OWN_CLUSTER], [RENTED, OWN_CLUSTER]])
def test_budget_is_no_limit_where_a_machine_without_a_price_may_be_taken(offers):
    assert make_plan("small", RECIPE, offers, budget_usd=Decimal(5)).max_hours == 24


def test_machines_that_cannot_share_the_batch_are_passed_over():
    three = replace(RENTED, gpu_count=3)
    plan = make_plan("small", RECIPE, [three, RENTED, three])

    assert (plan.offers, plan.ranks) == ((RENTED,), 4)


@pytest.mark.parametrize(("text", "usd"), [("40", "40"), ("$0.02", "0.02"), (" 1.50 ", "1.50")])
def test_money_is_read_exactly(text, usd):
    assert parse_dollars(text, flag="--budget") == Decimal(usd)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "1e9", "", "ten", "sNaN"])
def test_senseless_budgets_are_usage_errors(text):
    with pytest.raises(UsageError, match="--budget"):
        parse_limits(budget=text, max_hours=None, price_per_hour=None)


@pytest.mark.parametrize("text", ["-0.01", "nan"])
def test_senseless_prices_are_usage_errors(text):
    with pytest.raises(UsageError, match="--price-per-hour"):
        parse_limits(budget=None, max_hours=None, price_per_hour=text)


def test_price_may_be_zero():
    limits = parse_limits(budget=None, max_hours=None, price_per_hour="0")

    assert limits.price_per_hour == 0


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_time_limits_are_usage_errors(hours):
    with pytest.raises(UsageError, match="--max-hours"):
        check_hours(hours, flag="--max-hours")
