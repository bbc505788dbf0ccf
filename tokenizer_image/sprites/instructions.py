"""Instructions of the built-in world: `instruct` writes a sentence that asks for an edit."""

from __future__ import annotations

import random

from tokenizer_image.sprites.captions import BACKGROUND_PHRASES, RELATION_PHRASES
from tokenizer_image.sprites.edits import Edit
from tokenizer_image.sprites.scenes import OPPOSITES, pick

# {it} is the thing that is changed, {new} what it becomes; {a} is a noun phrase with its article.
PHRASES: dict[str, tuple[str, ...]] = {
    "recolour": (
        "make {it} {new}", "make {it} {new}", "turn {it} {new}", "paint {it} {new}", "colour {it} {new}",
        "change the colour of {it} to {new}", "{it} should be {new}",
    ),
    "replace": (
        "replace {it} with {a}", "replace {it} by {a}", "turn {it} into {a}", "change {it} into {a}",
        "make {it} {a}", "swap {it} for {a}", "{a} instead of {it}",
    ),
    "move": (
        "move {it} {place}", "move {it} {place}", "put {it} {place}", "shift {it} {place}", "{it} should be {place}",
    ),
    "resize": ("make {it} {new}", "make {it} {new}", "make {it} {comparative}", "{verb} {it}", "{it} should be {new}"),
    "add": (
        "add {a}", "add {a} {relation} {other}", "add {a} {relation} {other}", "put {a} {relation} {other}",
        "draw {a} {relation} {other}", "{relation} {other}, add {a}",
    ),
    "remove": ("remove {it}", "remove {it}", "delete {it}", "erase {it}", "take {it} away", "without {it}"),
    "background": (
        "change the background to {new}", "change the background to {new}", "make the background {new}",
        "put {all} {ground}", "show {all} {ground}", "replace the background with {new}",
    ),
}  # fmt: skip
PLACES = {
    "left": ("to the left", "on the left", "to the left side"),
    "right": ("to the right", "on the right", "to the right side"),
    "top": ("to the top", "up to the top", "to the top"),
    "bottom": ("to the bottom", "down to the bottom", "to the bottom"),
    "centre": ("to the centre", "to the center", "to the middle"),
}
SIZES = {"small": ("smaller", "shrink", ("small", "little")), "large": ("larger", "enlarge", ("large", "big"))}


def instruct(edit: Edit, rng: random.Random) -> str:
    """A sentence in lower case that asks for the edit, such as "make the dog blue", and says which thing is meant.

    `rng` is used through `rng.random()` only, so that an instruction is the same in every version of Python.
    """
    phrase = pick(rng, PHRASES[edit.kind])
    return phrase.format(**_words(edit, rng))


def _words(edit: Edit, rng: random.Random) -> dict[str, str]:
    subject, outcome = edit.subject, edit.outcome
    alone = len(edit.before.objects) == 1
    names = ["the " + subject.thing, f"the {subject.colour} {subject.thing}"]
    it = pick(rng, ["it", *names] if alone and edit.kind != "add" else names)
    words = {"it": it}
    if edit.kind == "background":
        new = edit.after.background
        everything = "them" if not alone else it
        return {**words, "new": new, "all": everything, "ground": pick(rng, BACKGROUND_PHRASES[new])}
    if outcome is None:
        return words
    if edit.kind == "recolour":
        return {**words, "new": outcome.colour}
    if edit.kind == "replace":
        return {**words, "a": _article(outcome.thing)}
    if edit.kind == "move":
        return {**words, "place": pick(rng, PLACES[str(outcome.position)])}
    if edit.kind == "resize":
        comparative, verb, adjectives = SIZES[outcome.size]
        return {**words, "new": pick(rng, adjectives), "comparative": comparative, "verb": verb}
    (other,) = edit.before.objects
    relation = str(edit.after.relation)
    relation = relation if edit.number == 0 else OPPOSITES[relation]
    return {
        **words, "a": _article(f"{outcome.colour} {outcome.thing}"), "relation": pick(rng, RELATION_PHRASES[relation]),
        "other": pick(rng, ["it", "the " + other.thing]),
    }  # fmt: skip


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"
