from contextlib import nullcontext

import pytest
import torch

from tests.tiny import make_recipe, make_tokens
from training.distributed import Ranks
from training.evaluate import ValidationSet, validation_loss
from training.model import GPT

RECIPE = make_recipe()


class RankOf(Ranks):
    """A rank whose sum over the others is left to the test."""

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def loss_on(model: GPT, validation: ValidationSet, world_size: int, micro_batch_size: int) -> float:
    return sum(
        validation_loss(
            model,
            validation,
            micro_batch_size=micro_batch_size,
            ranks=RankOf(
                rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu")
            ),
            autocast=nullcontext,
        )
        for rank in range(world_size)
    )


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 3), (2, 2), (3, 4), (8, 5)])
def test_the_loss_is_the_mean_over_the_same_tokens_however_they_are_shared(
    world_size: int, micro_batch_size: int
) -> None:
    model = GPT(RECIPE.model, seed=1)
    tokens = make_tokens(200)
    validation = ValidationSet(tokens, tokens=100, block_size=8)
    assert validation.tokens == 96
    whole = torch.from_numpy(tokens[:97].astype("int64"))
    with torch.no_grad():
        expected = model(whole[:-1].view(12, 8), whole[1:].view(12, 8)).item()
    # The tolerance is that of fp32 sums taken in another order.
    assert loss_on(model, validation, world_size, micro_batch_size) == pytest.approx(
        expected, rel=1e-6
    )


def test_no_more_windows_than_the_shard_has() -> None:
    assert ValidationSet(make_tokens(41), tokens=10_000, block_size=8).windows == 5


def test_batches_have_one_shape_so_that_a_compiled_model_compiles_once() -> None:
    validation = ValidationSet(make_tokens(200), tokens=100, block_size=8)
    assert {validation.batch(first, 5)[0].shape for first in (0, 5, 10, 15)} == {(5, 8)}
