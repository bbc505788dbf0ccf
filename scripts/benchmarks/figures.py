"""What the benchmark scripts share: rows of figures, on the screen and in a file."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def row(what: str, value: float | None, unit: str, target: float | None = None, higher_is_better: bool = False) -> Row:
    """One figure; a value of None: it could not be had."""
    return {"what": what, "value": value, "unit": unit, "target": target, "higher_is_better": higher_is_better}


def show(rows: list[Row], missing: str = "none") -> None:
    """Print rows, one a line; `missing` stands for a value that could not be had."""
    for one in rows:
        value = missing if one["value"] is None else f"{one['value']:.4g} {one['unit']}"
        target = "" if one["target"] is None else f"target {one['target']:g}"
        print(f"{one['what']:<50} {value:>24}  {target}".rstrip(), flush=True)


def write_rows(path: str | Path | None, rows: list[Row]) -> None:
    """Write rows as JSON, if there is a path."""
    if path is not None:
        Path(path).write_text(json.dumps(rows, indent=1) + "\n")


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call; they take turns, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            took = seconds(call)
            if turn:  # the first warms up
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}
