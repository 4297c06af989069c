"""The ranks of a run: torchrun's environment when there is one, else a group of one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import TrainingError
from training.processes import available_cores

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    node_rank: int = 0

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

    def gather(self, mine: T) -> list[T]:
        """What each rank brings, in their order, on all of them. Must be picklable."""
        if self.world_size == 1:
            return [mine]
        everyones: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyones, mine)
        return everyones

    def ask_first(self, question: Callable[[], T]) -> T:
        """What `question` answers on rank 0, the only one to ask it, told to all.

        Whatever it raises there ends all of them: none waits for an answer that never comes.
        The others raise TrainingError, of the same kind where it is one.
        """
        if self.world_size == 1:
            return question()
        answer: list[Any] = [None, None]
        raised: Exception | None = None
        if self.is_first:
            try:
                answer[0] = question()
            except TrainingError as error:
                raised = answer[1] = error
            except Exception as error:
                raised = error
                answer[1] = TrainingError(
                    f"rank 0 failed: {type(error).__name__}: {error}",
                    hint="its own words stand above or below in this log",
                )
        dist.broadcast_object_list(answer, src=0)
        if raised is not None:
            raise raised
        if isinstance(answer[1], Exception):
            raise answer[1]
        told: T = answer[0]
        return told

    def broadcast(self, values: Tensor) -> Tensor:
        """`values` of rank 0 in place of everyone's, bit for bit. On `device`."""
        if self.world_size > 1:
            dist.broadcast(values, src=0)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


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
        node_rank=int(os.environ.get("GROUP_RANK", "0")),
    )
    if world_size == 1:
        yield ranks
        return
    if device == "cuda":
        # Told its device, nccl connects at once, and never has to guess it from the rank.
        dist.init_process_group("nccl", device_id=ranks.device)
    else:
        dist.init_process_group("gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
