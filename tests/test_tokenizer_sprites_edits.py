"""Edits of the built-in world: one change each, the same for the same number, with words that say which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tokenizer_image.pictures.loading import load_pictures
from tokenizer_image.sprites.edit_data_set import SpriteEditDataset
from tokenizer_image.sprites.edits import KINDS, Edit, sample_edit
from tokenizer_image.sprites.instructions import instruct
from tokenizer_image.sprites.scenes import HELD_OUT_PAIRS, draw_scene, keyed_random
from tokenizer_image.sprites.things import THINGS

# What each kind changes in the object that it is about.
CHANGES = {"recolour": {"colour"}, "replace": {"thing"}, "move": {"position", "x", "y"}}
NUMBERS = range(400)


def edits(kind: str, pairs: str = "seen") -> list[Edit]:
    return [sample_edit(number, pairs=pairs, kind=kind) for number in NUMBERS]


@pytest.mark.parametrize("kind", list(CHANGES))
def test_an_object_changes_in_one_way(kind):
    for edit in edits(kind):
        assert len(edit.before.objects) == len(edit.after.objects)
        assert edit.before.background == edit.after.background and edit.before.relation == edit.after.relation
        for number, (old, new) in enumerate(zip(edit.before.objects, edit.after.objects, strict=True)):
            different = {name for name, value in vars(old).items() if value != getattr(new, name)}
            assert different <= CHANGES[kind] if number == edit.number else not different
        assert edit.before != edit.after


def test_a_resized_thing_keeps_its_shift():
    for edit in edits("resize"):
        (old,), (new,) = edit.before.objects, edit.after.objects
        assert (old.thing, old.colour, old.position) == (new.thing, new.colour, new.position) and old.size != new.size
        assert new.diameter / old.diameter == pytest.approx(18 / 11 if new.size == "large" else 11 / 18)
        assert abs(new.x - old.x) <= 2.001 and abs(new.y - old.y) <= 2.001  # how far the two sizes stand apart


def test_an_added_or_removed_thing_leaves_the_other_where_it_is():
    for kind in ("add", "remove"):
        for edit in edits(kind):
            one, two = (edit.before, edit.after) if kind == "add" else (edit.after, edit.before)
            (kept,), pair = one.objects, two.objects
            assert replace(pair[1 - edit.number], position=kept.position) == kept
            dx, dy = kept.x - 16, kept.y - 16
            side = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("top" if dy < 0 else "bottom")
            assert kept.position == side and one.background == two.background


def test_only_the_background_changes():
    for edit in edits("background"):
        assert edit.before.objects == edit.after.objects and edit.before.background != edit.after.background


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_pairs(kind):
    for edit in edits(kind):
        shown = [*edit.before.objects, *edit.after.objects]
        assert not any((item.thing, item.colour) in HELD_OUT_PAIRS for item in shown)
    for edit in edits(kind, "held_out"):
        assert all((item.thing, item.colour) in HELD_OUT_PAIRS for item in edit.after.objects)
        if kind in ("recolour", "replace"):
            assert (edit.subject.thing, edit.subject.colour) not in HELD_OUT_PAIRS


@pytest.mark.parametrize("kind", KINDS)
def test_an_instruction_names_what_is_new_and_which_thing_is_meant(kind):
    phrasings = set()
    for edit in edits(kind):
        text = instruct(edit, keyed_random("test", kind, str(edit)))
        words, outcome = text.split(), edit.outcome
        phrasings.add(text.translate(str.maketrans("", "", ",")).split(" ")[0])
        named = [thing for thing in THINGS if thing in words]
        if len(edit.before.objects) == 2 and kind != "background":
            assert edit.subject.thing in named  # "it" would be either
        if kind == "recolour":
            assert outcome.colour in words
        elif kind == "replace":
            assert outcome.thing in named
        elif kind == "add":
            assert f"{outcome.colour} {outcome.thing}" in text
        elif kind == "background":
            assert any(word in text for word in (edit.after.background, "sea", "sky", "night", "snow"))
    assert len(phrasings) > 2


def test_an_added_thing_is_asked_for_where_it_appears():
    where = {
        "left of": "left",
        "right of": "right",
        "above": "top",
        "over": "top",
        "below": "bottom",
        "under": "bottom",
    }
    stated = 0
    for edit in edits("add"):
        text = instruct(edit, keyed_random("where", str(edit)))
        for words, side in where.items():
            if words in text:
                new, old = edit.subject, edit.before.objects[0]
                further = {"left": old.x - new.x, "right": new.x - old.x, "top": old.y - new.y, "bottom": new.y - old.y}
                assert further[side] > 10
                stated += 1
    assert stated > 200


def test_the_data_set():
    source = SpriteEditDataset(num_examples=50)
    assert len(source) == 100 and len(source.documents) == 50 and source.texts(3) == [] and source.label(3) == -1
    order, texts, pictures = source.documents[7]
    assert order == "iti" and pictures == (14, 15) and texts == (source.instruction(7),)
    edit = sample_edit(7)
    assert source.scene(14) == edit.before and source.attributes(15) == edit.after.attributes
    assert source.image(15).tobytes() == draw_scene(edit.after).tobytes()
    with pytest.raises(IndexError):
        source.documents[50]
    with pytest.raises(IndexError, match="row 100 is outside"):
        source.scene(100)
    part = source.part(np.array([3, 7, 9])).part(np.array([1, 2]))
    assert len(part) == 4 and part.documents[0].texts == texts and part.documents[0].pictures == (0, 1)
    assert part.image(1).tobytes() == source.image(15).tobytes() and part.fingerprint != source.fingerprint


def test_splits_share_no_edit_and_are_repeatable():
    train, again = (load_pictures("sprites-edits", max_examples=100) for _ in range(2))
    validation = load_pictures("sprites-edits", "validation")
    assert len(validation) == 4000 and train.fingerprint == again.fingerprint != validation.fingerprint
    assert [train.edit(row) for row in range(100)] == [again.edit(row) for row in range(100)]
    assert not {train.edit(row) for row in range(100)} & {validation.edit(row) for row in range(100)}
    assert load_pictures("sprites-edits", max_examples=1, seed=1).edit(0) != train.edit(0)
    held_out = load_pictures("sprites-edits", "held_out", image_size=16)
    assert held_out.image(0).size == (16, 16)
    with pytest.raises(ValueError, match="sprites-edits have no split 'test'"):
        load_pictures("sprites-edits", "test")


def test_bad_arguments():
    with pytest.raises(ValueError, match="index=-1 is negative"):
        sample_edit(-1)
    with pytest.raises(ValueError, match="kind='paint' is not known"):
        sample_edit(0, kind="paint")
    with pytest.raises(ValueError, match="pairs='all' is not known"):
        sample_edit(0, pairs="all")
    assert {sample_edit(number).kind for number in range(100)} == set(KINDS)
