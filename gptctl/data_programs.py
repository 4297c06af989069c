"""Making and checking token shards on this machine, by programs of the node."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gptctl.errors import BackendError
from gptctl.programs import program_events, training_program
from training import errors as training_errors
from training.config import Recipe
from training.layout import tokens_wanted

PATIENCE_S = 300.0
"""With a store that fails, when all else is done."""


class Progress(Struct, frozen=True, kw_only=True):
    """How far a preparation is after `seconds`, in which `made_tokens` of the `tokens` came to be.

    `total_tokens` is an estimate; None: unknown.
    """

    shards: int
    tokens: int
    made_tokens: int
    seconds: float
    total_tokens: int | None

    @property
    def tokens_per_sec(self) -> float | None:
        return self.made_tokens / self.seconds if self.made_tokens and self.seconds else None

    @property
    def seconds_left(self) -> float | None:
        if self.total_tokens is None or not self.tokens_per_sec:
            return None
        return max(0, self.total_tokens - self.tokens) / self.tokens_per_sec


class Prepared(Struct, frozen=True, kw_only=True):
    """A data set in `folder`, `complete` or as much as its recipe needs.

    `made`, `fetched`, `sent`: shards written, shards the store gave, shards it lacked.
    """

    key: str
    folder: Path
    store: str
    shards: int
    tokens: int
    complete: bool
    made: int
    fetched: int
    sent: int
    seconds: float


class CheckedFile(Struct, frozen=True, kw_only=True):
    """`fault` is empty for a good one."""

    name: str
    tokens: int
    fault: str


class Checked(Struct, frozen=True, kw_only=True):
    """`complete` None: files that a user brought. `extra`: files that nothing names, or reads."""

    path: Path
    complete: bool | None
    files: tuple[CheckedFile, ...]
    extra: tuple[str, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(file.fault for file in self.files if file.fault)


def prepare(
    recipe: Recipe,
    to: Path,
    *,
    store: str,
    clock: Callable[[], float],
    show: Callable[[Progress], None],
    tell: Callable[[str], None],
    whole: bool = False,
    patience_s: float = PATIENCE_S,
) -> Prepared:
    """The recipe's data set in `to/datasets/<key>`, and in the store; `show` hears of each shard.

    As much as a run of the recipe needs, or the `whole` of it. Ended by Ctrl-C, it goes on there
    the next time. Raises the TrainingError that it fails with; StorageUnavailableError where all
    is here and the store failed for `patience_s`; BackendError.
    """
    command = training_program(
        "prepare_here",
        f"--to={to}",
        f"--store={store}",
        f"--block-size={recipe.model.block_size}",
        f"--patience-s={patience_s}",
        f"--data={msgspec.json.encode(recipe.data).decode()}",
        *([] if whole else [f"--train-tokens={tokens_wanted(recipe)}"]),
    )
    started = clock()
    opened: dict[str, Any] = {}
    made = made_tokens = fetched = 0
    for event in program_events(command, what="the data could not be prepared"):
        seconds = clock() - started
        match event["event"]:
            case "opened":
                opened = event
            case "shard":
                fetched += event["is_fetched"]
                made += not event["is_fetched"]
                made_tokens += event["tokens"]
                show(
                    Progress(
                        shards=event["shards"],
                        tokens=event["all_tokens"],
                        made_tokens=made_tokens,
                        seconds=seconds,
                        total_tokens=event["total_tokens"],
                    )
                )
            case "note":
                tell(event["text"])
            case "prepared":
                tell(f"{event['shards']:,} shards are ready; sending what the store lacks ...")
            case "ready":
                return _finish(
                    opened, event, store=store, made=made, fetched=fetched, seconds=seconds
                )
    raise BackendError("the preparation ended without a word", hint="try once more")


def verify(path: Path, *, show: Callable[[CheckedFile], None]) -> Checked:
    """Every shard or token file at `path`, checked; `show` hears of each.

    Raises TrainingError where there is nothing to check, BackendError.
    """
    files: list[CheckedFile] = []
    extra: list[str] = []
    complete = None
    # A path may begin with a dash.
    command = training_program("verify_data", "--", str(path))
    for event in program_events(command, what=f"{path} could not be checked"):
        match event["event"]:
            case "file":
                files.append(msgspec.convert(event, CheckedFile))
                show(files[-1])
            case "extra":
                extra.append(event["name"])
            case "verified":
                complete = event["complete"]
    return Checked(path=path, complete=complete, files=tuple(files), extra=tuple(extra))


def _finish(
    opened: dict[str, Any],
    ready: dict[str, Any],
    *,
    store: str,
    made: int,
    fetched: int,
    seconds: float,
) -> Prepared:
    if ready["unsent"]:
        raise training_errors.StorageUnavailableError(
            f"{opened['folder']} is ready, but the store did not take all of it: {ready['unsent']}",
            hint="the same command sends the rest",
        )
    return Prepared(
        key=opened["key"],
        folder=Path(opened["folder"]),
        store=store,
        shards=ready["shards"],
        tokens=ready["all_tokens"],
        complete=ready["complete"],
        made=made,
        fetched=fetched,
        sent=ready["sent"],
        seconds=seconds,
    )
