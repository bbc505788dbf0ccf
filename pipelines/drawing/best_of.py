"""Best of n: of many pictures of a prompt, or many captions of a picture, those with the highest scores.

A ranker gives the scores, or the model itself: it scores a picture by the likelihood of the prompt after it, and a
caption by the likelihood of the picture after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lm.generation.stepper import check_finite
from lm.pretrained import max_positions
from lm.sequences import DESCRIBING, DRAWING_CAPTIONS
from lm.vocabulary import Size
from pipelines.drawing.arguments import shown
from pipelines.drawing.captions import RANKING_TOKENS, ranking_room
from pipelines.drawing.likelihood import label_nats
from pipelines.multimodal import MultimodalPipeline

# ranker(images, prompt) -> a score for each picture, higher is better; images are PIL, the prompt is a text or None.
Ranker = Callable[[list[Any], str | None], Sequence[float]]


def best_rows(scores: torch.Tensor, count: int) -> list[int]:
    """Rows of the `count` highest scores of each prompt (or picture), best first; scores (prompts, best_of) are those
    of rows 0 .. prompts x best_of - 1."""
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return (chosen + scores.shape[1] * torch.arange(len(scores))[:, None]).flatten().tolist()


def ranker_scores(ranker: Ranker, images: Sequence[Any], prompts: Sequence[str | None]) -> torch.Tensor:
    """A ranker's scores, (prompts, best_of) float64, of PIL pictures that are listed prompt by prompt.

    Raises:
        ValueError: scores that are not one finite number for each picture.
    """
    best_of, rows = len(images) // len(prompts), []
    for index, prompt in enumerate(prompts):
        candidates = list(images[index * best_of : (index + 1) * best_of])
        scores = torch.as_tensor(ranker(candidates, prompt), dtype=torch.float64)
        if scores.shape != (best_of,) or not scores.isfinite().all():
            raise ValueError(
                f"the ranker gave {scores.tolist()} for {best_of} pictures: it must return a number for each"
            )
        rows.append(scores)
    return torch.stack(rows)


def caption_scores(
    pipe: MultimodalPipeline, prompts: Sequence[str], codes: torch.Tensor, size: Size | None = None
) -> torch.Tensor:
    """log p(prompt | picture) in nats by the model itself, (prompts, best_of); codes (prompts x best_of, T) of pictures
    of a size."""
    return prompt_scores(pipe, pipe.vocabulary.encode_texts(list(prompts)), codes, size)


def prompt_scores(
    pipe: MultimodalPipeline, prompts: Sequence[Sequence[int]], codes: torch.Tensor, size: Size | None = None
) -> torch.Tensor:
    """`caption_scores` of prompts that are token ids."""
    best_of = len(codes) // len(prompts)
    texts = [ids for ids in prompts for _ in range(best_of)]
    return _log_likelihoods(label_nats(pipe, "image_to_caption", texts, codes, size), best_of)


def picture_scores(
    pipe: MultimodalPipeline, texts: Sequence[Sequence[int]], codes: torch.Tensor, size: Size | None = None
) -> torch.Tensor:
    """log p(picture | text) in nats by the model itself, (B, best_of); texts: B x best_of rows of token ids; codes
    (B, T) of pictures of a size."""
    best_of = len(texts) // len(codes)
    nats = label_nats(pipe, "caption_to_image", texts, codes.repeat_interleave(best_of, 0), size)
    return _log_likelihoods(nats, best_of)


def _log_likelihoods(nats: Sequence[torch.Tensor], best_of: int) -> torch.Tensor:
    """Log-likelihoods of whole sequences, (rows / best_of, best_of) float64, of the nats of each one's labels."""
    scores = -torch.stack([row.double().sum() for row in nats]).view(-1, best_of).cpu()
    check_finite(scores.isfinite().all())
    return scores


def check_can_rank_texts(pipe: MultimodalPipeline) -> None:
    """Raise ValueError unless `picture_scores` can tell captions apart."""
    pipe.vocabulary.check_trained(
        "best_of for captions ranks them by how likely the model finds the picture after each", *DRAWING_CAPTIONS,
        remedy="train with train_lm.py --formats caption_to_image image_and_caption",
    )  # fmt: skip


def check_can_rank(pipe: MultimodalPipeline, prompts: Sequence[str | None]) -> None:
    """Raise ValueError unless `caption_scores` can tell pictures of these prompts apart."""
    use = "best_of without a ranker ranks by how likely the model finds the prompt after the picture"
    if None in prompts:
        raise ValueError(f"{use}: give a prompt, or a ranker")
    pipe.vocabulary.check_trained(
        use, *DESCRIBING,
        remedy="give a ranker, or train with train_lm.py --formats caption_to_image image_and_caption",
    )  # fmt: skip
    room, positions = ranking_room(pipe.model, pipe.vocabulary), max_positions(pipe.model.config)
    for text in prompts:
        length = len(pipe.vocabulary.encode_text(str(text)))
        if length > room:
            needed = pipe.vocabulary.longest_picture + RANKING_TOKENS + length
            raise ValueError(f"{use}: prompt {shown(text)} takes {needed} of {positions} positions: shorten it")
