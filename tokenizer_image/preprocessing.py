"""Conversion between PIL images and pixel_values, shared by training, evaluation and the pipelines.

`preprocess` and `to_pixel_values` convert an image to a tensor, `postprocess` converts back. The settings are stored
with the tokenizer (`preprocessing` in its config.json). torch is imported inside the functions that need it, so that
decoding processes start without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

RESIZE_MODES = ("crop", "squash")
SIXTEEN_BIT_RANGES = ("full", "data")
OUTPUT_TYPES = ("pil", "np", "pt")
EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
TIFF_BITS, TIFF_MAX_VALUE = 258, 281
DARK = 4096  # a 16-bit picture of smaller values alone comes out nearly black


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of any size and mode becomes uint8 (num_channels, image_size, image_size).

    Args:
        image_size: side of the square, in pixels.
        num_channels: 3 (RGB) or 1 (grey).
        resize: "crop" keeps the aspect ratio: the short side is resized to `image_size`, the long side cropped at its
            centre. "squash" resizes both sides to `image_size` and changes the aspect ratio.
        background: RGB colour, 0..255, behind transparent pixels.
        sixteen_bit: which value of a 16-bit grey picture becomes white, if its file does not say how many bits it uses:
            "full" 65535, "data" the picture's own largest value.

    Raises:
        ValueError: a value that is none of these.
    """

    image_size: int = 32
    num_channels: int = 3
    resize: str = "crop"
    background: tuple[int, int, int] = (255, 255, 255)
    sixteen_bit: str = "full"

    def __post_init__(self) -> None:
        if isinstance(self.image_size, bool) or not isinstance(self.image_size, int) or self.image_size < 1:
            raise ValueError(f"image_size must be a whole number of pixels, got {self.image_size!r}")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels must be 1 (grey) or 3 (RGB), got {self.num_channels!r}")
        if self.resize not in RESIZE_MODES:
            raise ValueError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {self.resize!r}")
        if self.sixteen_bit not in SIXTEEN_BIT_RANGES:
            raise ValueError(f"sixteen_bit must be one of {', '.join(SIXTEEN_BIT_RANGES)}, got {self.sixteen_bit!r}")
        background = tuple(self.background)
        if len(background) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in background):
            raise ValueError(f"background must be three whole numbers 0..255 (RGB), got {self.background!r}")
        object.__setattr__(self, "background", background)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. `sixteen_bit` is there only if it is not the default, as in earlier versions."""
        values = {**dataclasses.asdict(self), "background": list(self.background)}
        if self.sixteen_bit == "full":
            del values["sixteen_bit"]
        return values

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Preprocessing:
        """Inverse of `to_dict`. Raises ValueError for a name that is not a setting."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"unknown preprocessing setting {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**settings)


def preprocessing_of(image_tokenizer: Any) -> Preprocessing:
    """How pictures are prepared for a tokenizer: the settings in its configuration, else the defaults for its size.

    Args:
        image_tokenizer: an `ImageTokenizer`.

    Raises:
        ValueError: a tokenizer of signals (`signals.settings.signal_settings_of`).
    """
    config = image_tokenizer.config
    stored = config.preprocessing
    if stored and "signal" in stored:
        raise ValueError(
            f"this tokenizer has codes of {stored['signal']}, not of pictures: pipelines.TextToSignalPipeline, "
            "scripts/generate.py and scripts/evaluate.py take them"
        )
    if stored:
        return Preprocessing.from_dict(stored)
    return Preprocessing(image_size=config.image_size, num_channels=config.num_channels)


def nearest_size(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) in `sizes` with the aspect ratio nearest to a picture's (log ratio); ties to the first."""
    log_ratio = math.log(width / height)
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - log_ratio))


def preprocess(image: Image.Image, settings: Preprocessing, sizes: Sequence[tuple[int, int]] = ()) -> np.ndarray:
    """PIL image of any mode and size -> uint8 (C, H, W) with H = W = `settings.image_size`.

    With `sizes`, (height, width) each, (H, W) is the one with the aspect ratio nearest to the (upright) picture's.

    - An EXIF orientation is applied; other metadata, colour profiles included, is ignored.
    - Animated files and many-page TIFFs: the first frame.
    - Grey becomes three equal channels; colour becomes luma (ITU-R 601) if `settings.num_channels` is 1.
    - Palette, YCbCr, HSV and CMYK become RGB.
    - Transparency (alpha channel, transparent palette entry or colour) is composited over `settings.background`.
    - 16-bit grey is scaled to 8 bit (65535 -> 255, or the largest value of the bits that the file says it uses: TIFF's
      BitsPerSample and MaxSampleValue, PNG's sBIT; else by `settings.sixteen_bit`). 32-bit integers are read as 16-bit
      and clipped.
      Floating point is read as 0..1, or as 0..255 if any value exceeds 1.
    - Resizing is antialiased (Lanczos). A picture that already has the size keeps its exact pixels.

    The image passed in is not modified.

    Raises:
        OSError (or another Pillow error): a file that cannot be read.
        ValueError: a mode that is not supported (LAB).
        TypeError: not a PIL image.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"preprocess needs a PIL image, got {type(image).__name__}")
    white = _white_value(image, settings)
    image = _upright(_first_frame(image))
    image = _opaque_8bit(image, settings, white)
    image = image.convert("RGB" if settings.num_channels == 3 else "L")
    square = (settings.image_size, settings.image_size)
    image = _resized(image, settings, nearest_size(*image.size, sizes) if sizes else square)
    pixels = np.asarray(image, dtype=np.uint8)  # (H, W) or (H, W, 3)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if pixels.ndim == 3 else pixels[None].copy()


def _first_frame(image: Image.Image) -> Image.Image:
    """Frame 0 of an animated file; the caller's image stays at its current frame."""
    position = image.tell()
    if position == 0:
        return image
    image.seek(0)
    first = image.copy()
    image.seek(position)
    return first


def _upright(image: Image.Image) -> Image.Image:
    """The image rotated by its EXIF orientation; a damaged EXIF block is ignored."""
    try:
        turn = TURNS.get(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged blocks raise nearly anything
        return image
    return image if turn is None else image.transpose(turn)


def _white_value(image: Image.Image, settings: Preprocessing) -> float:
    """The value of a 16-bit picture that becomes white: by the bits that its file says it uses, else by the setting."""
    if not image.mode.startswith("I"):
        return 255.0
    bits = _bits_used(image)
    if bits is not None:
        return float(2**bits - 1)
    return _largest(image) if settings.sixteen_bit == "data" else 65535.0


def _largest(image: Image.Image) -> float:
    """The largest value of a grey picture, at least 1."""
    value = image.getextrema()[1]
    return max(1.0, value) if isinstance(value, (int, float)) else 1.0


def _bits_used(image: Image.Image) -> int | None:
    """How many bits of a 16-bit picture its file says it uses (9 to 15), None where it does not say."""
    bits = image.info.get("significant_bits")
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        values = [tags.get(tag) for tag in (TIFF_BITS, TIFF_MAX_VALUE)]
        whole = [value[0] if isinstance(value, tuple) and value else value for value in values]
        bits = whole[0] if whole[0] != 16 or not isinstance(whole[1], int) else whole[1].bit_length()
    return bits if isinstance(bits, int) and 8 < bits < 16 else None


def is_dark_16_bit(image: Image.Image) -> bool:
    """Whether a 16-bit picture has low values alone, and its file does not say that it uses fewer bits."""
    if not image.mode.startswith("I;16") or _bits_used(image) is not None:
        return False
    return 1 < _largest(image) < DARK


def _opaque_8bit(image: Image.Image, settings: Preprocessing, white: float) -> Image.Image:
    """Any mode -> an 8-bit mode without transparency ("L", "RGB", or one that Pillow converts to them)."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_to_8bit(image, white)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):  # premultiplied alpha, which Pillow converts to RGBA and LA only
            image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
        layer = image.convert("RGBA")
        backdrop = Image.new("RGBA", layer.size, (*settings.background, 255))
        return Image.alpha_composite(backdrop, layer).convert("RGB")
    if image.mode == "LAB":
        raise ValueError("LAB pictures are not supported; save them as RGB")
    return image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr", "HSV") else image


def _deep_to_8bit(image: Image.Image, white: float) -> Image.Image:
    """16-bit, 32-bit integer and floating-point grey -> "L"."""
    values = np.asarray(image).astype(np.float64)  # from either byte order
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0)
        values = values * 255.0 if values.max(initial=0.0) <= 1.0 else values
    else:
        values = values / (white / 255.0)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _resized(image: Image.Image, settings: Preprocessing, target: tuple[int, int]) -> Image.Image:
    """An "L" or "RGB" image -> the same mode, of the (height, width) `target`."""
    (rows, columns), (width, height) = target, image.size
    if (width, height) == (columns, rows):
        return image
    box = (0.0, 0.0, float(width), float(height))
    if settings.resize == "crop":  # crop and resize in one call, which rounds once
        is_tall = width * rows <= height * columns
        crop = (width, width * rows / columns) if is_tall else (height * columns / rows, height)
        left, top = (width - crop[0]) / 2, (height - crop[1]) / 2
        box = (left, top, left + crop[0], top + crop[1])
    return image.resize((columns, rows), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def to_pixel_values(pictures: torch.Tensor | np.ndarray) -> torch.Tensor:
    """uint8 (..., C, H, W), tensor or array -> float32 tensor of that shape in [-1, 1], on the same device.

    0 -> -1 and 255 -> 1 exactly. float16, as signals are kept, keeps its values. Raises TypeError for another dtype.
    """
    import torch

    if isinstance(pictures, np.ndarray):
        # torch cannot share memory that is read-only, such as a memory map's
        pictures = torch.from_numpy(pictures if pictures.flags.writeable else np.array(pictures))
    if pictures.dtype == torch.float16:
        return pictures.to(torch.float32)
    if pictures.dtype != torch.uint8:
        raise TypeError(f"to_pixel_values needs uint8 pictures 0..255, got {pictures.dtype}")
    return pictures.to(torch.float32).div_(127.5).sub_(1.0)


@overload
def postprocess(pixel_values: torch.Tensor, output_type: Literal["pil"] = "pil") -> list[Image.Image]: ...
@overload
def postprocess(pixel_values: torch.Tensor, output_type: Literal["np"]) -> np.ndarray: ...
@overload
def postprocess(pixel_values: torch.Tensor, output_type: Literal["pt"]) -> torch.Tensor: ...
@overload
def postprocess(pixel_values: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor: ...
def postprocess(pixel_values: torch.Tensor, output_type: str = "pil") -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Float (B, C, H, W) in [-1, 1] -> pictures; values outside the range are clipped.

    output_type: "pil" list of B images ("RGB", or "L" for one channel), rounded to 8 bit: the inverse of
    `to_pixel_values`; "np" float32 (B, H, W, C) in [0, 1]; "pt" float32 tensor (B, C, H, W) in [0, 1].
    Raises ValueError for another shape or output type, and for NaN.
    """
    import torch

    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
    if pixel_values.ndim != 4 or pixel_values.shape[1] not in (1, 3):
        shape = tuple(pixel_values.shape)
        raise ValueError(f"pixel_values must be (B, C, H, W) with 1 or 3 channels, got the shape {shape}")
    values = pixel_values.detach().to(torch.float32)
    if torch.isnan(values).any():
        raise ValueError("pixel_values contain NaN; the model that made them has diverged")
    values = ((values + 1.0) / 2.0).clamp(0.0, 1.0)
    if output_type == "pt":
        return values
    array = values.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, C)
    if output_type == "np":
        return array
    pictures = np.rint(array * 255.0).astype(np.uint8)
    return [Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture) for picture in pictures]
