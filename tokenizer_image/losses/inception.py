"""Inception-v3 as the standard Frechet inception distance takes it: torch-fidelity's network, resizing and weights."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import torch

from tokenizer_image.losses.extractors import (
    INCEPTION,
    INSTALL,
    Extractor,
    LayerRow,
    file_hash,
    missing_package,
    register_extractor,
    weights_error,
)

LAYERS = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a",
    "Mixed_7b", "Mixed_7c",
)  # fmt: skip
# In front of each halving of the resolution, and the last: sides of 147, 71, 35, 17 and 8.
DEPTHS = tuple(LAYERS.index(name) for name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"))
MIDDLE = 128 / 255  # a value v of 0 .. 255 is read as (v - 128) / 128


def build_inception(name: str) -> Extractor:
    """Inception-v3 (Szegedy et al. 2016) with the weights of Heusel et al. 2017: "inception=FILE" with a file of them,
    or "inception" with the file that torch-fidelity has downloaded.

    `Features.pooled` (B, 2048) are the features of the standard FID, equal to torch-fidelity's "2048"; logits are of
    1008 classes, of which 1 to 1000 are ImageNet's. Pictures are resized to 299 pixels bilinearly without smoothing, as
    by TensorFlow 1. The distance depends on all of that: only FIDs over these features, resized so, compare with those
    of papers.

    Raises:
        ValueError: the package torch-fidelity is not installed, or the file is not there or of another network.
    """
    if missing_package(name) is not None:
        raise ValueError(f"extractor {name!r} needs the package torch-fidelity: {INSTALL}")
    code = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network, note = _network(code, name)
    row = LayerRow([getattr(network, layer) for layer in LAYERS], DEPTHS, network.fc)
    size, grey = network.INPUT_IMAGE_SIZE, (MIDDLE,) * 3
    return Extractor(name, row, size=size, least_size=size, mean=grey, std=grey, resize=_resized, note=note)


def _network(code: Any, name: str) -> tuple[Any, str | None]:
    """The package's network with its weights, and what is to be said of these where they are not the standard ones."""
    label, url = f"extractor {name!r}", code.URL_INCEPTION_V3
    given = name.partition("=")[2]
    file = Path(given or f"{torch.hub.get_dir()}/checkpoints/{url.rpartition('/')[2]}")
    remedy = f"give the file of {url} as {INCEPTION}=FILE"
    try:
        weights = io.BytesIO()  # the package unpickles what it is given: it gets the tensors alone, read safely
        torch.save(torch.load(file, map_location="cpu", weights_only=True), weights)
        weights.seek(0)
        network = code.FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=weights)
    except Exception as error:  # a file that is not there or is of something else; safe loading has errors of its own
        raise weights_error(label, file, error, remedy) from error
    standard, found = url.rpartition("-")[2].removesuffix(".pth"), file_hash(file)
    if found.startswith(standard):
        return network, None
    return network, (
        f"{label} has other weights than the standard FID (their SHA-256 begins with {found[:16]}, not with "
        f"{standard}): its distances compare with no paper's"
    )


def _resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures (B, 3, H, W) to (B, 3, size, size), as torch-fidelity resizes them."""
    code = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
    found: torch.Tensor = code.interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(size, size), align_corners=False)
    return found


register_extractor(INCEPTION, build_inception)
register_extractor(f"{INCEPTION}=", build_inception)
