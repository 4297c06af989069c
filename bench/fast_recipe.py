"""The faithful recipe beside the fast one, at a scale that a CPU can afford.

    python bench/fast_recipe.py TEXT… [--seeds N] [--steps N] [--workers N]

TEXT: web text, `.jsonl` files with a `text` in each line, or plain text. Model, tokens, their order
and the number of steps are the same; what differs is what the two recipes differ in. `faithful`:
AdamW and one cosine to zero, as in `gpt2-124m`. `fast`: Muon for the hidden matrices and AdamW for
the rest, held at the peak and cooled down over the last COOLDOWN of the steps, as in
`gpt2-124m-fast`. Rates do not carry over from one width to another, so each side gets its best of
equally many trials, on seed 0, which is not among those reported (four of one rate, and four of
two: Muon and the schedule are not told apart). The fast side is also cooled down
early, from the same peak: that tells how many tokens it needs for the faithful one's last loss.

The vocabulary is GPT-2's, cut to the VOCABULARY ids that are commonest in the text (the rest are
one id): all 50,257 would put nine tenths of a small model's FLOPs into its head, and leave the
hidden matrices, which Muon is for, no part in it.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from training.config import ModelConfig, TrainConfig
from training.model import GPT
from training.optimizer import Optimizers, clip_gradients
from training.schedule import lr_factor
from training.tokenizer import open_tokenizer

RESULT = Path(__file__).parent / "results" / "fast_recipe.json"
VOCABULARY = 4096
MODEL = ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=128, vocab_size=VOCABULARY)
SEQUENCES = 16
VALIDATION_TOKENS = 65_536
WARMUP = 0.04  # 700 of 18,865 steps
COOLDOWN = 0.4
EARLIER = (0.4, 0.5, 0.6, 0.8)
"""Shares of the steps after which the fast side is cooled down, too."""
FAITHFUL_RATES = (8e-4, 1.2e-3, 1.8e-3, 2.7e-3)
FAST_RATES = ((3e-3, 0.02), (6e-3, 0.02), (1.2e-2, 0.02), (6e-3, 0.04))
"""(AdamW's, Muon's)"""


def faithful(steps: int, max_lr: float) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_tokens=SEQUENCES * MODEL.block_size,
        micro_batch_size=SEQUENCES,
        max_lr=max_lr,
        warmup_steps=round(WARMUP * steps),
    )


def fast(steps: int, max_lr: float, muon_lr: float) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_tokens=SEQUENCES * MODEL.block_size,
        micro_batch_size=SEQUENCES,
        max_lr=max_lr,
        muon_lr=muon_lr,
        optimizer="muon",
        schedule="wsd",
        weight_decay=0.01,
        warmup_steps=round(WARMUP * steps),
        cooldown_steps=round(COOLDOWN * steps),
    )


def read_documents(path: Path) -> Iterator[str]:
    if path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["text"]
    else:
        yield path.read_text(encoding="utf-8")


def read_tokens(paths: list[Path]) -> NDArray[np.int64]:
    """Documents of all files in a fixed random order, ids by how common they are."""
    tokenizer = open_tokenizer("gpt2")
    documents = [
        np.append(np.uint16(tokenizer.end_of_text), tokenizer.encode(text))
        for path in paths
        for text in read_documents(path)
    ]
    order = np.random.default_rng(0).permutation(len(documents))
    tokens = np.concatenate([documents[i] for i in order])
    rank = np.empty(tokenizer.vocab_size, dtype=np.int64)
    rank[np.argsort(-np.bincount(tokens, minlength=tokenizer.vocab_size))] = np.arange(len(rank))
    cut: NDArray[np.int64] = np.minimum(rank[tokens], VOCABULARY - 1)
    return cut


def windows(tokens: NDArray[np.int64], starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(np.stack([tokens[s : s + MODEL.block_size + 1] for s in starts]))
    return rows[:, :-1], rows[:, 1:]


class Side:
    """A model while it is trained; the first VALIDATION_TOKENS are never trained on."""

    def __init__(self, tokens: NDArray[np.int64], train: TrainConfig, seed: int) -> None:
        self.tokens, self.train, self.step = tokens, train, 0
        self.model = GPT(MODEL, seed=seed)
        self.optimizers = Optimizers(self.model, train)
        # The same windows for both sides, each token at most once.
        starts = np.arange(VALIDATION_TOKENS + 1, len(tokens) - MODEL.block_size, MODEL.block_size)
        self.starts = np.random.default_rng(seed).permutation(starts)
        if len(starts) < train.steps * SEQUENCES:
            raise SystemExit(f"{len(tokens):,} tokens are too few for {train.steps} steps")

    def train_to(self, step: int, cooldown_from: int | None = None) -> None:
        while self.step < step:
            first = self.step * SEQUENCES
            inputs, targets = windows(self.tokens, self.starts[first : first + SEQUENCES])
            self.model(inputs, targets).backward()
            clip_gradients(self.model, self.train.grad_clip)
            self.optimizers.step(lr_factor(self.train, self.step, cooldown_from))
            self.step += 1

    @torch.no_grad()
    def val_loss(self) -> float:
        starts = np.arange(0, VALIDATION_TOKENS, MODEL.block_size)
        parts = [self.model(*windows(self.tokens, part)) for part in np.split(starts, 16)]
        return float(torch.stack(parts).mean())

    def cool_down(self, last: int) -> float:
        """The loss of a copy of it after the step `last`, with the rate falling from here on."""
        train = replace(self.train, cooldown_steps=last - self.step)
        copy = Side(self.tokens, train, seed=0)
        copy.starts, copy.step = self.starts, self.step
        copy.model.load_state_dict(self.model.state_dict())
        copy.optimizers.load_state(deepcopy(self.optimizers.state()))
        copy.train_to(last, cooldown_from=self.step)
        return copy.val_loss()


def run(tokens: NDArray[np.int64], train: TrainConfig, seed: int, early: bool) -> dict[int, float]:
    """The validation loss at the end; with `early`, also of copies that were cooled down before."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    side = Side(tokens, train, seed)
    losses = {}
    for share in EARLIER if early else ():
        last = round(share * train.steps)
        side.train_to(round((1 - COOLDOWN) * last))
        losses[last] = round(side.cool_down(last), 4)
    side.train_to(train.steps)
    losses[train.steps] = round(side.val_loss(), 4)
    name = f"{train.optimizer} {train.max_lr:g} {train.muon_lr:g}, seed {seed}"
    print(f"{name}: {losses}, {time.perf_counter() - started:.0f} s", flush=True)
    return losses


def steps_needed(losses: dict[int, float], target: float) -> float | None:
    """After which the cooled down model would have `target`, on the line between two of them.

    Where the first has it already, no fewer than those of the first; None where none has it.
    """
    points = sorted(losses.items())
    if points[0][1] <= target:
        return points[0][0]
    for (left, above), (right, below) in pairwise(points):
        if below <= target:
            return left + (right - left) * (above - target) / (above - below)
    return None


def best_of(trials: list[tuple[TrainConfig, float]], optimizer: str) -> TrainConfig:
    found = [(loss, train) for train, loss in trials if train.optimizer == optimizer]
    return min(found, key=lambda pair: pair[0])[1]


def compare(
    pool: ProcessPoolExecutor, tokens: NDArray[np.int64], *, steps: int, seeds: int
) -> dict[str, Any]:
    sides = [faithful(steps, rate) for rate in FAITHFUL_RATES]
    sides += [fast(steps, *rates) for rates in FAST_RATES]
    tuning = [pool.submit(run, tokens, side, 0, early=False) for side in sides]
    trials = [(side, future.result()[steps]) for side, future in zip(sides, tuning, strict=True)]
    slow, quick = best_of(trials, "adamw"), best_of(trials, "muon")
    print(f"best on seed 0: {slow.max_lr:g}; {quick.max_lr:g} and {quick.muon_lr:g}", flush=True)
    pairs = [
        (
            pool.submit(run, tokens, quick, seed, early=True),
            pool.submit(run, tokens, slow, seed, early=False),
        )
        for seed in range(1, 1 + seeds)
    ]
    rounds: list[dict[str, Any]] = []
    for seed, (quick_run, slow_run) in enumerate(pairs, start=1):
        losses, target = quick_run.result(), slow_run.result()[steps]
        needed = steps_needed(losses, target)
        rounds.append(
            {
                "seed": seed,
                "faithful_val_loss": target,
                "fast_val_loss": losses[steps],
                "fast_val_loss_by_last_step": losses,
                "tokens_share": None if needed is None else round(needed / steps, 3),
            }
        )
    result: dict[str, Any] = {
        "parameters": MODEL.parameters,
        "tokens": slow.tokens,
        "text_tokens": len(tokens),
        "trials_on_seed_0": [
            {"optimizer": train.optimizer, "max_lr": train.max_lr, "val_loss": loss}
            | ({"muon_lr": train.muon_lr} if train.optimizer == "muon" else {})
            for train, loss in trials
        ],
        "cooldown": COOLDOWN,
        "rounds": rounds,
    }
    for name in ("faithful", "fast"):
        losses_of_side = [line[f"{name}_val_loss"] for line in rounds]
        result[f"{name}_mean"] = round(statistics.mean(losses_of_side), 4)
        result[f"{name}_stdev"] = round(statistics.stdev(losses_of_side), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--seeds", type=int, default=3, help="two or more, for their spread")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a core each")
    arguments = parser.parse_args()
    if not arguments.texts:
        print("fast_recipe: skipped; give it web text: `python bench/fast_recipe.py TEXT…`")
        return
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        found = compare(
            pool, read_tokens(arguments.texts), steps=arguments.steps, seeds=arguments.seeds
        )
    texts = " ".join(path.name for path in arguments.texts)
    options = f"--steps {arguments.steps} --seeds {arguments.seeds} --workers {arguments.workers}"
    result = {"command": f"python bench/fast_recipe.py {texts} {options}", **found}
    result |= {"torch": torch.__version__, "cores": os.cpu_count()}
    for line in result["rounds"]:
        print(line)
    print(f"faithful {result['faithful_mean']}, fast {result['fast_mean']}")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
