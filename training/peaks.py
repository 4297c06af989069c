"""What a device can do: its peak, the denominator of model FLOPs utilization, and bfloat16.

Cards whose power limit keeps them far below their data sheet (A10, L4) are left out: no figure
would be fair to them.
"""

import torch

DENSE_BF16_FLOPS = {
    # NVIDIA's data sheets, dense (without sparsity), in order of match.
    "MIG": None,  # a slice of a card
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,  # SXM
    "A100": 312e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of one device; None where no figure is known, as for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in DENSE_BF16_FLOPS.items() if key in name), None)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster there: any CUDA device, some CPUs."""
    return device.type == "cuda" or any(
        torch.cpu.get_capabilities().get(feature) for feature in ("avx512_bf16", "amx_bf16")
    )
