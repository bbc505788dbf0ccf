"""The best validation of a run: what a checkpoint says of it, and its weights in checkpoints/best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.training.run_folder import Run

FOLDER, NOTE = "best", "best.json"


@dataclass(frozen=True)
class Best:
    """The best validation of a run so far.

    Attributes:
        score: the lowest.
        step, seconds: when it was.
        figures: what was measured then.
    """

    score: float = math.inf
    step: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        return asdict(self) | {"score": self.score if math.isfinite(self.score) else None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Best:
        """The inverse of `to_dict`."""
        return cls(**{**values, "score": math.inf if values["score"] is None else values["score"]})


def keep(run: Run, best: Best, write: Callable[[Path], None]) -> None:
    """Have `write` put the model of the best validation into checkpoints/best, in place of the one before."""

    def fill(folder: Path) -> None:
        write(folder)
        (folder / NOTE).write_text(json.dumps(best.to_dict()) + "\n")

    run.save_folder(FOLDER, fill)


def kept_folder(run: Run) -> Path | None:
    """The folder with the best model, if there is one."""
    folder = run.checkpoints / FOLDER
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def after_resume(run: Run, known: Best) -> Best:
    """The best validation, of the one that the checkpoint knows and the one whose model is kept.

    A run that was killed may have kept a better model after its last checkpoint; it would find the same one again. And
    where a user has removed the folder, the next validation is the best.
    """
    folder = kept_folder(run)
    if folder is None:
        return Best()
    try:
        kept = Best.from_dict(json.loads((folder / NOTE).read_text()))
    except (OSError, ValueError, TypeError, KeyError):  # of an earlier version, which wrote no note
        return known
    return kept if kept.score < known.score else known
