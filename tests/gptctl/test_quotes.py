"""From what is asked to estimates, and a plan beside its budget."""

from datetime import date
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.calibration import read_calibration
from gptctl.errors import PlanRefusedError, UsageError
from gptctl.plan import Plan, make_plan
from gptctl.price_file import Price
from gptctl.quotes import Ask, Market, price_plan, quote, quote_default
from gptctl.recipe import read_recipe
from tests.gptctl.estimates import make_measured, make_offer

TODAY = date(2026, 11, 21)


def make_price(cloud: str, gpus: str, usd: str, spot: str | None = None) -> Price:
    gpu, _, count = gpus.partition(":")
    return Price(
        cloud=cloud,
        instance_type=f"{cloud}-{gpus}",
        region="here",
        gpu=gpu,
        gpu_count=int(count),
        price_per_hour=Decimal(usd),
        spot_price_per_hour=None if spot is None else Decimal(spot),
        source="a test",
        as_of="2026-11-20",
    )


PRICES = (
    make_price("lambda", "A100-80GB:8", "22.32"),
    make_price("runpod", "A100-80GB:8", "12.72"),
    make_price("verda", "H100:8", "16"),
    make_price("aws", "A100-80GB:8", "30", spot="6"),
    make_price("vast", "A100-80GB:4", "5"),
)
MARKET = Market(prices=PRICES, known=tuple(read_calibration()), today=TODAY)


def plan_of(budget: str | None, **train: int) -> Plan:
    name, recipe = read_recipe(
        "gpt2-124m", [f"train.{key}={value}" for key, value in train.items()]
    )
    # A text: this version cannot launch on FineWeb, and money does not care.
    text = replace(recipe, data=replace(recipe.data, source="text", path="corpus.txt"))
    plan = make_plan(name, text, [make_offer()], budget_usd=budget and Decimal(budget))
    return replace(plan, recipe=recipe)


def test_offers_come_cheapest_first_or_quickest_first():
    by_usd = quote("gpt2-124m", Ask(), MARKET).offers
    assert [o.usd for o in by_usd] == sorted(o.usd for o in by_usd)
    by_hours = quote("gpt2-124m", Ask(sort="hours"), MARKET).offers
    assert by_hours[0].cloud == "verda"
    assert {o.cloud for o in by_usd} == {o.cloud for o in by_hours}


def test_what_nobody_knows_comes_last():
    measured = make_measured("shakespeare", "CPU:0", 30_000, machine="local, this machine")
    known = replace(MARKET, known=(*MARKET.known, measured))
    prices = (make_price("lambda", "CPU:0", "0.2"),)
    offers = quote("shakespeare", Ask(), replace(known, prices=prices)).offers
    assert [(o.cloud, o.usd is None) for o in offers] == [("local", False), ("lambda", True)]


def test_a_target_loss_takes_the_steps_that_the_reference_took():
    whole = quote("gpt2-124m", Ask(clouds=("lambda",)), MARKET)
    target = quote(
        "gpt2-124m", Ask(clouds=("lambda",), overrides=("eval.until_loss=3.425",)), MARKET
    )
    assert target.steps == 8750
    assert target.offers[0].usd < whole.offers[0].usd / 2 + Decimal(3)


def test_a_default_quote_is_the_recipes_first_hardware_where_it_is_cheapest():
    (offer,) = quote_default("gpt2-124m", Ask(), MARKET).offers
    assert (offer.cloud, offer.gpu, offer.gpu_count) == ("runpod", "A100-80GB", 8)


def test_a_plan_inside_its_budget_bears_its_estimate():
    plan = price_plan(plan_of("50"), MARKET)
    assert plan.estimate is not None
    assert 35 < plan.estimate.usd < 45
    assert plan.estimate.fits_budget


def test_a_plan_over_its_budget_is_refused_with_what_fits_and_its_price():
    with pytest.raises(PlanRefusedError, match="over its budget of \\$25") as refused:
        price_plan(plan_of("25"), MARKET)
    hint = refused.value.hint
    for way in ("--cloud verda --gpus H100:8", "--spot", "--gpus A100-80GB:4"):
        assert way in hint
    assert "--until-val-loss 3.425" in hint
    assert "--over-budget-ok" in hint
    assert hint.count("($") == 4


def test_ways_that_do_not_fit_are_not_named():
    with pytest.raises(PlanRefusedError) as refused:
        price_plan(plan_of("12"), MARKET)
    assert "--cloud runpod" not in refused.value.hint
    assert "--spot" in refused.value.hint


def test_a_budget_that_not_even_the_fixed_phases_fit_says_so():
    with pytest.raises(PlanRefusedError, match="before and after training alone"):
        price_plan(plan_of("0.5"), MARKET)


def test_over_budget_is_allowed_where_it_is_asked_for_and_a_budget_binds():
    plan = price_plan(plan_of("25"), MARKET, over_budget_ok=True)
    assert any("not done" in note for note in plan.notes)
    with pytest.raises(UsageError, match="--over-budget-ok"):
        price_plan(plan_of(None), MARKET, over_budget_ok=True)


def test_an_old_price_is_said_in_the_plan():
    offer = make_offer(price_as_of="2026-09-01")
    plan = replace(plan_of("50"), offers=(offer,))
    assert any("81 days old" in note for note in price_plan(plan, MARKET).notes)


def test_a_plan_of_which_nobody_knows_the_speed_is_not_refused():
    plan = replace(plan_of("0.01"), offers=(make_offer("L4:1"),))
    priced = price_plan(plan, MARKET)
    assert priced.estimate is not None
    assert priced.estimate.usd is None


def priced_on(offer, **market):
    plan = replace(plan_of("1000"), offers=(offer,))
    return price_plan(plan, replace(MARKET, **market))


def test_a_plan_says_when_preparation_would_lose_the_race_and_counts_the_waiting():
    # As measured here: a machine without gigatoken that trains far faster than it can tokenize.
    speed = 8e6
    measured = make_measured("gpt2-124m", "A100-80GB:8", speed, machine="local, gpu_8x")
    offer = make_offer(cloud="local", instance_type="gpu_8x", vcpus=9)
    plan = priced_on(offer, known=(*MARKET.known, measured), has_gigatoken=False)

    lost, without = plan.notes
    assert "lose the race: training takes 8 M tokens a second, tiktoken makes 1.9 M there" in lost
    assert "wait 76% of its time" in lost
    assert "`gptctl data prepare`" in lost
    assert "gigatoken is not installed here" in without
    phases = plan.estimate.phases
    assert phases["waiting_for_data"].seconds == pytest.approx(
        phases["training"].seconds * plan.estimate.preparation.waiting, rel=1e-6
    )


def test_a_rented_machine_has_gigatoken_and_keeps_ahead():
    plan = priced_on(make_offer(vcpus=240), has_gigatoken=False)

    assert plan.notes == ()
    assert plan.estimate.preparation.maker == "gigatoken"
    assert plan.estimate.preparation.cores_free == 232
    assert "waiting_for_data" not in plan.estimate.phases


def test_a_link_that_would_have_to_be_faster_than_is_likely_is_said():
    measured = make_measured("gpt2-124m", "A100-80GB:8", 50e6, machine="lambda, fast")
    plan = priced_on(make_offer(instance_type="fast", vcpus=240), known=(*MARKET.known, measured))

    assert any("takes 140 MB/s from the Hub" in note for note in plan.notes)
