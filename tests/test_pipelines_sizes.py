"""One model, pictures of several sizes: drawn, completed, described and scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import draw_codes, tiny_model, tiny_pipeline, tiny_tokenizer, tiny_vocabulary

from lm.generation import texts as text_generation
from lm.sequences import collate, image_prompt, token_sequence
from lm.training.losses import NextTokenLoss
from pipelines.image_to_text import ImageToTextPipeline
from pipelines.options.evaluation import EvaluationOptions
from pipelines.text_to_image import TextToImagePipeline
from scripts import evaluate

SQUARE, WIDE, TALL = (16, 16), (8, 24), (24, 8)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pipe(request) -> TextToImagePipeline:
    formats = ["caption_to_image", "image", "image_to_caption"]
    return tiny_pipeline(
        tokenizer=tiny_tokenizer(patch_size=2), texts=["a red dog", "a blue cat"], sizes=(SQUARE, WIDE, TALL),
        formats=formats, architecture=request.param, max_positions=96, noise=0.2,
    )  # fmt: skip


@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL])
def test_a_picture_of_any_size_is_drawn_as_transformers_would(pipe, size):
    """Greedy, with guidance: two plain forward passes a token, size and end-of-row tokens where they belong."""
    height, width = size
    output = pipe("a red dog", temperature=0, guidance_scale=2.0, height=height, width=width)
    assert output.images[0].size == (width, height)
    vocabulary, picture = pipe.vocabulary, pipe.vocabulary.picture(size)
    rows = [image_prompt(vocabulary, caption, size) for caption in ("a red dog", None)]
    codes = []
    with torch.no_grad():
        for place in range(picture.places[0], len(picture)):
            if place not in picture.places:
                rows = [[*row, int(picture.ids[place])] for row in rows]
                continue
            low, high = picture.layout["low"][len(codes)], picture.layout["high"][len(codes)]
            part = slice(vocabulary.image_offset + low, vocabulary.image_offset + high)
            asked, alone = (pipe.model(torch.tensor([row])).logits[0, -1, part] for row in rows)
            codes.append(low + int((alone + 2.0 * (asked - alone)).argmax()))
            rows = [[*row, vocabulary.image_offset + codes[-1]] for row in rows]
    assert output.codes[0].tolist() == codes
    assert (
        rows[0]
        == token_sequence(
            vocabulary, "caption_to_image", vocabulary.encode_text("a red dog"), np.array(codes), size
        ).input_ids.tolist()
    )


def test_one_of_height_and_width_may_say_which(pipe):
    assert pipe("a", height=24).images[0].size == (8, 24) and pipe("a", width=24).images[0].size == (24, 8)
    assert pipe("a").images[0].size == (16, 16) and pipe("a", height=16).codes.shape == (1, 32)
    with pytest.raises(ValueError, match=r"height=8, width=8: this model draws 16x16, 8x24, 24x8 pictures"):
        pipe("a", height=8, width=8)
    with pytest.raises(ValueError, match=r"width=17: this model draws"):
        pipe("a", width=17)


@pytest.mark.parametrize("size", [WIDE, SQUARE])
def test_completion_keeps_the_codes_of_what_is_kept(pipe, size):
    height, width = size
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    codes = pipe.encode_images(image, size)[0]
    layout = pipe.vocabulary.layouts[size]
    output = pipe.complete(image, "a red dog", keep_rows=height // 2, seed=1)
    kept = torch.tensor(layout["row"]) < (max(layout["row"]) + 1) // 2
    assert kept.any() and not kept.all()
    assert output.codes[0][kept].equal(codes[kept]) and output.images[0].size == (width, height)
    assert pipe.vary(image, redraw=0.3, seed=0).images[0].size == (width, height)
    with pytest.raises(ValueError, match=r"the picture is 16x12 .*, this model's are 16x16, 24x8, 8x24: resize"):
        pipe.complete(Image.new("RGB", (16, 12)), keep_rows=2)


def test_pictures_are_described_and_scored_at_the_nearest_shape(pipe):
    images = [
        Image.new("RGB", size, color) for size, color in (((40, 40), "red"), ((90, 30), "blue"), ((9, 30), "red"))
    ]
    assert [pixels.shape[1:] for pixels in pipe.prepare_images(images)] == [SQUARE, WIDE, TALL]
    describe = ImageToTextPipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    together = describe(images, max_new_tokens=5).texts
    assert together == [describe(one, max_new_tokens=5).texts[0] for one in images]
    several = {"max_new_tokens": 5, "best_of": 4, "seed": 0}
    assert describe(images, **several).texts == [describe(one, **several).texts[0] for one in images]
    wide = pipe.score("a red dog", images[1])
    assert wide.nats.shape == (1, 2 * 2 * 6) and wide.codes.equal(pipe.encode_images(images[1], WIDE))
    sequence = token_sequence(
        pipe.vocabulary, "caption_to_image", pipe.vocabulary.encode_text("a red dog"), wide.codes[0].numpy(), WIDE
    )
    sums = NextTokenLoss(pipe.model, pipe.vocabulary.id_ranges)(**collate([sequence], pipe.vocabulary.pad_id))
    assert float(wide.total) == pytest.approx(float(sums["image_nats"]), rel=1e-5)
    with pytest.raises(ValueError, match="several shapes: score those of one shape together"):
        pipe.score("a red dog", images)


def test_neighbours_and_previews(pipe):
    settings = {"height": 8, "seed": 3, "guidance_scale": 1.5}
    together = pipe(["a red dog", "a blue cat"], **settings).codes
    assert together[1:].equal(pipe("a blue cat", **settings).codes)
    *_, last = pipe.previews("a blue cat", every=5, **settings)
    assert last.codes.equal(together[1:]) and last.images[0].size == (24, 8)


def test_prompts_that_leave_no_room(pipe):
    prompt = image_prompt(pipe.vocabulary, "a red dog " * 40, WIDE)
    with pytest.raises(ValueError, match=r"prompt 0 has \d+ tokens, but at most \d+ leave room"):
        draw_codes(pipe.model, pipe.vocabulary, [prompt], size=WIDE, generators=[torch.Generator()])


def test_evaluation_measures_the_default_size(pipe, tmp_path):
    """A model whose default is not the image tokenizer's square."""
    tall = tiny_vocabulary(pipe.image_tokenizer, ["a red dog"], (TALL, WIDE), ["image"])
    model = tiny_model(tall, num_layers=1, max_positions=96)
    TextToImagePipeline(pipe.image_tokenizer, model, tall).save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    report = evaluate.main(EvaluationOptions(
        model=str(tmp_path / "model"), dataset=str(tmp_path / "pictures"), output=str(tmp_path / "report.json"),
        split="train", num_workers=0,
    ))  # fmt: skip
    assert report["codebook"]["tokens_per_image"] == 2 * 6 * 2
    assert report["likelihood"]["num_codes"] == report["likelihood"]["n"] * 24


def test_describing_halves_a_batch_that_memory_has_no_room_for(pipe, monkeypatch):
    describe = ImageToTextPipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "green", "white", "black")]
    expected, original, sizes = describe(images, max_new_tokens=4).texts, text_generation._write_batch, []

    def scarce(model, vocabulary, prompts, *arguments):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(model, vocabulary, prompts, *arguments)

    def no_memory(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(text_generation, "_write_batch", scarce)
    describe.max_batch_rows = 5
    assert describe(images, max_new_tokens=4).texts == expected and sizes == [5, 2, 2, 1]
    monkeypatch.setattr(
        text_generation, "_write_batch", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory"))
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        describe(images, max_new_tokens=4)
