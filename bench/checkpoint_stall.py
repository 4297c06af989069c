"""What saving costs training: the demo's model trained with frequent saves, and with none.

    python bench/checkpoint_stall.py [--rounds N]

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
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gptctl.launch import make_record
from gptctl.offers import offer_this_machine
from gptctl.plan import make_plan
from gptctl.recipe import read_recipe
from training.config import Recipe
from training.events import parse_lines
from training.layout import RunPaths, encode, write_atomic
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
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
    result = {
        "command": f"python bench/checkpoint_stall.py --rounds {rounds}",
        "stall_in_loop_ms_per_save": round(1e3 * statistics.median(stalls), 2),
        "cost_ms_per_save_by_round": [round(1e3 * cost, 1) for cost in costs],
        "step_ms": round(1e3 * statistics.median(step_s), 1),
        "demo_saves_every_steps": demo.checkpoint.every,
        "share_of_demo_training_time_at_most": round(share, 5),
        "cores": os.cpu_count(),
    }
    print(f"share of the demo's training time: at most {share:.2%}")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
