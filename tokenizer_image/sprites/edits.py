"""Edits of the built-in world: a scene before and after one change, the same for the same (seed, index).

Seven kinds: recolour, replace (another thing in the same place), move, resize, add, remove, and another background.
What the change does not name stays as it is: a resized thing keeps its shift from where such things stand, a moved one
its size. Seen edits show seen thing-colour pairs alone, before and after. A held-out edit's result shows held-out pairs
alone; a recoloured or replaced thing was a seen pair before.
"""

from __future__ import annotations

import operator
import random
from dataclasses import dataclass, replace

from tokenizer_image.sprites.drawing import BACKGROUNDS, COLOURS
from tokenizer_image.sprites.scenes import (
    DIAMETERS,
    HELD_OUT_PAIRS,
    OFFSETS,
    POSITIONS,
    SIZES,
    TWO_OBJECTS_SHARE,
    Pairs,
    Scene,
    SpriteObject,
    check_choice,
    keyed_random,
    pick,
    random_scene,
)
from tokenizer_image.sprites.things import THINGS

KINDS = ("recolour", "replace", "move", "resize", "add", "remove", "background")
SIDES = {"left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom"),
         "below": ("bottom", "top")}  # fmt: skip
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}


@dataclass(frozen=True)
class Edit:
    """One change of a scene.

    Attributes:
        kind: one of `KINDS`.
        before, after: the scenes.
        number: which object of `before` is changed (`add`: which of `after` is new); 0 where there is one.
    """

    kind: str
    before: Scene
    after: Scene
    number: int = 0

    @property
    def subject(self) -> SpriteObject:
        """The object that is changed, as it was; of `add`, the new one."""
        return (self.after if self.kind == "add" else self.before).objects[self.number]

    @property
    def outcome(self) -> SpriteObject | None:
        """The object as it is afterwards; None where it is gone."""
        return None if self.kind == "remove" else self.after.objects[self.number]


def sample_edit(index: int, *, seed: int = 0, pairs: Pairs = "seen", kind: str | None = None) -> Edit:
    """The edit with this number (0 or more): a pure function of its arguments.

    Args:
        pairs: "seen" for edits of the training, "held_out" for results that show only held-out pairs.
        kind: one of `KINDS` (default: each as often).
    """
    check_choice("pairs", pairs, ("seen", "held_out"))
    check_choice("kind", kind, (None, *KINDS))
    index, seed = operator.index(index), operator.index(seed)
    if index < 0:
        raise ValueError(f"index={index} is negative; edits are numbered from 0")
    rng = keyed_random("edit", seed, index, pairs, kind)
    return _EDITS[kind or pick(rng, KINDS)](rng, pairs)


def _scene(rng: random.Random, pairs: Pairs) -> Scene:
    """A scene as the data set has them, of one or two objects."""
    return random_scene(rng, pairs, two=rng.random() < TWO_OBJECTS_SHARE)


def _chosen(rng: random.Random, scene: Scene) -> int:
    """Number of the object that is changed."""
    return int(rng.random() * len(scene.objects))


def _with_object(scene: Scene, number: int, item: SpriteObject) -> Scene:
    objects = list(scene.objects)
    objects[number] = item
    return replace(scene, objects=tuple(objects))


# Each makes the scene after the edit first, so that its pairs are those that are asked for.


def _recolour(rng: random.Random, pairs: Pairs) -> Edit:
    after = _scene(rng, pairs)
    number = _chosen(rng, after)
    item = after.objects[number]
    others = [c for c in COLOURS if c != item.colour and (item.thing, c) not in HELD_OUT_PAIRS]
    return Edit("recolour", _with_object(after, number, replace(item, colour=pick(rng, others))), after, number)


def _replace(rng: random.Random, pairs: Pairs) -> Edit:
    after = _scene(rng, pairs)
    number = _chosen(rng, after)
    item, shown = after.objects[number], {one.thing for one in after.objects}
    others = [t for t in THINGS if t not in shown and (t, item.colour) not in HELD_OUT_PAIRS]
    return Edit("replace", _with_object(after, number, replace(item, thing=pick(rng, others))), after, number)


def _move(rng: random.Random, pairs: Pairs) -> Edit:
    after = random_scene(rng, pairs, two=False)
    position = pick(rng, [one for one in POSITIONS if one != after.objects[0].position])
    return Edit("move", _with_object(after, 0, _placed(after.objects[0], position=position)), after)


def _resize(rng: random.Random, pairs: Pairs) -> Edit:
    after = random_scene(rng, pairs, two=False)
    (size,) = [one for one in SIZES if one != after.objects[0].size]
    return Edit("resize", _with_object(after, 0, _placed(after.objects[0], size=size)), after)


def _add(rng: random.Random, pairs: Pairs) -> Edit:
    after = random_scene(rng, pairs, two=True)
    number = _chosen(rng, after)
    return Edit("add", _without(after, number), after, number)


def _remove(rng: random.Random, pairs: Pairs) -> Edit:
    before = random_scene(rng, pairs, two=True)
    number = _chosen(rng, before)
    return Edit("remove", before, _without(before, number), number)


def _background(rng: random.Random, pairs: Pairs) -> Edit:
    after = _scene(rng, pairs)
    background = pick(rng, [one for one in BACKGROUNDS if one != after.background])
    return Edit("background", replace(after, background=background), after)


_EDITS = {
    "recolour": _recolour, "replace": _replace, "move": _move, "resize": _resize, "add": _add, "remove": _remove,
    "background": _background,
}  # fmt: skip


def _placed(item: SpriteObject, size: str | None = None, position: str | None = None) -> SpriteObject:
    """A single object at another size or position, with its own shift from where such objects stand."""
    new_size, new_position = size or item.size, position or str(item.position)
    old, new = DIRECTIONS[str(item.position)], DIRECTIONS[new_position]
    x, y = (
        here + new[axis] * OFFSETS[new_size] - old[axis] * OFFSETS[item.size]
        for axis, here in enumerate((item.x, item.y))
    )
    diameter = item.diameter * (DIAMETERS[new_size] / DIAMETERS[item.size])
    return replace(item, size=new_size, position=new_position, x=x, y=y, diameter=diameter)


def _without(scene: Scene, number: int) -> Scene:
    """A scene of two objects without one of them; the other stays where it is."""
    side = SIDES[str(scene.relation)][1 - number]
    return Scene((replace(scene.objects[1 - number], position=side),), scene.background)
