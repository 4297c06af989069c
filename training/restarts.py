"""Whether training that died is worth another start (pure)."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from training.outcome import Outcome


class Death(Struct, frozen=True, kw_only=True):
    """Of training, at `step`, without an error that it could name."""

    step: int
    cause: Literal["crashed", "stalled", "out_of_memory"] = "crashed"
    micro_batch_size: int | None = None
    """That did not fit; the next start takes half of it."""


def give_up(deaths: Sequence[Death], *, max_restarts: int, run_id: str) -> Outcome | None:
    """How the run ends with the last of these deaths of one life; None: start it again.

    Two deaths at one step have one cause, which a third start would not cure. One for want of
    memory is cured by the next start, which takes half, as long as there is a half to take.
    """
    counted = [death for i, death in enumerate(deaths) if not _is_cured(death, deaths[:i])]
    last = deaths[-1]
    if not counted or counted[-1] is not last:
        return None
    is_again = any(death.step == last.step for death in counted[:-1])
    if not is_again and len(counted) <= max_restarts:
        return None
    again = f"{'again at the same step' if is_again else 'once more'} ({len(deaths) - 1} restarts)"
    where = f"at step {last.step}, {again}"
    match last.cause:
        case "stalled":
            return Outcome.failed(
                "stalled",
                f"training gave no sign of life {where} and was killed; its last checkpoint "
                "is safe",
                "a hung collective or a sick GPU: "
                f"`gptctl logs {run_id} --stage stacks` shows where each rank stood; "
                f"`gptctl launch --resume {run_id}` goes on from the checkpoint",
            )
        case "out_of_memory":
            return Outcome.failed(
                "out_of_memory",
                f"training ran out of memory {where}",
                "something else uses the GPU's memory, most likely; or set a smaller "
                f"train.micro_batch_size; `gptctl logs {run_id} --stage train` shows its last "
                "words",
            )
    return Outcome.failed(
        "crashed",
        f"training died {where}",
        f"`gptctl logs {run_id} --stage train` shows its last words",
    )


def _is_cured(death: Death, before: Sequence[Death]) -> bool:
    """Whether it was for want of memory, and of less than any before it."""
    wanted = death.micro_batch_size
    if death.cause != "out_of_memory" or wanted is None:
        return False
    return all(wanted < (other.micro_batch_size or wanted + 1) for other in before)
