"""Real pictures beside reconstructed and drawn ones, as extractors see them: Frechet distance and classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.evaluation.classes import caption_classes, class_scores
from pipelines.evaluation.frechet import FeatureStatistics, frechet_distance
from pipelines.evaluation.reconstruction import reconstruct
from pipelines.machine.batches import index_batches
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.losses.extractors import Extractor, load_extractor
from tokenizer_image.preprocessing import to_pixel_values

BATCH = 50  # pictures that an extractor reads, or that are drawn, at once


@dataclass
class PictureFeatures:
    """What extractors return for a set of pictures.

    Attributes:
        statistics: of the features, for Frechet distances.
        logits: (n, classes) of the classifier; none without one.
    """

    statistics: FeatureStatistics
    logits: Tensor


@dataclass
class ExtractorPair:
    """The extractors that pictures are compared by.

    Attributes:
        features: whose features a Frechet distance is over; None for none.
        classifier: that names classes; None for none.
        size: side that pictures are resized to first; None: the one that each was trained on.
    """

    features: Extractor | None
    classifier: Extractor | None
    size: int | None = None

    @classmethod
    def load(
        cls, features: str | None, classifier: str | None, size: int | None, device: torch.device
    ) -> ExtractorPair:
        """The extractors of these names.

        Raises:
            ValueError: one is unknown, or not here.
        """
        loaded = {name: load_extractor(name).to(device) for name in dict.fromkeys((features, classifier)) if name}
        return cls(loaded.get(features or ""), loaded.get(classifier or ""), size)

    @torch.inference_mode()
    def features_of(self, batches: Iterable[Tensor]) -> PictureFeatures:
        """The features and logits of batches of pictures, uint8 (B, C, H, W)."""
        statistics, logits = FeatureStatistics(), [torch.zeros(0, 0)]
        for batch in batches:
            for extractor in {id(one): one for one in (self.features, self.classifier) if one is not None}.values():
                pixels = to_pixel_values(batch).to(extractor.mean.device)
                found = extractor(pixels, size=self.size or extractor.size)
                if extractor is self.features:
                    statistics.update(found.pooled)
                if extractor is self.classifier:
                    logits.append(found.logits.float().cpu())
        return PictureFeatures(statistics, torch.cat([one for one in logits if one.numel()] or logits))


def compare_pictures(
    extractors: ExtractorPair,
    image_tokenizer: ImageTokenizer,
    pictures: DecodedPictures,
    captions: Sequence[str | None],
    *,
    pipeline: TextToImagePipeline | None = None,
    drawn_per_caption: int = 0,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Figures of reconstructions, and of pictures drawn from every distinct caption, against the real pictures.

    Args:
        pictures: the split.
        captions: the first of each picture, or None.
        pipeline: that draws; None for a tokenizer alone.
        drawn_per_caption: pictures for each distinct caption; 0 draws none.
        sampling: settings of the pipeline's call.

    Returns:
        `extractor`, `classifier` (names), `real`, `reconstructed` and `drawn`: each with `n`, `frechet` (against real),
        and `class_first`, `class_among_five`, the shares whose caption's class the classifier names.
    """
    real = extractors.features_of(_batches(pictures, None, "real pictures"))
    sets: dict[str, tuple[PictureFeatures, list[str | None]]] = {
        "real": (real, list(captions)),
        "reconstructed": (
            extractors.features_of(_batches(pictures, image_tokenizer, "reconstructions")),
            list(captions),
        ),
    }
    if pipeline is not None and drawn_per_caption:
        asked: list[str | None] = [*dict.fromkeys(text for text in captions if text)] or [None]
        each = [text for text in asked for _ in range(drawn_per_caption)]
        sets["drawn"] = (
            extractors.features_of(_drawn(pipeline, asked, drawn_per_caption, seed, dict(sampling or {}))),
            each,
        )
    figures: dict[str, Any] = {
        "extractor": extractors.features and extractors.features.name,
        "classifier": extractors.classifier and extractors.classifier.name,
        "size": extractors.size or (extractors.features and extractors.features.size),
    }
    classes: dict[str, int] = {}
    captioned = [row for row, text in enumerate(captions) if text]
    if extractors.classifier is not None and captioned:
        classes = caption_classes(real.logits[captioned], [str(captions[row]) for row in captioned])
    for name, (found, texts) in sets.items():
        figures[name] = {"n": len(texts), **_class_figures(found.logits, texts, classes)}
        if name != "real" and extractors.features is not None:
            figures[name]["frechet"] = frechet_distance(found.statistics, real.statistics)
    return figures


def _class_figures(logits: Tensor, texts: Sequence[str | None], classes: Mapping[str, int]) -> dict[str, float]:
    rows = [row for row, text in enumerate(texts) if text in classes]
    if not rows:
        return {}
    scores = class_scores(logits[rows], [str(texts[row]) for row in rows], classes)
    return {"class_first": scores.first, "class_among_five": scores.among_five}


def _batches(pictures: DecodedPictures, image_tokenizer: ImageTokenizer | None, label: str) -> Iterator[Tensor]:
    """The pictures, or their reconstructions, uint8 (B, C, H, W)."""
    for indices in tqdm([*index_batches(len(pictures), BATCH)], desc=label, unit=" batches", leave=False):
        batch = torch.from_numpy(pictures.batch(list(indices)).copy())
        yield batch if image_tokenizer is None else reconstruct(image_tokenizer, batch)[0]


def _drawn(
    pipeline: TextToImagePipeline, captions: Sequence[str | None], each: int, seed: int, sampling: dict[str, Any]
) -> Iterator[Tensor]:
    """`each` pictures for every caption, uint8 (B, C, H, W)."""
    for caption in tqdm(captions, desc="drawing", unit=" captions", leave=False):
        images = pipeline(caption, num_images_per_prompt=each, seed=seed, output_type="pt", **sampling).images
        assert isinstance(images, Tensor)
        for part in images.split(BATCH):
            yield (part * 255).round().to(torch.uint8).cpu()
