"""The benchmark of stage 2, on little data."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

from scripts.benchmarks import language_model as benchmark
from scripts.benchmarks.loss_memory import loss_memory


@pytest.fixture
def data(tmp_path, monkeypatch) -> benchmark.Data:
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(benchmark, "ROWS", 256)
    monkeypatch.setattr(benchmark, "BATCH", 8)
    monkeypatch.setattr(benchmark, "SIDES", (256, 512))
    return benchmark.make_data(tmp_path / "cache")


def test_rows_of_speed_and_utilization(data):
    options = benchmark.Options(steps=1, repeats=1, compile=False)
    rows = {one["what"]: one for one in benchmark.useful_tokens(data, options)}
    assert rows["useful_tokens/speedup"]["target"] == 2.5 and rows["useful_tokens/speedup"]["higher_is_better"]
    ratio = rows["useful_tokens/padded"]["value"] / rows["useful_tokens/baseline"]["value"]
    assert rows["useful_tokens/speedup"]["value"] == pytest.approx(ratio)
    (row,) = benchmark.utilization(data, options, {"num_layers": 1, "hidden_size": 64, "num_heads": 1}, "mfu/tiny", 0.6)
    assert 0 < row["value"] < 1 and (row["what"], row["target"]) == ("mfu/tiny", 0.6)


def test_memory_of_the_loss():
    """Small enough that nothing is computed in parts: about the same memory, and the same loss, which is checked."""
    memory, seconds = loss_memory(vocabulary=4000, tokens=32)
    assert memory["what"] == "loss_memory/4000" and memory["value"] > 0 and seconds["value"] > 0
