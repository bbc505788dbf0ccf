"""Run a command and tell how long it took and how much memory its whole process tree held at most.

    python scripts/benchmarks/command.py --output row.json -- python scripts/generate.py --model runs/demo "a dog"

Memory is the sum of the processes' proportional set sizes where the system tells them (Linux: pages that several
processes share count once), else of their resident set sizes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import psutil

from scripts.benchmarks.figures import row, show, write_rows

INTERVAL = 1.0  # seconds between two looks at the processes


def tree_memory(process: psutil.Process) -> int:
    """Bytes that a process and its descendants hold now."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            memory = member.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
        except psutil.Error:
            continue
    return total


def measure(command: list[str]) -> tuple[float, float, int]:
    """Wall seconds, peak memory in GB, exit code."""
    start = time.monotonic()
    with subprocess.Popen(command) as child:
        process, peak = psutil.Process(child.pid), 0
        while child.poll() is None:
            try:
                peak = max(peak, tree_memory(process))
            except psutil.NoSuchProcess:
                break
            time.sleep(INTERVAL)
        code = child.wait()
    return time.monotonic() - start, peak / 1e9, code


def main() -> None:
    """Measure the command given after --."""
    parser = argparse.ArgumentParser(description="Wall time and peak memory of a command, its process tree included.")
    parser.add_argument("--runs", type=int, default=1, help="how often; medians are told (default 1)")
    parser.add_argument("--name", default="command", help="prefix of the rows' names")
    parser.add_argument("--output", help="JSON file for the rows")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args()
    results = []
    for _ in range(options.runs):
        seconds, memory, code = measure(options.command)
        if code:
            sys.exit(f"{options.command[0]} ended with exit code {code}: nothing measured")
        results.append((seconds, memory))
    seconds, memory = zip(*results, strict=True)
    rows = [
        row(f"{options.name}/seconds", round(statistics.median(seconds), 3), "s"),
        row(f"{options.name}/peak_memory", round(max(memory), 3), "GB"),
    ]
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
