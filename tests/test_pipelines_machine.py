"""What the machine offers: cores within affinity and quotas, devices, and how much at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from pipelines.machine import processors
from pipelines.machine.batches import index_batches, pictures_at_once
from pipelines.machine.devices import choose_device
from pipelines.options.data import DataOptions


def groups(folder: Path, files: dict[str, str], own: str) -> tuple[Path, Path]:
    """A tree of control groups, and a process's own /proc/self/cgroup."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text)
    (folder / "self").write_text(own)
    return folder / "cgroup", folder / "self"


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "400000 100000\n"}, "0::/\n", 4.0),
        ({"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, "0::/job/step\n", 1.5),
        ({"job/cpu.max": "800000 100000\n", "job/step/cpu.max": "200000 100000\n"}, "0::/job/step\n", 2.0),
        ({"cpu/job/cpu.cfs_quota_us": "50000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/job\n", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/\n", None),
        ({"cpu.max": "nonsense\n"}, "", None),
    ],
)
def test_quotas_of_both_versions_of_control_groups(tmp_path, files, own, cores):
    assert processors._cpu_quota(*groups(tmp_path, files, own)) == cores


def test_workers_and_threads_follow_affinity_and_quota(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(processors, "_cpu_quota", lambda: None)
    assert processors.usable_cores() == 8 == DataOptions().workers()
    monkeypatch.setattr(processors, "_cpu_quota", lambda: 2.5)
    assert processors.usable_cores() == 3
    monkeypatch.setattr(processors, "_cpu_quota", lambda: 0.2)
    assert processors.usable_cores() == 1
    assert DataOptions(num_workers=5).workers() == 5, "as the user says"


def test_devices_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device() == choose_device("auto") == found


def test_batches_of_indices():
    assert [list(batch) for batch in index_batches(5, 2)] == [[0, 1], [2, 3], [4]]
    assert list(index_batches(0, 3)) == []
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        list(index_batches(3, 0))
    assert pictures_at_once(32, 32) == 512 and pictures_at_once(64, 32) == 256 and pictures_at_once(4096, 4096) == 1


def test_what_runs_in_a_passing_thread_returns_or_raises_and_the_thread_is_gone():
    threads = threading.active_count()
    assert processors.in_passing_thread(threading.current_thread) not in threading.enumerate()
    with pytest.raises(ValueError, match="no model here"):
        processors.in_passing_thread(lambda: (_ for _ in ()).throw(ValueError("no model here")))
    assert threading.active_count() == threads
