"""The training loop: `python -m training.train RUN_FOLDER DATASET_FOLDER`.

Started by torchrun it is one rank of several, alone it is the only one. Reads `run.json`,
writes metrics, events, checkpoints and a heartbeat into the run's folder; knows nothing of
stores, prices or clouds. SIGTERM: all ranks agree at the next step boundary, save, and leave.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from math import isfinite
from pathlib import Path
from time import perf_counter, sleep

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.batch_size import share_batch
from training.checkpoint import CheckpointWriter, TrainerState, load_newest
from training.config import Recipe
from training.data import POLL_S, BatchLoader, TrainingTokens, read_prepared
from training.distributed import Ranks, join_ranks
from training.errors import NotFiniteError, TrainingError
from training.evaluate import ValidationSet, validation_loss
from training.events import append_event
from training.hellaswag import examples_path
from training.hellaswag_run import HellaSwag
from training.layout import RunPaths, RunRecord, Shard, decode
from training.model import GPT
from training.node_error import read_node_error
from training.optimizer import Optimizers, clip_gradients
from training.peaks import multiplies_bfloat16, peak_flops
from training.processes import StopFlag, end_with_parent, exclusive
from training.schedule import is_due, lr_factor
from training.shards import open_shard
from training.telemetry import Telemetry

DIVERGED = "a lower train.max_lr or a longer train.warmup_steps usually cures it"


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
        self.paths = paths
        self.micro_batch_size, self.grad_accum_steps = share_batch(self.recipe, ranks)

        torch.manual_seed(self.train.seed)
        self.model = GPT(self.recipe.model, seed=self.train.seed).to(ranks.device)
        self.optimizers = Optimizers(self.model, self.train)
        self.writer = CheckpointWriter(
            paths.checkpoints, on_commit=self.telemetry.report_checkpoint
        )
        self.state = load_newest(
            paths.checkpoints,
            self.model,
            self.optimizers,
            on_skip=self.telemetry.report_skipped,
            ranks=ranks,
        ) or TrainerState(step=0, tokens=0, best_val_loss=None, recipe=self.recipe)

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
        self.forward: nn.Module = self.model
        if self.train.compile:
            self.forward = torch.compile(self.model)  # type: ignore[assignment]
        self.replica = self.forward
        if ranks.world_size > 1:
            self.replica = DistributedDataParallel(self.forward, gradient_as_bucket_view=True)

    def run(self) -> bool:
        """Train to the last step, or to a stop; leave a committed checkpoint behind.

        Whether it was stopped.
        """
        self.begin()
        step, last = self.state.step, self.train.steps
        stopping = False
        while True:
            is_at_target = False
            if is_due(step, self.recipe.eval.every, last=last) and not self.is_measured(
                step, "val_loss"
            ):
                self.evaluate(step)
                is_at_target = self.is_at_target
            self.score_hellaswag(step, is_last=is_at_target or step == last)
            if is_at_target:
                self.save(step)
                self.telemetry.event("target_reached", step=step)
                break
            if step == last:
                break
            if not self.wait_until(lambda: self.batches.has(step)):  # noqa: B023 - called at once
                self.save(step)
                stopping = True
                break
            started = perf_counter()
            loss = self.accumulate_gradients(step)
            grad_norm = clip_gradients(self.model, self.train.grad_clip)
            lr = self.optimizers.step(lr_factor(self.train, step))
            step += 1
            # The one point where the host waits for the device, and the ranks for each other.
            mean_loss, norm, stopping = self.share(step, loss, grad_norm)
            self.telemetry.report_step(
                step, loss=mean_loss, lr=lr, grad_norm=norm, seconds=perf_counter() - started
            )
            if is_due(step, self.recipe.checkpoint.every, last=last) or stopping:
                self.save(step)
            if stopping:
                break
        self.writer.wait()
        return stopping

    def begin(self) -> None:
        step = self.state.step
        self.measured = self.telemetry.forget_after(step)
        self.telemetry.event("training_resumed" if step else "training_started", step=step)
        model, block_size = self.recipe.model, self.recipe.model.block_size
        self.telemetry.say(
            f"{model.parameters:,} parameters; a step is {self.train.batch_tokens:,} tokens = "
            f"{self.ranks.world_size} ranks × {self.grad_accum_steps} micro-steps × "
            f"{self.micro_batch_size} sequences × {block_size} tokens; from step {step}"
        )
        self.ranks.barrier()

    def accumulate_gradients(self, step: int) -> Tensor:
        """Backward over every micro-step; gradients are exchanged in the last one only."""
        total = torch.zeros((), device=self.ranks.device)
        for micro_step in range(self.grad_accum_steps):
            inputs, targets = self.batches.batch(step, micro_step)
            with self.exchange_gradients(micro_step == self.grad_accum_steps - 1):
                with self.autocast():
                    loss = self.replica(self.to_device(inputs), self.to_device(targets))
                    loss = loss / self.grad_accum_steps
                loss.backward()
            total += loss.detach()
            self.telemetry.beat()
        return total

    def share(self, step: int, loss: Tensor, grad_norm: Tensor) -> tuple[float, float, bool]:
        """(mean loss over the ranks, gradient norm, whether any rank was told to stop).

        Raises NotFiniteError, on all ranks at once.
        """
        values = torch.stack([loss, torch.tensor(float(self.stop.is_set), device=loss.device)])
        loss_sum, stopping = self.ranks.all_sum(values).tolist()
        mean_loss, norm = loss_sum / self.ranks.world_size, float(grad_norm)
        if not (isfinite(mean_loss) and isfinite(norm)):
            raise NotFiniteError(
                f"step {step}: the loss is {mean_loss}, the gradient's norm {norm}",
                hint=f"{DIVERGED}; the checkpoint before this step is good",
            )
        return mean_loss, norm, stopping > 0

    def evaluate(self, step: int) -> None:
        started = perf_counter()
        val_loss = validation_loss(
            self.forward,
            self.validation,
            micro_batch_size=self.micro_batch_size,
            ranks=self.ranks,
            autocast=self.autocast,
            on_batch=self.telemetry.beat,
        )
        if not isfinite(val_loss):
            raise NotFiniteError(f"step {step}: the validation loss is {val_loss}", hint=DIVERGED)
        best = min(loss for loss in (self.state.best_val_loss, val_loss) if loss is not None)
        self.state = msgspec.structs.replace(self.state, best_val_loss=best)
        self.telemetry.report_evaluation(step, val_loss=val_loss, seconds=perf_counter() - started)

    def score_hellaswag(self, step: int, *, is_last: bool) -> None:
        """Where it is due. Before the first step there is nothing to score."""
        settings = self.recipe.eval
        is_due_now = is_last or (step > 0 and step % settings.hellaswag_every == 0)
        if settings.hellaswag and is_due_now and not self.is_measured(step, "hellaswag_acc_norm"):
            self.hellaswag.measure(self.forward, step, is_last=is_last)

    @property
    def is_at_target(self) -> bool:
        best, target = self.state.best_val_loss, self.recipe.eval.until_loss
        return target is not None and best is not None and best <= target

    def save(self, step: int) -> None:
        if not self.ranks.is_first or step == self.state.step:
            return
        self.state = msgspec.structs.replace(
            self.state, step=step, tokens=step * self.train.batch_tokens
        )
        self.writer.save(self.model, self.optimizers, self.state)

    def is_measured(self, step: int, name: str) -> bool:
        """Rank 0 knows what an earlier life measured; the others follow."""
        (measured,) = self.ranks.agree((step, name) in self.measured)
        return measured

    def wait_for_validation_set(self, folder: Path) -> ValidationSet:
        """The validation shard is written first; training needs no more than it to be set up."""

        def find() -> list[Shard]:
            dataset = read_prepared(folder)
            return dataset.split("val") if dataset else []

        if not self.wait_until(lambda: bool(find())):
            raise StoppedWaiting
        return ValidationSet(
            open_shard(folder / find()[0].name),
            tokens=self.recipe.eval.tokens,
            block_size=self.recipe.model.block_size,
        )

    def wait_until(self, is_there: Callable[[], bool]) -> bool:
        """True as soon as every rank finds data there; False where a stop comes before it.

        The ranks decide together: one that went on, or left, alone would hang the others.
        Raises, on all ranks, what keeps the data from coming to the node of one of them.
        """
        waiting_since: float | None = None
        while True:
            here = is_there()
            error = None if here else read_node_error(self.paths)
            missing, stopping, failing = self.ranks.agree(
                not here, self.stop.is_set, error is not None
            )
            if failing:
                raise next(found for found in self.ranks.gather(error) if found)
            if not missing or stopping:
                if waiting_since is not None:
                    waited_s = perf_counter() - waiting_since
                    self.telemetry.event("waited_for_data", seconds=waited_s)
                return not missing
            if waiting_since is None:
                self.telemetry.event("waiting_for_data")
                self.telemetry.say("waiting for the next shard")
                waiting_since = perf_counter()
            self.telemetry.beat()
            sleep(POLL_S)

    def exchange_gradients(self, now: bool) -> AbstractContextManager[None]:
        if isinstance(self.replica, DistributedDataParallel) and not now:
            return self.replica.no_sync()
        return nullcontext()

    def autocast(self) -> AbstractContextManager[None]:
        dtype = self.train.dtype
        if dtype == "bfloat16" or (dtype == "auto" and multiplies_bfloat16(self.ranks.device)):
            return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def to_device(self, tokens: Tensor) -> Tensor:
        if self.ranks.device.type == "cuda":
            return tokens.pin_memory().to(self.ranks.device, non_blocking=True)
        return tokens


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
    record = decode(paths.record.read_bytes(), RunRecord, name="run.json")
    paths.heartbeat.touch()
    with join_ranks(record.device) as ranks:
        # Ranks of a life that was just killed may still be saving: wait for them.
        alone: Callable[[], AbstractContextManager[None]] = (
            (lambda: exclusive(paths.folder / ".training")) if ranks.is_first else nullcontext
        )
        try:
            with alone():
                ranks.barrier()
                is_stopped = Trainer(record, paths, arguments.dataset, ranks, stop).run()
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
