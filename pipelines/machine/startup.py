"""How commands start sooner."""

from __future__ import annotations

import sys

UNUSED = ("scipy", "torchvision")


def hide_unused_packages() -> None:
    """Let transformers not find packages that drawing and describing do not use.

    It imports them where they are installed, for losses of object detection and for videos: a fifth of the work until a
    first picture. For a command's own process, before transformers is imported; these packages cannot be imported there
    afterwards.
    """
    for name in UNUSED:
        if name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]  # what the import system takes for "not there"
