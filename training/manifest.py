"""What makes a folder a checkpoint: a manifest that names its files and their hashes.

Torch-free: the supervisor and the laptop check checkpoints without loading them.
"""

import shutil
from pathlib import Path

from training.errors import CheckpointError, TrainingError
from training.layout import (
    MANIFEST,
    FileEntry,
    Manifest,
    checkpoint_name,
    committed_checkpoints,
    decode,
    encode,
    sha256_file,
    write_atomic,
)


def commit(folder: Path, *, step: int, tokens: int) -> Manifest:
    """Write the manifest over every file in `folder`: from now on it is a checkpoint."""
    entries = [
        FileEntry(name=p.name, size_bytes=p.stat().st_size, sha256=sha256_file(p))
        for p in sorted(folder.iterdir())
    ]
    manifest = Manifest(step=step, tokens=tokens, files=tuple(entries))
    write_atomic(folder / MANIFEST, encode(manifest))
    return manifest


def parse(data: bytes, checkpoint: str) -> Manifest:
    """The manifest in `data`. Raises CheckpointError, naming the checkpoint."""
    try:
        return decode(data, Manifest, name=f"{checkpoint}/{MANIFEST}")
    except TrainingError as error:
        raise CheckpointError(error.message, hint=error.hint) from error


def verify(folder: Path) -> Manifest:
    """The manifest of `folder`, every file of which is what it says. Raises CheckpointError."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder.name} has no {MANIFEST}: it was never committed") from error
    manifest = parse(data, folder.name)
    for entry in manifest.files:
        path = folder / entry.name
        if not path.is_file():
            raise CheckpointError(f"{folder.name}: {entry.name} is missing")
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise CheckpointError(
                f"{folder.name}: {entry.name} has {size:,} bytes, its manifest says "
                f"{entry.size_bytes:,}"
            )
        if sha256_file(path) != entry.sha256:
            raise CheckpointError(f"{folder.name}: {entry.name} is not what was saved (sha256)")
    return manifest


def drop(checkpoints: Path, step: int) -> None:
    """Remove a checkpoint, its manifest first: half removed, it no longer counts as one."""
    folder = checkpoints / checkpoint_name(step)
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def newest_valid(checkpoints: Path) -> tuple[Path | None, list[CheckpointError]]:
    """The newest checkpoint that verifies, and why each newer one was passed over."""
    skipped = []
    for step in reversed(committed_checkpoints(checkpoints)):
        folder = checkpoints / checkpoint_name(step)
        try:
            verify(folder)
        except CheckpointError as error:
            skipped.append(error)
        else:
            return folder, skipped
    return None, skipped
