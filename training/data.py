"""Batches out of token shards, as a pure function of the step: nothing to save but the step.

A step's sequences are numbered 0 … S-1; micro-step m of rank r takes the next B of them, so
that the same sequences make a step on any number of ranks. `sequential` order reads the
training tokens as one endless ring (the reference's order); `random` draws the windows
anywhere in the shard that `sequential` would be reading, so it too can start with the first.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import DataConfig
from training.errors import TrainingError
from training.layout import Dataset, read_dataset
from training.shards import open_shard

POLL_S = 0.2


class TrainingTokens:
    """The training shards as one array that may still be growing."""

    def __init__(self, folder: Path, data: DataConfig) -> None:
        self._folder = folder
        self._shard_tokens = data.shard_tokens
        self._arrays: list[NDArray[np.uint16]] = []
        self._total: int | None = None

    def has(self, tokens: int) -> bool:
        """Whether the first `tokens` positions can be read, if need be by going round again."""
        if self._total is None and tokens > self._readable:
            dataset = read_prepared(self._folder)
            if dataset is not None:
                self._open(dataset)
        return self._total is not None or tokens <= self._readable

    def read(self, start: int, length: int) -> NDArray[np.uint16]:
        """`length` tokens from position `start` of the ring, which it must have."""
        pieces = []
        while length:
            if self._total is not None:
                start %= self._total
            shard, offset = divmod(start, self._shard_tokens)
            piece = self._arrays[shard][offset : offset + length]
            pieces.append(piece)
            start += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def shard_at(self, position: int) -> range:
        """Positions of the shard that holds `position` of the ring, which it must have."""
        if self._total is not None:
            position %= self._total
        shard = position // self._shard_tokens
        first = shard * self._shard_tokens
        return range(first, first + len(self._arrays[shard]))

    @property
    def _readable(self) -> int:
        return len(self._arrays) * self._shard_tokens

    def _open(self, dataset: Dataset) -> None:
        shards = dataset.split("train")
        if not dataset.complete:
            # The last shard may be short, which only a complete data set tells.
            shards = [shard for shard in shards if shard.tokens == self._shard_tokens]
        for shard in shards[len(self._arrays) :]:
            self._arrays.append(open_shard(self._folder / shard.name))
        if dataset.complete:
            self._total = sum(len(array) for array in self._arrays)


class BatchLoader:
    """Inputs and targets of any micro-step of any step, (B, T) int64 each."""

    def __init__(
        self,
        tokens: TrainingTokens,
        *,
        order: str,
        seed: int,
        batch_tokens: int,
        micro_batch_size: int,
        block_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._tokens = tokens
        self._order = order
        self._seed = seed
        self._sequences = batch_tokens // block_size
        self._micro_batch_size = micro_batch_size
        self._block_size = block_size
        self._rank = rank
        self._world_size = world_size

    def has(self, step: int) -> bool:
        """Whether every sequence of the step can be read: the same answer on every rank."""
        first = step * self._sequences * self._block_size
        if self._order == "random":
            return self._tokens.has(first + 1)  # and so the shard that it is in
        return self._tokens.has(first + self._sequences * self._block_size + 1)

    def windows(self, step: int) -> Tensor:
        """Those of a step that it `has`, for this rank: (micro-steps, B, T+1) int64."""
        starts = self._starts(step).reshape(-1, self._world_size, self._micro_batch_size)
        mine = starts[:, self._rank].ravel()
        rows = np.stack([self._tokens.read(int(s), self._block_size + 1) for s in mine])
        windows = torch.from_numpy(rows.astype(np.int64))
        return windows.view(-1, self._micro_batch_size, self._block_size + 1)

    def _starts(self, step: int) -> NDArray[np.int64]:
        """Where each of the step's sequences begins, (S,)."""
        first = step * self._sequences * self._block_size
        if self._order == "random":
            shard = self._tokens.shard_at(first)
            generator = np.random.Generator(np.random.Philox(key=[self._seed, step]))
            last = max(shard.start, shard.stop - self._block_size - 1)
            return generator.integers(shard.start, last, size=self._sequences, endpoint=True)
        return first + np.arange(self._sequences) * self._block_size


class Prefetcher:
    """The windows of one step after another on the device, read and pinned one step ahead."""

    def __init__(self, loader: BatchLoader, device: torch.device) -> None:
        self._loader = loader
        self._device = device
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def windows(self, step: int) -> Tensor:
        """(micro-steps, B, T+1) int64 on the device, of a step that the loader `has`."""
        if self._ahead is not None and self._ahead[0] == step:
            windows = self._ahead[1].result()
        else:
            windows = self._read(step)
        self._ahead = None
        if self._loader.has(step + 1):
            self._ahead = step + 1, self._reader.submit(self._read, step + 1)
        return windows.to(self._device, non_blocking=True)

    def _read(self, step: int) -> Tensor:
        windows = self._loader.windows(step)
        return windows.pin_memory() if self._device.type == "cuda" else windows


def split_windows(windows: list[NDArray[np.uint16]]) -> tuple[Tensor, Tensor]:
    """Windows of T+1 tokens → inputs and the tokens that follow them, (B, T) int64 each."""
    both = torch.from_numpy(np.stack(windows).astype(np.int64))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def read_prepared(folder: Path) -> Dataset | None:
    """The shards that exist so far. A `dataset.json` that is damaged counts as none yet:

    preparation, which has only just begun, writes it anew.
    """
    try:
        return read_dataset(folder)
    except TrainingError:
        return None
