from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from tests.tiny import make_dataset, make_recipe, make_tokens
from training.data import BatchLoader, TrainingTokens
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
    inputs, targets = open_loader(tmp_path).batch(3, 1)
    assert inputs.shape == targets.shape == (2, 8)
    start = 3 * 64 + 2 * 8  # step 3, after the two sequences of micro-step 0
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
        return torch.cat([ld.batch(5, m)[0] for m in range(micro_steps) for ld in loaders])

    torch.testing.assert_close(step_on(1), step_on(2))
    torch.testing.assert_close(step_on(1), step_on(4))


def test_random_windows_differ_from_step_to_step_and_never_from_run_to_run(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    loader, again = (open_loader(tmp_path, order="random") for _ in range(2))
    assert torch.equal(loader.batch(5, 0)[0], again.batch(5, 0)[0])
    assert not torch.equal(loader.batch(5, 0)[0], loader.batch(6, 0)[0])


def test_random_windows_lie_in_the_shard_that_the_step_has_reached(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    tokens = TrainingTokens(tmp_path, RECIPE.data)
    assert tokens.has(1)
    shards = [range(0, 500), range(500, 1000), range(1000, 1250)]
    assert [tokens.shard_at(p) for p in (0, 499, 500, 1249)] == [
        shards[0], shards[0], shards[1], shards[2]
    ]  # fmt: skip
    assert tokens.shard_at(1250 + 600) == shards[1]
    inputs, _ = open_loader(tmp_path, order="random").batch(500 // 64 + 1, 0)
    windows = np.lib.stride_tricks.sliding_window_view(ring()[500:1000], 8)
    for row in inputs.numpy():
        assert (windows == row).all(axis=1).any()


def test_a_reader_that_is_ahead_is_told_so_until_the_next_shard_is_there(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    whole = read_dataset(tmp_path)
    assert whole is not None
    write_dataset(tmp_path, msgspec.structs.replace(whole, complete=False, shards=whole.shards[:2]))
    tokens = TrainingTokens(tmp_path, RECIPE.data)
    assert tokens.has(500)
    np.testing.assert_array_equal(tokens.read(0, 500), ring()[:500])
    assert not tokens.has(510)
    write_dataset(tmp_path, whole)
    assert tokens.has(510)
    np.testing.assert_array_equal(tokens.read(490, 20), ring()[490:510])


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_ranks_agree_on_whether_a_step_can_be_read(tmp_path: Path, order: str) -> None:
    make_dataset(tmp_path, RECIPE)
    whole = read_dataset(tmp_path)
    assert whole is not None
    write_dataset(tmp_path, msgspec.structs.replace(whole, complete=False, shards=whole.shards[:2]))
    loaders = [open_loader(tmp_path, rank=r, world_size=2, order=order) for r in range(2)]
    # Step 7 takes tokens 448 to 512, of which rank 0 would find its own half in the first shard.
    last = 6 if order == "sequential" else 7
    for step in (0, 6, 7, 8):
        assert [loader.has(step) for loader in loaders] == [step <= last] * 2


def test_a_damaged_index_counts_as_none_until_preparation_has_mended_it(tmp_path: Path) -> None:
    make_dataset(tmp_path, RECIPE)
    index = tmp_path / "dataset.json"
    whole = index.read_bytes()
    index.write_bytes(whole[:100])
    tokens = TrainingTokens(tmp_path, RECIPE.data)
    assert not tokens.has(1)
    index.write_bytes(whole)
    assert tokens.has(1)
