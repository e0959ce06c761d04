"""This machine's peak rates, looked up by an accelerator's name or measured with a short matrix product and a copy."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from vlm_pruner.cost.flops import Machine

# Dense bfloat16 (V100, T4: float16) operations and bytes per second, from NVIDIA's data sheets; the SXM board if there
# are several. The first entry whose words all occur in torch's name for the device applies.
DATA_SHEETS: dict[str, tuple[float, float]] = {
    "H200": (989e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "A100 80GB": (312e12, 2.039e12),
    "A100": (312e12, 1.555e12),
    "L40S": (362e12, 0.864e12),
    "L4": (121e12, 0.3e12),
    "A10G": (70e12, 0.6e12),
    "RTX 4090": (165e12, 1.008e12),
    "RTX 3090": (71e12, 0.936e12),
    "V100": (125e12, 0.9e12),
    "T4": (65e12, 0.32e12),
}


def known(name: str) -> Machine | None:
    """An accelerator's peak from its data sheet, by torch's name for it; None if it is not listed."""
    words = set(name.replace("-", " ").split())
    for key, (flops, bandwidth) in DATA_SHEETS.items():
        if words.issuperset(key.split()):
            return Machine(f"{name} (data sheet)", flops, bandwidth)
    return None


def measure(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> Machine:
    """Measures the rates of a matrix product and a copy for about `seconds` seconds: a peak that programs can approach.

    Takes the median of many short runs rather than the fastest, because a whole prefill has to sustain the rate.
    """
    device = torch.device(device)
    size, numbers = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    flops = 2 * size**3 / _median_seconds(lambda: torch.mm(a, b, out=product), device, seconds / 2)
    source = torch.zeros(numbers, device=device, dtype=dtype)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()  # one read, one write
    bandwidth = moved / _median_seconds(lambda: target.copy_(source), device, seconds / 2)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} x{torch.get_num_threads()}"
    return Machine(f"{name} (measured, {str(dtype).removeprefix('torch.')})", flops, bandwidth)


def _median_seconds(run: Callable[[], object], device: torch.device, limit: float) -> float:
    run()
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < limit or len(times) < 3:
        _wait(device)
        begin = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
