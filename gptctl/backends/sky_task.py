"""The SkyPilot task of a run, as the very YAML that SkyPilot is given. Pure: knows no SkyPilot.

There is no `setup` section: SkyPilot arms its autostop after it, and nothing of ours may run
on a machine that would not end by itself.
"""

import shlex
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import msgspec

from gptctl.backends import Job
from training.layout import Offer, RunPaths, RunRecord
from training.preparation import disk_bytes

NODE_ROOT = "~/gptctl-node"
TEARDOWN_S = 90
"""Between the supervisor's last word and the end of the machine: SkyPilot's daemon looks once a
minute, and takes some 20 s to end it (seen in the data centre of the tests)."""
HOOK_TIMEOUT_S = 180
FIRST_MINUTES = 10
"""Added to the limits for the wall that stands before the supervisor arms its own."""
MANAGED_MINUTES = 3
"""A managed job's controller gives the machine back: first it must see that the job has ended."""
REDACTED = "<redacted>"
SKYPILOT_DISK_GB = 256
"""What SkyPilot gives a machine whose disk can be chosen. Lambda's cannot, and are larger."""
SPARE_DISK_GB = 40
"""The system, torch and CUDA's libraries, logs."""

_GO_DOWN_IN = """\
#!/bin/bash
# Minutes until SkyPilot's daemon on this machine ends it, whatever still runs.
exec "$(cat ~/.sky/python_path 2>/dev/null || which python3)" -c '
import sys
from sky.skylet import autostop_lib
minutes = max(int(sys.argv[1]), {least})
backend = autostop_lib.get_autostop_config().backend or "cloudvmray"
none = autostop_lib.AutostopWaitFor.NONE
autostop_lib.set_autostop(minutes, backend, none, True)' "$1"
"""


def compose_task(
    job: Job,
    *,
    source: Path,
    requirements: list[str],
    secrets: Mapping[str, str],
) -> dict[str, Any]:
    """`source`: the `training` package on this machine. Secrets stand in it in plain text."""
    record = job.record
    mounts = {f"{NODE_ROOT}/source/training": str(source)}
    if job.text is not None:
        mounts[f"{NODE_ROOT}/{record.recipe.data.path}"] = str(job.text)
    return {
        "name": record.run_id,
        "num_nodes": record.nodes,
        "resources": {
            "ordered": [_resources(group) | _disk(record) for group in _group(job.offers)],
            "autostop": {
                "idle_minutes": minutes_to_live(job),
                "down": True,
                "wait_for": "none",
            },
        },
        "file_mounts": mounts,
        "envs": {
            "RUN_ID": record.run_id,
            "RUN_STORE": job.store,
            "RUN_RECORD": msgspec.json.encode(record).decode(),
            "RUN_OFFERS": msgspec.json.encode(job.offers).decode(),
            "RUN_BUDGET_USD": "" if job.budget_usd is None else str(job.budget_usd),
            "RUN_MAX_HOURS": "" if job.max_hours is None else str(job.max_hours),
            "RUN_TEARDOWN_S": str(TEARDOWN_S),
            "NODE_REQUIREMENTS": "\n".join(requirements),
        },
        "secrets": dict(secrets),
        "config": {
            "hooks": [{"events": ["down"], "timeout": HOOK_TIMEOUT_S, "run": _hook(record.run_id)}]
        },
        "run": _run_script(MANAGED_MINUTES if job.is_managed else 0),
    }


def redact(task: dict[str, Any]) -> dict[str, Any]:
    """The task without its secrets, fit to be shown and stored."""
    return {**task, "secrets": dict.fromkeys(task["secrets"], REDACTED)}


def to_yaml(task: dict[str, Any]) -> str:
    """As a person would write it: scripts as blocks, not as one quoted line."""
    import yaml  # noqa: PLC0415 - of the `cloud` extra

    class Dumper(yaml.SafeDumper):
        pass

    def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent_text)
    written: str = yaml.dump(task, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return written


def minutes_to_live(job: Job) -> int:
    """Minutes in which SkyPilot is to end the machine if nothing of ours ever runs on it."""
    hours_left = None if job.max_hours is None else job.max_hours - job.spent_hours
    hours = [h for h in (hours_left, _budget_hours(job)) if h is not None]
    if not hours:
        raise ValueError("a run on a cloud has a limit")
    return ceil(min(hours) * 60) + FIRST_MINUTES


def _budget_hours(job: Job) -> float | None:
    price = min(offer.price_per_hour for offer in job.offers) * job.record.nodes
    if job.budget_usd is None or not price:
        return None
    return float((job.budget_usd - job.spent_usd) / price)


def _group(offers: tuple[Offer, ...]) -> list[list[Offer]]:
    """Consecutive offers that differ in the region only: SkyPilot goes from one to the next."""

    def without_region(offer: Offer) -> tuple[str, str, int, str]:
        return offer.cloud, offer.gpu, offer.gpu_count, offer.instance_type

    # By cloud, cheapest first, inside each kind of GPU: dictionaries keep that order.
    found: dict[tuple[str, str, int, str], list[Offer]] = {}
    for offer in offers:
        found.setdefault(without_region(offer), []).append(offer)
    return list(found.values())


def _resources(group: list[Offer]) -> dict[str, Any]:
    first = group[0]
    infra = first.cloud if len(group) > 1 or not first.region else f"{first.cloud}/{first.region}"
    machine: dict[str, Any] = {"infra": infra, "use_spot": first.spot}
    if first.gpu_count:
        return {**machine, "accelerators": {first.gpu: first.gpu_count}}
    if first.instance_type:
        return {**machine, "instance_type": first.instance_type}
    return {**machine, "cpus": "4+"}


def _disk(record: RunRecord) -> dict[str, int]:
    """A larger disk, where the shards of the run and its checkpoints might not fit the usual."""
    needed = disk_bytes(record.recipe, trains=record.job == "train", whole=record.whole)
    needed_gb = ceil(needed / 1e9) + SPARE_DISK_GB
    return {"disk_size": needed_gb} if needed_gb > SKYPILOT_DISK_GB else {}


def _run_script(least_minutes: int) -> str:
    root = NODE_ROOT
    go_down_in = _GO_DOWN_IN.replace("{least}", str(least_minutes))
    return f"""\
export NODE_ROOT={root}
export NODE_RANK=$SKYPILOT_NODE_RANK NODE_COUNT=$SKYPILOT_NUM_NODES
export NODE_IPS="$SKYPILOT_NODE_IPS" NODE_PLACE="$SKYPILOT_CLUSTER_INFO"
export NODE_GPUS=${{SKYPILOT_NUM_GPUS_PER_NODE:-0}}
export NODE_GO_DOWN_IN={root}/go-down-in
unset OMP_NUM_THREADS PYTHONWARNINGS  # SkyPilot's, for its own programs
mkdir -p {root}
cat > $NODE_GO_DOWN_IN <<'END_OF_SCRIPT'
{go_down_in}END_OF_SCRIPT
chmod +x $NODE_GO_DOWN_IN
exec bash {root}/source/training/bootstrap.sh
"""


def _hook(run_id: str) -> str:
    run = RunPaths(Path(NODE_ROOT), run_id).folder
    return f"""\
python=$(cat {run}/.python) || exit 0
cd {NODE_ROOT}/source && "$python" -m training.rescue {shlex.quote(run_id)} --root {NODE_ROOT}
"""
