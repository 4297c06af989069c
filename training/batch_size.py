"""How the tokens of a step are shared out over the ranks that there are.

The run's record holds what was planned; a run may get another machine, or go on on one.
"""

import torch

from training.config import Recipe, split_batch
from training.distributed import Ranks
from training.errors import ConfigError

RECIPE_MEMORY_BYTES = 80e9
"""What recipes choose their micro-batch for: one A100-80GB or H100, which have 85e9 and more."""


def share_batch(recipe: Recipe, ranks: Ranks) -> tuple[int, int]:
    """(micro_batch_size, grad_accum_steps), the same on every rank; a step stays as it is.

    Raises ConfigError where the ranks cannot share a step's sequences evenly.
    """
    train = recipe.train
    smallest = min(ranks.gather(memory_bytes(ranks.device)))
    try:
        return split_batch(
            batch_tokens=train.batch_tokens,
            block_size=recipe.model.block_size,
            micro_batch_size=fit_micro_batch(train.micro_batch_size, smallest),
            ranks=ranks.world_size,
        )
    except ValueError as error:
        raise ConfigError(
            str(error),
            hint="take a number of ranks that divides them, or change train.batch_tokens",
        ) from error


def fit_micro_batch(asked: int, memory_bytes: float) -> int:
    """The micro-batch that a recipe asks for, less in proportion on a smaller device (≥ 1)."""
    return max(1, int(asked * min(1.0, memory_bytes / RECIPE_MEMORY_BYTES)))


def memory_bytes(device: torch.device) -> float:
    """Of one device; without bound for a CPU, whose recipes are made for it."""
    if device.type != "cuda":
        return float("inf")
    return float(torch.cuda.get_device_properties(device).total_memory)
