"""Hashes that identify rows, files and whole sources."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np


def digest(*parts: Any) -> str:
    """Short hash of plain values."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def hash64(*parts: Any) -> int:
    """A 64-bit hash of plain values; of bytes alone, of their content."""
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return int.from_bytes(hashlib.blake2b(parts[0], digest_size=8).digest(), "big")
    return int(digest(*parts)[:16], 16)


def file_identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(size, time of last change) of a file, (-1, -1) if it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with a null character
        return -1, -1
    return status.st_size, status.st_mtime_ns


def hash_keys(keys: Iterable[str], salt: str) -> np.ndarray:
    """uint64 (n,): a hash of (salt, key) for each key."""
    return np.array([int(digest(salt, key)[:16], 16) for key in keys], dtype=np.uint64)


def hash_numbers(count: int, salt: str) -> np.ndarray:
    """uint64 (count,): a hash of (salt, number) for 0 .. count - 1, all at once (splitmix64, Steele et al. 2014)."""
    start = np.frombuffer(bytes.fromhex(digest(salt))[:8], dtype="<u8")[0]
    values = np.arange(count, dtype=np.uint64) ^ start
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def one_or_all(names: list[str]) -> str | list[str] | None:
    """Names in the form that fingerprints hash: None if there are none, a string for one, a list for several."""
    return names if len(names) > 1 else next(iter(names), None)
