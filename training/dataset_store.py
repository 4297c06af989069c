"""Finished shards in the store, under `datasets/<key>/`, for the next run on any machine.

Torch-free and numpy-free: the laptop lists and removes what nodes have sent. A shard is in the
store when the `dataset.json` there names it: shards are sent first, the name that commits them
last, and removal goes the other way round.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from training.errors import (
    ObjectDamagedError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    TrainingError,
)
from training.layout import (
    DATASET_JSON,
    DATASETS,
    Dataset,
    Shard,
    decode,
    encode,
    sha256_file,
    write_atomic,
)
from training.storage import Storage
from training.storage_files import os_errors

PAUSES_S = (1.0, 4.0, 16.0)
"""Between tries of a download: a network that is gone for longer is not waited for."""


class StoredDataset(Struct, frozen=True, kw_only=True):
    """What lies under one key. `dataset` None: `fault` says why it is of no use."""

    key: str
    size_bytes: int
    dataset: Dataset | None
    fault: str = ""


class Fetched(Struct, frozen=True, kw_only=True):
    """What is in the folder now; `fault`: why the store did not give the rest, if it has one."""

    dataset: Dataset
    fault: str = ""


def publish(
    store: Storage,
    folder: Path,
    dataset: Dataset,
    on_sent: Callable[[Shard], None] = lambda shard: None,
) -> int:
    """Send the shards of `dataset`, which lie in `folder`, that the store lacks; how many.

    The folder's name is the key. A shard that the store names with this hash, and has in this
    size, is not sent again. May be called with ever more shards while they are written, and by
    several machines at once. Raises StorageError; what was sent by then is not sent again.
    """
    key, count = folder.name, 0
    stored, _ = _read(store, key)
    named = stored.shards if stored and _description(stored) == _description(dataset) else ()
    agreed = _agreed(named, dataset.shards)
    if agreed < min(len(named), len(dataset.shards)):
        named = named[:agreed]  # what is about to be replaced must not be named meanwhile
        stored = _commit(store, key, replace(dataset, complete=False, shards=named))
    sizes = {found.key: found.size_bytes for found in store.list(store_key(key))}
    for index, shard in enumerate(dataset.shards):
        if index < agreed and sizes.get(store_key(key, shard.name)) == shard.size_bytes:
            continue
        _send(store, folder / shard.name, store_key(key, shard.name), shard)
        on_sent(shard)
        count += 1
        if index >= len(named):
            shards = dataset.shards[: index + 1]
            stored = _commit(store, key, replace(dataset, complete=False, shards=shards))
    if dataset.complete and stored != dataset:
        _commit(store, key, dataset)
    return count


def fetch(
    store: Storage,
    folder: Path,
    kept: Dataset,
    on_shard: Callable[[Shard], None],
    *,
    train_tokens: int | None = None,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Fetched:
    """Bring the shards that the store names after those of `kept`, which are in `folder` and good.

    The folder's name is the key. `dataset.json` names each as it is there, checked, and `on_shard`
    hears of it then. Ends with `train_tokens`, or at the first that cannot be had. One that is not
    what was stored is taken out of the store, so that the one made in its place is sent. Raises no
    StorageError: what is not fetched can be made.
    """
    dataset, key = kept, folder.name
    try:
        stored, _ = _read(store, key)
        if stored is None:
            return Fetched(dataset=dataset)
        both = min(len(stored.shards), len(kept.shards))
        if _description(stored) != _description(kept) or _agreed(stored.shards, kept.shards) < both:
            return Fetched(dataset=dataset, fault=f"{key} in the store is not the same data")
        for shard in stored.shards[len(kept.shards) :]:
            if dataset.has(train_tokens):
                break
            _download(store, key, folder, shard, pauses_s)
            dataset = replace(dataset, shards=(*dataset.shards, shard))
            _write(folder, dataset)
            on_shard(shard)
        if stored.complete and len(stored.shards) == len(dataset.shards):
            dataset = replace(dataset, complete=True)
            _write(folder, dataset)
    except StorageError as error:
        return Fetched(dataset=dataset, fault=error.message)
    return Fetched(dataset=dataset)


def list_datasets(store: Storage) -> list[StoredDataset]:
    """All that lies under `datasets/`, by key. Raises StorageError."""
    sizes: dict[str, int] = {}
    for found in store.list(f"{DATASETS}/"):
        key = found.key.split("/")[1]
        sizes[key] = sizes.get(key, 0) + found.size_bytes
    return [_look(store, key, size_bytes) for key, size_bytes in sizes.items()]


def remove(store: Storage, key: str) -> int:
    """Delete what lies under `key`; bytes that are free then. Raises StorageError.

    The name that commits it goes first: half removed, it no longer counts as a data set.
    """
    found = store.list(store_key(key))
    if not found:
        raise ObjectNotFoundError(f"{store.url} has no data set {key}")
    store.delete([store_key(key, DATASET_JSON)])
    store.delete([each.key for each in found])
    return sum(each.size_bytes for each in found)


def store_key(key: str, name: str = "") -> str:
    """Store key of a file of the data set; without a name the prefix of them all."""
    return f"{DATASETS}/{key}/{name}"


def _look(store: Storage, key: str, size_bytes: int) -> StoredDataset:
    dataset, fault = _read(store, key)
    return StoredDataset(key=key, size_bytes=size_bytes, dataset=dataset, fault=fault)


def _read(store: Storage, key: str) -> tuple[Dataset | None, str]:
    """What the store names, or None and why that is nothing. Raises StorageError."""
    name = store_key(key, DATASET_JSON)
    try:
        data = store.read(name)
    except ObjectNotFoundError:
        return (
            None,
            f"no {DATASET_JSON}: the first shard never arrived whole, or it is half removed",
        )
    try:
        return decode(data, Dataset, name=name), ""
    except TrainingError as error:
        return None, error.message


def _commit(store: Storage, key: str, dataset: Dataset) -> Dataset:
    store.write(store_key(key, DATASET_JSON), encode(dataset))
    return dataset


def _description(dataset: Dataset) -> Dataset:
    return replace(dataset, complete=False, shards=())


def _agreed(ours: Sequence[Shard], theirs: Sequence[Shard]) -> int:
    """How many shards, from the first on, are the same in both."""
    pairs = zip(ours, theirs, strict=False)
    same = takewhile(lambda pair: _identity(pair[0]) == _identity(pair[1]), pairs)
    return len(list(same))


def _identity(shard: Shard) -> tuple[str, str]:
    return shard.name, shard.sha256


def _send(store: Storage, path: Path, key: str, shard: Shard) -> None:
    """Raises ObjectDamagedError for a file that is not the shard, and is not sent."""
    with os_errors(path):
        if sha256_file(path) != shard.sha256:
            raise ObjectDamagedError(
                f"{path} is not what was written (sha256 differs), and was not sent to the store",
                hint="prepare the data again: damaged shards are rewritten",
            )
    store.upload(path, key)
    if {found.key: found.size_bytes for found in store.list(key)}.get(key) != shard.size_bytes:
        raise StorageUnavailableError(
            f"{store.url} took {key}, and does not have it",
            hint="it is sent again later; if that goes on, look at the store's own logs",
        )


def _download(
    store: Storage, key: str, folder: Path, shard: Shard, pauses_s: Sequence[float]
) -> None:
    if Path(shard.name).name != shard.name or shard.name.startswith("."):
        raise StorageError(f"{key} in the store names {shard.name!r}, which is no plain file")
    name = store_key(key, shard.name)
    for pause_s in (*pauses_s, None):
        try:
            store.download(name, folder / shard.name, sha256=shard.sha256)
        except (StorageUnavailableError, ObjectDamagedError) as error:
            if pause_s is not None:
                time.sleep(pause_s)
                continue
            if isinstance(error, ObjectDamagedError):
                with suppress(StorageError):  # a store that may only be read keeps it
                    store.delete([name])
            raise
        return


def _write(folder: Path, dataset: Dataset) -> None:
    with os_errors(folder):
        write_atomic(folder / DATASET_JSON, encode(dataset))
