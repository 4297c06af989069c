"""A run's checkpoint as a model repository of the Hub: what would be sent, before it is."""

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gptctl.checkpoints import PulledCheckpoint, Which, export, parse_which
from gptctl.errors import UsageError
from gptctl.model_card import CardFacts, write_card
from gptctl.model_hub import BORN_WITH, Target
from gptctl.runs import RunView
from training.errors import ObjectNotFoundError
from training.events import parse_lines
from training.layout import (
    METRICS,
    FileEntry,
    RunRecord,
    Status,
    run_key,
    sha256_file,
    write_atomic,
)
from training.storage import Storage
from training.summary import measured_at, summarize

CARD = "README.md"
TOKENIZER = "tokenizer_config.json"


class Publication(Struct, frozen=True, kw_only=True):
    """The very files that are sent, and what becomes of those that are there already."""

    run_id: str
    step: int
    repo: str
    url: str
    private: bool
    is_new: bool
    files: tuple[FileEntry, ...]
    card: str
    replaced: tuple[str, ...]
    kept: tuple[str, ...]
    """Files of that repository that stay beside the new ones."""
    warnings: tuple[str, ...] = ()


def choose_checkpoint(view: RunView, checkpoint: str | None) -> Which:
    """The newest of a run that is over, unless another was asked for. Raises UsageError."""
    if checkpoint is not None:
        return parse_which(checkpoint)
    if view.is_over:
        return "latest"
    raise UsageError(
        f"{view.run_id} is {view.state}, at step {view.step:,} of {view.steps:,}",
        hint="wait for its end, or say which checkpoint of it is meant: `--checkpoint latest`",
    )


def check_visibility(target: Target, *, private: bool) -> None:
    """Raises UsageError where what is to be private would be seen by all."""
    if private and target.commit is not None and not target.private:
        raise UsageError(
            f"{target.repo} is there already, and public: what is sent there is seen by all",
            hint=f"make it private at {target.url}/settings, or take another name",
        )


def prepare_publication(
    store: Storage,
    record: RunRecord,
    status: Status,
    pulled: PulledCheckpoint,
    target: Target,
    folder: Path,
    *,
    private: bool,
) -> Publication:
    """Fill `folder` with what is to be sent: the exported checkpoint, and its card.

    Raises BackendError where it cannot be exported.
    """
    exported = export(pulled, folder)
    names = {file.name for file in exported.files}
    facts = CardFacts(
        repo=target.repo,
        recipe=record.recipe,
        summary=summarize(record, status),
        at=measured_at(_metrics(store, record.run_id), pulled.step),
        has_tokenizer=TOKENIZER in names,
    )
    card = write_card(facts)
    write_atomic(folder / CARD, card.encode())
    there = set(target.files) - BORN_WITH
    described = FileEntry(
        name=CARD, size_bytes=len(card.encode()), sha256=sha256_file(folder / CARD)
    )
    files = (*exported.files, described)
    names.add(CARD)
    return Publication(
        run_id=record.run_id,
        step=pulled.step,
        repo=target.repo,
        url=target.url,
        private=target.private if target.commit else private,
        is_new=target.commit is None,
        files=tuple(sorted(files, key=lambda file: file.name)),
        card=card,
        replaced=tuple(sorted(there & names)),
        kept=tuple(sorted(there - names)),
        warnings=exported.warnings,
    )


def as_judged(status: Status, view: RunView) -> Status:
    """The last heartbeat, with what is known of a run that could not tell its end itself."""
    return replace(status, state=view.state, reason=view.reason, message=view.message)


def _metrics(store: Storage, run_id: str) -> list[dict[str, object]]:
    try:
        return list(parse_lines(store.read(run_key(run_id, METRICS))))
    except ObjectNotFoundError:
        return []
