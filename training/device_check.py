"""One device put to the work that training will ask of it: is it fast, right, and complete?"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from msgspec import Struct
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.peaks import peak_flops

LEAST_SHARE_OF_PEAK = 0.4
"""A healthy card reaches 60 to 85 % of its data sheet in a product of this size."""
ROUNDS = 3
ROUND_S = 0.1
MOST_PRODUCTS = 20
FLASH_CAPABILITY = (8, 0)
"""Compute capability from which on torch has flash attention (Ampere)."""


class DeviceReport(Struct, kw_only=True):
    """What was measured; `faults` say, in order, why training would not go well there."""

    node: int
    gpu: int
    host: str
    name: str = "unknown"
    tflops: float | None = None
    """10¹² operations per second in a matrix product, bf16 on CUDA, fp32 on a CPU."""
    peak_tflops: float | None = None
    cudnn: int | None = None
    flash_attention: bool | None = None
    """None where the hardware has none: torch then takes a slower one."""
    faults: list[str] = []

    @property
    def place(self) -> str:
        return f"node {self.node} ({self.host}), {self.name} number {self.gpu}"


def check_device(device: torch.device, report: DeviceReport) -> None:
    """Fill in `report`. What torch refuses is a fault, and the rest is tried all the same."""
    checks: list[Callable[[torch.device, DeviceReport], None]] = [_check_product]
    if device.type == "cuda":
        checks = [_check_name, _check_product, _check_cudnn, _check_flash_attention]
    else:
        report.name = "CPU"
    for check in checks:
        try:
            check(device, report)
        except RuntimeError as error:  # as torch reports whatever CUDA does
            lines = str(error).strip().splitlines() or [type(error).__name__]
            report.faults.append(f"{check.__name__.removeprefix('_check_')}: {lines[0]}")


def _check_name(device: torch.device, report: DeviceReport) -> None:
    torch.cuda.set_device(device)  # of this thread
    report.name = torch.cuda.get_device_name(device)


def _check_product(device: torch.device, report: DeviceReport) -> None:
    on_cuda = device.type == "cuda"
    n, dtype = (8192, torch.bfloat16) if on_cuda else (512, torch.float32)
    generator = torch.Generator(device).manual_seed(1)
    factors: Any = (2, n, n)
    a, b = torch.randn(factors, device=device, dtype=dtype, generator=generator).unbind()
    once, again = a @ b, a @ b
    if not bool(torch.isfinite(once).all()):
        report.faults.append("a matrix product of finite numbers is not finite")
    if not torch.equal(once, again):
        report.faults.append("the same matrix product came out differently the second time")
    seconds = _time_product(a, b)
    report.tflops = 2 * n**3 / seconds / 1e12
    if (peak := peak_flops(device)) is not None:
        report.peak_tflops = peak / 1e12
        least = LEAST_SHARE_OF_PEAK * report.peak_tflops
        if report.tflops < least:
            report.faults.append(
                f"{report.tflops:.0f} TFLOP/s in a matrix product, at least {least:.0f} expected "
                f"({LEAST_SHARE_OF_PEAK:.0%} of its peak of {report.peak_tflops:.0f})"
            )


def _time_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds of one product, in the best of some rounds: the first find the clocks low."""

    def run(products: int) -> float:
        _synchronize(a.device)
        started = perf_counter()
        for _ in range(products):
            a @ b
        _synchronize(a.device)
        return (perf_counter() - started) / products

    products = max(1, min(MOST_PRODUCTS, int(ROUND_S / run(1))))
    return min(run(products) for _ in range(ROUNDS))


def _check_cudnn(device: torch.device, report: DeviceReport) -> None:
    report.cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if report.cudnn is None:
        report.faults.append("torch does not find cuDNN")


def _check_flash_attention(device: torch.device, report: DeviceReport) -> None:
    if torch.cuda.get_device_capability(device) < FLASH_CAPABILITY:
        return
    report.flash_attention = False
    shape: Any = (3, 2, 8, 512, 64)  # q k v, batch, heads, tokens, head size
    q, k, v = torch.randn(shape, device=device, dtype=torch.bfloat16).unbind()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fast = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with sdpa_kernel(SDPBackend.MATH):
        exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    # Values of some 4 have a spacing of 1/64 in bfloat16.
    if not torch.allclose(fast.float(), exact, rtol=0.0, atol=0.03):
        report.faults.append("flash attention does not compute what attention is")
    report.flash_attention = True


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
