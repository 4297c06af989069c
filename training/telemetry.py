"""What training says of itself: metrics and events for programs, lines for people, a heartbeat.

Rank 0 speaks for all; the others are silent.
"""

import os
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from training.events import append_event, append_line, parse_lines
from training.layout import RunPaths, RunRecord, write_atomic
from training.reference import beside_hellaswag, beside_val_loss, describe_beside


class Measured(Struct, frozen=True, kw_only=True):
    """Of one step: the mean loss in nats per token, the gradient's 2-norm, AdamW's rate."""

    step: int
    loss: float
    grad_norm: float
    lr: float


class Telemetry:
    def __init__(
        self, record: RunRecord, paths: RunPaths, *, is_first: bool, peak_flops: float | None
    ) -> None:
        """`peak_flops` of all devices together, in FLOP/s; None where no figure is known."""
        self._recipe = record.recipe
        self._train = record.recipe.train
        self.steps = self._train.steps
        """How many there are; fewer, once a target has started the cool-down."""
        self._flops_per_token = record.recipe.model.flops_per_token
        self._peak_flops = peak_flops
        self._paths = paths
        self._is_first = is_first

    def forget_after(self, step: int) -> dict[tuple[int, str], Any]:
        """Drop metrics that training from `step` will write again; the others' values."""
        path = self._paths.metrics
        if not self._is_first or not path.exists():
            return {}
        lines = [line for line in parse_lines(path.read_bytes()) if line["step"] <= step]
        write_atomic(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        return {(line["step"], name): value for line in lines for name, value in line.items()}

    def report_batch(self, micro_batch_size: int, grad_accum_steps: int, *, seconds: float) -> None:
        """What a step is made of; `seconds` took to try it, in which blocks were compiled, too."""
        self.event(
            "batch_chosen",
            micro_batch_size=micro_batch_size,
            grad_accum_steps=grad_accum_steps,
            seconds=seconds,
        )

    def report_steps(self, steps: Sequence[Measured], *, seconds: float) -> None:
        """`seconds`: of each, as they are told together. MFU by llm.c's count of FLOPs."""
        tokens_per_sec = self._train.batch_tokens / seconds
        flops = tokens_per_sec * self._flops_per_token
        mfu = flops / self._peak_flops if self._peak_flops else None
        for one in steps:
            self._metric(
                one.step,
                loss=one.loss,
                lr=one.lr,
                grad_norm=one.grad_norm,
                tokens_per_sec=tokens_per_sec,
                mfu=mfu,
            )
        last = steps[-1]
        self.say(
            f"step {last.step}/{self.steps}  loss {last.loss:.4f}  "
            f"norm {last.grad_norm:.3f}  lr {last.lr:.2e}  {1e3 * seconds:.0f} ms  "
            f"{tokens_per_sec:,.0f} tokens/s" + (f"  {mfu:.1%} MFU" if mfu else "")
        )

    def report_skipped_update(
        self, step: int, *, loss_z: float | None, norm_z: float | None
    ) -> None:
        """z-scores of what lay too far above the last values."""
        self.event("update_skipped", step=step, loss_z=loss_z, norm_z=norm_z)
        scores = {"loss": loss_z, "gradient norm": norm_z}
        why = " and ".join(f"{name} (z = {z:.1f})" for name, z in scores.items() if z is not None)
        self.say(f"step {step}/{self.steps}  update skipped: an outlying {why}")

    def report_slow_rank(
        self, rank: int, *, node: int, local_rank: int, seconds: float, median_s: float
    ) -> None:
        """`seconds` of its forward pass, beside the median of the others'."""
        self.event("slow_rank", rank=rank, node=node, seconds=seconds, median_s=median_s)
        self.say(
            f"rank {rank} (device {local_rank} of node {node}) is slow: a forward pass takes it "
            f"{1e3 * seconds:.1f} ms, the others {1e3 * median_s:.1f} ms; all wait for it"
        )

    def report_recovered_rank(self, rank: int) -> None:
        self.event("rank_recovered", rank=rank)
        self.say(f"rank {rank} is as fast as the others again")

    def report_evaluation(self, step: int, *, val_loss: float, seconds: float) -> None:
        self._metric(step, val_loss=val_loss, seconds=seconds)
        self.event("evaluated", step=step, seconds=seconds)  # metrics are told again, events once
        beside = describe_beside(beside_val_loss(self._recipe, step))
        self.say(f"step {step}/{self.steps}  val loss {val_loss:.4f}{beside}  {seconds:.1f} s")

    def report_hellaswag(
        self, step: int, *, acc: float, acc_norm: float, examples: int, cut: int, seconds: float
    ) -> None:
        """Shares of `examples`, of which `cut` were longer than the model's block."""
        self._metric(
            step,
            hellaswag_acc=acc,
            hellaswag_acc_norm=acc_norm,
            examples=examples,
            cut=cut,
            seconds=seconds,
        )
        self.event("hellaswag_scored", step=step, seconds=seconds)
        beside = describe_beside(beside_hellaswag(self._recipe))
        self.say(
            f"step {step}/{self.steps}  HellaSwag acc_norm {acc_norm:.4f}{beside}  "
            f"acc {acc:.4f}  "
            f"{examples:,} examples, {cut:,} of them cut  {seconds:.1f} s"
        )

    def report_no_hellaswag(self, step: int, *, why: str, seconds: float) -> None:
        self.event("hellaswag_skipped", step=step, why=why, seconds=seconds)
        self.say(f"step {step}/{self.steps}  no HellaSwag score: {why}")

    def report_checkpoint(self, step: int, stall_s: float, write_s: float) -> None:
        self.event("checkpoint_saved", step=step, stall_s=stall_s, write_s=write_s)

    def report_skipped(self, why: str) -> None:
        self.event("checkpoint_skipped", why=why)
        self.say(f"passed over: {why}")

    def event(self, event: str, **fields: Any) -> None:
        if self._is_first:
            append_event(self._paths.events, event, **fields)

    def say(self, line: str) -> None:
        if self._is_first:
            print(line, flush=True)

    def beat(self) -> None:
        """A sign of life, by which the supervisor tells slow from hung."""
        if self._is_first:
            os.utime(self._paths.heartbeat)

    def _metric(self, step: int, **values: float | None) -> None:
        if self._is_first:
            line: dict[str, Any] = {"step": step, "tokens": step * self._train.batch_tokens}
            append_line(self._paths.metrics, line | values)
