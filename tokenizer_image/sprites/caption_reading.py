"""Captions of the built-in world, read back: which attributes does a sentence that `describe` can write state?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from tokenizer_image.sprites.captions import BACKGROUND_PHRASES, POSITION_PHRASES, RELATION_PHRASES, SIZE_WORDS
from tokenizer_image.sprites.drawing import BACKGROUNDS, COLOURS
from tokenizer_image.sprites.scenes import Scene
from tokenizer_image.sprites.things import THINGS


def _distinctive_words(phrases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """{word: value} of the words that occur for one value alone and in no phrase about a background:
    "middle" -> "centre"."""
    background_words = set(" ".join(itertools.chain(*BACKGROUND_PHRASES.values())).split())
    values: dict[str, set[str]] = {}
    for value, spellings in phrases.items():
        for word in " ".join([value, *spellings]).split():
            values.setdefault(word, set()).add(value)
    return {
        word: next(iter(candidates))
        for word, candidates in values.items()
        if len(candidates) == 1 and word not in background_words
    }


_SIZES, _POSITIONS = _distinctive_words(SIZE_WORDS), _distinctive_words(POSITION_PHRASES)
_RELATIONS = _distinctive_words(RELATION_PHRASES)


def _stated(words: Iterable[str], values: Mapping[str, str]) -> str:
    """The value that the words state, "" if none. Several values are joined by "/", which equals no scene's value."""
    return "/".join(dict.fromkeys(values[word] for word in words if word in values))


def read_caption(text: str) -> dict[str, str]:
    """What a caption states, by the names of `Scene.attributes`; an attribute that it does not mention is missing.

    A caption that contradicts itself states a value that no scene has ("red/blue"); one that names no thing has
    `num_objects` "0".
    """
    words = re.findall(r"[a-z]+", text.lower())
    colours, backgrounds = {colour: colour for colour in COLOURS}, {name: name for name in BACKGROUNDS}
    things = [index for index, word in enumerate(words) if word in THINGS]
    stated = {"num_objects": str(len(things)), "background": _stated(words, backgrounds)}
    if len(things) == 1:
        stated |= {"thing": words[things[0]], "colour": _stated(words, colours)}
        stated |= {"size": _stated(words, _SIZES), "position": _stated(words, _POSITIONS)}
    elif len(things) > 1:
        first, other = things[:2]
        stated |= {"thing": words[first], "colour": _stated(words[max(0, first - 1) : first], colours)}
        stated |= {"other_thing": words[other], "other_colour": _stated(words[other - 1 : other], colours)}
        stated["relation"] = _stated(words[first + 1 : other], _RELATIONS)
    return {name: value for name, value in stated.items() if value}


def is_true(scene: Scene, stated: Mapping[str, str]) -> bool:
    """Whether a scene has everything that a caption states, with its two objects in either order."""
    orders = [scene] if scene.relation is None else [scene, scene.reversed()]
    return any(all(order.attributes.get(name) == value for name, value in stated.items()) for order in orders)
