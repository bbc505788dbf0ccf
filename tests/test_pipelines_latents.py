"""Samples, walks and traversals of latents, as sheets of pictures, and the command that draws them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_tokenizer_autoencoder import VARIANTS, pictures, tiny
from tiny import add_noise

from pipelines.drawing.latents import (
    class_numbers,
    interpolation_rows,
    sample_rows,
    traversal_rows,
    widest_latents,
)
from pipelines.options.latents import LatentOptions
from pipelines.options.parser import parse_options
from scripts import sample_latents
from tokenizer_image.preprocessing import postprocess


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


def test_a_sample_depends_on_its_seed_and_number_alone():
    model = add_noise(tiny(bottleneck="gaussian"), 0.05)
    (_, few), (_, many) = sample_rows(model, 3, seed=5)[0], sample_rows(model, 6, seed=5)[0]
    assert same(few, many[:3]) and not same(few, sample_rows(model, 3, seed=6)[0][1])
    still = sample_rows(model, 2, seed=5, temperature=0.0)[0][1]
    assert same(still[:1], still[1:]), "temperature 0 is the prior's mean"


def test_samples_of_each_class_share_their_latents():
    model = add_noise(tiny(**VARIANTS["conditional"]), 0.1)
    rows = sample_rows(model, 2, seed=0)
    assert [name for name, _ in rows] == ["disc", "square"] and not same(rows[0][1], rows[1][1])
    assert sample_rows(model, 2, seed=0, class_names=["square"])[0][1][0].tobytes() == rows[1][1][0].tobytes()
    assert class_numbers(model, ["square", "disc"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="has no class 'star': its classes are disc, square"):
        sample_rows(model, 2, seed=0, class_names=["star"])
    with pytest.raises(ValueError, match="has no class 'star': it is not conditional"):
        sample_rows(tiny(bottleneck="gaussian"), 2, seed=0, class_names=["star"])


@pytest.mark.parametrize("name", ["none", "conditional", "hierarchical"])
def test_a_walk_begins_and_ends_at_the_reconstructions(name):
    model, batch = add_noise(tiny(**VARIANTS[name]), 0.05), pictures(4)
    classes = torch.tensor([0, 1, 1, 1]) if name == "conditional" else None
    rows = interpolation_rows(model, batch, 5, classes)
    assert [len(images) for _, images in rows] == [5] * 4
    whole = postprocess(model.reconstruct(batch, classes))
    for pair in (0, 1):
        walk, pixels = rows[2 * pair][1], rows[2 * pair + 1][1]
        assert same([walk[0], walk[-1]], whole[2 * pair : 2 * pair + 2])
        assert same([pixels[0], pixels[-1]], postprocess(batch[2 * pair : 2 * pair + 2]))
    halfway = model.latents(batch, classes)[-1][:2].mean(dim=0, keepdim=True)
    if name == "none":
        assert same(rows[0][1][2:3], postprocess(model.decode(halfway)))


def test_a_traversal_changes_one_latent():
    model, batch = add_noise(tiny(bottleneck="gaussian"), 0.05), pictures(1)
    rows = traversal_rows(model, batch, [2], span=2.0, steps=3)
    (latents,) = model.latents(batch)
    changed = latents.repeat(3, 1, 1, 1)
    changed[:, 0, 0, 2] = torch.tensor([-2.0, 0.0, 2.0])
    assert rows[1][0] == "latent 2, from -2 to 2" and same(rows[1][1], postprocess(model.decode(changed)))
    plain = tiny()
    middle = traversal_rows(plain, batch, [0], steps=3)[1][1][1]
    assert same([middle], postprocess(plain.reconstruct(batch))), "of no prior: about the picture's own value"


def test_finer_levels_follow_a_coarse_one():
    model, batch = add_noise(tiny(**VARIANTS["hierarchical"]), 0.05), pictures(1)
    levels = model.latents(batch)
    title, images = traversal_rows(model, batch, [1], level=0, span=1.0, steps=3)[1]
    coarse = levels[0].repeat(3, 1, 1, 1)
    coarse[..., 1] = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)
    assert title == "latent 1 of level 0, from -1 to 1" and same(images, postprocess(model.decode([coarse])))
    with pytest.raises(ValueError, match=r"level 0, latents \[9\]: .* levels 0 to 1 and latents 0 to 5"):
        traversal_rows(model, batch, [9])
    with pytest.raises(ValueError, match="level 2, latents"):
        traversal_rows(model, batch, [0], level=2)


def test_the_latents_that_vary_most_come_first():
    model, batch = tiny(), pictures(8)
    variances = model.latents(batch)[0].var(dim=0).mean(dim=(0, 1))
    found = widest_latents(model, batch, 0, 3)
    assert found == sorted(range(6), key=lambda number: -variances[number])[:3]


# ---- the command


def run(folder: Path, *arguments: str) -> Image.Image:
    given = ["--autoencoder", str(folder), "--output", str(folder / "sheet.png"), "--device", "cpu", *arguments]
    output = sample_latents.main(parse_options(LatentOptions, description="test", argv=given))
    return Image.open(output)


def test_the_command_draws_sheets(tmp_path):
    tiny(bottleneck="gaussian").save_pretrained(tmp_path / "vae")
    tiny(**VARIANTS["conditional"]).save_pretrained(tmp_path / "cvae")
    tiny(**VARIANTS["hierarchical"]).save_pretrained(tmp_path / "levels")
    tiny().save_pretrained(tmp_path / "plain")
    four, two = run(tmp_path / "vae", "--count", "4"), run(tmp_path / "vae", "--count", "2")
    assert four.width == 8 + 4 * 136 and two.width == 8 + 2 * 136
    assert run(tmp_path / "cvae", "--count", "2").height > two.height
    assert run(tmp_path / "cvae", "--draw", "interpolation", "--rows", "0", "1").width == 8 + 9 * 136
    assert run(tmp_path / "plain", "--draw", "interpolation", "--steps", "3").width == 8 + 3 * 136
    assert run(tmp_path / "levels", "--draw", "traversal", "--level", "1", "--steps", "3").width == 8 + 3 * 136
    with pytest.raises(ValueError, match="no prior to sample from"):
        run(tmp_path / "plain")
    with pytest.raises(ValueError, match="--rows 9999999999: the split validation has"):
        run(tmp_path / "vae", "--draw", "traversal", "--rows", "9999999999")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--draw dreams", "--draw 'dreams': choose samples"),
        ("--draw interpolation --rows 1 2 3", "--rows 1 2 3: an interpolation needs pairs"),
        ("--draw traversal --rows 1 2", "--rows 1 2: a traversal is of one picture"),
        ("--rows 1", "--rows is for --draw interpolation or traversal, not for samples"),
        ("--latents 1", "--latents is for --draw traversal, not for samples"),
        ("--draw traversal --classes a", "--classes is for --draw samples, not for traversal"),
        ("--steps 1", "--steps 1 must be at least 2"),
        ("--output .", "--output . is a folder"),
    ],
)
def test_mistakes(given, words, capsys):
    with pytest.raises(SystemExit):
        parse_options(LatentOptions, description="test", argv=given.split())
    assert words in capsys.readouterr().err
