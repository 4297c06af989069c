"""What saving costs training: the demo's model trained with frequent saves, and with none.

    python bench/checkpoint_stall.py [--rounds N] [--only demo|124m]

Then what a save of GPT-2 124M costs the rank that holds all of it, beside a step of the recipe
there: the stall, and the longest pause of another thread while it is written behind training's
back. On a CPU the step is that of one sequence, times as many as the batch has.

One round is `STEPS` steps with a save every `EVERY` and the same with a single one at the end,
alternating which goes first. The difference over the number of extra saves is the price of a
save, background writing included. It is hardly more than the noise between two trainings, so
the share, that price at the demo's own cadence, is told of the dearest round: a bound.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import msgspec
import torch

from gptctl.launch import make_record
from gptctl.offers import offer_this_machine
from gptctl.plan import make_plan
from gptctl.recipe import read_recipe
from training import manifest
from training.checkpoint import CheckpointWriter, TrainerState
from training.config import Recipe
from training.distributed import ALONE
from training.events import parse_lines
from training.layout import RunPaths, encode, write_atomic
from training.model import GPT
from training.optimizer import Optimizers
from training.peaks import multiplies_bfloat16
from training.prepare import prepare

STEPS, EVERY = 60, 5
RESULT = Path(__file__).parent / "results" / "checkpoint_stall.json"


def train(recipe: Recipe, dataset: Path, root: Path) -> tuple[float, float]:
    """(seconds in steps, seconds stalled in saves) of one training on the demo's ranks."""
    now = datetime.now(UTC)
    machine = offer_this_machine([], price_per_hour=None, today=now.date())
    plan = make_plan("demo", recipe, [machine])
    record = make_record(plan, store="-", versions={}, now=now)
    paths = RunPaths(root, record.run_id)
    write_atomic(paths.record, encode(record))
    program = ["training.ranks", "--standalone", "--nproc-per-node", str(plan.ranks), "-m"]
    subprocess.run(
        [sys.executable, "-m", *program, "training.train", str(paths.folder), str(dataset)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = [line for line in parse_lines(paths.metrics.read_bytes()) if "loss" in line]
    steps = [recipe.train.batch_tokens / line["tokens_per_sec"] for line in metrics[5:]]
    events = parse_lines(paths.events.read_bytes())
    stalls = [e["stall_s"] for e in events if e["event"] == "checkpoint_saved"]
    return sum(steps), sum(stalls)


def measure_124m(saves: int) -> dict[str, object]:
    _, recipe = read_recipe("gpt2-124m")
    ranks = replace(ALONE, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model = GPT(recipe.model).to(ranks.device)
    optimizers = Optimizers(model, recipe.train, ranks)
    sequences = recipe.train.batch_tokens // recipe.model.block_size
    tokens = torch.randint(0, 50257, (1, recipe.model.block_size + 1), device=ranks.device)

    def seconds_of(work: Callable[[], object]) -> float:
        started = perf_counter()
        work()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - started

    def compute() -> None:
        is_bfloat16 = multiplies_bfloat16(ranks.device)
        with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=is_bfloat16):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()

    sequence_s = min(seconds_of(compute) for _ in range(3))
    update_s = seconds_of(lambda: optimizers.step(1.0))  # makes the state, too
    stalls, writes = [], []
    pauses = Pauses()
    with tempfile.TemporaryDirectory() as folder:

        def note(step: int, stall_s: float, write_s: float) -> None:
            stalls.append(stall_s)
            writes.append(write_s)

        writer = CheckpointWriter(Path(folder), ranks=ranks, on_commit=note)
        for step in range(1, saves + 1):
            state = TrainerState(step=step, tokens=0, best_val_loss=None, recipe=recipe)
            writer.save(model, optimizers, state)
            with pauses:
                writer.wait()
            manifest.drop(Path(folder), step)
    return {
        "device": str(ranks.device),
        "bytes": 4 * sum(p.numel() for p in model.parameters()) + optimizers.state_bytes(),
        "first_stall_ms": round(1e3 * stalls[0], 1),
        "stall_ms": round(1e3 * statistics.median(stalls[1:]), 1),
        "longest_pause_ms": round(1e3 * pauses.longest_s, 1),
        "write_s": round(statistics.median(writes), 1),
        "sequence_ms": round(1e3 * sequence_s, 1),
        "step_ms": round(1e3 * (sequences * sequence_s + update_s)),
    }


class Pauses:
    """The longest time that a thread was kept from running, of those that asked for it."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    def __enter__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        last = perf_counter()
        while not self._over.wait(0.001):
            now = perf_counter()
            self.longest_s = max(self.longest_s, now - last)
            last = now


def measure_demo(rounds: int) -> dict[str, object]:
    _, demo = read_recipe("demo")
    short = {"steps": STEPS, "warmup_steps": 0, "cooldown_steps": 0}
    base = msgspec.structs.replace(
        demo,
        train=msgspec.structs.replace(demo.train, **short),
        eval=msgspec.structs.replace(demo.eval, every=10 * STEPS, tokens=demo.model.block_size),
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "data"
        prepare(base.data, dataset, block_size=base.model.block_size, on_shard=lambda _: None)
        costs, stalls, step_s = [], [], []
        for number in range(rounds):
            seconds = {}
            for every in (EVERY, STEPS) if number % 2 else (STEPS, EVERY):
                recipe = msgspec.structs.replace(
                    base, checkpoint=msgspec.structs.replace(base.checkpoint, every=every)
                )
                root = Path(folder) / f"{number}-{every}"
                seconds[every], stall = train(recipe, dataset, root)
                stalls.append(stall / (STEPS // every))
            costs.append((seconds[EVERY] - seconds[STEPS]) / (STEPS // EVERY - 1))
            step_s.append(seconds[STEPS] / (STEPS - 5))
            print(f"a save costs {costs[-1] * 1e3:.0f} ms, a step takes {step_s[-1] * 1e3:.0f} ms")
    share = max(costs) / (demo.checkpoint.every * statistics.median(step_s))
    return {
        "stall_in_loop_ms_per_save": round(1e3 * statistics.median(stalls), 2),
        "cost_ms_per_save_by_round": [round(1e3 * cost, 1) for cost in costs],
        "step_ms": round(1e3 * statistics.median(step_s), 1),
        "demo_saves_every_steps": demo.checkpoint.every,
        "share_of_demo_training_time_at_most": round(share, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("demo", "124m"))
    arguments = parser.parse_args()
    result = json.loads(RESULT.read_text()) if arguments.only else {}
    result["command"] = f"python bench/checkpoint_stall.py --rounds {arguments.rounds}"
    result["cores"] = os.cpu_count()
    if arguments.only != "124m":
        result["demo"] = measure_demo(arguments.rounds)
    if arguments.only != "demo":
        result["gpt2_124m"] = measure_124m(1 + arguments.rounds)
    print(json.dumps(result, indent=2))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
