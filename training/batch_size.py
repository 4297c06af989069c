"""How the tokens of a step are shared out over the ranks that there are.

The run's record holds what was planned; a run may get another machine, or go on on one. What
fits into the memory of its GPUs is tried, since no formula knows it: the recipe's micro-batch,
and half of it for as long as any rank runs out of memory.
"""

import gc
from collections.abc import Callable

import torch

from training.config import Recipe, split_batch
from training.distributed import Ranks
from training.errors import ConfigError, OutOfMemoryError


def choose_batch(
    recipe: Recipe, ranks: Ranks, *, at_most: int, try_out: Callable[[int], None]
) -> tuple[int, int]:
    """(micro_batch_size, grad_accum_steps) that fit, the same on every rank; a step stays as it is.

    `try_out(micro_batch_size)` takes the memory of a training step, without a collective: a rank
    that has run out of memory could not be waited for. Raises ConfigError where the ranks cannot
    share a step's sequences evenly, OutOfMemoryError where not even one sequence fits.
    """
    while at_most:
        micro_batch_size, grad_accum_steps = share_batch(recipe, ranks, at_most=at_most)
        (is_too_large,) = ranks.agree(not _fits(micro_batch_size, try_out))
        if not is_too_large:
            return micro_batch_size, grad_accum_steps
        at_most = micro_batch_size // 2
    raise OutOfMemoryError(
        f"{recipe.model.parameters:,} parameters and one sequence of {recipe.model.block_size:,} "
        "tokens do not fit into the memory of a device",
        hint="take a larger GPU, `--set train.checkpoint_activations=true`, or on several GPUs "
        "`--set train.shard_optimizer=true`",
    )


def share_batch(recipe: Recipe, ranks: Ranks, *, at_most: int) -> tuple[int, int]:
    """(micro_batch_size, grad_accum_steps) of no more than `at_most` sequences, if it is less."""
    train = recipe.train
    try:
        return split_batch(
            batch_tokens=train.batch_tokens,
            block_size=recipe.model.block_size,
            micro_batch_size=min(train.micro_batch_size, at_most),
            ranks=ranks.world_size,
        )
    except ValueError as error:
        raise ConfigError(
            str(error),
            hint="take a number of ranks that divides them, or change train.batch_tokens",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the host, for which torch has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _fits(micro_batch_size: int, try_out: Callable[[int], None]) -> bool:
    try:
        try_out(micro_batch_size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    # Out of the handler, whose traceback held on to every tensor of the trial.
    gc.collect()
    torch.cuda.empty_cache()
    return False
