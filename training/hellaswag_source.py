"""HellaSwag's validation set as it was published: fetched, checked and rendered once.

Zellers et al. 2019, "HellaSwag: Can a Machine Really Finish Your Sentence?"; MIT licence. The
text is taken as it is, the markers of WikiHow included, as llm.c and build-nanogpt take it:
a harness that rewrites it gives other scores. From the authors' repository on the Hub: theirs on
GitHub was reported to answer no more (451).
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta, Struct

from training.errors import DataError
from training.hellaswag import ENDINGS, Example, examples_path, read_examples, write_examples
from training.hellaswag_published import VALIDATION, Published
from training.hub import list_files
from training.hub_asking import PATIENCE, Patience
from training.hub_fetch import fetch_ahead
from training.processes import exclusive
from training.shards import translating_write_errors
from training.tokenizer import Tokenizer


class Question(Struct, frozen=True, kw_only=True):
    """One row; the columns that do not count for the score are not read."""

    ctx: Annotated[str, Meta(min_length=1)]
    endings: Annotated[tuple[str, ...], Meta(min_length=ENDINGS, max_length=ENDINGS)]
    label: Annotated[int, Meta(ge=0, lt=ENDINGS)]


def prepare_hellaswag(
    datasets: Path,
    tokenizer: Tokenizer,
    *,
    published: Published = VALIDATION,
    patience: Patience = PATIENCE,
) -> Path:
    """The file of rendered examples below `datasets`, made where it is missing or damaged.

    While another process makes it, this one waits. Raises DataError where the questions cannot be
    had, NoSpaceError.
    """
    path = examples_path(datasets, tokenizer.name)
    with translating_write_errors(path), exclusive(path.parent / ".lock"):
        if not _is_whole(path, tokenizer, published):
            questions = fetch(published, path.parent, patience=patience)
            write_examples(path, [render(question, tokenizer) for question in questions])
    return path


def _is_whole(path: Path, tokenizer: Tokenizer, published: Published) -> bool:
    try:
        return len(read_examples(path, vocab_size=tokenizer.vocab_size)) == published.examples
    except DataError:
        return False


def render(question: Question, tokenizer: Tokenizer) -> Example:
    """Ids of the context, and of each ending with the space that parts the two."""
    return Example(
        context=tokenizer.encode(question.ctx),
        endings=tuple(tokenizer.encode(f" {ending}") for ending in question.endings),
        label=question.label,
    )


def fetch(published: Published, folder: Path, *, patience: Patience = PATIENCE) -> list[Question]:
    """The published questions; the file lies in `folder` only while it is read.

    Raises DataError: out of reach, or not as published; NoSpaceError.
    """
    (file,) = list_files(published.repo, published.commit, published.path, patience=patience)
    if file.sha256 != published.sha256:
        what = f"its sha256 is {file.sha256}, not {published.sha256}"
        raise _not_as_published(published, what)
    questions: list[Question] = []
    for path in fetch_ahead(published.repo, published.commit, [file], folder, patience=patience):
        questions = read_questions(path, published)
    return questions


def read_questions(path: Path, published: Published) -> list[Question]:
    """Raises DataError unless they are as many as were published, and each is whole."""
    try:
        rows = pq.read_table(path, columns=list(Question.__struct_fields__)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _not_as_published(published, f"it cannot be read: {error}") from error
    if len(rows) != published.examples:
        what = f"it has {len(rows):,} examples, not {published.examples:,}"
        raise _not_as_published(published, what)
    return [_as_question(row, number, published) for number, row in enumerate(rows, start=1)]


def _as_question(row: dict[str, Any], number: int, published: Published) -> Question:
    try:
        return msgspec.convert(row, Question, strict=False)  # labels are text there: "0" to "3"
    except msgspec.ValidationError as error:
        raise _not_as_published(published, f"row {number:,}: {error}") from error


def _not_as_published(published: Published, what: str) -> DataError:
    return DataError(
        f"{published.path} of {published.repo} is not HellaSwag as it was published: {what}",
        hint="something on the way changed it; is HF_ENDPOINT, if it is set, a faithful mirror?",
    )
