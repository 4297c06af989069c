"""Preparation against training: how far it leads, and whether training will catch up with it.

What training reads, and when, follows from the number of its tokens alone (`data.py`), and so
does what it would wait: with steady speeds just as long as preparation would end after it.
"""

from collections import deque
from math import ceil
from pathlib import Path

from training.config import Recipe
from training.errors import TrainingError
from training.layout import Dataset, Lead, read_dataset, tokens_wanted

SHARDS_MEASURED = 8
LITTLE = 0.01
"""Of the time that training has left: to wait for less than that is no lost race."""


class Pace:
    """How fast shards come, by the newest that came in the same way: fetched, or made."""

    def __init__(self) -> None:
        self._way = ""
        self._newest: deque[tuple[int, float]] = deque(maxlen=SHARDS_MEASURED)
        self._heard_at = 0.0

    def hear(self, way: str, tokens: int, seconds: float, *, now: float) -> None:
        """The first of its way tells nothing: it took as long as what had to be begun for it."""
        if way == self._way:
            self._newest.append((tokens, seconds))
        else:
            self._way = way
            self._newest.clear()
        self._heard_at = now

    def measure(self, now: float) -> tuple[float | None, float]:
        """(tokens a second, tokens of the next shard that should be ready by now)"""
        if not self._newest:
            return None, 0.0
        tokens = sum(tokens for tokens, _ in self._newest)
        seconds = max(1e-9, sum(seconds for _, seconds in self._newest))
        mean, silent_s = tokens / len(self._newest), now - self._heard_at
        # A shard that is overdue comes now at the earliest.
        per_sec = min(tokens / seconds, (tokens + mean) / (seconds + silent_s))
        return per_sec, min(mean, per_sec * silent_s)


class Race:
    """Of one run, whose shards are in `folder`."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder = folder
        self._wanted = tokens_wanted(recipe)
        self._dataset = Dataset(
            source=recipe.data.source,
            revision="",
            tokenizer=recipe.data.tokenizer,
            shard_tokens=recipe.data.shard_tokens,
            val_fraction=recipe.data.val_fraction,
        )

    def lead(
        self,
        pace: Pace,
        *,
        trained_tokens: int,
        trained_per_sec: float | None,
        is_waiting: bool,
        now: float,
    ) -> Lead:
        if not self._dataset.has(self._wanted):
            self._look()
        prepared_per_sec, under_way = pace.measure(now)
        return measure_lead(
            self._dataset,
            self._wanted,
            trained_tokens=trained_tokens,
            trained_per_sec=trained_per_sec,
            prepared_per_sec=prepared_per_sec,
            under_way=under_way,
            is_waiting=is_waiting,
        )

    def _look(self) -> None:
        try:
            self._dataset = read_dataset(self._folder) or self._dataset
        except (TrainingError, OSError):
            return  # it is about to be written anew


def measure_lead(
    dataset: Dataset,
    wanted: int,
    *,
    trained_tokens: int,
    trained_per_sec: float | None,
    prepared_per_sec: float | None,
    under_way: float,
    is_waiting: bool,
) -> Lead:
    """All in training tokens; `under_way`: of the next shard, ready as good as."""
    size = dataset.shard_tokens
    wanted_tokens = ceil(wanted / size) * size
    ready = min(dataset.train_tokens, wanted_tokens)
    ahead = max(0, ready - trained_tokens)
    is_done = dataset.has(wanted)
    waits_s = train_left_s = 0.0
    if trained_per_sec and prepared_per_sec and not is_done:
        train_left_s = max(0, wanted - trained_tokens) / trained_per_sec
        prepare_left_s = max(0.0, wanted_tokens - ready - under_way) / prepared_per_sec
        waits_s = max(0.0, prepare_left_s - train_left_s)
    return Lead(
        ready_tokens=ready,
        wanted_tokens=wanted_tokens,
        is_done=is_done,
        shards=max(0, ceil(ready / size) - ceil(trained_tokens / size)),
        tokens=ahead,
        seconds=ahead / trained_per_sec if trained_per_sec else None,
        tokens_per_sec=prepared_per_sec,
        waits_s=waits_s,
        is_losing=waits_s > LITTLE * train_left_s,
        is_waiting=is_waiting,
    )
