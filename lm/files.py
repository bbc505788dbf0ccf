"""Files and folders that appear under their names only when they are whole, and where caches lie."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # there is something of the name that a folder is to get
LEFT_ASIDE = re.compile(r"(?P<name>.+)\.(?P<kind>part|replaced)-.*-(?P<pid>\d+)-[0-9a-f]{6}")


def cache_root(cache_folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of what can be made again: `cache_folder`, else $TESSERA_CACHE, else ~/.cache/tessera."""
    return Path(cache_folder or os.environ.get("TESSERA_CACHE") or Path.home() / ".cache" / "tessera").expanduser()


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A new path beside `path`, at which the caller writes a file or makes a folder; it is then renamed to `path`.

    Whatever has the name `path` is replaced; a folder with the same content stays. After an error nothing changes. Any
    number of processes may write the same path. What killed processes of this machine left half written in the same
    folder is removed first, and a folder that they were about to replace gets its name back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _settle_abandoned(path.parent)
    aside = _aside_of(path)
    try:
        yield aside
        if aside.is_dir():
            _rename_folder(aside, path)
        else:
            os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def _aside_of(path: Path, kind: str = "part") -> Path:
    """A name beside `path` that no other process or call uses."""
    return path.with_name(f"{path.name}.{kind}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}")


def _settle_abandoned(folder: Path) -> None:
    """Settle what ended processes of this machine left in `folder` under names of `_aside_of`.

    A folder that was to be replaced gets its name back where nothing has that name now; all else is deleted.
    """
    import psutil

    for path in folder.glob(f"*.*-{socket.gethostname()}-*"):
        match = LEFT_ASIDE.fullmatch(path.name)
        if match is None or psutil.pid_exists(int(match["pid"])):
            continue
        if match["kind"] == "replaced" and not path.with_name(match["name"]).exists():
            with contextlib.suppress(OSError):  # another process does the same
                os.rename(path, path.with_name(match["name"]))
                continue
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


def _rename_folder(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`; a folder of that name goes first, unless it has the same content.

    A directory cannot be replaced in one step: for a moment there is none of that name. If that is where it ends, by an
    error or a kill, the earlier folder gets its name back, in the second case from the next process that publishes.
    """
    earlier: list[Path] = []
    try:
        while True:
            try:
                os.rename(aside, folder)
                break
            except OSError as error:
                if error.errno not in OCCUPIED:
                    raise
            if _same_files(aside, folder):  # another process wrote the same
                break
            earlier.append(_aside_of(folder, "replaced"))
            with contextlib.suppress(FileNotFoundError):  # another process has just moved it
                os.rename(folder, earlier[-1])
    except OSError:
        for path in reversed(earlier):
            if path.exists() and not folder.exists():
                os.rename(path, folder)
        raise
    for path in earlier:
        shutil.rmtree(path, ignore_errors=True)


def _same_files(first: Path, second: Path) -> bool:
    """Whether two folders hold files of the same names and contents."""
    names = sorted(path.name for path in first.iterdir())
    with contextlib.suppress(OSError):
        if names == sorted(path.name for path in second.iterdir()):
            return all(filecmp.cmp(first / name, second / name, shallow=False) for name in names)
    return False
