"""What gptctl adds to SkyPilot between a launch and the first training step.

    python -m bench.cloud_launch [--rounds 3] [--out bench/results/cloud_launch.json]

In the private data centre of the e2e tests (root, Debian), round by round in turn: `sky launch` of
a task that installs the same packages and imports torch, on a machine that goes down by itself
too, and `gptctl launch` of a tiny recipe. The difference is our own part. Then a dry run, beside
SkyPilot's own, the server up and the catalogue cached.
"""

import argparse
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gptctl.backends.node_requirements import node_requirements
from tests.e2e.cloud_user import CloudUser
from tests.e2e.datacentre import DataCentre

OWN_PART_LIMIT_S = 5.0
DRY_RUN_LIMIT_S = 2.0
MARK = "torch is there at"
TASK = f"""
resources: {{infra: lambda, instance_type: cpu_4x_general}}
run: |
  ~/.local/bin/uv venv --quiet ~/stack
  ~/.local/bin/uv pip install --quiet --python ~/stack/bin/python -r ~/sky_workdir/needs.txt
  ~/stack/bin/python -c 'import time, torch; torch.ones(2).sum(); print("{MARK}", time.time())'
"""


def time_skypilot(user: CloudUser, number: int) -> float:
    """Seconds from the command to the first thing that torch computes."""
    folder = user.home / f"reference-{number}"
    folder.mkdir()
    (folder / "needs.txt").write_text("\n".join(node_requirements()))
    (folder / "task.yaml").write_text(TASK)
    name = f"reference-{number}"
    started = time.time()
    launch = ("launch", "--yes", "--cluster", name, "--workdir", str(folder))
    goes_down = ("--down", "--idle-minutes-to-autostop", "10")
    told = user.sky(*launch, *goes_down, str(folder / "task.yaml")).stdout
    user.sky("down", "--yes", name)
    return float(told.rpartition(MARK)[2].split()[0]) - started


def time_gptctl(user: CloudUser, number: int) -> float:
    """Seconds from the command to the first training step."""
    name = f"ours-{number}"
    started = time.time()
    user.run(*user.launch_arguments, "--cloud", "lambda", "--budget", "0.05", "--name", name)
    (first,) = user.events(name, "training_started")
    return datetime.fromisoformat(first["at"]).timestamp() - started


def time_dry_run(user: CloudUser, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        user.run(*user.launch_arguments, "--cloud", "lambda", "--budget", "1", "--dry-run")
        times.append(time.perf_counter() - started)
    return times


def time_skypilot_dry_run(user: CloudUser, repeats: int) -> list[float]:
    task = user.home / "reference-0" / "task.yaml"
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        user.sky("launch", "--dryrun", "--yes", str(task), exit_code=None)
        times.append(time.perf_counter() - started)
    return times


def measure(rounds: int) -> dict[str, Any]:
    with DataCentre() as centre:
        user = CloudUser(centre, "bench")
        reference, ours = [], []
        for number in range(rounds + 1):
            pair = time_skypilot(user, number), time_gptctl(user, number)
            if number:  # the first round fills SkyPilot's caches
                reference.append(pair[0])
                ours.append(pair[1])
        dry, reference_dry = time_dry_run(user, 5), time_skypilot_dry_run(user, 3)
    own_part = [mine - its for mine, its in zip(ours, reference, strict=True)]
    return {
        "skypilot_s": [round(value, 1) for value in reference],
        "gptctl_s": [round(value, 1) for value in ours],
        "own_part_s": round(statistics.median(own_part), 1),
        "ratio": round(statistics.median(ours) / statistics.median(reference), 2),
        "dry_run_s": round(statistics.median(dry), 2),
        "dry_run_ratio": round(statistics.median(dry) / statistics.median(reference_dry), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/cloud_launch.json"
    )
    options = parser.parse_args()
    found = measure(options.rounds)
    for name, value in found.items():
        print(f"{name:<14} {value}")
    result = {
        "bench": f"python -m bench.cloud_launch --rounds {options.rounds}",
        "measured_at": datetime.now(UTC),
        "limits": {"own_part_s": OWN_PART_LIMIT_S, "dry_run_s": DRY_RUN_LIMIT_S},
        **found,
    }
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    is_met = found["own_part_s"] < OWN_PART_LIMIT_S and found["dry_run_s"] < DRY_RUN_LIMIT_S
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
