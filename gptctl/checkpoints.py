"""Bring a committed checkpoint from the store, verified, also while the run goes on."""

import codecs
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gptctl.errors import BackendError, NotFoundError, UsageError
from gptctl.programs import training_program
from gptctl.report import read_curves
from gptctl.runs import read_record
from training import manifest
from training.errors import CheckpointError, ObjectNotFoundError
from training.layout import (
    CHECKPOINTS,
    MANIFEST,
    FileEntry,
    checkpoint_name,
    checkpoint_step,
    run_key,
    sha256_file,
    write_atomic,
)
from training.storage import Storage

Which = int | Literal["latest", "best"]
_ATTEMPTS = 5
"""Retention may take a checkpoint away while it is downloaded: then the next look is newer."""


class PulledCheckpoint(Struct, frozen=True, kw_only=True):
    """What lies in `path` now. `warnings`: newer checkpoints that were passed over, and why."""

    run_id: str
    step: int
    path: Path
    files: tuple[FileEntry, ...]
    warnings: tuple[str, ...] = ()


def parse_which(text: str) -> Which:
    if text in ("latest", "best"):
        return text  # type: ignore[return-value]
    if text.isascii() and text.isdigit():
        return int(text)
    raise UsageError(f"--step {text!r} is no checkpoint", hint="a number, `latest` or `best`")


def list_steps(store: Storage, run_id: str) -> list[int]:
    """Steps of the committed checkpoints in the store, oldest first."""
    prefix = run_key(run_id, CHECKPOINTS) + "/"
    keys = (found.key.removeprefix(prefix).split("/") for found in store.list(prefix))
    steps = [checkpoint_step(key[0]) for key in keys if len(key) == 2 and key[1] == MANIFEST]
    return sorted(step for step in steps if step is not None)


def pull(store: Storage, run_id: str, which: Which, to: Path) -> PulledCheckpoint:
    """The checkpoint as folder `to`, whole or not at all.

    `latest` and `best` pass over a damaged one to the next best, and say so. Raises
    NotFoundError, UsageError where `to` is in use, BackendError where it cannot be written,
    CheckpointError where all are damaged.
    """
    _check_free(to)
    damaged: dict[int, CheckpointError] = {}
    for _ in range(_ATTEMPTS):
        for step in _candidates(store, run_id, which):
            if step in damaged:
                continue
            try:
                pulled = _download(store, run_id, step, to)
            except ObjectNotFoundError:
                break  # retention took it: look again
            except CheckpointError as error:
                damaged[step] = error
            else:
                warnings = (f"{e.message}; the next one is used" for e in damaged.values())
                return replace(pulled, warnings=tuple(warnings))
        else:
            break
    if damaged:
        reasons = "; ".join(error.message for error in damaged.values())
        others = [str(step) for step in list_steps(store, run_id) if step not in damaged]
        raise CheckpointError(
            f"{run_id}: {reasons}",
            hint=f"whole ones may be at step {', '.join(others)}: `--step N`"
            if others
            else "resuming the run writes new ones",
        )
    raise NotFoundError(
        f"the checkpoints of {run_id} went away while they were read", hint="try once more"
    )


def pull_cached(store: Storage, run_id: str, which: Which, cache: Path) -> PulledCheckpoint:
    """The checkpoint in the folder `cache`, where a whole one is not downloaded again."""
    step = _candidates(store, run_id, which)[0]
    folder = cache / run_id / checkpoint_name(step)
    try:
        with _os_errors(folder):
            kept = manifest.verify(folder)
    except CheckpointError:
        kept = None
    if kept is not None and kept.step == step:
        return PulledCheckpoint(run_id=run_id, step=step, path=folder, files=kept.files)
    shutil.rmtree(folder, ignore_errors=True)
    return pull(store, run_id, which, folder)


def export(pulled: PulledCheckpoint, to: Path) -> PulledCheckpoint:
    """The checkpoint as a folder that transformers loads. Raises BackendError."""
    command = training_program("export", "--checkpoint", str(pulled.path), "--to", str(to))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = _last_words(done.stderr)
        raise BackendError(
            f"step {pulled.step} of {pulled.run_id} could not be exported: {said}",
            hint="`--format native` brings the checkpoint as it is",
        )
    notes = (*pulled.warnings, *done.stdout.splitlines())  # as that there is no tokenizer
    return replace(pulled, path=to, files=_describe(to), warnings=notes)


def pull_exported(store: Storage, run_id: str, which: Which, to: Path) -> PulledCheckpoint:
    """`pull`, then `export`: whole or not at all, and nothing of the native one stays behind."""
    _check_free(to)
    with _staging(to) as folder:
        exported = export(pull(store, run_id, which, folder / "native"), folder / "exported")
        exported.path.replace(to)
    return replace(exported, path=to)


def _check_free(to: Path) -> None:
    with _os_errors(to):
        is_used = to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir())))
    if is_used:
        raise UsageError(
            f"{to} is there already and not an empty folder", hint="name a new folder: `--to`"
        )


@contextmanager
def _staging(to: Path) -> Iterator[Path]:
    """A folder beside `to`, so that putting what is in it in place is one rename."""
    with _os_errors(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as folder:
            yield Path(folder)


@contextmanager
def _os_errors(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackendError(
            f"{to} cannot be used: {error.strerror or error}",
            hint="name a folder that you may write to, on a disk with room",
        ) from error


def _candidates(store: Storage, run_id: str, which: Which) -> list[int]:
    """Steps that would do, the one wanted most first. Raises NotFoundError for none."""
    steps = list_steps(store, run_id)
    known = f"it has step {', '.join(map(str, steps))}" if steps else "none is committed yet"
    if which == "latest":
        wanted = steps[::-1]
    elif which == "best":
        measured = dict(read_curves(store, run_id).val)
        wanted = sorted((s for s in steps if s in measured), key=lambda step: measured[step])
        if steps and not wanted:
            known += ", none of them with a validation loss: try `--step latest`"
    else:
        wanted = [step for step in steps if step == which]
    if not steps and read_record(store, run_id).job == "prepare":
        raise NotFoundError(
            f"{run_id} prepared data and trained nothing: it has no model",
            hint="`gptctl data list` shows what it made, and `gptctl launch` trains on it",
        )
    if not wanted:
        name = f"checkpoint at step {which}" if isinstance(which, int) else f"{which} checkpoint"
        raise NotFoundError(f"{run_id} has no {name}", hint=known)
    return wanted


def _download(store: Storage, run_id: str, step: int, to: Path) -> PulledCheckpoint:
    """Raises ObjectNotFoundError where it is gone, CheckpointError where it is damaged."""
    name = checkpoint_name(step)
    key = run_key(run_id, CHECKPOINTS, name)
    data = store.read(f"{key}/{MANIFEST}")
    listed = manifest.parse(data, name)
    with _staging(to) as parent:
        folder = parent / name
        folder.mkdir()
        for entry in listed.files:
            if Path(entry.name).name != entry.name:
                raise CheckpointError(f"{name}: its manifest names {entry.name!r}, no plain file")
            try:
                store.download(f"{key}/{entry.name}", folder / entry.name)
            except ObjectNotFoundError as error:
                if step not in list_steps(store, run_id):
                    raise
                raise CheckpointError(f"{name}: {entry.name} is missing in the store") from error
        write_atomic(folder / MANIFEST, data)
        manifest.verify(folder)
        folder.replace(to)
    return PulledCheckpoint(run_id=run_id, step=step, path=to, files=listed.files)


def _describe(folder: Path) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    )


def run_sampling(pulled: PulledCheckpoint, options: dict[str, str]) -> Iterator[str]:
    """What `training.sample` prints, piece by piece. Raises BackendError where it fails."""
    # `--name=value`, so that a prompt may begin with a dash.
    words = [f"--{name}={value}" for name, value in options.items()]
    command = training_program("sample", "--checkpoint", str(pulled.path), *words)
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while chunk := process.stdout.read1():  # type: ignore[attr-defined]
            yield decoder.decode(chunk)
        if process.wait():
            errors.seek(0)
            said = _last_words(errors.read().decode(errors="replace"))
            raise BackendError(
                f"step {pulled.step} of {pulled.run_id} could not be sampled: {said}",
                hint="`--step best` or another step may do",
            )


def _last_words(stderr: str) -> str:
    """What a program said of its failure: its own report, or the last line of a traceback."""
    if report := re.search(r"^error: (.*)", stderr, re.DOTALL | re.MULTILINE):
        return report[1].strip()
    return stderr.strip().rpartition("\n")[2] or "no word of why"
