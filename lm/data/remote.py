"""Token caches on remote file systems: fsspec addresses, of which each shard is copied to this machine at first use.

Copies lie in `$TESSERA_CACHE/remote/<hash of the address and its manifest>/` (default: ~/.cache/tessera), whole shards
each, and are used again; a cache that changes at its address gets a folder of its own. Nothing is written remotely.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from lm.files import cache_root, published


def is_remote(folder: str | Path) -> bool:
    """Whether this is an address such as s3://bucket/cache."""
    return isinstance(folder, str) and re.match(r"[A-Za-z][\w+.-]*://", folder) is not None


def joined(folder: str | Path, name: str) -> str | Path:
    """`folder`/`name`, as an address where `folder` is one."""
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else Path(folder) / name


class RemoteFolder:
    """A folder at an fsspec address.

    Args:
        address: e.g. s3://bucket/cache/train.
        identity: what its copies are for; another identity is another folder of copies.

    Raises:
        ValueError: fsspec does not know the protocol, or lacks a package for it (named).
    """

    def __init__(self, address: str, identity: str = "") -> None:
        self.address = address.rstrip("/")
        key = hashlib.blake2b(f"{self.address}\n{identity}".encode(), digest_size=12).hexdigest()
        self.copies = cache_root() / "remote" / key
        self._system, self._path = _file_system(self.address)

    def read_text(self, name: str) -> str | None:
        """Content of a file, None if it is not there."""
        try:
            return self._system.cat_file(f"{self._path}/{name}").decode()
        except FileNotFoundError:
            return None
        except Exception as error:  # each file system has its own, from no network to no permission
            raise ValueError(
                f"{self.address}/{name} cannot be read: {type(error).__name__}: {error}. Check the address and your "
                "credentials"
            ) from error

    def fetch(self, name: str) -> Path:
        """This machine's copy of a sub-folder, copied once, by whichever process is first."""
        folder = self.copies / name
        if folder.is_dir():
            return folder
        try:
            listed = self._system.ls(f"{self._path}/{name}", detail=False)
            files = [file for file in listed if "." in file.rsplit("/", 1)[-1]]  # no marks of empty folders
            with published(folder) as aside:
                aside.mkdir()
                self._system.get(files, [str(aside / file.rsplit("/", 1)[-1]) for file in files])
        except Exception as error:
            raise ValueError(
                f"token cache: shard {self.address}/{name} is missing or cannot be copied ({type(error).__name__}: "
                f"{error}): upload it again"
            ) from error
        return folder


def _file_system(address: str) -> tuple[Any, str]:
    """(fsspec's file system, path on it) of an address."""
    import fsspec

    protocol = address.split("://", 1)[0]
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:  # fsspec's own words name the package, e.g. "Install s3fs to access S3"
        raise ValueError(f"{address}: fsspec lacks a package for {protocol}:// ({error}): pip install it") from error
    except ValueError as error:
        from fsspec.registry import known_implementations

        known = ", ".join(f"{name}://" for name in ("s3", "gs", "hf", "az", "file") if name in known_implementations)
        raise ValueError(f"{address}: fsspec knows no protocol {protocol}:// ({error}); give {known}, ...") from error
