"""What a node installs: the pinned packages that the `training` package imports, no more.

Every second of installing on a rented node is paid for, so nothing of the laptop's is there.
"""

import re
from importlib.metadata import requires

TRAINING_PACKAGES = ("torch", "safetensors")
"""What a node that only prepares data does without."""
HUB_PACKAGES = ("huggingface-hub", "datasets", "gigatoken", "awkward")
"""What a node does without whose run reads nothing from the Hub."""
NODE_PACKAGES = (
    *("msgspec", "boto3", "psutil", "numpy", "tiktoken", "pyarrow"),
    *TRAINING_PACKAGES,
    *HUB_PACKAGES,
)
"""A test holds them against what `training` really imports."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def node_requirements(*, trains: bool = True, reads_hub: bool = True) -> list[str]:
    """`torch==2.13.0` and the like, as gptctl's own metadata pins them."""
    pinned = {}
    for line in requires("gptctl") or ():
        requirement = line.partition(";")[0].strip()
        if (name := _NAME.match(requirement)) is not None:
            pinned[name[0].lower()] = requirement
    spared = (*(() if trains else TRAINING_PACKAGES), *(() if reads_hub else HUB_PACKAGES))
    return [pinned[name] for name in NODE_PACKAGES if name not in spared]
