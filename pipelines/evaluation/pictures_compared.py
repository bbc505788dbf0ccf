"""Real pictures beside reconstructed and drawn ones, as extractors see them: Frechet distance and classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.evaluation.metrics.classes import caption_classes, class_scores
from pipelines.evaluation.metrics.density_coverage import NEIGHBOURS as COVERAGE_NEIGHBOURS
from pipelines.evaluation.metrics.density_coverage import density_and_coverage
from pipelines.evaluation.metrics.frechet import FeatureStatistics, frechet_distance, too_few_pictures
from pipelines.evaluation.metrics.intervals import shares
from pipelines.evaluation.metrics.precision_recall import precision_and_recall
from pipelines.evaluation.metrics.result_cache import ResultCache
from pipelines.machine.batches import index_batches
from tokenizer_image.fingerprint import weights_hash
from tokenizer_image.losses.extractors import Extractor, load_extractor
from tokenizer_image.preprocessing import to_pixel_values

BATCH = 50  # pictures that an extractor reads at once


@dataclass
class PictureFeatures:
    """What extractors return for a set of pictures.

    Attributes:
        features: (n, D) float32, for distances between sets; (0, 0) without an extractor.
        logits: (n, classes) float32 of the classifier; (0, 0) without one.
    """

    features: Tensor
    logits: Tensor

    @property
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of the features."""
        statistics = FeatureStatistics()
        statistics.update(self.features)
        return statistics


@dataclass
class ExtractorPair:
    """The extractors that pictures are compared by.

    Attributes:
        features: whose features distances are over; None for none.
        classifier: that names classes; None for none.
        size: side that pictures are resized to first; None: the one that each was trained on, if it has one.
    """

    features: Extractor | None
    classifier: Extractor | None
    size: int | None = None

    @classmethod
    def load(
        cls,
        features: str | None,
        classifier: str | None,
        size: int | None,
        device: torch.device,
        load: Callable[[str], Extractor] = load_extractor,
    ) -> ExtractorPair:
        """The extractors of these names, each made once by `load`.

        Raises:
            ValueError: one is unknown, or not here, or does not read pictures of this size.
        """
        loaded = {name: load(name).to(device) for name in dict.fromkeys((features, classifier)) if name}
        for one in loaded.values():
            one.check_size(size, "--extractor_size")
        return cls(loaded.get(features or ""), loaded.get(classifier or ""), size)

    def describe(self) -> dict[str, Any]:
        """Name and hash of the weights of each, and the size that pictures are read at; None: their own."""
        first = self.features or self.classifier
        return {
            "extractor": self.features and self.features.name,
            "extractor_hash": self.features and weights_hash(self.features),
            "classifier": self.classifier and self.classifier.name,
            "classifier_hash": self.classifier and weights_hash(self.classifier),
            "size": self.size or (first and first.size),
        }

    @property
    def notes(self) -> list[str]:
        """What is to be said of the weights."""
        return [one.note for one in dict.fromkeys((self.features, self.classifier)) if one is not None and one.note]

    def features_of(self, batches: Iterable[Tensor]) -> PictureFeatures:
        """The features and logits of batches of pictures, uint8 (B, C, H, W)."""
        reader = FeatureReader(self)
        for batch in batches:
            reader.update(batch)
        return reader.result()

    def cached(
        self, cache: ResultCache | None, key: Mapping[str, Any], batches: Callable[[], Iterable[Tensor]]
    ) -> PictureFeatures:
        """`features_of(batches())`, or what the cache has kept of it under `key`, which decides the pictures."""

        def compute() -> dict[str, Tensor]:
            found = self.features_of(batches())
            return {"features": found.features, "logits": found.logits}

        if cache is None:
            return self.features_of(batches())
        return PictureFeatures(**cache.tensors({"kind": "features", **self.describe(), **key}, compute))


@dataclass
class FeatureReader:
    """Gathers features and logits of pictures that come batch by batch."""

    extractors: ExtractorPair
    _features: list[Tensor] = field(default_factory=list)
    _logits: list[Tensor] = field(default_factory=list)

    @torch.inference_mode()
    def update(self, pictures: Tensor) -> None:
        """Add pictures uint8 (B, C, H, W)."""
        pair = self.extractors
        for batch in pictures.split(BATCH):
            for extractor in {id(one): one for one in (pair.features, pair.classifier) if one is not None}.values():
                found = extractor(to_pixel_values(batch).to(extractor.mean.device), size=pair.size or extractor.size)
                if extractor is pair.features:
                    self._features.append(found.pooled.float().cpu())
                if extractor is pair.classifier:
                    self._logits.append(found.logits.float().cpu())

    def result(self) -> PictureFeatures:
        """Of all pictures so far."""
        none = torch.zeros(0, 0)
        return PictureFeatures(
            torch.cat(self._features) if self._features else none, torch.cat(self._logits) if self._logits else none
        )


@dataclass
class PictureSet:
    """Pictures to compare with real ones.

    Attributes:
        captions: of each, None without.
    """

    features: PictureFeatures
    captions: Sequence[str | None]


def batches_of(pictures: DecodedPictures) -> Iterator[Tensor]:
    """The pictures, uint8 (B, C, H, W)."""
    for indices in tqdm([*index_batches(len(pictures), BATCH)], desc="features", unit=" batches", leave=False):
        yield torch.from_numpy(pictures.batch(list(indices)).copy())


def compare_sets(extractors: ExtractorPair, real: PictureSet, others: Mapping[str, PictureSet]) -> dict[str, Any]:
    """Figures of sets of pictures, against the real pictures.

    Args:
        real: the split.
        others: `reconstructed` and `drawn`, where there are any.

    Returns:
        what `ExtractorPair.describe` says; `warnings`; `real` and each of `others` with `n`, and with an extractor
        `frechet`, and of drawn ones `precision`, `recall`, `density`, `coverage` (against real, with `interval`), and
        with a classifier `class_first`, `class_among_five`, the shares whose caption's class it names.
    """
    figures: dict[str, Any] = {**extractors.describe(), "warnings": extractors.notes}
    classes = _classes(extractors.classifier, real)
    statistics = real.features.statistics if extractors.features is not None else None
    for name, one in {"real": real, **others}.items():
        figures[name] = {"n": len(one.captions), **_class_figures(one.features.logits, one.captions, classes)}
        if name == "real" or statistics is None:
            continue
        figures[name]["frechet"] = frechet_distance(one.features.statistics, statistics)
        warning = too_few_pictures(min(len(one.captions), len(real.captions)), statistics.size)
        if warning is not None:
            figures["warnings"].append(f"{name} pictures: {warning}")
        if name == "drawn":
            _add_manifold_figures(figures, real.features.features, one.features.features)
    return figures


def _classes(classifier: Extractor | None, real: PictureSet) -> dict[str, int]:
    """The class of each caption: the classifier's own, where it has learned captions, else by the real pictures."""
    if classifier is not None and classifier.class_names:
        return {caption: number for number, caption in enumerate(classifier.class_names)}
    captioned = [row for row, text in enumerate(real.captions) if text]
    if classifier is None or not captioned:
        return {}
    return caption_classes(real.features.logits[captioned], [str(real.captions[row]) for row in captioned])


def _add_manifold_figures(figures: dict[str, Any], real: Tensor, drawn: Tensor) -> None:
    """Add precision, recall, density and coverage to `figures["drawn"]`, or why there are none to its warnings."""
    if min(len(real), len(drawn)) <= COVERAGE_NEIGHBOURS:
        figures["warnings"].append(
            f"{len(real)} real and {len(drawn)} drawn pictures are too few for precision, recall, density and "
            f"coverage: at least {COVERAGE_NEIGHBOURS + 1} of each are needed (--max_examples, --drawn_per_caption)"
        )
        return
    own = figures["drawn"]
    for found in (precision_and_recall(real, drawn), density_and_coverage(real, drawn)):
        found.pop("neighbours")
        own["interval"] = own.get("interval", {}) | found.pop("interval")
        own |= found


def _class_figures(logits: Tensor, texts: Sequence[str | None], classes: Mapping[str, int]) -> dict[str, Any]:
    rows = [row for row, text in enumerate(texts) if text in classes]
    if not rows:
        return {}
    scores = class_scores(logits[rows], [str(texts[row]) for row in rows], classes)
    counts = {
        "class_first": round(scores.first * scores.count),
        "class_among_five": round(scores.among_five * scores.count),
    }
    return {**shares(counts, scores.count), "num_captioned": scores.count}
