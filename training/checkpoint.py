"""Saving and loading everything that training resumes from.

    shard-….safetensors   a share each of parameters and optimizer state, fp32
    state.json            step, tokens, best loss, resolved recipe
    manifest.json         sizes and hashes of the above, written last

Every rank of the head node saves what it owns (`training.shares`), and any number of ranks
loads it: a tensor is one piece, under its name. The other nodes hold the same replica and
save nothing. Training stalls only for a copy to the host's memory; threads of torch's
checkpointing write the copies, and rank 0 hashes and commits them. The position in the data
needs no field of its own: it is a function of the step. Nor do random generators: training
draws no number after the initial weights.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from time import perf_counter

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from training import manifest
from training.checkpoint_contents import (
    MODEL,
    OPTIMIZER,
    Contents,
    check,
    file_of_each,
    owner_of,
    parameter_shapes,
    read_contents,
    shapes_of,
)
from training.checkpoint_files import CommittingWriter, KeptStager, collectives_of, explain
from training.config import Recipe
from training.distributed import ALONE, Ranks
from training.errors import CheckpointError
from training.layout import Record, checkpoint_name, decode, encode, write_atomic
from training.model import GPT
from training.optimizer import Optimizers, parameter_of
from training.outliers import Recent

FORMAT = 2
STATE = "state.json"


class TrainerState(Record, frozen=True, kw_only=True):
    """What is not a tensor. `tokens` have been trained on; the next update is number `step`."""

    format: int = FORMAT
    step: int
    tokens: int
    best_val_loss: float | None
    recipe: Recipe
    cooldown_from: int | None = None
    """The step whose evaluation reached the target, and started the cool-down."""
    losses: Recent = Recent()
    norms: Recent = Recent()
    """What the outlier rules compare the next step with."""


class _Format(Record, frozen=True, kw_only=True):
    format: int = 1
    """Before there was a number."""


class CheckpointWriter:
    """Writes one checkpoint at a time behind training's back."""

    def __init__(
        self,
        checkpoints: Path,
        *,
        ranks: Ranks = ALONE,
        on_commit: Callable[[int, float, float], None],
    ) -> None:
        """`on_commit(step, stall_s, write_s)` is called on rank 0, once each is committed."""
        self._checkpoints = checkpoints
        self._ranks = ranks
        self._on_commit = on_commit
        if ranks.is_first:
            for left_by_a_killed_writer in checkpoints.glob(".*.partial"):
                shutil.rmtree(left_by_a_killed_writer, ignore_errors=True)
        self._stager = KeptStager()
        self._settled: Future[None] | None = None

    def save(self, model: GPT, optimizers: Optimizers, state: TrainerState) -> None:
        """Copy everything now, write it in the background. Called on all ranks at once.

        Raises what the save before this one failed with, on all ranks of the head node:
        NoSpaceError, OSError.
        """
        if self._ranks.node_rank != 0:
            return
        started = perf_counter()
        self.wait()
        final = self._checkpoints / checkpoint_name(state.step)
        partial = final.with_name(f".{final.name}.partial")
        stall: Future[float] = Future()
        upload = async_save(
            self._share(model, optimizers),
            storage_writer=CommittingWriter(
                partial,
                file_of=file_of_each(model, optimizers),
                commit=lambda: self._commit(partial, final, state, started, stall),
            ),
            async_stager=self._stager,
            **collectives_of(self._ranks.background),
        )
        assert isinstance(upload, Future)  # the stager is none that copies in the background
        settled: Future[None] = Future()
        self._settled = settled
        upload.add_done_callback(lambda done: self._settle(done, settled, partial, final))
        stall.set_result(perf_counter() - started)

    def wait(self) -> None:
        """Return when nothing is being written. Raises what writing failed with."""
        settled, self._settled = self._settled, None
        if settled is not None:
            settled.result()

    def _share(self, model: GPT, optimizers: Optimizers) -> dict[str, Tensor]:
        """What this rank saves: the tensors themselves, copied by the stager."""
        tensors = {
            **{MODEL + name: p.detach() for name, p in model.named_parameters()},
            **{OPTIMIZER + key: value for key, value in optimizers.state().items()},
        }
        rank = self._ranks.local_rank
        return {k: v for k, v in tensors.items() if owner_of(k, optimizers) == rank}

    def _commit(
        self,
        partial: Path,
        final: Path,
        state: TrainerState,
        started: float,
        stall: "Future[float]",
    ) -> None:
        """On rank 0, when every rank's file is on the disk."""
        write_atomic(partial / STATE, encode(state))
        manifest.commit(partial, step=state.step, tokens=state.tokens)
        manifest.drop(self._checkpoints, state.step)  # one of this step that did not verify
        partial.rename(final)
        _sync_to_disk(self._checkpoints)
        stall_s = stall.result()
        self._on_commit(state.step, stall_s, perf_counter() - started - stall_s)

    def _settle(
        self, upload: "Future[None]", settled: "Future[None]", partial: Path, final: Path
    ) -> None:
        error = upload.exception()
        if error is None:
            settled.set_result(None)
            return
        if self._ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        settled.set_exception(explain(error, final, self._checkpoints))


def load_newest(
    checkpoints: Path,
    model: GPT,
    optimizers: Optimizers,
    *,
    on_skip: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> TrainerState | None:
    """Put the newest checkpoint that verifies into model and optimizers of all ranks.

    Rank 0 picks it, each rank of its node reads what it needs, and the peers on the other nodes
    are sent the same bits. Any number of ranks loads what any number has saved. None: there is
    none, training starts afresh. `on_skip(why)` is called on rank 0 for each newer one that is
    damaged. Raises CheckpointError, on all ranks, for one of another model, optimizer or format.
    """

    def find() -> tuple[str, bytes, Contents] | None:
        folder, skipped = manifest.newest_valid(checkpoints)
        for error in skipped:
            on_skip(error.message)
        if folder is None:
            return None
        state, contents = read_state(folder), read_contents(folder)
        check(folder.name, "model", shapes_of(contents, MODEL), parameter_shapes(model))
        if stored := shapes_of(contents, OPTIMIZER):  # nothing: before the first step
            check(folder.name, "optimizer", stored, optimizers.state_shapes())
        return folder.name, encode(state), contents

    found = ranks.ask_first(find)
    if found is None:
        return None
    name, data, contents = found
    parameters = {MODEL + name: p.detach() for name, p in model.named_parameters()}
    state = {
        key: torch.empty(shape, dtype=dtype, device=ranks.device)
        for key, (shape, dtype) in contents.items()
        if key.startswith(OPTIMIZER)
        and optimizers.updates(parameter_of(key.removeprefix(OPTIMIZER)))
    }
    tensors = parameters | state
    if ranks.node_rank == 0:
        reader = HuggingFaceStorageReader(str(checkpoints / name))
        load(tensors, storage_reader=reader, **collectives_of(None))
    for tensor in tensors.values():
        ranks.broadcast_to_peers(tensor)
    optimizers.load_state({key.removeprefix(OPTIMIZER): value for key, value in state.items()})
    return decode(data, TrainerState, name=STATE)


def read_state(folder: Path) -> TrainerState:
    """What is not a tensor. Raises CheckpointError where there is none, or of another format."""
    try:
        data = (folder / STATE).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {STATE}") from error
    name = f"{folder.name}/{STATE}"
    written = decode(data, _Format, name=name).format
    if written != FORMAT:
        age = "a newer" if written > FORMAT else "an older"
        raise CheckpointError(
            f"{folder.name} was written by {age} gptctl: its format is {written}, not {FORMAT}",
            hint=f"go on with {age} gptctl, or start a new run",
        )
    return decode(data, TrainerState, name=name)


def read_parameters(folder: Path) -> dict[str, Tensor]:
    """All parameters of the model, by name, fp32 on the CPU. Needs no process group."""
    read_state(folder)  # says what is wrong with a checkpoint of another format
    parameters: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [key for key in file.keys() if key.startswith(MODEL)]  # noqa: SIM118 - no dict
            parameters |= {name.removeprefix(MODEL): file.get_tensor(name) for name in names}
    return parameters


def load_model(folder: Path, model: GPT) -> None:
    """Raises CheckpointError for one of another model."""
    parameters = read_parameters(folder)
    shapes = {name: p.shape for name, p in parameters.items()}
    check(folder.name, "model", shapes, parameter_shapes(model))
    model.load_state_dict(parameters)


def _sync_to_disk(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
