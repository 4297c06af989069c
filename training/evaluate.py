"""Validation loss over a fixed set of tokens, the same set at any world size."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import split_windows
from training.distributed import Ranks
from training.model import IGNORED


class ValidationSet:
    """The first `tokens` tokens of the validation shard, as windows of T+1 that follow on."""

    def __init__(self, array: NDArray[np.uint16], *, tokens: int, block_size: int) -> None:
        self._array = array
        self._block_size = block_size
        self.windows = min(tokens, len(array) - 1) // block_size

    @property
    def tokens(self) -> int:
        """Targets that the loss is a mean over."""
        return self.windows * self._block_size

    def batch(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """`size` windows from the `first`; where there are fewer, rows whose targets count not.

        A batch of one fixed shape keeps a compiled model from compiling again.
        """
        t = self._block_size
        rows = [min(first + i, self.windows - 1) for i in range(size)]
        inputs, targets = split_windows([self._array[r * t : r * t + t + 1] for r in rows])
        targets[max(0, self.windows - first) :] = IGNORED
        return inputs, targets


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    validation: ValidationSet,
    *,
    micro_batch_size: int,
    ranks: Ranks,
    autocast: Callable[[], AbstractContextManager[None]],
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Mean cross-entropy in nats per token. Every rank calls it and gets the same number."""
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    stride = micro_batch_size * ranks.world_size
    for first in range(ranks.rank * micro_batch_size, validation.windows, stride):
        inputs, targets = validation.batch(first, micro_batch_size)
        with autocast():
            loss = model(inputs.to(ranks.device), targets.to(ranks.device), reduction="sum")
        total += loss
        on_batch()
    model.train()
    return float(ranks.all_sum(total)) / validation.tokens
