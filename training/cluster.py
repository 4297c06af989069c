"""The nodes of a run, and how torchrun joins their ranks into one group. Torch-free.

Every node starts torchrun with the same arguments but for its own rank; they meet at a port of
the head node, the first of the list, which alone owns the run's record.
"""

import os
import socket

import psutil
from msgspec import Struct

from training.processes import available_cores

DEFAULT_PORT = 29500
CHECK = 0
"""`stage_offset` of the check of all GPUs."""
TRAIN = 1
"""`stage_offset` of training, plus one for each time that it died in this life of the run."""
JOIN_TIMEOUT_S = 900
"""Longest wait of one node for the others, some of which may still be installing."""
NODES_MISSING = 75
"""Exit code of `training.ranks` where the nodes did not find each other within that time."""
OUT_OF_MEMORY = 76
"""Exit code of training that may be started again with half the micro-batch."""


class Cluster(Struct, frozen=True, kw_only=True):
    """`node_rank` is this node's; `head` is the address of node 0, with ports from `port` on."""

    node_rank: int = 0
    node_count: int = 1
    head: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    ranks_per_node: int = 1

    @property
    def world_size(self) -> int:
        return self.node_count * self.ranks_per_node

    @property
    def is_head(self) -> bool:
        return self.node_rank == 0

    @property
    def uses_torchrun(self) -> bool:
        """Whether a stage's ranks are torchrun's children (`Stage.ask_to_stop(ranks=…)`)."""
        return self.world_size > 1

    def torchrun(self, stage_offset: int, module: str, *arguments: str) -> list[str]:
        """What a `Stage` is given to run `module` on every rank of this node.

        Nodes meet only where they start the same `stage_offset` (CHECK, or TRAIN + deaths):
        each has a port of its own, so that none joins a group that is about to end.
        """
        if not self.uses_torchrun:
            return [module, *arguments]
        if self.node_count == 1:
            meeting = ["--standalone"]
        else:
            meeting = [
                *("--nnodes", str(self.node_count), "--node-rank", str(self.node_rank)),
                *("--master-addr", self.head, "--master-port", str(self.port + stage_offset)),
                *("--rdzv-id", f"stage-{stage_offset}"),
                *("--rdzv-conf", f"timeout={JOIN_TIMEOUT_S}"),
            ]
        ranks = str(self.ranks_per_node)
        return ["training.ranks", *meeting, "--nproc-per-node", ranks, "-m", module, *arguments]

    def thread_settings(self) -> dict[str, str]:
        """OpenMP's environment for a stage's ranks; whoever set it for us knows better.

        GNU OpenMP lets idle threads spin for milliseconds: on a machine that is also doing
        something else, a step then takes many times as long.
        """
        threads = str(max(1, available_cores() // self.ranks_per_node))
        settings = {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "50000"}
        return {name: os.environ.get(name, value) for name, value in settings.items()}


def make_cluster(
    *, node_rank: int, node_ips: str, port: int, node_count: int, ranks: int
) -> Cluster:
    """From what SkyPilot tells a node: addresses one a line, the head's first; `ranks` in all."""
    addresses = node_ips.split()
    return Cluster(
        node_rank=node_rank,
        node_count=node_count,
        head=addresses[0] if addresses else "127.0.0.1",
        port=port,
        ranks_per_node=max(1, ranks // node_count),
    )


def interface_towards(address: str) -> str | None:
    """The network interface by which this node reaches `address`; None where it cannot tell.

    gloo would take the one that the host's own name resolves to, which on Debian and Ubuntu
    is loopback (127.0.1.1), where no other node can reach it.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: the kernel only looks up the route
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == own for entry in addresses):
            return name
    return None
