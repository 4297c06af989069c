"""Machines at a price: how they are described, and this machine, at the price its owner names."""

import os
from datetime import date
from decimal import Decimal
from typing import Protocol

from training.layout import Offer

OWN_MACHINE = "your own machine, no price given"
GIVEN_PRICE = "given by --price-per-hour"


class Priced(Protocol):
    """What bears a price that may be old: an offer, or the estimate that was made of one."""

    @property
    def cloud(self) -> str: ...
    @property
    def price_source(self) -> str: ...
    @property
    def price_as_of(self) -> str: ...


def offer_this_machine(
    gpu_names: list[str], *, price_per_hour: Decimal | None, today: date
) -> Offer:
    """This machine: its GPUs by name (none: its CPU), billed at `price_per_hour` dollars."""
    return Offer(
        cloud="local",
        region="here",
        instance_type="this machine",
        gpu=gpu_names[0] if gpu_names else "CPU",
        gpu_count=len(gpu_names),
        spot=False,
        price_per_hour=price_per_hour or Decimal(0),
        price_source=OWN_MACHINE if price_per_hour is None else GIVEN_PRICE,
        price_as_of=today.isoformat(),
        vcpus=usable_cores(),
    )


def usable_cores() -> int:
    """Of this machine, those that a program started from here may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_free(offer: Offer) -> float | None:
    """What the GPUs' processes, each with a core of its own, leave; None where nobody knows."""
    return None if offer.vcpus is None else max(1.0, offer.vcpus - offer.gpu_count)


def describe_machine(offer: Offer) -> str:
    """`8x NVIDIA H200, this machine`; of a cluster of one's own only its GPUs are known."""
    return ", ".join(filter(None, (describe_gpus(offer), offer.instance_type)))


def describe_gpus(offer: Offer) -> str:
    """`8x H100`, or `CPU`"""
    return f"{offer.gpu_count}x {offer.gpu}" if offer.gpu_count else offer.gpu
