"""The page's own HTML: the stage with pictures that are being drawn, the gallery, and what the model has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from pipelines.serving.page.tiles import data_address

SMOOTH_FROM = 160  # pixels of a side above which a picture is enlarged smoothly, not pixel by pixel
StageKind = Literal["idle", "busy", "done", "error"]
MadeBy = Literal["draw", "edit", "vary"]


@dataclass(frozen=True)
class Settings:
    """What a picture was drawn with, as the fields of the page show it."""

    prompt: str
    height: int
    width: int
    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Drawn:
    """A finished picture in the gallery.

    Attributes:
        png: the file.
        seed: with which, and the settings, it is drawn again.
        made_by: the tab that made it.
    """

    png: bytes = field(repr=False)
    seed: int
    settings: Settings
    made_by: MadeBy


@dataclass(frozen=True)
class Frame:
    """A picture on the stage.

    Attributes:
        png: None before anything is drawn.
        shape: (height, width) in pixels.
        grid: (rows, columns) of its places.
        codes: how many of its codes are drawn, and how many it has.
        seed: None before the engine has chosen one.
    """

    png: bytes | None = field(repr=False)
    shape: tuple[int, int]
    grid: tuple[int, int]
    codes: tuple[int, int]
    seed: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every code is drawn."""
        return self.codes[0] == self.codes[1]


def stage(frames: Sequence[Frame], status: str, *, kind: StageKind = "busy") -> str:
    """Pictures side by side, and one line that says where the work stands."""
    role = "alert" if kind == "error" else "status"
    line = f'<p class="status {kind}" role="{role}">{escape(status)}</p>'
    if not frames:
        return f'<div class="stage" data-state="{kind}">{line}{_empty() if kind == "idle" else ""}</div>'
    pictures = "".join(_frame(number, frame) for number, frame in enumerate(frames))
    return (
        f'<div class="stage" data-state="{kind}">{line}'
        f'<div class="pictures" data-count="{min(len(frames), 5)}">{pictures}</div></div>'
    )


def _empty() -> str:
    return '<div class="pictures" data-count="1"><div class="frame empty" style="--rows:4;--columns:4"></div></div>'


def _frame(number: int, frame: Frame) -> str:
    (height, width), (rows, columns), (drawn, total) = frame.shape, frame.grid, frame.codes
    words = f"picture {number + 1}" + ("" if frame.is_complete else f", {drawn} of {total} codes drawn")
    image = (
        ""
        if frame.png is None
        else f'<img class="{_crispness(frame.shape)}" alt="{words}" src="{data_address(frame.png)}">'
    )
    progress = "" if frame.is_complete else f'<i class="bar" style="width:{100 * drawn / total:.1f}%"></i>'
    return (
        f'<figure class="frame" data-complete="{str(frame.is_complete).lower()}" data-codes="{drawn}" '
        f'style="aspect-ratio:{width}/{height};--rows:{rows};--columns:{columns}">{image}{progress}</figure>'
    )


def _crispness(shape: tuple[int, int]) -> str:
    return "crisp" if max(shape) < SMOOTH_FROM else "smooth"


def gallery(drawn: Sequence[Drawn], chosen: int | None = None) -> str:
    """All finished pictures, the newest first; a card has its place in `drawn` as `data-index`."""
    if not drawn:
        return '<p class="gallery-empty">Finished pictures gather here, with the seeds that draw them again.</p>'
    cards = [_card(index, drawn[index], index == chosen) for index in reversed(range(len(drawn)))]
    return f'<div class="gallery">{"".join(cards)}</div>'


def _card(index: int, picture: Drawn, is_chosen: bool) -> str:
    settings, address = picture.settings, data_address(picture.png)
    label = escape(f"{settings.prompt or 'no prompt'}, seed {picture.seed}", quote=True)
    mark = {"draw": "", "edit": '<b class="mark">edited</b>', "vary": '<b class="mark">varied</b>'}[picture.made_by]
    return (
        f'<figure class="card{" chosen" if is_chosen else ""}">'
        f'<button type="button" class="choose" data-index="{index}" title="{label}" '
        f'aria-pressed="{str(is_chosen).lower()}">'
        f'<img class="{_crispness((settings.height, settings.width))}" alt="{label}" src="{address}">{mark}</button>'
        f'<figcaption><button type="button" class="seed" data-copy="{picture.seed}" title="Copy the seed">'
        f"{picture.seed}</button>"
        f'<a class="save" download="tessera-{picture.seed}.png" href="{address}" title="Save as PNG" '
        f'aria-label="Save as PNG">&#8595;</a></figcaption></figure>'
    )


def abilities(uses: Sequence[tuple[str, str | None]], remedy: str) -> str:
    """What the model does, a word each; a use that it has not learned is grey, and a sentence says why.

    Args:
        uses: name of each, and why it is not there, None where it is.
        remedy: a sentence that follows the reasons.
    """
    words = "".join(
        f'<li class="{"can" if reason is None else "cannot"}"'
        + ("" if reason is None else f' title="{escape(reason, quote=True)}"')
        + f">{escape(name)}</li>"
        for name, reason in uses
    )
    reasons = "; ".join(dict.fromkeys(reason for _, reason in uses if reason))
    note = f"Greyed out: {reasons}. {remedy}" if reasons else ""
    return f'<ul class="abilities">{words}</ul>' + (f'<p class="not-learned">{escape(note)}</p>' if note else "")


def note_line(text: str) -> str:
    """A sentence below a field."""
    return f'<p class="note">{escape(text.strip())}</p>' if text.strip() else ""
