"""Which device computes, and in which precision."""

from __future__ import annotations

import torch

from tokenizer_image.quantizers.screening import has_bfloat16


def choose_device(name: str | None = None) -> torch.device:
    """The device called `name` ("cpu", "cuda:1", ...); for None or "auto" a GPU where there is one, else the CPU."""
    if name not in (None, "auto"):
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bf16() -> bool:
    """Whether bfloat16 is faster than float32 here."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_bfloat16()
