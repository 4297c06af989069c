"""What a supervisor is told of the machine it is on, and what follows from that."""

import argparse
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from training.check import list_gpus
from training.cluster import Cluster, make_cluster
from training.layout import Offer, RunRecord
from training.meter import Limits
from training.placement import choose_offer, parse_place
from training.setup import read_setup, read_uptime_s


class Machine(Struct, frozen=True, kw_only=True):
    """What a life is lived on: this node, and those beside it.

    `since` is when it began to count for this run, `setup` its phases from then until now in
    seconds, `teardown_s` what is billed after the last word. `go_down_in`: see `Wall`.
    """

    cluster: Cluster
    since: datetime
    offer: Offer | None = None
    setup: tuple[tuple[str, float], ...] = ()
    teardown_s: float = 0.0
    go_down_in: str | None = None

    @property
    def setup_s(self) -> float:
        return sum(seconds for _, seconds in self.setup)


def describe_machine(
    options: argparse.Namespace, record: RunRecord, offer: Offer | None, *, since: datetime
) -> Machine:
    """`offer`: the one that was taken, where there were several."""
    ranks = record.ranks
    if offer is not None and record.device == "cuda":  # perhaps not the one that was planned
        ranks = (len(list_gpus()) or offer.gpu_count) * options.node_count
    setup = []
    if options.setup_file is not None:
        age_s = (datetime.now(UTC) - since).total_seconds()
        setup = read_setup(options.setup_file, age_s=age_s, now_s=read_uptime_s())
    return Machine(
        cluster=make_cluster(
            node_rank=options.node_rank,
            node_ips=options.node_ips,
            port=options.port,
            node_count=options.node_count,
            ranks=ranks,
        ),
        since=since,
        offer=offer,
        setup=tuple(setup),
        teardown_s=options.teardown_s,
        go_down_in=options.go_down_in or None,
    )


def take_offer(options: argparse.Namespace) -> Offer | None:
    """Which of the offers that this run might get it got; None where it was told of none."""
    offers = msgspec.json.decode(options.offers or "[]", type=list[Offer])
    return choose_offer(offers, parse_place(options.place), list_gpus()) if offers else None


def take_limits(options: argparse.Namespace, record: RunRecord, offer: Offer | None) -> Limits:
    """Those that were given now, else the record's. An offer is the price of one machine."""
    price = options.price_per_hour
    if price is None:
        price = (offer or record.offer).price_per_hour * options.node_count
    return Limits(
        budget_usd=options.budget_usd or record.budget_usd,
        max_hours=options.max_hours or record.max_hours,
        price_per_hour=price,
    )
