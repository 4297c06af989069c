"""A program of ranks: it trains in lives, each from the checkpoint that the last one left.

Every rank takes the same batch, so that any number of them computes the same bits; on one
thread, for the same reason. Run by `training.ranks`, told by one argument of JSON.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.tiny import make_recipe
from training.checkpoint import CheckpointWriter, TrainerState, load_newest
from training.distributed import ALONE, Ranks, join_ranks
from training.errors import TrainingError
from training.model import GPT
from training.optimizer import Optimizers


def live(folder: Path, ranks: Ranks, *, last: int, train: dict[str, Any]) -> dict[str, Any]:
    """Train to step `last` and save; every parameter and this rank's optimizer state."""
    recipe = make_recipe(train=train)
    # Each rank, and each life, begins with weights of its own: only a load makes them one.
    model = GPT(recipe.model, seed=1 if last < 4 else 100 + ranks.rank)
    optimizers = Optimizers(model, recipe.train, ranks)
    writer = CheckpointWriter(folder, ranks=ranks, on_commit=lambda *_: None)
    state = load_newest(folder, model, optimizers, on_skip=print, ranks=ranks)
    for step in range(state.step if state else 0, last):
        tokens = torch.randint(0, 257, (4, 9), generator=torch.Generator().manual_seed(step))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizers.step(0.5)
    writer.save(model, optimizers, TrainerState(
        step=last, tokens=last * 64, best_val_loss=5.0, recipe=recipe
    ))  # fmt: skip
    writer.wait()
    assert optimizers.state_bytes() == sum(t.nbytes for t in optimizers.state().values())
    parameters = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    return parameters | {f"optimizer/{key}": value for key, value in optimizers.state().items()}


def main(told: dict[str, Any]) -> None:
    with join_ranks("cpu") as ranks:
        torch.set_num_threads(1)
        folder = Path(told["folder"]) / f"node-{ranks.node_rank}"
        for last, train in told["lives"]:
            try:
                tensors = live(folder, ranks, last=last, train=train)
            except TrainingError as error:
                os.write(1, f"rank {ranks.rank}: {type(error).__name__}: {error}\n".encode())
                ranks.barrier()
                return
            ranks.barrier()
        save_file(tensors, Path(told["to"]) / f"rank-{ranks.rank}.safetensors")


def live_alone(folder: Path, *, last: int, train: dict[str, Any]) -> dict[str, Any]:
    """The same in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return live(folder, ALONE, last=last, train=train)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
