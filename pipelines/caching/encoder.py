"""Pictures to codes: batches of one size each, and one picklable callable for Ray Data, Spark and the like."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lm.data.shards import Document
from pipelines.machine.batches import index_batches, pictures_at_once
from pipelines.machine.devices import choose_device
from pipelines.options.data import parse_image_sizes
from tokenizer_image.layout import ImageTokenizer, example_size
from tokenizer_image.preprocessing import preprocess, preprocessing_of, to_pixel_values

IMAGE_KEYS = ("image", "bytes", "path")


def check_sizes(tokenizer: ImageTokenizer, sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The (height, width) that pictures are encoded at; without `sizes`, the tokenizer's square.

    Raises:
        ValueError: the tokenizer cannot encode one of them; names the nearest that it can.
    """
    config = tokenizer.config
    for height, width in sizes:
        try:
            tokenizer.layout((height, width))
        except ValueError as error:
            if getattr(config, "network", "conv") != "conv":
                raise ValueError(f"--image_sizes {height}x{width}: {error}") from error
            lower, upper = ([_multiple(side, config.downsampling, up) for side in (height, width)] for up in (0, 1))
            near = dict.fromkeys(
                f"{rows}x{columns}" for rows in (lower[0], upper[0]) for columns in (lower[1], upper[1])
            )
            raise ValueError(
                f"--image_sizes {height}x{width}: the image tokenizer's downsampling, {config.downsampling}, does not "
                f"divide it; the nearest that work are {', '.join(near)}"
            ) from error
    return tuple(sizes) or (example_size(config),)


def _multiple(side: int, step: int, up: int) -> int:
    return max(1, side // step + (up if side % step else 0)) * step


@torch.inference_mode()
def encode_pictures(
    tokenizer: ImageTokenizer,
    which: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
    sizes: Sequence[tuple[int, int]],
    device: str | torch.device,
) -> list[np.ndarray]:
    """Codes (T,) of each of n pictures, T by its size.

    Args:
        which: (n,), each picture's size by its number in `sizes`.
        read: places 0 .. n - 1 of pictures of one size -> uint8 (b, C, H, W).
    """
    codes: list[np.ndarray] = [np.zeros(0, np.int64)] * len(which)
    for number in np.unique(which):
        places = np.flatnonzero(which == number)
        for batch in index_batches(len(places), pictures_at_once(*sizes[number])):
            part = places[batch.start : batch.stop]
            encoded = tokenizer.encode(to_pixel_values(read(part)).to(device)).cpu().numpy()
            for place, row in zip(part.tolist(), encoded, strict=True):
                codes[place] = row
    return codes


class PictureEncoder:
    """Batches of pictures to batches of codes, for frameworks that map a callable over workers.

    Small to pickle: the tokenizer is loaded where the first batch arrives.

    Args:
        image_tokenizer: a folder that every worker can read.
        image_sizes: as `--image_sizes` ("24x40"); none: the tokenizer's square.
        column: of the batch, with the pictures: PIL images, arrays (H, W, C) uint8, encoded bytes, paths, or a mapping
            with `bytes` or `path`.
        device: default: a GPU if there is one.
    """

    def __init__(
        self,
        image_tokenizer: str,
        *,
        image_sizes: Sequence[str] = (),
        column: str = "image",
        device: str | None = None,
    ) -> None:
        self.image_tokenizer, self.column, self.device = str(image_tokenizer), column, device
        self.image_sizes = parse_image_sizes(image_sizes)
        self._tokenizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None}

    @property
    def tokenizer(self) -> Any:
        """The image tokenizer, loaded at first use."""
        if self._tokenizer is None:
            from tokenizer_image.registry import load_tokenizer

            self._device = choose_device(self.device)
            self._tokenizer = load_tokenizer(self.image_tokenizer).to(self._device)
            self._sizes = check_sizes(self._tokenizer, self.image_sizes)
            self._settings = preprocessing_of(self._tokenizer)
        return self._tokenizer

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Columns of n pictures -> the other columns as they are, and these, lists of n:

        - `codes`: list of integers, [] for a picture that cannot be read;
        - `height`, `width`: that the picture was encoded at, 0 for one that cannot be read;
        - `error`: why it cannot be read, "" for one that can.
        """
        if self.column not in batch:
            raise ValueError(f"the batch has no column {self.column!r}; it has: {', '.join(batch)}. Give column=")
        tokenizer = self.tokenizer
        errors: list[str] = []
        pictures: list[np.ndarray | None] = []
        for value in batch[self.column]:
            try:
                pictures.append(preprocess(open_picture(value), self._settings, self._sizes))
                errors.append("")
            except Exception as error:  # decoders of damaged files raise nearly anything
                pictures.append(None)
                errors.append(f"{type(error).__name__}: {error}")
        readable = [picture for picture in pictures if picture is not None]
        which = np.asarray([self._sizes.index((picture.shape[1], picture.shape[2])) for picture in readable], np.int64)
        codes = iter(
            encode_pictures(
                tokenizer,
                which,
                lambda places: np.stack([readable[place] for place in places]),
                self._sizes,
                self._device,
            )
        )
        shapes = [(0, 0) if picture is None else picture.shape[1:] for picture in pictures]
        return {
            **{name: values for name, values in batch.items() if name != self.column},
            "codes": [[] if picture is None else next(codes).tolist() for picture in pictures],
            "height": [int(shape[0]) for shape in shapes],
            "width": [int(shape[1]) for shape in shapes],
            "error": errors,
        }


def open_picture(value: Any) -> Image.Image:
    """A picture in any of the forms that tables hold it in -> PIL image."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in IMAGE_KEYS if value.get(key) is not None), None)
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, np.ndarray):
        return Image.fromarray(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Image.open(io.BytesIO(value))
    if isinstance(value, (str, Path)):
        return Image.open(value)
    raise ValueError(f"no picture: {type(value).__name__}")


def encoded_documents(rows: Iterable[Mapping[str, Any]], caption_column: str = "caption") -> list[Document]:
    """Rows that `PictureEncoder` made -> captioned pictures for `write_shard`; unreadable ones are left out."""
    documents = []
    for row in rows:
        if row["error"]:
            continue
        texts = row.get(caption_column)
        texts = [] if texts is None else [texts] if isinstance(texts, str) else [str(text) for text in texts]
        size = int(row["height"]), int(row["width"])
        documents.append(Document(np.asarray(row["codes"], np.int64), [size], texts))
    return documents
