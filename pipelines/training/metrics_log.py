"""What a run measures as it goes: means and rates, a line every few steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipelines.training.run_folder import Run
from pipelines.training.throughput import Throughput

PROJECT = "tessera"  # under which trackers list runs


@dataclass
class MetricsLog:
    """Collects what steps measured, and writes means of it to metrics.jsonl and to a tracker.

    Attributes:
        tracker: "none", "tensorboard", "trackio" or "wandb".
        unit, units_per_step: what a step works on, for the rates: ("images", 64).
        throughput: counts tokens and arithmetic.
    """

    accelerator: Accelerator
    run: Run
    tracker: str
    unit: str
    units_per_step: float
    throughput: Throughput = field(default_factory=Throughput)

    def __post_init__(self) -> None:
        self.values: dict[str, list[torch.Tensor | float]] = {}  # of the line that comes next
        self._last = (0, 0.0)  # step and seconds of the last line
        self._paused = 0.0  # seconds since then that the rates leave out

    def start(self, step: int, seconds: float) -> None:
        """Begin to measure rates, at this step and after these seconds of training."""
        self._last = (step, seconds)
        if self.tracker != "none":
            allowed = (bool, int, float, str)  # what TensorBoard takes
            options = self.run.options.items()
            settings = {name: value if isinstance(value, allowed) else str(value) for name, value in options}
            # For TensorBoard a folder in the run's, for the others a project's name.
            part = self.run.part
            project = str(Path("tensorboard", part)) if self.tracker == "tensorboard" else PROJECT
            name = f"{self.run.folder.parent.name}-{part}" if part else self.run.folder.name
            # A resumed run goes on under its name. No page inside a notebook: `trackio show` has it.
            trackio = {"name": name, "resume": "allow" if step else "never", "embed": False}
            self.accelerator.init_trackers(project, config=settings, init_kwargs={"trackio": trackio})

    def add(self, **measured: torch.Tensor | float) -> None:
        """Keep what a step measured."""
        for name, value in measured.items():
            self.values.setdefault(name, []).append(value)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time counts as training time, but not in the rates."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - before

    def means(self) -> dict[str, float]:
        """Means of what was added since the last line, which starts the next one."""
        means = {name: float(sum(float(v) for v in values) / len(values)) for name, values in self.values.items()}
        self.values.clear()
        return means

    def write(self, means: dict[str, float], step: int, seconds: float) -> str:
        """Write a line of `means` and rates; what it says, for the progress bar."""
        elapsed = max(seconds - self._last[1] - self._paused, 1e-9)
        means[f"{self.unit}_per_second"] = (step - self._last[0]) * self.units_per_step / elapsed
        self._last, self._paused = (step, seconds), 0.0
        with self.paused():  # it measures the machine's peak now and then
            means |= self.throughput.figures(elapsed)
        self.run.log(step, **means, seconds=round(seconds, 2))
        self._track(means, step)
        return " ".join(f"{name}={value:.4g}" for name, value in means.items())

    def write_validation(self, figures: dict[str, float], step: int) -> None:
        """Write the figures of a validation."""
        named = {f"validation_{name}": value for name, value in figures.items()}
        self.run.log(step, **named)
        self._track(named, step)

    def _track(self, values: dict[str, Any], step: int) -> None:
        if self.tracker != "none":
            self.accelerator.log(values, step=step)

    def finish(self) -> None:
        """End the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers.clear()  # Accelerate adds the next part's to them, and logs to all

    def state(self) -> dict[str, list[float]]:
        """What was added since the last line, for a checkpoint."""
        return {name: [float(value) for value in values] for name, values in self.values.items()}

    def load(self, state: dict[str, list[float]]) -> None:
        """The inverse of `state`."""
        self.values = {name: list(values) for name, values in state.items()}
