"""How a life of a run ended, and what a training process's exit says about it (pure)."""

import errno
from typing import Any

from msgspec.structs import replace

from training.cluster import NODES_MISSING
from training.layout import Record, State

REASONS = {
    "ConfigError": "config",
    "DataError": "data",
    "CheckpointError": "checkpoint",
    "NotFiniteError": "not_finite",
    "NoSpaceError": "no_space",
    "OutOfMemoryError": "out_of_memory",
    "StorageError": "store",
    "ObjectNotFoundError": "store",
    "ObjectDamagedError": "store",
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

    @classmethod
    def stopped(cls, reason: str) -> "Outcome":
        """`reason`: `user`, `budget` or `deadline`."""
        return cls(state="stopped", reason=reason, message=_STOPPED[reason])

    @classmethod
    def refused(cls, error: OSError) -> "Outcome":
        """The node itself would not do what the supervisor asked of it."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return cls.failed("no_space", f"no space left on the disk: {error}", "free some space")
        return cls.failed("node", f"this machine refused: {error}", "mend it, then resume the run")


_STOPPED = {
    "budget": "the budget is used up but for what it took to save and upload",
    "deadline": "the time limit was reached",
    "user": "stopped on request",
}


def judge_exit(
    exit_code: int,
    *,
    is_complete: bool,
    is_at_target: bool = False,
    stop_reason: str | None,
    error: dict[str, Any] | None,
    run_id: str,
) -> Outcome | None:
    """What became of the run when its training process ended. None: it crashed, try again.

    An `error` that training or preparation could name would come again: no restart.
    """
    if exit_code == 0 and (is_complete or is_at_target):
        return Outcome(state="succeeded", reason="completed" if is_complete else "target")
    if error is not None:
        return Outcome.failed(error["kind"], error["message"], error["hint"])
    if stop_reason == "data":
        return Outcome.failed(
            "data",
            "preparing the data died without a word, as where the memory is used up",
            f"`gptctl logs {run_id} --stage prepare` shows how far it came; "
            f"`gptctl launch --resume {run_id}` goes on after its last shard",
        )
    if stop_reason is not None or exit_code == 0:
        # Exit 0 before the end: ranks obey SIGTERM only.
        return Outcome.stopped(stop_reason or "user")
    return None


def cut_off(outcome: Outcome, *, step: int, saved: int) -> Outcome:
    """Of training that was killed, as it did not save `step` in the time there was."""
    last = f"the last that is saved is {saved}" if saved else "none is saved"
    lost = f"step {step} could not be saved in the time that was left: {last}"
    return replace(outcome, message=f"{outcome.message}; {lost}")


def pass_on(outcome: Outcome, *, recovers: bool) -> Outcome:
    """How a life ends that was told to, of a run that goes on when its machine is lost.

    SkyPilot takes down what is left of a machine, as where one of several nodes has died, before
    it finds another, and that looks like a request to stop. It must not be the run's end: who
    wants that writes it into the store once the machine is gone.
    """
    if recovers and (outcome.state, outcome.reason) == ("stopped", "user"):
        return Outcome(
            state="preempted", reason="machine", message="saved, as its machine was to end"
        )
    return outcome


def judge_check(exit_code: int | None, error: dict[str, Any] | None, run_id: str) -> Outcome:
    """Why the check of all GPUs failed; `error` is what it could name itself."""
    if error is not None:
        return Outcome.failed(error["kind"], error["message"], error["hint"])
    log = f"`gptctl logs {run_id} --stage check` shows its last words"
    if exit_code == NODES_MISSING:
        return Outcome.failed("node", "the nodes did not find each other", log)
    return Outcome.failed(
        "node",
        f"the check of the GPUs died or hung (exit code {exit_code})",
        f"a sick GPU or driver, most likely: take another machine; {log}",
    )
