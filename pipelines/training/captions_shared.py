"""How near drawn pictures are to real ones, all together: what finds the guidance where pictures share captions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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
# Principal components of the features. Over as many of them as pictures or more, even pictures of the same distribution
# are far apart, by chance (`frechet_distance`).
MOST_COMPONENTS, PICTURES_PER_COMPONENT = 64, 12


@dataclass
class CaptionsShared:
    """Captioned pictures of the validation split, whose captions several pictures have, and the Frechet distance of
    drawn pictures from them, over the principal components of an extractor's features.

    Real pictures are compared as the image tokenizer reconstructs them: a language model draws nothing better.
    """

    pictures: list[CaptionedPicture]
    _real: Components | None = field(default=None, init=False)
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
            self._real = Components(features, components)
        room = caption_room(pipe.model, pipe.vocabulary)
        captions = [cut_caption(pipe.vocabulary, one.caption, room) for one in self.pictures[:count]]
        captions = [caption for caption in captions if caption]
        if not captions:
            raise ValueError(f"no caption has a first word of {room} tokens or less, which the model has room for")
        pipe.set_progress_bar_config(disable=True)
        asked = [captions[index % len(captions)] for index in range(count)]
        output = pipe(  # with one seed for all, pictures of one caption would be the same
            asked, guidance_scale=guidance_scale, temperature=temperature, seed=list(range(count)), output_type="pt"
        )
        drawn = (255 * torch.as_tensor(output.images)).round().to(torch.uint8)
        features = self._extractors.features_of(drawn.split(BATCH)).features
        return frechet_distance(self._real.real, self._real.statistics(features))


class Components:
    """Principal components of real pictures' features.

    Args:
        features: (n, D).
        components: how many.

    Attributes:
        real: mean and covariance of those pictures' components.
    """

    def __init__(self, features: Tensor, components: int) -> None:
        features = features.double()
        self._mean = features.mean(dim=0)
        _, _, vectors = torch.linalg.svd(features - self._mean, full_matrices=False)
        self._vectors = vectors[:components].T
        self.real = self.statistics(features)

    def statistics(self, features: Tensor) -> FeatureStatistics:
        """Mean and covariance of the components of features (n, D)."""
        statistics = FeatureStatistics()
        statistics.update((features.double() - self._mean) @ self._vectors)
        return statistics


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
