"""Peaks of GPUs: the denominator of model FLOPs utilization. Torch-free: both sides share it.

Cards whose power limit keeps them far below their data sheet (A10, L4) are left out: no figure
would be fair to them.
"""

import re
from functools import cache

DENSE_BF16_FLOPS: dict[str, float | None] = {
    # NVIDIA's data sheets, dense (without sparsity), FLOP/s of one GPU, in order of match.
    "MIG": None,  # a slice of a card
    "GB200": 2500e12,
    "B200": 2250e12,
    "B300": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,  # SXM
    "A100": 312e12,
}


@cache
def peak_of(name: str) -> float | None:
    """Dense bf16 FLOP/s of one GPU; None where no figure is known.

    `name` as a driver has it (`NVIDIA H100 80GB HBM3`) or a price list (`H100-PCIe`).
    """
    words = _spell(name)
    return next((peak for key, peak in DENSE_BF16_FLOPS.items() if _spell(key) in words), None)


def _spell(name: str) -> str:
    """In capitals, each word between spaces, so that an A1000 is no A100."""
    return f" {' '.join(re.findall('[A-Z0-9]+', name.upper()))} "
