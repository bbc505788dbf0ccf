"""Captions of the built-in world: `describe` writes a true sentence about a scene."""

from __future__ import annotations

import random

from tokenizer_image.sprites.scenes import Scene, pick

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

    Things are always named; other attributes sometimes, unless `full` (one object: all five; two
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
    """One object: a noun phrase with its place, a sentence with its parts in another order, or a list of words."""
    thing, colour = stated["thing"], stated.get("colour", "")
    size = pick(rng, SIZE_WORDS[stated["size"]]) if "size" in stated else ""
    position = pick(rng, POSITION_PHRASES[stated["position"]]) if "position" in stated else ""
    place = pick(rng, BACKGROUND_PHRASES[stated["background"]]) if "background" in stated else ""
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
    opening = pick(rng, _OPENINGS)
    if first and second:
        return f"{opening}{noun} {first}, {second}"
    return opening + _join(noun, first, second)


def _describe_two(scene: Scene, rng: random.Random, full: bool) -> str:
    """Two objects: both things always, in either order; relation, colours and background sometimes."""
    if rng.random() < 0.5:
        scene = scene.reversed()
    first, other = scene.objects
    with_colours = full or rng.random() < 0.75
    relation = pick(rng, RELATION_PHRASES[str(scene.relation)]) if full or rng.random() < 0.8 else "and"
    place = pick(rng, BACKGROUND_PHRASES[scene.background]) if rng.random() < 0.5 else ""
    names = [_join(item.colour if with_colours else "", item.thing) for item in (first, other)]
    form = rng.random()
    if form < 0.10:  # as people type: "red dog left of blue house, grass"
        return _join(names[0], relation, names[1]) + (f", {scene.background}" if place else "")
    if form < 0.20 and relation != "and":  # "the red dog is left of the blue house, on grass"
        return f"the {names[0]} is {relation} the {names[1]}" + (f", {place}" if place else "")
    phrase = _join(_article(names[0]), relation, _article(names[1]))
    if form < 0.40 and place:
        return f"{place}, {phrase}"
    return pick(rng, _OPENINGS) + phrase + (f", {place}" if place else "")
