"""Which rank is slow: by its forward passes, in which no rank waits for another.

The step as a whole takes as long on every rank, as gradients are exchanged in it: one sick GPU,
or one on a narrow bus, makes all of them slow and none of them conspicuous.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import torch

EVERY = 50
"""Forward passes that one judgement rests on."""
TOO_SLOW = 1.5
"""Times the median of the others: GPUs of one kind differ by some per cent."""


class ForwardClock:
    """Times one forward pass a step, on the device's own clock; nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: list[float] = []

    @property
    def is_full(self) -> bool:
        """The same on all ranks, as they take the same steps."""
        return max(len(self._events), len(self._seconds)) >= EVERY

    @contextmanager
    def time(self) -> Iterator[None]:
        if self._is_cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            started = perf_counter()
            yield
            self._seconds.append(perf_counter() - started)

    def take(self) -> float:
        """The median in seconds, of passes that the host has waited for; begins anew."""
        seconds = [*self._seconds, *(b.elapsed_time(e) / 1e3 for b, e in self._events)]
        self._seconds, self._events = [], []
        return float(median(seconds))


def find_slow(seconds: Sequence[float]) -> tuple[int, float] | None:
    """(rank, median of the others in seconds) of a rank that is too slow; None: none is."""
    if len(seconds) < 2:
        return None
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    others = median(s for r, s in enumerate(seconds) if r != rank)
    return (rank, others) if seconds[rank] > TOO_SLOW * others else None
