"""The training loop: `python -m training.train RUN_FOLDER DATASET_FOLDER`.

Started by torchrun it is one rank of several, alone it is the only one. Reads `run.json`,
writes metrics, events, checkpoints and a heartbeat into the run's folder; knows nothing of
stores, prices or clouds. SIGTERM: all ranks agree at the next step boundary, save, and leave.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from math import isfinite
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.checkpoint import CheckpointWriter, TrainerState, load_newest
from training.config import Recipe
from training.data import POLL_S, BatchLoader, TrainingTokens, read_prepared
from training.distributed import Ranks, join_ranks
from training.errors import NotFiniteError, TrainingError
from training.evaluate import ValidationSet, validation_loss
from training.events import append_event, append_line, parse_lines
from training.layout import RunPaths, RunRecord, Shard, decode, write_atomic
from training.model import GPT
from training.optimizer import Optimizers, clip_gradients
from training.peaks import multiplies_bfloat16, peak_flops
from training.processes import StopFlag, end_with_parent, exclusive
from training.schedule import is_due, lr_factor
from training.shards import open_shard

DIVERGED = "a lower train.max_lr or a longer train.warmup_steps usually cures it"


class Trainer:
    """Everything one rank holds. `run()` is the loop; each of its verbs is a method."""

    def __init__(
        self, record: RunRecord, paths: RunPaths, dataset: Path, ranks: Ranks, stop: StopFlag
    ) -> None:
        self.recipe: Recipe = record.recipe
        self.train = self.recipe.train
        self.paths = paths
        self.ranks = ranks
        self.stop = stop
        self.grad_accum_steps = record.grad_accum_steps
        self.micro_batch_size = record.micro_batch_size

        torch.manual_seed(self.train.seed)
        self.model = GPT(self.recipe.model, seed=self.train.seed).to(ranks.device)
        self.optimizers = Optimizers(self.model, self.train)
        self.writer = CheckpointWriter(paths.checkpoints, on_commit=self.report_checkpoint)
        self.state = load_newest(
            paths.checkpoints,
            self.model,
            self.optimizers,
            on_skip=self.report_skipped,
        ) or TrainerState(step=0, tokens=0, best_val_loss=None, recipe=self.recipe)

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
        peak = peak_flops(ranks.device)
        self.peak_flops = peak * ranks.world_size if peak else None

    def run(self) -> None:
        """Train to the last step, or to a stop; leave a committed checkpoint behind."""
        self.begin()
        step, last = self.state.step, self.train.steps
        while True:
            if is_due(step, self.recipe.eval.every, last=last) and not self.is_evaluated(step):
                self.evaluate(step)
            if step == last:
                break
            if not self.wait_until(lambda: self.batches.has(step)):  # noqa: B023 - called at once
                self.save(step)
                break
            started = perf_counter()
            loss = self.accumulate_gradients(step)
            grad_norm = clip_gradients(self.model, self.train.grad_clip)
            lr = self.optimizers.step(lr_factor(self.train, step))
            step += 1
            # The one point where the host waits for the device, and the ranks for each other.
            mean_loss, norm, stopping = self.share(loss, grad_norm, self.stop.is_set)
            self.record(step, mean_loss, norm, lr, perf_counter() - started)
            if is_due(step, self.recipe.checkpoint.every, last=last) or stopping:
                self.save(step)
            if stopping:
                break
        self.writer.wait()

    def begin(self) -> None:
        step = self.state.step
        if self.ranks.is_first:
            self.measured = forget_metrics_after(self.paths.metrics, step)
        else:
            self.measured = set()
        self.event("training_resumed" if step else "training_started", step=step)
        model, block_size = self.recipe.model, self.recipe.model.block_size
        self.say(
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
            self.beat()
        return total

    def share(self, loss: Tensor, grad_norm: Tensor, stop: bool) -> tuple[float, float, bool]:
        """(mean loss over the ranks, gradient norm, whether any rank was told to stop)."""
        values = torch.stack([loss, torch.tensor(float(stop), device=loss.device)])
        mean_loss, stopping = (self.ranks.all_sum(values)).tolist()
        return mean_loss / self.ranks.world_size, float(grad_norm), stopping > 0

    def record(self, step: int, loss: float, grad_norm: float, lr: float, seconds: float) -> None:
        if not (isfinite(loss) and isfinite(grad_norm)):
            raise NotFiniteError(
                f"step {step}: the loss is {loss}, the gradient's norm {grad_norm}",
                hint=f"{DIVERGED}; the checkpoint before this step is good",
            )
        tokens_per_sec = self.train.batch_tokens / seconds
        flops = tokens_per_sec * self.recipe.model.flops_per_token
        mfu = flops / self.peak_flops if self.peak_flops else None
        self.metric(
            step=step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_sec=tokens_per_sec,
            mfu=mfu,
        )
        self.say(
            f"step {step}/{self.train.steps}  loss {loss:.4f}  norm {grad_norm:.3f}  lr {lr:.2e}  "
            f"{1e3 * seconds:.0f} ms  {tokens_per_sec:,.0f} tokens/s"
            + (f"  {mfu:.1%} MFU" if mfu else "")
        )

    def evaluate(self, step: int) -> None:
        started = perf_counter()
        val_loss = validation_loss(
            self.forward,
            self.validation,
            micro_batch_size=self.micro_batch_size,
            ranks=self.ranks,
            autocast=self.autocast,
            on_batch=self.beat,
        )
        if not isfinite(val_loss):
            raise NotFiniteError(f"step {step}: the validation loss is {val_loss}", hint=DIVERGED)
        best = min(loss for loss in (self.state.best_val_loss, val_loss) if loss is not None)
        self.state = msgspec.structs.replace(self.state, best_val_loss=best)
        seconds = perf_counter() - started
        self.metric(step=step, val_loss=val_loss, seconds=seconds)
        self.say(f"step {step}/{self.train.steps}  val loss {val_loss:.4f}  {seconds:.1f} s")

    def save(self, step: int) -> None:
        if not self.ranks.is_first or step == self.state.step:
            return
        self.state = msgspec.structs.replace(
            self.state, step=step, tokens=step * self.train.batch_tokens
        )
        self.writer.save(self.model, self.optimizers, self.state)

    def is_evaluated(self, step: int) -> bool:
        """Rank 0 knows what an earlier life measured; the others follow."""
        (evaluated,) = self.ranks.agree(step in self.measured)
        return evaluated

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
        """
        told = False
        while True:
            missing, stopping = self.ranks.agree(not is_there(), self.stop.is_set)
            if not missing or stopping:
                return not missing
            if not told:
                self.event("waiting_for_data")
                self.say("waiting for the next shard")
                told = True
            self.beat()
            sleep(POLL_S)

    def report_skipped(self, why: str) -> None:
        self.event("checkpoint_skipped", why=why)
        self.say(f"passed over: {why}")

    def report_checkpoint(self, step: int, stall_s: float, write_s: float) -> None:
        self.event("checkpoint_saved", step=step, stall_s=stall_s, write_s=write_s)

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

    def metric(self, *, step: int, **values: float | None) -> None:
        if self.ranks.is_first:
            line: dict[str, Any] = {"step": step, "tokens": step * self.train.batch_tokens}
            append_line(self.paths.metrics, line | values)

    def event(self, event: str, **fields: Any) -> None:
        if self.ranks.is_first:
            append_event(self.paths.events, event, **fields)

    def say(self, line: str) -> None:
        """To the log, for people; what programs read is in metrics and events."""
        if self.ranks.is_first:
            print(line, flush=True)

    def beat(self) -> None:
        """A sign of life, by which the supervisor tells slow from hung."""
        if self.ranks.is_first:
            os.utime(self.paths.heartbeat)


class StoppedWaiting(Exception):  # noqa: N818
    """SIGTERM came while there was nothing to train on."""


def forget_metrics_after(path: Path, step: int) -> set[int]:
    """Drop lines that training from `step` will write again; the steps evaluated up to it."""
    try:
        lines = [line for line in parse_lines(path.read_bytes()) if line["step"] <= step]
    except FileNotFoundError:
        return set()
    write_atomic(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return {line["step"] for line in lines if "val_loss" in line}


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
                Trainer(record, paths, arguments.dataset, ranks, stop).run()
        except StoppedWaiting:
            return 0
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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
