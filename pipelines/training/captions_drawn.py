"""How often a caption draws its own picture: what judges a model of few captioned pictures, and finds its guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from lm.data.token_cache import TokenCache
from lm.sequences import FORMATS
from lm.vocabulary import MultimodalVocabulary
from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.text_to_image import TextToImagePipeline

MOST_CANDIDATES = 1024  # pictures that a drawn one is compared with
LOOKED_AT = 4096  # rows that captions are looked for in
LARGEST = 64  # pixels a side that pictures are compared at
DISTINCT = 0.9  # share of captions that no other picture has, from which on a caption says which picture is meant


@dataclass
class CaptionedPicture:
    """A picture of the token cache: its first caption, and its codes (T,)."""

    caption: str
    codes: np.ndarray


@dataclass
class DrawnRows:
    """Of each row that was drawn: whether its picture is right, bool, and how far it is from the caption's own, as the
    root of the mean square of the pixels' differences on [0, 1]; 1 for a caption that the model cannot read."""

    right: np.ndarray
    distance: np.ndarray


@dataclass
class CaptionsDrawn:
    """Captions that were learned from and others that were not, and all the pictures that one may be taken for.

    A drawn picture is right where, of all candidates, the one that is nearest to it in pixels (as the image tokenizer
    decodes it) is the caption's own, or has the same codes.

    Attributes:
        held_out, seen: the pictures whose captions are drawn, in an order of their own, not that of the data.
        others: further candidates.
    """

    held_out: list[CaptionedPicture]
    seen: list[CaptionedPicture]
    others: list[CaptionedPicture]

    def __post_init__(self) -> None:
        self._pixels: torch.Tensor | None = None

    def drawn(
        self, pipe: TextToImagePipeline, rows: Sequence[int], guidance_scale: float, temperature: float, seed: int = 0
    ) -> DrawnRows:
        """Draw each of these rows, of `held_out` and then `seen`."""
        pictures = [*self.held_out, *self.seen, *self.others]
        candidates = self._candidates(pipe, pictures)
        room = caption_room(pipe.model, pipe.vocabulary)
        captions = [cut_caption(pipe.vocabulary, pictures[row].caption, room) for row in rows]
        found = DrawnRows(np.zeros(len(rows), bool), np.ones(len(rows)))
        known = [index for index, caption in enumerate(captions) if caption]
        if not known:
            return found
        pipe.set_progress_bar_config(disable=True)
        output = pipe([captions[index] for index in known], guidance_scale=guidance_scale, temperature=temperature,
                      seed=seed, output_type="pt")  # fmt: skip
        drawn = _small(torch.as_tensor(output.images)).to(candidates)
        distances = torch.cdist(drawn, candidates) / drawn.shape[1] ** 0.5
        for index, nearest, each in zip(known, distances.argmin(1).tolist(), distances, strict=True):
            found.right[index] = np.array_equal(pictures[nearest].codes, pictures[rows[index]].codes)
            found.distance[index] = float(each[rows[index]])
        return found

    def shares(self, pipe: TextToImagePipeline) -> dict[str, float]:
        """The share that is right of captions that were held out and of those that were learned from, drawn with the
        likeliest code each time and without guidance."""
        rows = range(len(self.held_out) + len(self.seen))
        right = self.drawn(pipe, rows, guidance_scale=1.0, temperature=0.0).right
        parts = {"held_out": right[: len(self.held_out)], "seen": right[len(self.held_out) :]}
        return {f"drawn_right_{name}": float(part.mean()) for name, part in parts.items() if len(part)}

    def _candidates(self, pipe: TextToImagePipeline, pictures: Sequence[CaptionedPicture]) -> torch.Tensor:
        """(N, pixels) float32: all pictures, decoded once."""
        if self._pixels is None:
            codes = torch.from_numpy(np.stack([picture.codes.astype(np.int64) for picture in pictures]))
            decoded = [(pipe.decode_codes(part.to(pipe.device)) + 1) / 2 for part in codes.split(64)]
            self._pixels = torch.cat([_small(part.clamp(0, 1)) for part in decoded])
        return self._pixels


def _small(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, pixels) float32, of at most `LARGEST` pixels on each side."""
    height, width = (min(LARGEST, side) for side in images.shape[2:])
    return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1)


def draws_captions(cache: TokenCache, vocabulary: MultimodalVocabulary) -> bool:
    """Whether the model draws pictures of one size from captions, and nothing else has to be there."""
    draws = any(FORMATS[name].drops_captions for name in vocabulary.formats)
    return draws and not vocabulary.other_layouts and not cache.interleaved


def choose_captions(
    cache: TokenCache, validation_cache: TokenCache, vocabulary: MultimodalVocabulary, count: int
) -> CaptionsDrawn | None:
    """Up to `count` captions of each split, with candidates; None where a caption does not say which picture is meant:
    several pictures have it, the model does not draw from captions, or draws several sizes."""
    if not draws_captions(cache, vocabulary):
        return None
    held_out = captioned_pictures(validation_cache, np.arange(min(LOOKED_AT, len(validation_cache))))
    rows = np.random.default_rng(0).permutation(len(cache))[:LOOKED_AT]
    seen = captioned_pictures(cache, rows)
    captions = [picture.caption for picture in (*held_out, *seen)]
    if not seen or len(set(captions)) < DISTINCT * len(captions):
        return None
    held_out = [held_out[row] for row in np.random.default_rng(1).permutation(len(held_out))]
    chosen, rest = (held_out[:count], seen[:count]), [*held_out[count:], *seen[count:]]
    return CaptionsDrawn(*chosen, rest[: max(0, MOST_CANDIDATES - sum(map(len, chosen)))])


def captioned_pictures(cache: TokenCache, rows: np.ndarray) -> list[CaptionedPicture]:
    """The rows that have a caption and a picture."""
    found = []
    for row in map(int, rows):
        texts, codes = cache.texts(row), cache.codes(row)
        if texts and len(codes):
            found.append(CaptionedPicture(texts[0], codes))
    return found
