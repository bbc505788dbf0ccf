"""Captions of the built-in world, read back: what does a sentence that `describe` could have written state?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from tokenizer_image.sprites.world import (
    BACKGROUND_PHRASES,
    BACKGROUNDS,
    COLOURS,
    POSITION_PHRASES,
    RELATION_PHRASES,
    SIZE_WORDS,
    THINGS,
    Scene,
)


def _telling_words(phrases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Each word that occurs for one value alone, and in no phrase about a background: "middle" -> "centre"."""
    others = set(" ".join(itertools.chain(*BACKGROUND_PHRASES.values())).split())
    values: dict[str, set[str]] = {}
    for value, spellings in phrases.items():
        for word in " ".join([value, *spellings]).split():
            values.setdefault(word, set()).add(value)
    return {word: next(iter(found)) for word, found in values.items() if len(found) == 1 and word not in others}


_SIZES, _POSITIONS = _telling_words(SIZE_WORDS), _telling_words(POSITION_PHRASES)
_RELATIONS = _telling_words(RELATION_PHRASES)


def _stated(words: Iterable[str], values: Mapping[str, str]) -> str:
    """The value that the words state, "" if none; several are joined by "/", which is right for no scene."""
    return "/".join(dict.fromkeys(values[word] for word in words if word in values))


def read_caption(text: str) -> dict[str, str]:
    """What a caption states, by the names of `Scene.attributes`; what it leaves out is not there.

    A caption that contradicts itself states a value that no scene has ("red/blue"); one that names no thing has
    `num_objects` "0".
    """
    words = re.findall(r"[a-z]+", text.lower())
    colours, places = {colour: colour for colour in COLOURS}, {place: place for place in BACKGROUNDS}
    things = [index for index, word in enumerate(words) if word in THINGS]
    found = {"num_objects": str(len(things)), "background": _stated(words, places)}
    if len(things) == 1:
        found |= {"thing": words[things[0]], "colour": _stated(words, colours)}
        found |= {"size": _stated(words, _SIZES), "position": _stated(words, _POSITIONS)}
    elif len(things) > 1:
        first, other = things[:2]
        found |= {"thing": words[first], "colour": _stated(words[max(0, first - 1) : first], colours)}
        found |= {"other_thing": words[other], "other_colour": _stated(words[other - 1 : other], colours)}
        found["relation"] = _stated(words[first + 1 : other], _RELATIONS)
    return {name: value for name, value in found.items() if value}


def is_true(scene: Scene, stated: Mapping[str, str]) -> bool:
    """Whether everything that a caption states is so; of two objects, told from either one."""
    tellings = [scene] if scene.relation is None else [scene, scene.told_backwards()]
    return any(all(one.attributes.get(name) == value for name, value in stated.items()) for one in tellings)
