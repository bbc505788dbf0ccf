"""The benchmark of any command, and what all benchmarks check before they measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.figures import BenchmarkOptions

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmarks" / "command.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


def test_options_after_the_dashes_are_the_commands_own(tmp_path):
    output = tmp_path / "new" / "rows.json"
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "--config", "x.yaml", "--", "--output"]
    done = run("--name", "it", "--output", str(output), "--", *command)
    assert done.returncode == 0, done.stderr
    assert "['--config', 'x.yaml', '--', '--output']" in done.stdout
    assert [row["what"] for row in json.loads(output.read_text())] == ["it/seconds", "it/peak_memory"]


def test_a_command_that_fails_or_is_missing():
    done = run("--", sys.executable, "-c", "raise SystemExit(3)")
    assert done.returncode == 1 and "ended with exit code 3: nothing measured" in done.stderr
    done = run("--runs", "2")
    assert done.returncode == 1 and "no command: give one after --" in done.stderr


def test_output_is_checked_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output .* is a folder: name a file, for example rows.json"):
        BenchmarkOptions(output=str(tmp_path))
    with pytest.raises(ValueError, match="--output .*file/rows.json cannot be written: .*file is a file"):
        BenchmarkOptions(output=str(tmp_path / "file" / "rows.json"))
    BenchmarkOptions(output=str(tmp_path / "new" / "rows.json"))
    assert not (tmp_path / "new").exists()
