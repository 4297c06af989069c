"""How fast the ranks exchange gradients, measured, and what their machine should reach.

Bus bandwidth as nccl-tests defines it: bytes per second × 2(n-1)/n, which compares with the
speed of the links whatever the number of ranks
(https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor

from training.distributed import Ranks
from training.errors import TrainingError

REPEATS = 3
GROWTH = 4
LEAST_SHARE = 1 / 3
"""Of what a machine should reach: below it, a link is missing or another way is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Messages grow from `first_bytes` up to `last_bytes`, as long as one takes `limit_s`."""

    first_bytes: int
    last_bytes: int
    limit_s: float


CUDA_SIZES = Sizes(first_bytes=16 << 20, last_bytes=1 << 30, limit_s=2.0)
CPU_SIZES = Sizes(first_bytes=1 << 20, last_bytes=16 << 20, limit_s=0.5)

PROMISES = (
    # (in the GPU's name, least number of GPUs, GB/s of bus bandwidth, why), in order of match.
    ("PCI", 2, 10.0, "PCIe 4.0 ×16 moves 32 GB/s one way; peers behind two CPUs reach a third"),
    ("NVL", 2, 10.0, "only pairs have an NVLink bridge, the others PCIe"),
    # With fewer GPUs of an A100 board, as few as 4 of the 12 links join two of them.
    ("A100-SXM", 4, 230.0, "12 NVLinks × 25 GB/s less protocol; nccl-tests issue 149 has 200-230"),
    ("H100", 4, 450.0, "18 NVLinks × 25 GB/s; with NVLink SHARP 480: nccl-tests issue 212"),
    ("H200", 4, 450.0, "the links of H100; nccl-tests issue 272 has 475"),
)


def promised_gb_per_s(names: Sequence[str], *, nodes: int) -> tuple[float, str] | None:
    """(bus bandwidth that ranks on these GPUs should reach, why); None: nothing is promised.

    Between nodes nothing is: clouds join them by anything from 10 Gbit/s to 3200.
    """
    if nodes > 1 or len(set(names)) != 1:
        return None
    for part, least, gb_per_s, why in PROMISES:
        if part in names[0]:
            return (gb_per_s, why) if len(names) >= least else None
    return None


def bus_bandwidth(size_bytes: int, seconds: float, ranks: int) -> float:
    """Bytes per second on each rank's links."""
    return size_bytes / seconds * 2 * (ranks - 1) / ranks


def measure_all_reduce(
    ranks: Ranks, device: torch.device, group: dist.ProcessGroup, sizes: Sizes
) -> tuple[float, int]:
    """(bus bandwidth in bytes per second, size of the message in bytes), the same on every rank.

    Raises TrainingError where the ranks do not even add up right.
    """
    n = ranks.world_size
    found = torch.full((1024,), float(ranks.rank + 1), device=device)
    dist.all_reduce(found, group=group)
    if not bool((found == n * (n + 1) / 2).all()):
        raise TrainingError(
            f"all_reduce over {n} ranks gave a wrong sum on rank {ranks.rank}",
            hint="a sick GPU or link: launch again, on another machine",
        )
    size_bytes = sizes.first_bytes
    while True:
        seconds = _slowest(_time(size_bytes, device, group), device, group)
        # One call more than the repeats, to warm up.
        next_s = seconds * GROWTH * (REPEATS + 1)
        if size_bytes * GROWTH > sizes.last_bytes or next_s > sizes.limit_s:
            return bus_bandwidth(size_bytes, seconds, n), size_bytes
        size_bytes *= GROWTH


def _time(size_bytes: int, device: torch.device, group: dist.ProcessGroup) -> float:
    """Seconds that one all_reduce of so many bytes takes this rank."""
    message = torch.zeros(size_bytes // 4, device=device)
    dist.all_reduce(message, group=group)
    _finish(message)
    started = perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(message, group=group)
    _finish(message)
    return (perf_counter() - started) / REPEATS


def _slowest(seconds: float, device: torch.device, group: dist.ProcessGroup) -> float:
    """Of all ranks, so that they go on alike."""
    values = torch.tensor([seconds], dtype=torch.float64, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group)
    return float(values)


def _finish(values: Tensor) -> None:
    if values.device.type == "cuda":
        torch.cuda.synchronize(values.device)
