"""Shards for a machine's own folder, without a run: `python -m training.prepare_here --to DIR`.

Torch-free. Prepares `DIR/datasets/<key>/` as a run would, with what the store has of it, and sends
the shards that it lacks meanwhile. Events on stdout: `opened` (key, folder), `shard` (name, tokens,
is_fetched, shards, all_tokens, total_tokens: about how many there will be, or null), `note` (text),
`prepared` (shards, all_tokens), `ready` (shards, all_tokens, complete, sent, unsent: why), `error`.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from math import ceil
from pathlib import Path

import msgspec

from training.config import DataConfig
from training.layout import DATASETS, Dataset, Shard, dataset_key, read_dataset
from training.pipeline import FileSource
from training.prepare import prepare
from training.publishing import Publisher
from training.sources import TextFiles, open_source, text_before
from training.splits import AnySource
from training.storage import open_store
from training.token_source import TokenSource
from training.tokenizer import open_tokenizer
from training.told_parent import run_program, say

SAMPLE_BYTES = 2**20
"""Of a text are tokenized ahead, to tell how many tokens it will be."""


def prepare_here(
    data: DataConfig,
    root: Path,
    *,
    block_size: int,
    train_tokens: int | None,
    store: str,
    patience_s: float,
) -> None:
    """As many training tokens, all where it is None.

    Raises TrainingError. That the store failed for `patience_s` is told of, and no error.
    """
    source: AnySource = open_source(data)
    folder = root / DATASETS / dataset_key(data, source.revision)
    say("opened", key=folder.name, folder=str(folder))
    total_tokens = estimate_text(source, data) if isinstance(source, TextFiles) else None
    opened = open_store(store)
    publisher = Publisher(opened, folder, tell=note)

    def on_shard(shard: Shard, *, is_fetched: bool = False) -> None:
        counts = count(read_dataset(folder))
        total = total_tokens or estimate_files(source, shard, counts["all_tokens"])
        say(
            "shard",
            name=shard.name,
            tokens=shard.tokens,
            is_fetched=is_fetched,
            **counts,
            total_tokens=no_more_than(train_tokens, total, data),
        )
        if not is_fetched:
            publisher.wake()

    dataset = prepare(
        data,
        folder,
        block_size=block_size,
        on_shard=on_shard,
        train_tokens=train_tokens,
        store=opened,
        on_fetched=partial(on_shard, is_fetched=True),
        source=source,
        say=note,
    )
    say("prepared", **count(dataset))
    unsent = publisher.close(patience_s=patience_s)
    counts = count(dataset)
    say("ready", **counts, complete=dataset.complete, sent=publisher.sent, unsent=unsent)


def estimate_text(source: TextFiles, data: DataConfig) -> int:
    """About how many tokens the text is, by the first of it."""
    tokenizer = open_tokenizer(data.tokenizer)
    sample = list(text_before(source.documents(), SAMPLE_BYTES))
    tokens = sum(1 + len(tokenizer.encode(text)) for text in sample)
    return round(tokens * source.size_bytes / sum(len(text.encode()) for text in sample))


def estimate_files(source: AnySource, last: Shard, all_tokens: int) -> int | None:
    """About how many tokens the files are, by those that have been read; None before one is."""
    if not isinstance(source, FileSource | TokenSource) or last.next is None or not last.next.file:
        return None
    return round(all_tokens * len(source.files) / last.next.file)


def no_more_than(train_tokens: int | None, total: int | None, data: DataConfig) -> int | None:
    """`total`, or where shards end that hold so many training tokens beside validation."""
    if train_tokens is None:
        return total
    val_tokens = round((total or 0) * data.val_fraction) or data.shard_tokens
    enough = val_tokens + ceil(train_tokens / data.shard_tokens) * data.shard_tokens
    return enough if total is None else min(total, enough)


def count(dataset: Dataset | None) -> dict[str, int]:
    """What there is of it, as fields of an event."""
    shards = dataset.shards if dataset else ()
    return {"shards": len(shards), "all_tokens": sum(shard.tokens for shard in shards)}


def note(text: str) -> None:
    say("note", text=text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare_here", description="Write token shards, without a run."
    )
    parser.add_argument("--to", type=Path, required=True, help="folder of `datasets/`")
    parser.add_argument("--data", required=True, help="a DataConfig as JSON")
    parser.add_argument("--store", required=True, help="where finished shards are sent")
    parser.add_argument("--block-size", type=int, required=True)
    parser.add_argument("--train-tokens", type=int, help="no more shards than hold these")
    parser.add_argument("--patience-s", type=float, required=True, help="with a failing store")
    options = parser.parse_args(argv)

    def work() -> None:
        prepare_here(
            msgspec.json.decode(options.data, type=DataConfig),
            options.to,
            block_size=options.block_size,
            train_tokens=options.train_tokens,
            store=options.store,
            patience_s=options.patience_s,
        )

    return run_program(work)


if __name__ == "__main__":
    sys.exit(main())
