"""Scenes of the built-in world: sampled and drawn on the fly, the same for the same (seed, index).

A scene shows one object with a thing, colour, size and position, or two small objects of different things with a
relation between them, before a background. An eighth of the thing-colour pairs is held out: training never shows them,
so that evaluation can measure whether a model composes. `captions.py` describes a scene, `data_set.py` makes a data
set of them.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from PIL import Image, ImageDraw

from tokenizer_image.sprites.drawing import BACKGROUNDS, COLOURS, SUPERSAMPLING, backdrop, draw_thing
from tokenizer_image.sprites.things import THINGS

IMAGE_SIZE = 32  # side of the picture in whose pixels positions and diameters are given
LEAST_IMAGE_SIZE = 8
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "centre")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

DIAMETERS = {"small": 11.0, "large": 18.0}  # pixels
SIZE_JITTER = 0.10  # uniform, as a share of the diameter
POSITION_JITTER = 1.5  # uniform, pixels, in x and in y
OFFSETS = {"small": 8.0, "large": 6.0}  # of left, right, top and bottom from the centre, pixels
PAIR_OFFSET = 7.75  # of each of two objects: 15.5 - 2 * 1.5 apart at least, more than 1.1 * 11
TWO_OBJECTS_SHARE = 0.25

Pairs = Literal["seen", "held_out", "all"]

# Two things of each colour, each thing in one or two colours: 20 of 160 pairs.
_HELD_OUT = {
    "red": ("fish", "boat"),
    "orange": ("bird", "heart"),
    "yellow": ("car", "mushroom"),
    "green": ("dog", "cup"),
    "blue": ("apple", "cat"),
    "purple": ("house", "star"),
    "pink": ("tree", "rocket"),
    "brown": ("sun", "boat"),
    "white": ("flower", "fish"),
    "black": ("heart", "car"),
}
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    (thing, colour) for colour, things in _HELD_OUT.items() for thing in things
)
_PAIRS: dict[str, tuple[tuple[str, str], ...]] = {"all": tuple((t, c) for t in THINGS for c in COLOURS)}
_PAIRS["seen"] = tuple(pair for pair in _PAIRS["all"] if pair not in HELD_OUT_PAIRS)
_PAIRS["held_out"] = tuple(pair for pair in _PAIRS["all"] if pair in HELD_OUT_PAIRS)

# --------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class SpriteObject:
    """One thing in a picture; x, y (centre) and diameter in pixels of a 32 x 32 picture."""

    thing: str
    colour: str
    size: str
    position: str | None  # None where there are two objects
    x: float
    y: float
    diameter: float


@dataclass(frozen=True)
class Scene:
    """One or two objects before a background; `relation` is the first object's position relative to the second."""

    objects: tuple[SpriteObject, ...]
    background: str
    relation: str | None = None

    def __post_init__(self) -> None:
        check_choice("background", self.background, BACKGROUNDS)
        for item in self.objects:
            check_choice("thing", item.thing, THINGS)
            check_choice("colour", item.colour, tuple(COLOURS))
        if self.relation is None and (len(self.objects) != 1 or self.objects[0].position not in POSITIONS):
            raise ValueError(f"a scene without a relation has one object with a position, not {self.objects!r}")
        if self.relation is not None and (len(self.objects) != 2 or self.relation not in RELATIONS):
            raise ValueError(f"relation={self.relation!r} is not one of {RELATIONS} between two objects")

    @property
    def attributes(self) -> dict[str, str]:
        """What a caption can state: thing, colour, size, position, background; of two objects thing, colour,
        relation, other_thing, other_colour, background ("thing relation other_thing"); and num_objects."""
        first = self.objects[0]
        named = {"num_objects": str(len(self.objects)), "thing": first.thing, "colour": first.colour}
        if self.relation is None:
            named |= {"size": first.size, "position": str(first.position)}
        else:
            other = self.objects[1]
            named |= {"relation": self.relation, "other_thing": other.thing, "other_colour": other.colour}
        return named | {"background": self.background}

    def reversed(self) -> Scene:
        """The same picture with its two objects in the other order ("a left of b" is "b right of a")."""
        if self.relation is None:
            raise ValueError("reversed() needs a scene of two objects, but this one has one")
        return Scene(self.objects[::-1], self.background, OPPOSITES[self.relation])


Item = TypeVar("Item")


def pick(rng: random.Random, items: Sequence[Item]) -> Item:
    # Only rng.random() is used in this file: Python promises the same stream from it in every version.
    return items[int(rng.random() * len(items))]


def _jitter(rng: random.Random, width: float) -> float:
    return width * (2 * rng.random() - 1)


def keyed_random(*key: object) -> random.Random:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, choices))}")


def sample_scene(index: int, *, seed: int = 0, pairs: Pairs = "seen", num_objects: int | None = None) -> Scene:
    """The scene with this number (0 or more): a pure function of its arguments.

    `pairs` says which thing-colour pairs may occur: those of the training ("seen"), only those that never
    occur in it ("held_out"), or "all"; every pair is equally likely. `num_objects` is 1, 2 or None (a quarter
    has 2). The training split is scenes 0, 1, ... of its seed: to measure, use another split or another seed.
    """
    check_choice("pairs", pairs, tuple(_PAIRS))
    check_choice("num_objects", num_objects, (None, 1, 2))
    index, seed = operator.index(index), operator.index(seed)  # NumPy's integers count as integers
    if index < 0:
        raise ValueError(f"index={index} is negative; scenes are numbered from 0")
    rng = keyed_random("scene", seed, index, pairs, num_objects)
    two = rng.random() < TWO_OBJECTS_SHARE if num_objects is None else num_objects == 2
    return random_scene(rng, pairs, two=two)


def random_scene(rng: random.Random, pairs: Pairs, *, two: bool) -> Scene:
    """A scene of one or two objects, drawn from `rng` through `rng.random()` alone."""
    place = pick(rng, BACKGROUNDS)
    thing, colour = pick(rng, _PAIRS[pairs])
    if not two:
        size, position = pick(rng, SIZES), pick(rng, POSITIONS)
        return Scene((_place(rng, thing, colour, size, position, OFFSETS[size]),), place)
    other_thing, other_colour = pick(rng, _PAIRS[pairs])
    while other_thing == thing:
        other_thing, other_colour = pick(rng, _PAIRS[pairs])
    relation = pick(rng, RELATIONS)
    side = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
    first = _place(rng, thing, colour, "small", side[relation], PAIR_OFFSET, named=False)
    other = _place(rng, other_thing, other_colour, "small", side[OPPOSITES[relation]], PAIR_OFFSET, named=False)
    return Scene((first, other), place, relation)


def _place(
    rng: random.Random,
    thing: str,
    colour: str,
    size: str,
    position: str,
    offset: float,
    *,
    named: bool = True,
) -> SpriteObject:
    """An object at a position, jittered; `named` says whether the position is an attribute of it."""
    dx, dy = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}[position]
    x = IMAGE_SIZE / 2 + dx * offset + _jitter(rng, POSITION_JITTER)
    y = IMAGE_SIZE / 2 + dy * offset + _jitter(rng, POSITION_JITTER)
    diameter = DIAMETERS[size] * (1 + _jitter(rng, SIZE_JITTER))
    return SpriteObject(thing, colour, size, position if named else None, x, y, diameter)


def drawn_size(image_size: int) -> int:
    """The side at which scenes are drawn for pictures of `image_size` pixels a side."""
    return max(image_size, LEAST_IMAGE_SIZE)


def draw_scene(scene: Scene, image_size: int = IMAGE_SIZE) -> Image.Image:
    """The scene as an RGB picture of `image_size` x `image_size` pixels (positions scale with it)."""
    if image_size < LEAST_IMAGE_SIZE:
        raise ValueError(f"image_size={image_size} is too small to draw in; use at least {LEAST_IMAGE_SIZE}")
    canvas = backdrop(scene.background, image_size * SUPERSAMPLING)
    pen = ImageDraw.Draw(canvas)
    scale = image_size * SUPERSAMPLING / IMAGE_SIZE
    for item in scene.objects:
        centre, diameter = (item.x * scale, item.y * scale), item.diameter * scale
        draw_thing(pen, item.thing, item.colour, centre=centre, diameter=diameter, night=scene.background == "night")
    return canvas.reduce(SUPERSAMPLING)


@functools.cache
def world_hash() -> str:
    """16 hex digits that change when the drawing or the lists of attributes change (10 ms, once)."""
    digest = hashlib.blake2b(digest_size=8)
    lists = (THINGS, COLOURS, SIZES, POSITIONS, BACKGROUNDS, RELATIONS, sorted(HELD_OUT_PAIRS))
    digest.update(repr(lists).encode())
    colours = tuple(COLOURS)
    for i in range(5 * len(THINGS)):  # each thing at both sizes, each colour before each background
        thing, colour, place = (
            THINGS[i % len(THINGS)],
            colours[i % len(colours)],
            BACKGROUNDS[i // 10 % len(BACKGROUNDS)],
        )
        size, position = SIZES[i // len(THINGS) % 2], POSITIONS[i % 5]
        item = _place(keyed_random("hash", i), thing, colour, size, position, OFFSETS[size])
        digest.update(draw_scene(Scene((item,), place)).tobytes())
    for i in range(8):
        digest.update(draw_scene(sample_scene(i, pairs="all", num_objects=2)).tobytes())
    return digest.hexdigest()
