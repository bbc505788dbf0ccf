"""What drawing reports after each call of the model, and the errors that carry what was drawn when it ends early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# callback(step, total_steps, codes): `codes` (b, t) int64 is what the current batch has drawn so far.
Callback = Callable[[int, int, torch.Tensor], Any]


@dataclass
class Progress:
    """The state of drawing after one step.

    Attributes:
        step, total_steps: counted over all batches.
        rows: which pictures are in the current batch.
        codes: (b, t) int64, what the current batch has drawn so far.
        calls: of the model, that the current batch took so far, the prompt's first.
    """

    step: int
    total_steps: int
    rows: slice
    codes: torch.Tensor
    calls: int


class DrawingStopped(RuntimeError):
    """A callback raised (its error is the `__cause__`). What was drawn is in `codes` and `output`.

    Attributes:
        codes: (B, T) int64, -1 where nothing was drawn yet.
        output: what the pipeline would have returned for these codes; places that are not drawn are decoded from the
            codebook's mean.
    """

    codes: torch.Tensor
    output: Any = None


class DrawingInterrupted(KeyboardInterrupt):
    """Ctrl-C while drawing. What was drawn is in `codes` and `output`, as in `DrawingStopped`."""

    codes: torch.Tensor
    output: Any = None
