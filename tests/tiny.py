"""The smallest recipe that still does everything, and a run folder made of it."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from training.config import (
    Recipe,
    split_batch,
)
from training.layout import Dataset, Offer, RunPaths, RunRecord, encode, write_atomic
from training.shards import write_dataset, write_shard

TINY: dict[str, Any] = {
    "summary": "as small as it gets",
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 257},
    "data": {"source": "python-stdlib", "tokenizer": "bytes", "shard_tokens": 500},
    "train": {
        "steps": 6,
        "batch_tokens": 64,
        "micro_batch_size": 2,
        "max_lr": 1e-2,
        "warmup_steps": 2,
        "dtype": "float32",  # so that sums in another order stay close
    },
    "eval": {"every": 3, "tokens": 100},
    "checkpoint": {"every": 2},
}


def make_recipe(**sections: dict[str, Any]) -> Recipe:
    """TINY with some keys of some sections changed: `make_recipe(train={"steps": 3})`."""
    merged = {
        **TINY,
        **{name: {**TINY.get(name, {}), **keys} for name, keys in sections.items()},
    }
    return msgspec.convert(merged, Recipe)


def make_record(recipe: Recipe, *, ranks: int = 1, **changes: Any) -> RunRecord:
    micro, accum = split_batch(
        batch_tokens=recipe.train.batch_tokens,
        block_size=recipe.model.block_size,
        micro_batch_size=recipe.train.micro_batch_size,
        ranks=ranks,
    )
    offer = Offer(
        cloud="local",
        region="-",
        instance_type="this machine",
        gpu="CPU",
        gpu_count=0,
        spot=False,
        price_per_hour=Decimal(0),
        price_source="a test",
        price_as_of="2026-11-21",
    )
    fields: dict[str, Any] = {
        "run_id": "tiny-0001",
        "recipe_name": "tiny",
        "recipe": recipe,
        "offer": offer,
        "nodes": 1,
        "ranks": ranks,
        "device": "cpu",
        "micro_batch_size": micro,
        "grad_accum_steps": accum,
        "budget_usd": None,
        "max_hours": None,
        "store": "-",
        "created_at": datetime(2026, 11, 21, tzinfo=UTC),
        "versions": {},
    }
    return RunRecord(**fields | changes)


def make_tokens(count: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Ids that a model can learn something from: bytes, each near the one before it."""
    steps = np.random.default_rng(seed).integers(-2, 3, size=count)
    return (np.cumsum(steps) % 256).astype(np.uint16)


def make_dataset(folder: Path, recipe: Recipe, *, shards: int = 3, complete: bool = True) -> None:
    """A validation shard and `shards` training shards, the last of them half as long."""
    folder.mkdir(parents=True, exist_ok=True)
    size = recipe.data.shard_tokens
    records = []
    for index in range(shards + 1):
        split = "train" if index else "val"
        tokens = make_tokens(size // 2 if index == shards else size, seed=index)
        records.append(write_shard(folder / f"x_{split}_{index:06d}.bin", tokens, split=split))
    dataset = Dataset(
        source="x",
        revision="1",
        tokenizer="bytes",
        shard_tokens=size,
        val_fraction=0.0,
        complete=complete,
        shards=tuple(records),
    )
    write_dataset(folder, dataset)


def make_run(root: Path, record: RunRecord) -> RunPaths:
    """The folder of `record`, as the supervisor leaves it to training."""
    paths = RunPaths(root, record.run_id)
    write_atomic(paths.record, encode(record))
    return paths
