"""What the benchmark of stopped runs reads from a run's log and screen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scripts.benchmarks.stop_causes import Trial
from scripts.benchmarks.stops import Options, last_step, lines_from


def test_a_cause_that_there_is_not():
    with pytest.raises(ValueError, match="--causes sigkill: choose among ctrl_c, sigterm, full_disk"):
        Options(causes=["sigterm", "sigkill"])


def test_the_last_step_is_that_of_a_whole_line(tmp_path):
    training = SimpleNamespace(metrics=tmp_path / "metrics.jsonl")
    assert last_step(training) == 0, "the run has not begun"
    lines = [f'{{"step": {step}, "loss": 0.5}}' for step in range(401)]
    training.metrics.write_text("\n".join(lines)[:-5])
    assert last_step(training) == 399


def test_lines_without_bars_and_figures(tmp_path):
    screen = tmp_path / "screen.txt"
    screen.write_text(
        "begun\n 10%|#   | 00:01\r 20%|##  | 00:02\r        \rstep 9: validation mse 0.1\n 30%|### | 00:03\r"
        "      \rSIGTERM: stopped after step 12\n"
    )
    assert lines_from(screen, 10) == ["SIGTERM: stopped after step 12"]


def test_the_newest_checkpoint_is_a_whole_one(tmp_path):
    for name in ("checkpoint-100", "checkpoint-900", "checkpoint-1000", "checkpoint-1100.part-here-7-abcdef", "best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert Trial(SimpleNamespace(folder=tmp_path), None, tmp_path).last_checkpoint() == 1000
