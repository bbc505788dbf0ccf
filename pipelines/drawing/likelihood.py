"""How likely a language model finds pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lm.generation.images import evaluation_mode
from lm.generation.memory import in_batches
from lm.sequences import IGNORED, collate, image_prompt, token_sequence
from lm.training.losses import NextTokenLoss
from lm.vocabulary import Size
from pipelines.drawing.request import check_trained, prompt_rows, texts_of
from pipelines.multimodal import MultimodalPipeline


@dataclass
class ScoreOutput:
    """How likely a model finds the codes of pictures, among the codes that are possible at each position.

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
def score_pictures(
    pipe: MultimodalPipeline, prompt: str | list[str] | None, image: Image.Image | list[Image.Image]
) -> ScoreOutput:
    """What `TextToImagePipeline.score` does."""
    prompts = texts_of(prompt, "prompt")
    check_trained(pipe.vocabulary, prompt)
    size, *others = set(pipe.sizes_of(image))
    if others:
        raise ValueError("the pictures have several shapes: score those of one shape together")
    codes = pipe.encode_images(image, size)
    if len(prompts) != len(codes) and 1 not in (len(prompts), len(codes)):
        raise ValueError(
            f"{len(prompts)} prompts and {len(codes)} pictures: give one for each, or one of either for all"
        )
    count = max(len(prompts), len(codes))
    head = len(image_prompt(pipe.vocabulary, None, size)) - 1
    rows = [
        ids[1:-head] for ids in prompt_rows(pipe.model, pipe.vocabulary, prompts, "prompt", count // len(prompts), size)
    ]
    codes = codes.expand(count, -1)
    name = "image" if prompt is None else "caption_to_image"  # alike up to the last code in all that draw
    level = torch.tensor(pipe.vocabulary.layouts[size]["level"], device=pipe.device)
    return ScoreOutput(torch.stack(label_nats(pipe, name, rows, codes, size)), level, codes.clone())


@torch.no_grad()
def label_nats(
    pipe: MultimodalPipeline, name: str, texts: Sequence[Sequence[int]], codes: torch.Tensor, size: Size | None = None
) -> list[torch.Tensor]:
    """Negative log-likelihood of all that is learned in sequences of the format `name`, by the softmax of training.

    Args:
        texts: B rows of token ids.
        codes: (B, T), of pictures of this size (default: the default one).

    Returns:
        for each row, nats float32 of its labels in their order.
    """
    loss = NextTokenLoss(pipe.model, pipe.vocabulary.id_ranges)

    def found(rows: slice) -> list[torch.Tensor]:
        sequences = [
            token_sequence(pipe.vocabulary, name, texts[row], codes[row].cpu().numpy(), size)
            for row in range(rows.start, rows.stop)
        ]
        batch = {key: value.to(pipe.device) for key, value in collate(sequences, pipe.vocabulary.pad_id).items()}
        nats = loss.position_nats(batch["input_ids"], batch["labels"], batch["position_ids"])
        return [one[labels != IGNORED] for one, labels in zip(nats, batch["labels"], strict=True)]

    with evaluation_mode(pipe.model):
        return in_batches(found, len(codes), pipe.max_batch_rows)
