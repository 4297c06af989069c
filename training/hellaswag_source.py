"""HellaSwag's validation set as it was published: fetched, checked and rendered once.

Zellers et al. 2019, "HellaSwag: Can a Machine Really Finish Your Sentence?"; MIT licence. The
text is taken as it is, the markers of WikiHow included, as llm.c and build-nanogpt take it:
a harness that rewrites it gives other scores.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from time import sleep
from typing import Annotated
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
from msgspec import Meta, Struct

from training.errors import DataError
from training.hellaswag import ENDINGS, FILE_NAME, Example, read_examples, write_examples
from training.tokenizer import Tokenizer

TIMEOUT_S = 30.0
RETRIES_AFTER_S = (1.0, 4.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A file of questions, one JSON object a line."""

    url: str
    sha256: str
    examples: int


VALIDATION = Published(
    url="https://raw.githubusercontent.com/rowanz/hellaswag/"
    "a29ff8e9a04bba4bd6588223785ce105328adc57/data/hellaswag_val.jsonl",
    # As huggingface/datasets recorded it in datasets/hellaswag/dataset_infos.json.
    sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
    examples=10_042,
)


class Question(Struct, frozen=True, kw_only=True):
    """One line; the fields that do not count for the score are passed over."""

    ctx: Annotated[str, Meta(min_length=1)]
    endings: Annotated[tuple[str, ...], Meta(min_length=ENDINGS, max_length=ENDINGS)]
    label: Annotated[int, Meta(ge=0, lt=ENDINGS)]


def prepare_hellaswag(
    folder: Path, tokenizer: Tokenizer, *, published: Published = VALIDATION
) -> Path:
    """The file of rendered examples in `folder`, made where it is missing or damaged.

    Raises DataError where the questions cannot be had, NoSpaceError.
    """
    path = folder / FILE_NAME
    with suppress(DataError):  # none yet, or one that is not whole
        if len(read_examples(path, vocab_size=tokenizer.vocab_size)) == published.examples:
            return path
    questions = parse_questions(fetch(published), published)
    write_examples(path, [render(question, tokenizer) for question in questions])
    return path


def render(question: Question, tokenizer: Tokenizer) -> Example:
    """Ids of the context, and of each ending with the space that parts the two."""
    return Example(
        context=tokenizer.encode(question.ctx),
        endings=tuple(tokenizer.encode(f" {ending}") for ending in question.endings),
        label=question.label,
    )


def parse_questions(data: bytes, published: Published) -> list[Question]:
    """Raises DataError unless they are as many as were published, and each is whole."""
    questions = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            questions.append(msgspec.json.decode(line, type=Question))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _not_as_published(published, f"line {number:,}: {error}") from error
    if len(questions) != published.examples:
        what = f"it has {len(questions):,} examples, not {published.examples:,}"
        raise _not_as_published(published, what)
    return questions


def fetch(published: Published) -> bytes:
    """The published file, 12 MB, its hash checked. Raises DataError after the last retry."""
    for wait_s in (*RETRIES_AFTER_S, None):
        try:
            with urlopen(published.url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - our own URL
                data: bytes = answer.read()
        except (OSError, HTTPException) as error:  # URLError is an OSError
            if isinstance(error, HTTPError):
                error.close()  # it is the answer, too
            if wait_s is None:
                raise DataError(
                    f"HellaSwag cannot be fetched from {published.url}: {error}",
                    hint="let this machine reach it, or train without a HellaSwag score",
                ) from error
            sleep(wait_s)
        else:
            break
    found = hashlib.sha256(data).hexdigest()
    if found != published.sha256:
        raise _not_as_published(published, f"its sha256 is {found}, not {published.sha256}")
    return data


def _not_as_published(published: Published, what: str) -> DataError:
    return DataError(
        f"{published.url} is not HellaSwag as it was published: {what}",
        hint="something on the way changed it, such as a proxy's page; fetch it by another way",
    )
