"""Pictures that a language model has drawn, for the decoder of stage 1 to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from lm.sequences import DRAWING_CAPTIONS
from pipelines.caching.sources import load_source
from pipelines.machine.printing import say
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.vqvae import VQVAE

PART = 4  # one drawn picture for so many real ones
AT_ONCE = 64  # pictures that are drawn together


@dataclass
class DrawnCodes:
    """Codes (n, T) that this process's share of each batch is completed with."""

    codes: torch.Tensor
    seed: int

    def part(self, step: int, pictures: int) -> torch.Tensor:
        """(b, T) codes for a step that has so many real pictures, keyed by (seed, step); b is at least 1."""
        rows = np.random.default_rng([self.seed, step]).integers(len(self.codes), size=max(1, pictures // PART))
        return self.codes[torch.from_numpy(rows).to(self.codes.device)]


def draw_codes(
    options: ImageTokenizerOptions, tokenizer: VQVAE, accelerator: Accelerator, *, has_discriminator: bool
) -> DrawnCodes:
    """--drawn_pictures by the model in --codes_from, at its default settings, for captions of the training pictures.
    Each process draws its share.

    Raises:
        ValueError: no model folder, or one of another tokenizer, or size; or nothing would learn from the pictures,
            which have no originals: the discriminator alone judges them.
    """
    assert options.codes_from is not None
    if not has_discriminator:
        raise ValueError(
            f"--codes_from {options.codes_from}: only a discriminator learns from drawn pictures, and there is none; "
            "leave --adversarial_weight out, or give 0.5"
        )
    pipe = TextToImagePipeline.from_pretrained(options.codes_from, device=accelerator.device)
    size, side = tuple(pipe.vocabulary.image_size), tokenizer.config.image_size
    if not accepts_fingerprint(tokenizer, pipe.vocabulary.image_tokenizer_fingerprint) or size != (side, side):
        raise ValueError(
            f"--codes_from {options.codes_from} draws codes of another image tokenizer than --init_from "
            f"{options.init_from}: give --init_from {Path(options.codes_from) / 'image_tokenizer'}"
        )
    captions = _captions(options, pipe, side)[accelerator.process_index :: accelerator.num_processes]
    say(accelerator, f"drawing {options.drawn_pictures} pictures with {options.codes_from}")
    pipe.set_progress_bar_config(disable=True)
    parts = []
    seeds = np.random.default_rng([options.seed, accelerator.process_index]).integers(2**31, size=len(captions))
    for start in tqdm(range(0, len(captions), AT_ONCE), unit=" batches", disable=not accelerator.is_main_process):
        prompts = [text for text in captions[start : start + AT_ONCE] if text is not None]
        part = seeds[start : start + AT_ONCE].tolist()
        if prompts:
            output = pipe(prompts, seed=part, output_type="pt")
        else:
            output = pipe(None, num_images_per_prompt=len(part), seed=part, output_type="pt")
        parts.append(output.codes)
    return DrawnCodes(torch.cat(parts).to(accelerator.device), options.seed + accelerator.process_index)


def _captions(options: ImageTokenizerOptions, pipe: TextToImagePipeline, side: int) -> list[str | None]:
    """The captions to draw: first ones of training pictures, as often as they come; None each where the model draws
    without."""
    source = load_source(options, "train", image_size=side)
    rows = np.linspace(0, len(source) - 1, options.drawn_pictures).astype(np.int64)
    found: list[str | None] = [texts[0] for row in rows if (texts := source.texts(int(row)))]
    if not found or not set(pipe.vocabulary.formats) & set(DRAWING_CAPTIONS):
        return [None] * options.drawn_pictures
    return [found[index % len(found)] for index in range(options.drawn_pictures)]
