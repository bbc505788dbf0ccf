"""How the built-in world is drawn with Pillow: palettes, things with their rims, backgrounds."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from tokenizer_image.sprites.things import DRAWINGS, Point

RGB = tuple[int, int, int]

SUPERSAMPLING = 4
RIM = 0.055  # width of the rim in units of a thing's diameter

# --------------------------------------------------------------------------- colours

COLOURS: dict[str, RGB] = {
    "red": (218, 24, 36),
    "orange": (255, 134, 10),
    "yellow": (255, 236, 48),
    "green": (36, 158, 52),
    "blue": (24, 88, 230),
    "purple": (152, 44, 188),
    "pink": (255, 142, 200),
    "brown": (130, 76, 36),
    "white": (255, 255, 255),
    "black": (26, 26, 30),
}
_INK, _PAPER = (24, 24, 32), (255, 255, 255)
_FIXED: dict[str, RGB] = {
    "ink": _INK,  # eyes, wheels
    "leaf": (58, 150, 62),
    "wood": (112, 70, 40),
    "cream": (250, 236, 208),
    "flame": (255, 176, 40),
    "beak": (250, 170, 40),
}
# Tones of details that the general rule would make invisible on the thing.
_EXCEPTIONS: dict[str, dict[str, RGB]] = {
    "orange": {"beak": (214, 60, 30), "flame": (226, 60, 30)},
    "yellow": {"beak": (214, 60, 30), "flame": (226, 60, 30), "dark": (226, 172, 20), "rim": (122, 92, 12)},
    "green": {"leaf": (20, 104, 40)},
    "brown": {"wood": (70, 40, 20)},
    "white": {"dark": (200, 206, 220), "pale": (150, 164, 190), "rim": (84, 92, 112)},
    "black": {"dark": (74, 74, 84), "light": (92, 92, 104), "ink": (226, 226, 232), "rim": (176, 178, 190)},
}
_DIM = ("red", "green", "blue", "purple", "brown")  # get a bright rim at night


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """`first` moved towards `second` by `share` (0 to 1)."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@functools.cache
def palette(colour: str, night: bool = False) -> dict[str, RGB]:
    """The RGB of each tone for a thing of this colour, before a background that is dark or not."""
    base = COLOURS[colour]
    tones = {
        "base": base,
        "dark": mix(base, _INK, 0.30),
        "light": mix(base, _PAPER, 0.42),
        "pale": mix(_PAPER, base, 0.08),  # windows, spots
        "rim": mix(base, _INK, 0.62),
    }
    tones |= _FIXED | _EXCEPTIONS.get(colour, {})
    if night and colour in _DIM:
        tones["rim"] = mix(base, _PAPER, 0.45)
    return tones


# --------------------------------------------------------------------------- things


def _grown(points: tuple[Point, ...], width: float) -> tuple[Point, ...]:
    """The polygon with every edge moved outwards by `width` (corners mitred, at most 2 widths long)."""
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True))
    side = 1 if area > 0 else -1
    grown = []
    for before, here, after in zip(points[-1:] + points[:-1], points, points[1:] + points[:1], strict=True):
        normals = []
        for (x0, y0), (x1, y1) in ((before, here), (here, after)):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            normals.append((side * (y1 - y0) / length, -side * (x1 - x0) / length))
        nx, ny = normals[0][0] + normals[1][0], normals[0][1] + normals[1][1]
        reach = 2 * width / max(nx * nx + ny * ny, math.hypot(nx, ny), 1e-6)
        grown.append((here[0] + nx * reach, here[1] + ny * reach))
    return tuple(grown)


def _fitted(outlines: list[tuple[Point, ...]], extent: float) -> list[tuple[Point, ...]]:
    """All outlines together centred on (0, 0), the larger of width and height scaled to `extent`."""
    xs = [x for points in outlines for x, _ in points]
    ys = [y for points in outlines for _, y in points]
    cx, cy = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    unit = extent / max(max(xs) - min(xs), max(ys) - min(ys))
    return [tuple(((x - cx) * unit, (y - cy) * unit) for x, y in points) for points in outlines]


@functools.cache
def polygons(thing: str) -> tuple[tuple[tuple[Point, ...], str], ...]:
    """(points, tone) in drawing order, in units of the diameter around the centre, rim included."""
    shapes = DRAWINGS[thing]()
    bodies = _fitted([shape.points for shape in shapes], 1 - 2 * RIM)
    rims = [_grown(points, RIM) for points, shape in zip(bodies, shapes, strict=True) if shape.rim]
    tones = ["rim"] * len(rims) + [shape.tone for shape in shapes]
    return tuple(zip(_fitted(rims + bodies, 1.0), tones, strict=True))


def draw_thing(
    pen: ImageDraw.ImageDraw,
    thing: str,
    colour: str,
    *,
    centre: Point,
    diameter: float,
    night: bool = False,
) -> None:
    """Draw a thing; `centre` and `diameter` in the pen's pixels. `night` says that the background is dark."""
    x, y = centre
    tones = palette(colour, night)
    for points, tone in polygons(thing):
        # Pillow cuts coordinates to integers: half a pixel makes that rounding.
        pen.polygon([(x + diameter * u + 0.5, y + diameter * v + 0.5) for u, v in points], fill=tones[tone])


# --------------------------------------------------------------------------- backgrounds


@dataclass(frozen=True)
class Backdrop:
    """Two vertical gradients (top, bottom), the near one below a skyline, with optional clouds.

    Muted colours, which need few codes and differ from those of all objects. The same in every picture.
    """

    far: tuple[RGB, RGB]
    near: tuple[RGB, RGB] | None = None
    skyline: tuple[float, ...] = ()  # heights at equal steps from left to right, 0 (top) to 1 (bottom)
    clouds: tuple[tuple[float, float, float, float], ...] = ()  # x, y and radii, as shares of the picture


BACKDROPS: dict[str, Backdrop] = {
    "grass": Backdrop(
        ((204, 226, 222), (222, 234, 214)), ((164, 204, 132), (130, 180, 104)), (0.44, 0.38, 0.36, 0.41, 0.47)
    ),
    "sand": Backdrop(
        ((248, 236, 214), (246, 228, 198)), ((230, 200, 150), (212, 176, 122)), (0.38, 0.42, 0.48, 0.46, 0.38)
    ),
    "sea": Backdrop(((196, 226, 232), (216, 234, 232)), ((98, 170, 182), (52, 122, 144)), (0.3, 0.3, 0.3)),
    "sky": Backdrop(
        ((132, 178, 232), (196, 220, 246)),
        clouds=(
            (0.12, 0.20, 0.20, 0.08),
            (0.24, 0.15, 0.12, 0.09),
            (0.86, 0.84, 0.22, 0.08),
            (0.74, 0.79, 0.12, 0.09),
        ),
    ),
    "night": Backdrop(((30, 30, 70), (72, 64, 116))),
    "snow": Backdrop(
        ((196, 206, 226), (214, 220, 234)), ((244, 246, 250), (228, 232, 244)), (0.52, 0.50, 0.44, 0.40, 0.42)
    ),
}
BACKGROUNDS: tuple[str, ...] = tuple(BACKDROPS)


def _gradient(colours: tuple[RGB, RGB], top: int, bottom: int, size: int) -> Image.Image:
    picture = Image.new("RGB", (size, size))
    pen = ImageDraw.Draw(picture)
    for row in range(size):
        share = min(max((row - top) / max(bottom - top, 1), 0.0), 1.0)
        pen.line((0, row, size, row), fill=mix(*colours, share))
    return picture


@functools.lru_cache(maxsize=32)
def _backdrop(name: str, size: int) -> Image.Image:
    drop = BACKDROPS[name]
    last = len(drop.skyline) - 1
    horizon = round(sum(drop.skyline) / len(drop.skyline) * size) if drop.near else size
    picture = _gradient(drop.far, 0, horizon, size)
    if drop.near:
        corners: list[Point] = []
        for column in range(size + 1):  # a cosine between neighbouring heights
            step = min(int(column / size * last), last - 1)
            share = (1 - math.cos(math.pi * (column / size * last - step))) / 2
            corners.append((column, size * (drop.skyline[step] * (1 - share) + drop.skyline[step + 1] * share)))
        mask = Image.new("L", (size, size))
        ImageDraw.Draw(mask).polygon([*corners, (size, size), (0, size)], fill=255)
        picture.paste(_gradient(drop.near, horizon, size, size), (0, 0), mask)
    if drop.clouds:
        mask = Image.new("L", (size, size))
        pen = ImageDraw.Draw(mask)
        for x, y, rx, ry in drop.clouds:
            pen.ellipse([size * (x - rx), size * (y - ry), size * (x + rx), size * (y + ry)], fill=190)
        mask = mask.filter(ImageFilter.GaussianBlur(size / 32))
        picture.paste((238, 244, 252), (0, 0), mask)
    return picture


def backdrop(name: str, size: int) -> Image.Image:
    """A fresh RGB picture of a background alone, `size` x `size`."""
    return _backdrop(name, size).copy()
