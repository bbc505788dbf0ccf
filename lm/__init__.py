"""Tokens to tokens: the language model of stage 2. Knows image codes only as integers in ranges."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "MultimodalVocabulary": "vocabulary",
    "NextTokenLoss": "training.losses",
    "TokenCache": "data.token_cache",
    "generate_codes": "generation.images",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Load public names when they are first used, so that `import lm` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
