"""How often a caption draws its own picture, an instruction the result of its edit, or a caption a signal like those of
its own: what judges a model of few captioned pictures, and finds guidance and temperature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from lm.data.token_cache import TokenCache
from lm.sequences import EDITING, FORMATS
from lm.vocabulary import MultimodalVocabulary
from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.drawing.editing import instruction_room
from pipelines.text_to_image import TextToImagePipeline
from pipelines.text_to_signal import TextToSignalPipeline
from tokenizer_image.losses.spectral import FLOOR, stft_magnitude
from tokenizer_image.signals.settings import WORDS, signal_settings_of

MOST_CANDIDATES = 1024  # pictures that a drawn one is compared with
LOOKED_AT = 4096  # rows that captions are looked for in
LARGEST = 64  # pixels a side that pictures and frames are compared at; steps, of series
SPECTROGRAM, WINDOW = (64, 32), 512  # frequencies and times that sounds are compared at; samples of a window
DISTINCT = 0.9  # share of captions that no other picture has, from which on a caption says which picture is meant

Pipeline = TextToImagePipeline | TextToSignalPipeline


@dataclass
class CaptionedPicture:
    """A picture, or a signal, of the token cache: its first caption, and its codes (T,). The result of an edit has the
    instruction as its caption, and the codes of the picture that the edit starts from."""

    caption: str
    codes: np.ndarray
    source: np.ndarray | None = None


@dataclass
class DrawnRows:
    """Of each row that was drawn: whether its picture is right, bool, and how far it is from the caption's own, as the
    root of the mean square of the differences of `_compared`; 1 for a caption that the model cannot read."""

    right: np.ndarray
    distance: np.ndarray


@dataclass
class CaptionsDrawn:
    """Captions that were learned from and others that were not, and all the pictures that one may be taken for.

    A drawn picture is right where, of all candidates, the one that is nearest to it in pixels (as the image tokenizer
    decodes it) is the caption's own, or has the same codes; a drawn signal, where the nearest has the same caption.
    Edits start from the source as the image tokenizer decodes it, since the token cache has codes alone.

    Attributes:
        held_out, seen: the pictures whose captions are drawn, in an order of their own, not that of the data.
        others: further candidates.
        signal: "audio", "series" or "video", of which another of the same caption is as right; "" of pictures.
    """

    held_out: list[CaptionedPicture]
    seen: list[CaptionedPicture]
    others: list[CaptionedPicture]
    signal: str = ""

    def __post_init__(self) -> None:
        self._pixels: torch.Tensor | None = None

    @property
    def drew(self) -> str:
        """What captions drew that are right, in words."""
        if self.edits:
            return "their own result"
        return f"what is most like {WORDS[self.signal]} of the same caption" if self.signal else "their own picture"

    @property
    def edits(self) -> bool:
        """Whether these are results of edits, and their captions instructions."""
        return any(picture.source is not None for picture in (*self.held_out, *self.seen))

    def drawn(
        self, pipe: Pipeline, rows: Sequence[int], guidance_scale: float, temperature: float, seed: int = 0
    ) -> DrawnRows:
        """Draw each of these rows, of `held_out` and then `seen`."""
        pictures = [*self.held_out, *self.seen, *self.others]
        candidates = self._candidates(pipe, pictures)
        room = (instruction_room if self.edits else caption_room)(pipe.model, pipe.vocabulary)
        captions = [cut_caption(pipe.vocabulary, pictures[row].caption, room) for row in rows]
        found = DrawnRows(np.zeros(len(rows), bool), np.ones(len(rows)))
        known = [index for index, caption in enumerate(captions) if caption]
        if not known:
            return found
        pipe.set_progress_bar_config(disable=True)
        sources = [pictures[rows[index]].source for index in known] if self.edits else []
        drawn = _draw(pipe, [captions[index] for index in known], sources, guidance_scale, temperature, seed)
        drawn = drawn.to(candidates)
        distances = torch.cdist(drawn, candidates) / drawn.shape[1] ** 0.5
        for index, nearest, each in zip(known, distances.argmin(1).tolist(), distances, strict=True):
            one, other = pictures[nearest], pictures[rows[index]]
            same_caption = bool(self.signal) and one.caption == other.caption
            found.right[index] = same_caption or np.array_equal(one.codes, other.codes)
            found.distance[index] = float(each[rows[index]])
        return found

    def shares(self, pipe: TextToImagePipeline) -> dict[str, float]:
        """The share that is right of captions that were held out and of those that were learned from, drawn with the
        likeliest code each time and without guidance."""
        rows = range(len(self.held_out) + len(self.seen))
        right = self.drawn(pipe, rows, guidance_scale=1.0, temperature=0.0).right
        parts = {"held_out": right[: len(self.held_out)], "seen": right[len(self.held_out) :]}
        return {f"drawn_right_{name}": float(part.mean()) for name, part in parts.items() if len(part)}

    def _candidates(self, pipe: Pipeline, pictures: Sequence[CaptionedPicture]) -> torch.Tensor:
        """(N, numbers) float32: all pictures, decoded once."""
        if self._pixels is None:
            parts = _decoded(pipe, [picture.codes for picture in pictures])
            self._pixels = torch.cat([_compared(part, pipe) for part in parts])
        return self._pixels


def _draw(
    pipe: Pipeline, captions: list[str], sources: list[Any], guidance_scale: float, temperature: float, seed: int
) -> torch.Tensor:
    """One picture or signal for each caption, or for each source (codes) and instruction, as `_compared`."""
    settings: dict[str, Any] = {"guidance_scale": guidance_scale, "temperature": temperature, "seed": seed}
    if isinstance(pipe, TextToSignalPipeline):
        return _compared((pipe(captions, **settings).values + 1) / 2, pipe)
    if sources:
        images = [to_pil_image(picture.cpu()) for part in _decoded(pipe, sources) for picture in part]
        return _compared(torch.as_tensor(pipe.edit(images, captions, **settings, output_type="pt").images), pipe)
    return _compared(torch.as_tensor(pipe(captions, **settings, output_type="pt").images), pipe)


def _decoded(pipe: Pipeline, codes: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
    """What these codes (T,) decode to, on [0, 1], in batches."""
    for part in torch.from_numpy(np.stack(codes).astype(np.int64)).split(64):
        yield (pipe.decode_codes(part.to(pipe.device)).clamp(-1, 1).float() + 1) / 2


def _compared(values: torch.Tensor, pipe: Pipeline) -> torch.Tensor:
    """Pictures, videos (B, C, H, W) or other signals (B, C, time) on [0, 1] to the (B, numbers) float32 that are
    compared: few enough pixels, steps, or logarithms of a spectrogram."""
    settings, values = signal_settings_of(pipe.image_tokenizer), values.float()
    if settings is not None and settings.signal == "audio":
        window = torch.hann_window(WINDOW, device=values.device)
        spectrogram = stft_magnitude(2 * values[:, 0] - 1, window).clamp(min=FLOOR).log()
        return F.adaptive_avg_pool2d(spectrogram, SPECTROGRAM).flatten(1)
    if settings is not None and settings.signal == "series":
        return F.adaptive_avg_pool1d(values, min(LARGEST, values.shape[2])).flatten(1)
    frames = 1 if settings is None else settings.length
    height, width = min(LARGEST * frames, values.shape[2]), min(LARGEST, values.shape[3])
    return F.adaptive_avg_pool2d(values, (height, width)).flatten(1)


def draws_captions(cache: TokenCache, vocabulary: MultimodalVocabulary) -> bool:
    """Whether the model draws pictures of one size from captions, and nothing else has to be there."""
    draws = any(FORMATS[name].drops_captions for name in vocabulary.formats)
    return draws and not vocabulary.other_layouts and not cache.interleaved


def choose_captions(
    cache: TokenCache, validation_cache: TokenCache, vocabulary: MultimodalVocabulary, count: int, signal: str = ""
) -> CaptionsDrawn | None:
    """Up to `count` captions of each split, with candidates; None where the model does not draw from captions, or draws
    several sizes, and where a caption does not say which picture is meant, since several have it. Of signals it is
    enough that there are two captions.

    Args:
        signal: "audio", "series" or "video"; "" of pictures.
    """
    if not draws_captions(cache, vocabulary):
        return None
    held_out = captioned_pictures(validation_cache, np.arange(min(LOOKED_AT, len(validation_cache))))
    rows = np.random.default_rng(0).permutation(len(cache))[:LOOKED_AT]
    seen = captioned_pictures(cache, rows)
    captions = [picture.caption for picture in (*held_out, *seen)]
    if not seen or len(set(captions)) < (2 if signal else DISTINCT * len(captions)):
        return None
    held_out = [held_out[row] for row in np.random.default_rng(1).permutation(len(held_out))]
    chosen, rest = (held_out[:count], seen[:count]), [*held_out[count:], *seen[count:]]
    return CaptionsDrawn(*chosen, rest[: max(0, MOST_CANDIDATES - sum(map(len, chosen)))], signal)


def choose_edits(
    cache: TokenCache, validation_cache: TokenCache, vocabulary: MultimodalVocabulary, count: int
) -> CaptionsDrawn | None:
    """Up to `count` edits of each split, with the pictures before and after them as candidates; None where the data are
    not edits alone, or where the model has not learned them or draws several sizes."""
    if not (cache.is_of_edits and validation_cache.is_of_edits and set(EDITING) & set(vocabulary.formats)):
        return None
    if vocabulary.other_layouts:
        return None
    held_out, seen = (
        [_result(each, int(row)) for row in np.random.default_rng(1).permutation(len(each))[:count]]
        for each in (validation_cache, cache)
    )
    sources = [CaptionedPicture("", result.source) for result in (*held_out, *seen) if result.source is not None]
    return CaptionsDrawn(held_out, seen, sources)


def _result(cache: TokenCache, row: int) -> CaptionedPicture:
    source, result = np.split(cache.codes(row), 2)
    return CaptionedPicture(cache.texts(row)[0], result, source)


def captioned_pictures(cache: TokenCache, rows: np.ndarray) -> list[CaptionedPicture]:
    """The rows that have a caption and a picture."""
    found = []
    for row in map(int, rows):
        texts, codes = cache.texts(row), cache.codes(row)
        if texts and len(codes):
            found.append(CaptionedPicture(texts[0], codes))
    return found
