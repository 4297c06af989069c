"""What training says of itself: metrics and events for programs, lines for people, a heartbeat.

Rank 0 speaks for all; the others are silent.
"""

import os
from typing import Any

import msgspec

from training.events import append_event, append_line, parse_lines
from training.layout import RunPaths, RunRecord, write_atomic


class Telemetry:
    def __init__(
        self, record: RunRecord, paths: RunPaths, *, is_first: bool, peak_flops: float | None
    ) -> None:
        """`peak_flops` of all devices together, in FLOP/s; None where no figure is known."""
        self._train = record.recipe.train
        self._flops_per_token = record.recipe.model.flops_per_token
        self._peak_flops = peak_flops
        self._paths = paths
        self._is_first = is_first

    def forget_after(self, step: int) -> set[tuple[int, str]]:
        """Drop metrics that training from `step` will write again; (step, name) of the others."""
        path = self._paths.metrics
        if not self._is_first or not path.exists():
            return set()
        lines = [line for line in parse_lines(path.read_bytes()) if line["step"] <= step]
        write_atomic(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        return {(line["step"], name) for line in lines for name in line}

    def report_step(
        self, step: int, *, loss: float, lr: float, grad_norm: float, seconds: float
    ) -> None:
        """Losses in nats per token; MFU by llm.c's count of FLOPs."""
        tokens_per_sec = self._train.batch_tokens / seconds
        flops = tokens_per_sec * self._flops_per_token
        mfu = flops / self._peak_flops if self._peak_flops else None
        self._metric(
            step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_sec=tokens_per_sec,
            mfu=mfu,
        )
        self.say(
            f"step {step}/{self._train.steps}  loss {loss:.4f}  norm {grad_norm:.3f}  "
            f"lr {lr:.2e}  {1e3 * seconds:.0f} ms  {tokens_per_sec:,.0f} tokens/s"
            + (f"  {mfu:.1%} MFU" if mfu else "")
        )

    def report_evaluation(self, step: int, *, val_loss: float, seconds: float) -> None:
        self._metric(step, val_loss=val_loss, seconds=seconds)
        self.event("evaluated", step=step, seconds=seconds)  # metrics are told again, events once
        self.say(f"step {step}/{self._train.steps}  val loss {val_loss:.4f}  {seconds:.1f} s")

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
        self.say(
            f"step {step}/{self._train.steps}  HellaSwag acc_norm {acc_norm:.4f}  acc {acc:.4f}  "
            f"{examples:,} examples, {cut:,} of them cut  {seconds:.1f} s"
        )

    def report_no_hellaswag(self, step: int, *, why: str, seconds: float) -> None:
        self.event("hellaswag_skipped", step=step, why=why, seconds=seconds)
        self.say(f"step {step}/{self._train.steps}  no HellaSwag score: {why}")

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
