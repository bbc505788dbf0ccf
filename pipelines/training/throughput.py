"""How fast the language model learns: tokens a second, and the share of the machine's arithmetic that is put to use."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator

# Dense bfloat16 products, FLOPs a second, by a part of the device's name, longest first (vendors' data sheets).
GPU_PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "A100": 312e12, "H100": 989e12,
    "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A10G": 70e12, "L40S": 362e12, "L4": 121e12, "A40": 150e12,
}  # fmt: skip
SIDES = (1024, 2048, 4096)
PATIENCE = 2.5  # seconds that measuring may take at first
PATIENCE_AGAIN = 0.5  # and later on
MEASURED_AT = (1, 4, 16, 64)  # lines of the log at which the peak is measured again, and every 64th after these
_measured: dict[tuple[str, torch.dtype, int], float] = {}  # (device, dtype, threads) -> FLOPs a second


def peak_flops(device: torch.device, dtype: torch.dtype, *, again: bool = False) -> float:
    """Most floating-point operations a second of `device` in matrix products of `dtype`: from the data sheet of a GPU
    that is known, else the fastest square product of 1,024 to 4,096 measured so far in this process.

    Args:
        again: measure once more, since the machine may have been busy before.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part in sorted(GPU_PEAKS, key=len, reverse=True):
            if part in name:
                return GPU_PEAKS[part]
    key = str(device), dtype, torch.get_num_threads()
    before = _measured.get(key, 0.0)
    if again or not before:
        _measured[key] = max(before, _fastest_product(device, dtype, PATIENCE_AGAIN if before else PATIENCE))
    return _measured[key]


def total_peak(accelerator: Accelerator, *, again: bool = False) -> float:
    """FLOPs a second that all processes together could reach in matrix products (`peak_flops`)."""
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    peak = torch.tensor(peak_flops(accelerator.device, dtype, again=again), device=accelerator.device)
    return float(accelerator.reduce(peak, "sum"))


def _fastest_product(device: torch.device, dtype: torch.dtype, patience: float) -> float:
    """FLOPs a second of the fastest square product; larger ones are tried only while `patience` (seconds) lasts."""
    best, started = 0.0, time.perf_counter()
    for side in SIDES:
        expected = 2 * side**3 / best if best else 0.0
        a = torch.ones(side, side, device=device, dtype=dtype)
        for _ in range(3):
            if time.perf_counter() - started + expected > patience:
                break
            before = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * side**3 / (time.perf_counter() - before))
    return best


class Throughput:
    """Tokens and arithmetic since the last line of the log.

    Args:
        peak: FLOPs a second of all processes together, or 0 where no share of it is wanted.
        measure_peak: measures it again; called in all processes at the same lines of the log. The peak is raised where
            the machine turns out to be faster than it was at the start, so that no share is above 1.
    """

    def __init__(self, peak: float = 0.0, measure_peak: Callable[[], float] | None = None) -> None:
        self.peak = peak
        self._measure_peak = measure_peak
        self._tokens = self._flops = 0.0
        self._lines = 0

    def add(self, tokens: float, flops: float) -> None:
        """Count a step."""
        self._tokens += tokens
        self._flops += flops

    def figures(self, seconds: float) -> dict[str, float]:
        """`tokens_per_second` and `mfu` over the `seconds` that the steps took; starts again at zero."""
        tokens, flops = (count / max(seconds, 1e-9) for count in (self._tokens, self._flops))
        self._tokens = self._flops = 0.0
        figures = {}
        if tokens:
            figures["tokens_per_second"] = tokens
        if flops and self.peak:
            self._raise_peak(flops)
            figures["mfu"] = flops / self.peak
        return figures

    def _raise_peak(self, reached: float) -> None:
        """The highest of the peaks measured so far and of what training has `reached` itself."""
        self._lines += 1
        # The processes measure together, so that it may not depend on their own clocks when they do.
        if self._measure_peak is not None and (self._lines in MEASURED_AT or self._lines % MEASURED_AT[-1] == 0):
            self.peak = max(self.peak, self._measure_peak())
        self.peak = max(self.peak, reached)
