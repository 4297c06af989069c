"""Is this node fit for the run? Asked before anything is prepared or trained."""

import shutil
import subprocess
from pathlib import Path

from training.config import HUB_REPOS
from training.errors import NoSpaceError, TrainingError
from training.layout import DATASETS, RunRecord
from training.preparation import BYTES_PER_PARAMETER, checkpoint_bytes, plan_preparation
from training.sources import dataset_folder_key


def check_node(record: RunRecord, root: Path, *, ranks: int) -> dict[str, int]:
    """What was found. Raises TrainingError where `ranks` processes could not go well here."""
    found = {"disk_free_bytes": shutil.disk_usage(root).free, "gpus": len(list_gpus())}
    checkpoints = checkpoint_bytes(record.recipe) if record.job == "train" else 0
    data = data_needed_bytes(record, root)
    if found["disk_free_bytes"] < checkpoints + data:
        needs = {"checkpoints": checkpoints, "token shards": data}
        told = " and ".join(
            f"{size / 1e9:.1f} GB for {what}" for what, size in needs.items() if size
        )
        raise NoSpaceError(
            f"{root} has {found['disk_free_bytes'] / 1e9:.1f} GB free, the run needs {told}",
            hint="free some space, or lower checkpoint.keep",
        )
    if record.device == "cuda" and found["gpus"] < ranks:
        raise TrainingError(
            f"the run was planned for {ranks} GPUs a machine, the driver shows {found['gpus']}",
            hint="`nvidia-smi` should list them all; a node that lacks one is broken",
        )
    return found


def raise_if_full(record: RunRecord, root: Path) -> None:
    """Raise NoSpaceError if not even one checkpoint fits: then no restart can help."""
    free = shutil.disk_usage(root).free
    needed = record.recipe.model.parameters * BYTES_PER_PARAMETER
    if free < needed:
        raise NoSpaceError(
            f"no space left on the disk: {free:,} bytes are free, a checkpoint takes {needed:,}; "
            "the last checkpoint is intact",
            hint="free some space, then `gptctl launch --resume` continues from it",
        )


def data_needed_bytes(record: RunRecord, root: Path) -> int:
    """Room for the shards that are not there yet; 0 for data whose size nobody knows before."""
    data = record.recipe.data
    if data.source not in HUB_REPOS:
        return 0
    folder = root / DATASETS / dataset_folder_key(data)
    there = sum(path.stat().st_size for path in folder.glob("*.bin"))
    needed = plan_preparation(record.recipe, whole=record.whole).disk_bytes
    return max(0, needed - there)


def list_gpus() -> list[str]:
    """Names of the GPUs that NVIDIA's driver shows; none where there is no driver."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    # `GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-…)`
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return [line.partition(": ")[2].partition(" (UUID")[0].strip() for line in lines]
