"""Completion, editing, variations, previews, best of n: on real parts of tiny size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline, tiny_tokenizer

from lm.generation.progress import DrawingInterrupted, DrawingStopped
from pipelines import TextToImagePipeline
from tokenizer_image.preprocessing import to_pixel_values

SIZE = 16


def pipeline(**settings) -> TextToImagePipeline:
    """A tokenizer of these settings, and a small random language model for it."""
    tokenizer = tiny_tokenizer(**settings)
    with torch.no_grad():
        for values in tokenizer.state_dict().values():  # so that codes and pictures differ
            if values.is_floating_point():
                values.add_(0.3 * torch.randn_like(values))
    return tiny_pipeline(tokenizer=tokenizer, max_positions=128)


@pytest.fixture(scope="module")
def flat() -> TextToImagePipeline:
    """One level, two codes a place."""
    return pipeline(codebook_sizes=[16, 8])


@pytest.fixture(scope="module")
def deep() -> TextToImagePipeline:
    """Two levels."""
    return pipeline(num_levels=2, codebook_sizes=[16, 16], patch_size=2)


@pytest.fixture(params=["flat", "deep"])
def pipe(request) -> TextToImagePipeline:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def own_codes(pipe, image) -> torch.Tensor:
    return pipe.image_tokenizer.encode(to_pixel_values(np.asarray(image).transpose(2, 0, 1))[None])[0]


def places(pipe) -> list[tuple[range, range]]:
    """Rows and columns of pixels of each position, by hand."""
    layout, found = pipe.image_tokenizer.layout(), []
    for level, row, column in zip(layout.level, layout.row, layout.column, strict=True):
        side = SIZE // (layout.row[layout.level == level].max() + 1)
        found.append((range(row * side, (row + 1) * side), range(column * side, (column + 1) * side)))
    return found


# Completion and editing


@pytest.mark.parametrize("prompt", [None, "a red dog", ["a dog", "a blue cat"]])
@pytest.mark.parametrize("keep_rows", [0, 7, 8, 13, SIZE])
def test_the_top_of_a_picture_stays(pipe, image, prompt, keep_rows):
    output = pipe.complete(image, prompt, keep_rows=keep_rows, num_images_per_prompt=3, seed=0)
    kept = torch.tensor([rows[-1] < keep_rows for rows, _ in places(pipe)])
    count = 3 * (2 if isinstance(prompt, list) else 1)
    assert output.codes.shape == (count, len(kept)) and len(output.images) == count
    assert (output.codes[:, kept] == own_codes(pipe, image)[kept]).all()
    if not kept.all():
        assert len(output.codes[:3, ~kept].unique(dim=0)) == 3  # each is drawn anew
    if not kept.any():
        assert output.codes.equal(pipe(prompt, num_images_per_prompt=3, seed=0).codes)


@pytest.mark.parametrize("kind", ["array", "picture", "numbers"])
def test_what_a_mask_touches_is_drawn_again(pipe, image, kind):
    touched = np.zeros((SIZE, SIZE), bool)
    touched[5, 9] = True  # one pixel
    mask = {"array": touched, "picture": Image.fromarray(touched), "numbers": touched * 255}[kind]
    output = pipe.complete(image, "a red dog", mask=mask, num_images_per_prompt=8, seed=0)
    kept = torch.tensor([5 not in rows or 9 not in columns for rows, columns in places(pipe)])
    assert (output.codes[:, kept] == own_codes(pipe, image)[kept]).all()
    assert (~kept).sum() == 2 and len(output.codes[:, ~kept].unique(dim=0)) > 1


def test_settings_reach_the_sampler(flat, image):
    def codes(**settings):
        return flat.complete(image, "a red dog", keep_rows=8, num_images_per_prompt=2, seed=1, **settings).codes

    assert not codes().equal(codes(guidance_scale=1.0))
    assert codes(temperature=0)[0].equal(codes(temperature=0)[1])
    seen = []
    array = flat.complete(image, keep_rows=8, output_type="np", callback=lambda *step: seen.append(step[:2])).images
    assert array.shape == (1, SIZE, SIZE, 3)
    assert seen == [(step, 8) for step in range(5, 9)]  # what is kept at the beginning takes no steps


def test_the_original_may_have_any_mode(flat, image):
    codes = flat.complete(image.convert("L"), keep_rows=SIZE).codes[0]
    assert codes.equal(own_codes(flat, image.convert("L").convert("RGB")))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, ValueError, "either keep_rows .* or a mask"),
        ({"keep_rows": 1, "mask": np.zeros((SIZE, SIZE))}, ValueError, "either keep_rows"),
        ({"keep_rows": 17}, ValueError, "keep_rows=17: this model's pictures have 16 rows of pixels"),
        ({"keep_rows": -1}, ValueError, "keep_rows must be at least 0, got -1"),
        ({"keep_rows": 0.5}, TypeError, "keep_rows must be a whole number, got 0.5"),
        ({"mask": np.zeros((8, 16))}, ValueError, r"shape \(8, 16\), this model's pictures are \(16, 16\)"),
        ({"mask": Image.new("L", (16, 8))}, ValueError, r"shape \(8, 16\), this model's pictures are \(16, 16\)"),
        ({"keep_rows": 8, "seed": -1}, ValueError, "seed must be at least 0"),
        ({"keep_rows": 8, "output_type": "jpg"}, ValueError, "output_type must be one of"),
        ({"keep_rows": 8, "strength": 1}, TypeError, "strength"),
    ],
)
def test_mistakes_in_completion(flat, image, settings, error, words):
    with pytest.raises(error, match=words):
        flat.complete(image, **settings)


def test_a_picture_of_another_size(flat):
    with pytest.raises(ValueError, match=r"is 8x20 \(width x height\), this model's are 16x16: resize"):
        flat.complete(Image.new("RGB", (8, 20)), keep_rows=8)
    with pytest.raises(TypeError, match="image must be one PIL picture, got str"):
        flat.vary("dog.png")


# Variations


def test_a_share_is_drawn_again(pipe, image):
    codes = own_codes(pipe, image)
    output = pipe.vary(image, redraw=0.25, num_images_per_prompt=8, seed=3)
    same = (output.codes == codes).all(0)
    assert 0 < (~same).sum() <= len(codes) // 4
    assert pipe.vary(image, redraw=0.25, num_images_per_prompt=8, seed=3).codes.equal(output.codes)
    assert not (pipe.vary(image, redraw=1.0, seed=3).codes == codes).all()


def test_coarse_levels_stay(deep, image):
    coarse = torch.from_numpy(deep.image_tokenizer.layout().level == 0)
    output = deep.vary(image, "a red dog", keep_levels=1, num_images_per_prompt=4, seed=0)
    assert (output.codes[:, coarse] == own_codes(deep, image)[coarse]).all()
    assert len(output.codes[:, ~coarse].unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"redraw": 0}, ValueError, r"redraw must be in \(0, 1\].* got 0"),
        ({"redraw": "half"}, TypeError, "redraw must be a number, got 'half'"),
        ({"keep_levels": 2}, ValueError, "keep_levels=2: this model's pictures have 2 levels; keep fewer"),
        ({"keep_levels": 0}, ValueError, "keep_levels must be at least 1, got 0"),
    ],
)
def test_mistakes_in_variations(deep, image, settings, error, words):
    with pytest.raises(error, match=words):
        deep.vary(image, **settings)


def test_levels_of_a_model_that_has_one(flat, image):
    with pytest.raises(ValueError, match="have one level of codes: give redraw"):
        flat.vary(image, keep_levels=1)


# Controls of the call


def test_lists_of_settings(flat, deep):
    assert flat("a dog", seed=0, temperature=[1.0, 1.0]).codes.equal(flat("a dog", seed=0).codes)
    assert deep("a dog", seed=0, temperature=[0, 0]).codes.equal(deep("a dog", temperature=0).codes)
    assert not flat("a dog", seed=0, min_p=0.9).codes.equal(flat("a dog", seed=0).codes)
    schedule = [3.0] * flat.vocabulary.tokens_per_image
    assert flat("a dog", seed=0, guidance_scale=schedule).codes.equal(flat("a dog", seed=0, guidance_scale=3.0).codes)
    assert flat("a dog", seed=0, guidance_scale=lambda t: 3.0).codes.equal(
        flat("a dog", seed=0, guidance_scale=3.0).codes
    )
    with pytest.raises(ValueError, match="guidance_scale has 3 values: give one number, or one .* 8 codes"):
        flat("a dog", guidance_scale=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="only with a guidance_scale above 1, got 1.0"):
        flat("a dog", negative_prompt="a cat", guidance_scale=[1.0] * 8)


def test_a_seed_for_each_picture(flat):
    codes = flat(["a dog", "a cat"], num_images_per_prompt=2, seed=[3, 4, 5, 6]).codes
    for row, (prompt, seed) in enumerate([("a dog", 3), ("a dog", 4), ("a cat", 5), ("a cat", 6)]):
        assert flat(prompt, seed=seed).codes[0].equal(codes[row])
    with pytest.raises(ValueError, match="2 seeds for 1 pictures: give one, or one for each picture"):
        flat("a dog", seed=[1, 2])
    with pytest.raises(ValueError, match="seed must be at least 0, got -2"):
        flat("a dog", seed=[-2])


# Progress


def test_previews(pipe):
    total = pipe.vocabulary.tokens_per_image
    outputs = list(pipe.previews("a dog", every=3, seed=0, num_images_per_prompt=2, output_type="np"))
    lengths = [output.codes.shape[1] for output in outputs]
    assert lengths == [*range(3, total, 3), total]
    whole = pipe("a dog", seed=0, num_images_per_prompt=2, output_type="np")
    assert outputs[-1].codes.equal(whole.codes) and np.array_equal(outputs[-1].images, whole.images)
    assert outputs[0].codes.equal(whole.codes[:, :3]) and outputs[0].images.shape == (2, SIZE, SIZE, 3)


def test_mistakes_in_previews_come_at_the_call(flat):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        flat.previews("a dog", every=0)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        flat.previews("a dog", temperature=-1)


@pytest.mark.parametrize(
    ("error", "caught"), [(OSError("no disk"), DrawingStopped), (KeyboardInterrupt(), DrawingInterrupted)]
)
def test_a_callback_that_raises_loses_nothing(flat, error, caught):
    whole = flat(["a dog", "a cat"], seed=0, guidance_scale=1.0, output_type="np")

    def stop(step, total, codes):
        if step == 8 + 3:
            raise error

    flat.max_batch_rows = 1
    try:
        with pytest.raises(caught) as stopped:
            flat(["a dog", "a cat"], seed=0, guidance_scale=1.0, output_type="np", callback=stop)
    finally:
        flat.max_batch_rows = 128
    output = stopped.value.output
    assert output.codes[0].equal(whole.codes[0]) and np.allclose(output.images[0], whole.images[0], atol=1e-6)
    assert output.codes[1, :3].equal(whole.codes[1, :3]) and (output.codes[1, 3:] == -1).all()
    assert stopped.value.__cause__ is error and output.images.shape == whole.images.shape


# Best of n


def redness(images, prompt):
    return [np.asarray(image)[..., 0].mean() for image in images]


def test_the_best_of_many(flat):
    many = flat(["a dog", "a cat"], num_images_per_prompt=6, seed=0)
    best = flat(["a dog", "a cat"], num_images_per_prompt=2, best_of=6, ranker=redness, seed=0)
    for prompt in range(2):
        own = slice(6 * prompt, 6 * prompt + 6)
        order = np.argsort(redness(many.images[own], None))[::-1][:2].copy()
        assert best.codes[2 * prompt : 2 * prompt + 2].equal(many.codes[own][order])
    array = flat("a dog", best_of=3, ranker=lambda images, prompt: torch.arange(3), seed=0, output_type="np")
    assert array.images.shape == (1, SIZE, SIZE, 3) and array.codes[0].equal(
        flat("a dog", num_images_per_prompt=3, seed=0).codes[2]
    )


def test_a_ranker_is_told_the_prompt(flat):
    seen = []

    def ranker(images, prompt):
        seen.append((len(images), prompt))
        return [0.0] * len(images)

    flat(["a dog ", "a cat"], best_of=2, ranker=ranker)
    flat(None, best_of=2, ranker=ranker)
    assert seen == [(2, "a dog"), (2, "a cat"), (2, None)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"best_of": 4},
            "not trained for that .* image_to_caption or image_and_caption.: give a ranker, or train with .*image_and",
        ),
        ({"ranker": redness}, "a ranker chooses among pictures: say with best_of how many to draw"),
        ({"best_of": 1, "ranker": redness, "num_images_per_prompt": 2}, "best_of must be at least 2, got 1"),
        ({"best_of": 2, "ranker": lambda images, prompt: [1.0]}, r"the ranker gave \[1.0\] for 2 pictures"),
        ({"best_of": 2, "ranker": lambda images, prompt: [1.0, float("nan")]}, "must return a number for each"),
    ],
)
def test_mistakes_in_best_of(flat, settings, words):
    with pytest.raises(ValueError, match=words):
        flat("a dog", **settings)


def test_the_best_of_many_completions_and_variations(flat, image):
    def green(images, prompt):
        return [np.asarray(image)[..., 1].mean() for image in images]

    for method, kept in ((flat.complete, {"keep_rows": 8}), (flat.vary, {"redraw": 0.5})):
        settings = {**kept, "seed": 2, "num_images_per_prompt": 5}
        many = method(image, ["a dog", "a cat"], **settings)
        best = method(image, ["a dog", "a cat"], **{**settings, "num_images_per_prompt": 2}, best_of=5, ranker=green)
        for prompt in range(2):
            part = slice(5 * prompt, 5 * prompt + 5)
            order = np.argsort(green(many.images[part], None), kind="stable")[::-1][:2].copy()
            assert best.codes[2 * prompt : 2 * prompt + 2].equal(many.codes[part][order])


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_stopped_in_the_best_of_many_with_pictures_of_the_given_type(flat, output_type):
    def stop(step, total, codes):
        if step == 3:
            raise OSError("no disk")

    settings = {"best_of": 3, "ranker": redness, "seed": 0, "output_type": output_type}
    with pytest.raises(DrawingStopped) as stopped:
        flat("a dog", **settings, callback=stop)
    output, kind = stopped.value.output, {"np": np.ndarray, "pt": torch.Tensor}[output_type]
    assert isinstance(output.images, kind) and len(output.images) == len(output.codes) == 3


@pytest.mark.parametrize(
    ("method", "settings", "error", "words"),
    [
        ("complete", {"keep_rows": 8, "strength": 1}, TypeError, "^complete has no setting 'strength': it takes negat"),
        (
            "vary",
            {"strength": 1},
            TypeError,
            "^vary has no setting 'strength': it takes negative_prompt, .*ranker, codes_per_call$",
        ),
        ("complete", {"keep_rows": 8, "height": 8}, ValueError, "^height=8: the picture is 16x16 .*leave height and"),
        ("vary", {"width": 3}, ValueError, "^width=3: the picture is 16x16"),
        ("vary", {"ranker": redness}, ValueError, "^a ranker chooses among pictures"),
        ("previews", {"best_of": 4}, TypeError, "^previews takes no best_of: pictures are shown while they are drawn"),
        ("previews", {"ranker": redness}, TypeError, "^previews takes no ranker: "),
        ("previews", {"callback": print}, TypeError, "^previews takes no callback: it gives the pictures as they are"),
        ("previews", {"steps": 4}, TypeError, "^previews has no setting 'steps': it takes"),
    ],
)
def test_settings_that_a_use_does_not_take(flat, image, method, settings, error, words):
    with pytest.raises(error, match=words):
        getattr(flat, method)("a dog" if method == "previews" else image, **settings)


def test_the_size_of_the_picture_may_be_said(flat, image):
    whole = flat.complete(image, keep_rows=8, seed=1).codes
    assert flat.complete(image, keep_rows=8, seed=1, height=SIZE, width=SIZE).codes.equal(whole)


# The command


def test_ctrl_c_keeps_finished_pictures(flat, tmp_path, capsys, monkeypatch):
    """Interrupted in its second batch, the command keeps the first one's pictures."""
    from tqdm import tqdm

    from scripts import generate

    flat.save_pretrained(tmp_path / "model")

    def loaded(*arguments, **settings):
        flat.max_batch_rows = 4
        return flat

    def interrupt(bar, count):
        if bar.total and bar.n + count > flat.vocabulary.tokens_per_image + 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TextToImagePipeline, "from_pretrained", loaded)
    monkeypatch.setattr(tqdm, "update", lambda bar, count: (interrupt(bar, count), setattr(bar, "n", bar.n + count)))
    options = generate.GenerateOptions(
        prompts=["a dog"], num_images_per_prompt=4, output=str(tmp_path / "out"), seed=1, device="cpu"
    )
    try:
        with pytest.raises(KeyboardInterrupt):
            generate.main(options)
    finally:
        flat.max_batch_rows = 128
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000-a-dog-0.png", "000-a-dog-1.png"]
    assert f"interrupted: 2 of 4 pictures finished, in {tmp_path / 'out'} (seed 1)" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [0, 2])
def test_a_real_ctrl_c(flat, tmp_path, finished):
    """The signal itself, in a process of its own: what is finished is written, and the command says how many."""
    total = flat.vocabulary.tokens_per_image
    at = 1 if finished == 0 else total + 1  # of the first batch; of the second
    flat.save_pretrained(tmp_path / "model")
    script, output = Path(__file__).parents[1] / "scripts" / "generate.py", tmp_path / "out"
    code = (
        "import runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs of a shell ignore it
        "from tqdm import tqdm\n"
        "from pipelines.multimodal import MultimodalPipeline as Pipeline\n"
        "made = Pipeline.__init__\n"
        "Pipeline.__init__ = lambda self, *parts: (made(self, *parts), setattr(self, 'max_batch_rows', 4))[0]\n"
        "calls = []\n"
        f"tqdm.update = lambda *_: (calls.append(0), len(calls) == {at} and signal.raise_signal(signal.SIGINT))\n"
        f"sys.argv = ['generate.py', '--model', {str(tmp_path / 'model')!r}, 'a dog', '--output', {str(output)!r}]\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    output.mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=script.parents[1])
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert f"interrupted: {finished} of 4 pictures finished" in done.stderr
    assert len(list(output.iterdir())) == finished
