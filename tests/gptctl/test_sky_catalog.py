import os
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from gptctl.backends import Wanted
from gptctl.backends.sky_catalog import Catalog, find_offers, offer_unpriced, parse_gpus
from gptctl.errors import PlanRefusedError, UsageError
from tests.gptctl.catalogues import FOLDER

TODAY = date(2026, 11, 21)


def wanted(*gpus, cpu_ranks=1, **fields):
    return Wanted(gpus=gpus, cpu_ranks=cpu_ranks, today=TODAY, **fields)


def find(clouds, *gpus, **fields):
    return find_offers(
        [Catalog(FOLDER, cloud) for cloud in clouds.split(",")], wanted(*gpus, **fields)
    )


def brief(offers):
    """(cloud, region, gpu, count, price) of each."""
    return [(o.cloud, o.region, o.gpu, o.gpu_count, str(o.price_per_hour)) for o in offers]


def kinds(offers):
    return list(dict.fromkeys((o.cloud, o.gpu, o.gpu_count) for o in offers))


def test_machines_come_in_the_order_of_the_recipe_even_where_a_later_one_is_cheaper():
    offers = find("lambda", "A100-80GB:8", "H100:8", "A100:8")

    assert kinds(offers) == [
        ("lambda", "A100-80GB", 8),
        ("lambda", "H100", 8),
        ("lambda", "A100", 8),
    ]
    assert [o.region for o in offers[:4]] == [
        "us-east-1",
        "us-west-1",
        "us-south-1",
        "us-midwest-1",
    ]
    assert offers[0].instance_type == "gpu_8x_a100_80gb_sxm4"
    assert [o.price_per_hour for o in offers[::4]] == [
        Decimal("22.32"), Decimal("31.92"), Decimal("15.92"),
    ]  # fmt: skip


def test_one_kind_of_gpu_is_cheapest_first_whatever_the_cloud():
    offers = find("lambda,runpod", "A100-80GB:8")

    assert brief(offers)[:3] == [
        ("runpod", "CA", "A100-80GB", 8, "11.12"),
        ("runpod", "US", "A100-80GB", 8, "11.12"),
        ("lambda", "us-east-1", "A100-80GB", 8, "22.32"),
    ]


def test_regions_of_several_zones_are_offered_once_at_their_lowest_price():
    assert brief(find("aws", spot=True)) == [("aws", "us-east-1", "CPU", 0, "0.06")]


def test_gpus_that_a_cloud_does_not_have_are_passed_over_while_others_are_there():
    recipe = ("A100-80GB:8", "H100:8", "H200:8", "A100-80GB:4", "H100:4")

    assert kinds(find("lambda", *recipe)) == [("lambda", "A100-80GB", 8), ("lambda", "H100", 8)]


def test_names_are_read_in_any_case_and_written_as_the_catalogue_has_them():
    (offer,) = find("runpod", "a100-80gb:8", region="us")

    assert (offer.gpu, offer.region) == ("A100-80GB", "US")


def test_region_keeps_all_others_out():
    assert {o.region for o in find("lambda", "H100:8", region="us-west-1")} == {"us-west-1"}


def test_spot_price_is_the_price_of_a_spot_machine():
    offer = find("runpod", "A100-80GB:8", spot=True)[0]

    assert (offer.spot, offer.price_per_hour) == (True, Decimal("6.56"))


def test_price_given_by_the_user_stands_in_for_every_other_and_says_so():
    offers = find("lambda", "H100:8", price_per_hour=Decimal(7))

    assert {o.price_per_hour for o in offers} == {Decimal(7)}
    assert offers[0].price_source == "given by --price-per-hour"


def test_price_is_dated_by_the_day_the_catalogue_was_fetched(tmp_path):
    path = tmp_path / "lambda" / "vms.csv"
    path.parent.mkdir()
    path.write_bytes((FOLDER / "lambda" / "vms.csv").read_bytes())
    fetched = datetime(2026, 11, 3, 12, tzinfo=UTC).timestamp()
    os.utime(path, (fetched, fetched))

    offer = find_offers([Catalog(tmp_path, "lambda")], wanted("H100:8"))[0]

    assert (offer.price_source, offer.price_as_of) == ("SkyPilot's catalogue", "2026-11-03")


def test_recipe_without_gpus_gets_the_cheapest_machine_with_its_cores():
    assert {o.instance_type for o in find("lambda")} == {"cpu_4x_general"}
    # Neither an ARM machine, nor an eighth of a GPU, nor two cores.
    assert [o.instance_type for o in find("aws")] == ["c5.xlarge", "c5.xlarge"]
    assert [o.instance_type for o in find("aws", cpu_ranks=8)] == ["c5.4xlarge"]


def test_gcp_gpus_cost_as_much_as_they_and_the_machine_that_carries_them():
    (offer,) = find("gcp", "A100-80GB:8")  # not us-west1, which has no such machine

    assert (offer.region, offer.instance_type) == ("us-central1", "a2-ultragpu-8g")
    assert offer.price_per_hour == Decimal("40.19698")
    assert find("gcp", "A100-80GB:8", spot=True)[0].price_per_hour == Decimal("20.09824")


def test_gcp_machines_made_for_gpus_are_no_cpu_machines():
    assert [o.instance_type for o in find("gcp")] == ["n2-standard-4"]


@pytest.mark.parametrize(
    ("clouds", "gpus", "fields", "message", "hint"),
    [
        ("lambda", ["H1000:8"], {}, "lambda has no GPU 'H1000'; nearest: 'H100'", "A10, A100, "),
        ("lambda,runpod", ["Z:1"], {}, "lambda, runpod has no GPU 'Z'", "one of: A10, A100"),
        ("lambda", ["H100:16"], {}, "no machine of lambda has 16 H100", "they come in 8; `--nodes"),
        ("runpod", ["A100-80GB:4"], {}, "has 4 A100-80GB", "they come in 1, 2, 8"),
        ("lambda", ["H100:8"], {"region": "us-east1"}, "nearest: 'us-east-1'", "us-midwest-1, us"),
        ("lambda", [], {"region": "mars"}, "lambda has no region 'mars'", "one of: us-east-1"),
    ],
)
def test_name_that_nobody_knows_is_refused_with_the_nearest(clouds, gpus, fields, message, hint):
    with pytest.raises(UsageError) as refused:
        find(clouds, *gpus, **fields)

    assert message in refused.value.message
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("clouds", "gpus", "fields", "message", "hint"),
    [
        ("lambda", ["H100:8"], {"spot": True}, "lambda has no spot machines", "--spot"),
        ("vast", ["H100:8"], {"spot": True}, "vast has no spot machines", "--spot"),
        ("runpod", ["H100:8"], {"spot": True}, "no H100:8 as a spot machine", "leave out `--spot`"),
        ("runpod", ["H100:8"], {"region": "CA"}, "region CA of runpod has no H100:8", "US"),
        ("lambda", [], {"cpu_ranks": 64}, "no CPU machine of 64 cores", "`--gpus`"),
    ],
)
def test_what_is_nowhere_to_be_had_is_refused_with_where_to_look(
    clouds, gpus, fields, message, hint
):
    with pytest.raises(PlanRefusedError) as refused:
        find(clouds, *gpus, **fields)

    assert message in refused.value.message
    assert hint in refused.value.hint


@pytest.mark.parametrize("text", ["", ":8", "H100:x", "H100:0", "H100:-1", "H100:8:8"])
def test_senseless_gpus_are_usage_errors(text):
    with pytest.raises(UsageError, match="names no GPUs"):
        parse_gpus(text)


def test_cloud_without_a_catalogue_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        Catalog(tmp_path, "lambda")


def test_empty_catalogue_is_one_that_has_nothing(tmp_path):
    (tmp_path / "lambda").mkdir()
    (tmp_path / "lambda" / "vms.csv").write_text("")

    with pytest.raises(UsageError, match="lambda has no GPU 'H100'"):
        find_offers([Catalog(tmp_path, "lambda")], wanted("H100:8"))


def test_machines_of_ones_own_cost_what_their_owner_says():
    assert brief(offer_unpriced("kubernetes", wanted("H100:8", "A100:8"))) == [
        ("kubernetes", "", "H100", 8, "0"),
        ("kubernetes", "", "A100", 8, "0"),
    ]
    (offer,) = offer_unpriced("ssh", wanted(price_per_hour=Decimal(2), region="rack"))
    assert (offer.region, offer.gpu_count, offer.price_per_hour) == ("rack", 0, 2)
