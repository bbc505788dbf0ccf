"""Pictures to codes and back: the image tokenizer of stage 1."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Autoencoder": "autoencoder",
    "AutoencoderConfig": "autoencoder_configuration",
    "AutoencoderOutput": "autoencoder",
    "load_autoencoder": "registry",
    "Bottleneck": "bottlenecks",
    "BottleneckOutput": "bottlenecks",
    "build_bottleneck": "bottlenecks",
    "register_bottleneck": "bottlenecks",
    "VQVAE": "vqvae",
    "VQVAEConfig": "configuration",
    "VQVAEOutput": "vqvae",
    "CodeLayout": "layout",
    "ImageTokenizer": "layout",
    "load_tokenizer": "registry",
    "register_auto_classes": "auto_classes",
    "register_tokenizer": "registry",
    "FiniteScalarQuantizer": "quantizers",
    "GroupedQuantizer": "quantizers",
    "LookupFreeQuantizer": "quantizers",
    "ProjectedQuantizer": "quantizers",
    "Quantizer": "quantizers",
    "QuantizerOutput": "quantizers",
    "ResidualQuantizer": "quantizers",
    "VectorQuantizer": "quantizers",
    "build_quantizer": "quantizers",
    "register_quantizer": "quantizers",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name at first use, so that `import tokenizer_image` does not load torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
