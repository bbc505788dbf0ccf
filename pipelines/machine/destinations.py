"""Places that results are written to, checked before any time is spent on making the results."""

from __future__ import annotations

import os
from pathlib import Path

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def check_file(path: str | Path, option: str, example: str) -> None:
    """Raise ValueError, naming the `option`, unless a file can be written at `path`. Folders that are missing on the
    way are no obstacle: they are made when the file is written."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file, for example {example}")
    _check_nearest(path if path.exists() else path.absolute().parent, path, option)


def check_folder(path: str | Path, option: str) -> None:
    """Raise ValueError, naming the `option`, unless files can be written into a folder at `path`, which is made when
    they are written."""
    path = Path(path)
    if path.is_file():
        raise ValueError(f"{option} {path} is a file: name a folder")
    _check_nearest(path.absolute(), path, option)


def is_sheet(output: str | Path) -> bool:
    """Whether all pictures go onto one sheet, the file `output`, and not into a folder."""
    return Path(output).suffix.lower() in PICTURE_SUFFIXES and not Path(output).is_dir()


def check_pictures(output: str | Path, option: str) -> None:
    """Raise ValueError, naming the `option`, for a file whose name says no kind of picture."""
    suffix = Path(output).suffix
    if suffix and not is_sheet(output) and not Path(output).is_dir():
        raise ValueError(
            f"{option} {output}: unknown kind of picture {suffix!r}; use one of {' '.join(PICTURE_SUFFIXES)}"
        )


def make_folder(path: str | Path, option: str) -> Path:
    """Make a folder, if it is not there; ValueError, naming the `option`, if that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{option}: the folder {path} cannot be made ({error.strerror}); name another place"
        ) from error
    return Path(path)


def _check_nearest(place: Path, path: Path, option: str) -> None:
    """Check the nearest of `place` and the folders above it that exists."""
    nearest = next(parent for parent in (place, *place.parents) if parent.exists())
    if nearest != path and not nearest.is_dir():
        raise ValueError(f"{option} {path} cannot be written: {nearest} is a file; name another place")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: there is no permission to write to {nearest}")
