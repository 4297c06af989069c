"""How a life of a run ended, and what a training process's exit says about it (pure)."""

from typing import Any

from training.layout import Record, State

REASONS = {
    "ConfigError": "config",
    "DataError": "data",
    "CheckpointError": "checkpoint",
    "NotFiniteError": "not_finite",
    "NoSpaceError": "no_space",
    "StorageError": "store",
    "ObjectNotFoundError": "store",
    "StorageUnavailableError": "store",
    "TrainingError": "node",
}
"""Name of the error → the reason in `status.json`."""


class Outcome(Record, frozen=True, kw_only=True):
    state: State
    reason: str | None = None
    message: str | None = None
    hint: str | None = None

    @classmethod
    def failed(cls, kind: str, message: str, hint: str) -> "Outcome":
        """`kind` is an error's name, or already a reason."""
        return cls(state="failed", reason=REASONS.get(kind, kind), message=message, hint=hint)


_STOPPED = {
    "budget": "the budget is used up but for what it took to save and upload",
    "deadline": "the time limit was reached",
    "user": "stopped on request",
}


def judge_exit(
    exit_code: int, *, is_complete: bool, stop_reason: str | None, error: dict[str, Any] | None
) -> Outcome | None:
    """What became of the run when its training process ended. None: it crashed, try again.

    An `error` that training or preparation could name would come again: no restart.
    """
    if error is not None:
        return Outcome.failed(error["kind"], error["message"], error["hint"])
    if exit_code == 0 and is_complete:
        return Outcome(state="succeeded", reason="completed")
    if stop_reason == "data":
        return Outcome.failed("data", "preparing the data died", "`gptctl logs … --stage prepare`")
    if stop_reason is not None or exit_code == 0:
        reason = stop_reason or "user"  # exit 0 before the end: ranks obey SIGTERM only
        return Outcome(state="stopped", reason=reason, message=_STOPPED[reason])
    return None
