from datetime import date
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.backends import Wanted
from gptctl.backends.local import LocalBackend
from gptctl.offers import describe_machine, offer_this_machine

TODAY = date(2026, 11, 21)

FAKE_SMI = """#!/bin/sh
case "$*" in *--id=1*) echo 'NVIDIA H200';; *) echo 'NVIDIA H200'; echo 'NVIDIA H200';; esac
"""


@pytest.fixture
def smi_folder(tmp_path):
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(FAKE_SMI)
    program.chmod(0o755)
    return program.parent


def local_offer(tmp_path, env, price=None):
    wanted = Wanted(gpus=(), cpu_ranks=2, price_per_hour=price, today=TODAY)
    (offer,) = LocalBackend(tmp_path, env).offers(wanted)
    return offer


def test_machine_without_a_driver_is_a_cpu_without_a_price(tmp_path):
    offer = local_offer(tmp_path, {"PATH": ""})

    assert (offer.gpu, offer.gpu_count, offer.price_per_hour) == ("CPU", 0, 0)
    assert "no price" in offer.price_source


def test_gpus_are_counted_as_the_driver_lists_them(tmp_path, smi_folder):
    offer = local_offer(tmp_path, {"PATH": f"{smi_folder}:/usr/bin:/bin"})

    assert (offer.gpu, offer.gpu_count) == ("NVIDIA H200", 2)
    assert describe_machine(offer) == "2x NVIDIA H200, this machine"


@pytest.mark.parametrize(("visible", "count"), [("1", 1), ("", 0)])
def test_only_visible_gpus_are_offered(tmp_path, smi_folder, visible, count):
    env = {"PATH": f"{smi_folder}:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": visible}

    assert local_offer(tmp_path, env).gpu_count == count


def test_cluster_of_ones_own_is_described_by_its_gpus_alone():
    offer = offer_this_machine(["H100", "H100"], price_per_hour=None, today=TODAY)

    assert describe_machine(replace(offer, instance_type="")) == "2x H100"


def test_given_price_is_dated_and_says_who_gave_it():
    offer = offer_this_machine([], price_per_hour=Decimal("2.50"), today=TODAY)

    assert offer.price_per_hour == Decimal("2.50")
    assert offer.price_source == "given by --price-per-hour"
    assert offer.price_as_of == "2026-11-21"
