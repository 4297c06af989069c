"""What saving costs training: the demo's model trained with frequent saves, and with none.

    python bench/checkpoint_stall.py [--rounds N]

One round is `STEPS` steps with a save every `EVERY` and the same with a single one at the end,
alternating which goes first. The difference over the number of extra saves is the price of a
save, background writing included; the share is that price at the demo's own cadence.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec

from gptctl.recipe import read_recipe
from training.config import Recipe, split_batch
from training.events import parse_lines
from training.layout import Offer, RunPaths, RunRecord, encode, write_atomic
from training.prepare import prepare

STEPS, EVERY = 60, 5
RESULT = Path(__file__).parent / "results" / "checkpoint_stall.json"


def train(recipe: Recipe, dataset: Path, root: Path) -> tuple[float, float]:
    """(seconds in steps, seconds stalled in saves) of one training on the demo's ranks."""
    ranks = recipe.node.cpu_ranks
    micro, accum = split_batch(
        batch_tokens=recipe.train.batch_tokens,
        block_size=recipe.model.block_size,
        micro_batch_size=recipe.train.micro_batch_size,
        ranks=ranks,
    )
    offer = Offer(
        cloud="local", region="-", instance_type="-", gpu="CPU", gpu_count=0, spot=False,
        price_per_hour=Decimal(0), price_source="-", price_as_of="-",
    )  # fmt: skip
    record = RunRecord(
        run_id="bench", recipe_name="demo", recipe=recipe, offer=offer, nodes=1, ranks=ranks,
        device="cpu", micro_batch_size=micro, grad_accum_steps=accum, budget_usd=None,
        max_hours=None, store="-", created_at=datetime.now(UTC), versions={},
    )  # fmt: skip
    paths = RunPaths(root, record.run_id)
    write_atomic(paths.record, encode(record))
    program = ["training.ranks", "--standalone", "--nproc-per-node", str(ranks), "-m"]
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
    per_save = statistics.median(costs)
    share = per_save / (demo.checkpoint.every * statistics.median(step_s))
    result = {
        "command": f"python bench/checkpoint_stall.py --rounds {rounds}",
        "stall_in_loop_ms_per_save": round(1e3 * statistics.median(stalls), 2),
        "cost_ms_per_save": round(1e3 * per_save, 1),
        "step_ms": round(1e3 * statistics.median(step_s), 1),
        "demo_saves_every_steps": demo.checkpoint.every,
        "share_of_demo_training_time": round(share, 5),
        "cores": os.cpu_count(),
    }
    print(f"share of the demo's training time: {share:.2%}")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
