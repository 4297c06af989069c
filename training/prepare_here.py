"""Shards for a machine's own folder, without a run: `python -m training.prepare_here --to DIR`.

Torch-free. Prepares `DIR/datasets/<key>/` as a run would, and sends finished shards to the store
meanwhile. Events on stdout: `opened` (key, folder), `shard` (name, tokens, shards, all_tokens,
total_tokens: about how many there will be, or null), `note` (text), `prepared` (shards,
all_tokens), `ready` (shards, all_tokens, sent, unsent: why), `error`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from training.config import DataConfig
from training.layout import DATASETS, Dataset, Shard, dataset_key
from training.pipeline import FileSource
from training.prepare import prepare
from training.publishing import Publisher
from training.shards import read_dataset
from training.sources import Source, TextFiles, open_source, text_before
from training.storage import open_store
from training.tokenizer import open_tokenizer
from training.told_parent import run_program, say

SAMPLE_BYTES = 2**20
"""Of a text are tokenized ahead, to tell how many tokens it will be."""


def prepare_here(
    data: DataConfig, root: Path, *, block_size: int, store: str, patience_s: float
) -> None:
    """Raises TrainingError. That the store failed for `patience_s` is told of, and no error."""
    source: Source | FileSource = open_source(data)
    folder = root / DATASETS / dataset_key(data, source.revision)
    say("opened", key=folder.name, folder=str(folder))
    total_tokens = estimate_text(source, data) if isinstance(source, TextFiles) else None
    publisher = Publisher(open_store(store), folder, tell=note)

    def on_shard(shard: Shard) -> None:
        counts = count(read_dataset(folder))
        total = total_tokens or estimate_files(source, shard, counts["all_tokens"])
        say("shard", name=shard.name, tokens=shard.tokens, **counts, total_tokens=total)
        publisher.wake()

    dataset = prepare(
        data, folder, block_size=block_size, on_shard=on_shard, source=source, say=note
    )
    say("prepared", **count(dataset))
    unsent = publisher.close(patience_s=patience_s)
    say("ready", **count(dataset), sent=publisher.sent, unsent=unsent)


def estimate_text(source: TextFiles, data: DataConfig) -> int:
    """About how many tokens the text is, by the first of it."""
    tokenizer = open_tokenizer(data.tokenizer)
    sample = list(text_before(source.documents(), SAMPLE_BYTES))
    tokens = sum(1 + len(tokenizer.encode(text)) for text in sample)
    return round(tokens * source.size_bytes / sum(len(text.encode()) for text in sample))


def estimate_files(source: Source | FileSource, last: Shard, all_tokens: int) -> int | None:
    """About how many tokens the files are, by those that have been read; None before one is."""
    if not isinstance(source, FileSource) or last.next is None or not last.next.file:
        return None
    return round(all_tokens * len(source.files) / last.next.file)


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
    parser.add_argument("--patience-s", type=float, required=True, help="with a failing store")
    options = parser.parse_args(argv)

    def work() -> None:
        prepare_here(
            msgspec.json.decode(options.data, type=DataConfig),
            options.to,
            block_size=options.block_size,
            store=options.store,
            patience_s=options.patience_s,
        )

    return run_program(work)


if __name__ == "__main__":
    sys.exit(main())
