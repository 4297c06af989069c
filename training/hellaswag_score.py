"""HellaSwag: which of four endings the model finds likeliest, shared out among the ranks.

The loss counts over the ending alone. `acc` takes the ending with the smallest sum of losses,
`acc_norm` the one with the smallest mean, which does not favour short endings and is the one
reported (llm.c, build-nanogpt).

Batches are fixed by the examples and the micro-batch, and ranks take turns at them, so that
the score is the same at any world size. Rows are padded to multiples of WIDTH_STEP: two or
three shapes in all, so that a compiled model compiles no more often than that.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor, nn

from training.distributed import Ranks
from training.errors import NotFiniteError
from training.hellaswag import ENDINGS, Example, Ids
from training.model import IGNORED

WIDTH_STEP = 64


class ScoringStopped(Exception):  # noqa: N818
    """A rank was told to end before all had their share; raised on all ranks at once."""


class Score(Struct, frozen=True, kw_only=True):
    """Shares of `count` examples. Of `cut` of them the model saw only the end: its block is short.

    A score with `cut` examples in it compares with no published one.
    """

    acc: float
    acc_norm: float
    count: int
    cut: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples by index, each four rows of `width`. Rows for `size` examples, if fewer are left."""

    examples: tuple[int, ...]
    size: int
    width: int


def score(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    block_size: int,
    micro_batch_size: int,
    ranks: Ranks,
    autocast: Callable[[], AbstractContextManager[None]],
    on_batch: Callable[[], None] = lambda: None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Score:
    """Every rank calls it with the same examples and gets the same score.

    `micro_batch_size` is that of training: rows of a forward pass, never fewer than four.
    `is_stopping` is asked before each batch. Raises NotFiniteError and ScoringStopped, on all
    ranks at once.
    """
    losses = ending_losses(
        model,
        examples,
        batches=plan_batches(examples, block_size=block_size, micro_batch_size=micro_batch_size),
        block_size=block_size,
        ranks=ranks,
        autocast=autocast,
        on_batch=on_batch,
        is_stopping=is_stopping,
    )
    if not np.isfinite(losses).all():
        raise NotFiniteError(
            "losses on HellaSwag are not finite, so its endings cannot be told apart",
            hint="this model has diverged; score an earlier checkpoint",
        )
    lengths = [[min(ending.size, block_size) for ending in e.endings] for e in examples]
    labels = [example.label for example in examples]
    return Score(
        acc=float(np.mean(losses.argmin(1) == labels)),
        acc_norm=float(np.mean((losses / lengths).argmin(1) == labels)),
        count=len(examples),
        cut=sum(_inputs(example) > block_size for example in examples),
    )


def plan_batches(
    examples: Sequence[Example], *, block_size: int, micro_batch_size: int
) -> list[Batch]:
    """Every example once, the widest first; all batches of one width have one shape."""
    size = max(1, micro_batch_size // ENDINGS)
    by_width: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        width = min(_round_up(_inputs(example)), block_size)
        by_width.setdefault(width, []).append(index)
    return [
        Batch(examples=tuple(members[first : first + size]), size=size, width=width)
        for width, members in sorted(by_width.items(), reverse=True)
        for first in range(0, len(members), size)
    ]


@torch.no_grad()
def ending_losses(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    batches: Sequence[Batch],
    block_size: int,
    ranks: Ranks,
    autocast: Callable[[], AbstractContextManager[None]],
    on_batch: Callable[[], None] = lambda: None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> NDArray[np.float64]:
    """Summed loss of each ending in nats, (examples, 4), the same on every rank.

    Raises ScoringStopped.
    """
    was_training = model.training
    model.eval()
    is_stopped = False
    losses = torch.zeros(len(examples), ENDINGS, dtype=torch.float64, device=ranks.device)
    for batch in batches[ranks.rank :: ranks.world_size]:
        if is_stopped := is_stopping():
            break
        inputs, targets = make_rows([examples[i] for i in batch.examples], batch, block_size)
        with autocast():
            of_tokens = model(inputs.to(ranks.device), targets.to(ranks.device), reduction="none")
        of_endings = of_tokens.double().view(batch.size, ENDINGS, batch.width).sum(2)
        losses[list(batch.examples)] = of_endings[: len(batch.examples)]
        on_batch()
    model.train(was_training)
    if any(ranks.agree(is_stopped)):
        raise ScoringStopped
    # Each row was filled by one rank and is 0 on the others: the sum is exact.
    return ranks.all_sum(losses).cpu().numpy()


def make_rows(examples: Sequence[Example], batch: Batch, block_size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (4 · size, width) int64 each; only targets in endings count.

    Of an example that is longer than the model's block its end is kept.
    """
    inputs = np.zeros((ENDINGS * batch.size, batch.width), dtype=np.int64)
    targets = np.full_like(inputs, IGNORED)
    endings = ((example.context, ending) for example in examples for ending in example.endings)
    for row, (context, ending) in enumerate(endings):
        ids: Ids = np.concatenate([context, ending])[-block_size - 1 :]
        end, scored = ids.size - 1, min(ending.size, block_size)
        inputs[row, :end] = ids[:-1]
        targets[row, end - scored : end] = ids[-scored:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _inputs(example: Example) -> int:
    """What its longest row feeds the model: all ids but the last."""
    return example.context.size + max(ending.size for ending in example.endings) - 1


def _round_up(length: int) -> int:
    return -(-length // WIDTH_STEP) * WIDTH_STEP
