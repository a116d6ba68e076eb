"""Peak rates of the GPUs that the recipes know, for model FLOPs utilisation (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.layout import world_size


@dataclass(frozen=True)
class Peak:
    """Dense peak rates of one GPU, FLOP/s, without structured sparsity."""

    bf16: float
    fp8: float | None
    """None where the matrix units have no FP8."""

    def at(self, precision: str) -> float | None:
        """The rate that a run's precision could reach: FP8's for fp8 (though attention and output head stay in
        bf16), none for fp32, whose products may or may not be rounded to TF32."""
        return {"bf16": self.bf16, "fp8": self.fp8}.get(precision)


PEAKS = {
    "A100": Peak(312e12, None),
    "L40S": Peak(362e12, 733e12),
    "H100 PCIe": Peak(756e12, 1513e12),
    "H100 NVL": Peak(835e12, 1671e12),
    "H100": Peak(989e12, 1979e12),
    "GH200": Peak(989e12, 1979e12),
    "H200": Peak(989e12, 1979e12),
    "GB200": Peak(2500e12, 5000e12),
    "B200": Peak(2250e12, 4500e12),
}
"""NVIDIA's data sheets, by a part of the device's name; the first that fits counts."""


def peak_of(device: str) -> Peak | None:
    """The peak rates of a device by its name, such as ``NVIDIA H100 80GB HBM3``; None for one that is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device), None)


def peak_flops(precision: str) -> float | None:
    """FLOP/s that the run's devices could reach together at `precision`; None where no peak rate is known (any CPU)."""
    from recipes import cpu

    if not cpu.has_gpu():
        return None
    import torch

    peak = peak_of(torch.cuda.get_device_name())
    rate = peak and peak.at(precision)
    return rate and rate * world_size()
