"""What all pipelines share: an image tokenizer, a language model and their vocabulary, loaded from a model folder."""

from __future__ import annotations

import hashlib
import numbers
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

from lm.vocabulary import MultimodalVocabulary, Size
from pipelines.model_card import model_card
from pipelines.model_folder import INDEX_FILE, local_folder, read_index, write_index
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.preprocessing import nearest_size, preprocess, preprocessing_of, to_pixel_values

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLASS_NAME = "TextToImagePipeline"  # in the index of every model folder, whatever it was trained for
Pipeline = TypeVar("Pipeline", bound="MultimodalPipeline")


class MultimodalPipeline:
    """The parts of a model: `image_tokenizer`, `model` and `vocabulary`.

    `max_batch_rows` (128) bounds the rows that the language model reads at once.
    """

    # What a sub-class does, and the call that does it, for whoever calls the class itself.
    does, example = "work", "pipe(...)"

    def __init__(
        self,
        image_tokenizer: ImageTokenizer,
        model: Any = None,
        vocabulary: MultimodalVocabulary | None = None,
    ) -> None:
        name = type(self).__name__
        if model is None or vocabulary is None:
            raise TypeError(
                f"{name}({shown(image_tokenizer)}) does not {self.does}: load a model, then call it:\n"
                f'    pipe = {name}.from_pretrained("runs/model")\n'
                f"    {self.example}\n"
                f"From parts it takes three: {name}(image_tokenizer, model, vocabulary)"
            )
        from lm.model import check_vocabulary

        check_vocabulary(model.config, vocabulary)
        if not accepts_fingerprint(image_tokenizer, vocabulary.image_tokenizer_fingerprint):
            raise ValueError(
                "the language model belongs to the image tokenizer with fingerprint "
                f"{vocabulary.image_tokenizer_fingerprint}, this one has {image_tokenizer.fingerprint}: use that "
                "tokenizer, or train the language model on this one's codes"
            )
        self.image_tokenizer = image_tokenizer
        self.model = model
        self.vocabulary = vocabulary
        self.max_batch_rows = 128
        self._progress_bar: dict[str, Any] = {"disable": None}  # None: shown on a terminal

    @classmethod
    def from_pretrained(
        cls: type[Pipeline],
        folder: str | Path,
        *,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Pipeline:
        """Load a model folder, or a model from the Hub by its name ("owner/name").

        Args:
            dtype: of the language model: "float32", "bfloat16" or "float16", or torch's. The image
                tokenizer is small and stays in float32.
            device: "cpu" (default), "cuda", ...
            revision, token: of the Hub.

        Raises:
            ValueError: not a model folder, one written by a newer version, or halves that do not match.
        """
        from lm.model import load_model
        from tokenizer_image.vqvae import VQVAE

        dtype = _dtype(dtype)
        path = local_folder(folder, revision, token)
        index = read_index(path, CLASS_NAME, parts=("image_tokenizer", "lm"))
        image_tokenizer = VQVAE.from_pretrained(path / "image_tokenizer", use_safetensors=True)
        vocabulary = MultimodalVocabulary.from_pretrained(path / "lm")
        if index.get("image_tokenizer_fingerprint") != vocabulary.image_tokenizer_fingerprint:
            raise ValueError(
                f"{path}: {INDEX_FILE} and lm/vocabulary.json name different image tokenizers "
                f"({index.get('image_tokenizer_fingerprint')}, {vocabulary.image_tokenizer_fingerprint}): "
                "the folder mixes the parts of two models"
            )
        pipe = cls(image_tokenizer, load_model(str(path / "lm"), dtype=dtype), vocabulary)
        return pipe if device is None else pipe.to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder: model_index.json, image_tokenizer/, lm/. Weights are safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.image_tokenizer.save_pretrained(str(folder / "image_tokenizer"))
        self.model.save_pretrained(folder / "lm")
        self.vocabulary.save_pretrained(folder / "lm")
        # Last: a folder with an index is whole. Index and vocabulary have the same fingerprint, a legacy one, too.
        write_index(folder, CLASS_NAME, self.vocabulary.image_tokenizer_fingerprint)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str = "unknown",
        figures: dict[str, Any] | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a text-to-image model",
    ) -> str:
        """Upload the model folder with a model card and return its address.

        Args:
            repo_id: "owner/name".
            license: of the weights, as the Hub spells it ("apache-2.0", "cc-by-4.0", ...).
            figures: for the card, for example the report of `scripts/evaluate.py`; it may be nested.
            private, token, commit_message: as in huggingface_hub.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            card = model_card(self.model, self.vocabulary, repo_id, license=license, figures=figures)
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=commit_message)
        return f"https://huggingface.co/{name}"

    def encode_images(self, image: Any, size: Size | None = None) -> torch.Tensor:
        """A PIL image, or a list of them, of any size and mode, to codes (B, T) int64 on the model's device.

        Args:
            size: (height, width) that they are resized and cropped to (default: the model's default size).

        Raises:
            TypeError, ValueError: no picture, something else, or a picture that cannot be read (with its number).
        """
        settings = preprocessing_of(self.image_tokenizer)
        default = (self.vocabulary.image_size[0], self.vocabulary.image_size[1])
        pixels: list[np.ndarray] = []
        for index, one in enumerate(listed_images(image)):
            with _named(index):
                pixels.append(preprocess(one, settings, [size or default]))
        batches = torch.from_numpy(np.stack(pixels)).split(self.max_batch_rows)
        with torch.no_grad():
            codes = [self.image_tokenizer.encode(to_pixel_values(batch).to(self.device)) for batch in batches]
        return torch.cat(codes)

    def sizes_of(self, image: Any) -> list[Size]:
        """For each picture, which of the model's sizes has the shape nearest to its own.

        Raises:
            TypeError, ValueError: as `encode_images`.
        """
        sizes, found = list(self.vocabulary.layouts), []
        for index, one in enumerate(listed_images(image)):
            with _named(index):
                upright = one if len(sizes) == 1 else ImageOps.exif_transpose(one)
            found.append(nearest_size(*upright.size, sizes))
        return found

    @torch.no_grad()
    def decode_codes(self, codes: torch.Tensor, size: Size | None = None) -> torch.Tensor:
        """Codes (B, T) of pictures of a size (default: the default one) to pixel_values (B, C, H, W), so many at a time
        that memory stays bounded; of a row with places that are not drawn (-1), what is before the first of them."""
        height, width = size or self.vocabulary.image_size
        drawn = (codes >= 0).long().cumprod(-1).sum(-1)
        counts, runs = drawn.unique_consecutive(return_counts=True)
        parts: list[torch.Tensor] = []
        for count, rows in zip(counts.tolist(), codes.split(runs.tolist()), strict=True):
            parts += [
                self.image_tokenizer.decode(own, (height, width)) for own in rows[:, :count].split(self.max_batch_rows)
            ]
        return torch.cat(parts)

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model; the image tokenizer is always in float32."""
        return self.model.dtype

    def to(
        self: Pipeline, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | None = None
    ) -> Pipeline:
        """Move to a device, or the language model to a dtype: `to("cuda")`, `to("cuda", torch.bfloat16)`."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None:
            self.model.to(dtype)
        if device is not None:
            self.model.to(device)
            self.image_tokenizer.to(device)  # type: ignore[attr-defined]
        return self

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Settings of the tqdm bar, `disable=True` above all. By default it shows on a terminal only."""
        self._progress_bar = settings


@contextmanager
def _named(index: int) -> Iterator[None]:
    """Inside, what goes wrong in reading a picture is told with its number: Pillow reads a file when it is needed."""
    try:
        yield
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image {index} cannot be read: {error}") from error


def random_stream(*keys: Any) -> torch.Generator:
    """The random stream that belongs to these keys: (seed, number of the sample), say."""
    digest = hashlib.sha256("/".join(map(str, keys)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def equal_streams(seed: int | Sequence[int] | None, count: int, each: int = 1) -> list[torch.Generator]:
    """`each` random streams for each of `count`, keyed (seed, number) and so alike for all under one seed; without a
    seed, others at each call (`torch.manual_seed` repeats them). A list has a seed for each of `count`."""
    if seed is None:
        return [torch.Generator().manual_seed(int(one)) for one in torch.randint(2**62, (count * each,))]
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * count
    return [random_stream(whole_number(one, "seed", 0), number) for one in seeds for number in range(each)]


def whole_number(value: Any, name: str, least: int) -> int:
    """`value`, which must be a whole number of at least `least`; TypeError or ValueError, naming it, if not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def listed_images(image: Any) -> list[Image.Image]:
    """An image argument as a list.

    Raises:
        TypeError, ValueError: nothing, or something that is no PIL image.
    """
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise ValueError("image is an empty list: give at least one picture")
    for index, one in enumerate(images):
        if not isinstance(one, Image.Image):
            raise TypeError(f"image {index} must be a PIL image, got {shown(one)}: open files with PIL.Image.open")
    return images


def shown(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}...{text[-1]}"


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]
