"""Pictures in and out: uploads by the reader of data sets, answers as PNG, JPEG or WebP."""

from __future__ import annotations

import base64
import binascii
import io
import struct
from typing import Literal

from PIL import Image

from tokenizer_image.pictures.picture_files import PNG_SIGNATURE, open_picture
from tokenizer_image.preprocessing import Preprocessing, preprocess

OutputFormat = Literal["png", "jpeg", "webp"]
KINDS = ("JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO")  # beside PNG; Pillow has readers that run other programs
DATA_SCHEME = "data:"


def read_picture(content: bytes, name: str, most_pixels: int) -> Image.Image:
    """An uploaded picture: upright, RGB, or RGBA where it has transparency.

    Args:
        name: of the parameter, for messages.
        most_pixels: that it may have; it is refused before any is decoded.

    Raises:
        ValueError: it is none, is damaged, or has too many pixels.
    """
    width, height = _size(content, name)
    if width * height > most_pixels:
        raise ValueError(f"{name} is {width}x{height} pixels: at most {most_pixels:,} in all; reduce it")
    try:
        picture = open_picture(content)
        picture.load()
        sizes = [(height, width), (width, height)]  # upright it has one of them, and keeps its exact pixels
        plain = Image.fromarray(preprocess(picture, Preprocessing(), sizes).transpose(1, 2, 0))
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            alpha = picture.convert("RGBA").getchannel("A")
            plain.putalpha(Image.fromarray(preprocess(alpha, Preprocessing(num_channels=1), sizes)[0]))
        return plain
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(f"{name} cannot be read: it is damaged, or of an unusual kind; save it as PNG") from error


def redraw_mask(picture: Image.Image, name: str) -> Image.Image:
    """What is to be drawn again, white in an "L" picture: where `picture` is fully transparent, as OpenAI has it.

    Raises:
        ValueError: it has no transparency.
    """
    if picture.mode != "RGBA":
        raise ValueError(f"{name} has no transparency: make transparent what is to be drawn again")
    return picture.getchannel("A").point([255, *[0] * 255])


def _size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height as the file's head states them."""
    wrong = ValueError(f"{name} is not a picture: PNG, {', '.join(KINDS[:-1])} are read")
    if content.startswith(PNG_SIGNATURE):  # without its other chunks: the reader copes with damaged ones
        if len(content) < 24:
            raise wrong
        width, height = struct.unpack(">II", content[16:24])
        return width, height
    try:
        with Image.open(io.BytesIO(content), formats=KINDS) as picture:
            return picture.size
    except Exception as error:
        raise wrong from error


def of_data_url(url: str, name: str) -> bytes:
    """The content of a `data:image/png;base64,...` address.

    Raises:
        ValueError: another kind of address, or no base64.
    """
    head, comma, data = url.partition(",")
    if not (head.startswith(DATA_SCHEME) and comma and head.endswith(";base64")):
        raise ValueError(f"{name} must be a data URL with base64 (data:image/png;base64,...): nothing is fetched")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name} is not base64") from error


def encoded(picture: Image.Image, output_format: OutputFormat, compression: int | None) -> str:
    """A picture as base64 of a file.

    Args:
        compression: quality of JPEG or WebP, 0 to 100 (the best, and the default).
    """
    stream = io.BytesIO()
    if output_format == "png":
        picture.save(stream, "PNG", compress_level=1)  # drawn pictures are small: time counts more than bytes
    else:
        quality = 100 if compression is None else compression
        picture.save(stream, output_format.upper(), quality=quality)
    return base64.b64encode(stream.getvalue()).decode()
