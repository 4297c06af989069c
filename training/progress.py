"""What training and preparation have said so far, read from their files as they grow."""

from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from training.events import Tail
from training.layout import RunPaths, SlowRank, Status
from training.race import Pace


class Progress:
    """Follows `metrics.jsonl` and `events.jsonl` of one life. Losses in nats per token."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._events = Tail(paths.events)
        self._events.read()  # earlier lives have been told
        self.shards = 0
        self.pace = Pace()
        self.evaluation_s = 0.0
        self.sample_s = 0.0
        self.save_s = 0.0
        self._asides: dict[str, float] = {}
        self.error: dict[str, Any] | None = None
        self.is_at_target = False
        self.hellaswag_missing: str | None = None
        self.restart()
        self.read()

    def restart(self) -> None:
        """Training begins anew, perhaps from an earlier step: so do the metrics."""
        self._metrics = Tail(self._paths.metrics)
        self.is_training = False
        self.is_waiting = False
        self.slow_rank: SlowRank | None = None
        self.out_of_memory: dict[str, Any] | None = None
        self.last_step: int | None = None
        """Of the run, where a target has started the cool-down; else its recipe's."""
        self.step = 0
        self.tokens = 0
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.best_val_loss: float | None = None
        self.hellaswag_acc: float | None = None
        self.hellaswag_acc_norm: float | None = None
        self.tokens_per_sec: float | None = None
        self.mfu: float | None = None

    @property
    def boundary_s(self) -> float:
        """Longest way to the next step boundary: through an evaluation, samples and a step."""
        aside_s = self.evaluation_s + self.sample_s
        if not (self.step and self.tokens_per_sec):
            return aside_s
        return aside_s + self.tokens / self.step / self.tokens_per_sec

    @property
    def has_reached_target(self) -> bool:
        """And is done with what a target starts."""
        return self.step >= self.last_step if self.last_step is not None else self.is_at_target

    def read(self) -> None:
        for event in self._events.read():
            self._take_event(event)
        for line in self._metrics.read():
            self._take_metrics(line)

    def take_asides(self) -> dict[str, float]:
        """Seconds, by phase of the bill, in which training did not train; each is told once."""
        taken, self._asides = self._asides, {}
        return taken

    def status(self, **fields: Any) -> Status:
        return Status(
            step=self.step,
            tokens=self.tokens,
            loss=self.loss,
            val_loss=self.val_loss,
            best_val_loss=self.best_val_loss,
            hellaswag_acc=self.hellaswag_acc,
            hellaswag_acc_norm=self.hellaswag_acc_norm,
            hellaswag_missing=self.hellaswag_missing,
            tokens_per_sec=self.tokens_per_sec,
            mfu=self.mfu,
            shards=self.shards,
            slow_rank=self.slow_rank,
            updated_at=datetime.now(UTC),
            **fields,
        )

    def _take_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "training_started" | "training_resumed":
                self.restart()  # the file was cut back to the step resumed from
                self.is_training = True
            case "shard_written" | "shard_fetched":
                self.shards += 1
                tokens, seconds = event["tokens"], event["seconds"]
                self.pace.hear(event["event"], tokens, seconds, now=monotonic())
            case "dataset_ready":
                self.shards = event["shards"]  # with those of earlier lives
            case "checkpoint_saved":
                self.save_s = max(self.save_s, event["stall_s"] + event["write_s"])
                self._set_aside("checkpoints", event["stall_s"])  # it is written beside training
            case "sampled":
                self.sample_s = max(self.sample_s, event["seconds"])
                self._set_aside("evaluation", event["seconds"])
            case "evaluated":
                self._set_aside("evaluation", event["seconds"])
            case "hellaswag_scored":
                self.hellaswag_missing = None
                self._set_aside("evaluation", event["seconds"])
            case "hellaswag_skipped":
                self.hellaswag_missing = event["why"]
                self._set_aside("evaluation", event["seconds"])
            case "hellaswag_failed":  # its examples could not be had
                self.hellaswag_missing = event["why"]
            case "waiting_for_data":
                self.is_waiting = True
            case "waited_for_data":
                self.is_waiting = False
                self._set_aside("waiting_for_data", event["seconds"])
            case "target_reached":
                self.is_at_target = True
            case "cooldown_started":
                self.last_step = event["last_step"]
            case "slow_rank":
                self.slow_rank = msgspec.convert(event, SlowRank)
            case "rank_recovered":
                self.slow_rank = None
            case "out_of_memory":
                self.out_of_memory = event
            case "error" if self.error is None:
                self.error = event

    def _set_aside(self, phase: str, seconds: float) -> None:
        self._asides[phase] = self._asides.get(phase, 0.0) + seconds

    def _take_metrics(self, line: dict[str, Any]) -> None:
        self.step, self.tokens = line["step"], line["tokens"]
        if "val_loss" in line:
            self.val_loss = line["val_loss"]
            losses = self.best_val_loss, self.val_loss
            self.best_val_loss = min(loss for loss in losses if loss is not None)
            self.evaluation_s = max(self.evaluation_s, line["seconds"])
        elif "hellaswag_acc_norm" in line:
            self.hellaswag_acc = line["hellaswag_acc"]
            self.hellaswag_acc_norm = line["hellaswag_acc_norm"]
        else:
            self.loss = line["loss"]
            self.mfu = line["mfu"]
            # Smoothed over some ten steps: single steps jump about.
            now, before = line["tokens_per_sec"], self.tokens_per_sec
            self.tokens_per_sec = now if before is None else 0.9 * before + 0.1 * now


class Heartbeat:
    """The file that training touches; its silence in seconds of the caller's monotonic clock.

    The file's own time would not do: that clock jumps, and runs on while a laptop sleeps.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: int | None = None
        self._heard_at = 0.0

    def restart(self, now: float) -> None:
        self._path.touch()
        self._heard_at = now

    def silence_s(self, now: float) -> float:
        try:
            beat = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            beat = None  # silence, too
        if beat != self._last:
            self._last, self._heard_at = beat, now
        return now - self._heard_at
