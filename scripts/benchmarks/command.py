"""Run a command; report its wall time and the peak memory of its whole process tree.

    python scripts/benchmarks/command.py --output row.json -- python scripts/generate.py --model runs/demo "a dog"

Memory is the sum of the processes' proportional set sizes where the system reports them (Linux; pages that several
processes share count once), else of their resident set sizes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial

import psutil

from pipelines.machine.destinations import check_file
from pipelines.options.option import check_values, option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import row, show, write_rows

INTERVAL = 1.0  # seconds between two looks at the processes


@dataclass
class Options:
    """Wall time and peak memory of a command."""

    runs: int = option(1, "how often to run it; the time is the median, the memory the most", above_zero=True)
    name: str = option("command", "prefix of the rows' names")
    output: str | None = option(None, "JSON file for the rows")

    def __post_init__(self) -> None:
        check_values(self)
        if self.output is not None:
            check_file(self.output, "--output", "rows.json")


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


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory in GB.

    Raises:
        ValueError: the command fails.
    """
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
    if code:
        raise ValueError(f"{command[0]} ended with exit code {code}: nothing measured")
    return time.monotonic() - start, peak / 1e9


def main(options: Options, command: list[str]) -> None:
    """Measure; a table on the screen, rows in the file."""
    if not command:
        raise ValueError("no command: give one after --, for example -- make demo")
    times, memories = zip(*(measure(command) for _ in range(options.runs)), strict=True)
    rows = [
        row(f"{options.name}/seconds", round(statistics.median(times), 3), "s"),
        row(f"{options.name}/peak_memory", round(max(memories), 3), "GB"),
    ]
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    command = sys.argv[end + 1 :]
    del sys.argv[end:]  # what follows is the command's
    run_command(partial(main, command=command), Options, __doc__)
