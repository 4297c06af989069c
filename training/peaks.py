"""What a GPU could do at best: the denominator of model FLOPs utilization."""

import torch

DENSE_BF16_FLOPS = {
    # NVIDIA's data sheets, dense (without sparsity), in order of match.
    "H200": 989e12,
    "H100": 989e12,  # SXM
    "A100": 312e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of one device; None where no figure is known, as for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in DENSE_BF16_FLOPS.items() if key in name), None)
