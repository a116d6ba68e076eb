"""Peak rates of the GPUs that the recipes know, for model FLOPs utilisation (MFU)."""

from __future__ import annotations

import torch

from recipes import cpu
from recipes.layout import world_size

PEAK_BF16_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
"""Dense bf16 FLOP/s of the SXM parts (NVIDIA's data sheets), by a part of the device's name."""


def peak_flops(precision: str) -> float | None:
    """FLOP/s that the run's devices could reach together at `precision`; None where no peak rate is known (any CPU)."""
    if precision != "bf16" or not cpu.has_gpu():
        return None
    name = torch.cuda.get_device_name()
    peak = next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)
    return peak and peak * world_size()
