"""What the data centre rents: real types of Lambda, with their prices of November 2026.

Both what the API lists and what SkyPilot's price table says are made from this one list.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    accelerator: str  # SkyPilot's name
    device: str  # as nvidia-smi names it
    memory_mib: int


@dataclass(frozen=True)
class InstanceType:
    name: str
    gpu_count: int
    gpu: Gpu | None
    vcpus: int
    memory_gib: int
    cents_per_hour: int


A10 = Gpu("A10", "NVIDIA A10", 23028)
A100 = Gpu("A100", "NVIDIA A100-SXM4-40GB", 40960)
A100_80GB = Gpu("A100-80GB", "NVIDIA A100-SXM4-80GB", 81920)
H100 = Gpu("H100", "NVIDIA H100 80GB HBM3", 81559)

INSTANCE_TYPES = {
    kind.name: kind
    for kind in (
        InstanceType("cpu_4x_general", 0, None, 4, 16, 20),
        InstanceType("gpu_1x_a10", 1, A10, 30, 200, 129),
        InstanceType("gpu_1x_a100_sxm4", 1, A100, 30, 200, 199),
        InstanceType("gpu_4x_a100", 4, A100, 120, 800, 796),
        InstanceType("gpu_8x_a100", 8, A100, 124, 1800, 1592),
        InstanceType("gpu_8x_a100_80gb_sxm4", 8, A100_80GB, 240, 1800, 2232),
        InstanceType("gpu_4x_h100_sxm5", 4, H100, 104, 900, 1636),
        InstanceType("gpu_8x_h100_sxm5", 8, H100, 208, 1800, 3192),
    )
}
REGIONS = ("us-east-1", "us-west-1", "us-south-1", "us-midwest-1")
