"""Where pictures and words meet: what a user imports."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "ImageToTextOutput": "image_to_text",
    "ImageToTextPipeline": "image_to_text",
    "InterleavedOutput": "interleaved",
    "InterleavedPipeline": "interleaved",
    "PictureEncoder": "caching.encoder",
    "TextToImageOutput": "text_to_image",
    "TextToImagePipeline": "text_to_image",
    "TextToSignalOutput": "text_to_signal",
    "TextToSignalPipeline": "text_to_signal",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Load public names when they are first used, so that `import pipelines` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
