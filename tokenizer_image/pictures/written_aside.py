"""Folders that get their names when they are complete."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; the caller renames it (`replace_folder`), or it is removed.

    What killed processes of this machine left of the same folder is removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    aside = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}")
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(aside: Path, folder: Path) -> None:
    """Give a finished folder its name; one that is there already is removed."""
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(aside, folder)


def _remove_abandoned(folder: Path) -> None:
    import psutil

    for path in folder.parent.glob(f"{folder.name}.tmp-{socket.gethostname()}-*"):
        pid = path.name.rsplit("-", 2)[1]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
