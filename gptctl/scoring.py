"""A checkpoint's score on HellaSwag, computed on this machine by a program of the node."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from gptctl.checkpoints import PulledCheckpoint
from gptctl.errors import BackendError
from gptctl.programs import program_events, training_program


class Scored(Struct, frozen=True, kw_only=True):
    """Shares of `count` examples; of `cut` of them the model saw only the end."""

    run_id: str
    step: int
    acc: float
    acc_norm: float
    count: int
    cut: int


def score_hellaswag(
    pulled: PulledCheckpoint,
    datasets: Path,
    *,
    limit: int | None,
    show: Callable[[int, int], None],
) -> Scored:
    """Over all examples, or the first `limit`; they are kept below `datasets`.

    `show` hears of the batches done, and how many there are. Raises the TrainingError that it
    fails with, BackendError.
    """
    command = training_program(
        "eval_hellaswag",
        f"--checkpoint={pulled.path}",
        f"--data={datasets}",
        *([] if limit is None else [f"--limit={limit}"]),
    )
    what = f"step {pulled.step} of {pulled.run_id} could not be scored"
    for event in program_events(command, what=what):
        if event["event"] == "batch":
            show(event["done"], event["batches"])
        elif event["event"] == "scored":
            known = {"run_id": pulled.run_id, "step": pulled.step}
            return msgspec.convert(event | known, Scored)
    raise BackendError(f"{what}: it ended without a word", hint="try once more")
