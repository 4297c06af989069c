"""Waiting, together with the other ranks, for data that are still being prepared."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, sleep

from training.data import POLL_S
from training.distributed import Ranks
from training.layout import RunPaths
from training.node_error import read_node_error
from training.processes import StopFlag
from training.telemetry import Telemetry


@dataclass(frozen=True, kw_only=True)
class DataWait:
    paths: RunPaths
    ranks: Ranks
    stop: StopFlag
    telemetry: Telemetry

    def until(
        self, is_there: Callable[[], bool], *, before_waiting: Callable[[], None] = lambda: None
    ) -> bool:
        """True as soon as every rank finds data there; False where a stop comes first.

        The ranks decide together: one that went on, or left, alone would hang the others.
        Raises, on all ranks, what keeps the data from coming to the node of one of them.
        """
        waiting_since: float | None = None
        while True:
            here = is_there()
            error = None if here else read_node_error(self.paths)
            missing, stopping, failing = self.ranks.agree(
                not here, self.stop.is_set, error is not None
            )
            if failing:
                raise next(found for found in self.ranks.gather(error) if found)
            if not missing or stopping:
                if waiting_since is not None:
                    waited_s = perf_counter() - waiting_since
                    self.telemetry.event("waited_for_data", seconds=waited_s)
                return not stopping
            if waiting_since is None:
                before_waiting()
                self.telemetry.event("waiting_for_data")
                self.telemetry.say("waiting for the next shard")
                waiting_since = perf_counter()
            self.telemetry.beat()
            sleep(POLL_S)
