"""The training loop: `python -m training.train RUN_FOLDER DATASET_FOLDER`.

Started by torchrun it is one rank of several, alone it is the only one. Reads `run.json`,
writes metrics, events, checkpoints and a heartbeat into the run's folder; knows nothing of
stores, prices or clouds. SIGTERM: all ranks agree at the next step boundary, save, and leave.

Between two settlements the host never waits for the device: what a step measured stays there,
and what ranks must agree on travels between the hosts.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from math import isfinite
from pathlib import Path
from shutil import which
from time import perf_counter
from typing import NoReturn

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import stacks
from training.batch_size import choose_batch, is_out_of_memory
from training.checkpoint import CheckpointWriter, TrainerState, load_newest
from training.cluster import OUT_OF_MEMORY
from training.config import Recipe
from training.data import BatchLoader, Prefetcher, TrainingTokens, read_prepared
from training.data_wait import DataWait
from training.distributed import Ranks, join_ranks
from training.errors import NotFiniteError, TrainingError
from training.evaluate import ValidationSet, validation_loss
from training.events import append_event
from training.hellaswag import examples_path
from training.hellaswag_run import HellaSwag
from training.layout import RunPaths, RunRecord, Shard, decode
from training.measurements import DIVERGED, Measurements
from training.memory_trial import micro_batch_that_may_fit, take_memory_of_a_step
from training.model import GPT
from training.optimizer import Optimizers, clip_gradients
from training.peaks import multiplies_bfloat16, peak_flops
from training.processes import StopFlag, end_with_parent, exclusive
from training.sample_run import RunSamples
from training.schedule import is_due, last_step, lr_factor
from training.shards import open_shard
from training.telemetry import Telemetry


class Trainer:
    """Everything one rank holds. `run()` is the loop; each of its verbs is a method."""

    def __init__(
        self, record: RunRecord, paths: RunPaths, dataset: Path, ranks: Ranks, stop: StopFlag
    ) -> None:
        self.recipe: Recipe = record.recipe
        self.train = self.recipe.train
        self.ranks = ranks
        self.stop = stop
        peak = peak_flops(ranks.device)
        self.telemetry = Telemetry(
            record,
            paths,
            is_first=ranks.is_first,
            peak_flops=peak * ranks.world_size if peak else None,
        )
        self.measurements = Measurements(ranks, self.telemetry)
        self.data = DataWait(paths=paths, ranks=ranks, stop=stop, telemetry=self.telemetry)
        self.paths = paths

        torch.manual_seed(self.train.seed)
        self.model = GPT(
            self.recipe.model,
            seed=self.train.seed,
            checkpoint_activations=self.train.checkpoint_activations,
        ).to(ranks.device)
        self.optimizers = Optimizers(self.model, self.train, ranks)
        self.writer = CheckpointWriter(
            paths.checkpoints, ranks=ranks, on_commit=self.telemetry.report_checkpoint
        )
        self.state = load_newest(
            paths.checkpoints,
            self.model,
            self.optimizers,
            on_skip=self.telemetry.report_skipped,
            ranks=ranks,
        ) or TrainerState(step=0, tokens=0, best_val_loss=None, recipe=self.recipe)
        if self.is_to_compile():
            # Blocks are compiled one by one, so that DDP's buckets need not split their graphs.
            torch._dynamo.config.optimize_ddp = False
            self.model.compile_blocks()
        started = perf_counter()
        self.micro_batch_size, self.grad_accum_steps = choose_batch(
            self.recipe,
            ranks,
            at_most=micro_batch_that_may_fit(paths.events, self.recipe, ranks),
            try_out=self.take_memory,
        )
        self.telemetry.report_batch(
            self.micro_batch_size, self.grad_accum_steps, seconds=perf_counter() - started
        )

        self.hellaswag = HellaSwag(
            recipe=self.recipe,
            path=examples_path(dataset.parent, self.recipe.data.tokenizer),
            events=paths.events,
            micro_batch_size=self.micro_batch_size,
            ranks=ranks,
            telemetry=self.telemetry,
            autocast=self.autocast,
            is_stopping=lambda: stop.is_set,
        )
        self.samples = RunSamples(
            recipe=self.recipe,
            model=self.model,
            paths=paths,
            telemetry=self.telemetry,
            ranks=ranks,
            autocast=self.autocast,
        )
        self.validation = self.wait_for_validation_set(dataset)
        self.batches = BatchLoader(
            TrainingTokens(dataset, self.recipe.data),
            order=self.recipe.data.order,
            seed=self.train.seed,
            batch_tokens=self.train.batch_tokens,
            micro_batch_size=self.micro_batch_size,
            block_size=self.recipe.model.block_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        self.prefetcher = Prefetcher(self.batches, ranks.device)
        self.replica: nn.Module = self.model
        if ranks.world_size > 1:
            # The buckets of gradients travel while the blocks before are still in backward.
            self.replica = DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    def run(self) -> bool:
        """Train to the last step, or to a stop; leave a committed checkpoint behind.

        Whether it was stopped. What it raises, it raises once nothing is being saved.
        """
        try:
            return self.train_on()
        except BaseException:
            with suppress(Exception):
                self.writer.wait()  # needs the other ranks, who may be leaving, too
            raise

    def train_on(self) -> bool:
        self.begin()
        step, stopping = self.state.step, False
        while True:
            stopping = self.is_measuring(step) and self.is_told_to_stop()
            if not stopping:
                self.measure(step)
            if stopping or step == self.last_step:
                break
            if not self.data.until(
                lambda: self.batches.has(step),  # noqa: B023 - called at once
                before_waiting=lambda: self.measurements.settle(step),  # noqa: B023
            ):
                stopping = True
                break
            self.update(step)
            step += 1
            if is_due(step, self.train.log_every, last=self.last_step):
                self.measurements.settle(step)
            if is_due(step, self.recipe.checkpoint.every, last=self.last_step):
                self.save(step)
        self.save(step)
        if self.state.cooldown_from is not None and not stopping:
            self.telemetry.event("target_reached", step=step)
        self.writer.wait()
        return stopping

    def begin(self) -> None:
        step = self.state.step
        self.measured = self.telemetry.forget_after(step)
        # A checkpoint is saved before the evaluation of its step, and knows nothing of it.
        losses = [loss for (_, name), loss in self.measured.items() if name == "val_loss"]
        self.note_val_loss(self.ranks.ask_first(lambda: min(losses, default=None)))
        self.telemetry.event("training_resumed" if step else "training_started", step=step)
        if self.state.cooldown_from is not None:
            self.tell_cooldown(self.state.cooldown_from)
        model, block_size = self.recipe.model, self.recipe.model.block_size
        self.telemetry.say(
            f"{model.parameters:,} parameters; a step is {self.train.batch_tokens:,} tokens = "
            f"{self.ranks.world_size} ranks × {self.grad_accum_steps} micro-steps × "
            f"{self.micro_batch_size} sequences × {block_size} tokens; from step {step}"
        )
        self.ranks.barrier()

    def update(self, step: int) -> None:
        """One optimizer step. What it measured stays on the device until it is settled."""
        self.measurements.begin_step()
        loss = self.accumulate_gradients(step)
        grad_norm = clip_gradients(self.model, self.train.grad_clip)
        factor = lr_factor(self.train, step, self.state.cooldown_from)
        if self.is_outlier(step, loss, grad_norm):
            self.model.zero_grad(set_to_none=True)
        else:
            self.optimizers.step(factor)
        self.measurements.add(loss=loss, grad_norm=grad_norm, lr=self.train.max_lr * factor)

    def accumulate_gradients(self, step: int) -> Tensor:
        """Backward over every micro-step; gradients are exchanged in the last one only."""
        total = torch.zeros((), device=self.ranks.device)
        windows = self.prefetcher.windows(step)
        for micro_step in range(self.grad_accum_steps):
            inputs, targets = windows[micro_step, :, :-1], windows[micro_step, :, 1:]
            with self.exchange_gradients(micro_step == self.grad_accum_steps - 1):
                with self.autocast(), self.measurements.time_forward(micro_step == 0):
                    loss = self.replica(inputs, targets) / self.grad_accum_steps
                loss.backward()
            total += loss.detach()
            self.telemetry.beat()
        return total

    def is_outlier(self, step: int, loss: Tensor, grad_norm: Tensor) -> bool:
        """Whether the recipe's rules skip this update. The host waits, where there are any."""
        train = self.train
        if not (train.skip_loss_z or train.skip_grad_z):
            return False
        mean_loss = float(self.ranks.all_sum(loss.clone())) / self.ranks.world_size
        losses, loss_z = self.state.losses.take(mean_loss, limit=train.skip_loss_z)
        norms, norm_z = self.state.norms.take(float(grad_norm), limit=train.skip_grad_z)
        self.state = msgspec.structs.replace(self.state, losses=losses, norms=norms)
        if loss_z is None and norm_z is None:
            return False
        self.telemetry.report_skipped_update(step + 1, loss_z=loss_z, norm_z=norm_z)
        return True

    def is_measuring(self, step: int) -> bool:
        """Whether something of `step` is due that takes longer than a step boundary."""
        settings, last = self.recipe.eval, self.last_step
        return any(
            is_due(step, every, last=last)
            for every in (
                settings.every,
                settings.hellaswag_every,
                self.recipe.sample.every or last,
            )
        )

    def measure(self, step: int) -> None:
        """Evaluate, score and sample what is due at `step`, and act on a target that is reached."""
        every = self.recipe.eval.every
        if is_due(step, every, last=self.last_step) and not self.is_measured(step, "val_loss"):
            self.evaluate(step)
        if self.is_at_target and self.state.cooldown_from is None:
            self.end_by_target(step)
        self.score_hellaswag(step)
        every = self.recipe.sample.every
        if every and step and step % every == 0 and step != self.last_step:
            self.measurements.settle(step)
            self.samples.write(step)  # the finished model's are written when the run finishes

    def evaluate(self, step: int) -> None:
        self.measurements.settle(step)
        started = perf_counter()
        val_loss = validation_loss(
            self.model,
            self.validation,
            micro_batch_size=self.micro_batch_size,
            ranks=self.ranks,
            autocast=self.autocast,
            on_batch=self.telemetry.beat,
        )
        if not isfinite(val_loss):
            raise NotFiniteError(f"step {step}: the validation loss is {val_loss}", hint=DIVERGED)
        self.note_val_loss(val_loss)
        self.telemetry.report_evaluation(step, val_loss=val_loss, seconds=perf_counter() - started)

    def note_val_loss(self, val_loss: float | None) -> None:
        losses = [loss for loss in (self.state.best_val_loss, val_loss) if loss is not None]
        self.state = msgspec.structs.replace(self.state, best_val_loss=min(losses, default=None))

    def score_hellaswag(self, step: int) -> None:
        """Where it is due. Before the first step there is nothing to score."""
        settings = self.recipe.eval
        is_last = step == self.last_step
        is_due_now = is_last or (step > 0 and step % settings.hellaswag_every == 0)
        if settings.hellaswag and is_due_now and not self.is_measured(step, "hellaswag_acc_norm"):
            self.measurements.settle(step)
            self.hellaswag.measure(self.model, step, is_last=is_last)

    @property
    def is_at_target(self) -> bool:
        best, target = self.state.best_val_loss, self.recipe.eval.until_loss
        return target is not None and best is not None and best <= target

    @property
    def last_step(self) -> int:
        return last_step(self.train, self.state.cooldown_from)

    def end_by_target(self, step: int) -> None:
        """From here the rate cools down, if the schedule has that; else this was the last step."""
        self.state = msgspec.structs.replace(self.state, cooldown_from=step)
        self.tell_cooldown(step)

    def tell_cooldown(self, since: int) -> None:
        self.telemetry.steps = self.last_step
        if self.last_step > since:
            self.telemetry.event("cooldown_started", step=since, last_step=self.last_step)

    def save(self, step: int) -> None:
        """Of what has been settled only: no checkpoint holds what is not finite."""
        if step == self.state.step:
            return
        self.measurements.settle(step)
        self.state = msgspec.structs.replace(
            self.state, step=step, tokens=step * self.train.batch_tokens
        )
        self.writer.save(self.model, self.optimizers, self.state)

    def is_measured(self, step: int, name: str) -> bool:
        """Rank 0 knows what an earlier life measured; the others follow."""
        (measured,) = self.ranks.agree((step, name) in self.measured)
        return measured

    def is_told_to_stop(self) -> bool:
        (told,) = self.ranks.agree(self.stop.is_set)
        return told

    def take_memory(self, micro_batch_size: int) -> None:
        take_memory_of_a_step(
            self.model,
            self.optimizers,
            micro_batch_size,
            device=self.ranks.device,
            autocast=self.autocast,
        )
        self.telemetry.beat()

    def wait_for_validation_set(self, folder: Path) -> ValidationSet:
        """The validation shard is written first; training needs no more than it to be set up."""

        def find() -> list[Shard]:
            dataset = read_prepared(folder)
            return dataset.split("val") if dataset else []

        if not self.data.until(lambda: bool(find())):
            raise StoppedWaiting
        return ValidationSet(
            open_shard(folder / find()[0].name),
            tokens=self.recipe.eval.tokens,
            block_size=self.recipe.model.block_size,
        )

    def exchange_gradients(self, now: bool) -> AbstractContextManager[None]:
        if isinstance(self.replica, DistributedDataParallel) and not now:
            return self.replica.no_sync()
        return nullcontext()

    def autocast(self) -> AbstractContextManager[None]:
        dtype = self.train.dtype
        if dtype == "bfloat16" or (dtype == "auto" and multiplies_bfloat16(self.ranks.device)):
            return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def is_to_compile(self) -> bool:
        """As the recipe says; where it says nothing, on a GPU that has what compiling takes."""
        asked = self.train.compile
        if asked is not None or self.ranks.device.type != "cuda":
            return bool(asked)
        # Triton builds its launchers with the machine's C compiler. All ranks compile, or none.
        (is_missing,) = self.ranks.agree(not any(map(which, ("cc", "gcc", "clang"))))
        if is_missing:
            self.telemetry.say("there is no C compiler here: blocks run uncompiled, and slower")
        return not is_missing


def is_head_stopping(ranks: Ranks, stop: StopFlag) -> bool:
    """Whether the node that owns the record was told to stop; else only another one was."""
    return any(told for node, told in ranks.gather((ranks.node_rank, stop.is_set)) if node == 0)


class StoppedWaiting(Exception):  # noqa: N818
    """SIGTERM came while there was nothing to train on."""


def main(argv: list[str]) -> str | int:
    parser = argparse.ArgumentParser(prog="training.train", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("dataset", type=Path, help="folder of the token shards")
    arguments = parser.parse_args(argv)
    end_with_parent()
    stop = StopFlag()
    paths = RunPaths(arguments.run.parent.parent, arguments.run.name)
    stacks.register(paths.folder)
    record = decode(paths.record.read_bytes(), RunRecord, name="run.json")
    paths.heartbeat.touch()
    if record.device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32
    with join_ranks(record.device) as ranks:
        # Ranks of a life that was just killed may still be saving: wait for them.
        alone: Callable[[], AbstractContextManager[None]] = (
            (lambda: exclusive(paths.folder / ".training")) if ranks.is_first else nullcontext
        )
        try:
            with alone():
                ranks.barrier()
                trainer = Trainer(record, paths, arguments.dataset, ranks, stop)
                try:
                    is_stopped = trainer.run()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    leave_out_of_memory(trainer, error)
        except StoppedWaiting:
            is_stopped = True
        except TrainingError as error:
            with suppress(OSError):  # where the disk is full, the supervisor finds that itself
                append_event(
                    paths.events,
                    "error",
                    stage="train",
                    kind=type(error).__name__,
                    message=error.message,
                    hint=error.hint,
                )
            return error.report
        if is_stopped and not is_head_stopping(ranks, stop):
            return "another node was told to end: the run goes on when its nodes are back"
    return 0


def leave_out_of_memory(trainer: Trainer, error: BaseException) -> NoReturn:
    """At once, so that the other ranks, who wait for this one, are ended and begin again, too."""
    rank, micro_batch_size = trainer.ranks.rank, trainer.micro_batch_size
    append_event(
        trainer.paths.events, "out_of_memory", rank=rank, micro_batch_size=micro_batch_size
    )
    print(
        f"rank {rank} ran out of memory with a micro-batch of {micro_batch_size}: {error}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
