"""`--tracker`: what the trackers get of a run, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [
    *(sys.executable, str(ROOT / "scripts" / "train_tokenizer.py"), "--dataset", "sprites", "--max_examples", "64"),
    *("--hidden_sizes", "8", "8", "--codebook_sizes", "8", "8", "--batch_size", "4", "--log_every", "1"),
    *("--num_workers", "0", "--cpu_threads", "1", "--sample_every", "0", "--output_dir", "first_run"),
]
READ = """
import json
from trackio.sqlite_storage import SQLiteStorage
runs = {name: SQLiteStorage.get_logs("tessera", name) for name in SQLiteStorage.get_runs("tessera")}
configs = {name: SQLiteStorage.get_run_config("tessera", name) for name in runs}
print(json.dumps([runs, configs], default=str))
"""


def run(command: list[str], where: Path) -> str:
    """What a command prints; whatever asks for the network gets no answer."""
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {
        **os.environ, **nowhere, "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(where / "trackio"), "NO_PROXY": "",
        "no_proxy": "", "HF_HOME": str(where / "home"), "TESSERA_CACHE": str(where / "cache"),
    }  # fmt: skip
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def steps_of(lines: list[dict], name: str) -> list[int]:
    return [line["step"] for line in lines if name in line]


def test_trackio_keeps_a_run_and_goes_on_with_it(tmp_path: Path) -> None:
    run([*COMMAND, "--tracker", "trackio", "--max_steps", "3"], tmp_path)
    run([*COMMAND, "--tracker", "trackio", "--max_steps", "5", "--resume"], tmp_path)
    runs, configs = json.loads(run([sys.executable, "-c", READ], tmp_path).splitlines()[-1])
    assert list(runs) == ["first_run"] and configs["first_run"]["batch_size"] == 4
    lines = [json.loads(line) for line in (tmp_path / "first_run" / "metrics.jsonl").read_text().splitlines()]
    kept = runs["first_run"]
    assert steps_of(kept, "loss") == steps_of(lines, "loss") == [1, 2, 3, 4, 5]
    ours = [line["loss"] for line in lines if "loss" in line]
    assert [line["loss"] for line in kept if "loss" in line] == pytest.approx(ours)
    assert steps_of(kept, "validation_mse") == steps_of(lines, "validation_mse") != []


def test_tensorboard_keeps_a_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run([*COMMAND, "--tracker", "tensorboard", "--max_steps", "3"], tmp_path)
    events = EventAccumulator(str(tmp_path / "first_run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def test_a_tracker_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.options import training

    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--tracker trackio is not installed: pip install trackio, or leave it out"):
        training.TrainingOptions(tracker="trackio")
