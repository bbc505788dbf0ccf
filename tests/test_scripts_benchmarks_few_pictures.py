"""The benchmark of few pictures: its worlds, and one short run through the real commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import tiny_pipeline, tiny_tokenizer

from scripts.benchmarks import few_pictures, transfer
from scripts.benchmarks.few_pictures import TARGETS, Options, build_world
from scripts.benchmarks.few_worlds import drawings, icons, other_drawings, write_folder


def test_every_combination_has_a_caption_of_its_own_and_a_quarter_is_for_training():
    world = build_world("drawings", 50)
    captions = {item.caption for item in world.items}
    assert len(world.items) == len(captions) == 9216 and len(world.training) == 2376 and len(world.judged) == 50
    assert not set(world.training) & set(world.judged)
    assert "a small red triangle, filled, turned by 90 degrees" in captions
    some = [item for item in drawings() if item.colour == "red" and item.size == "small"]
    pixels = {np.asarray(item.picture()).tobytes() for item in some}
    assert len(pixels) == len(some) == 256, "all are told apart, at the smallest size, too"
    assert some[0].picture().size == (32, 32) and some[0].picture().getpixel((0, 0)) == (255, 255, 255)


def test_every_icon_has_a_name_and_a_picture_of_its_own(tmp_path):
    found = icons(60)
    assert len({icon.caption for icon in found}) == 60 == len({icon.picture().tobytes() for icon in found})
    assert [icon.caption for icon in icons(1400)[:60]] == [icon.caption for icon in found]
    write_folder(tmp_path / "icons", found[:3])
    lines = [json.loads(line) for line in (tmp_path / "icons" / "metadata.jsonl").read_text().splitlines()]
    assert lines[0] == {"file_name": "00000.png", "text": found[0].caption} and found[0].picture().size == (64, 64)
    assert len(list((tmp_path / "icons").glob("*.png"))) == 3


def test_other_drawings_share_no_shape_or_colour_with_the_first_and_are_told_apart():
    others = other_drawings()
    assert len({one.caption for one in others}) == len(others) == 1536
    first = drawings()
    for factor in ("shape", "colour"):
        assert not {getattr(one, factor) for one in first} & {getattr(one, factor) for one in others}
    some = [one for one in others if one.colour == "beige" and one.size == "small"]
    assert len({one.picture().tobytes() for one in some}) == len(some) == 128


@pytest.mark.slow
def test_a_short_transfer(tmp_path):
    tiny_pipeline(tokenizer=tiny_tokenizer(image_size=32), num_layers=1).save_pretrained(tmp_path / "earlier")
    transfer.main(
        transfer.Options(earlier=str(tmp_path / "earlier"), pictures=60, judged=4, stage_1_steps=2, steps=2,
                         cpu_threads=1, output=str(tmp_path / "rows.json"))
    )  # fmt: skip
    rows = {row["what"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert {f"transfer/{name}/nearest" for name in ("from_nothing", "from_earlier")} <= rows.keys()


@pytest.mark.slow
def test_a_short_run(tmp_path, monkeypatch):
    monkeypatch.setattr(few_pictures, "ICONS", 80)
    output = tmp_path / "rows.json"
    few_pictures.main(
        Options(worlds=["icons"], max_steps=3, captions=4, output=str(output), cpu_threads=1,
                lm_options=["lm_size=2M", "batch_size=8"])
    )  # fmt: skip
    rows = {row["what"]: row for row in json.loads(output.read_text())}
    assert {name for name in TARGETS if name.startswith("icons")} <= rows.keys()
    assert rows["icons/default/nearest"]["target"] == 0.97 and 0 <= rows["icons/greedy/all_codes"]["value"] <= 1
    assert rows["icons/validation_over_best"]["value"] == 1.0
