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
from pathlib import Path
from time import perf_counter

from msgspec.structs import replace

from training.config import DataConfig
from training.errors import DataError, TrainingError
from training.events import append_event
from training.hub_source import HubText
from training.layout import (
    DATASET_JSON,
    DATASETS,
    Dataset,
    RunPaths,
    RunRecord,
    Shard,
    decode,
)
from training.pipeline import FileSource
from training.processes import end_with_parent
from training.shards import (
    Split,
    translating_write_errors,
    verify_shard,
    write_dataset,
    write_shard,
)
from training.sources import Source, dataset_folder_key, open_source
from training.splits import missing_shards

CLAIMS = ".claims.json"
"""The `dataset.json` of an earlier preparation, while its shards are being verified."""
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
    source: Source | FileSource | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Bring the data set in `folder` to completion; `on_shard` hears of each shard written.

    Shards that are there and good are kept; a complete data set is returned as it is. While
    another process prepares the same folder, this one waits. Memory: about one shard and one
    document, or what `training.pipeline` states. Raises DataError for text that cannot be
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
    if isinstance(source, HubText):
        source = dataclasses.replace(source, folder=folder / FETCHED)
    with _locked(folder):
        dataset = _keep_good_shards(folder, fresh)
        if not dataset.complete:
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
        for split in ("val", "train"):
            _require_block(split, _count(dataset, split), block_size, data)
        if not dataset.complete:
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
            "lower it, or set data.val_fraction"
        )
    name = {"val": "validation", "train": "training"}[split]
    raise DataError(
        f"the text is too short: {tokens:,} tokens for {name}, at least {block_size + 1:,} needed",
        hint=hint,
    )


def _keep_good_shards(folder: Path, fresh: Dataset) -> Dataset:
    """What is in `folder` up to its first damaged shard, which from then on does not exist.

    What an earlier preparation named counts again only as it is verified, shard by shard, so
    that training never reads a damaged one. Until all are, the list it left is kept aside.
    """
    claims = folder / CLAIMS
    with suppress(FileNotFoundError):
        if not claims.exists():
            (folder / DATASET_JSON).rename(claims)
    with suppress(FileNotFoundError, TrainingError):
        claimed = decode(claims.read_bytes(), Dataset, name=str(claims))
        if replace(claimed, complete=False, shards=()) == fresh:
            fresh = _verify_claims(folder, claimed)
    claims.unlink(missing_ok=True)
    return fresh


def _verify_claims(folder: Path, claimed: Dataset) -> Dataset:
    good = replace(claimed, complete=False, shards=())
    for shard in claimed.shards:
        try:
            verify_shard(folder, shard)
        except DataError:
            return good
        good = replace(good, shards=(*good.shards, shard))
        write_dataset(folder, good)
    if claimed.complete:
        good = claimed
        write_dataset(folder, good)
    return good


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


def _prepare_run(root: Path, paths: RunPaths) -> None:
    """Prepare what a run needs; its events and this process's output tell of it."""
    data, block_size = _read_request(paths)
    started = last = perf_counter()

    def report(shard: Shard) -> None:
        nonlocal last
        seconds, last = perf_counter() - last, perf_counter()
        print(f"{shard.name}: {shard.tokens:,} tokens in {seconds:.2f} s", flush=True)
        append_event(
            paths.events, "shard_written", name=shard.name, tokens=shard.tokens, seconds=seconds
        )

    folder = root / DATASETS / dataset_folder_key(data)
    dataset = prepare(data, folder, block_size=block_size, on_shard=report, say=_say)
    tokens, seconds = sum(shard.tokens for shard in dataset.shards), perf_counter() - started
    reused = ", reused as it was" if last == started else ""
    print(
        f"{folder.name}: {tokens:,} tokens in {len(dataset.shards)} shards are ready{reused}",
        flush=True,
    )
    append_event(
        paths.events, "dataset_ready", tokens=tokens, shards=len(dataset.shards), seconds=seconds
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _read_request(paths: RunPaths) -> tuple[DataConfig, int]:
    """(data, block_size) of the run."""
    try:
        record = decode(paths.record.read_bytes(), RunRecord, name=str(paths.record))
    except OSError as error:
        raise DataError(
            f"{paths.record} cannot be read: {error.strerror or error}",
            hint="check --root and --run-id",
        ) from error
    return record.recipe.data, record.recipe.model.block_size


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare", description="Write the token shards of a run."
    )
    parser.add_argument("--root", type=Path, required=True, help="the node's working folder")
    parser.add_argument("--run-id", required=True)
    options = parser.parse_args(argv)
    paths = RunPaths(options.root, options.run_id)
    try:
        with translating_write_errors(options.root):
            _prepare_run(options.root, paths)
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
