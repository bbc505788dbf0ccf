"""How fast the language model learns: tokens a second, and the share of the machine's arithmetic that is put to use."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from accelerate import Accelerator

# Dense bfloat16 products, FLOPs a second, by a part of the device's name, longest first (vendors' data sheets).
GPU_PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "A100": 312e12, "H100": 989e12,
    "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A10G": 70e12, "L40S": 362e12, "L4": 121e12, "A40": 150e12,
}  # fmt: skip
SIDES = (1024, 2048, 4096)
PATIENCE = 2.5  # seconds that measuring may take


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Most floating-point operations a second of `device` in matrix products of `dtype`: from the data sheet of a GPU
    that is known, else the fastest square product of 1,024 to 4,096, measured once a process."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part in sorted(GPU_PEAKS, key=len, reverse=True):
            if part in name:
                return GPU_PEAKS[part]
    return measured_peak(str(device), dtype, torch.get_num_threads())


def total_peak(accelerator: Accelerator) -> float:
    """FLOPs a second that all processes together could reach in matrix products."""
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    peak = torch.tensor(peak_flops(accelerator.device, dtype), device=accelerator.device)
    return float(accelerator.reduce(peak, "sum"))


@lru_cache
def measured_peak(device: str, dtype: torch.dtype, threads: int) -> float:
    """The fastest product; larger ones only while `PATIENCE` lasts. `threads` is what the measure depends on."""
    best, started = 0.0, time.perf_counter()
    for side in SIDES:
        expected = 2 * side**3 / best if best else 0.0
        a = torch.ones(side, side, device=device, dtype=dtype)
        for _ in range(3):
            if time.perf_counter() - started + expected > PATIENCE:
                break
            before = time.perf_counter()
            a @ a
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            best = max(best, 2 * side**3 / (time.perf_counter() - before))
    return best


class Throughput:
    """Tokens and arithmetic since the last line of the log.

    Args:
        peak: FLOPs a second of all processes together, or 0 where no share of it is wanted.
    """

    def __init__(self, peak: float = 0.0) -> None:
        self.peak = peak
        self._tokens = self._flops = 0.0

    def add(self, tokens: float, flops: float) -> None:
        """Count a step."""
        self._tokens += tokens
        self._flops += flops

    def figures(self, seconds: float) -> dict[str, float]:
        """`tokens_per_second` and `mfu` over the `seconds` that the steps took; starts again at zero."""
        tokens, flops = self._tokens, self._flops
        self._tokens = self._flops = 0.0
        found = {}
        if tokens:
            found["tokens_per_second"] = tokens / max(seconds, 1e-9)
        if flops and self.peak:
            found["mfu"] = flops / max(seconds, 1e-9) / self.peak
        return found
