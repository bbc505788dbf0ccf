"""What all pipelines share: an image tokenizer, a language model and their vocabulary, loaded from a model folder."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from lm.generation.guess_table import FILE_NAME as TABLE_FILE
from lm.generation.guess_table import GuessTable
from lm.generation.progress import Callback
from lm.vocabulary import MultimodalVocabulary, Size
from pipelines.drawing.arguments import each_image, shown
from pipelines.model_card import model_card, task_of
from pipelines.model_folder import CARD_FILE, INDEX_FILE, local_folder, read_index, write_index
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.preprocessing import preprocess, preprocessing_of, to_pixel_values
from tokenizer_image.signals.settings import signal_settings_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLASS_NAME = "TextToImagePipeline"  # in the index of every model folder of pictures, whatever the model learned
Pipeline = TypeVar("Pipeline", bound="MultimodalPipeline")


class MultimodalPipeline:
    """The parts of a model: `image_tokenizer`, `model` and `vocabulary`, and where it has one, a `guess_table`, with
    which drawing several codes a call takes fewer calls.

    `max_batch_rows` (128) bounds the rows that the language model reads at once; `folder` is where the model was loaded
    from, None if it was not.
    """

    # For the error message of a call of the class itself: what a pipeline does, and how to call one.
    action, example = "work", "pipe(...)"
    class_name = CLASS_NAME
    draws_signals = False

    def __init__(
        self,
        image_tokenizer: ImageTokenizer,
        model: Any = None,
        vocabulary: MultimodalVocabulary | None = None,
        guess_table: GuessTable | None = None,
    ) -> None:
        name = type(self).__name__
        if model is None or vocabulary is None:
            raise TypeError(
                f"{name}({shown(image_tokenizer)}) does not {self.action}: load a model, then call it:\n"
                f'    pipe = {name}.from_pretrained("runs/model")\n'
                f"    {self.example}\n"
                f"From parts it takes three: {name}(image_tokenizer, model, vocabulary)"
            )
        from lm.model import check_vocabulary

        self._check_kind(image_tokenizer)
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
        self.guess_table = guess_table
        self.max_batch_rows = 128
        self.folder: Path | None = None
        self._progress_bar: dict[str, Any] = {"disable": None}  # None: shown on a terminal

    def _check_kind(self, image_tokenizer: ImageTokenizer) -> None:
        """Raise ValueError unless the tokenizer's codes are what the pipeline is for, pictures or signals."""
        settings = signal_settings_of(image_tokenizer)
        if (settings is not None) != self.draws_signals:
            codes = "pictures" if settings is None else settings.signal
            remedy = "TextToImagePipeline" if settings is None else "TextToSignalPipeline"
            raise ValueError(f"{type(self).__name__} is not for codes of {codes}: use pipelines.{remedy}")

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
        """Load a model folder, the model that comes with Tessera ("sprites", unless a folder here has that name), or a
        model from the Hub by its name ("owner/name").

        Args:
            dtype: of the language model: "float32", "bfloat16" or "float16", or torch's. The image
                tokenizer is small and stays in float32.
            device: "cpu" (default), "cuda", ...
            revision, token: of the Hub.

        Raises:
            ValueError: not a model folder, one written by a newer version, or parts that do not match.
        """
        from lm.model import load_model
        from tokenizer_image.registry import load_tokenizer

        dtype = _dtype(dtype)
        path = local_folder(folder, revision, token)
        index = read_index(path, cls.class_name, parts=("image_tokenizer", "lm"))
        image_tokenizer = load_tokenizer(path / "image_tokenizer")
        vocabulary = MultimodalVocabulary.from_pretrained(path / "lm")
        if index.get("image_tokenizer_fingerprint") != vocabulary.image_tokenizer_fingerprint:
            raise ValueError(
                f"{path}: {INDEX_FILE} and lm/vocabulary.json name different image tokenizers "
                f"({index.get('image_tokenizer_fingerprint')}, {vocabulary.image_tokenizer_fingerprint}): "
                "the folder mixes the parts of two models"
            )
        table = GuessTable.load(path / "lm", vocabulary)
        pipe = cls(image_tokenizer, load_model(str(path / "lm"), dtype=dtype), vocabulary, table)
        pipe.folder = path
        return pipe if device is None else pipe.to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder: model_index.json, image_tokenizer/, lm/. Weights are safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.image_tokenizer.save_pretrained(str(folder / "image_tokenizer"))
        self.model.save_pretrained(folder / "lm")
        self.vocabulary.save_pretrained(folder / "lm")
        (folder / "lm" / TABLE_FILE).unlink(missing_ok=True)  # of a model that was here before
        if self.guess_table is not None:
            self.guess_table.save(folder / "lm")
        # Last: a folder with an index is whole. Index and vocabulary have the same fingerprint, a legacy one, too.
        write_index(folder, self.class_name, self.vocabulary.image_tokenizer_fingerprint)

    def rounded(self: Pipeline, dtype: torch.dtype | str) -> Pipeline:
        """A copy whose weights, also the image tokenizer's, have another dtype: for `save_pretrained`, whose files have
        half the size in "bfloat16" and "float16". What is loaded from them computes in float32, as ever.

        Rounded weights may give a picture other codes, so the image tokenizer has a fingerprint of its own, which the
        copy's language model knows it by. An image tokenizer that is no module stays as it is.
        """
        dtype, tokenizer = _dtype(dtype), self.image_tokenizer
        if isinstance(tokenizer, torch.nn.Module):
            tokenizer = copy.deepcopy(tokenizer).to(dtype)
        vocabulary = copy.copy(self.vocabulary)
        vocabulary.image_tokenizer_fingerprint = tokenizer.fingerprint
        table = self.guess_table and replace(self.guess_table, fingerprint=tokenizer.fingerprint)
        pipe = type(self)(tokenizer, copy.deepcopy(self.model).to(dtype), vocabulary, table)
        pipe.folder = self.folder
        return pipe

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str = "unknown",
        figures: dict[str, Any] | None = None,
        prompts: Sequence[str] | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the model folder with a model card, and with what diffusers and transformers load it by
        (`pipelines.hub_files`); return its address.

        Args:
            repo_id: "owner/name".
            license: of the weights, as the Hub spells it ("apache-2.0", "cc-by-4.0", ...).
            figures: for the card, for example the report of `scripts/evaluate.py`; it may be nested.
            prompts: for the card, which the Hub's widget offers to try (default: those of the folder that the model was
                loaded from: of its card, or captions of its token cache).
            private, token, commit_message: as in huggingface_hub (default message: what kind of model is uploaded).
        """
        from huggingface_hub import HfApi

        from pipelines.example_prompts import example_prompts
        from pipelines.hub_files import write_hub_files

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            has_files = write_hub_files(Path(folder), self.image_tokenizer, self.model, self.vocabulary)
            if prompts is None:
                prompts = example_prompts(self.folder)
            signals = signal_settings_of(self.image_tokenizer)
            card = model_card(
                self.model, self.vocabulary, repo_id, license=license, figures=figures, has_hub_files=has_files,
                prompts=prompts, signals=signals,
            )  # fmt: skip
            (Path(folder) / CARD_FILE).write_text(card, encoding="utf-8")
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            message = commit_message or f"Upload a {task_of(signals)} model"
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
        return f"https://huggingface.co/{name}"

    def prepare_images(
        self, image: Image.Image | Iterable[Image.Image], sizes: list[Size] | None = None
    ) -> list[np.ndarray]:
        """PIL images of any size and mode as the image tokenizer takes them: uint8 (C, H, W) each.

        Of an iterator, one image at a time is taken and dropped, so that large files need not all be in memory.

        Args:
            sizes: (height, width) each; an image is resized and cropped to the one whose shape is nearest to its own.
                Default: all sizes of the model.

        Raises:
            TypeError, ValueError: no image, something else, or an image that cannot be read (with its number).
        """
        settings, pixels = preprocessing_of(self.image_tokenizer), []
        sizes = sizes or list(self.vocabulary.layouts)
        for picture in each_image(image):
            try:  # Pillow reads a file when its pixels are needed
                pixels.append(preprocess(picture, settings, sizes))
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"image {len(pixels)} cannot be read: {error}") from error
            del picture  # before the next one is read
        return pixels

    def encode_images(self, image: Image.Image | Iterable[Image.Image], size: Size | None = None) -> torch.Tensor:
        """PIL images of any size and mode to codes (B, T) int64 on the model's device.

        Args:
            size: (height, width) that they are resized and cropped to (default: the model's default size).

        Raises:
            TypeError, ValueError: as `prepare_images`.
        """
        default = (self.vocabulary.image_size[0], self.vocabulary.image_size[1])
        return self.encode_pixels(self.prepare_images(image, [size or default]))

    @torch.no_grad()
    def encode_pixels(self, pixels: list[np.ndarray]) -> torch.Tensor:
        """Images of one size, uint8 (C, H, W) each, to codes (B, T) int64 on the model's device."""
        batches = torch.from_numpy(np.stack(pixels)).split(self.max_batch_rows)
        return torch.cat([self.image_tokenizer.encode(to_pixel_values(batch).to(self.device)) for batch in batches])

    @torch.no_grad()
    def decode_codes(self, codes: torch.Tensor, size: Size | None = None) -> torch.Tensor:
        """Codes (B, T) of pictures of a size (default: the default one) to pixel_values (B, C, H, W) in [-1, 1];
        codes of sounds and series to (B, C, time), of videos to columns of frames (B, 3, frames * side, side).

        At most `max_batch_rows` are decoded at once. Of a row with codes that are not drawn (-1), those before the
        first of them are decoded.
        """
        height, width = size or self.vocabulary.image_size  # 1 and the samples of a signal
        drawn = (codes >= 0).long().cumprod(-1).sum(-1)
        counts, runs = drawn.unique_consecutive(return_counts=True)
        parts: list[torch.Tensor] = []
        for count, rows in zip(counts.tolist(), codes.split(runs.tolist()), strict=True):
            parts += [
                self.image_tokenizer.decode(part, (height, width))
                for part in rows[:, :count].split(self.max_batch_rows)
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
            self.image_tokenizer.to(device)
        return self

    @contextmanager
    def progress_bar(self, callback: Callback | None) -> Iterator[Callback]:
        """A callback for the sampler that advances the progress bar, with the calls of the model so far beside it, then
        calls the user's callback."""
        from tqdm import tqdm

        with tqdm(unit="code", leave=False, **self._progress_bar) as bar:
            calls = itertools.count(1)

            def after_code(step: int, total_steps: int, codes: torch.Tensor) -> None:
                bar.total = total_steps
                bar.set_postfix(calls=next(calls), refresh=False)  # shown with the update
                bar.update(step - bar.n)
                if callback is not None:
                    callback(step, total_steps, codes)

            yield after_code

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Settings of the tqdm bar, `disable=True` above all. By default it shows on a terminal only."""
        self._progress_bar = settings


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]
