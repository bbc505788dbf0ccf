"""What the two training commands let their users set, and how it is checked: no torch, so that --help is quick."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipelines.options.data import DataOptions
from pipelines.options.option import option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipelines.training.optimizers import Budget


@dataclass
class TrainingOptions(DataOptions):
    """Options of both training scripts."""

    output_dir: str = option("runs/run", "folder of the run")
    batch_size: int = option(64, "examples a step, over all processes")
    resume: bool = option(False, "go on from the last checkpoint in --output_dir, or start if there is none")
    allow_changes: bool = option(False, "with --resume: go on with other settings than the run started with")
    overwrite: bool = option(False, "delete an earlier run in --output_dir first")
    init_from: str | None = option(None, "start from the weights of this earlier result, with its sizes")
    max_steps: int | None = option(None, "end after this many steps")
    max_minutes: float | None = option(None, "end after this much training time (default: 10, without --max_steps)")
    learning_rate: float | None = option(None, "peak learning rate (default: by stage and width)")
    optimizer: str = option("muon", "'muon' (inner matrices and convolutions; AdamW for the rest) or 'adamw'")
    muon_learning_rate: float = option(0.01, "peak learning rate of Muon, on AdamW's scale")
    weight_decay: float = option(0.05, "weight decay of matrices and convolutions")
    warmup_steps: int = option(100, "steps of linear warm-up; --schedule follows")
    schedule: str = option("cosine", "'cosine', or 'constant_decay': the peak rate until the last --decay_share")
    decay_share: float = option(0.2, "share of the run over which constant_decay falls")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    ema_decay: float = option(0.998, "decay of the averaged weights; 0 turns averaging off")
    mixed_precision: str = option("auto", "'no', 'bf16', or 'auto': bf16 where the machine computes in it")
    cpu_threads: int | None = option(None, "PyTorch's threads (default: cores over local processes)")
    log_every: int = option(20, "steps between lines in metrics.jsonl")
    validate_every: int = option(500, "steps between validations; 0: only at the end")
    sample_every: int = option(1000, "steps between sample pictures; 0: only at the end")
    checkpoint_every: int = option(1000, "steps between checkpoints; 0: only at the end")
    tracker: str = option("none", "'tensorboard' or 'wandb', beside metrics.jsonl")

    script: ClassVar[str | None] = None  # the command that these options are of
    above_zero: ClassVar[tuple[str, ...]] = (
        *DataOptions.above_zero, "learning_rate", "muon_learning_rate", "max_grad_norm", "log_every", "batch_size",
        "cpu_threads",
    )  # fmt: skip
    not_negative: ClassVar[tuple[str, ...]] = (
        *DataOptions.not_negative, "weight_decay", "warmup_steps", "validate_every", "sample_every",
        "checkpoint_every",
    )  # fmt: skip

    def budget(self) -> Budget:
        """How long to train."""
        from pipelines.training.optimizers import Budget

        if self.max_steps is None and self.max_minutes is None:
            return Budget(max_minutes=10.0)
        return Budget(self.max_steps, self.max_minutes)

    def optimizers(
        self, model: nn.Module, learning_rate: float, betas: tuple[float, float]
    ) -> list[torch.optim.Optimizer]:
        """What updates the model's weights."""
        from pipelines.training.optimizers import build_optimizers

        return build_optimizers(
            model,
            learning_rate=learning_rate,
            weight_decay=self.weight_decay,
            betas=betas,
            muon_learning_rate=self.muon_learning_rate if self.optimizer == "muon" else None,
        )

    def check(self) -> None:
        """Raise ValueError for values that no run can have."""
        super().check()
        self.budget()
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay {self.ema_decay} must be in [0, 1); 0 turns averaging off")
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"--optimizer {self.optimizer!r}: choose muon or adamw")
        if self.schedule not in ("cosine", "constant_decay"):
            raise ValueError(f"--schedule {self.schedule!r}: choose cosine or constant_decay")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"--decay_share {self.decay_share} must be above 0 and at most 1")
        if self.tracker not in ("none", "tensorboard", "wandb"):
            raise ValueError(f"--tracker {self.tracker!r}: choose none, tensorboard or wandb")
        if self.tracker != "none" and importlib.util.find_spec(self.tracker) is None:
            raise ValueError(f"--tracker {self.tracker} is not installed: pip install {self.tracker}, or leave it out")
        if self.mixed_precision not in ("auto", "no", "bf16"):
            raise ValueError(f"--mixed_precision {self.mixed_precision!r}: choose auto, no or bf16")
        if self.init_from and not os.path.isdir(self.init_from):
            raise ValueError(f"--init_from {self.init_from}: no such folder")
