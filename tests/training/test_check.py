"""Whether a node has room for what a run makes."""

from typing import Any

import pytest

from tests.tiny import make_recipe, make_record
from training.check import check_node
from training.errors import NoSpaceError
from training.layout import DATASETS
from training.preparation import plan_preparation
from training.sources import dataset_folder_key

COMMIT = "0" * 40


def record_of(source: str) -> Any:
    """Of a run that takes all 350 billion tokens of a sample: 700 GB."""
    data = {"source": source, "tokenizer": "gpt2", "shard_tokens": 10**8, "revision": COMMIT}
    recipe = make_recipe(
        model={"vocab_size": 50257},
        data={**data, "config": "sample-350BT"},
        train={"steps": 10**10},
    )
    return make_record(recipe)


def test_shards_of_fineweb_that_do_not_fit_are_refused_before_any_is_made(tmp_path):
    with pytest.raises(NoSpaceError, match=r"and 706\.2 GB for token shards"):
        check_node(record_of("fineweb"), tmp_path, ranks=1)


def test_shards_that_are_there_already_take_no_more_room(tmp_path):
    record = record_of("fineweb")
    folder = tmp_path / DATASETS / dataset_folder_key(record.recipe.data)
    folder.mkdir(parents=True)
    with (folder / "fineweb_train_000001.bin").open("wb") as file:
        file.truncate(plan_preparation(record.recipe).disk_bytes)  # takes none on the disk itself

    assert check_node(record, tmp_path, ranks=1)["disk_free_bytes"] > 0


def test_data_whose_size_nobody_knows_is_not_refused(tmp_path):
    check_node(record_of("hub:owner/name"), tmp_path, ranks=1)
