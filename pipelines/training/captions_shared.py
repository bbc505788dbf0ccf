"""How near drawn pictures are to real ones, all together: what finds the guidance where pictures share captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lm.data.token_cache import TokenCache
from lm.vocabulary import MultimodalVocabulary
from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from pipelines.evaluation.pictures_compared import BATCH, ExtractorPair
from pipelines.text_to_image import TextToImagePipeline
from pipelines.training.captions_drawn import CaptionedPicture, captioned_pictures, draws_captions
from tokenizer_image.losses.extractors import INSTALL, missing_package
from tokenizer_image.preprocessing import postprocess

EXTRACTOR = "efficientnet_lite0"
SIDE = 128  # pixels that it reads pictures at: smaller ones are beyond what it was trained on, larger ones cost more
REAL = 1024  # pictures that drawn ones are compared with, at most


@dataclass
class CaptionsShared:
    """Captioned pictures of the validation split, whose captions several pictures have, and the Frechet distance of
    drawn pictures from them, over an extractor's features.

    Real pictures are compared as the image tokenizer reconstructs them: a language model draws nothing better.
    """

    pictures: list[CaptionedPicture]
    _real: FeatureStatistics | None = field(default=None, init=False)
    _extractors: ExtractorPair | None = field(default=None, init=False)

    def distance(self, pipe: TextToImagePipeline, count: int, guidance_scale: float, temperature: float) -> float:
        """Of `count` pictures, drawn for the first captions, which begin anew after the last; the same random numbers
        at each setting. Only distances over as many pictures can be compared."""
        if self._real is None or self._extractors is None:
            self._extractors = ExtractorPair.load(EXTRACTOR, None, SIDE, pipe.device)
            self._real = self._statistics(pipe, [one.codes for one in self.pictures[:REAL]])
        room = caption_room(pipe.model, pipe.vocabulary)
        captions = [cut_caption(pipe.vocabulary, one.caption, room) for one in self.pictures]
        captions = [caption for caption in captions if caption]
        pipe.set_progress_bar_config(disable=True)
        asked = [captions[index % len(captions)] for index in range(count)]
        output = pipe(asked, guidance_scale=guidance_scale, temperature=temperature, seed=0, output_type="pt")
        return frechet_distance(self._real, self._statistics(pipe, list(output.codes.cpu().numpy())))

    def _statistics(self, pipe: TextToImagePipeline, codes: Sequence[np.ndarray]) -> FeatureStatistics:
        """Of the features of the pictures that these codes (T,) decode to."""
        assert self._extractors is not None
        rows = torch.from_numpy(np.stack([one.astype(np.int64) for one in codes])).to(pipe.device)
        decoded = (postprocess(pipe.decode_codes(part), "pt") for part in rows.split(BATCH))
        pictures = ((255 * part).round().to(torch.uint8) for part in decoded)
        return self._extractors.features_of(pictures).statistics


def choose_shared_captions(
    cache: TokenCache, validation_cache: TokenCache, vocabulary: MultimodalVocabulary
) -> CaptionsShared | None:
    """The validation split's captioned pictures, in an order of their own; None where there are none, or the model does
    not draw from captions, or draws several sizes.

    Raises:
        ValueError: the extractor's package is not installed.
    """
    if not draws_captions(cache, vocabulary):
        return None
    rows = np.random.default_rng(0).permutation(len(validation_cache))[:REAL]
    pictures = captioned_pictures(validation_cache, rows)
    if not pictures:
        return None
    if package := missing_package(EXTRACTOR):
        raise ValueError(f"several pictures share a caption, and comparing them needs {package}: {INSTALL}")
    return CaptionsShared(pictures)
