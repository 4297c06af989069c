"""Text → token shards: `python -m training.prepare --root DIR --run-id ID`. Torch-free.

The token stream is, for each document, an end-of-text and then its tokens; documents run
across shards. Shard 000000 is validation. A shard exists when `dataset.json` names it, so that
training starts on the first while later ones are written. Equal input makes equal bytes, with
any number of workers: a preparation that was cut short is taken up after its last good shard.
"""

import argparse
import dataclasses
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from time import perf_counter

from msgspec.structs import replace

from training.background import in_background
from training.config import DataConfig
from training.dataset_store import fetch
from training.errors import DataError, TrainingError
from training.events import append_event
from training.hellaswag_beside import bring_examples
from training.hub_source import HubFiles
from training.kept_shards import keep_good_shards
from training.layout import (
    DATASETS,
    Dataset,
    RunPaths,
    RunRecord,
    Shard,
    dataset_key,
    decode,
    tokens_wanted,
)
from training.processes import end_with_parent
from training.publishing import PATIENCE_S, Publisher
from training.shards import (
    Split,
    translating_write_errors,
    write_dataset,
    write_shard,
)
from training.sources import open_source
from training.splits import AnySource, missing_shards
from training.storage import Storage, open_store

FETCHED = "fetched"
"""Below the folder: files of the Hub that are read now, or next."""
NICENESS = 10
"""Of the program: what trains beside it has its cores before it."""


def prepare(
    data: DataConfig,
    folder: Path,
    *,
    block_size: int,
    on_shard: Callable[[Shard], None],
    train_tokens: int | None = None,
    store: Storage | None = None,
    on_fetched: Callable[[Shard], None] = lambda _: None,
    source: AnySource | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Bring the data set in `folder` to `train_tokens`, or to completion where it is None.

    Shards that are there and good are kept; what comes next is fetched from `store`, where there
    is one that has it, of which `on_fetched` hears, and the rest made: `on_shard` hears of each
    shard written. With `train_tokens` in whole shards it is not complete, and may be continued.
    While another process prepares the same folder, this one waits. Memory: about one shard and
    one document, or what `training.pipeline` states. Raises DataError for text that cannot be
    trained on, NoSpaceError, ConfigError.

    `source` is what `data` names unless it is given; `workers` threads encode files, by default
    one a core; `say` hears by what they do.
    """
    source = source or open_source(data)
    fresh = Dataset(
        source=data.source,
        revision=source.revision,
        tokenizer=data.tokenizer,
        shard_tokens=data.shard_tokens,
        val_fraction=data.val_fraction,
    )
    if isinstance(source, HubFiles):
        source = dataclasses.replace(source, folder=folder / FETCHED)
    with _locked(folder):
        dataset = keep_good_shards(folder, fresh)
        if store and not dataset.has(train_tokens):
            fetched = fetch(store, folder, dataset, on_fetched, train_tokens=train_tokens)
            dataset = fetched.dataset
            if fetched.fault:
                say(f"the store did not give all that it has, so it is made: {fetched.fault}")
        if not dataset.has(train_tokens):
            with closing(missing_shards(source, data, dataset, workers, say)) as shards:
                for split, tokens, following in shards:
                    if split == "val" or len(tokens) < data.shard_tokens:  # the split ends here
                        total = _count(dataset, split) + len(tokens)
                        _require_block(split, total, block_size, data)
                    name = _shard_name(data.source, split, len(dataset.shards))
                    shard = write_shard(folder / name, tokens, split=split)
                    shard = replace(shard, next=following)
                    dataset = replace(dataset, shards=(*dataset.shards, shard))
                    write_dataset(folder, dataset)
                    on_shard(shard)
                    if dataset.has(train_tokens):
                        break
        for split in ("val", "train"):
            _require_block(split, _count(dataset, split), block_size, data)
        if not dataset.has(train_tokens):
            dataset = replace(dataset, complete=True)
            write_dataset(folder, dataset)
        shutil.rmtree(folder / FETCHED, ignore_errors=True)
        return dataset


def _count(dataset: Dataset, split: Split) -> int:
    return sum(shard.tokens for shard in dataset.split(split))


def _require_block(split: Split, tokens: int, block_size: int, data: DataConfig) -> None:
    """Raise DataError where a split is shorter than one block and the token that follows it."""
    if tokens > block_size:
        return
    if data.val_fraction:
        hint = "give a longer text, or choose another data.val_fraction"
    elif split == "val":
        hint = "give a longer text, or raise data.shard_tokens above model.block_size"
    else:
        hint = (
            f"the first data.shard_tokens={data.shard_tokens:,} tokens are for validation: "
            "lower it" + ("" if data.hub_repo or data.is_tokens else ", or set data.val_fraction")
        )
    name = {"val": "validation", "train": "training"}[split]
    raise DataError(
        f"the text is too short: {tokens:,} tokens for {name}, at least {block_size + 1:,} needed",
        hint=hint,
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process prepares `folder`. The lock ends with its process."""
    with translating_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("wb")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left_by_a_killed_writer in folder.glob(".*.tmp"):
            left_by_a_killed_writer.unlink()
        yield


def _shard_name(source: str, split: Split, index: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', source)}_{split}_{index:06d}.bin"


def _prepare_run(
    root: Path, paths: RunPaths, record: RunRecord, *, store_url: str | None, sends: bool
) -> None:
    """Prepare what a run needs, or was asked for; its events and this process's output tell of it.

    Shards are fetched from the store, if there is one, and those made are sent to it if it `sends`.
    """
    recipe, data = record.recipe, record.recipe.data
    started = last = perf_counter()

    def say(text: str) -> None:
        _say(text)
        with suppress(OSError):  # the disk may be full, and who sends shards can go on
            append_event(paths.events, "note", stage="prepare", text=text)

    def report(shard: Shard, *, is_fetched: bool = False) -> None:
        nonlocal last
        seconds, last = perf_counter() - last, perf_counter()
        how = " from the store" if is_fetched else ""
        _say(f"{shard.name}: {shard.tokens:,} tokens{how} in {seconds:.2f} s")
        append_event(
            paths.events,
            "shard_fetched" if is_fetched else "shard_written",
            name=shard.name,
            tokens=shard.tokens,
            seconds=seconds,
        )
        if publisher and not is_fetched:
            publisher.wake()

    source = open_source(data)  # once, as it may have to read all of it to know what it is
    folder = root / DATASETS / dataset_key(data, source.revision)
    store = open_store(store_url) if store_url else None
    publisher = Publisher(store, folder, tell=say) if store and sends else None
    dataset = prepare(
        data,
        folder,
        block_size=recipe.model.block_size,
        on_shard=report,
        train_tokens=None if record.whole else tokens_wanted(recipe),
        store=store,
        on_fetched=partial(report, is_fetched=True),
        source=source,
        say=say,
    )
    tokens, seconds = sum(shard.tokens for shard in dataset.shards), perf_counter() - started
    reused = ", reused as it was" if last == started else ""
    print(
        f"{folder.name}: {tokens:,} tokens in {len(dataset.shards)} shards are ready{reused}",
        flush=True,
    )
    append_event(
        paths.events, "dataset_ready", tokens=tokens, shards=len(dataset.shards), seconds=seconds
    )
    if publisher and (unsent := publisher.close(patience_s=PATIENCE_S)):
        say(f"the store did not take all shards: {unsent}")


def _say(line: str) -> None:
    print(line, flush=True)


def _read_record(paths: RunPaths) -> RunRecord:
    try:
        return decode(paths.record.read_bytes(), RunRecord, name=str(paths.record))
    except OSError as error:
        raise DataError(
            f"{paths.record} cannot be read: {error.strerror or error}",
            hint="check --root and --run-id",
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare", description="Write the token shards of a run."
    )
    parser.add_argument("--root", type=Path, required=True, help="the node's working folder")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--store", help="where shards are looked for before they are made")
    parser.add_argument("--send", action="store_true", help="those made, to the store")
    options = parser.parse_args(argv)
    paths = RunPaths(options.root, options.run_id)
    try:
        with translating_write_errors(options.root):
            record = _read_record(paths)
            recipe = record.recipe
            datasets = options.root / DATASETS
            beside = in_background(lambda: bring_examples(recipe, datasets, events=paths.events))
            url = options.store
            _prepare_run(options.root, paths, record, store_url=url, sends=options.send)
            beside.result()
    except TrainingError as error:
        kind = type(error).__name__
        sys.stderr.write(f"{error.message}\n" + (f"{error.hint}\n" if error.hint else ""))
        with suppress(OSError):  # the disk may be what is full
            append_event(
                paths.events,
                "error",
                stage="prepare",
                kind=kind,
                message=error.message,
                hint=error.hint,
            )
        return 1
    return 0


if __name__ == "__main__":
    end_with_parent()
    os.nice(NICENESS)
    sys.exit(main())
