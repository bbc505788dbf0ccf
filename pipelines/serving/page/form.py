"""The page's fields as a request, and a job's outputs as the page's pictures."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lm.vocabulary import MultimodalVocabulary, Size
from pipelines.serving.engine.jobs import DrawnPicture
from pipelines.serving.page.cards import Drawn, Frame, MadeBy, Settings
from pipelines.serving.page.tiles import drawn_places, grid_of, half_drawn, png_of, spread_over_pixels

SEEDS = 1 << 32  # random ones are below it
ANY_SEED = ""  # of the seed field: another each time
ANY_SIZE = ""  # of the size field: the model's first


@dataclass(frozen=True)
class Form:
    """What the fields of the page hold.

    Attributes:
        prompt: "" draws without one.
        number: of pictures to give.
        candidates: to draw for each of them, so that the best are given.
        size: HEIGHTxWIDTH, or "" for the model's first.
        seed: "" chooses one at random.
    """

    prompt: str
    number: int
    candidates: int
    size: str
    seed: str
    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float

    @property
    def text(self) -> str | None:
        """The prompt, None where the field is empty."""
        return self.prompt.strip() or None

    @property
    def num_drawn(self) -> int:
        """Pictures to draw."""
        return self.number * self.candidates

    def first_seed(self) -> int:
        """The seed of the first picture.

        Raises:
            ValueError: the field holds no whole number.
        """
        text = self.seed.strip()
        if not text:
            return secrets.randbelow(SEEDS)
        if not (text.isascii() and text.isdigit()):
            raise ValueError(f"the seed {text!r} is no whole number from 0 on: correct it, or leave it empty")
        return int(text)

    def sampling(self, is_guided: bool) -> dict[str, float | int | None]:
        """Keyword arguments of every request for pictures; without guidance where the model cannot be guided."""
        return {
            "guidance_scale": self.guidance_scale if is_guided and self.text is not None else 1.0,
            "temperature": self.temperature,
            "top_k": int(self.top_k),
            "top_p": self.top_p,
        }

    def settings(self, size: Size) -> Settings:
        """The form as the gallery keeps it, for pictures of a size."""
        return Settings(self.prompt.strip(), *size, self.guidance_scale, self.temperature, int(self.top_k), self.top_p)


def size_field(size: Size) -> str:
    """A size as the size field holds it."""
    return f"{size[0]}x{size[1]}"


def size_of(vocabulary: MultimodalVocabulary, field: str) -> Size:
    """The size that the size field names.

    Raises:
        ValueError: the model draws no such size.
    """
    known = {size_field(size): size for size in vocabulary.layouts}
    if field == ANY_SIZE:
        return next(iter(known.values()))
    if field not in known:
        raise ValueError(f"size {field!r}: this model draws {', '.join(known)} (height x width)")
    return known[field]


class View:
    """How the pictures of one job look on the stage.

    Args:
        kept: for each picture, (T,) bool, the codes that it keeps of `source`; None where all are drawn.
        source: the picture that is completed or varied, of `size`.
    """

    def __init__(
        self,
        vocabulary: MultimodalVocabulary,
        size: Size,
        kept: list[np.ndarray] | None = None,
        source: Image.Image | None = None,
    ) -> None:
        self.size = size
        self._layout = vocabulary.layouts[size]
        self._total = len(self._layout["level"])
        self._kept, self._source = kept, source

    def empty(self, number: int, seed: int | None = None) -> Frame:
        """Picture `number` before anything of it is drawn."""
        png, codes = None, 0
        if self._kept is not None and self._source is not None:
            places = drawn_places(self._layout, self._kept[number])
            png = png_of(half_drawn(self._source, places)) if places.any() else None
        return Frame(png, self.size, grid_of(self._layout), (codes, self._total), seed)

    def frame(self, drawn: DrawnPicture) -> Frame:
        """A picture as far as it is drawn: kept places come from the source until their codes are decoded."""
        return Frame(
            png_of(drawn.image if drawn.is_complete else self._half(drawn)),
            self.size,
            grid_of(self._layout),
            (len(drawn.codes), drawn.total),
            drawn.seed,
        )

    def _half(self, drawn: DrawnPicture) -> Image.Image:
        is_drawn = np.arange(self._total) < len(drawn.codes)
        places = drawn_places(self._layout, is_drawn)
        if self._kept is None or self._source is None:
            return half_drawn(drawn.image, places)
        decoded = Image.fromarray(spread_over_pixels(places, self.size).astype(np.uint8) * 255)
        shown = Image.composite(drawn.image.convert("RGB"), self._source.convert("RGB"), decoded)
        return half_drawn(shown, places | drawn_places(self._layout, self._kept[drawn.number]))


def finished(drawn: DrawnPicture, form: Form, size: Size, made_by: MadeBy) -> Drawn:
    """A complete picture for the gallery."""
    return Drawn(png_of(drawn.image), drawn.seed, form.settings(size), made_by)
