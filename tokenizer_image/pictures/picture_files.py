"""Picture files: which endings are read, and how a file is opened whatever metadata it carries."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, JpegImagePlugin

from tokenizer_image.pictures.reading_notes import ending

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".tga", ".qoi",
)  # fmt: skip
PLUGINS = {  # endings that Pillow reads with a package of its own: (module, name to install)
    **dict.fromkeys((".heic", ".heif", ".hif"), ("pillow_heif", "pillow-heif")),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}
OTHER_PICTURES = (
    ".svg",
    ".psd",
    ".raw",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".eps",
    ".ico",
    ".exr",
    ".hdr",
)

MAX_REDUCED_PIXELS = 1 << 30  # of a JPEG that is read at an eighth of its size
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks that determine a PNG's pixels and its orientation.
PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")


def is_picture(file: str) -> bool:
    """Whether a file's ending is that of a picture that this installation reads."""
    suffix = ending(file)
    return suffix in PICTURE_SUFFIXES or (suffix in PLUGINS and _is_installed(PLUGINS[suffix][0]))


@functools.cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def why_not_read(file: str) -> str | None:
    """Why a picture of a kind that is not read is left out; None: it is no picture, by its ending."""
    suffix = ending(file)
    if suffix in PLUGINS:
        return f"needs a package: pip install {PLUGINS[suffix][1]}"
    return "a kind of picture that is not read; convert it to PNG or JPEG" if suffix in OTHER_PICTURES else None


def open_picture(file: Path | bytes, name: str = "") -> Image.Image:
    """Open a picture file, given by its path, or by its content and a `name` with its ending.

    A PNG whose metadata (texts, profiles) cannot be read is opened without it. A JPEG beyond Pillow's limit of pixels
    is opened at a reduced scale.
    Raises what Pillow raises for a file that cannot be read, and ValueError for one with too many pixels.
    """
    plugin = PLUGINS.get(ending(name or os.fspath(file) if isinstance(file, Path) else name))
    if plugin is not None:
        _register(plugin[0])
    if isinstance(file, Path) and not os.path.isfile(file):  # a pipe or device would wait for ever
        raise FileNotFoundError(f"no such file: {file}")
    try:
        image = _open(file)
        if image.format == "PNG":
            _note_significant_bits(image, file)
            image.load()  # reads the texts behind the pixels, too
        return image
    except Image.DecompressionBombError as error:
        return _open_large(file, error)
    except Exception:
        content = file.read_bytes() if isinstance(file, Path) else file
        if not content.startswith(PNG_SIGNATURE):
            raise
        image = _open(b"".join([PNG_SIGNATURE, *_pixel_chunks(content)]))
        _note_significant_bits(image, content)
        return image


def allow_pixels(limit: int | None) -> None:
    """Let this process open pictures of up to `limit` pixels, if that is more than Pillow's limit."""
    if limit is not None and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, (limit + 1) // 2)  # twice as many are refused


def _open(file: Path | bytes) -> Image.Image:
    return Image.open(file if isinstance(file, Path) else io.BytesIO(file))


def _register(module: str) -> None:
    plugin = importlib.import_module(module)  # pillow_jxl registers itself
    register = getattr(plugin, "register_heif_opener", None)
    if register is not None:
        register()


def _note_significant_bits(image: Image.Image, file: Path | bytes) -> None:
    """Keep the number of bits in the sBIT chunk of a 16-bit PNG, which Pillow ignores, for `preprocess`."""
    if not image.mode.startswith("I"):
        return
    if isinstance(file, Path):
        with open(file, "rb") as stream:
            head = stream.read(4096)
    else:
        head = file[:4096]
    place = head.find(b"sBIT")
    if 0 <= place < head.find(b"IDAT") and head[place - 4 : place] == b"\0\0\0\1":
        image.info["significant_bits"] = head[place + 4]


def _pixel_chunks(content: bytes) -> Iterator[bytes]:
    """The chunks of a PNG that determine its pixels, unchanged."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        if kind in PNG_PIXEL_CHUNKS:
            yield content[place : place + 12 + length]
        place += 12 + length


def _open_large(file: Path | bytes, error: Image.DecompressionBombError) -> Image.Image:
    """A JPEG of more pixels than Pillow's limit, to be read at a reduced scale (`Image.draft`)."""
    remedy = f"{str(error).split(',')[0].rstrip('.')}; reduce it, or raise --max_image_pixels"
    stream: BinaryIO = open(file, "rb") if isinstance(file, Path) else io.BytesIO(file)  # noqa: SIM115
    try:
        image = JpegImagePlugin.JpegImageFile(stream)
    except SyntaxError:
        stream.close()
        raise ValueError(remedy) from error
    # The coefficients of a progressive JPEG are all kept in memory, whatever the scale.
    if image.width * image.height > MAX_REDUCED_PIXELS or image.info.get("progressive"):
        stream.close()
        raise ValueError(remedy)
    image.info["full_size"] = image.size
    image.draft(None, (image.width // 8, image.height // 8))
    return image
