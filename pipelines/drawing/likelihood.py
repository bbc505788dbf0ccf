"""The likelihood of pictures, and of other labels, under a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lm.generation.memory import Batch, in_batches
from lm.generation.stepper import evaluation_mode
from lm.sequences import IGNORED, collate, image_prompt, token_sequence
from lm.training.losses import NextTokenLoss
from lm.vocabulary import Size
from pipelines.drawing.arguments import list_of_texts
from pipelines.drawing.prompts import Prompt, check_trained, prompt_rows
from pipelines.multimodal import MultimodalPipeline


@dataclass
class ScoreOutput:
    """The likelihood of pictures' codes, each among the codes that are possible at its position.

    Attributes:
        nats: (B, T) float32, negative log-likelihood of each code after all before it.
        level: (T,) int64, the level of each position; 0 is the coarsest.
        codes: (B, T) int64, of the pictures.
    """

    nats: torch.Tensor
    level: torch.Tensor
    codes: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """(B,) nats of each picture."""
        return self.nats.sum(1)

    @property
    def mean(self) -> torch.Tensor:
        """(B,) nats a code of each picture."""
        return self.nats.mean(1)


@torch.no_grad()
def score_pictures(pipe: MultimodalPipeline, prompt: Prompt, image: Image.Image | list[Image.Image]) -> ScoreOutput:
    """`TextToImagePipeline.score`, which says what the arguments mean."""
    prompts = list_of_texts(prompt, "prompt")
    check_trained(pipe.vocabulary, prompt)
    pixels = pipe.prepare_images(image)
    height, width = pixels[0].shape[1:]
    size = (height, width)
    if any(picture.shape[1:] != size for picture in pixels):
        raise ValueError("the pictures have several shapes: score those of one shape together")
    codes = pipe.encode_pixels(pixels)
    if len(prompts) != len(codes) and 1 not in (len(prompts), len(codes)):
        raise ValueError(
            f"{len(prompts)} prompts and {len(codes)} pictures: give one for each, or one of either for all"
        )
    count = max(len(prompts), len(codes))
    frame = len(image_prompt(pipe.vocabulary, None, size)) - 1  # tokens after the text; one more, bos, is before it
    repeats = count // len(prompts)
    texts = [ids[1:-frame] for ids in prompt_rows(pipe.model, pipe.vocabulary, prompts, "prompt", repeats, size)]
    codes = codes.expand(count, -1)
    # Formats that draw are the same up to the last code, with a caption and without.
    name = "image" if prompt is None else "caption_to_image"
    level = torch.tensor(pipe.vocabulary.layouts[size]["level"], device=pipe.device)
    return ScoreOutput(torch.stack(label_nats(pipe, name, texts, codes, size)), level, codes.clone())


@torch.no_grad()
def label_nats(
    pipe: MultimodalPipeline, name: str, texts: Sequence[Sequence[int]], codes: torch.Tensor, size: Size | None = None
) -> list[torch.Tensor]:
    """Negative log-likelihood of every label of sequences of the format `name`, by the softmax of training.

    Args:
        texts: B rows of token ids.
        codes: (B, T), of pictures of this size (default: the default one).

    Returns:
        for each row, nats float32 of its labels in their order.
    """
    loss = NextTokenLoss(pipe.model, pipe.vocabulary.id_ranges)

    def nats_of(batch: Batch) -> list[torch.Tensor]:
        sequences = [
            token_sequence(pipe.vocabulary, name, texts[row], codes[row].cpu().numpy(), size)
            for row in range(batch.rows.start, batch.rows.stop)
        ]
        tensors = {key: value.to(pipe.device) for key, value in collate(sequences, pipe.vocabulary.pad_id).items()}
        nats = loss.position_nats(tensors["input_ids"], tensors["labels"], tensors["position_ids"])
        return [row[labels != IGNORED] for row, labels in zip(nats, tensors["labels"], strict=True)]

    with evaluation_mode(pipe.model):
        return list(in_batches(nats_of, len(codes), pipe.max_batch_rows))
