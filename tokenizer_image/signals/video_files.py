"""Videos: animated GIF, WebP and PNG by Pillow, films by PyAV where it is installed, folders of frames."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from tokenizer_image.pictures.folder_files import is_hidden, is_of_system
from tokenizer_image.pictures.picture_files import is_picture, open_picture
from tokenizer_image.pictures.reading_notes import ending, shown

ANIMATIONS = (".gif", ".webp", ".apng")
FILMS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
MOST_FRAMES = 4_096
MOST_PIXELS = 178_956_970  # of all frames together: as many as one picture may have
INSTALL = "pip install -e '.[signals]'"


@dataclass(frozen=True)
class Video:
    """frames: uint8 (frames, height, width, 3). rate: frames a second, None where the file does not say."""

    frames: np.ndarray
    rate: float | None


def is_video(file: str) -> bool:
    """Whether a file's ending is that of an animation or a film."""
    return ending(file) in ANIMATIONS or is_film(file)


def is_film(file: str) -> bool:
    """Whether a file's ending is that of a film."""
    return ending(file) in FILMS


def is_frame(file: str) -> bool:
    """Whether a path relative to a data set's folder is a still picture in a folder of frames."""
    return "/" in file and is_picture(file) and not is_video(file)


def frames_in(folder: Path) -> list[Path]:
    """The still pictures in a folder, in the order of their names; numbers count as numbers: "2.png" comes before
    "10.png". Hidden files are none."""
    found = [
        file
        for file in folder.iterdir()
        if is_frame(f"{folder.name}/{file.name}") and not is_hidden(file.name) and not is_of_system(file.name)
    ]
    return sorted(found, key=lambda file: _natural(file.name))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], name


def read_video(file: Path) -> Video:
    """An animation, a film, or a folder of frames.

    Raises:
        ValueError: a file that cannot be read or is cut off, one frame alone, frames of different sizes, more frames
            or pixels than `MOST_FRAMES` and `MOST_PIXELS`; a film without PyAV.
    """
    if file.is_dir():
        return _read_frames(frames_in(file))
    if is_film(file.name):
        return _read_film(file)
    if ending(file.name) not in ANIMATIONS:
        raise ValueError(f"{shown(file.name)}: videos are files with the endings {' '.join((*ANIMATIONS, *FILMS))}")
    _check_whole(file)
    try:
        with open_picture(file) as image:
            durations: list[float] = []
            frames = _collect(_animation_frames(image, durations))
    except ValueError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error
    mean = sum(durations) / len(durations)
    return Video(frames, 1_000 / mean if mean > 0 else None)


def _check_whole(file: Path) -> None:
    """Raise ValueError for an animation that ends early: decoders take its first frames for all."""
    content = file.read_bytes()
    kind, whole = ending(file.name), True
    if content[:4] == b"GIF8":
        whole = content.rstrip(b"\0").endswith(b";")
    elif content[:4] == b"RIFF":
        whole = len(content) >= 8 + int.from_bytes(content[4:8], "little")
    elif content[1:4] == b"PNG":
        whole = b"IEND" in content[-64:]
    if not whole:
        raise ValueError(f"it is cut off: a {kind.removeprefix('.')} without its end")


def _read_frames(files: Sequence[Path]) -> Video:
    def pictures() -> Iterator[Image.Image]:
        for file in files:
            try:
                with open_picture(file) as image:
                    picture = image.convert("RGB")
            except ValueError:
                raise
            except Exception as error:  # decoders of damaged files raise nearly anything
                raise ValueError(f"{shown(file.name)} cannot be read ({type(error).__name__}: {error})") from error
            yield picture

    return Video(_collect(pictures(), [file.name for file in files]), None)


def _animation_frames(image: Image.Image, durations: list[float]) -> Iterator[Image.Image]:
    """RGB frames, transparent pixels white; `durations` gets their milliseconds."""
    for frame in ImageSequence.Iterator(image):
        rgba = frame.convert("RGBA")
        durations.append(float(frame.info.get("duration", 0)))
        paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        yield Image.alpha_composite(paper, rgba).convert("RGB")


def _collect(pictures: Iterable[Image.Image], names: Sequence[str] = ()) -> np.ndarray:
    """uint8 (frames, height, width, 3); ValueError for one frame, frames of different sizes, or too many."""
    frames: list[np.ndarray] = []
    for number, picture in enumerate(pictures):
        frame = np.asarray(picture, np.uint8)
        if frames and frame.shape != frames[0].shape:
            name = shown(names[number]) if names else f"frame {number}"
            raise ValueError(f"its frames differ in size: the first has {_size(frames[0])}, {name} has {_size(frame)}")
        frames.append(frame)
        pixels = len(frames) * frame.shape[0] * frame.shape[1]
        if len(frames) > MOST_FRAMES or pixels > MOST_PIXELS:
            raise ValueError(
                f"it has more than {MOST_FRAMES:,} frames or {MOST_PIXELS:,} pixels in all: cut it into shorter ones"
            )
    if len(frames) < 2:
        raise ValueError(f"it has {len(frames)} frame: a video has two or more; read it as a picture")
    return np.stack(frames)


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]} pixels"


def _read_film(file: Path) -> Video:
    try:
        import av
    except ImportError as error:
        raise ValueError(f"films are read by a package that is not installed: {INSTALL}") from error
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures, sound alone")
            stream: Any = container.streams.video[0]
            rate = float(stream.average_rate) if stream.average_rate else None
            frames = _collect(frame.to_image() for frame in container.decode(stream))
            if len(frames) < stream.frames:
                raise ValueError(f"it is cut off: {len(frames):,} of {stream.frames:,} frames are there")
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error
    return Video(frames, rate)


def write_gif(file: Path, frames: np.ndarray, rate: float = 8.0) -> None:
    """Write uint8 (frames, height, width, 3) as a GIF that repeats; its times are in hundredths of a second.

    Raises:
        ValueError: another form of frames, or a rate that is not above 0.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames) or not rate > 0:
        raise ValueError(
            f"a GIF needs uint8 frames (frames, height, width, 3) and a rate above 0, got {frames.dtype} "
            f"{frames.shape} and {rate}"
        )
    first, *others = [Image.fromarray(frame) for frame in frames]
    duration = max(20, round(100 / rate) * 10)
    first.save(file, "GIF", save_all=True, append_images=others, duration=duration, loop=0, optimize=False)
