"""JPEG, WebP and AVIF at so many bits a picture, without their headers.

What is no header is measured as follows.

- JPEG: the bytes of the entropy-coded scan. All other segments are left out, the standard tables among them.
- WebP and AVIF: the bytes beyond those of a grey picture of the same size, encoded at the same setting. A file of a
  grey picture is a header and the few bits that say that all is grey, which are given to the codec.

Pictures may also be encoded at a half or a quarter of their size, and enlarged again. Which setting a picture was
encoded at costs nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor
from tqdm import tqdm

from pipelines.evaluation.report.sheets import to_images
from tokenizer_image.metrics import mse

LEAST_SIDE = 8  # pixels of a reduced picture
QUALITIES = {
    "JPEG": (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, 60, 70, 80, 90),
    "WebP": (0, 2, 4, 7, 10, 14, 18, 23, 28, 35, 45, 55, 65, 75, 85, 95),
    "AVIF": (0, 5, 10, 15, 20, 26, 32, 40, 50, 60, 70, 80, 90),
}
# What Pillow calls each codec among its features, and what it is told beside the quality.
FEATURES = {"JPEG": "jpg", "WebP": "webp", "AVIF": "avif"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": False},
    "WebP": {"method": 6},
    "AVIF": {"speed": 6, "max_threads": 1},
}
SUBSAMPLINGS = {"JPEG": ("4:2:0", "4:4:4"), "WebP": ("",), "AVIF": ("4:2:0", "4:4:4")}
GREY_SUBSAMPLINGS = {"JPEG": ("",), "WebP": ("",), "AVIF": ("4:0:0",)}


@dataclass(frozen=True)
class CodecSetting:
    """How pictures are encoded.

    Attributes:
        codec: "JPEG", "WebP" or "AVIF".
        quality: of the codec's own scale.
        subsampling: of the colours; "" where the codec has no choice.
        shrink: the sides are divided by it first.
    """

    codec: str
    quality: int
    subsampling: str = ""
    shrink: int = 1

    def encode(self, image: Image.Image) -> bytes:
        """A picture, "RGB" or "L", as a file."""
        if self.shrink > 1:
            side = image.width // self.shrink, image.height // self.shrink
            image = image.resize(side, Image.Resampling.LANCZOS)
        if image.mode == "L" and self.codec != "JPEG":
            image = image.convert("RGB")
        arguments = ARGUMENTS[self.codec] | ({"subsampling": self.subsampling} if self.subsampling else {})
        buffer = io.BytesIO()
        image.save(buffer, self.codec, quality=self.quality, **arguments)
        return buffer.getvalue()

    def decode(self, file: bytes, size: tuple[int, int], mode: str) -> Image.Image:
        """The picture in a file, enlarged to (width, height) `size`."""
        image = Image.open(io.BytesIO(file)).convert(mode)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    def bits(self, file: bytes, size: tuple[int, int], mode: str) -> int:
        """Bits of a file of a picture of this (width, height) and mode, without its header."""
        if self.codec == "JPEG":
            return 8 * jpeg_scan_bytes(file)
        return 8 * max(0, len(file) - grey_bytes(self, size, mode))


@lru_cache(maxsize=4096)
def grey_bytes(setting: CodecSetting, size: tuple[int, int], mode: str) -> int:
    """Bytes of a file of a picture that is grey throughout."""
    return len(setting.encode(Image.new(mode, size, (128,) * len(mode) if len(mode) > 1 else 128)))


def jpeg_scan_bytes(file: bytes) -> int:
    """Bytes of the entropy-coded data of a JPEG file, over its scans (ITU-T T.81, annex B).

    Raises:
        ValueError: it is no whole JPEG file.
    """
    place, total = 2, 0
    while file[:2] == b"\xff\xd8" and place + 4 <= len(file) and file[place] == 0xFF:
        marker = file[place + 1]
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
        if marker == 0xDA:  # start of scan: its data end at the next marker but stuffed zeros and restarts
            start = place
            while place + 1 < len(file) and not (
                file[place] == 0xFF and file[place + 1] != 0 and not 0xD0 <= file[place + 1] <= 0xD7
            ):
                place += 1
            total += place - start
        if file[place : place + 2] == b"\xff\xd9":
            return total
    raise ValueError(f"{len(file)} bytes that begin with {file[:4]!r} are no whole JPEG file")


def available_codecs() -> list[str]:
    """The codecs that this Pillow has."""
    return [name for name, feature in FEATURES.items() if features.check(feature)]


def codec_settings(codec: str, side: int, grey: bool) -> list[CodecSetting]:
    """All settings of a codec for pictures whose shorter side has so many pixels."""
    shrinks = [shrink for shrink in (1, 2, 4) if side % shrink == 0 and side // shrink >= LEAST_SIDE] or [1]
    subsamplings = (GREY_SUBSAMPLINGS if grey else SUBSAMPLINGS)[codec]
    return [
        CodecSetting(codec, quality, subsampling, shrink)
        for shrink in shrinks
        for subsampling in subsamplings
        for quality in QUALITIES[codec]
    ]


class EncodedPictures:
    """Pictures, each encoded at every setting of a codec.

    Args:
        codec: one of `available_codecs()`.
        pictures: uint8 (n, C, H, W).
        settings: to use instead of all.

    Attributes:
        bits: (settings, n) int64, without headers.
        errors: (settings, n) float64, mean squared errors on [0, 1].

    Raises:
        ValueError: Pillow was built without this codec.
    """

    def __init__(
        self, codec: str, pictures: Tensor, settings: Sequence[CodecSetting] = (), progress: bool = True
    ) -> None:
        if codec not in available_codecs():
            raise ValueError(f"this Pillow has no {codec}; it has: {', '.join(available_codecs())}")
        grey = pictures.shape[1] == 1
        self.codec, self.pictures = codec, pictures
        self.settings = list(settings) or codec_settings(codec, min(pictures.shape[-2:]), grey)
        self.bits = np.zeros((len(self.settings), len(pictures)), np.int64)
        self.errors = np.zeros(self.bits.shape)
        originals = pictures.float() / 255
        bar = tqdm(self.settings, codec, unit=" settings", disable=not progress, leave=False)
        for number, setting in enumerate(bar):
            decoded, self.bits[number] = self._encode([setting] * len(pictures), to_images(pictures))
            self.errors[number] = mse(decoded.float() / 255, originals).double().numpy()

    @staticmethod
    def _encode(settings: Iterable[CodecSetting], images: Sequence[Image.Image]) -> tuple[Tensor, np.ndarray]:
        """Images, each at its setting, encoded and decoded: uint8 (n, C, H, W), and bits (n,)."""
        decoded, bits = [], []
        for setting, image in zip(settings, images, strict=True):
            file = setting.encode(image)
            bits.append(setting.bits(file, image.size, image.mode))
            array = np.asarray(setting.decode(file, image.size, image.mode))
            decoded.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        return torch.from_numpy(np.stack(decoded)), np.array(bits, np.int64)

    @property
    def least_bits(self) -> int:
        """The rate at which every picture can be encoded."""
        return int(self.bits.min(axis=0).max())

    def within(self, bits: float) -> np.ndarray:
        """The setting with the least error of those at which a picture takes at most so many bits: (n,) int64.

        Raises:
            ValueError: a picture takes more at every setting.
        """
        if bits < self.least_bits:
            raise ValueError(f"{bits:.0f} bits a picture are too few for {self.codec}: one needs {self.least_bits}")
        return np.where(self.bits <= bits, self.errors, np.inf).argmin(axis=0)

    def on_average(self, bits: float) -> np.ndarray:
        """The settings with which the pictures take at most so many bits on average: (n,) int64.

        They have the least error + price * bits, at the lowest price that keeps to the bits (Shoham and Gersho 1988).

        Raises:
            ValueError: they take more at any settings.
        """
        rows = np.arange(self.bits.shape[1])
        cheapest = self.bits.argmin(axis=0)
        if (least := self.mean_bits(cheapest)) > bits:
            raise ValueError(f"{bits:.0f} bits are too few for {self.codec}: the mean is at least {least:.0f}")
        low, high, best = -60.0, 0.0, cheapest
        for _ in range(60):
            price = 2 ** ((low + high) / 2)
            chosen = (self.errors + price * self.bits).argmin(axis=0)
            if self.bits[chosen, rows].mean() <= bits:
                high, best = (low + high) / 2, chosen
            else:
                low = (low + high) / 2
        return best

    def mean_bits(self, chosen: np.ndarray) -> float:
        """Of the pictures at the chosen settings (n,)."""
        return float(self.bits[chosen, np.arange(len(chosen))].mean())

    def decoded(self, chosen: np.ndarray, batch_size: int = 100) -> Iterator[Tensor]:
        """The pictures at the chosen settings (n,), encoded and decoded again: batches uint8 (b, C, H, W)."""
        for start in range(0, len(chosen), batch_size):
            part = slice(start, start + batch_size)
            settings = [self.settings[one] for one in chosen[part]]
            yield self._encode(settings, to_images(self.pictures[part]))[0]
