from decimal import Decimal

import pytest

from training.layout import Offer
from training.placement import Place, choose_offer, parse_place

LAMBDA = Place(cloud="Lambda", region="us-east-1")


def offer(gpu: str, count: int, price: str, *, region: str = "us-east-1") -> Offer:
    return Offer(
        cloud="lambda", region=region, instance_type="x", gpu=gpu, gpu_count=count, spot=False,
        price_per_hour=Decimal(price), price_source="a test", price_as_of="2026-11-21",
    )  # fmt: skip


A100 = offer("A100", 8, "15.92")
A100_80GB = offer("A100-80GB", 8, "22.32")
H100 = offer("H100", 8, "31.92")
HALF = offer("A100-80GB", 4, "11.16")
ELSEWHERE = offer("A100-80GB", 8, "24.00", region="us-west-2")
ALL = (A100_80GB, ELSEWHERE, H100, A100, HALF)


@pytest.mark.parametrize(
    ("name", "count", "taken"),
    [
        ("NVIDIA A100-SXM4-80GB", 8, A100_80GB),
        ("NVIDIA A100-SXM4-80GB", 4, HALF),
        ("NVIDIA A100-SXM4-40GB", 8, A100),
        ("NVIDIA H100 80GB HBM3", 8, H100),
    ],
)
def test_the_offer_is_told_by_the_gpus_that_are_there(name: str, count: int, taken: Offer) -> None:
    assert choose_offer(ALL, LAMBDA, [name] * count) == taken


@pytest.mark.parametrize(
    ("catalogue", "driver"),
    [("RTX6000", "Quadro RTX 6000"), ("A10", "NVIDIA A10"), ("H100-SXM", "NVIDIA H100 80GB HBM3")],
)
def test_a_catalogues_name_is_found_in_the_drivers(catalogue: str, driver: str) -> None:
    wanted, other = offer(catalogue, 1, "1"), offer("A100", 1, "9")
    assert choose_offer([other, wanted], LAMBDA, [driver]) == wanted


def test_the_region_decides_between_equal_machines() -> None:
    there = Place(cloud="LAMBDA", region="US-WEST-2")
    assert choose_offer(ALL, there, ["NVIDIA A100-SXM4-80GB"] * 8) == ELSEWHERE


def test_what_cannot_be_told_apart_costs_the_dearest() -> None:
    assert choose_offer(ALL, Place(cloud="aws", region="us-east-1"), []) == H100
    cheap, dear = offer("", 0, "1"), offer("", 0, "2")
    assert choose_offer([cheap, dear], LAMBDA, []) == dear


def test_an_offer_without_a_region_is_anywhere() -> None:
    pod = offer("", 0, "1", region="-")
    assert choose_offer([pod, A100], Place(cloud="lambda"), []) == pod


@pytest.mark.parametrize("text", ["", "nonsense", "[1]", '{"cloud": 3}'])
def test_a_place_that_cannot_be_read_is_nowhere(text: str) -> None:
    assert parse_place(text) == Place()


def test_a_place_is_read_among_other_fields() -> None:
    told = '{"cluster_name": "x", "cloud": "Lambda", "region": "us-east-1", "zone": null}'
    assert parse_place(told) == LAMBDA
