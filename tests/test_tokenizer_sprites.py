"""The built-in world: the same pictures every time, captions that never lie, pairs never shown."""

from __future__ import annotations

import pickle
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tokenizer_image.pictures.loading import load_pictures
from tokenizer_image.sprites import drawing as sprites_drawing
from tokenizer_image.sprites import scenes as sprites
from tokenizer_image.sprites.caption_reading import is_true, read_caption
from tokenizer_image.sprites.captions import describe
from tokenizer_image.sprites.data_set import SpriteDataset
from tokenizer_image.sprites.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    POSITIONS,
    RELATIONS,
    SIZES,
    THINGS,
    Scene,
    SpriteObject,
    draw_scene,
    sample_scene,
    world_hash,
)

# What each word of a caption claims, written out here once more so that a slip in the grammar shows.
CLAIMS = {
    "size": {"small": "small", "little": "small", "large": "large", "big": "large"},
    "position": {
        **{"left": "left", "left side": "left", "right": "right", "right side": "right", "top": "top"},
        **{"bottom": "bottom", "centre": "centre", "center": "centre", "middle": "centre"},
    },
    "background": {name: name for name in BACKGROUNDS},
    "relation": {
        **{"left of": "left of", "right of": "right of", "above": "above", "over": "above"},
        **{"below": "below", "under": "below"},
    },
}
FILLERS = {"a", "an", "the", "is", "and", "there", "this", "picture", "of", "on", "in", "at", "near", "to"}


def claims(caption: str) -> dict[str, str]:
    """The attributes that a caption states. Every word must be understood."""
    text = caption.replace(",", " ")
    found: dict[str, str] = {}
    # "orange", the colour, always precedes a thing or stands after "is".
    nouns = re.findall(rf"(?:({'|'.join(COLOURS)}) )?\b({'|'.join(THINGS)})\b", text)
    found["thing"] = nouns[0][1]
    if nouns[0][0]:
        found["colour"] = nouns[0][0]
    if len(nouns) == 2:
        found["other_thing"] = nouns[1][1]
        if nouns[1][0]:
            found["other_colour"] = nouns[1][0]
    rest = re.sub(rf"\b({'|'.join(THINGS)})\b", " ", text)
    for colour in COLOURS:
        if re.search(rf"\b{colour}\b", rest):
            found.setdefault("colour", colour)
            rest = re.sub(rf"\b{colour}\b", " ", rest)
    for name in ("relation", "position", "size", "background"):
        for word in sorted(CLAIMS[name], key=len, reverse=True):
            if re.search(rf"\b{word}\b", rest):
                assert name not in found, f"{name} is said twice: {caption!r}"
                found[name] = CLAIMS[name][word]
                rest = re.sub(rf"\b{word}\b", " ", rest)
    assert set(rest.split()) <= FILLERS, f"words that no test knows in {caption!r}: {rest.split()}"
    return found


def test_enough_of_everything() -> None:
    assert len(THINGS) >= 16 and len(COLOURS) >= 10 and len(BACKGROUNDS) >= 5
    assert len(SIZES) == 2 and len(POSITIONS) == 5 and len(RELATIONS) == 4
    assert {"dog", "cat", "fish", "bird", "tree", "house", "car", "boat"} <= set(THINGS)


def test_colours_are_far_apart() -> None:
    rgb = np.array(list(COLOURS.values()), dtype=float)
    distance = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 1000 * np.eye(len(rgb))
    assert distance.min() > 100


def test_held_out_pairs_are_an_eighth_and_touch_everything() -> None:
    assert len(HELD_OUT_PAIRS) / (len(THINGS) * len(COLOURS)) >= 0.12
    assert {thing for thing, _ in HELD_OUT_PAIRS} == set(THINGS)
    assert {colour for _, colour in HELD_OUT_PAIRS} == set(COLOURS)


def pairs_of(scenes: list[Scene]) -> set[tuple[str, str]]:
    return {(item.thing, item.colour) for scene in scenes for item in scene.objects}


@pytest.mark.parametrize("num_objects", [None, 1, 2])
def test_pairs_are_kept_apart(num_objects: int | None) -> None:
    every = {(thing, colour) for thing in THINGS for colour in COLOURS}
    shown = {
        pairs: pairs_of([sample_scene(i, pairs=pairs, num_objects=num_objects) for i in range(2000)])
        for pairs in ("seen", "held_out", "all")
    }
    assert shown["seen"] == every - HELD_OUT_PAIRS
    assert shown["held_out"] == HELD_OUT_PAIRS
    assert shown["all"] == every


def test_scenes_are_functions_of_their_arguments() -> None:
    scenes = [sample_scene(i) for i in range(200)]
    assert scenes == [sample_scene(np.int64(i), seed=np.int64(0)) for i in range(200)]
    assert len(set(scenes)) == 200
    assert not set(scenes) & {sample_scene(i, seed=1) for i in range(200)}
    assert draw_scene(scenes[3]).tobytes() == draw_scene(scenes[3]).tobytes()


def test_a_scene_that_is_written_down_stays_the_same() -> None:
    """What (seed, index) means must not drift: data sets and results depend on it."""
    scenes = [sample_scene(0), sample_scene(5), sample_scene(7, seed=3, pairs="held_out")]
    said = [describe(scene, random.Random(1), full=True) for scene in scenes]
    assert said == [
        "a red mushroom, small, on the right side, on the sand",
        "a green cat over an orange apple",
        "an orange heart, small, near the bottom, at night",
    ]


def test_everything_is_equally_likely() -> None:
    scenes = [sample_scene(i, num_objects=1, pairs="all") for i in range(6000)]
    for name, values in (
        ("thing", THINGS),
        ("colour", tuple(COLOURS)),
        ("size", SIZES),
        ("position", POSITIONS),
    ):
        counts = [sum(scene.attributes[name] == value for scene in scenes) for value in values]
        assert min(counts) > 0.75 * 6000 / len(values) and max(counts) < 1.25 * 6000 / len(values)
    share = np.mean([len(sample_scene(i).objects) == 2 for i in range(4000)])
    assert 0.22 < share < 0.28


def test_sizes_and_jitter() -> None:
    objects = [sample_scene(i, num_objects=1).objects[0] for i in range(4000)]
    for size, middle in (("small", 11.0), ("large", 18.0)):
        diameters = np.array([item.diameter for item in objects if item.size == size])
        assert diameters.min() >= 8 and diameters.max() <= 20
        assert abs(diameters.min() - 0.9 * middle) < 0.05 and abs(diameters.max() - 1.1 * middle) < 0.05
    for position in POSITIONS:
        for size in SIZES:
            spots = np.array([(o.x, o.y) for o in objects if (o.position, o.size) == (position, size)])
            spread = spots.max(axis=0) - spots.min(axis=0)
            assert (spread <= 3.0).all() and (spread > 2.8).all()
    # Positions never touch, and at most a sliver of an object is cut off.
    left = max(item.x for item in objects if item.position == "left")
    centre = min(item.x for item in objects if item.position == "centre")
    assert centre - left > 2
    assert min(min(o.x, o.y, 32 - o.x, 32 - o.y) - o.diameter / 2 for o in objects) > -1.6


def test_two_objects_stand_as_their_relation_says() -> None:
    for i in range(1000):
        scene = sample_scene(i, num_objects=2, pairs="all")
        first, other = scene.objects
        dx, dy = other.x - first.x, other.y - first.y
        gap = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[str(scene.relation)]
        assert gap > (first.diameter + other.diameter) / 2  # they do not overlap
        assert first.thing != other.thing and first.position is None
        assert scene.attributes["num_objects"] == "2"
        backwards = scene.reversed()
        assert backwards.attributes["thing"] == other.thing and backwards.reversed() == scene
        if i < 20:
            assert draw_scene(backwards).tobytes() == draw_scene(scene).tobytes()


def test_attributes() -> None:
    one, two = sample_scene(0, num_objects=1), sample_scene(0, num_objects=2)
    assert set(one.attributes) == {"num_objects", "thing", "colour", "size", "position", "background"}
    assert set(two.attributes) == {
        *("num_objects", "thing", "colour", "relation", "other_thing", "other_colour", "background")
    }


@pytest.mark.parametrize("full", [False, True])
def test_captions_never_lie(full: bool) -> None:
    rng = random.Random(0)
    for i in range(2000):
        scene = sample_scene(i, pairs="all")
        caption = describe(scene, rng, full=full)
        assert caption == caption.lower().strip() and "  " not in caption
        stated, true = claims(caption), scene.attributes
        if scene.relation is not None and stated["thing"] != true["thing"]:
            true = scene.reversed().attributes
        assert stated.items() <= true.items(), f"{caption!r} says {stated} of {true}"
        assert len(scene.objects) == 1 or "other_thing" in stated
        if full:
            needed = {"relation", "other_colour"} if scene.relation else {"size", "position", "background"}
            assert needed | {"thing", "colour"} <= set(stated), caption


def test_articles_fit() -> None:
    rng, found = random.Random(0), set()
    for i in range(3000):
        for article, letter in re.findall(r"\b(an?) (\w)", describe(sample_scene(i, pairs="all"), rng)):
            found.add((article, letter in "aeiou"))
    assert found == {("a", False), ("an", True)}


def test_captions_are_varied_and_use_few_words() -> None:
    rng = random.Random(0)
    captions = [describe(sample_scene(i, num_objects=1), rng) for i in range(4000)]
    full = np.mean([len(claims(caption)) == 5 for caption in captions])
    assert 0.36 < full < 0.44
    assert any(re.fullmatch(rf"an? ({'|'.join(THINGS)})", caption) for caption in captions)
    captions += [describe(sample_scene(i, num_objects=2), rng) for i in range(2000)]
    words = {word for caption in captions for word in caption.replace(",", "").split()}
    assert len(words) < 80
    names = {name: "T" for name in THINGS} | {name: "C" for name in COLOURS} | {name: "B" for name in BACKGROUNDS}
    names |= {word: "S" for word in CLAIMS["size"]} | {word: "P" for word in ("left", "right", "top", "bottom")}
    frames = {" ".join(names.get(word, word) for word in caption.replace(",", " ,").split()) for caption in captions}
    assert len(frames) >= 20


def test_pictures() -> None:
    scene = Scene((SpriteObject("apple", "red", "large", "centre", 16.0, 16.0, 18.0),), "snow")
    picture = draw_scene(scene)
    assert picture.mode == "RGB" and picture.size == (32, 32)
    assert picture.getpixel((16, 18)) == COLOURS["red"]
    bigger = draw_scene(scene, image_size=64)
    assert bigger.size == (64, 64)
    shrunk = np.asarray(bigger.resize((32, 32), Image.Resampling.BOX), dtype=float)
    assert np.abs(shrunk - np.asarray(picture, dtype=float)).mean() < 3


def test_the_colour_fills_its_thing_and_the_rim_its_diameter() -> None:
    for thing in THINGS:
        scene = Scene((SpriteObject(thing, "red", "large", "centre", 16.0, 16.0, 18.0),), "sea")
        picture = np.asarray(draw_scene(scene), dtype=int)
        bare = np.asarray(sprites_drawing.backdrop("sea", 128).reduce(4), dtype=int)
        inside = np.abs(picture - bare).sum(axis=-1) > 12
        rows, columns = np.nonzero(inside)
        assert 17 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20, thing
        reddish = inside & (picture[..., 0] > 60) & (picture[..., 1:].max(axis=-1) < picture[..., 0] * 0.7)
        assert reddish.sum() > 0.55 * inside.sum(), thing


def test_no_two_things_look_alike_when_small() -> None:
    """Even without colour or fine detail, at 11 pixels."""
    blurred = {}
    for thing in THINGS:
        scene = Scene((SpriteObject(thing, "yellow", "small", "centre", 16.0, 16.0, 11.0),), "night")
        blurred[thing] = np.asarray(draw_scene(scene).resize((16, 16), Image.Resampling.BOX), dtype=float)
    for i, thing in enumerate(THINGS):
        for other in THINGS[:i]:
            assert np.linalg.norm(blurred[thing] - blurred[other]) > 150, (thing, other)


def test_world_hash_follows_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = world_hash()
    world_hash.cache_clear()
    assert world_hash() == before and re.fullmatch("[0-9a-f]{16}", before)
    with monkeypatch.context() as patch:
        patch.setattr(sprites_drawing, "RIM", 0.06)
        world_hash.cache_clear()
        sprites_drawing.polygons.cache_clear()
        assert world_hash() != before
    with monkeypatch.context() as patch:
        patch.setattr(sprites, "SIZES", ("little", *SIZES[1:]))
        patch.setitem(sprites.OFFSETS, "little", 8.0)
        patch.setitem(sprites.DIAMETERS, "little", 11.0)
        world_hash.cache_clear()
        sprites_drawing.polygons.cache_clear()
        assert world_hash() != before
    world_hash.cache_clear()
    assert world_hash() == before


def test_data_set() -> None:
    data = SpriteDataset("train", num_examples=50)
    assert len(data) == 50 and data.name == "sprites" and data.label_names is None and data.label(3) == -1
    assert data.scene(7) == sample_scene(7)
    assert data.image(7).tobytes() == draw_scene(sample_scene(7)).tobytes()
    assert data.attributes(7) == sample_scene(7).attributes
    texts = data.texts(7)
    assert len(texts) == 4 and texts == data.texts(7) == pickle.loads(pickle.dumps(data)).texts(7)
    assert len(pickle.dumps(data)) < 300
    for row in range(50):
        assert len(claims(data.texts(row)[0])) >= 5
    with pytest.raises(IndexError, match="row 50 .* 50 examples"):
        data.image(50)


def test_pictures_are_drawn_at_the_size_that_is_asked_for() -> None:
    small, large = load_pictures(max_examples=20), load_pictures(max_examples=20, image_size=64)
    assert small.fingerprint == load_pictures(max_examples=20, image_size=32).fingerprint != large.fingerprint
    assert small.image(3).tobytes() == draw_scene(sample_scene(3)).tobytes()
    assert large.image(3).tobytes() == draw_scene(sample_scene(3), 64).tobytes() and large.texts(3) == small.texts(3)
    assert load_pictures(image_size=4).image(0).size == (8, 8)


def test_the_fingerprint_at_32_pixels_stays_the_same() -> None:
    assert SpriteDataset("train", num_examples=100).fingerprint == "ef247cfe0334e063"


def test_splits_share_nothing() -> None:
    splits = {split: SpriteDataset(split, num_examples=500) for split in ("train", "validation", "held_out")}
    scenes = {split: [data.scene(row) for row in range(500)] for split, data in splits.items()}
    assert not set(scenes["train"]) & set(scenes["validation"])
    assert pairs_of(scenes["held_out"]) == HELD_OUT_PAIRS
    assert not pairs_of(scenes["train"] + scenes["validation"]) & HELD_OUT_PAIRS


def test_fingerprint_tells_data_sets_apart() -> None:
    data = SpriteDataset("train", num_examples=100)
    assert data.fingerprint == SpriteDataset("train", num_examples=100).fingerprint
    others = [
        SpriteDataset("validation", 100),
        SpriteDataset("train", 101),
        SpriteDataset("train", 100, seed=1),
    ]
    others.append(SpriteDataset("train", 100, captions_per_image=2))
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="pairs='unseen'.*'held_out'"):
        sample_scene(0, pairs="unseen")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_objects=3"):
        sample_scene(0, num_objects=3)
    with pytest.raises(ValueError, match="index=-1"):
        sample_scene(-1)
    with pytest.raises(ValueError, match="split='test'.*'validation'"):
        SpriteDataset("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_examples=0"):
        SpriteDataset("train", 0)
    with pytest.raises(ValueError, match="image_size=4"):
        draw_scene(sample_scene(0), image_size=4)
    with pytest.raises(ValueError, match="thing='dragon'.*'dog'"):
        Scene((replace(sample_scene(0, num_objects=1).objects[0], thing="dragon"),), "sky")
    with pytest.raises(ValueError, match="two objects"):
        sample_scene(0, num_objects=1).reversed()


# --------------------------------------------------------------------------- captions read back


def test_captions_read_back_state_what_they_were_written_from():
    rng = random.Random(0)
    for index in range(600):
        scene = sprites.sample_scene(index, pairs="all")
        for full in (True, False):
            stated = read_caption(describe(scene, rng, full=full))
            assert is_true(scene, stated) and "thing" in stated and stated["num_objects"] == str(len(scene.objects))
            if full:
                names = {"colour", "other_colour", "relation"} if scene.relation else set(scene.attributes)
                assert names <= stated.keys()


def test_false_captions_are_not_true():
    one = next(s for s in map(sprites.sample_scene, range(99)) if s.relation is None)
    for name, other in (("thing", "dog"), ("colour", "red"), ("size", "small"), ("position", "left")):
        assert is_true(one, {name: one.attributes[name]}) and not is_true(one, {name: "/".join((other, "x"))})
    two = next(s for s in map(sprites.sample_scene, range(99)) if s.relation == "left of")
    (first, second), colours = (item.thing for item in two.objects), [item.colour for item in two.objects]
    assert is_true(two, read_caption(f"a {colours[0]} {first} left of a {second}"))
    assert is_true(two, read_caption(f"a {second} to the right of a {colours[0]} {first}"))
    assert not is_true(two, read_caption(f"a {second} left of a {first}"))
    assert not is_true(two, read_caption(f"a {first}"))
    assert read_caption("a red and blue dog")["colour"] == "red/blue" and read_caption("?") == {"num_objects": "0"}
