"""`TextToImagePipeline.edit`, and edits of sprites as the probe reads them; real parts of tiny size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipelines_evaluation import PerfectProbe
from tiny import tiny_pipeline, tiny_tokenizer
from torchvision.transforms.functional import to_pil_image

from lm.vocabulary import MultimodalVocabulary
from pipelines import TextToImagePipeline
from pipelines.evaluation.probes.edits import edit_report, edit_sets, expected_answers, scored, verdict
from pipelines.evaluation.probes.sprites_probe import SpritesProbe, answers
from pipelines.evaluation.report.tables import edits_table
from pipelines.model_card import model_card
from pipelines.training.captions_drawn import choose_edits
from tokenizer_image.sprites.edits import KINDS, sample_edit

FORMATS = ["edit", "image_to_image", "image"]
GUIDED = {"guidance_scale": 2.0, "image_guidance_scale": 1.5}


def picture(seed: int = 0, side: int = 16, width: int | None = None) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, width or side, 3), np.uint8)
    return Image.fromarray(pixels)


class Edits:
    """A token cache in memory, of edits alone: source, instruction, result."""

    is_of_edits = True

    def __init__(self, sources: np.ndarray, instructions: list[str], results: np.ndarray) -> None:
        self.rows = [np.concatenate(pair) for pair in zip(sources, results, strict=True)]
        self.instructions = instructions

    def __len__(self) -> int:
        return len(self.rows)

    def codes(self, row: int) -> np.ndarray:
        return self.rows[row]

    def texts(self, row: int) -> list[str]:
        return [self.instructions[row]]


@pytest.fixture(scope="module")
def pipe() -> TextToImagePipeline:
    tokenizer = tiny_tokenizer().train()
    with torch.no_grad():  # the first batch starts the codebooks
        tokenizer(torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    return tiny_pipeline(tokenizer=tokenizer.eval(), formats=FORMATS, noise=0.3)


def test_one_edit(pipe):
    output = pipe.edit(picture(), "make it blue", seed=0)
    assert output.codes.shape == (1, 8) and output.images[0].size == (16, 16)
    assert pipe.edit(picture(), "make it blue", seed=0).codes.equal(output.codes)
    array = pipe.edit(picture(), "make it blue", seed=0, output_type="np").images
    assert array.shape == (1, 16, 16, 3) and array.dtype == np.float32
    codes = [pipe.edit(picture(), "make it blue", seed=seed).codes.tolist() for seed in range(6)]
    assert len({str(one) for one in codes}) > 1


def test_an_edit_is_judged_right_where_its_own_result_is_the_nearest(pipe):
    """What the model makes of a source is the right result of the first edits; that of the second is something else."""
    sources = pipe.encode_images([picture(seed) for seed in range(4)]).numpy()
    decoded = [to_pil_image((pixels.clamp(-1, 1) + 1) / 2) for pixels in pipe.decode_codes(torch.from_numpy(sources))]
    texts = ["a dog", "a red cat", "a blue cat", "a cat"]
    drawn = pipe.edit(decoded, texts, temperature=0, guidance_scale=1.0).codes.numpy()
    seen, held_out = Edits(sources[:2], texts[:2], drawn[:2]), Edits(sources[2:], texts[2:], sources[:2])
    edits = choose_edits(seen, held_out, pipe.vocabulary, 8)
    assert edits is not None and edits.edits and (len(edits.held_out), len(edits.seen), len(edits.others)) == (2, 2, 4)
    assert {one.caption for one in edits.held_out} == set(texts[2:])
    found = edits.drawn(pipe, range(4), 1.0, 0.0)
    assert found.right.tolist() == [False, False, True, True]
    assert (found.distance[2:] < 1e-3).all() and (found.distance[:2] > 0.01).all()
    other = tiny_pipeline(formats=["caption_to_image"]).vocabulary
    assert choose_edits(seen, held_out, other, 8) is None, "the model has not learned edits"
    held_out.is_of_edits = False
    assert choose_edits(seen, held_out, pipe.vocabulary, 8) is None


@pytest.mark.parametrize("scales", [{}, {"guidance_scale": 3.0}, GUIDED])
def test_a_list_equals_its_singles(pipe, scales):
    pictures, texts = [picture(0), picture(1), picture(2)], ["a dog", "a red cat on grass", "a cat"]
    together = pipe.edit(pictures, texts, num_images_per_prompt=2, seed=4, **scales).codes
    alone = [
        pipe.edit(image, text, num_images_per_prompt=2, seed=4, **scales).codes
        for image, text in zip(pictures, texts, strict=True)
    ]
    assert together.equal(torch.cat(alone))
    assert (
        pipe.edit(pictures, texts, seed=[5, 6, 7], **scales)
        .codes[1:2]
        .equal(pipe.edit(pictures[1], texts[1], seed=6, **scales).codes)
    )
    # One picture serves all instructions, and other batches draw the same.
    of_one = pipe.edit(pictures[0], texts, seed=4, **scales).codes
    assert of_one[1:2].equal(pipe.edit(pictures[0], texts[1], seed=4, **scales).codes)
    pipe.max_batch_rows = 3
    try:
        assert pipe.edit(pictures[0], texts, seed=4, **scales).codes.equal(of_one)
    finally:
        pipe.max_batch_rows = 128


def test_what_is_drawn_depends_on_picture_instruction_and_scales(pipe):
    def drawn(image=0, text="a dog", **settings) -> str:
        return str(pipe.edit(picture(image), text, temperature=0, **settings).codes.tolist())

    plain = drawn(**GUIDED)
    assert plain != drawn(1, **GUIDED) and plain != drawn(text="a blue cat on grass", **GUIDED)
    assert len({plain, drawn(guidance_scale=8.0), drawn(guidance_scale=1.0, image_guidance_scale=8.0)}) == 3
    assert plain == drawn(guidance_scale=2.0, image_guidance_scale=[1.5] * 8)
    assert plain == drawn(guidance_scale=2.0, image_guidance_scale=lambda position: 1.5)
    assert drawn(source_prompt="a red dog", **GUIDED) == drawn(text="a red dog\na dog", **GUIDED)
    assert drawn(negative_prompt="a blue cat", **GUIDED) != plain
    assert drawn(codes_per_call=4, **GUIDED) == plain


def test_the_models_own_guidance(pipe):
    pipe.vocabulary.default_guidance, pipe.vocabulary.default_image_guidance = 2.0, 1.5
    try:
        assert pipe.edit(picture(), "a dog", seed=0).codes.equal(pipe.edit(picture(), "a dog", seed=0, **GUIDED).codes)
    finally:
        pipe.vocabulary.default_guidance, pipe.vocabulary.default_image_guidance = 2.0, 1.0


def test_a_ranker_chooses_among_results(pipe):
    seen = []

    def ranker(images, prompt):
        seen.append((len(images), prompt))
        return list(range(len(images)))

    best = pipe.edit(picture(), "a dog", best_of=3, ranker=ranker, seed=0)
    assert seen == [(3, "a dog")]
    assert best.codes.equal(pipe.edit(picture(), "a dog", num_images_per_prompt=3, seed=0).codes[2:])


def test_several_sizes():
    pipe = tiny_pipeline(sizes=[(16, 16), (16, 32)], formats=FORMATS, max_positions=96)
    wide = pipe.edit(picture(side=16, width=32), "a dog", seed=0, **GUIDED)
    assert wide.images[0].size == (32, 16)
    with pytest.raises(ValueError, match=r"picture 1 is 32x16 .* picture 0 is 16x16: .* a call of their own"):
        pipe.edit([picture(), picture(width=32)], ["a dog", "a cat"])
    with pytest.raises(ValueError, match="width=16: the picture is 16x32"):
        pipe.edit(picture(width=32), "a dog", width=16)


WRONG = [
    (dict(image=None), TypeError, "an edit needs a picture to start from, got None"),
    (dict(image=[]), ValueError, "an edit needs a picture to start from, got an empty list"),
    (dict(image="dog.png"), TypeError, "image must be a PIL picture or a list of them, got 'dog.png'"),
    (dict(image=["dog.png"]), TypeError, "image must be one PIL picture, got str"),
    (dict(image=[picture(), picture()]), ValueError, "2 pictures for 1 instruction: an edit starts from one picture"),
    (dict(image=picture(side=20)), ValueError, "the picture is 20x20 .* this model's are 16x16: resize or crop"),
    (dict(instruction=""), ValueError, 'instruction is empty: say what to change, for example "make it blue"'),
    (dict(instruction=["a dog", "  "]), ValueError, "instruction 1 is empty"),
    (dict(instruction=None), ValueError, "an edit needs an instruction, .* got None"),
    (dict(instruction=3), TypeError, "prompt must be a text"),
    (dict(instruction="dog " * 60), ValueError, "has 60 tokens, .* at most .* beside the two pictures: shorten it"),
    (dict(source_prompt=["a", "b"]), ValueError, "2 source prompts for 1 instructions"),
    (dict(image_guidance_scale=-1.0), ValueError, "image_guidance_scale must be at least 0"),
    (dict(image_guidance_scale=[1.0]), ValueError, "image_guidance_scale has 1 values"),
    (dict(negative_prompt="a cat", guidance_scale=1.0), ValueError, "negative_prompt='a cat' has an effect only with"),
    (dict(best_of=2), ValueError, "best_of for edits needs a ranker"),
    (dict(strength=0.5), TypeError, "edit has no setting 'strength'"),
    (dict(seed=[1, 2]), ValueError, "2 seeds for 1 pictures"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), WRONG)
def test_bad_input(pipe, arguments, kind, message):
    with pytest.raises(kind, match=message):
        pipe.edit(**{"image": picture(), "instruction": "make it blue", **arguments})


def test_a_model_that_never_learned_edits():
    plain = tiny_pipeline()
    with pytest.raises(ValueError, match=r"editing a picture .* not trained .* train_lm.py --dataset sprites-edits"):
        plain.edit(picture(), "make it blue")
    unguided = tiny_pipeline(formats=["edit"], noise=0.3)
    with pytest.raises(ValueError, match=r"guidance_scale=2.0: .* would need image_to_image.* --edit_dropout"):
        unguided.edit(picture(), "make it blue", guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"image_guidance_scale=2.0: .* --edit_dropout"):
        unguided.edit(picture(), "make it blue", image_guidance_scale=2.0)
    same = unguided.edit(picture(), "make it blue", seed=0, guidance_scale=1.0).codes
    assert unguided.edit(picture(), "make it blue", seed=0).codes.equal(same)
    with pytest.raises(ValueError, match="prompt 'a dog': this model was not trained for that"):
        tiny_pipeline(formats=FORMATS)("a dog")


def test_too_few_rows(pipe):
    pipe.max_batch_rows = 2
    try:
        with pytest.raises(ValueError, match="max_batch_rows=2: an edit takes 3 rows"):
            pipe.edit(picture(), "a dog", **GUIDED)
    finally:
        pipe.max_batch_rows = 128


def test_what_the_folder_and_the_card_say(pipe, tmp_path):
    pipe.vocabulary.default_image_guidance = 1.25
    try:
        pipe.save_pretrained(tmp_path)
        card = model_card(pipe.model, pipe.vocabulary, "me/model")
    finally:
        pipe.vocabulary.default_image_guidance = 1.0
    values = json.loads((tmp_path / "lm" / "vocabulary.json").read_text())
    assert values["formats"] == FORMATS and values["default_image_guidance"] == 1.25
    assert MultimodalVocabulary.from_pretrained(tmp_path / "lm").default_image_guidance == 1.25
    assert (
        'pipe.edit(Image.open("dog.png"), "make it blue")' in card and "| default image guidance scale | 1.25 |" in card
    )
    assert "pipe.edit" not in model_card(tiny_pipeline().model, tiny_pipeline().vocabulary, "me/model")


# The probe


def test_what_should_change_and_what_should_stay():
    for kind in KINDS:
        for number in range(60):
            edit = sample_edit(number, kind=kind)
            changed, kept = expected_answers(edit)
            before, after = answers(edit.before), answers(edit.after)
            assert {**changed, **kept} == after and changed
            if kind in ("recolour", "replace"):
                (name,) = changed
                assert name.endswith("colour" if kind == "recolour" else "thing")
            elif kind in ("move", "resize", "background"):
                assert list(changed) == [{"move": "position"}.get(kind, "size" if kind == "resize" else "background")]
            elif kind == "add":
                assert len(changed) == 4 and changed["num_objects"] == "2" and len(kept) == 3
                assert kept["background"] == edit.before.background and edit.before.objects[0].thing in kept.values()
            else:
                assert changed == {"num_objects": "1", "thing": edit.after.objects[0].thing}
                assert set(kept) == {"thing", "colour", "size", "position", "background"}
            right = {**before, **after}
            assert verdict(edit, right) == {"changed": True, "kept": True, "both": True}
            if kind not in ("add", "remove"):
                assert verdict(edit, before) == {"changed": False, "kept": True, "both": False}
            wrong = right | {"background": "?"}
            expected = {"changed": False, "kept": True} if kind == "background" else {"changed": True, "kept": False}
            assert verdict(edit, wrong) == {**expected, "both": False}


def test_shares_and_intervals():
    edits = [sample_edit(number, kind=kind) for number in range(2) for kind in ("move", "add")]
    readings = [answers(edit.after) for edit in edits]
    readings[0] = answers(edits[0].before)  # did not move
    found = scored(edits, readings)
    assert found["n"] == 4 and found["changed"] == found["both"] == 0.75 and found["kept"] == 1.0
    assert found["kinds"]["move"]["changed"] == 0.5 and found["kinds"]["add"]["changed"] == 1.0
    low, high = found["interval"]["changed"]
    assert low < 0.75 < high and list(found["kinds"]) == ["move", "add"]


def test_sets_are_those_of_training_in_nothing():
    seen, held_out = edit_sets(70)
    assert seen.name == "seen" and held_out.name == "held_out" and len(seen.edits) == len(held_out.instructions) == 70
    assert all(sum(edit.kind == kind for edit in seen.edits) == 10 for kind in KINDS)
    assert seen.edits != edit_sets(70, seed=1)[0].edits and seen.instructions == edit_sets(70)[0].instructions
    with pytest.raises(ValueError, match="the number of edits must be at least 1"):
        edit_sets(0)


def test_a_report():
    tokenizer = tiny_tokenizer(image_size=32)
    pipe = tiny_pipeline(tokenizer=tokenizer, formats=FORMATS, max_positions=160)
    pipe.set_progress_bar_config(disable=True)
    sets = edit_sets(9)
    probe: SpritesProbe = PerfectProbe([edit.after for one in sets for edit in one.edits])
    settings = {"batch_size": 4, "progress": False, "sampling": GUIDED}
    report = edit_report(pipe, tokenizer, probe, sets, **settings)
    for name in ("seen", "held_out"):
        assert report["real"][name]["both"] == 1.0 and report[name]["n"] == 9
        assert report[name]["both"] <= report[name]["changed"]
    assert sets[0].pictures["source"].shape == sets[0].pictures["sampled"].shape and len(sets[0].verdicts) == 9
    other = edit_sets(9)
    assert edit_report(pipe, tokenizer, probe, other, **{**settings, "batch_size": 9}) == report
    assert sets[0].pictures["sampled"].equal(other[0].pictures["sampled"])
    lines = "\n".join(edits_table(report))
    assert "held-out" in lines and "recolour" in lines and "real, seen" in lines
    alone = edit_report(None, tokenizer, probe, edit_sets(2), progress=False)
    assert set(alone) == {"real", "reconstructed"}
