"""The price tables that SkyPilot downloads, in the columns that it reads (its schema v8)."""

import csv
import io
from collections.abc import Iterable

from tests.e2e.instance_types import INSTANCE_TYPES, REGIONS, InstanceType

VM_COLUMNS = (
    *("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB"),
    *("Price", "Region", "GpuInfo", "SpotPrice"),
)


def catalogue_file(path: str) -> str | None:
    """The table at the end of this path, or None: there are none for other clouds."""
    for name, table in _TABLES.items():
        if path.endswith(f"/catalogs/v8/{name}"):
            return table
    return None


def _vm_rows() -> Iterable[tuple[object, ...]]:
    yield VM_COLUMNS
    for kind in INSTANCE_TYPES.values():
        for region in REGIONS:
            yield (
                *(kind.name, kind.gpu.accelerator if kind.gpu else None, kind.gpu_count or None),
                *(kind.vcpus, kind.memory_gib, kind.cents_per_hour / 100, region),
                *(_gpu_info(kind), None),
            )


def _gpu_info(kind: InstanceType) -> object:
    if kind.gpu is None:
        return None
    memory = round(kind.gpu.memory_mib / 8192) * 8192  # the table's sizes are round ones
    gpu = {
        "Name": kind.gpu.accelerator,
        "Manufacturer": "NVIDIA",
        "Count": float(kind.gpu_count),
        "MemoryInfo": {"SizeInMiB": memory},
    }
    return {"Gpus": [gpu], "TotalGpuMemoryInMiB": memory}


def _as_csv(rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


_GPUS = sorted({k.gpu for k in INSTANCE_TYPES.values() if k.gpu}, key=lambda gpu: gpu.accelerator)
_TABLES = {
    "lambda/vms.csv": _as_csv(_vm_rows()),
    "common/metadata.csv": _as_csv(
        [
            ("GPU", "MemoryGB", "Manufacturer"),
            *((gpu.accelerator, round(gpu.memory_mib / 8192) * 8, "NVIDIA") for gpu in _GPUS),
        ]
    ),
    "common/accelerators.csv": _as_csv(
        [("AcceleratorName", "Clouds"), *((gpu.accelerator, ["Lambda"]) for gpu in _GPUS)]
    ),
}
