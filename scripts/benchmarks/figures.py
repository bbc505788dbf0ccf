"""What the benchmarks share: their common options, rows of figures, and timing."""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.machine.destinations import check_file
from pipelines.machine.processors import usable_cores
from pipelines.options.option import check_values, option

Row = dict[str, Any]


@dataclass(kw_only=True)
class BenchmarkOptions:
    """Options of every benchmark."""

    output: str | None = option(None, "JSON file for the rows")
    cpu_threads: int | None = option(None, "PyTorch's threads (default: cores)", above_zero=True)

    def __post_init__(self) -> None:
        check_values(self)
        if self.output is not None:
            check_file(self.output, "--output", "rows.json")

    def set_threads(self) -> int:
        """Have PyTorch use --cpu_threads; how many these are."""
        import torch

        threads = self.cpu_threads or usable_cores()
        torch.set_num_threads(threads)
        return threads


def check_plots(option: str) -> None:
    """Raise ValueError, with the name of the option that names the plot's place, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{option}: the plot needs matplotlib (pip install 'tessera[evaluation]')")


def row(what: str, value: float | None, unit: str, target: float | None = None, higher_is_better: bool = False) -> Row:
    """One figure; its value is None where it could not be measured."""
    return {"what": what, "value": value, "unit": unit, "target": target, "higher_is_better": higher_is_better}


def show(rows: list[Row], missing: str = "not measured") -> None:
    """Print rows, one a line; `missing` stands for a value that could not be measured."""
    for figure in rows:
        value = missing if figure["value"] is None else f"{figure['value']:.4g} {figure['unit']}"
        target = "" if figure["target"] is None else f"target {figure['target']:g}"
        print(f"{figure['what']:<50} {value:>24}  {target}".rstrip(), flush=True)


def write_rows(path: str | Path | None, rows: list[Row]) -> None:
    """Write rows as JSON, if there is a path."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(rows, indent=1) + "\n")


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call. The calls take turns, so that changes of the machine's speed meet all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            duration = seconds(call)
            if turn:  # the first turn warms up
                times[name].append(duration)
    return {name: statistics.median(values) for name, values in times.items()}
