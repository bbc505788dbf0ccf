"""Two small worlds of captioned drawings for `few_pictures.py`, drawn by rules and written as ordinary folders.

`drawings`: 9,216 combinations of shape, size, colour, rotation and filling, of which a quarter is for training, so that
the rest asks a model to compose. `icons`: line drawings with invented names, where nothing but the name says which.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCALE = 8  # pictures are drawn at so many times their size, then reduced

# ---- drawings

DRAWING_SIDE = 32
Outline = Sequence[tuple[float, float]]


def _arc(x: float, y: float, radius: float, start: float, end: float) -> list[tuple[float, float]]:
    """Points of an arc, in degrees."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


# Outlines in [-1, 1], none of which is like itself turned by a multiple of 45 degrees.
SHAPES: dict[str, Outline] = {
    "triangle": [(0, -1), (0.65, 0.8), (-0.65, 0.8)],
    "arrow": [(0, -1), (0.75, -0.1), (0.28, -0.1), (0.28, 1), (-0.28, 1), (-0.28, -0.1), (-0.75, -0.1)],
    "corner": [(-0.7, -0.9), (-0.1, -0.9), (-0.1, 0.3), (0.8, 0.3), (0.8, 0.9), (-0.7, 0.9)],
    "dome": [*_arc(0, 0.45, 0.95, 180, 360), (0.95, 0.65), (-0.95, 0.65)],
    "moon": [*_arc(0, 0, 0.95, 50, 310), *_arc(0.35, 0, 0.74, 290, 70)],
    "flag": [(-0.7, -1), (0.8, -0.45), (-0.35, 0.1), (-0.35, 1), (-0.7, 1)],
    "drop": [(0, -1), *_arc(0, 0.3, 0.65, -25, 205)],
    "house": [(0, -0.95), (0.9, 0), (0.6, 0), (0.6, 0.85), (-0.6, 0.85), (-0.6, 0), (-0.9, 0)],
}
# Shapes and colours of the other drawings, which a model of the first is transferred to.
OTHER_SHAPES: dict[str, Outline] = {
    "kite": [(0, -1), (0.6, -0.25), (0, 0.95), (-0.6, -0.25)],
    "boot": [(-0.55, -0.95), (0.1, -0.95), (0.1, 0.2), (0.85, 0.45), (0.85, 0.9), (-0.55, 0.9)],
    "key": [(-0.2, -1), (0.2, -1), (0.2, 0.3), (0.7, 0.3), (0.7, 0.6), (0.2, 0.6), (0.2, 0.95), (-0.2, 0.95)],
    "fish": [(-0.95, 0), *_arc(-0.1, 0, 0.75, 220, 360), (0.95, 0.6), (0.65, 0), *_arc(-0.1, 0, 0.75, 0, 140)],
}
OTHER_COLOURS = {"crimson": (180, 20, 60), "navy": (20, 30, 110), "beige": (215, 195, 150), "lime": (150, 220, 50)}
SIZES = {"small": 7.0, "middle-sized": 10.0, "large": 13.5}  # half the extent, in pixels
COLOURS = {
    "red": (220, 40, 40), "orange": (245, 145, 30), "yellow": (235, 205, 30), "green": (45, 160, 60),
    "turquoise": (40, 185, 175), "blue": (45, 85, 215), "violet": (125, 60, 190), "pink": (240, 120, 180),
    "brown": (125, 80, 45), "grey": (140, 140, 140), "black": (25, 25, 25), "olive": (120, 125, 35),
}  # fmt: skip
ROTATIONS = tuple(range(0, 360, 45))
FILLINGS = ("filled", "outlined", "striped", "dotted")


@dataclass(frozen=True)
class Drawing:
    """One combination: the caption says all of it, and the picture follows from it."""

    shape: str
    size: str
    colour: str
    rotation: int
    filling: str

    @property
    def caption(self) -> str:
        """What a user would write."""
        turned = f"turned by {self.rotation} degrees" if self.rotation else "upright"
        return f"a {self.size} {self.colour} {self.shape}, {self.filling}, {turned}"

    def picture(self) -> Image.Image:
        """32x32 RGB, on white."""
        side, radius, angle = DRAWING_SIDE * SCALE, SIZES[self.size] * SCALE, math.radians(self.rotation)
        cosine, sine = math.cos(angle), math.sin(angle)
        points = [
            (side / 2 + radius * (x * cosine - y * sine), side / 2 + radius * (x * sine + y * cosine))
            for x, y in (SHAPES | OTHER_SHAPES)[self.shape]
        ]
        mask = Image.new("L", (side, side), 0)
        pen = ImageDraw.Draw(mask)
        pen.polygon(points, fill=255 if self.filling == "filled" else 0)
        if self.filling in ("striped", "dotted"):
            inside = Image.new("L", (side, side), 0)
            ImageDraw.Draw(inside).polygon(points, fill=255)
            rows, columns = np.mgrid[:side, :side] / SCALE
            pattern = rows % 4 < 2 if self.filling == "striped" else (rows % 4 < 2) & (columns % 4 < 2)
            mask = Image.fromarray((np.asarray(inside) * pattern).astype(np.uint8))
            pen = ImageDraw.Draw(mask)
        pen.line([*points, points[0], points[1]], fill=255, width=round(1.6 * SCALE), joint="curve")
        picture = Image.new("RGB", (side, side), "white")
        picture.paste((COLOURS | OTHER_COLOURS)[self.colour], mask=mask)
        return picture.resize((DRAWING_SIDE, DRAWING_SIDE), Image.Resampling.BOX)


def drawings() -> list[Drawing]:
    """All combinations."""
    return [Drawing(*factors) for factors in product(SHAPES, SIZES, COLOURS, ROTATIONS, FILLINGS)]


def other_drawings() -> list[Drawing]:
    """1,536 combinations of other shapes and colours."""
    return [Drawing(*factors) for factors in product(OTHER_SHAPES, SIZES, OTHER_COLOURS, ROTATIONS, FILLINGS)]


# ---- icons

ICON_SIDE = 64
STROKE = 4  # pixels
ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr", "pl", "sh", "kl")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
ENDS = ("", "", "n", "r", "l", "t", "sk", "m")
MODIFIERS = ("", "in a circle", "in a square", "crossed out", "underlined", "with a dot")


@dataclass(frozen=True)
class Icon:
    """A line drawing, and the name that it goes by."""

    caption: str
    word: int
    modifier: str

    def picture(self) -> Image.Image:
        """64x64 RGB, black on white."""
        side = ICON_SIDE * SCALE // 2
        picture = Image.new("L", (side, side), 255)
        pen = ImageDraw.Draw(picture)
        scale, offset = (0.68, 10.0) if self.modifier.startswith("in a") else (1.0, 0.0)
        if self.modifier == "underlined":
            scale, offset = 0.8, 6.0

        def place(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
            return [((x * scale + offset) * side / ICON_SIDE, (y * scale + offset) * side / ICON_SIDE)
                    for x, y in points]  # fmt: skip

        width = round(STROKE * side / ICON_SIDE)
        for points in _strokes(self.word):
            pen.line(place(points), fill=0, width=width, joint="curve")
        scale, offset = 1.0, 0.0
        extra: dict[str, Outline] = {
            "in a circle": _arc(32, 32, 29, 0, 365),
            "in a square": [(3, 3), (61, 3), (61, 61), (3, 61), (3, 1)],
            "crossed out": [(4, 4), (60, 60)],
            "underlined": [(6, 60), (58, 60)],
        }
        if self.modifier in extra:
            pen.line(place(extra[self.modifier]), fill=0, width=width, joint="curve")
        if self.modifier == "with a dot":
            pen.ellipse([*place([(50, 2), (62, 14)])[0], *place([(62, 14)])[0]], fill=0)
        return picture.resize((ICON_SIDE, ICON_SIDE), Image.Resampling.BOX).convert("RGB")


def _strokes(word: int) -> list[Outline]:
    """Three or four strokes on a grid of 8 pixels, as icons have them."""
    rng = np.random.default_rng([17, word])

    def grid(low: int = 1, high: int = 7) -> float:
        return 8.0 * int(rng.integers(low, high + 1))

    strokes: list[Outline] = []
    for _ in range(int(rng.integers(3, 5))):
        kind = int(rng.integers(6))
        x, y = grid(2, 6), grid(2, 6)
        radius = 8.0 * int(rng.integers(1, 3))
        if kind == 0:
            strokes.append([(grid(), grid()), (grid(), grid())])
        elif kind == 1:
            strokes.append([(grid(), grid()) for _ in range(3)])
        elif kind == 2:
            strokes.append(_arc(x, y, radius, 0, 365))
        elif kind == 3:
            start = 90.0 * int(rng.integers(4))
            strokes.append(_arc(x, y, 2 * radius if radius == 8 else radius, start, start + 180))
        elif kind == 4:
            strokes.append([(x - radius, y - radius), (x + radius, y - radius), (x + radius, y + radius),
                            (x - radius, y + radius), (x - radius, y - radius - 2)])  # fmt: skip
        else:
            strokes.append([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius), (x, y - radius)])
    return strokes


def icons(count: int) -> list[Icon]:
    """Icons with distinct names: each invented word plain and with one modifier."""
    rng = np.random.default_rng(23)
    words: dict[str, None] = {}
    while len(words) < -(-count // 2):
        syllables = [str(rng.choice(ONSETS)) + str(rng.choice(VOWELS)) for _ in range(2)]
        words["".join(syllables) + str(rng.choice(ENDS))] = None
    found = []
    rng = np.random.default_rng(29)
    for index, word in enumerate(words):
        modifier = MODIFIERS[1 + int(rng.integers(len(MODIFIERS) - 1))]
        found += [Icon(word, index, ""), Icon(f"{word} {modifier}", index, modifier)]
    return found[:count]


# ---- folders


def write_folder(folder: Path, items: Sequence[Drawing] | Sequence[Icon]) -> None:
    """Pictures and metadata.jsonl, as users have them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, item in enumerate(items):
        name = f"{index:05d}.png"
        item.picture().save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": item.caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
