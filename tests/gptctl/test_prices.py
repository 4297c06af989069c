import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from gptctl.backends import CLOUDS
from gptctl.backends.sky_catalog import Catalog
from gptctl.errors import PlanRefusedError, UsageError
from gptctl.gpu_names import GPU_NAMES
from gptctl.offers import offer_this_machine
from gptctl.price_file import Price
from gptctl.prices import (
    SNAPSHOT,
    age_days,
    list_offers,
    newest,
    read_cache,
    read_snapshot,
    refresh,
    renew_cache,
    warn_of_age,
    write_cache,
)
from tests.gptctl.catalogues import FOLDER

TODAY = date(2026, 11, 21)
NOW = datetime(2026, 11, 21, 10, 30, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def price(usd="2.50", spot=None, **fields):
    known = {
        "cloud": "lambda",
        "instance_type": "gpu_8x_h100_sxm5",
        "region": "us-east-1",
        "gpu": "H100",
        "gpu_count": 8,
        "source": "a list",
        "as_of": "2026-11-20",
    }
    return Price(
        price_per_hour=usd and Decimal(usd),
        spot_price_per_hour=spot and Decimal(spot),
        **(known | fields),
    )


def refreshed(*clouds, today=TODAY):
    return refresh([Catalog(FOLDER, cloud) for cloud in clouds], today=today)


def catalogue(folder, cloud, *rows, fetched=NOW):
    """One of SkyPilot's, of those rows (type, GPU, count, vCPUs, price, region, spot price)."""
    path = folder / cloud / "vms.csv"
    path.parent.mkdir()
    header = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,Price,Region,SpotPrice"
    path.write_text("\n".join([header, *rows]) + "\n")
    os.utime(path, (fetched.timestamp(), fetched.timestamp()))
    return Catalog(folder, cloud)


def brief(offers):
    return [(o.cloud, o.gpu, o.gpu_count, str(o.price_per_hour)) for o in offers]


# The list that gptctl comes with


def test_every_price_of_the_snapshot_is_real_dated_and_has_a_source():
    for row in read_snapshot():
        assert row.cloud in CLOUDS
        assert row.source
        assert row.as_of == "undated" or date.fromisoformat(row.as_of)
        assert (row.gpu in GPU_NAMES) if row.gpu_count else row.gpu == "CPU"
        prices = [usd for usd in (row.price_per_hour, row.spot_price_per_hour) if usd is not None]
        assert prices
        assert all(0 < usd < 20 * max(row.gpu_count, 1) for usd in prices)
        assert prices == sorted(prices, reverse=True)


@pytest.mark.parametrize(
    ("cloud", "gpus", "usd"),
    [  # what their price lists said in 2026; a rebuilt snapshot has others
        ("lambda", "A100-80GB:8", "22.32"),
        ("lambda", "A100-40GB:8", "15.92"),
        ("lambda", "H100:8", "31.92"),
        ("aws", "A100-80GB:8", "27.44705"),
        ("aws", "A100:8", "21.957642"),
        ("aws", "H100:8", "55.04"),
        ("runpod", "A100-80GB:8", "11.12"),
    ],
)
def test_snapshot_has_the_prices_that_are_known(cloud, gpus, usd):
    offers = list_offers(read_snapshot(), clouds=[cloud], gpus=[gpus], today=TODAY)

    assert str(offers[0].price_per_hour) == usd


def test_snapshot_has_what_every_bundled_recipe_asks_for():
    for recipe in (["A100-80GB:8", "H100:8"], ["A100:8"], ["H200:8"], []):
        assert list_offers(read_snapshot(), gpus=recipe, today=TODAY)


# On disk


def test_list_reads_back_as_it_was_written(tmp_path):
    prices = [
        price(),
        price(None, "1.25", region='", US, NA'),
        price("0.10", gpu="CPU", gpu_count=0),
    ]

    write_cache(tmp_path / "new" / "prices.csv", prices, read_at=NOW)

    assert read_cache(tmp_path / "new" / "prices.csv") == prices


def test_snapshot_is_in_the_very_format_that_is_written(tmp_path):
    write_cache(tmp_path / "again.csv", read_snapshot(), read_at=NOW)

    assert (tmp_path / "again.csv").read_text().split("\n")[1:] == (
        SNAPSHOT.read_text().split("\n")[1:]
    )


def test_cache_that_was_never_written_is_empty_and_a_snapshot_that_is_missing_an_error(tmp_path):
    assert read_cache(tmp_path / "none.csv") == []
    with pytest.raises(UsageError, match="list of prices is missing") as refused:
        read_snapshot(tmp_path / "none.csv")
    assert "install" in refused.value.hint


def test_list_that_was_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "prices.csv"
    write_cache(path, [price(), price(region="Kraków, PL"), price()], read_at=NOW)
    whole = path.read_bytes()

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError) as refused:
            read_cache(path)
        assert str(path) in refused.value.message
        assert refused.value.hint == "`gptctl cost refresh` writes it anew"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format 1", "format 2", "written by a newer gptctl: format 2"),
        ("# gptctl prices", "# something", "is no list of prices"),
        ("2.50", "-2.50", "a price of -2.50 for gpu_8x_h100_sxm5"),
        ("2.50", "0", "a price of 0 "),
        ("2.50", "nan", "a price of NaN"),
        ("2.50", "9999", "a price of 9999"),
        ("2.50", "cheap", "is damaged"),
        (",8,", ",eight,", "is damaged"),
        ("H100,8", "H100", "is damaged"),
        ("gpu_count", "count", "is damaged"),
        ("a list", "a\udce9list", "cannot be read"),
    ],
)
def test_list_that_is_not_what_was_written_is_refused(tmp_path, old, new, message):
    path = tmp_path / "prices.csv"
    write_cache(path, [price()], read_at=NOW)
    path.write_text(path.read_text().replace(old, new), errors="surrogateescape")

    with pytest.raises(UsageError) as refused:
        read_cache(path)
    assert message in refused.value.message
    assert "cost refresh" in refused.value.hint


def test_renewing_replaces_the_clouds_that_were_read_and_keeps_the_others(tmp_path):
    path = tmp_path / "prices.csv"
    write_cache(path, [price("1", cloud="lambda"), price("2", cloud="runpod")], read_at=NOW)
    renewed = renew_cache(path, [price("3", cloud="lambda")], read_at=NOW)
    assert [(p.cloud, p.price_per_hour) for p in renewed] == [("runpod", 2), ("lambda", 3)]
    by_cloud = {p.cloud: p for p in renewed}
    assert {p.cloud: p for p in read_cache(path)} == by_cloud


def test_cache_that_was_cut_is_written_anew_as_its_error_advises(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("# gptctl prices, format 1, 40 rows, read at 2026-11-21\ncut")
    with pytest.raises(UsageError, match="prices"):
        read_cache(path)
    renewed = renew_cache(path, [price()], read_at=NOW)
    assert read_cache(path) == renewed == [price()]


def test_cache_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_cache(tmp_path)


# The newest


def test_cloud_that_was_refreshed_later_is_replaced_whole_and_others_stay():
    snapshot = [
        price("1", as_of="2026-08-03"),
        price("2", region="gone", as_of="undated"),
        price("3", cloud="gcp", as_of="2026-08-03"),
        price("4", cloud="vast", as_of="undated"),
    ]
    cached = [
        price("5", as_of="2026-11-21"),
        price("6", cloud="gcp", as_of="2026-07-01"),
        price("7", cloud="vast", as_of="2020-01-01"),
        price("8", cloud="nebius", as_of="2026-11-21"),
    ]

    assert [str(p.price_per_hour) for p in newest(snapshot, cached)] == ["3", "5", "7", "8"]
    assert newest(snapshot, []) == snapshot
    assert newest([], cached) == cached


# SkyPilot's catalogues


def test_catalogue_becomes_prices_with_our_names_its_source_and_its_date():
    (found,) = [p for p in refreshed("runpod") if p.gpu == "A100-80GB-PCIe" and p.gpu_count == 8
                and p.region == "US"]  # fmt: skip

    assert found.instance_type == "8x_A100-80GB_SECURE"
    assert (found.price_per_hour, found.spot_price_per_hour) == (Decimal("11.12"), Decimal("6.56"))
    assert (found.source, found.as_of) == (
        "SkyPilot's catalogue",
        min(Catalog(FOLDER, "runpod").as_of, TODAY.isoformat()),
    )


def test_gpus_of_gcp_cost_as_much_as_they_and_their_machine():
    offers = list_offers(refreshed("gcp"), gpus=["A100-80GB:8"], today=TODAY)

    assert brief(offers) == [("gcp", "A100-80GB", 8, "40.19698")]


def test_rows_without_a_real_price_or_a_known_gpu_are_dropped(tmp_path):
    found = refresh(
        [
            catalogue(
                tmp_path, "vast",
                "free,H100,8,32,0.00,US,0.00",
                "placeholder,H100,4,32,99999,US,",
                "unpriced,H100,2,32,,US,nan",
                "negative,H100,1,32,-3,US,",
                "unknown,MI300X,8,32,20,US,",
                "slice,H100,0.5,32,1,US,",
                "two-cores,,,2,0.01,US,",
                "8x-H100_SXM,H100,8,32,16.00,US,16.00",
            )
        ],
        today=TODAY,
    )  # fmt: skip

    assert [(p.instance_type, p.spot_price_per_hour) for p in found] == [("8x-H100_SXM", None)]


def test_of_machines_alike_the_cheapest_is_kept_and_the_cheapest_as_spot(tmp_path):
    found = refresh(
        [
            catalogue(
                tmp_path, "aws",
                "g5.2xlarge,A10G,1,8,1.20,us,0.60",
                "g5.xlarge,A10G,1,4,1.00,us,0.50",
                "g5.4xlarge,A10G,1,16,1.60,us,0.40",
                "g5.xlarge,A10G,1,4,1.10,eu,0.55",
            )
        ],
        today=TODAY,
    )  # fmt: skip

    assert [(p.instance_type, p.region) for p in found] == [
        ("g5.xlarge", "eu"), ("g5.xlarge", "us"), ("g5.4xlarge", "us"),
    ]  # fmt: skip


def test_machines_of_one_gpu_name_that_differ_in_speed_are_kept_apart(tmp_path):
    found = refresh(
        [
            catalogue(
                tmp_path, "lambda",
                "gpu_1x_h100_pcie,H100,1,26,3.29,us-east-1,",
                "gpu_1x_h100_sxm5,H100,1,26,4.29,us-east-1,",
            )
        ],
        today=TODAY,
    )  # fmt: skip

    assert {p.gpu: str(p.price_per_hour) for p in found} == {"H100": "4.29", "H100-PCIe": "3.29"}


def test_catalogue_that_another_clock_dated_ahead_is_of_today(tmp_path):
    row = "gpu_8x_h100_sxm5,H100,8,208,31.92,us-east-1,"
    ahead = catalogue(tmp_path, "lambda", row, fetched=NOW + timedelta(days=400))

    assert refresh([ahead], today=TODAY)[0].as_of == "2026-11-21"


# Offers


def test_one_offer_for_each_cloud_and_gpus_at_the_cheapest_region_cheapest_first():
    prices = [
        price("40", region="dear"),
        price("32", region="cheap"),
        price("20", gpu="A100-80GB"),
        price("4", gpu_count=1),
        price("30", cloud="verda"),
        price("1", gpu="CPU", gpu_count=0),
    ]

    offers = list_offers(prices, today=TODAY)

    assert brief(offers) == [
        ("lambda", "H100", 1, "4"),
        ("lambda", "A100-80GB", 8, "20"),
        ("verda", "H100", 8, "30"),
        ("lambda", "H100", 8, "32"),
    ]
    assert offers[-1].region == "cheap"
    assert (offers[-1].price_source, offers[-1].price_as_of) == ("a list", "2026-11-20")


def test_offers_are_in_order_and_none_of_the_snapshot_is_cheaper():
    for spot in (False, True):
        offers = list_offers(read_snapshot(), spot=spot, today=TODAY)

        assert all(a.price_per_hour <= b.price_per_hour for a, b in pairwise(offers))
        for offer in offers:
            alike = [
                usd for p in read_snapshot() if (usd := p.usd(spot=spot)) is not None
                and (p.cloud, p.gpu, p.gpu_count) == (offer.cloud, offer.gpu, offer.gpu_count)
            ]  # fmt: skip
            assert offer.price_per_hour == min(alike)


def test_clouds_gpus_and_spot_narrow_the_offers():
    prices = [
        price("30", "10"),
        price("31", cloud="verda"),
        price("20", "5", gpu="A100-80GB"),
        price("19", gpu="A100-80GB-PCIe"),
        price("1", gpu="CPU", gpu_count=0),
    ]

    def find(**fields):
        return brief(list_offers(prices, today=TODAY, **fields))

    assert find(clouds=["verda"]) == [("verda", "H100", 8, "31")]
    assert find(gpus=["a100-80gb:8"]) == [
        ("lambda", "A100-80GB-PCIe", 8, "19"), ("lambda", "A100-80GB", 8, "20"),
    ]  # fmt: skip
    assert find(gpus=["A100-80GB-SXM:8"]) == [("lambda", "A100-80GB", 8, "20")]
    assert find(gpus=["H100:8"], spot=True) == [("lambda", "H100", 8, "10")]
    assert find(gpus=[]) == [("lambda", "CPU", 0, "1")]
    assert find(clouds=["any"], gpus=["H200:8", "H100:8"]) == find(gpus=["H100:8"])


def test_price_of_the_users_stands_in_for_all_and_is_of_today():
    offers = list_offers(
        [price("30"), price("31", cloud="verda")], price_per_hour=Decimal(14), today=TODAY
    )

    assert [o.cloud for o in offers] == ["lambda", "verda"]
    assert {
        (o.price_per_hour, o.price_source, o.price_as_of) for o in offers
    } == {(Decimal(14), "given by --price-per-hour", "2026-11-21")}  # fmt: skip


def test_machines_that_no_list_has_cost_what_the_user_says():
    def find(cloud, usd):
        return brief(
            list_offers(
                [price()], clouds=[cloud], gpus=["h100-sxm:8"], price_per_hour=usd, today=TODAY
            )
        )

    assert find("kubernetes", Decimal(9)) == [("kubernetes", "H100", 8, "9")]
    assert find("local", None) == [("local", "H100", 8, "0")]
    assert find("mithril", Decimal(9)) == [("mithril", "H100", 8, "9")]


@pytest.mark.parametrize(
    ("fields", "error", "message", "hint"),
    [
        ({"clouds": ["lamda"]}, UsageError, "no cloud 'lamda'; nearest: 'lambda'", "runpod"),
        ({"gpus": ["H1000:8"]}, UsageError, "no GPU 'H1000'; nearest: 'H100'", "A100-80GB"),
        ({"gpus": ["zzz", "H100:8"]}, UsageError, "no GPU 'zzz'", "one of: A100-40GB"),
        ({"gpus": ["H100:x"]}, UsageError, "names no GPUs", "A100-80GB:8"),
        ({"gpus": ["H100:16"]}, UsageError, "any has H100:16", "they come in 1, 8; `--nodes N`"),
        ({"gpus": ["L4:1"], "clouds": ["verda"]}, UsageError, "verda has L4:1", "it has: H100"),
        ({"gpus": []}, UsageError, "no machine of any has CPU", "it has: H100"),
        ({"clouds": ["gcp"]}, UsageError, "no price of gcp is known", "cost refresh"),
        ({"clouds": ["local"]}, UsageError, "no price of local is known", "--gpus"),
        ({"clouds": ["verda"], "spot": True}, PlanRefusedError, "not as a spot", "leave out"),
        ({"gpus": ["H100:1"]}, PlanRefusedError, "as a spot machine only", "`--spot`"),
    ],
)
def test_what_no_cloud_has_is_refused_with_what_there_is(fields, error, message, hint):
    prices = [price("30", "10"), price("31", cloud="verda"), price(None, "2", gpu_count=1)]

    with pytest.raises(error) as refused:
        list_offers(prices, today=TODAY, **fields)

    assert message in refused.value.message
    assert hint in refused.value.hint


# Their age


def of_age(days, cloud="lambda"):
    as_of = "undated" if days is None else (TODAY - timedelta(days=days)).isoformat()
    (offer,) = list_offers([price(cloud=cloud, as_of=as_of)], today=TODAY)
    return offer


@pytest.mark.parametrize(("days", "age"), [(0, 0), (31, 31), (-1, 0), (None, None)])
def test_age_of_a_price_is_in_days_and_unknown_where_it_bears_no_date(days, age):
    assert age_days(of_age(days), today=TODAY) == age


def test_prices_older_than_a_month_or_undated_are_warned_of_by_cloud():
    assert warn_of_age([of_age(30), of_age(0, "gcp")], today=TODAY) is None
    assert warn_of_age(
        [of_age(31), of_age(120, "gcp"), of_age(None, "vast"), of_age(0, "aws")], today=TODAY
    ) == (
        "prices may have changed: those of gcp, lambda are up to 120 days old; those of vast bear "
        "no date; `gptctl cost refresh` reads today's"
    )


def test_price_that_the_user_named_is_never_old():
    given = replace(of_age(500), price_source="given by --price-per-hour")
    own = offer_this_machine([], price_per_hour=None, today=TODAY - timedelta(days=500))

    assert warn_of_age([given, own], today=TODAY) is None


# Rebuilding the snapshot


def test_script_replaces_the_clouds_that_skypilot_fetched_and_keeps_the_others(tmp_path):
    row = "gpu_8x_h100_sxm5,H100,8,208,29.99,us-east-1,"
    catalogue(tmp_path, "lambda", row, fetched=datetime.now(UTC))
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'scripts'); import build_prices; "
        "print(build_prices.main([sys.argv[1]], snapshot=Path(sys.argv[2])))"
    )
    copy = tmp_path / "prices.csv"
    copy.write_bytes(SNAPSHOT.read_bytes())

    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, copy],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "lambda: 1 prices, from the catalogue\n" in done.stdout
    assert "runpod: 9 prices, as they were\n" in done.stdout
    rebuilt = read_cache(copy)
    assert [str(p.price_per_hour) for p in rebuilt if p.cloud == "lambda"] == ["29.99"]
    assert [p for p in rebuilt if p.cloud != "lambda"] == [
        p for p in read_snapshot() if p.cloud != "lambda"
    ]
