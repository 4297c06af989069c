"""Preparation against training, in shards of 100 tokens of which training needs 1,000."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_dataset, make_recipe
from training.layout import DATASET_JSON, Dataset, Lead, Shard
from training.race import Pace, Race, measure_lead


def make_shards(train: int, *, last: int = 100, complete: bool = False) -> Dataset:
    sizes = [100] * train + [last]
    shards = tuple(
        Shard(name=str(i), split="train" if i else "val", tokens=size, size_bytes=1, sha256="")
        for i, size in enumerate(sizes)
    )
    return Dataset(
        source="x", revision="", tokenizer="bytes", shard_tokens=100, val_fraction=0.0,
        complete=complete, shards=shards,
    )  # fmt: skip


def lead(dataset: Dataset, **changes: Any) -> Lead:
    fields: dict[str, Any] = {
        "trained_tokens": 150, "trained_per_sec": 10.0, "prepared_per_sec": 20.0,
        "under_way": 0.0, "is_waiting": False,
    }  # fmt: skip
    return measure_lead(dataset, 1000, **fields | changes)


def test_the_lead_is_what_is_ready_and_not_yet_trained_on() -> None:
    found = lead(make_shards(4))
    assert (found.ready_tokens, found.wanted_tokens) == (400, 1000)
    assert (found.tokens, found.seconds) == (250, 25.0)
    assert found.shards == 2  # the second is being read
    assert (found.is_done, found.waits_s, found.is_losing) == (False, 0.0, False)


def test_training_waits_as_long_as_preparation_would_end_after_it() -> None:
    # 600 tokens to make in 120 s; 850 to train on in 85 s
    found = lead(make_shards(4), prepared_per_sec=5.0)
    assert found.waits_s == pytest.approx(35)
    assert found.is_losing
    # 50 of them are as good as made
    assert lead(make_shards(4), prepared_per_sec=5.0, under_way=50.0).waits_s == pytest.approx(25)


def test_a_hundredth_of_the_time_left_is_no_lost_race() -> None:
    assert not lead(make_shards(4), prepared_per_sec=600 / 85.5).is_losing
    assert lead(make_shards(4), prepared_per_sec=600 / 86.5).is_losing


@pytest.mark.parametrize("unknown", ["trained_per_sec", "prepared_per_sec"])
def test_without_both_speeds_nobody_loses(unknown: str) -> None:
    found = lead(make_shards(1), **{unknown: None})
    assert (found.waits_s, found.is_losing) == (0.0, False)


def test_it_is_over_when_all_that_is_wanted_is_ready() -> None:
    slow = {"prepared_per_sec": 0.001}
    found = lead(make_shards(12), **slow)
    assert (found.is_done, found.ready_tokens, found.is_losing) == (True, 1000, False)
    short = make_shards(3, last=40, complete=True)  # read again and again
    found = lead(short, trained_tokens=900, **slow)
    assert (found.is_done, found.tokens, found.shards, found.is_losing) == (True, 0, 0, False)


def test_a_short_shard_is_not_ready_before_all_are() -> None:
    assert lead(make_shards(3, last=40)).ready_tokens == 200
    assert lead(make_shards(3, last=40, complete=True)).ready_tokens == 240


def hear(pace: Pace, *seconds: float, way: str = "made", now: float = 0.0) -> float:
    for each in seconds:
        now += each
        pace.hear(way, 100, each, now=now)
    return now


def test_the_pace_leaves_out_what_came_before_the_first_shard() -> None:
    pace = Pace()
    now = hear(pace, 60.0)
    assert pace.measure(now) == (None, 0.0)
    now = hear(pace, 4.0, 6.0, now=now)
    assert pace.measure(now) == (20.0, 0.0)


def test_what_is_made_is_not_as_fast_as_what_was_fetched() -> None:
    pace = Pace()
    now = hear(pace, 1.0, 1.0, 1.0, way="fetched")
    assert pace.measure(now)[0] == 100.0
    now = hear(pace, 10.0, now=now)
    assert pace.measure(now)[0] is None
    assert pace.measure(hear(pace, 10.0, now=now))[0] == 10.0


def test_a_shard_that_does_not_come_slows_the_pace() -> None:
    pace = Pace()
    now = hear(pace, 1.0, 10.0, 10.0)
    assert pace.measure(now + 4) == (10.0, 40.0)
    assert pace.measure(now + 10) == (10.0, 100.0)
    assert pace.measure(now + 40) == (5.0, 100.0)


def test_only_the_newest_shards_count() -> None:
    pace = Pace()
    now = hear(pace, *[1.0] * 20)
    assert pace.measure(hear(pace, *[10.0] * 8, now=now))[0] == 10.0


def test_shards_are_counted_as_dataset_json_names_them(tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 20})  # 1,280 tokens and a block: 3 shards of 500

    def look() -> Lead:
        return race.lead(Pace(), trained_tokens=0, trained_per_sec=None, is_waiting=False, now=0.0)

    race = Race(tmp_path, recipe)
    assert (look().ready_tokens, look().wanted_tokens) == (0, 1500)
    make_dataset(tmp_path, recipe, shards=3, complete=False)
    assert look().ready_tokens == 1000  # the last is short
    (tmp_path / DATASET_JSON).write_text("{")
    assert look().ready_tokens == 1000
    make_dataset(tmp_path, recipe, shards=3)
    assert look().is_done
