"""What a step of training takes of a device's memory, taken once before training begins."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from training.config import Recipe
from training.distributed import Ranks
from training.events import parse_lines
from training.model import GPT
from training.optimizer import Optimizers

RESERVED_BYTES = 1 << 30
"""Of a GPU, kept free in a trial: for nccl's buffers, fragments, and what evaluation needs."""


def take_memory_of_a_step(
    model: GPT,
    optimizers: Optimizers,
    micro_batch_size: int,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
) -> None:
    """Without a collective, and without changing anything; blocks get compiled by the way.

    Raises what the device raises where it has too little.
    """
    held = sum(tensor.nbytes for tensor in optimizers.state().values())
    reserved = max(0, optimizers.state_bytes() - held)
    if device.type == "cuda":
        reserved += RESERVED_BYTES
    ballast = torch.empty(reserved, dtype=torch.uint8, device=device)
    shape = micro_batch_size, model.config.block_size + 1
    windows = torch.zeros(shape, dtype=torch.int64, device=device)
    try:
        for _ in range(2):  # the second adds to the gradients of the first
            with autocast():
                loss = model(windows[:, :-1], windows[:, 1:])
            loss.backward()
        loss.detach().item()  # a GPU tells late what it could not do
    finally:
        del ballast
        model.zero_grad(set_to_none=True)


def micro_batch_that_may_fit(events: Path, recipe: Recipe, ranks: Ranks) -> int:
    """Half of what was too large in this life of the run, else what the recipe asks for.

    The same on every rank; 0 where there is no half of it.
    """
    at_most = recipe.train.micro_batch_size
    for event in parse_lines(events.read_bytes()) if events.exists() else ():
        if event["event"] == "life_started":
            at_most = recipe.train.micro_batch_size
        elif event["event"] == "out_of_memory":
            at_most = event["micro_batch_size"] // 2
    return min(ranks.gather(at_most))
