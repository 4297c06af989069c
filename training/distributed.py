"""The ranks of a run: torchrun's environment when there is one, else a group of one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import TrainingError
from training.processes import available_cores

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)
"""Of a collective. Far longer than the supervisor waits, who first looks where all ranks stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """`device` tensors travel by nccl on CUDA, all that is on the host by gloo.

    The three groups are None where one rank is the whole of them.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    node_rank: int = 0
    local_world_size: int = 1
    node: dist.ProcessGroup | None = None
    """This node's ranks, which share its disk."""
    background: dist.ProcessGroup | None = None
    """The same, by gloo, for a thread beside the loop: no group may be used by two threads."""
    peers: dist.ProcessGroup | None = None
    """The ranks with this one's number on all nodes, which hold the same share."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_sum(self, values: Tensor) -> Tensor:
        """`values` summed over the ranks, in place; every rank gets the same bits."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def agree(self, *mine: bool) -> list[bool]:
        """For each of the flags, whether any rank has it set. The device is not waited for."""
        flags = torch.tensor(mine, dtype=torch.float32)
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

    def broadcast_to_peers(self, values: Tensor) -> Tensor:
        """`values` of the head node's peer in place of this one's, bit for bit."""
        if self.peers is not None:
            dist.broadcast(values, group=self.peers, group_src=0)
        return values

    def barrier(self) -> None:
        """Until all ranks' hosts are here."""
        self.agree(False)


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
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )
    if world_size == 1:
        yield ranks
        return
    if device == "cuda":
        # Told its device, nccl connects at once, and never has to guess it from the rank.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=ranks.device, timeout=TIMEOUT)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield _join_groups(ranks)
    finally:
        dist.destroy_process_group()


def _join_groups(ranks: Ranks) -> Ranks:
    """Every rank asks for every group, in the same order, as torch wants it."""
    local = ranks.local_world_size
    nodes = [list(range(first, first + local)) for first in range(0, ranks.world_size, local)]
    peers = [list(members) for members in zip(*nodes, strict=True)]

    def mine(groups: list[list[int]], backend: str | None = None) -> dist.ProcessGroup | None:
        if len(groups[0]) == 1:
            return None
        made = {
            tuple(members): dist.new_group(members, timeout=TIMEOUT, backend=backend)
            for members in groups
        }
        group: dist.ProcessGroup = next(made[members] for members in made if ranks.rank in members)
        return group

    return replace(ranks, node=mine(nodes), background=mine(nodes, "gloo"), peers=mine(peers))
