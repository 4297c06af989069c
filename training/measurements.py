"""What steps measure, kept on the device until the ranks settle it: the host waits only then."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from training.distributed import Ranks
from training.errors import NotFiniteError
from training.slow_rank import ForwardClock, find_slow
from training.telemetry import Measured, Telemetry

DIVERGED = "a lower train.max_lr or a longer train.warmup_steps usually cures it"


class Measurements:
    """Of the steps since the last settlement. Every rank adds and settles the same ones."""

    def __init__(self, ranks: Ranks, telemetry: Telemetry) -> None:
        self._ranks = ranks
        self._telemetry = telemetry
        self._clock = ForwardClock(ranks.device)
        self._suspect: int | None = None  # by the last judgement
        self._slow: int | None = None  # as it was told
        self._steps: list[Tensor] = []
        self._rates: list[float] = []
        self._began = perf_counter()

    def begin_step(self) -> None:
        if not self._steps:
            self._began = perf_counter()

    @contextmanager
    def time_forward(self, is_first: bool) -> Iterator[None]:
        """Around each forward pass of a step, of which the first is timed."""
        if is_first:
            with self._clock.time():
                yield
        else:
            yield

    def add(self, *, loss: Tensor, grad_norm: Tensor, lr: float) -> None:
        """`loss` is this rank's, the gradient is all ranks'."""
        self._steps.append(torch.stack([loss, grad_norm]))
        self._rates.append(lr)

    def settle(self, step: int) -> None:
        """Share and tell what the steps up to `step` measured: here the host waits for the device.

        Raises NotFiniteError, on all ranks at once.
        """
        if not self._steps:
            return
        mine, norms = torch.stack(self._steps, dim=1)
        losses = self._ranks.all_sum(mine.clone()) / self._ranks.world_size
        values = zip(losses.tolist(), norms.tolist(), self._rates, mine.tolist(), strict=True)
        seconds = (perf_counter() - self._began) / len(self._steps)
        first = step - len(self._steps) + 1
        self._steps, self._rates = [], []
        steps = []
        for number, (loss, norm, lr, own_loss) in enumerate(values, start=first):
            steps.append(Measured(step=number, loss=loss, grad_norm=norm, lr=lr))
            if not (isfinite(loss) and isfinite(norm)):
                self._raise_not_finite(steps[-1], own_loss)
        self._telemetry.report_steps(steps, seconds=seconds)
        if self._clock.is_full:
            self._judge_ranks()

    def _raise_not_finite(self, found: Measured, own_loss: float) -> None:
        where, hint = "", f"{DIVERGED}; the checkpoint before this step is good"
        bad = [r for r, fine in enumerate(self._ranks.gather(isfinite(own_loss))) if not fine]
        if 0 < len(bad) < self._ranks.world_size:
            ranks = "rank " + ", ".join(map(str, bad))
            where = f"; of {self._ranks.world_size} ranks only {ranks} had such a loss"
            hint = f"a sick GPU, most likely: take another machine; else {hint}"
        raise NotFiniteError(
            f"step {found.step}: the loss is {found.loss}, the gradient's norm "
            f"{found.grad_norm}{where}",
            hint=hint,
        )

    def _judge_ranks(self) -> None:
        """Name a rank found slow twice in a row: other work slows any of them for a while."""
        seconds = self._ranks.gather(self._clock.take())
        found = find_slow(seconds)
        rank = found[0] if found else None
        if self._slow is not None and rank != self._slow:
            self._telemetry.report_recovered_rank(self._slow)
            self._slow = None
        if found and rank == self._suspect and self._slow is None:
            self._slow, median_s = found
            node, local_rank = divmod(self._slow, self._ranks.local_world_size)
            self._telemetry.report_slow_rank(
                self._slow,
                node=node,
                local_rank=local_rank,
                seconds=seconds[self._slow],
                median_s=median_s,
            )
        self._suspect = rank
