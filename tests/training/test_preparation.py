"""What the data of a run takes, against what was measured and what the code around it does."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_recipe
from training.encode import MAX_WORKERS
from training.hub_fetch import fetch_ahead
from training.preparation import (
    FILES_AT_ONCE,
    GIGATOKEN_TOKENS_PER_S,
    MAX_CORES,
    TEXT_BYTES_PER_TOKEN,
    TIKTOKEN_TOKENS_PER_S,
    count_shards,
    disk_bytes,
    plan_preparation,
    rates_of,
    reads_hub,
    source_tokens,
)

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "tokenizing.json"
SPEED = 1.75e6  # tokens a second: 8 A100s, 124M parameters


def fineweb(*, steps: int = 20, **data: Any) -> Any:
    return make_recipe(
        model={"vocab_size": 50257},
        data={"source": "fineweb", "tokenizer": "gpt2", "shard_tokens": 1000, **data},
        train={"steps": steps},
    )


def test_rates_are_no_better_than_what_was_measured():
    measured = json.loads(RESULTS.read_text())
    ours, reference = measured["mb_per_s"]["ours"], measured["mb_per_s"]["reference"]

    for rate, mb_per_s in ((GIGATOKEN_TOKENS_PER_S, ours), (TIKTOKEN_TOKENS_PER_S, reference)):
        assert rate * TEXT_BYTES_PER_TOKEN / 1e6 <= 1.05 * mb_per_s / measured["cores"]


def test_as_many_cores_and_files_are_counted_as_the_pipeline_uses():
    assert MAX_CORES == MAX_WORKERS
    assert inspect.signature(fetch_ahead).parameters["ahead"].default + 1 == FILES_AT_ONCE


def test_fast_node_takes_a_small_part_of_a_core_and_of_a_link():
    needs = plan_preparation(fineweb(), tokens_per_sec=SPEED, cores_free=22)

    assert needs.maker == "gigatoken"
    assert needs.cores == pytest.approx(0.11, abs=0.01)
    assert needs.text_bytes_per_s == pytest.approx(7.9e6, rel=0.01)
    assert needs.fetched_bytes_per_s == pytest.approx(4.9e6, rel=0.01)
    assert needs.waiting == 0


def test_training_waits_for_what_tiktoken_on_few_cores_is_too_slow_for():
    recipe = fineweb()
    slow = plan_preparation(recipe, tokens_per_sec=4e6, cores_free=1, has_gigatoken=False)

    assert slow.maker == "tiktoken"
    assert slow.waiting == pytest.approx(4e6 / TIKTOKEN_TOKENS_PER_S - 1)
    assert not plan_preparation(
        recipe, tokens_per_sec=4e6, cores_free=4, has_gigatoken=False
    ).waiting


def test_more_cores_than_the_pipeline_uses_make_nothing_faster():
    made = [plan_preparation(fineweb(), cores_free=n).made_per_sec for n in (MAX_CORES, 240)]

    assert made[0] == made[1]


def test_nothing_is_said_of_cores_that_nobody_counted():
    needs = plan_preparation(fineweb(), tokens_per_sec=1e12)

    assert (needs.cores_free, needs.made_per_sec, needs.waiting) == (None, None, 0)


def test_text_of_ones_own_is_read_by_one_process_on_any_number_of_cores():
    recipe = fineweb(source="text", path="book.txt")

    for cores in (None, 1, 64):
        needs = plan_preparation(recipe, tokens_per_sec=8e6, cores_free=cores)
        assert needs.waiting == pytest.approx(1)
        assert not needs.is_fetched


@pytest.mark.parametrize("source", ["tokens", "hub-shards:owner/name"])
def test_what_is_tokens_already_is_only_copied(source):
    rates = rates_of(fineweb(source=source, path="x.bin").data)

    assert rates.tokens_per_core_s > GIGATOKEN_TOKENS_PER_S
    assert rates.fetched_bytes == (2 if source.startswith("hub") else 0)


def test_run_needs_validation_and_as_many_whole_shards_as_it_trains_on():
    for steps, shards in ((2, 2), (15, 2), (16, 3)):  # of 64 tokens, and one block of 8
        recipe = fineweb(steps=steps)
        assert count_shards(recipe) == (shards, shards * 1000)


def test_no_room_is_kept_for_more_than_a_sample_has():
    ten, hundred = (
        count_shards(fineweb(steps=2**40, config=name, shard_tokens=10**8))[0]
        for name in ("", "sample-100BT")
    )

    assert (ten, hundred) == (105, 1001)


def test_all_of_a_sample_is_as_much_as_it_is_known_to_have():
    recipe = fineweb(steps=2, shard_tokens=10**8)

    assert count_shards(recipe) == (2, 2 * 10**8)
    assert count_shards(recipe, whole=True) == (105, 105 * 10**8)
    assert source_tokens(fineweb(source="text", path="x").data) is None


def test_a_machine_that_trains_nothing_has_no_checkpoints_on_its_disk():
    assert disk_bytes(fineweb(), trains=False) == plan_preparation(fineweb()).disk_bytes


def test_disk_holds_the_checkpoints_and_what_is_fetched_and_made():
    text, hub = fineweb(source="text", path="x"), fineweb()

    assert disk_bytes(hub) - disk_bytes(text) == plan_preparation(hub).disk_bytes
    assert plan_preparation(hub).disk_bytes == 3 * 1000 * 2 + 3 * 2_000_000_000
    assert disk_bytes(text) == 12 * text.model.parameters * 4


def test_only_runs_that_ask_the_hub_are_said_to():
    assert reads_hub(fineweb())
    assert not reads_hub(make_recipe())
    assert reads_hub(make_recipe(eval={"hellaswag": True}))
