"""One life of a run that brings a data set into the store, and trains nothing. Torch-free."""

from math import inf
from pathlib import Path

from msgspec.structs import replace

from training.dataset_store import publish
from training.layout import DATASETS, read_dataset
from training.life import Life
from training.outcome import Outcome, judge_exit
from training.preparation import SHARD_BYTES_PER_TOKEN
from training.race import Race
from training.sources import dataset_folder_key


class DataLife(Life):
    """Has succeeded when preparation ended well and the store has all that it made."""

    dataset: Path | None = None
    """Its folder, once it is known."""

    def bytes_at_end(self) -> int:
        """The shard that is finished last: those before it were sent meanwhile."""
        return self.recipe.data.shard_tokens * SHARD_BYTES_PER_TOKEN

    def work(self) -> Outcome:
        self.journal.enter("preparing", "preparing")
        self.dataset = self.root / DATASETS / dataset_folder_key(self.recipe.data)
        prepare = self.start_preparing(sends=True)
        if not self.record.whole:
            self.journal.race = Race(self.dataset, self.recipe)
        # What is cut off loses the shard that is being made, no more.
        if reason := self.attend(prepare, timeout_s=inf):
            return Outcome.stopped(reason)
        self.journal.tick()
        outcome = judge_exit(
            prepare.exit_code or 0,
            is_complete=True,
            stop_reason="data",
            error=self.progress.error,
            run_id=self.record.run_id,
        )
        assert outcome is not None  # `data` is a reason
        made = read_dataset(self.dataset)
        if outcome.state != "succeeded" or made is None:
            return outcome
        tokens = sum(shard.tokens for shard in made.shards)
        shards = f"{tokens:,} tokens in {len(made.shards):,} shards"
        return replace(outcome, message=f"{self.dataset.name} is in the store: {shards}")

    def send_rest(self, *, timeout_s: float) -> None:
        self.sync.flush(timeout_s=timeout_s, tick=self.journal.tick, first=self.send_shards)

    def send_shards(self) -> None:
        """Those that are finished, and that the store lacks. Raises StorageError."""
        if self.dataset is not None and (made := read_dataset(self.dataset)) is not None:
            publish(self.store, self.dataset, made)
