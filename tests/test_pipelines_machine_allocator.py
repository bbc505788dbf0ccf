"""Freed memory is kept: asked for again, it comes without page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from pipelines.machine.allocator import keep_freed_memory

print(keep_freed_memory() if {keep} else None)
for step in range(23):
    if step == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [np.ones(2 << 18) for _ in range(20)]  # of 4 MB each
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
FEW_FAULTS = 2000  # 20 steps over 80 MB are 400,000 pages


def run(keep: bool, **environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` returned in a process of its own, and its page faults afterwards."""
    lines = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)], env={"PATH": "", **environment}, text=True,
        capture_output=True, check=True,
    ).stdout.split()  # fmt: skip
    return lines[0], int(lines[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    kept, faults = run(True)
    assert kept == "True" and faults < FEW_FAULTS
    assert run(False)[1] > 4 * FEW_FAULTS


def test_an_allocator_that_the_user_has_set_stays_as_it_is() -> None:
    assert run(True, MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
