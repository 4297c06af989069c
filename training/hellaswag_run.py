"""HellaSwag while a run trains: examples that another program brings, a score when it is due.

The score is an extra. What keeps it away is told, and never ends the run.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep

from torch import nn

from training.config import Recipe
from training.data import POLL_S
from training.distributed import Ranks
from training.errors import DataError, NotFiniteError
from training.events import parse_lines
from training.hellaswag import Example, read_examples
from training.hellaswag_score import ScoringStopped, score
from training.telemetry import Telemetry

LAST_WAIT_S = 60.0
"""How long the finished model waits for examples that are still on their way."""


@dataclass(kw_only=True)
class HellaSwag:
    """One for each rank. `path`: of the examples, which rank 0 reads for all."""

    recipe: Recipe
    path: Path
    events: Path
    micro_batch_size: int
    ranks: Ranks
    telemetry: Telemetry
    autocast: Callable[[], AbstractContextManager[None]]
    is_stopping: Callable[[], bool]
    examples: list[Example] = field(default_factory=list)

    def measure(self, model: nn.Module, step: int, *, is_last: bool) -> None:
        """Report the score at `step`, or why there is none. Called on all ranks at once."""
        started = perf_counter()
        try:
            if not self.examples:
                self.examples = self.ranks.ask_first(lambda: self._read(is_last=is_last))
            found = score(
                model,
                self.examples,
                block_size=self.recipe.model.block_size,
                micro_batch_size=self.micro_batch_size,
                ranks=self.ranks,
                autocast=self.autocast,
                on_batch=self.telemetry.beat,
                is_stopping=self.is_stopping,
            )
        except (DataError, NotFiniteError) as error:
            why = error.message
        except ScoringStopped:
            why = "the run was told to end"
        else:
            self.telemetry.report_hellaswag(
                step,
                acc=found.acc,
                acc_norm=found.acc_norm,
                examples=found.count,
                cut=found.cut,
                seconds=perf_counter() - started,
            )
            return
        self.telemetry.report_no_hellaswag(step, why=why, seconds=perf_counter() - started)

    def _read(self, *, is_last: bool) -> list[Example]:
        """On rank 0. Raises DataError where they are not there: the last time, after a wait."""
        deadline = perf_counter() + (LAST_WAIT_S if is_last else 0)
        while True:
            try:
                return read_examples(self.path, vocab_size=self.recipe.model.vocab_size)
            except DataError as error:
                if why := self._why_never():
                    raise DataError(why) from error
                if self.is_stopping() or perf_counter() > deadline:
                    raise DataError("its examples are not there yet") from error
            self.telemetry.beat()
            sleep(POLL_S)

    def _why_never(self) -> str | None:
        """What their preparation failed with in this life of the run."""
        lines = parse_lines(self.events.read_bytes()) if self.events.exists() else ()
        told = [e for e in lines if e["event"] in ("life_started", "hellaswag_failed")]
        return told[-1].get("why") if told else None
