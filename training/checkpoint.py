"""Saving and loading everything that training resumes from.

    model.safetensors     parameters, fp32, under transformers' names
    trainer.safetensors   optimizer state and random generators
    state.json            step, tokens, best loss, resolved recipe
    manifest.json         sizes and hashes of the above, written last

Training stalls only for a copy in memory; a thread writes that copy, hashes it and commits
it. The position in the data needs no field of its own: it is a function of the step.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import manifest
from training.config import Recipe
from training.distributed import ALONE, Ranks
from training.errors import CheckpointError, NoSpaceError
from training.layout import Record, checkpoint_name, decode, encode
from training.model import GPT
from training.optimizer import Optimizers

MODEL = "model.safetensors"
TRAINER = "trainer.safetensors"
STATE = "state.json"


class TrainerState(Record, frozen=True, kw_only=True):
    """What is not a tensor. `tokens` have been trained on; the next update is number `step`."""

    step: int
    tokens: int
    best_val_loss: float | None
    recipe: Recipe


class CheckpointWriter:
    """Writes one checkpoint at a time behind training's back."""

    def __init__(
        self, checkpoints: Path, *, on_commit: Callable[[int, float, float], None]
    ) -> None:
        """`on_commit(step, stall_s, write_s)` is called once each checkpoint is committed."""
        self._checkpoints = checkpoints
        for left_by_a_killed_writer in checkpoints.glob(".*.partial"):
            shutil.rmtree(left_by_a_killed_writer, ignore_errors=True)
        self._on_commit = on_commit
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.last_step: int | None = None

    def save(self, model: GPT, optimizers: Optimizers, state: TrainerState) -> None:
        """Copy everything now, write it in the background.

        Raises what the save before this one failed with: NoSpaceError, OSError.
        """
        started = perf_counter()
        self.wait()
        parameters = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
        trainer = {f"optimizer/{k}": v.to("cpu", copy=True) for k, v in optimizers.state().items()}
        trainer["rng/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            trainer["rng/cuda"] = torch.cuda.get_rng_state()
        stall_s = perf_counter() - started
        self.last_step = state.step
        self._thread = threading.Thread(
            target=self._write, args=(parameters, trainer, state, stall_s), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written. Raises what writing failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self,
        parameters: dict[str, Tensor],
        trainer: dict[str, Tensor],
        state: TrainerState,
        stall_s: float,
    ) -> None:
        started = perf_counter()
        final = self._checkpoints / checkpoint_name(state.step)
        partial = final.with_name(f".{final.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(parameters, partial / MODEL)
            save_file(trainer, partial / TRAINER)
            (partial / STATE).write_bytes(encode(state))
            for path in partial.iterdir():
                _sync_to_disk(path)
            manifest.commit(partial, step=state.step, tokens=state.tokens)
            manifest.drop(self._checkpoints, state.step)  # one of this step that did not verify
            partial.rename(final)
            _sync_to_disk(self._checkpoints)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._error = _explain(error, final, self._checkpoints)
            return
        self._on_commit(state.step, stall_s, perf_counter() - started)


def load_newest(
    checkpoints: Path,
    model: GPT,
    optimizers: Optimizers,
    *,
    on_skip: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> TrainerState | None:
    """Put the newest checkpoint that verifies into model and optimizers of all ranks.

    Only rank 0, whose node has the folder, reads it; the others are sent the same bits. None:
    there is none, training starts afresh. `on_skip(why)` is called there for each newer one
    that is damaged. Raises CheckpointError, on all ranks, for one of another model.
    """
    trainer: dict[str, Tensor] = {}

    def read() -> tuple[bytes, list[tuple[str, torch.Size, torch.dtype]]] | None:
        folder, skipped = manifest.newest_valid(checkpoints)
        for error in skipped:
            on_skip(error.message)
        if folder is None:
            return None
        state = read_state(folder)
        load_model(folder, model)
        trainer.update(load_file(folder / TRAINER))
        return encode(state), [(name, t.shape, t.dtype) for name, t in trainer.items()]

    found = ranks.ask_first(read)
    if found is None:
        return None
    data, contents = found
    for parameter in model.parameters():
        ranks.broadcast(parameter.data)
    for name, shape, dtype in contents:
        values = trainer[name] if ranks.is_first else torch.empty(shape, dtype=dtype)
        trainer[name] = ranks.broadcast(values.to(ranks.device))
    _restore_trainer(trainer, optimizers)
    return decode(data, TrainerState, name=STATE)


def _restore_trainer(trainer: dict[str, Tensor], optimizers: Optimizers) -> None:
    prefix = "optimizer/"
    optimizers.load_state(
        {k.removeprefix(prefix): v for k, v in trainer.items() if k.startswith(prefix)}
    )
    torch.set_rng_state(trainer["rng/cpu"].cpu())
    if torch.cuda.is_available() and "rng/cuda" in trainer:
        torch.cuda.set_rng_state(trainer["rng/cuda"].cpu())


def read_state(folder: Path) -> TrainerState:
    """What is not a tensor. Raises CheckpointError where there is none."""
    try:
        data = (folder / STATE).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {STATE}") from error
    return decode(data, TrainerState, name=f"{folder.name}/{STATE}")


def load_model(folder: Path, model: GPT) -> None:
    try:
        model.load_state_dict(load_file(folder / MODEL))
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder.name} holds another model than the recipe describes: {error}",
            hint="resume with the recipe that the checkpoint's state.json names",
        ) from error


def _sync_to_disk(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _explain(error: BaseException, final: Path, checkpoints: Path) -> BaseException:
    # safetensors wraps the system's error in a text of its own.
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in str(error) or "os error 28" in str(error):
        free = shutil.disk_usage(checkpoints.parent).free  # the folder itself may be what failed
        return NoSpaceError(
            f"no space left on the disk to save {final.name} ({free:,} bytes free); "
            "the checkpoint before it is intact",
            hint="free some space, then `gptctl launch --resume` continues from that checkpoint",
        )
    return error
