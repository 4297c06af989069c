from random import Random

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.config import ModelConfig
from training.model import GPT
from training.shares import share_out

sizes = st.dictionaries(st.text(max_size=4), st.integers(1, 10**9), max_size=30)


@given(sizes, st.integers(1, 9))
def test_each_is_owned_once_and_no_rank_by_more_than_one_over_the_average(
    sizes: dict[str, int], ranks: int
) -> None:
    owners = share_out(sizes, ranks)
    assert owners.keys() == sizes.keys()
    owned = [sum(sizes[n] for n, owner in owners.items() if owner == r) for r in range(ranks)]
    assert sum(owned) == sum(sizes.values())
    assert max(owned) <= sum(sizes.values()) / ranks + max(sizes.values(), default=0)


@given(sizes, st.integers(1, 9), st.randoms())
def test_the_order_of_the_parameters_changes_nothing(
    sizes: dict[str, int], ranks: int, random: Random
) -> None:
    names = list(sizes)
    random.shuffle(names)
    assert share_out({name: sizes[name] for name in names}, ranks) == share_out(sizes, ranks)


def test_one_rank_owns_everything() -> None:
    assert share_out({"a": 1, "b": 2}, 1) == {"a": 0, "b": 0}


def test_more_ranks_than_parameters_leave_some_without_any() -> None:
    assert share_out({"a": 1, "b": 2}, 4) == {"b": 0, "a": 1}


def test_the_largest_model_is_shared_out_evenly_over_eight() -> None:
    config = ModelConfig(n_layer=48, n_head=25, n_embd=1600, block_size=1024, vocab_size=50257)
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in GPT(config).named_parameters()}
    owners = share_out(sizes, 8)
    owned = [sum(sizes[n] for n, owner in owners.items() if owner == r) for r in range(8)]
    assert max(owned) < 1.05 * sum(sizes.values()) / 8
