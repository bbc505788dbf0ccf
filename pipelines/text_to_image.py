"""Captions to pictures: `TextToImagePipeline`, in diffusers' words."""

from __future__ import annotations

import hashlib
import numbers
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lm.generation import Callback, SamplingSettings, generate_codes, longest_prompt
from lm.sequences import image_prompt
from lm.vocabulary import MultimodalVocabulary
from pipelines.model_folder import INDEX_FILE, local_folder, read_index, write_index
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.preprocessing import OUTPUT_TYPES, postprocess

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class TextToImageOutput:
    """What a pipeline's call returns: pictures prompt by prompt, those of one prompt side by side.

    Attributes:
        images: "pil" list of B images, "np" float32 (B, H, W, C), "pt" float32 (B, C, H, W); both in [0, 1].
        codes: (B, T) int64, what the language model wrote.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    codes: torch.Tensor


class TextToImagePipeline:
    """An image tokenizer and a language model that writes its codes.

        pipe = TextToImagePipeline.from_pretrained("runs/model")
        image = pipe("a dog").images[0]

    `max_batch_rows` (128) bounds the rows that the language model reads at once; a picture takes two with
    guidance.
    """

    def __init__(
        self,
        image_tokenizer: ImageTokenizer,
        model: Any = None,
        vocabulary: MultimodalVocabulary | None = None,
    ) -> None:
        if model is None or vocabulary is None:
            raise TypeError(
                f"TextToImagePipeline({_shown(image_tokenizer)}) does not draw: load a model, then call it:\n"
                '    pipe = TextToImagePipeline.from_pretrained("runs/model")\n'
                '    image = pipe("a dog").images[0]\n'
                "From parts it takes three: TextToImagePipeline(image_tokenizer, model, vocabulary)"
            )
        from lm.model import check_vocabulary

        check_vocabulary(model.config, vocabulary)
        found, expected = image_tokenizer.fingerprint, vocabulary.image_tokenizer_fingerprint
        if found != expected:
            raise ValueError(
                f"the language model belongs to the image tokenizer with fingerprint {expected}, this one"
                f" has {found}: use that tokenizer, or train the language model on this one's codes"
            )
        self.image_tokenizer = image_tokenizer
        self.model = model
        self.vocabulary = vocabulary
        self.max_batch_rows = 128
        self._progress_bar: dict[str, Any] = {"disable": None}  # None: shown on a terminal

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> TextToImagePipeline:
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
        index = read_index(path, cls.__name__, parts=("image_tokenizer", "lm"))
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
        # Last: a folder with an index is whole.
        write_index(folder, type(self).__name__, self.image_tokenizer.fingerprint)

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

        from pipelines.model_card import model_card

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            card = model_card(self, repo_id, license=license, figures=figures)
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=commit_message)
        return f"https://huggingface.co/{name}"

    # Where and how it runs

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model; the image tokenizer is always in float32."""
        return self.model.dtype

    def to(
        self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | None = None
    ) -> TextToImagePipeline:
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

    # Drawing

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        callback: Callback | None = None,
    ) -> TextToImageOutput:
        """Draw `num_images_per_prompt` pictures for each prompt.

        Args:
            prompt: what to draw; None draws without a prompt. Space at both ends does not matter.
            negative_prompt: what to lead away from, one for all prompts or one each; needs guidance above 1.
            guidance_scale: how strongly to follow the prompt: 1 is off, default the model's own.
            temperature, top_k, top_p: how freely to draw; temperature 0 takes the likeliest code each time.
            height, width: of the pictures; only the size that the model was trained for.
            seed: picture j of a prompt draws from a stream of its own, keyed (seed, j), so it depends on its
                prompt, the settings and these two alone. None gives other pictures at each call
                (`torch.manual_seed` repeats them).
            generator: one that seeds each picture's stream in turn, or a list with one for each picture.
            output_type: "pil", "np" or "pt", see `TextToImageOutput`.
            callback: called as `callback(step, total_steps, codes)` after each code; codes (b, t) so far.

        Raises:
            TypeError, ValueError: an argument that means nothing, named with its value.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        self._check_size(height, width)
        prompts = _texts(prompt, "prompt")
        if prompt is not None and "caption_to_image" not in self.vocabulary.formats:
            raise ValueError(
                f"prompt {_shown(prompt)}: this model was trained without captions; give None "
                "(generate.py: --unconditional)"
            )
        if guidance_scale is None:
            guidance_scale = self.vocabulary.default_guidance
        settings = SamplingSettings(guidance_scale, temperature, top_k, top_p)
        negatives = self._negative_prompts(negative_prompt, len(prompts), settings)
        count = _whole_number(num_images_per_prompt, "num_images_per_prompt", 1)
        generators = _streams(len(prompts), count, seed, generator)
        rows = self._rows(prompts, "prompt", count)
        # Without a prompt there is nothing to guide to: the two rows of a picture would be the same.
        unguided = prompts == [None] and negative_prompt is None
        with self._bar(callback) as after_code:
            codes = generate_codes(
                self.model,
                self.vocabulary,
                rows,
                self._rows(negatives, "negative_prompt", count),
                guidance_scale=1.0 if unguided else settings.guidance_scale,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                generators=generators,
                callback=after_code,
                max_batch_rows=self.max_batch_rows,
            )
        return TextToImageOutput(images=postprocess(self._decode(codes), output_type), codes=codes)

    def _check_size(self, height: int | None, width: int | None) -> None:
        trained = self.vocabulary.image_size
        for name, value, own in (("height", height, trained[0]), ("width", width, trained[1])):
            if value is not None and value != own:
                raise ValueError(
                    f"{name}={value!r}: this model draws {trained[0]}x{trained[1]} pictures (height x width)"
                    "; leave height and width out, and resize the picture"
                )

    def _negative_prompts(
        self, negative_prompt: str | list[str] | None, count: int, settings: SamplingSettings
    ) -> list[str | None]:
        if negative_prompt is None:
            return [None] * count
        if settings.guidance_scale <= 1:
            raise ValueError(
                f"negative_prompt={negative_prompt!r} has an effect only with a guidance_scale above 1, "
                f"got {settings.guidance_scale}"
            )
        negatives = _texts(negative_prompt, "negative_prompt")
        if isinstance(negative_prompt, str):
            return negatives * count
        if len(negatives) != count:
            raise ValueError(f"{len(negatives)} negative prompts for {count} prompts: give one, or one for each")
        return negatives

    def _rows(self, texts: list[str | None], name: str, count: int) -> list[list[int]]:
        """Token ids of each text, `count` times in a row."""
        rows: list[list[int]] = []
        limit = longest_prompt(self.model, self.vocabulary)
        for text in texts:
            ids = image_prompt(self.vocabulary, text)
            if text is not None and limit is not None and len(ids) > limit:
                frame = len(image_prompt(self.vocabulary, None))
                raise ValueError(
                    f"{name} {_shown(text)} has {len(ids) - frame} tokens, but this model takes at most "
                    f"{max(0, limit - frame)} beside the picture: shorten it"
                )
            rows += [ids] * count
        return rows

    @contextmanager
    def _bar(self, callback: Callback | None) -> Iterator[Callback]:
        """What to call after each code: it moves the progress bar, then calls the user's callback."""
        from tqdm import tqdm

        with tqdm(unit="code", leave=False, **self._progress_bar) as bar:

            def after_code(step: int, total_steps: int, codes: torch.Tensor) -> None:
                bar.total = total_steps
                bar.update(step - bar.n)
                if callback is not None:
                    callback(step, total_steps, codes)

            yield after_code

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, T) to pixel_values (B, C, H, W), so many at a time that memory stays bounded."""
        height, width = self.vocabulary.image_size
        parts = [self.image_tokenizer.decode(part, (height, width)) for part in codes.split(self.max_batch_rows)]
        return torch.cat(parts)


def picture_stream(seed: int, picture: int) -> torch.Generator:
    """The random stream of picture number `picture` of a prompt under `seed`."""
    digest = hashlib.sha256(f"{seed}/{picture}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _streams(
    num_prompts: int, count: int, seed: int | None, generator: torch.Generator | list[torch.Generator] | None
) -> list[torch.Generator]:
    """One generator a picture, `count` pictures a prompt."""
    total = num_prompts * count
    if seed is not None and generator is not None:
        raise ValueError(f"seed={seed!r} and generator together: give one of them")
    if seed is not None:
        seed = _whole_number(seed, "seed", 0)
        return [picture_stream(seed, picture) for _ in range(num_prompts) for picture in range(count)]
    if isinstance(generator, Sequence):
        if len(generator) != total:
            raise ValueError(f"{len(generator)} generators for {total} pictures: give one, or one for each picture")
        if not all(isinstance(one, torch.Generator) for one in generator):
            raise TypeError(f"generator must hold torch.Generator objects, got {generator!r}")
        return list(generator)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (total,), generator=generator, device=device)
    return [torch.Generator().manual_seed(int(one)) for one in seeds]


def _whole_number(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _texts(prompt: Any, name: str) -> list[str | None]:
    """A prompt argument as a list. None stays None: no prompt."""
    if prompt is None:
        return [None]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"{name} must be a text, a list of texts or None, got {_shown(prompt)}")
    if not prompts:
        raise ValueError(f"{name} is an empty list: give at least one text")
    for index, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"{name} {index} must be a text, got {_shown(text)}")
    return [text.strip() for text in prompts]


def _shown(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}...{text[-1]}"


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]
