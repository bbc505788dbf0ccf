"""How many processor cores a process may use, and how to leave them to one thread. No torch, so that `--help` stays
quick."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use, at least 1: its CPU affinity, limited by the quota of its control groups.

    `os.cpu_count()` counts all cores of the machine, also in a job or container that may use four of 64.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _cpu_quota(root: Path = _CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores that the tightest of this process's control groups grants; None without a limit.

    Version 2 keeps "quota period" in `cpu.max` of a group and of each group above it, version 1 keeps two files below
    `cpu/`.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        base = root if controllers == "" else root / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = base / path.lstrip("/")
        found += [_quota_of(folder) for folder in (group, *group.parents) if folder.is_relative_to(base)]
    found += [_quota_of(root), _quota_of(root / "cpu")]  # a container sees its own group at the root
    return min((quota for quota in found if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def in_passing_thread(function: Callable[[], Result]) -> Result:
    """What `function` returns, called in a thread that ends with it.

    GNU's OpenMP keeps helper threads for every thread that has computed with it. Where all of them are more than the
    cores, helpers sleep at each barrier, and small steps of drawing take four times as long. So a server computes in
    its drawing thread alone, and loads in one that does not stay.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()
