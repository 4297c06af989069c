"""The ranks of a run: torchrun's environment when there is one, else a group of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from training.processes import available_cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_sum(self, values: Tensor) -> Tensor:
        """`values` summed over the ranks, in place; every rank gets the same bits."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def agree(self, *mine: bool) -> list[bool]:
        """For each of the flags, whether any rank has it set."""
        flags = torch.tensor(mine, dtype=torch.float32, device=self.device)
        return [count > 0 for count in self.all_sum(flags).tolist()]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_ranks(device: Literal["cpu", "cuda"]) -> Iterator[Ranks]:
    """Join the process group of torchrun (gloo on CPU, nccl on CUDA) and leave it at the end."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    else:
        # Ranks that fight over cores are slower than ranks that share them out.
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, available_cores() // local_ranks))
    ranks = Ranks(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=local_rank,
        world_size=world_size,
        device=torch.device(device, local_rank) if device == "cuda" else torch.device("cpu"),
    )
    if world_size == 1:
        yield ranks
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
