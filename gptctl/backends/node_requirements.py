"""What a node installs: the pinned packages that the `training` package imports, no more.

Every second of installing on a rented node is paid for, so nothing of the laptop's is there.
"""

import re
from importlib.metadata import requires

from training.layout import RunJob

NODE_PACKAGES = (
    *("msgspec", "boto3", "psutil", "torch", "numpy", "safetensors", "tiktoken"),
    *("huggingface-hub", "datasets", "pyarrow", "gigatoken", "awkward"),
)
"""A test holds them against what `training` really imports."""
TRAINING_PACKAGES = ("torch", "safetensors")
"""Of those, what a node that only prepares data does without."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def node_requirements(job: RunJob = "train") -> list[str]:
    """`torch==2.13.0` and the like, as gptctl's own metadata pins them."""
    pinned = {}
    for line in requires("gptctl") or ():
        requirement = line.partition(";")[0].strip()
        if (name := _NAME.match(requirement)) is not None:
            pinned[name[0].lower()] = requirement
    spared = TRAINING_PACKAGES if job == "prepare" else ()
    return [pinned[name] for name in NODE_PACKAGES if name not in spared]
