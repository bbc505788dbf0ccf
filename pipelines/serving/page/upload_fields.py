"""Fields of the page that take pictures: they hand on the files' content, which the page's actions read.

gradio itself would decode uploads without limits. Its components are changed one by one, not by subclasses: for a
subclass gradio writes a stub beside the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

KEPT_CANVASES = 32  # canvases that browsers have sent, and no action has taken yet


@dataclass(frozen=True)
class Painting:
    """What an editor holds, as the content of picture files: the picture, and what was painted over it."""

    background: bytes
    layers: list[bytes]


class Canvases(dict[str, Any]):
    """Canvases by their names; the oldest goes when there are more than `KEPT_CANVASES`."""

    def __setitem__(self, name: str, canvas: Any) -> None:
        super().__setitem__(name, canvas)
        while len(self) > KEPT_CANVASES:
            del self[next(iter(self))]


def picture_field(**settings: Any) -> gr.Image:
    """A `gr.Image` whose value is the content of the file, None where there is none."""
    field = gr.Image(**settings)
    field.preprocess = _content  # type: ignore[assignment, method-assign]
    return field


def mask_editor(**settings: Any) -> gr.ImageEditor:
    """A `gr.ImageEditor` whose value is a `Painting`, None where there is no picture."""
    editor = gr.ImageEditor(**settings)
    editor.blob_storage = canvases = Canvases()

    def painting(payload: Any) -> Painting | None:
        if payload is None:
            return None
        if payload.id is not None:
            sent = canvases.pop(payload.id, None)
            background, layers = (None, []) if sent is None else (sent.background, sent.layers)
        else:
            background, layers = _content(payload.background), [_content(layer) for layer in payload.layers]
        return None if background is None else Painting(background, [layer for layer in layers if layer is not None])

    editor.preprocess = painting  # type: ignore[method-assign, assignment]
    return editor


def _content(file: Any) -> bytes | None:
    """The content of gradio's description of a file."""
    return None if file is None or file.path is None else Path(file.path).read_bytes()
