"""The shapes of the things in the built-in world: filled polygons on a grid of about 100 x 100, y downwards.

A shape has a *tone* (the thing's own colour, a darker or lighter shade of it, or a fixed one such as a leaf's
green: `drawing.palette`), and `rim` says whether it is part of the silhouette, around which a thin
contrasting rim is drawn. Grids are fitted to the thing's diameter later, so only proportions matter here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    points: tuple[Point, ...]
    tone: str = "base"
    rim: bool = True


# --------------------------------------------------------------------------- curves


def ray(cx: float, cy: float, radius: float, angle: float) -> Point:
    """The point at this distance and angle in degrees, clockwise on the screen from the right."""
    return cx + radius * math.cos(math.radians(angle)), cy + radius * math.sin(math.radians(angle))


def arc(
    cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0, steps: int = 24
) -> list[Point]:
    """Points of an ellipse from angle `start` to `end` in degrees, clockwise on the screen from the right."""
    closed = abs(end - start) >= 360
    angles = [start + (end - start) * i / (steps if closed else steps - 1) for i in range(steps)]
    return [(cx + rx * math.cos(math.radians(a)), cy + ry * math.sin(math.radians(a))) for a in angles]


def disc(cx: float, cy: float, rx: float, ry: float | None = None, tone: str = "base", rim: bool = True) -> Shape:
    return Shape(tuple(arc(cx, cy, rx, rx if ry is None else ry)), tone, rim)


def poly(*points: Point, tone: str = "base", rim: bool = True) -> Shape:
    return Shape(points, tone, rim)


def blob(*knots: Point, tone: str = "base", rim: bool = True, steps: int = 4) -> Shape:
    """A closed smooth curve through the knots (Catmull-Rom)."""
    points: list[Point] = []
    for i in range(len(knots)):
        corners = [knots[(i + j - 1) % len(knots)] for j in range(4)]
        for t in (k / steps for k in range(steps)):
            weights = (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (t**3 - t**2) / 2,
            )
            x = sum(w * px for w, (px, _) in zip(weights, corners, strict=True))
            y = sum(w * py for w, (_, py) in zip(weights, corners, strict=True))
            points.append((x, y))
    return Shape(tuple(points), tone, rim)


def band(inner: list[Point], outer: list[Point], tone: str = "base", rim: bool = True) -> Shape:
    """The strip between two open curves that run the same way."""
    return Shape(tuple(outer + inner[::-1]), tone, rim)


def spikes(cx: float, cy: float, outer: float, inner: float, count: int, start: float = -90.0) -> list[Point]:
    """The 2 * count corners of a star."""
    return [
        ray(cx, cy, r, a)
        for i in range(count)
        for a, r in ((start + 360 * i / count, outer), (start + 360 * (i + 0.5) / count, inner))
    ]


def turned(shape: Shape, angle: float) -> Shape:
    """The shape turned clockwise around the middle of the grid, in degrees."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    points = ((50 + (x - 50) * cos - (y - 50) * sin, 50 + (x - 50) * sin + (y - 50) * cos) for x, y in shape.points)
    return replace(shape, points=tuple(points))


# --------------------------------------------------------------------------- things


def dog() -> list[Shape]:
    brow, chin = ((46, 8), (64, 2), (78, 12), (86, 22), (104, 24)), ((106, 38), (88, 45), (70, 52), (52, 50))
    return [
        blob((12, 50), (0, 38), (-6, 22), (3, 18), (11, 32), (24, 42)),  # tail
        poly((6, 60), (24, 60), (24, 98), (8, 98)),  # legs
        poly((54, 60), (72, 60), (72, 98), (56, 98)),
        blob((6, 48), (32, 44), (60, 42), (72, 48), (71, 68), (50, 74), (22, 76), (6, 68)),  # body
        blob(*brow, *chin, (42, 28)),  # head
        blob((44, 4), (55, 12), (56, 36), (46, 50), (35, 42), (35, 16), tone="dark"),  # ear
        disc(101, 27, 7, 6.5, tone="ink", rim=False),
        disc(70, 21, 5.5, 6, tone="ink", rim=False),
    ]


def cat() -> list[Shape]:
    whisker = "rim"
    return [
        poly((6, 4), (16, 0), (46, 26), (10, 52)),  # ears
        poly((94, 4), (84, 0), (54, 26), (90, 52)),
        disc(50, 56, 46, 38),
        poly((14, 14), (30, 28), (14, 38), tone="light", rim=False),
        poly((86, 14), (70, 28), (86, 38), tone="light", rim=False),
        disc(31, 50, 8, 10, tone="ink", rim=False),
        disc(69, 50, 8, 10, tone="ink", rim=False),
        poly((42, 64), (58, 64), (50, 73), tone="ink", rim=False),
        poly((2, 60), (24, 67), (24, 70), (2, 65), tone=whisker, rim=False),
        poly((98, 60), (76, 67), (76, 70), (98, 65), tone=whisker, rim=False),
        poly((4, 78), (26, 74), (26, 77), (4, 83), tone=whisker, rim=False),
        poly((96, 78), (74, 74), (74, 77), (96, 83), tone=whisker, rim=False),
    ]


def fish() -> list[Shape]:
    return [
        poly((34, 50), (4, 18), (0, 22), (8, 50), (0, 78), (4, 82)),  # tail
        blob((42, 26), (56, 12), (66, 16), (74, 30), tone="dark"),  # fins
        blob((48, 72), (56, 88), (68, 80), (68, 70), tone="dark"),
        blob((22, 50), (44, 28), (70, 22), (92, 36), (100, 50), (92, 64), (70, 78), (44, 72)),
        blob((60, 28), (66, 50), (60, 72), (67, 71), (73, 50), (67, 27), tone="dark", rim=False),
        disc(84, 43, 7, tone="pale", rim=False),
        disc(85, 43, 4, tone="ink", rim=False),
    ]


def bird() -> list[Shape]:
    head = ((60, 14), (76, 8), (88, 18), (88, 38))
    return [
        poly((84, 22), (100, 30), (84, 38), tone="beak"),
        poly((44, 80), (50, 80), (50, 98), (44, 98), tone="beak"),
        poly((58, 80), (64, 80), (64, 98), (58, 98), tone="beak"),
        poly((24, 52), (0, 44), (2, 60), (26, 70), tone="dark"),  # tail
        blob(*head, (84, 62), (66, 82), (40, 82), (20, 66), (22, 50), (46, 42)),
        blob((26, 46), (46, 44), (62, 52), (60, 66), (44, 70), (30, 62), tone="dark", rim=False),  # wing
        disc(73, 26, 6, tone="ink", rim=False),
    ]


def tree() -> list[Shape]:
    return [
        poly((40, 78), (60, 78), (60, 102), (40, 102), tone="wood"),
        poly((50, 34), (96, 86), (4, 86)),
        poly((18, 60), (82, 60), (88, 70), (12, 70), tone="dark", rim=False),  # shadow of the tier above
        poly((50, 14), (86, 60), (14, 60)),
        poly((28, 35), (72, 35), (78, 44), (22, 44), tone="dark", rim=False),
        poly((50, -6), (76, 36), (24, 36)),
    ]


def house() -> list[Shape]:
    return [
        poly((70, 8), (82, 8), (82, 34), (70, 34), tone="dark"),  # chimney
        poly((12, 44), (88, 44), (88, 98), (12, 98)),
        poly((50, 4), (100, 48), (0, 48), tone="dark"),
        poly((22, 58), (44, 58), (44, 78), (22, 78), tone="pale", rim=False),
        poly((56, 58), (76, 58), (76, 98), (56, 98), tone="ink", rim=False),
    ]


def car() -> list[Shape]:
    return [
        poly((24, 46), (34, 20), (68, 20), (82, 46)),
        blob((2, 50), (14, 42), (60, 42), (88, 46), (100, 56), (98, 72), (60, 74), (4, 72), steps=3),
        poly((32, 44), (39, 27), (50, 27), (50, 44), tone="pale", rim=False),
        poly((56, 44), (56, 27), (65, 27), (73, 44), tone="pale", rim=False),
        disc(25, 73, 14, tone="ink"),
        disc(76, 73, 14, tone="ink"),
        disc(25, 73, 6, tone="dark", rim=False),
        disc(76, 73, 6, tone="dark", rim=False),
    ]


def boat() -> list[Shape]:
    return [
        poly((46, 0), (52, 0), (52, 74), (46, 74), tone="wood"),
        poly((56, 4), (94, 62), (56, 62)),
        poly((42, 16), (42, 62), (10, 62), tone="light"),
        poly((0, 70), (100, 70), (84, 96), (16, 96)),
        poly((4, 78), (96, 78), (92, 84), (8, 84), tone="dark", rim=False),
    ]


def flower() -> list[Shape]:
    petals = [disc(*ray(50, 30, 22, -90 + 72 * i), 16) for i in range(5)]
    seams = [
        poly((50, 30), ray(50, 30, 40, a - 5), ray(50, 30, 40, a + 5), tone="dark", rim=False)
        for a in range(-54, 270, 72)
    ]
    return [
        poly((45, 60), (55, 60), (55, 106), (45, 106), tone="leaf"),
        blob((51, 104), (60, 86), (86, 76), (80, 96), tone="leaf"),
        blob((49, 104), (40, 86), (14, 76), (20, 96), tone="leaf"),
        *petals,
        *seams,
        disc(50, 30, 11, tone="pale", rim=False),
    ]


def star() -> list[Shape]:
    return [Shape(tuple(spikes(50, 54, 54, 26, 5)))]


def heart() -> list[Shape]:
    points = []
    for i in range(32):
        t = 2 * math.pi * i / 32
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((50 + 3.1 * 16 * math.sin(t) ** 3, 46 - 3.1 * y))
    return [Shape(tuple(points)), disc(26, 26, 8, 7, tone="light", rim=False)]


def apple() -> list[Shape]:
    right = ((70, 22), (92, 34), (94, 62), (78, 92), (62, 98))
    return [
        poly((48, 30), (47, 6), (54, 2), (55, 30), tone="wood"),
        blob((56, 18), (66, 4), (88, 4), (78, 20), tone="leaf"),
        blob((50, 30), *right, (50, 93), *((100 - x, y) for x, y in reversed(right))),
        blob((18, 42), (26, 34), (30, 38), (24, 52), (20, 60), (16, 54), tone="light", rim=False),
    ]


def mushroom() -> list[Shape]:
    return [
        blob((36, 46), (64, 46), (62, 72), (70, 92), (50, 97), (30, 92), (38, 72), tone="cream"),
        Shape(tuple(arc(50, 52, 50, 50, 180, 360, 18) + [(94, 60), (6, 60)])),
        disc(48, 20, 10, 9, tone="pale", rim=False),
        disc(22, 40, 9, 8, tone="pale", rim=False),
        disc(74, 38, 10, 9, tone="pale", rim=False),
    ]


def rocket() -> list[Shape]:
    upright = [
        blob((41, 78), (59, 78), (60, 92), (50, 108), (40, 92), tone="flame"),
        poly((34, 44), (12, 66), (8, 92), (36, 80), tone="dark"),
        poly((66, 44), (88, 66), (92, 92), (64, 80), tone="dark"),
        poly((50, -8), (64, 10), (73, 32), (74, 56), (67, 82), (33, 82), (26, 56), (27, 32), (36, 10)),
        disc(50, 36, 11, tone="pale", rim=False),
    ]
    return [turned(shape, 45) for shape in upright]


def sun() -> list[Shape]:
    return [
        Shape(tuple(spikes(50, 50, 54, 30, 8))),
        disc(50, 50, 36),
        disc(39, 44, 5, 6, tone="ink", rim=False),
        disc(61, 44, 5, 6, tone="ink", rim=False),
        band(arc(50, 52, 16, 8, 10, 170, 9), arc(50, 52, 18, 16, 10, 170, 9), tone="ink", rim=False),
    ]


def cup() -> list[Shape]:
    return [
        band(arc(68, 50, 16, 15, -90, 90, 12), arc(68, 50, 30, 29, -90, 90, 12)),
        Shape(((2, 14), (74, 14), (71, 76), (62, 92), (14, 92), (5, 76))),
        disc(38, 15, 36, 9, tone="base"),
        disc(38, 15, 29, 6, tone="dark", rim=False),
    ]


_DRAWINGS: tuple[Callable[[], list[Shape]], ...] = (
    *(dog, cat, fish, bird, tree, house, car, boat),
    *(flower, star, heart, apple, mushroom, rocket, sun, cup),
)
DRAWINGS: dict[str, Callable[[], list[Shape]]] = {draw.__name__: draw for draw in _DRAWINGS}
THINGS: tuple[str, ...] = tuple(DRAWINGS)
