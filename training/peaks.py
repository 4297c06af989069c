"""What the device of this process can do: its peak, and whether it multiplies bfloat16."""

import torch

from training.flops import peak_of


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of one device; None where no figure is known, as for a CPU."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster there: any CUDA device, some CPUs."""
    return device.type == "cuda" or any(
        torch.cpu.get_capabilities().get(feature) for feature in ("avx512_bf16", "amx_bf16")
    )
