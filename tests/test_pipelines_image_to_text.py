"""`ImageToTextPipeline`, `TextToImagePipeline.score` and `scripts/describe.py`, on real parts of tiny size."""

from __future__ import annotations

import copy
import gc
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline, tiny_tokenizer

from lm.generation import texts as text_generation
from lm.generation.sampling import SamplingSettings
from lm.generation.texts import generate_text
from lm.sequences import collate, description_prompt, token_sequence
from lm.training.losses import NextTokenLoss
from pipelines import ImageToTextPipeline, InterleavedPipeline, TextToImagePipeline
from pipelines.options.parser import parse_options
from scripts.describe import PICTURES, DescribeOptions, main

ROOT = Path(__file__).resolve().parents[1]
SIZE, TOKENS, POSITIONS = 16, 8, 32  # 2x2 positions of two codes


@pytest.fixture(scope="module")
def pipe() -> ImageToTextPipeline:
    tokenizer = tiny_tokenizer().train()
    with torch.no_grad():
        tokenizer(torch.rand(64, 3, 1, 1) * 2 - 1 + 0.3 * torch.randn(64, 3, SIZE, SIZE))  # starts the codebooks
    formats = ["caption_to_image", "image", "image_to_caption"]
    return tiny_pipeline(
        kind=ImageToTextPipeline, tokenizer=tokenizer.eval(), formats=formats, max_positions=POSITIONS, noise=0.3
    )


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Noise around different greys, in different sizes and modes."""
    rng = np.random.default_rng(0)
    shapes = ((16, 16, 3), (20, 31, 3), (40, 17), (16, 16, 4), (64, 64, 3))
    greys = (0, 50, 100, 150, 200)
    return [
        Image.fromarray(rng.integers(grey, grey + 56, shape).astype(np.uint8))
        for grey, shape in zip(greys, shapes, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def drawing_only(pipe, monkeypatch) -> ImageToTextPipeline:
    monkeypatch.setattr(pipe.vocabulary, "formats", ["caption_to_image", "image"])
    return pipe


# Describing


def test_several_tokens_a_call_write_the_same_captions(pipe, images, capsys, folder, tmp_path):
    one_by_one = pipe(images, tokens_per_call=1).texts
    assert pipe(images, tokens_per_call=8).texts == pipe(images).texts == one_by_one
    for wrong, error in ((0, ValueError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match="tokens_per_call must be"):
            pipe(images[0], tokens_per_call=wrong)
    images[0].save(tmp_path / "0.png")
    arguments = ["--model", str(folder), str(tmp_path / "0.png"), "--tokens_per_call", "4"]
    assert main(parse_options(DescribeOptions, description=None, argv=arguments, positional=PICTURES)) == one_by_one[:1]


@torch.no_grad()
def greedy_by_hand(pipe: ImageToTextPipeline, image: Image.Image, count: int) -> str:
    """Whole sequences, no cache, one picture, all of the output layer."""
    vocabulary, allowed = pipe.vocabulary, torch.from_numpy(pipe.vocabulary.text_mask())
    ids = description_prompt(vocabulary, pipe.encode_images(image)[0].numpy())
    start = len(ids)
    for _ in range(count):
        logits = pipe.model(torch.tensor([ids]), use_cache=False).logits[0, -1, : vocabulary.image_offset]
        ids.append(int(logits.masked_fill(~allowed, -torch.inf).argmax()))
        if ids[-1] == vocabulary.eos_id:
            break
    return vocabulary.decode_text([one for one in ids[start:] if one != vocabulary.eos_id])


def test_greedy_captions_equal_plain_forward_passes_whatever_the_neighbours(pipe, images):
    expected = [greedy_by_hand(pipe, image, 9) for image in images]
    assert pipe(images, max_new_tokens=9).texts == expected
    assert [pipe(image, max_new_tokens=9).texts[0] for image in images] == expected
    assert pipe(tuple(images[::-1]), max_new_tokens=9).texts == expected[::-1]
    assert len(set(expected)) > 1, "the picture matters"
    parts = ImageToTextPipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    parts.max_batch_rows = 2
    assert parts(images, max_new_tokens=9).texts == expected


def learned(pipe: ImageToTextPipeline, pairs: list[tuple[Image.Image, str]], *formats: str) -> ImageToTextPipeline:
    """One that knows pictures and their captions by heart, in these formats."""
    vocabulary, model = pipe.vocabulary, copy.deepcopy(pipe.model).train()
    codes = pipe.encode_images([image for image, _ in pairs])
    rows = [
        token_sequence(vocabulary, name, vocabulary.encode_text(text), row.numpy())
        for name in formats
        for (_, text), row in zip(pairs, codes, strict=True)
    ]
    batch, optimizer = collate(rows, vocabulary.pad_id), torch.optim.AdamW(model.parameters(), 5e-3)
    module = NextTokenLoss(model, vocabulary.id_ranges)
    for _ in range(80):
        sums = module(**batch)
        (sums["loss"] / sums["weight"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return ImageToTextPipeline(pipe.image_tokenizer, model, vocabulary)


def test_captions_that_were_learned_are_written(pipe, images):
    """Sequence, loss and description agree: two pictures and their captions come out by heart."""
    texts = ["a red dog", "a blue cat on grass"]
    own = learned(pipe, [(images[0], texts[0]), (images[3], texts[1])], "image_to_caption")
    assert own([images[3], images[0]]).texts == texts[::-1]


def test_of_many_captions_the_one_from_which_the_picture_would_be_drawn_is_chosen(pipe, images):
    pairs = [(images[0], "a red dog"), (images[3], "a blue cat on grass")]
    own = learned(pipe, pairs, "image_to_caption", "caption_to_image")
    settings = {"temperature": 1.8, "seed": 0, "max_new_tokens": 12}
    pictures, texts = zip(*pairs, strict=True)
    singles = [own(list(pictures), **{**settings, "seed": seed}).texts for seed in range(8)]
    assert sum(one == text for row in singles for one, text in zip(row, texts, strict=True)) < 8, "most are wrong"
    own.max_batch_rows = 7  # in several batches, too
    assert own(list(pictures), best_of=32, **settings).texts == list(texts)
    assert own(pictures[1], best_of=32, **settings).texts == [texts[1]], "whatever the neighbours"
    assert own(pictures[0], best_of=1, **settings).texts == own(pictures[0], **settings).texts


def test_captions_are_compared_in_batches_that_fit_and_by_finite_scores(pipe, images, monkeypatch):
    settings = {"best_of": 6, "seed": 0, "max_new_tokens": 9}
    expected, original, sizes = pipe(images[:2], **settings).texts, NextTokenLoss.position_nats, []

    def position_nats(self, input_ids, *others):
        sizes.append(len(input_ids))
        if len(input_ids) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(self, input_ids, *others)

    monkeypatch.setattr(NextTokenLoss, "position_nats", position_nats)
    assert pipe(images[:2], **settings).texts == expected and sizes == [12, 6, 3, 3, 3, 3]
    monkeypatch.setattr(NextTokenLoss, "position_nats", lambda self, ids, *_: torch.full(ids.shape, torch.nan))
    with pytest.raises(RuntimeError, match="not finite"):
        pipe(images[:2], **settings)


def test_a_caption_ends_at_eos(pipe, images):
    bias = torch.zeros(pipe.vocabulary.size)
    bias[pipe.vocabulary.eos_id] = 1e4
    pipe.model.lm_head.bias = torch.nn.Parameter(bias)
    try:
        assert pipe(images[:2]).texts == ["", ""]
    finally:
        pipe.model.lm_head.bias = None


def test_only_text_is_written(pipe, images):
    vocabulary = pipe.vocabulary
    prompts = [description_prompt(vocabulary, row) for row in pipe.encode_images(images).numpy()] * 10
    streams = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    rows = generate_text(
        pipe.model, vocabulary, prompts, max_new_tokens=12, settings=SamplingSettings(1.0, 50.0), generators=streams
    )
    drawn = {one for row in rows for one in row}
    assert len(drawn) > 50 and max(drawn) < vocabulary.image_offset
    assert not drawn & {vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id, vocabulary.boi_id, vocabulary.eoi_id}


def test_a_seed_repeats_and_does_not_depend_on_the_place(pipe, images):
    settings = {"temperature": 1.0, "max_new_tokens": 9}
    first = pipe(images, seed=1, **settings).texts
    assert pipe(images, seed=1, **settings).texts == first != pipe(images, seed=2, **settings).texts
    assert [pipe(image, seed=1, **settings).texts[0] for image in images] == first
    own = pipe(images, seed=[5, 6, 7, 8, 9], **settings).texts
    assert own == [pipe(image, seed=5 + place, **settings).texts[0] for place, image in enumerate(images)] != first
    torch.manual_seed(3)
    free = pipe(images, **settings).texts
    torch.manual_seed(3)
    assert pipe(images, **settings).texts == free


def test_the_model_has_room_for_a_bounded_caption(pipe, images):
    room = POSITIONS - TOKENS - 3
    assert pipe(images[0]).texts == pipe(images[0], max_new_tokens=room).texts
    with pytest.raises(ValueError, match=f"max_new_tokens={room + 1} .* positions: give at most {room}"):
        pipe(images[0], max_new_tokens=room + 1)


def test_both_pipelines_read_one_folder(pipe, folder, images):
    loaded = ImageToTextPipeline.from_pretrained(folder)
    assert loaded(images).texts == pipe(images).texts
    assert TextToImagePipeline.from_pretrained(folder)("a dog", seed=0).codes.shape == (1, TOKENS)


# Mistakes


def test_mistakes_in_a_call(pipe, images):
    for argument, settings, error, words in (
        ([], {}, ValueError, "image is an empty list: give at least one picture"),
        ("dog.png", {}, TypeError, "image 0 must be a PIL image, got 'dog.png': open files with PIL.Image.open"),
        ([images[0], None], {}, TypeError, "image 1 must be a PIL image, got None"),
        (images[0], {"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        (images[0], {"max_new_tokens": 1.5}, TypeError, "max_new_tokens must be a whole number"),
        (images[0], {"temperature": -1}, ValueError, "temperature must be at least 0"),
        (images[0], {"top_p": 0}, ValueError, r"top_p must be in \(0, 1\]"),
        (images[0], {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        (images[0], {"best_of": 0}, ValueError, "best_of must be at least 1, got 0"),
        (images[0], {"best_of": 4, "temperature": 0.0}, ValueError, "best_of=4 captions are all the same at temp"),
        (images[0], {"best_of": 4, "top_k": 1}, ValueError, "temperature=0.7, top_k=1: give a temperature above 0"),
        (images[:2], {"seed": [1, 2, 3]}, ValueError, "3 seeds for 2 pictures: give one, or one for each"),
    ):
        with pytest.raises(error, match=words):
            pipe(argument, **settings)


def test_a_model_that_draws_only_says_so(drawing_only, images):
    with pytest.raises(
        ValueError, match="describing a picture: this model was not trained for that .*image_to_caption"
    ):
        drawing_only(images)


def test_a_model_that_describes_only_says_so(pipe, images, monkeypatch):
    drawing = TextToImagePipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    monkeypatch.setattr(pipe.vocabulary, "formats", ["image_to_caption"])
    with pytest.raises(ValueError, match="best_of for captions .*: train with .*caption_to_image image_and_caption"):
        pipe(images[0], best_of=2)
    for prompt in ("a dog", None):
        with pytest.raises(
            ValueError, match="was not trained for that .it has learned image_to_caption; it would need"
        ):
            drawing(prompt)
    monkeypatch.setattr(pipe.vocabulary, "formats", ["caption_to_image"])
    assert drawing("a dog", guidance_scale=1, seed=0).codes.shape == (1, TOKENS)
    with pytest.raises(
        ValueError, match="guidance_scale=3.0: .*would need image.*give guidance_scale=1, or a negative"
    ):
        drawing("a dog", guidance_scale=3.0)


def test_the_class_called_with_a_picture_shows_the_right_call(images):
    with pytest.raises(TypeError, match=r"does not describe: load a model(?s:.*)pipe\(Image.open\("):
        ImageToTextPipeline(images[0])


def test_a_damaged_picture_is_named(pipe, images, tmp_path):
    images[4].save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match="image 1 cannot be read"), Image.open(tmp_path / "cut.png") as cut:
        pipe([images[0], cut])


# The command


def test_describe(folder, pipe, images, tmp_path, capsys):
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    for file, image in zip(files, images, strict=False):
        image.save(file)
    found = main(DescribeOptions(pictures=files, model=str(folder), max_new_tokens=9, device="cpu"))
    assert found == pipe(images[:2], max_new_tokens=9).texts
    assert capsys.readouterr().out.splitlines() == [f"{file}\t{text}" for file, text in zip(files, found, strict=True)]
    several = {"max_new_tokens": 9, "best_of": 5, "seed": 3}
    found = main(DescribeOptions(pictures=files, model=str(folder), device="cpu", **several))
    assert found == pipe(images[:2], **several).texts


def test_describe_says_what_is_wrong(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.png").write_text("no picture")
    for words, message in (
        (["nowhere.png"], "nowhere.png cannot be read as a picture"),
        ([str(tmp_path / "text.png")], "text.png cannot be read as a picture"),
    ):
        monkeypatch.setattr(sys, "argv", ["describe.py", "--model", str(folder), "--device", "cpu", *words])
        with pytest.raises(SystemExit, match=f"describe.py: error: .*{message}"):
            runpy.run_path(str(ROOT / "scripts" / "describe.py"), run_name="__main__")
    Image.new("RGB", (8, 8)).save(tmp_path / "fine.png")
    with pytest.raises(ValueError, match="is not a model folder"):
        main(DescribeOptions(pictures=[str(tmp_path / "fine.png")], model=str(tmp_path), device="cpu"))
    with pytest.raises(SystemExit):
        parse_options(DescribeOptions, description=None, argv=[], positional=PICTURES)
    assert "no picture: name the files to describe" in capsys.readouterr().err


# Scoring


@torch.no_grad()
def nats_by_hand(pipe: ImageToTextPipeline, prompt: str | None, codes: torch.Tensor) -> list[float]:
    vocabulary, layout = pipe.vocabulary, pipe.vocabulary.layout
    ids = None if prompt is None else vocabulary.encode_text(prompt)
    sequence = token_sequence(vocabulary, "image" if ids is None else "caption_to_image", ids, codes.numpy())
    logits = pipe.model(torch.from_numpy(sequence.input_ids)[None], use_cache=False).logits[0].double()
    found = []
    for place, (low, high) in enumerate(zip(layout["low"], layout["high"], strict=True)):
        valid = slice(vocabulary.image_offset + low, vocabulary.image_offset + high)
        row = logits[len(sequence) - TOKENS + place - 1, valid]
        found.append(-float(row.log_softmax(-1)[int(codes[place]) - low]))
    return found


def test_scores_equal_plain_log_softmax(pipe, images):
    drawing = TextToImagePipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    codes, prompts = pipe.encode_images(images), ["a red dog", "a cat", "", "a blue cat on grass", "dog"]
    scored = drawing.score(prompts, images)
    expected = torch.tensor([nats_by_hand(pipe, *pair) for pair in zip(prompts, codes, strict=True)])
    assert scored.nats.shape == (5, TOKENS) and torch.allclose(scored.nats, expected, atol=1e-4)
    assert scored.codes.equal(codes)
    assert scored.level.tolist() == pipe.vocabulary.layout["level"]
    assert torch.allclose(scored.total, expected.sum(1), atol=1e-3)
    assert torch.allclose(scored.mean, expected.mean(1), atol=1e-4)
    alone = drawing.score(None, images[1])
    assert torch.allclose(alone.nats[0], torch.tensor(nats_by_hand(pipe, None, codes[1])), atol=1e-4)
    # One prompt for many pictures, and many prompts for one picture.
    assert torch.allclose(drawing.score(prompts[0], images).nats[0], scored.nats[0], atol=1e-4)
    assert torch.allclose(drawing.score(prompts, images[1]).nats[1], scored.nats[1], atol=1e-4)
    drawing.max_batch_rows = 2
    assert torch.allclose(drawing.score(prompts, images).nats, scored.nats, atol=1e-4)


def test_mistakes_in_scoring(pipe, images, monkeypatch):
    drawing = TextToImagePipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    for prompt, image, error, words in (
        (["a", "b"], images[:3], ValueError, "2 prompts and 3 pictures: give one for each, or one of either"),
        ([], images, ValueError, "prompt is an empty list"),
        ("a", [], ValueError, "image is an empty list"),
        ("a", "dog.png", TypeError, "image 0 must be a PIL image"),
        ("word " * 100, images[0], ValueError, "prompt 'word word .* at most"),
    ):
        with pytest.raises(error, match=words):
            drawing.score(prompt, image)
    monkeypatch.setattr(pipe.vocabulary, "formats", ["image_to_caption"])
    with pytest.raises(ValueError, match="prompt 'a': this model was not trained for that"):
        drawing.score("a", images)


# Best of n by the model's own likelihood of the caption


@torch.no_grad()
def caption_nats_by_hand(pipe: ImageToTextPipeline, text: str, codes: torch.Tensor) -> float:
    """-log p(caption, eos | picture) among the ids of text."""
    vocabulary = pipe.vocabulary
    sequence = token_sequence(vocabulary, "image_to_caption", vocabulary.encode_text(text), codes.numpy())
    logits = pipe.model(torch.from_numpy(sequence.input_ids)[None], use_cache=False).logits[0].double()
    logs = logits[:, : vocabulary.image_offset].log_softmax(-1)
    places = [place for place, label in enumerate(sequence.labels) if label >= 0]
    assert len(places) == len(vocabulary.encode_text(text)) + 1
    return -float(sum(logs[place - 1, sequence.labels[place]] for place in places))


@pytest.mark.parametrize("batch", [128, 3])
def test_best_of_takes_the_picture_after_which_the_caption_is_likeliest(pipe, batch):
    drawing = TextToImagePipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    drawing.max_batch_rows = batch
    prompts = ["a red dog ", "a blue cat on grass"]
    many = drawing(prompts, num_images_per_prompt=5, seed=0).codes
    best = drawing(prompts, num_images_per_prompt=2, best_of=5, seed=0, output_type="pt")
    assert best.images.shape == (4, 3, SIZE, SIZE)
    for row, text in enumerate(prompts):
        own = many[5 * row : 5 * row + 5]
        nats = torch.tensor([caption_nats_by_hand(pipe, text.strip(), codes) for codes in own])
        assert nats.std() > 0.05  # pictures differ by more than rounding
        assert best.codes[2 * row : 2 * row + 2].equal(own[nats.argsort()[:2]])


def test_best_of_says_before_it_draws_what_it_lacks(pipe, drawing_only, monkeypatch):
    monkeypatch.setattr("pipelines.text_to_image.generate_codes", lambda *_, **__: pytest.fail("drawn"))
    drawing = TextToImagePipeline(drawing_only.image_tokenizer, drawing_only.model, drawing_only.vocabulary)
    with pytest.raises(ValueError, match="give a ranker, or train with train_lm.py --formats .* image_and_caption"):
        drawing("a red dog", best_of=2)
    monkeypatch.setattr(pipe.vocabulary, "formats", ["caption_to_image", "image", "image_to_caption"])
    with pytest.raises(ValueError, match="best_of without a ranker .*: give a prompt, or a ranker"):
        drawing(None, best_of=2)
    text = "q" * (POSITIONS - TOKENS - 3)  # with the space before it, one token more: room to draw, none to describe
    with pytest.raises(ValueError, match=f"takes {POSITIONS + 1} of {POSITIONS} positions: shorten it"):
        drawing(text, best_of=2)


def test_best_of_from_the_command_line(pipe, folder, tmp_path):
    from scripts import generate

    settings = {"model": str(folder), "seed": 3, "device": "cpu", "prompts": ["a red dog"]}
    generate.main(generate.GenerateOptions(**settings, num_images_per_prompt=1, best_of=4, output=str(tmp_path / "a")))
    drawing = TextToImagePipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary)
    expected = drawing("a red dog", best_of=4, seed=3).images[0]
    (file,) = (tmp_path / "a").iterdir()
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(expected))
    with pytest.raises(ValueError, match="--best_of 2 is less than --num_images_per_prompt 4: draw more"):
        generate.GenerateOptions(prompts=["a"], best_of=2)


def test_describe_holds_one_picture_at_a_time(folder, images, tmp_path, monkeypatch, capsys):
    files = [str(tmp_path / f"{number}.png") for number in range(5)]
    for file, image in zip(files, images, strict=True):
        image.resize((301, 217)).save(file)
    opened, decoded = Image.open, []

    def count_decoded(file):
        alive = [one for one in gc.get_objects() if issubclass(type(one), Image.Image) and one.size == (301, 217)]
        decoded.append(sum(one._im is not None for one in alive))
        return opened(file)

    expected = [ImageToTextPipeline.from_pretrained(folder)(opened(file)).texts[0] for file in files]
    gc.collect()
    monkeypatch.setattr(Image, "open", count_decoded)
    assert main(DescribeOptions(pictures=files, model=str(folder), device="cpu")) == expected
    assert len(decoded) == 10 and max(decoded) == 0  # headers first, then pixels


# Models that state no limit of positions


@pytest.fixture
def unlimited(pipe) -> ImageToTextPipeline:
    config = pipe.model.config
    object.__setattr__(config, "max_position_embeddings", None)  # Llama's own configuration refuses it
    yield pipe
    config.max_position_embeddings = POSITIONS


def test_models_without_a_limit_of_positions(unlimited, images, monkeypatch):
    monkeypatch.setattr(text_generation, "NEW_TOKENS_WITHOUT_LIMIT", POSITIONS)
    parts = unlimited.image_tokenizer, unlimited.model, unlimited.vocabulary
    drawing = TextToImagePipeline(*parts)
    long = "a red dog " * POSITIONS
    assert drawing(long, seed=0).codes.shape == (1, TOKENS)
    assert drawing("a red dog", best_of=2, seed=0).codes.shape == (1, TOKENS)
    assert drawing.score(long, images[0]).nats.shape == (1, TOKENS)
    texts = unlimited(images[:2]).texts
    assert texts == unlimited(images[:2], max_new_tokens=POSITIONS).texts
    assert unlimited(images[0], max_new_tokens=2 * POSITIONS, best_of=2, seed=0).texts
    monkeypatch.setattr(unlimited.vocabulary, "formats", ["document"])
    assert InterleavedPipeline(*parts)([long, images[0]], seed=0).parts


def test_describe_prints_on_a_terminal_that_is_not_utf_8(folder, images, tmp_path):
    files = [tmp_path / "h\u00fctte.png", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))]
    for file in files:
        with open(file, "wb") as opened:
            images[0].save(opened, "png")
    command = [sys.executable, str(ROOT / "scripts" / "describe.py"), "--model", str(folder), "--device", "cpu"]
    for encoding, names in (("ascii", ["h\\xfctte.png", "\\udcff.png"]), ("utf-8", ["h\u00fctte.png", "\\udcff.png"])):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([*command, *map(str, files)], capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.decode().split("\n") if "\t" in line]
        assert [line.split("\t")[0].split("/")[-1] for line in lines] == names
