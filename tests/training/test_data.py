from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from tests.tiny import make_dataset, make_recipe, make_tokens
from training.data import BatchLoader, Prefetcher, TrainingTokens
from training.layout import read_dataset
from training.shards import write_dataset

RECIPE = make_recipe()


def open_loader(
    folder: Path, *, rank: int = 0, world_size: int = 1, order: str = "sequential"
) -> BatchLoader:
    loader = BatchLoader(
        TrainingTokens(folder, RECIPE.data),
        order=order,
        seed=7,
        batch_tokens=64,
        micro_batch_size=2,
        block_size=8,
        rank=rank,
        world_size=world_size,
    )
    assert loader.has(0)
    return loader


def ring() -> np.ndarray:
    return np.concatenate(
        [make_tokens(500, seed=1), make_tokens(500, seed=2), make_tokens(250, seed=3)]
    )


def test_tokens_are_read_across_shards_and_around_the_ring(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    tokens = TrainingTokens(tmp_path, RECIPE.data)
    assert tokens.has(1)
    everything = ring()
    for start, length in [(0, 9), (495, 10), (990, 300), (1249, 3), (1250, 4), (12_499, 2_000)]:
        expected = everything[np.arange(start, start + length) % 1250]
        np.testing.assert_array_equal(tokens.read(start, length), expected)


def test_targets_are_the_inputs_one_token_on(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    windows = open_loader(tmp_path).windows(3)
    assert windows.shape == (4, 2, 9)  # micro-steps, sequences, and one token that is a target only
    start = 3 * 64 + 2 * 8  # step 3, after the two sequences of micro-step 0
    inputs, targets = windows[1, :, :-1], windows[1, :, 1:]
    torch.testing.assert_close(
        inputs.flatten(), torch.from_numpy(ring()[start : start + 16]).long()
    )
    torch.testing.assert_close(
        targets.flatten(), torch.from_numpy(ring()[start + 1 : start + 17]).long()
    )


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_a_step_has_the_same_sequences_on_any_number_of_ranks(tmp_path: Path, order: str) -> None:
    make_dataset(tmp_path, RECIPE)

    def step_on(world_size: int) -> torch.Tensor:
        loaders = [
            open_loader(tmp_path, rank=r, world_size=world_size, order=order)
            for r in range(world_size)
        ]
        micro_steps = 64 // (8 * 2 * world_size)
        return torch.cat([ld.windows(5)[m] for m in range(micro_steps) for ld in loaders])

    torch.testing.assert_close(step_on(1), step_on(2))
    torch.testing.assert_close(step_on(1), step_on(4))


def test_random_windows_differ_from_step_to_step_and_never_from_run_to_run(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    loader, again = (open_loader(tmp_path, order="random") for _ in range(2))
    assert torch.equal(loader.windows(5), again.windows(5))
    assert not torch.equal(loader.windows(5), loader.windows(6))


def test_random_windows_lie_in_the_shard_that_the_step_has_reached(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    tokens = TrainingTokens(tmp_path, RECIPE.data)
    assert tokens.has(1)
    shards = [range(0, 500), range(500, 1000), range(1000, 1250)]
    assert [tokens.shard_at(p) for p in (0, 499, 500, 1249)] == [
        shards[0], shards[0], shards[1], shards[2]
    ]  # fmt: skip
    assert tokens.shard_at(1250 + 600) == shards[1]
    drawn = open_loader(tmp_path, order="random").windows(500 // 64 + 1)
    windows = np.lib.stride_tricks.sliding_window_view(ring()[500:1000], 9)
    for row in drawn.flatten(0, 1).numpy():
        assert (windows == row).all(axis=1).any()


def test_what_is_read_ahead_is_what_is_asked_for_in_any_order(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    loader = open_loader(tmp_path)
    ahead = Prefetcher(open_loader(tmp_path), torch.device("cpu"))
    for step in (0, 1, 2, 7, 7, 3):
        assert torch.equal(ahead.windows(step), loader.windows(step))


def test_nothing_is_read_ahead_of_a_shard_that_is_not_there(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    whole = read_dataset(tmp_path)
    assert whole is not None
    write_dataset(tmp_path, msgspec.structs.replace(whole, complete=False, shards=whole.shards[:2]))
    growing = open_loader(tmp_path)
    ahead = Prefetcher(growing, torch.device("cpu"))
    last = ahead.windows(6)  # tokens 384 to 448 of 500: the step after it needs 513
    write_dataset(tmp_path, whole)
    assert growing.has(7)
    loader = open_loader(tmp_path)
    assert torch.equal(last, loader.windows(6))
    assert torch.equal(ahead.windows(7), loader.windows(7))
