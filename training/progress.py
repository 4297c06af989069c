"""What training and preparation have said so far, read from their files as they grow."""

from datetime import UTC, datetime
from typing import Any

from training.events import Tail
from training.layout import RunPaths, Status


class Progress:
    """Follows `metrics.jsonl` and `events.jsonl` of one life. Losses in nats per token."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._events = Tail(paths.events)
        self._events.read()  # earlier lives have been told
        self.shards = 0
        self.boundary_s = 0.0
        self.save_s = 0.0
        self.error: dict[str, Any] | None = None
        self.restart()
        self.read()

    def restart(self) -> None:
        """Training begins anew, perhaps from an earlier step: so do the metrics."""
        self._metrics = Tail(self._paths.metrics)
        self.is_training = False
        self.step = 0
        self.tokens = 0
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.best_val_loss: float | None = None
        self.tokens_per_sec: float | None = None
        self.mfu: float | None = None

    def read(self) -> None:
        for event in self._events.read():
            self._take_event(event)
        for line in self._metrics.read():
            self._take_metrics(line)

    def status(self, **fields: Any) -> Status:
        return Status(
            step=self.step,
            tokens=self.tokens,
            loss=self.loss,
            val_loss=self.val_loss,
            best_val_loss=self.best_val_loss,
            tokens_per_sec=self.tokens_per_sec,
            mfu=self.mfu,
            shards=self.shards,
            updated_at=datetime.now(UTC),
            **fields,
        )

    def _take_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "training_started" | "training_resumed":
                self.restart()  # the file was cut back to the step resumed from
                self.is_training = True
            case "shard_written":
                self.shards += 1
            case "checkpoint_saved":
                self.save_s = max(self.save_s, event["stall_s"] + event["write_s"])
            case "error" if self.error is None:
                self.error = event

    def _take_metrics(self, line: dict[str, Any]) -> None:
        self.step, self.tokens = line["step"], line["tokens"]
        if "val_loss" in line:
            self.val_loss = line["val_loss"]
            self.best_val_loss = min(self.best_val_loss or self.val_loss, self.val_loss)
            self.boundary_s = max(self.boundary_s, line["seconds"])
        else:
            self.loss = line["loss"]
            self.mfu = line["mfu"]
            # Smoothed over some ten steps: single steps jump about.
            now, before = line["tokens_per_sec"], self.tokens_per_sec
            self.tokens_per_sec = now if before is None else 0.9 * before + 0.1 * now
