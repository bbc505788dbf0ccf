"""How near drawn pictures are to real ones, with their captions: what finds the guidance where pictures share these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lm.data.token_cache import TokenCache
from lm.vocabulary import MultimodalVocabulary
from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from pipelines.evaluation.metrics.reconstruction import as_8_bit
from pipelines.evaluation.pictures_compared import BATCH, ExtractorPair
from pipelines.text_to_image import TextToImagePipeline
from pipelines.training.captions_drawn import CaptionedPicture, captioned_pictures, draws_captions
from tokenizer_image.losses.extractors import INSTALL, missing_package

EXTRACTOR = "efficientnet_lite0"
SIDE = 128  # pixels that it reads pictures at: smaller ones are beyond what it was trained on, larger ones cost more
REAL = 1024  # pictures that drawn ones are compared with, at most
# Principal components of the features. Over more of them than pictures, the distance falls with the variety of the
# drawn ones, whatever they show: it is nearly always least without guidance.
MOST_COMPONENTS, PICTURES_PER_COMPONENT = 64, 8


@dataclass
class CaptionsShared:
    """Captioned pictures of the validation split, whose captions several pictures have, and the Frechet distance of
    drawn pictures and their captions from them (the joint distance of DeVries et al. 2019).

    It is over the principal components of an extractor's features, and over one number for each caption, 1 for a
    picture's own, scaled so that captions vary as much as features do: pictures that show something else than their
    captions are far away, too. Real pictures are compared as the image tokenizer reconstructs them: a language model
    draws nothing better.
    """

    pictures: list[CaptionedPicture]
    _real: JointFeatures | None = field(default=None, init=False)
    _extractors: ExtractorPair | None = field(default=None, init=False)

    def distance(self, pipe: TextToImagePipeline, count: int, guidance_scale: float, temperature: float) -> float:
        """Of `count` pictures, drawn for the first captions, which begin anew after the last; the same random numbers
        at each setting. Only distances over as many pictures can be compared.

        Raises:
            ValueError: the model has no room for any of the captions.
        """
        if self._real is None or self._extractors is None:
            self._extractors = ExtractorPair.load(EXTRACTOR, None, SIDE, pipe.device)
            codes = torch.from_numpy(np.stack([one.codes.astype(np.int64) for one in self.pictures]))
            decoded = (pipe.decode_codes(part) for part in codes.to(pipe.device).split(BATCH))
            features = self._extractors.features_of(as_8_bit(part) for part in decoded).features
            components = max(1, min(MOST_COMPONENTS, min(count, len(features)) // PICTURES_PER_COMPONENT))
            self._real = JointFeatures(features, [one.caption for one in self.pictures], components)
        room = caption_room(pipe.model, pipe.vocabulary)
        cut = [(cut_caption(pipe.vocabulary, one.caption, room), one.caption) for one in self.pictures[:count]]
        captions = [pair for pair in cut if pair[0]]
        if not captions:
            raise ValueError(f"no caption has a first word of {room} tokens or less, which the model has room for")
        pipe.set_progress_bar_config(disable=True)
        asked = [captions[index % len(captions)] for index in range(count)]
        output = pipe(
            [read for read, _ in asked],
            guidance_scale=guidance_scale,
            temperature=temperature,
            seed=0,
            output_type="pt",
        )
        drawn = (255 * torch.as_tensor(output.images)).round().to(torch.uint8)
        features = self._extractors.features_of(drawn.split(BATCH)).features
        found = self._real.statistics(features, [caption for _, caption in asked])
        return frechet_distance(self._real.real, found)


class JointFeatures:
    """Principal components of pictures' features beside their captions, as `CaptionsShared` compares them.

    Args:
        features: (n, D) of real pictures, which decide the components.
        captions: theirs.
        components: how many.

    Attributes:
        real: mean and covariance of the real pictures.
    """

    def __init__(self, features: Tensor, captions: Sequence[str], components: int) -> None:
        features = features.double()
        self._number = {caption: number for number, caption in enumerate(sorted(set(captions)))}
        self._mean = features.mean(dim=0)
        _, _, vectors = torch.linalg.svd(features - self._mean, full_matrices=False)
        self._vectors = vectors[:components].T
        self._scale = self._reduced(features).var(dim=0).sum().sqrt()
        self.real = self.statistics(features, captions)

    def statistics(self, features: Tensor, captions: Sequence[str]) -> FeatureStatistics:
        """Mean and covariance for pictures with features (n, D) and these captions, which real ones have, too."""
        numbers = torch.tensor([self._number[caption] for caption in captions])
        own = F.one_hot(numbers, len(self._number)).double()
        statistics = FeatureStatistics()
        statistics.update(torch.cat([self._reduced(features.double()), self._scale * own], dim=1))
        return statistics

    def _reduced(self, features: Tensor) -> Tensor:
        return (features - self._mean) @ self._vectors


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
