from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gptctl.calibration import read_calibration
from gptctl.estimate import Estimate, estimate
from tests.gptctl.estimates import make_measured, make_offer, recipe_of
from tests.gptctl.run_folder import OFFER as THIS_CPU

KNOWN = read_calibration()
PRICES = st.decimals(min_value=0, max_value=1000, places=4)


def estimate_on(offer, recipe="gpt2-124m", known=KNOWN, changes=None, **options) -> Estimate:
    [found] = estimate(
        recipe, recipe_of(recipe, **(changes or {})), [offer], known=known, **options
    ).offers
    return found


@pytest.mark.parametrize(
    ("recipe", "gpus", "minutes"),
    [
        # llm.c, scripts/run_gpt2_{124M,350M,774M,1558M}.sh
        ("gpt2-124m", "A100-80GB:8", 94),
        ("gpt2-350m", "A100-80GB:8", 13.7 * 60),
        ("gpt2-774m", "A100-80GB:8", 135 * 60),
        ("gpt2-1558m", "H100:8", 24 * 60),
        # modded-nanogpt's baselines, llm.c: 140 ms a step; 5.8 h
        ("gpt2-124m", "H100:8", 44),
        ("gpt2-350m", "H100:8", 5.8 * 60),
    ],
)
def test_training_takes_as_long_as_others_measured(recipe, gpus, minutes):
    found = estimate_on(make_offer(gpus), recipe)

    assert found.phases["training"].seconds / 60 == pytest.approx(minutes, rel=0.1)


def test_one_a100_takes_about_eight_times_as_long_as_eight():
    eight, one = (
        estimate_on(make_offer(gpus)).phases["training"].seconds
        for gpus in ("A100-80GB:8", "A100-80GB:1")
    )

    assert one / eight == pytest.approx(8)


@pytest.mark.parametrize(("recipe", "usd"), [("gpt2-124m", 22), ("gpt2-350m", 192)])
def test_at_14_dollars_an_hour_training_costs_what_became_famous(recipe, usd):
    found = estimate_on(make_offer(price_per_hour=Decimal(14)), recipe)

    assert float(found.phases["training"].usd) == pytest.approx(usd, rel=0.1)


@given(
    price=PRICES,
    nodes=st.sampled_from([1, 2, 4]),
    steps=st.integers(1, 400_000),
    cloud=st.sampled_from(["lambda", "aws", "local"]),
    spot=st.booleans(),
)
def test_phases_add_up_to_the_total_and_lie_within_the_range(price, nodes, steps, cloud, spot):
    offer = make_offer(price_per_hour=price, cloud=cloud, spot=spot)
    found = estimate_on(offer, nodes=nodes, steps=steps)

    assert sum(phase.usd for phase in found.phases.values()) == found.usd
    assert sum(phase.seconds for phase in found.phases.values()) == pytest.approx(
        found.hours * 3600
    )
    assert found.usd_low <= found.usd <= found.usd_high
    exact = Decimal(found.hours) * price * nodes
    assert exact - Decimal("1e-9") <= found.usd <= exact + len(found.phases) * Decimal("0.0001001")


@given(prices=st.tuples(PRICES, PRICES), nodes=st.integers(1, 4), steps=st.integers(1, 50_000))
def test_more_price_is_never_less_cost(prices, nodes, steps):
    cheap, dear = (
        estimate_on(make_offer(price_per_hour=price), nodes=nodes, steps=steps)
        for price in sorted(prices)
    )

    if cheap.usd is None:
        assert nodes == 3  # which cannot share the batch
        return
    assert cheap.usd <= dear.usd
    assert cheap.usd_low <= dear.usd_low
    assert cheap.usd_high <= dear.usd_high
    assert all(cheap.phases[name].usd <= dear.phases[name].usd for name in cheap.phases)


def test_json_has_the_fields_of_the_contract_with_money_as_strings():
    name = "gpt2-124m"
    found = estimate(name, recipe_of(name), [make_offer()], known=KNOWN, budget_usd=Decimal(40))
    answer = msgspec.json.decode(msgspec.json.encode(found))

    assert set(answer) == {"recipe", "tokens", "steps", "flops_per_token", "offers"}
    assert (answer["tokens"], answer["steps"]) == (9_890_693_120, 18_865)
    [offer] = answer["offers"]
    assert set(offer) == {
        *("cloud", "instance_type", "region", "gpu", "gpu_count", "nodes", "spot"),
        *("price_per_hour", "price_source", "price_as_of", "mfu", "mfu_source", "tokens_per_sec"),
        *("hours", "usd", "usd_low", "usd_high", "phases", "fits_budget", "preparation"),
    }
    assert list(offer["phases"]) == [
        *("provisioning", "setup", "first_shard", "compile", "training", "evaluation"),
        *("checkpoints", "upload", "teardown", "billing_granularity"),
    ]
    assert offer["price_per_hour"] == "22.32"
    assert all(Decimal(offer[key]) > 0 for key in ("usd", "usd_low", "usd_high"))
    assert set(offer["phases"]["training"]) == {"seconds", "usd"}
    assert isinstance(offer["phases"]["training"]["usd"], str)


@pytest.mark.parametrize(
    ("budget", "fits"), [(None, None), ("0.01", False), ("1000", True), ("exact", True)]
)
def test_likely_cost_is_what_must_fit_the_budget(budget, fits):
    usd = estimate_on(make_offer()).usd if budget == "exact" else budget and Decimal(budget)

    assert estimate_on(make_offer(), budget_usd=usd).fits_budget is fits


def test_fewer_steps_are_fewer_tokens_and_leave_what_is_fixed():
    name = "gpt2-124m"
    short, long = (
        estimate(name, recipe_of(name), [make_offer(cloud="aws")], known=KNOWN, steps=steps)
        for steps in (8_750, None)
    )

    assert short.tokens == 8_750 * 524_288
    assert short.offers[0].usd < long.offers[0].usd / 2 + long.offers[0].fixed_usd
    assert short.offers[0].fixed_usd == long.offers[0].fixed_usd
    assert 0 < short.offers[0].fixed_usd < short.offers[0].usd
    assert short.tokens_per_usd(short.offers[0]) == short.tokens / float(short.offers[0].usd)


def test_two_nodes_cost_twice_as_much_an_hour():
    one, two = (estimate_on(make_offer(cloud="aws"), nodes=nodes) for nodes in (1, 2))

    assert two.price_per_hour == one.price_per_hour
    assert two.phases["setup"].usd == 2 * one.phases["setup"].usd
    assert one.phases["training"].seconds / two.phases["training"].seconds == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("offer", "why"),
    [
        (make_offer("L4:8"), "nothing measured tells of training on L4"),
        (make_offer("H100:7"), "7 ranks cannot share"),
        (THIS_CPU, "nothing measured tells of training on CPU"),
    ],
)
def test_what_nobody_knows_is_left_open_and_says_why(offer, why):
    found = estimate_on(offer, budget_usd=Decimal(1))

    assert why in found.mfu_source
    unknown = found.mfu, found.tokens_per_sec, found.hours, found.usd, found.usd_low, found.usd_high
    assert unknown == (None,) * 6
    assert (found.phases, found.fits_budget, found.fixed_usd) == ({}, None, None)


def test_gpu_that_a_cloud_calls_h100_and_is_slower_is_estimated_as_what_it_is():
    # RunPod's H100 is a PCIe card, SkyPilot's `fetch_runpod.py` says.
    sxm, pcie = (
        estimate_on(make_offer("H100:8", cloud=cloud, instance_type=""))
        for cloud in ("lambda", "runpod")
    )

    assert "H100-PCIe" in pcie.mfu_source
    assert pcie.tokens_per_sec < sxm.tokens_per_sec
    assert pcie.gpu == "H100"  # the name that reaches SkyPilot


def test_same_recipe_and_machine_as_a_run_of_ours_goes_by_what_that_measured():
    old = make_measured("gpt2-124m", "A100-80GB:8", 1.0)
    run = make_measured("gpt2-124m", "A100-80GB:8", 1_234_567.0)
    found = estimate_on(make_offer(), known=[*KNOWN, old, run])

    assert found.tokens_per_sec == 1_234_567.0
    assert found.mfu == run.mfu
    assert found.mfu_source == "measured here: run ours-0001, 2026-11-21"


@pytest.mark.parametrize(
    "change",
    [{"recipe": "other"}, {"gpu": "H100"}, {"gpu_count": 4}, {"nodes": 2}, {"parameters": 1}],
)
def test_run_of_another_recipe_or_machine_is_not_taken_for_it(change):
    run = replace(make_measured("gpt2-124m", "A100-80GB:8", 1_234_567.0), **change)

    assert "measured here" not in estimate_on(make_offer(), known=[*KNOWN, run]).mfu_source


def test_figures_of_others_are_never_looked_up_by_name():
    # As measured by others it counts for the fit alone, however exact the match.
    [run] = [run for run in KNOWN if (run.recipe, run.gpu) == ("gpt2-124m", "H100")]

    assert estimate_on(make_offer("H100:8")).tokens_per_sec != pytest.approx(
        run.tokens_per_sec, rel=0.01
    )


def test_cpu_is_known_by_its_machine_and_has_no_mfu():
    run = make_measured("demo", "CPU:0", 36_000.0, machine="local, this machine")

    here = estimate_on(THIS_CPU, "demo", known=[*KNOWN, run])
    elsewhere = estimate_on(replace(THIS_CPU, cloud="aws"), "demo", known=[*KNOWN, run])

    assert (here.tokens_per_sec, here.mfu) == (36_000.0, None)
    assert here.phases["training"].seconds == pytest.approx(800 * 4096 / 36_000, abs=1e-3)
    assert elsewhere.usd is None


def test_what_was_measured_here_has_a_narrower_range_than_what_others_did():
    run = make_measured("gpt2-124m", "A100-80GB:8", estimate_on(make_offer()).tokens_per_sec)
    ours, theirs = (estimate_on(make_offer(), known=k) for k in ([*KNOWN, run], KNOWN))

    assert ours.usd == theirs.usd
    assert ours.usd_high < theirs.usd_high
