"""A Ray cluster to work on: one that runs already, or one of this machine that is started and stopped again.

Ray (Moritz et al. 2018, https://arxiv.org/abs/1712.05889) is in the extra `ray`. No usage statistics are sent, and no
dashboard is started.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INSTALL = "pip install 'tessera[ray]' (in the repository: pip install -e '.[ray]')"
CONNECT_SECONDS = 10
OBJECT_STORE_BYTES = 200 * 2**20  # of a cluster that is started here; codes are small


def check_ray() -> None:
    """Raise ValueError, with the line that installs it, where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError(f"--engine ray needs the package ray, which is not installed: {INSTALL}")


@contextmanager
def ray_cluster(address: str | None, cores: int) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one of `cores` on this machine, until the block ends.

    Args:
        address: as `ray.init` takes it, e.g. "10.0.0.1:6379" or "auto"; None starts a cluster.

    Raises:
        ValueError: no cluster answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the later default, without its warning
    import ray

    if address is not None:
        _check_answers(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            if address is None:
                ray.init(
                    address="local", num_cpus=cores, object_store_memory=OBJECT_STORE_BYTES, _temp_dir=folder,
                    _node_ip_address="127.0.0.1", include_dashboard=False, **quiet,
                )  # fmt: skip
            else:
                ray.init(address=address, **quiet)
        except ConnectionError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"--ray_address {address}: no Ray cluster answers there ({reason})") from error
        try:
            yield
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise ValueError where nothing listens at HOST:PORT. Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"--ray_address {address}: no Ray cluster answers there ({error})") from error


def workers_that_fit(cores: int, gpus: float) -> int:
    """How many workers of so many cores and GPUs the connected cluster has room for.

    Raises:
        ValueError: none.
    """
    import ray

    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 0) // cores)
    if gpus:
        room = min(room, int(resources.get("GPU", 0) / gpus))
    if room < 1:
        raise ValueError(
            f"the Ray cluster has {resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs, too few for "
            f"one worker of --ray_cores {cores} and --ray_gpus {gpus:g}"
        )
    return room
