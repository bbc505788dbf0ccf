"""The built-in world: captioned little scenes, drawn on the fly, the same for the same (seed, index).

One object is described by thing, colour, size, position and background; two objects (always small, always
two different things) by their things and colours, how the first lies to the second, and the background. An
eighth of the thing-colour pairs is held out: training never shows them; they tell whether a model composes.

Nothing is downloaded or stored: `sample_scene` decides, `draw_scene` draws, `describe` writes a caption.
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

__all__ = [
    "BACKGROUNDS", "COLOURS", "HELD_OUT_PAIRS", "IMAGE_SIZE", "POSITIONS", "RELATIONS", "SIZES", "THINGS",
    "Scene", "SpriteDataset", "SpriteObject", "describe", "draw_scene", "sample_scene", "world_hash",
]  # fmt: skip

IMAGE_SIZE = 32  # the pixel in which positions and diameters are given
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
Split = Literal["train", "validation", "held_out"]

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
    """One or two objects before a background; `relation` is how the first object lies to the second."""

    objects: tuple[SpriteObject, ...]
    background: str
    relation: str | None = None

    def __post_init__(self) -> None:
        _check_choice("background", self.background, BACKGROUNDS)
        for item in self.objects:
            _check_choice("thing", item.thing, THINGS)
            _check_choice("colour", item.colour, tuple(COLOURS))
        if self.relation is None and (len(self.objects) != 1 or self.objects[0].position not in POSITIONS):
            raise ValueError(f"a scene without a relation has one object with a position, not {self.objects!r}")
        if self.relation is not None and (len(self.objects) != 2 or self.relation not in RELATIONS):
            raise ValueError(f"relation={self.relation!r} is not one of {RELATIONS} between two objects")

    @property
    def attributes(self) -> dict[str, str]:
        """What a caption can say: thing, colour, size, position, background; of two objects thing, colour,
        relation, other_thing, other_colour, background ("thing relation other_thing"); and num_objects."""
        first = self.objects[0]
        named = {"num_objects": str(len(self.objects)), "thing": first.thing, "colour": first.colour}
        if self.relation is None:
            named |= {"size": first.size, "position": str(first.position)}
        else:
            other = self.objects[1]
            named |= {"relation": self.relation, "other_thing": other.thing, "other_colour": other.colour}
        return named | {"background": self.background}

    def told_backwards(self) -> Scene:
        """The same picture of two objects, told from the other one ("a left of b" is "b right of a")."""
        if self.relation is None:
            raise ValueError("told_backwards() needs a scene of two objects, but this one has one")
        return Scene(self.objects[::-1], self.background, OPPOSITES[self.relation])


Item = TypeVar("Item")


def _pick(rng: random.Random, items: Sequence[Item]) -> Item:
    # Only rng.random() is used in this file: Python promises the same stream from it in every version.
    return items[int(rng.random() * len(items))]


def _jitter(rng: random.Random, width: float) -> float:
    return width * (2 * rng.random() - 1)


def _keyed_random(*key: object) -> random.Random:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, choices))}")


def sample_scene(index: int, *, seed: int = 0, pairs: Pairs = "seen", num_objects: int | None = None) -> Scene:
    """The scene with this number (0 or more): a pure function of its arguments.

    `pairs` says which thing-colour pairs may occur: those of the training ("seen"), only those that never
    occur in it ("held_out"), or "all"; every pair is equally likely. `num_objects` is 1, 2 or None (a quarter
    has 2). The training split is scenes 0, 1, ... of its seed: to measure, use another split or another seed.
    """
    _check_choice("pairs", pairs, tuple(_PAIRS))
    _check_choice("num_objects", num_objects, (None, 1, 2))
    index, seed = operator.index(index), operator.index(seed)  # NumPy's integers count as integers
    if index < 0:
        raise ValueError(f"index={index} is negative; scenes are numbered from 0")
    rng = _keyed_random("scene", seed, index, pairs, num_objects)
    two = rng.random() < TWO_OBJECTS_SHARE if num_objects is None else num_objects == 2
    place = _pick(rng, BACKGROUNDS)
    thing, colour = _pick(rng, _PAIRS[pairs])
    if not two:
        size, position = _pick(rng, SIZES), _pick(rng, POSITIONS)
        return Scene((_place(rng, thing, colour, size, position, OFFSETS[size]),), place)
    other_thing, other_colour = _pick(rng, _PAIRS[pairs])
    while other_thing == thing:
        other_thing, other_colour = _pick(rng, _PAIRS[pairs])
    relation = _pick(rng, RELATIONS)
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


def draw_scene(scene: Scene, image_size: int = IMAGE_SIZE) -> Image.Image:
    """The scene as an RGB picture of `image_size` x `image_size` pixels (positions scale with it)."""
    if image_size < 8:
        raise ValueError(f"image_size={image_size} is too small to draw in; use 8 or more (32 is usual)")
    canvas = backdrop(scene.background, image_size * SUPERSAMPLING)
    pen = ImageDraw.Draw(canvas)
    scale = image_size * SUPERSAMPLING / IMAGE_SIZE
    for item in scene.objects:
        centre, diameter = (item.x * scale, item.y * scale), item.diameter * scale
        draw_thing(pen, item.thing, item.colour, centre=centre, diameter=diameter, night=scene.background == "night")
    return canvas.reduce(SUPERSAMPLING)


# --------------------------------------------------------------------------- captions

SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
POSITION_PHRASES = {
    "left": ("on the left", "on the left", "on the left side"),
    "right": ("on the right", "on the right", "on the right side"),
    "top": ("at the top", "at the top", "near the top"),
    "bottom": ("at the bottom", "at the bottom", "near the bottom"),
    "centre": ("in the centre", "in the center", "in the middle"),
}
BACKGROUND_PHRASES = {
    "grass": ("on grass", "on the grass"),
    "sand": ("on sand", "on the sand"),
    "sea": ("at sea", "on the sea"),
    "sky": ("in the sky", "in the sky"),
    "night": ("at night", "at night"),
    "snow": ("in the snow", "on snow"),
}
RELATION_PHRASES = {
    "left of": ("left of", "left of", "to the left of"),
    "right of": ("right of", "right of", "to the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
}
_OPENINGS = ("", "", "", "", "there is ", "a picture of ", "this is ")
FULL_SHARE = 0.4  # of captions of one object: all five attributes


def describe(scene: Scene, rng: random.Random, *, full: bool = False) -> str:
    """A true caption in lower case, such as "a small red dog on the left, on grass" or just "a dog".

    Things are always named; other attributes only now and then, unless `full` (one object: all five; two
    objects: both colours and the relation). Synonyms: little, big, middle, center, over, under. `rng` is used
    through `rng.random()` only, so that a caption is the same in every version of Python.
    """
    if scene.relation is not None:
        return _describe_two(scene, rng, full)
    known = scene.attributes
    optional = ("colour", "size", "position", "background")
    stated = set(optional)
    if not full and rng.random() >= FULL_SHARE:
        while len(stated) == len(optional):
            stated = {name for name in optional if rng.random() < (0.6 if name == "colour" else 0.4)}
    return _describe_one({name: known[name] for name in known if name in stated or name == "thing"}, rng)


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _describe_one(stated: dict[str, str], rng: random.Random) -> str:
    """One object: a noun phrase with its place, the whole sentence turned round, or a bare list of words."""
    thing, colour = stated["thing"], stated.get("colour", "")
    size = _pick(rng, SIZE_WORDS[stated["size"]]) if "size" in stated else ""
    position = _pick(rng, POSITION_PHRASES[stated["position"]]) if "position" in stated else ""
    place = _pick(rng, BACKGROUND_PHRASES[stated["background"]]) if "background" in stated else ""
    form = rng.random()
    if form < 0.10:  # as people type: "small red dog, left, grass"
        words = (_join(size, colour, thing), stated.get("position", ""), stated.get("background", ""))
        return ", ".join(word for word in words if word)
    if form < 0.20 and (size or colour):  # "the dog on the left is small and red, on grass"
        qualities = " and ".join(word for word in (size, colour) if word)
        return ", ".join(part for part in (_join("the", thing, position, "is", qualities), place) if part)
    if form < 0.30 and size and colour:  # "a red dog, small, on the left, on grass"
        return ", ".join(part for part in (_article(_join(colour, thing)), size, position, place) if part)
    noun = _article(_join(size, colour, thing))
    if form < 0.45 and place:  # "on grass, a small red dog on the left"
        return f"{place}, {_join(noun, position)}"
    if form < 0.55 and position:  # "on the left, a small red dog on grass"
        return f"{position}, {_join(noun, place)}"
    first, second = (position, place) if rng.random() < 0.7 else (place, position)
    opening = _pick(rng, _OPENINGS)
    if first and second:
        return f"{opening}{noun} {first}, {second}"
    return opening + _join(noun, first, second)


def _describe_two(scene: Scene, rng: random.Random, full: bool) -> str:
    """Two objects: both things always, told from either one; relation, colours and background sometimes."""
    if rng.random() < 0.5:
        scene = scene.told_backwards()
    first, other = scene.objects
    with_colours = full or rng.random() < 0.75
    relation = _pick(rng, RELATION_PHRASES[str(scene.relation)]) if full or rng.random() < 0.8 else "and"
    place = _pick(rng, BACKGROUND_PHRASES[scene.background]) if rng.random() < 0.5 else ""
    names = [_join(item.colour if with_colours else "", item.thing) for item in (first, other)]
    form = rng.random()
    if form < 0.10:  # as people type: "red dog left of blue house, grass"
        return _join(names[0], relation, names[1]) + (f", {scene.background}" if place else "")
    if form < 0.20 and relation != "and":  # "the red dog is left of the blue house, on grass"
        return f"the {names[0]} is {relation} the {names[1]}" + (f", {place}" if place else "")
    phrase = _join(_article(names[0]), relation, _article(names[1]))
    if form < 0.40 and place:
        return f"{place}, {phrase}"
    return _pick(rng, _OPENINGS) + phrase + (f", {place}" if place else "")


# --------------------------------------------------------------------------- the world as a data set


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
        item = _place(_keyed_random("hash", i), thing, colour, size, position, OFFSETS[size])
        digest.update(draw_scene(Scene((item,), place)).tobytes())
    for i in range(8):
        digest.update(draw_scene(sample_scene(i, pairs="all", num_objects=2)).tobytes())
    return digest.hexdigest()


_SPLITS: dict[str, tuple[Pairs, int]] = {  # pairs and the number of the first scene
    "train": ("seen", 0),
    "validation": ("seen", 1 << 40),
    "held_out": ("held_out", 0),
}


class SpriteDataset:
    """The built-in world as a picture data set (see `tokenizer_image.pictures.loading.PictureDataset`).

    `split`: "train" and "validation" show seen pairs and share no scene; "held_out" shows only held-out
    pairs. Row r of the training split is `sample_scene(r, seed=seed)`. A row has `captions_per_image`
    captions; the first is full. There are no class labels. It holds four settings only, so it pickles well.
    """

    name = "sprites"
    label_names: list[str] | None = None

    def __init__(
        self, split: Split = "train", num_examples: int = 100_000, seed: int = 0, captions_per_image: int = 4
    ) -> None:
        _check_choice("split", split, tuple(_SPLITS))
        if not 1 <= num_examples <= 1 << 40:
            raise ValueError(f"num_examples={num_examples} must be at least 1 (and at most 2**40)")
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image={captions_per_image} must be at least 1")
        self.split, self.num_examples = split, num_examples
        self.seed, self.captions_per_image = operator.index(seed), captions_per_image

    def __len__(self) -> int:
        return self.num_examples

    @property
    def fingerprint(self) -> str:
        """16 hex digits; another world, wording, split, seed or number of examples has another."""
        wording = [self.texts(row) for row in range(min(32, len(self)))]
        identity = (world_hash(), self.split, self.seed, self.num_examples, self.captions_per_image, wording)
        return hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()

    def scene(self, row: int) -> Scene:
        if not 0 <= row < self.num_examples:
            raise IndexError(f"row {row} is outside this data set of {self.num_examples} examples")
        pairs, start = _SPLITS[self.split]
        return sample_scene(start + row, seed=self.seed, pairs=pairs)

    def image(self, row: int) -> Image.Image:
        return draw_scene(self.scene(row))

    def texts(self, row: int) -> list[str]:
        scene, rng = self.scene(row), _keyed_random("texts", self.seed, self.split, operator.index(row))
        return [describe(scene, rng, full=number == 0) for number in range(self.captions_per_image)]

    def label(self, row: int) -> int:
        return -1

    def attributes(self, row: int) -> dict[str, str]:
        return self.scene(row).attributes
