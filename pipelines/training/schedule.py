"""How long a run lasts, and how the learning rate follows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipelines.options.training import DEFAULT_MINUTES, TrainingOptions

UTILISATION = 0.4  # of a machine's peak that training reaches, about
FINAL_SHARE = 0.02  # of the learning rate, at the end
MOST_STEPS, LEAST_STEPS = 500, 20  # between validations, where --validate_every does not say
VALIDATION_SHARE = 0.05  # of the time of training, that validations take at most
FORWARD_SHARE = 1 / 3  # of a training step's time, that a forward pass takes


@dataclass(frozen=True)
class Budget:
    """How long a run lasts: `max_steps`, or without them `max_minutes` of training time.

    Training time is counted from the first step, validation and samples included, and goes on where a checkpoint
    left it.
    """

    max_steps: int | None = None
    max_minutes: float = DEFAULT_MINUTES

    @classmethod
    def of(cls, options: TrainingOptions) -> Budget:
        """The budget that `options` ask for."""
        return cls(options.max_steps, options.max_minutes or DEFAULT_MINUTES)

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is over, in [0, 1]."""
        return min(1.0, step / self.max_steps if self.max_steps else seconds / (60 * self.max_minutes))

    def flops(self, peak: float) -> float:
        """Floating-point operations of the minutes, by a machine that reaches `peak` a second, about."""
        return 60 * self.max_minutes * UTILISATION * peak

    def plan(self, step: int, seconds: float, seconds_per_step: float) -> str:
        """What is left, in words."""
        if self.max_steps:
            steps = self.max_steps - step
            return f"about {steps * seconds_per_step / 60:.1f} minutes left for {steps} steps"
        left = 60 * self.max_minutes - seconds
        return f"{left / 60:.1f} minutes left, about {left / seconds_per_step:.0f} steps"


def validation_interval(options: TrainingOptions, rows: int, measured: int) -> int:
    """Steps between validations: --validate_every, or without it two epochs, since a small data set is learned by heart
    within a few; more where these are but a fortieth of --max_steps, or where validations would take too much time.

    It follows from the options and the data alone, so that a resumed run validates where an uninterrupted one does.

    Args:
        rows: of training.
        measured: rows that a validation sends through the model.
    """
    if options.validate_every is not None:
        return options.validate_every
    epochs = 2 * rows / options.batch_size
    affordable = measured * FORWARD_SHARE / (VALIDATION_SHARE * options.batch_size)
    steps = max(epochs, affordable, LEAST_STEPS, (options.max_steps or 0) / 40)
    return min(MOST_STEPS, math.ceil(steps))


def learning_rate_share(
    progress: float, step: int, warmup_steps: int, schedule: str = "cosine", decay_share: float = 0.2
) -> float:
    """Share of the peak learning rate: linear warm-up over steps, then by the run's progress in [0, 1].

    `cosine` falls all the way. `constant_decay` keeps the peak, then falls by 1 - sqrt over the last `decay_share` of
    the run (Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations").
    """
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    if schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = 1 - math.sqrt(max(0.0, progress - (1 - decay_share)) / decay_share)
    return warmup * (FINAL_SHARE + (1 - FINAL_SHARE) * share)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Set every group to `share` of its peak learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
