"""Options of both training commands. No torch, so that --help is quick."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipelines.model_folder import DEFAULT_SHIPPED, named_folder
from pipelines.options.data import DataOptions
from pipelines.options.option import option

DEFAULT_MINUTES = 10.0


@dataclass
class TrainingOptions(DataOptions):
    """Options of both training scripts."""

    output_dir: str = option("runs/run", "folder of the run")
    batch_size: int = option(64, "examples a step, over all processes", above_zero=True)
    resume: bool = option(False, "go on from the last checkpoint in --output_dir, or start if there is none")
    allow_changes: bool = option(False, "with --resume: go on with other settings than the run started with")
    overwrite: bool = option(False, "delete an earlier run in --output_dir first")
    init_from: str | None = option(
        None,
        f"start from the weights of this earlier result, with its sizes: a folder, or {DEFAULT_SHIPPED!r}, which comes "
        "with Tessera",
    )
    max_steps: int | None = option(None, "end after this many steps", above_zero=True)
    max_minutes: float | None = option(
        None, "end after this much training time (default: 10, without --max_steps)", above_zero=True
    )
    learning_rate: float | None = option(None, "peak learning rate (default: by stage and width)", above_zero=True)
    optimizer: str = option(
        "muon", "'muon' (inner matrices and convolutions; AdamW for the rest) or 'adamw'", choices=("muon", "adamw")
    )
    muon_learning_rate: float = option(0.01, "peak learning rate of Muon, on AdamW's scale", above_zero=True)
    weight_decay: float = option(0.05, "weight decay of matrices and convolutions", not_negative=True)
    warmup_steps: int = option(100, "steps of linear warm-up; --schedule follows", not_negative=True)
    schedule: str = option(
        "cosine",
        "'cosine', or 'constant_decay': the peak rate until the last --decay_share",
        choices=("cosine", "constant_decay"),
    )
    decay_share: float = option(0.2, "share of the run over which constant_decay falls", within="(0, 1]")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", above_zero=True)
    ema_decay: float = option(0.998, "decay of the averaged weights; 0 turns averaging off", within="[0, 1)")
    mixed_precision: str = option(
        "auto", "'no', 'bf16', or 'auto': bf16 where the machine computes in it", choices=("auto", "no", "bf16")
    )
    cpu_threads: int | None = option(None, "PyTorch's threads (default: cores over local processes)", above_zero=True)
    timeout_minutes: float = option(
        60.0, "how long processes wait for each other, for example while one of them reads pictures", above_zero=True
    )
    log_every: int = option(20, "steps between lines in metrics.jsonl", above_zero=True)
    validate_every: int | None = option(
        None,
        "steps between validations; 0: only at the end (default: about two epochs, at most 500 steps)",
        not_negative=True,
    )
    keep_best: bool = option(True, "leave the averaged weights of the best validation in --output_dir, not the last")
    patience: float = option(
        0.3, "stop when no validation was better for this share of the budget; 0: never", within="[0, 1]"
    )
    sample_every: int = option(1000, "steps between sample pictures; 0: only at the end", not_negative=True)
    checkpoint_every: int = option(1000, "steps between checkpoints; 0: only at the end", not_negative=True)
    tracker: str = option(
        "none",
        "'tensorboard', 'trackio' or 'wandb', beside metrics.jsonl",
        choices=("none", "tensorboard", "trackio", "wandb"),
    )

    script: ClassVar[str | None] = None  # the command that these options are of

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps is not None and self.max_minutes is not None:
            raise ValueError(f"--max_steps {self.max_steps} and --max_minutes {self.max_minutes}: give one of the two")
        if self.resume and self.overwrite:
            raise ValueError("--resume and --overwrite exclude each other")
        if self.tracker != "none" and importlib.util.find_spec(self.tracker) is None:
            raise ValueError(f"--tracker {self.tracker} is not installed: pip install {self.tracker}, or leave it out")
        if self.init_from and not self.earlier_folder.is_dir():
            raise ValueError(
                f"--init_from {self.init_from}: no such folder; give one that training has written, or "
                f"{DEFAULT_SHIPPED!r}, which comes with Tessera"
            )

    @property
    def earlier_folder(self) -> Path:
        """The folder that --init_from means.

        Raises:
            ValueError: the option is not given.
        """
        if not self.init_from:
            raise ValueError("--init_from is not given: there is no earlier result")
        return named_folder(self.init_from)
