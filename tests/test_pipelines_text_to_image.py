"""`TextToImagePipeline` and `scripts/generate.py`, on real parts of tiny size."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline, tiny_tokenizer

from lm.generation.guess_table import GuessTable
from lm.model import build_configuration, build_model
from pipelines import TextToImagePipeline
from pipelines.drawing.grids import labelled_grid
from pipelines.model_card import model_card
from tokenizer_image.preprocessing import postprocess

ROOT = Path(__file__).resolve().parents[1]
SIZE, TOKENS = 16, 8  # 2x2 positions of two codes


@pytest.fixture(scope="module")
def pipe() -> TextToImagePipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A model folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# Drawing


def test_one_prompt(pipe):
    output = pipe("a dog", seed=0)
    assert output.codes.shape == (1, TOKENS) and output.codes.dtype == torch.int64
    assert [image.size for image in output.images] == [(SIZE, SIZE)] and output.images[0].mode == "RGB"


def test_codes_are_those_of_the_layout(pipe):
    codes = pipe(["a dog", "a cat"], num_images_per_prompt=8, seed=0).codes
    layout = pipe.image_tokenizer.layout()
    assert (codes >= torch.from_numpy(layout.low)).all() and (codes < torch.from_numpy(layout.high)).all()


def test_output_types_show_the_same_pictures(pipe):
    images, array, tensor = (pipe(["a dog", "a cat"], seed=3, output_type=kind).images for kind in ("pil", "np", "pt"))
    assert array.shape == (2, SIZE, SIZE, 3) and array.dtype == np.float32
    assert tensor.shape == (2, 3, SIZE, SIZE) and tensor.dtype == torch.float32
    assert array.min() >= 0 and array.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), np.rint(array * 255).astype(np.uint8))


def test_pictures_are_the_decoded_codes(pipe):
    output = pipe("a dog", num_images_per_prompt=3, seed=0, output_type="pt")
    decoded = (pipe.image_tokenizer.decode(output.codes) + 1) / 2
    assert torch.allclose(output.images, decoded.clamp(0, 1), atol=1e-6)


def test_a_seed_repeats_and_another_does_not(pipe):
    first = pipe("a dog", num_images_per_prompt=4, seed=1).codes
    assert pipe("a dog", num_images_per_prompt=4, seed=1).codes.equal(first)
    assert not pipe("a dog", num_images_per_prompt=4, seed=2).codes.equal(first)
    assert len(first.unique(dim=0)) == 4  # picture j has a stream of its own


def test_without_a_seed_torch_manual_seed_repeats(pipe):
    torch.manual_seed(5)
    first, second = pipe(["a dog"] * 2).codes, pipe(["a dog"] * 2).codes
    torch.manual_seed(5)
    assert pipe(["a dog"] * 2).codes.equal(first)
    assert not first.equal(second) and not first[0].equal(first[1])


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0}, {"temperature": 0.8, "top_k": 5, "top_p": 0.9}])
def test_a_list_equals_its_singles(pipe, settings):
    prompts = ["a dog", "a very blue cat on green grass", ""]
    together = pipe(prompts, num_images_per_prompt=2, seed=7, **settings)
    for row, prompt in enumerate(prompts):
        alone = pipe(prompt, num_images_per_prompt=2, seed=7, **settings)
        assert alone.codes.equal(together.codes[2 * row : 2 * row + 2])
        for image, same in zip(alone.images, together.images[2 * row : 2 * row + 2], strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(same))
    first = pipe(prompts[0], seed=7, **settings)  # picture 0 does not depend on how many follow
    assert first.codes.equal(together.codes[:1])


def test_many_pictures_in_several_batches(pipe):
    prompts = ["a dog", "a cat", "a blue cat"]
    whole = pipe(prompts, num_images_per_prompt=3, seed=0).codes
    parts = tiny_pipeline()
    parts.max_batch_rows = 4
    assert parts(prompts, num_images_per_prompt=3, seed=0).codes.equal(whole)


def test_generators(pipe):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    one = pipe(["a dog", "a cat"], generator=generators(3)[0]).codes
    assert pipe(["a dog", "a cat"], generator=generators(3)[0]).codes.equal(one)
    assert not pipe(["a dog", "a cat"], generator=generators(4)[0]).codes.equal(one)
    many = pipe(["a dog", "a cat"], generator=generators(1, 2)).codes
    assert pipe("a cat", generator=generators(2)).codes.equal(many[1:])


def test_greedy_needs_no_seed(pipe):
    codes = pipe("a dog", num_images_per_prompt=2, temperature=0).codes
    assert codes[0].equal(codes[1]) and pipe("a dog", temperature=0).codes.equal(codes[:1])


def test_guidance(pipe):
    def draw(prompt="a red dog", **settings):
        return pipe(prompt, num_images_per_prompt=4, seed=0, **settings).codes

    assert draw().equal(draw(guidance_scale=2.0))  # the model's own
    assert not draw().equal(draw(guidance_scale=1.0))
    assert draw(guidance_scale=0.0).equal(draw(None, guidance_scale=1.0))  # 0 ignores the prompt
    assert draw(None).equal(draw(None, guidance_scale=1.0))  # nothing to guide to
    assert not draw(None).equal(draw())
    assert draw(negative_prompt="").equal(draw())
    assert not draw(negative_prompt="a blue cat").equal(draw())
    assert draw(negative_prompt="a red dog").equal(draw(guidance_scale=1.0))  # what it leads away from cancels


def test_negative_prompts_one_each(pipe):
    prompts, negatives = ["a dog", "a cat"], ["a cat", "a red dog"]
    both = pipe(prompts, negatives, num_images_per_prompt=2, seed=0).codes
    alone = pipe(prompts[1], negatives[1], num_images_per_prompt=2, seed=0).codes
    assert both[2:].equal(alone)


def test_space_around_a_prompt_does_not_matter(pipe):
    assert pipe(" a dog\n", temperature=0).codes.equal(pipe("a dog", temperature=0).codes)


def test_the_name_of_an_image_token_stays_text(pipe):
    codes = pipe("<|image_3|> <|end_image|> <|bos|>", seed=0).codes
    assert codes.shape == (1, TOKENS)


def test_size_of_the_training_may_be_given(pipe):
    assert pipe("a dog", height=SIZE, width=SIZE).images[0].size == (SIZE, SIZE)


def test_callback_and_progress_bar(pipe, capsys):
    seen = []
    pipe.set_progress_bar_config(disable=False, mininterval=0)
    try:
        codes = pipe(
            "a dog", seed=0, callback=lambda step, total, codes: seen.append((step, total, codes.shape[1]))
        ).codes
    finally:
        pipe.set_progress_bar_config(disable=True)
    assert seen == [(step, TOKENS, step) for step in range(1, TOKENS + 1)]
    assert codes.shape == (1, TOKENS) and f"{TOKENS}/{TOKENS}" in capsys.readouterr().err


def test_a_half_drawn_picture_can_be_shown(pipe):
    shapes = []
    pipe("a dog", callback=lambda _, __, codes: shapes.append(pipe.image_tokenizer.decode(codes).shape))
    assert set(shapes) == {(1, 3, SIZE, SIZE)}


def test_training_mode_is_kept(pipe):
    pipe.model.train()
    pipe("a dog")
    assert pipe.model.training
    pipe.model.eval()


# Saving and loading


def test_save_and_load(pipe, folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index == {
        "_class_name": "TextToImagePipeline",
        "format_version": 1,
        "image_tokenizer_fingerprint": pipe.image_tokenizer.fingerprint,
    }
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "image_tokenizer/config.json",
        "image_tokenizer/model.safetensors",
        "lm/config.json",
        "lm/generation_config.json",
        "lm/model.safetensors",
        "lm/tokenizer.json",
        "lm/vocabulary.json",
    } < files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".pth"))]
    loaded = TextToImagePipeline.from_pretrained(folder)
    assert loaded(["a dog", "a cat"], seed=0).codes.equal(pipe(["a dog", "a cat"], seed=0).codes)
    images = [p("a dog", seed=0, output_type="pt").images for p in (loaded, pipe)]
    assert images[0].equal(images[1])


def test_a_folder_with_the_legacy_fingerprint(pipe, copy, tmp_path):
    """Index and vocabulary of earlier versions have a hash of the tokenizer's decoder, too."""
    for file in (copy / "model_index.json", copy / "lm" / "vocabulary.json"):
        values = json.loads(file.read_text())
        file.write_text(json.dumps(values | {"image_tokenizer_fingerprint": pipe.image_tokenizer.legacy_fingerprint}))
    loaded = TextToImagePipeline.from_pretrained(copy)
    assert loaded("a dog", seed=0).codes.equal(pipe("a dog", seed=0).codes)
    loaded.save_pretrained(tmp_path / "again")
    again = TextToImagePipeline.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        again.image_tokenizer.decoder.to_pixels.weight.mul_(1.5)
    with pytest.raises(ValueError, match="language model belongs to the image tokenizer with fingerprint"):
        TextToImagePipeline(again.image_tokenizer, again.model, again.vocabulary)


def test_a_decoder_that_is_trained_further_keeps_its_language_model(pipe, folder):
    loaded = TextToImagePipeline.from_pretrained(folder)
    with torch.no_grad():
        loaded.image_tokenizer.decoder.to_pixels.bias.add_(0.5)
    changed = TextToImagePipeline(loaded.image_tokenizer, loaded.model, loaded.vocabulary)
    outputs = [p("a dog", seed=0, output_type="pt") for p in (changed, pipe)]
    assert outputs[0].codes.equal(outputs[1].codes) and not outputs[0].images.equal(outputs[1].images)


def test_the_language_model_alone_is_an_ordinary_one(pipe, folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder / "lm"), AutoTokenizer.from_pretrained(folder / "lm")
    assert type(model) is type(pipe.model) and len(tokenizer) == pipe.vocabulary.size


def test_dtype_and_device(pipe, folder):
    loaded = TextToImagePipeline.from_pretrained(folder, dtype="bfloat16", device="cpu")
    assert loaded.dtype == torch.bfloat16 and loaded.device.type == "cpu"
    assert loaded.image_tokenizer.dtype == torch.float32  # its fingerprint stays
    assert loaded("a dog", seed=0).codes.shape == (1, TOKENS)
    moved = loaded.to("cpu", torch.float32)
    assert moved is loaded and loaded.dtype == torch.float32
    assert loaded.to(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.gpu
def test_on_a_gpu(folder, pipe):
    loaded = TextToImagePipeline.from_pretrained(folder).to("cuda")
    output = loaded("a dog", seed=0, temperature=0, output_type="pt")
    assert output.images.device.type == "cuda"
    assert output.codes.cpu().equal(pipe("a dog", temperature=0).codes)


def test_model_card(pipe):
    card = model_card(
        pipe.model,
        pipe.vocabulary,
        "someone/tiny",
        license="cc-by-4.0",
        figures={"alignment": {"seen": {"thing": 0.8125}}, "steps": 3},
    )
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert 'from_pretrained("someone/tiny")' in card
    assert "| alignment seen thing | 0.8125 |" in card and "| steps | 3 |" in card
    assert f"{SIZE}x{SIZE}, {TOKENS} codes out of 24" in card
    assert "license: unknown" in model_card(
        pipe.model, pipe.vocabulary, "someone/tiny"
    ) and "Figures" not in model_card(pipe.model, pipe.vocabulary, "a/b")


def test_the_card_offers_prompts_as_the_hub_reads_them(pipe):
    """By the Hub's own reader of cards; any text stays itself in the header's YAML."""
    from huggingface_hub import ModelCard

    prompts = ['a dog: "red", #1', "- un café", "yes", "{a}", "0"]
    data = ModelCard(model_card(pipe.model, pipe.vocabulary, "a/b", prompts=prompts)).data
    assert data.widget == [{"text": text} for text in prompts] and data.pipeline_tag == "text-to-image"
    assert ModelCard(model_card(pipe.model, pipe.vocabulary, "a/b")).data.get("widget") is None
    describing = tiny_pipeline(formats=["image_and_caption"])
    card = model_card(describing.model, describing.vocabulary, "a/b", prompts=prompts)
    assert ModelCard(card).data.get("widget") is None, "it does not draw"


def test_push_to_hub_uploads_folder_and_card(pipe, monkeypatch):
    """Everything up to the network: what would be sent is a model folder that loads."""
    import huggingface_hub

    sent = {}

    class Created:
        repo_id = "someone/tiny"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        sent.update(repo_id=repo_id, card=(Path(folder_path) / "README.md").read_text())
        sent["codes"] = TextToImagePipeline.from_pretrained(folder_path)("a dog", seed=0).codes

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **_: Created)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    assert pipe.push_to_hub("tiny", license="mit") == "https://huggingface.co/someone/tiny"
    assert sent["repo_id"] == "someone/tiny" and "license: mit" in sent["card"]
    assert sent["codes"].equal(pipe("a dog", seed=0).codes)
    assert "widget" not in sent["card"]
    pipe.push_to_hub("tiny", prompts=["a red dog"])
    assert "widget:\n- text: a red dog\n---\n" in sent["card"]


def test_prompts_of_a_card_are_those_of_the_folder_that_was_loaded(pipe, tmp_path, monkeypatch):
    import huggingface_hub

    pipe.save_pretrained(tmp_path)
    loaded = TextToImagePipeline.from_pretrained(tmp_path)
    assert loaded.folder == tmp_path == loaded.rounded("bfloat16").folder and pipe.folder is None
    (tmp_path / "README.md").write_text("---\nwidget:\n- text: a blue cat\n---\n")
    sent = []

    def upload_folder(self, *, folder_path, **_):
        sent.append((Path(folder_path) / "README.md").read_text())

    created = SimpleNamespace(repo_id="someone/tiny")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **_: created)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    loaded.push_to_hub("tiny")
    assert "- text: a blue cat\n" in sent[0]


# Mistakes in a call


def mistakes(pipe):
    generator = torch.Generator()
    return [
        (([],), {}, ValueError, "prompt is an empty list"),
        ((3,), {}, TypeError, "prompt must be a text, a list of texts or None, got 3"),
        ((["a dog", None],), {}, TypeError, "prompt 1 must be a text, got None"),
        ((b"a dog",), {}, TypeError, "prompt must be a text"),
        (("word " * 100,), {}, ValueError, r"prompt 'word word .* tokens, but this model takes at most 54"),
        (("a",), {"negative_prompt": "word " * 100}, ValueError, "negative_prompt 'word .* at most 54"),
        (("a",), {"top_p": 0}, ValueError, r"top_p must be in \(0, 1\].* got 0"),
        (("a",), {"top_p": 1.5}, ValueError, r"top_p must be in \(0, 1\].* got 1.5"),
        (("a",), {"temperature": -1}, ValueError, "temperature must be at least 0 .* got -1"),
        (("a",), {"guidance_scale": -1}, ValueError, "guidance_scale must be at least 0 .* got -1"),
        ((None,), {"guidance_scale": -1}, ValueError, "guidance_scale must be at least 0"),
        (("a",), {"top_k": -5}, ValueError, "top_k must be at least 0 .* got -5"),
        (("a",), {"seed": 1, "generator": generator}, ValueError, "seed=1 and generator together"),
        (("a",), {"seed": "x"}, TypeError, "seed must be a whole number, got 'x'"),
        (("a",), {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        (("a",), {"generator": 3}, TypeError, "generator must be a torch.Generator or a list of them, got 3"),
        (("a",), {"generator": [3]}, TypeError, "generator must hold torch.Generator"),
        ((["a", "b"],), {"generator": [generator]}, ValueError, "1 generators for 2 pictures"),
        (("a",), {"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt must be at least 1, got 0"),
        (("a",), {"num_images_per_prompt": 2.0}, TypeError, "num_images_per_prompt must be a whole number"),
        (("a",), {"height": 64}, ValueError, "height=64: this model draws 16x16 pictures"),
        (("a",), {"width": 8}, ValueError, "width=8: this model draws 16x16 pictures"),
        (("a",), {"output_type": "jpg"}, ValueError, "output_type must be one of pil, np, pt, got 'jpg'"),
        (("a",), {"negative_prompt": "b", "guidance_scale": 1}, ValueError, "guidance_scale above 1, got 1"),
        (("a",), {"negative_prompt": 3}, TypeError, "negative_prompt must be a text"),
        ((["a", "b", "c"],), {"negative_prompt": ["d", "e"]}, ValueError, "2 negative prompts for 3 prompts"),
    ]


@pytest.mark.parametrize("index", range(len(mistakes(None))))
def test_mistakes_in_a_call(pipe, index):
    arguments, settings, error, words = mistakes(pipe)[index]
    with pytest.raises(error, match=words):
        pipe(*arguments, **settings)


def test_the_class_called_with_a_prompt_shows_the_right_call():
    with pytest.raises(TypeError) as caught:
        TextToImagePipeline("a dog")
    message = str(caught.value)
    assert "TextToImagePipeline('a dog') does not draw" in message
    assert 'from_pretrained("runs/model")' in message and 'pipe("a dog").images[0]' in message


def test_halves_that_do_not_match(pipe):
    with pytest.raises(ValueError, match=f"fingerprint {pipe.image_tokenizer.fingerprint}, this one"):
        TextToImagePipeline(tiny_tokenizer(seed=1), pipe.model, pipe.vocabulary)
    small = build_model(build_configuration(pipe.vocabulary, num_layers=1, hidden_size=32, num_heads=2))
    small.resize_token_embeddings(pipe.vocabulary.size - 1)
    with pytest.raises(ValueError, match="do not belong together"):
        TextToImagePipeline(pipe.image_tokenizer, small, pipe.vocabulary)


# Mistakes in a folder


def test_folders_that_are_none(tmp_path, folder):
    for name in (tmp_path / "no", str(tmp_path / "no"), "./no", "a/b/c"):
        with pytest.raises(ValueError, match="there is no folder .*no|there is no folder a/b/c"):
            TextToImagePipeline.from_pretrained(name)
    with pytest.raises(ValueError, match="is not a model folder: it has no model_index.json"):
        TextToImagePipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not a model folder"):
        TextToImagePipeline.from_pretrained(folder / "lm")
    with pytest.raises(ValueError, match="dtype must be one of float32, .* got 'fp8'"):
        TextToImagePipeline.from_pretrained(folder, dtype="fp8")


@pytest.mark.parametrize("name", ["not a name", "owner/not a name"])
def test_neither_a_folder_nor_a_name_on_the_hub(name):
    with pytest.raises(ValueError, match=f"there is no folder {name}|{name} is neither a folder"):
        TextToImagePipeline.from_pretrained(name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 99}, "format_version 99, this version reads up to 1: upgrade"),
        ({"_class_name": "ImageToTextPipeline"}, "holds a ImageToTextPipeline, not a TextToImagePipeline"),
        ({"format_version": None}, "damaged"),
        ({"image_tokenizer_fingerprint": "0"}, "mixes the parts of two models"),
    ],
)
def test_damaged_index(copy, changes, words):
    file = copy / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=words):
        TextToImagePipeline.from_pretrained(copy)


def test_an_index_that_is_not_json(copy):
    (copy / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="model_index.json is damaged"):
        TextToImagePipeline.from_pretrained(copy)


def test_missing_part(copy):
    shutil.rmtree(copy / "image_tokenizer")
    with pytest.raises(ValueError, match="incomplete, it has no image_tokenizer/config.json"):
        TextToImagePipeline.from_pretrained(copy)


def test_a_tokenizer_of_another_model(copy):
    tiny_tokenizer(seed=1).save_pretrained(copy / "image_tokenizer")
    with pytest.raises(ValueError, match="use that tokenizer, or train the language model on this one's codes"):
        TextToImagePipeline.from_pretrained(copy)


def test_pickled_weights_are_not_read(copy, pipe):
    (copy / "lm" / "model.safetensors").unlink()
    torch.save(pipe.model.state_dict(), copy / "lm" / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        TextToImagePipeline.from_pretrained(copy)


# Sheets of pictures


def test_a_grid_enlarges_wraps_and_keeps_order():
    red, blue = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("L", (32, 32), 10)
    sheet = labelled_grid([("a dog", [red, blue]), ("", [blue])], margin=8)
    assert sheet.mode == "RGB" and sheet.width == 8 + 2 * (128 + 8)
    assert sheet.getpixel((8 + 64, sheet.height - 8 - 128 - 8 - 64)) == (255, 0, 0)
    assert sheet.getpixel((8 + 128 + 8 + 64, sheet.height - 8 - 128 - 8 - 64)) == (10, 10, 10)
    assert sheet.getpixel((8 + 64, sheet.height - 8 - 64)) == (10, 10, 10)
    one_line = labelled_grid([("a dog", [red])]).height
    assert labelled_grid([("a dog and " * 10, [red])]).height > one_line
    assert labelled_grid([("dog" * 1000, [red])], max_lines=2).height <= one_line + 20


def test_a_grid_keeps_large_pictures_and_needs_one():
    assert labelled_grid([("", [Image.new("RGB", (300, 200))])], margin=4).size == (308, 208)
    with pytest.raises(ValueError, match="at least one picture"):
        labelled_grid([("a dog", [])])


# The command


def generate(folder, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), "--model", str(folder), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_generate_in_a_process_of_its_own(folder, tmp_path):
    arguments = ("a dog", "a blue cat", "--num_images_per_prompt", "2", "--seed", "3", "--device", "cpu")
    done = generate(folder, *arguments, "--output", "new/sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "new/sheet.png (4 pictures, seed 3)"
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 2 * 128 and sheet.height > 2 * 128
    wrong = generate(tmp_path / "nothing", "a dog", cwd=tmp_path)
    assert wrong.returncode == 1 and wrong.stderr.strip().splitlines()[-1].startswith(
        "generate.py: error: there is no folder"
    )
    assert "Traceback" not in wrong.stderr


def test_generate_into_a_folder(folder, pipe, tmp_path):
    from scripts.generate import GenerateOptions, main

    options = GenerateOptions(
        prompts=["A Dog!", "狗"], model=str(folder), output=str(tmp_path / "out"), num_images_per_prompt=2, seed=3,
        guidance_scale=3.0, top_k=5, device="cpu",
    )  # fmt: skip
    assert main(options) == tmp_path / "out"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000-a-dog-0.png", "000-a-dog-1.png", "001-0.png", "001-1.png"]
    expected = pipe("A Dog!", num_images_per_prompt=2, seed=3, guidance_scale=3.0, top_k=5).images
    with Image.open(tmp_path / "out" / "000-a-dog-1.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected[1]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts": []}, "no prompt"),
        ({"num_images_per_prompt": 0}, "--num_images_per_prompt 0 must be above zero"),
    ],
)
def test_mistakes_in_the_options(settings, words):
    from scripts.generate import GenerateOptions

    with pytest.raises(ValueError, match=words):
        GenerateOptions(**{"prompts": ["a dog"], **settings})


def test_an_unknown_kind_of_picture(folder, tmp_path):
    from scripts.generate import GenerateOptions, main

    with pytest.raises(ValueError, match="unknown kind of picture '.pgn'"):
        main(GenerateOptions(prompts=["a dog"], model=str(folder), output=str(tmp_path / "a.pgn")))


def test_drawing_leaves_training_libraries_out(folder):
    """Importing them would cost a user seconds before the first picture."""
    code = (
        "import sys; from scripts.generate import *; "
        f"from pipelines import TextToImagePipeline; TextToImagePipeline.from_pretrained({str(folder)!r})('a dog');"
        "sys.exit(','.join(name for name in ('datasets', 'pyarrow', 'pandas') if name in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_inference_imports_neither_training_nor_evaluation(folder):
    code = (
        "import sys\n"
        "from PIL import Image\n"
        "from pipelines import ImageToTextPipeline, InterleavedPipeline, TextToImagePipeline\n"
        f"pipe = TextToImagePipeline.from_pretrained({str(folder)!r})\n"
        "image = pipe('a dog').images[0]\n"
        "pipe.complete(image, keep_rows=8, best_of=2, ranker=lambda images, prompt: [0.0, 1.0])\n"
        "pipe.score('a dog', image)\n"
        "import scripts.describe, scripts.generate\n"
        "rooms = ('pipelines.training', 'pipelines.evaluation', 'pipelines.caching', 'lm.data')\n"
        "sys.exit(','.join(name for name in sys.modules if name.startswith(rooms)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Several codes a call


def test_several_codes_a_call_draw_the_same_pictures(pipe):
    settings = {"seed": 3, "num_images_per_prompt": 2, "guidance_scale": 2.0, "output_type": "np"}
    expected = pipe(["a dog", "a cat"], codes_per_call=1, **settings)
    steps = []
    several = pipe(
        ["a dog", "a cat"], codes_per_call=8, callback=lambda step, total, codes: steps.append(step), **settings
    )
    assert several.codes.equal(expected.codes) and (several.images == expected.images).all()
    assert steps == sorted(steps) and steps[-1] == 8
    shown = [preview.codes.shape[1] for preview in pipe.previews("a dog", every=3, seed=3, codes_per_call=8)]
    assert shown[-1] == 8 and shown == sorted(set(shown))
    image = postprocess(pipe.decode_codes(expected.codes[:1]), "pil")[0]
    kept = [pipe.complete(image, "a dog", keep_rows=8, seed=1, codes_per_call=codes).codes for codes in (1, 8)]
    assert kept[0].equal(kept[1])
    for wrong, error in ((0, ValueError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match="codes_per_call must be"):
            pipe("a dog", codes_per_call=wrong)


@pytest.mark.parametrize("codes_per_call", [1, 8])
def test_the_bar_tells_the_calls_of_the_model(copy, pipe, codes_per_call):
    pipe.save_pretrained(copy)
    loaded, bar, steps = TextToImagePipeline.from_pretrained(copy), io.StringIO(), []
    loaded.set_progress_bar_config(file=bar, mininterval=0, miniters=1)
    loaded("a dog", seed=1, codes_per_call=codes_per_call, callback=lambda step, total, codes: steps.append(step))
    told = [int(one) for one in re.findall(r"calls=(\d+)", bar.getvalue())]
    assert told[-1] == len(steps) <= 8 and (codes_per_call > 1 or told[-1] == 8)
    assert "8/8 [" in bar.getvalue()


def test_a_guess_table_belongs_to_its_image_tokenizer(pipe, copy):
    count = pipe.vocabulary.num_codes
    arrays = np.zeros((4, count + 1, 2), np.float32), np.zeros((count, 2), np.float32), np.zeros(count, np.float32)
    table = GuessTable(*arrays, pipe.vocabulary.image_tokenizer_fingerprint)
    TextToImagePipeline(pipe.image_tokenizer, pipe.model, pipe.vocabulary, table).save_pretrained(copy)
    loaded = TextToImagePipeline.from_pretrained(copy)
    assert loaded.guess_table.fingerprint == table.fingerprint
    assert loaded("a dog", seed=1, codes_per_call=8).codes.equal(pipe("a dog", seed=1).codes)
    replace(table, fingerprint="another").save(copy / "lm")
    with pytest.raises(ValueError, match="guess_table.safetensors belongs to another image tokenizer"):
        TextToImagePipeline.from_pretrained(copy)
    pipe.save_pretrained(copy)
    assert TextToImagePipeline.from_pretrained(copy).guess_table is None
