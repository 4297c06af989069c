"""Data sets in the store, and which one a recipe would have."""

from pathlib import Path

from msgspec import Struct

from gptctl.errors import NotFoundError, UsageError
from gptctl.order import pin, with_data
from gptctl.recipe import read_recipe
from training.config import Recipe
from training.dataset_store import StoredDataset, list_datasets, remove
from training.storage import Storage


class Row(Struct, frozen=True, kw_only=True):
    """A data set of the store as `gptctl data list` has it; `fault`: why it is of no use."""

    key: str
    source: str | None
    revision: str | None
    tokenizer: str | None
    shards: int
    tokens: int
    size_bytes: int
    complete: bool
    fault: str = ""


def list_rows(store: Storage) -> list[Row]:
    """Data sets of the store by key, also those that are of no use. Raises StorageError."""
    return [_row(found) for found in list_datasets(store)]


def remove_dataset(store: Storage, text: str) -> tuple[str, int]:
    """Delete the one data set whose key is `text`, or begins so: (key, bytes that it took).

    Raises NotFoundError, UsageError where several begin so.
    """
    keys = [found.key for found in list_datasets(store)]
    matches = [text] if text in keys else [key for key in keys if text and key.startswith(text)]
    if not matches:
        raise NotFoundError(
            f"there is no data set {text!r} in {store.url}", hint="`gptctl data list` names them"
        )
    if len(matches) > 1:
        raise UsageError(
            f"{len(matches)} data sets begin with {text!r}", hint=f"one of {', '.join(matches)}"
        )
    return matches[0], remove(store, matches[0])


def choose_data(recipe: str, overrides: tuple[str, ...], path: Path | None) -> Recipe:
    """The recipe, with the data at `path` (absolute) where one is given, at a commit if on the Hub.

    Raises NotFoundError, UsageError, PlanRefusedError where there is nothing, and DataError as
    `pin` does.
    """
    _, chosen = read_recipe(recipe, overrides)
    return pin(with_data(chosen, path, globs=True))


def _row(found: StoredDataset) -> Row:
    dataset = found.dataset
    return Row(
        key=found.key,
        source=dataset.source if dataset else None,
        revision=dataset.revision if dataset else None,
        tokenizer=dataset.tokenizer if dataset else None,
        shards=len(dataset.shards) if dataset else 0,
        tokens=sum(shard.tokens for shard in dataset.shards) if dataset else 0,
        size_bytes=found.size_bytes,
        complete=dataset is not None and dataset.complete,
        fault=found.fault,
    )
