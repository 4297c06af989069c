"""Where data come from: the standard library of this Python, the user's own files, or the Hub.

A source has a revision that follows from its content alone, so that equal text is prepared
once, wherever it lies. Files without content are passed over.
"""

import hashlib
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from training.config import TOKENIZER_VOCAB, DataConfig
from training.errors import DataError
from training.hub_source import HubText, open_hub
from training.layout import dataset_key
from training.text_files import find_files, translating_read_errors

if TYPE_CHECKING:
    from training.hub_shards import HubShards
    from training.token_files import TokenFiles

_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


class Source(Protocol):
    """Text as documents, the same ones in the same order whenever it is read."""

    @property
    def revision(self) -> str: ...

    @property
    def size_bytes(self) -> int:
        """Of all documents, in UTF-8."""

    def documents(self) -> Iterator[str]:
        """Raises DataError where a document cannot be read."""


def open_source(data: DataConfig) -> "Source | HubText | HubShards | TokenFiles":
    """The source that `data` names; one on the Hub is not asked for anything yet.

    Raises DataError where there is nothing to read.
    """
    # What deals in ids needs numpy, and a node without it must still be able to say so.
    if data.hub_repo and data.is_tokens:
        from training.hub_shards import open_hub_shards  # noqa: PLC0415

        return open_hub_shards(data)
    if data.hub_repo:
        return open_hub(data)
    source: TextFiles | TokenFiles
    if data.source == "python-stdlib":
        source = _open_stdlib()
    elif data.takes_path and not data.path:
        raise DataError(f"the source {data.source} needs a path", hint="name it: `--data PATH`")
    elif data.source == "text":
        source = _open_text(data.path)
    elif data.source == "tokens":
        from training.token_files import open_token_files  # noqa: PLC0415

        source = open_token_files(data.path, vocab_size=TOKENIZER_VOCAB[data.tokenizer])
    else:
        raise DataError(
            f"there is no source {data.source!r}: python-stdlib, text, tokens, fineweb, "
            "fineweb-edu, hub:owner/name or hub-shards:owner/name",
            hint="train on your own text: `--data PATH`",
        )
    if data.revision not in ("", source.revision):
        raise DataError(
            f"{data.source} is at revision {source.revision} here, not at {data.revision}",
            hint="leave out data.revision, or bring the text that it names",
        )
    return source


def dataset_folder_key(data: DataConfig) -> str:
    """Name of the folder under `datasets/` where this data set belongs."""
    return dataset_key(data, open_source(data).revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFiles:
    """A document a file, strictly UTF-8, in the order of `paths`."""

    revision: str
    size_bytes: int
    paths: tuple[Path, ...]

    def documents(self) -> Iterator[str]:
        return (_decode(_read(path), path) for path in self.paths)


def text_before(documents: Iterable[str], cut: int) -> Iterator[str]:
    """The text before byte `cut` of all documents end to end, as documents."""
    for document in documents:
        if cut <= 0:
            return
        encoded = document.encode()
        yield encoded[: _character_start(encoded, cut)].decode()
        cut -= len(encoded)


def text_after(documents: Iterable[str], cut: int) -> Iterator[str]:
    """The text from byte `cut` on: all that `text_before` leaves."""
    for document in documents:
        if cut <= 0:
            yield document
            continue
        encoded = document.encode()
        if rest := encoded[_character_start(encoded, cut) :]:
            yield rest.decode()
        cut -= len(encoded)


def _character_start(encoded: bytes, at: int) -> int:
    """The first position from `at` on where a UTF-8 character begins, or the end."""
    while at < len(encoded) and encoded[at] & 0b1100_0000 == 0b1000_0000:
        at += 1
    return at


def _open_stdlib() -> TextFiles:
    """In the order of their names' hashes: any prefix is a fair mixture of all topics."""
    root = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    own = [name for name in names if _FOREIGN.isdisjoint(name.parts)]
    own.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    files = _open_files([root / name for name in own], strict=False)
    if not files.paths:
        raise DataError(
            f"this Python has no source text of its standard library in {root}",
            hint="use another Python, or your own text: `--data PATH`",
        )
    revision = f"cpython-{platform.python_version()}-{files.revision[:12]}"
    return TextFiles(revision=revision, size_bytes=files.size_bytes, paths=files.paths)


def _open_text(where: str) -> TextFiles:
    paths = find_files(Path(where).expanduser())
    if not paths:
        raise DataError(
            f"there is no text at {where}",
            hint="`--data` takes a file, a folder or a glob such as 'books/*.txt'",
        )
    files = _open_files(paths, strict=True)
    if not files.paths:
        raise DataError(f"{where} is empty", hint="give a text that has something in it")
    return files


def _open_files(paths: list[Path], *, strict: bool) -> TextFiles:
    """Those of `paths` that have content; unless `strict`, also only those that are UTF-8."""
    digest = hashlib.sha256()
    size_bytes = 0
    kept = []
    for path in paths:
        data = _read(path)
        try:
            _decode(data, path)
        except DataError:
            if strict:
                raise
            continue
        if data:
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
            size_bytes += len(data)
            kept.append(path)
    return TextFiles(revision=digest.hexdigest()[:16], size_bytes=size_bytes, paths=tuple(kept))


def _read(path: Path) -> bytes:
    with translating_read_errors(path):
        return path.read_bytes()


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,}",
            hint="convert it (`iconv -t UTF-8`), or leave it out of `--data`",
        ) from error
