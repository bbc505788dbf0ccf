"""Edits from data to result through the commands: the built-in ones, and a folder's `documents.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny import tiny_pipeline, tiny_tokenizer

from lm.data.token_cache import TokenCache
from lm.vocabulary import MultimodalVocabulary
from pipelines.caching import sources
from pipelines.evaluation import sprites_figures
from pipelines.evaluation.probes.sprites_probe import SpritesProbe
from pipelines.evaluation.report.figure_rows import figure_rows
from pipelines.options.evaluation import EvaluationOptions
from scripts import cache_tokens, edit, evaluate, inspect_data, train_lm, train_tokenizer
from tokenizer_image.sprites.scenes import draw_scene, sample_scene

FORMATS = ["edit", "image_to_image", "image"]
STAGE_2 = dict(
    num_workers=0, cpu_threads=1, mixed_precision="no", batch_size=8, max_steps=3, warmup_steps=1, learning_rate=1e-3,
    architecture="llama", num_layers=1, hidden_size=32, intermediate_size=64, num_heads=2, text_vocab_size=300,
    max_examples=40,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(sources, "VALIDATION_PICTURES", 12)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = tiny_tokenizer(image_size=32).train()
    drawn = np.stack([np.asarray(draw_scene(sample_scene(number))) for number in range(64)]).transpose(0, 3, 1, 2)
    with torch.no_grad():  # the first batch starts the codebooks
        tokenizer(torch.from_numpy(drawn) / 127.5 - 1)
    tokenizer.eval().save_pretrained(folder)
    return folder


def train(output: Path, tokenizer: Path, **changes) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = {**STAGE_2, "image_tokenizer": str(tokenizer), "output_dir": str(output), **changes}
    train_lm.main(train_lm.LanguageModelOptions(**settings))
    return output


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer_folder) -> Path:
    return train(tmp_path_factory.mktemp("model"), tokenizer_folder, dataset="sprites-edits")


def own_edits(folder: Path, orders: tuple[str, ...] = ("iti",) * 20) -> Path:
    """A documents.jsonl as docs/editing.md has it: a source, an instruction, a result."""
    folder.mkdir()
    lines = []
    for number, order in enumerate(orders):
        parts, count = [], 0
        for kind in order:
            if kind == "t":
                parts.append({"text": ["make it blue", "a red dog"][len(parts) == 0]})
                continue
            name, count = f"{number}-{count}.png", count + 1
            draw_scene(sample_scene(2 * number + count)).save(folder / name)
            parts.append({"image": name})
        lines.append(json.dumps({"parts": parts}))
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_built_in_edits_train(model_folder, capsys):
    vocabulary = MultimodalVocabulary.from_pretrained(model_folder / "lm")
    assert vocabulary.formats == ["image", "edit", "image_to_image"]
    assert vocabulary.default_guidance == 2.0 and vocabulary.default_image_guidance == 1.0
    cache = TokenCache(model_folder / "token_cache" / "train")
    assert len(cache) == cache.num_edits == 40 and cache.order(0) == "iti"
    assert cache.is_of_edits and cache.manifest["shards"][0]["edits"] == {"iti": 40, "titi": 0, "tii": 0}
    assert list((model_folder / "samples").glob("*.png"))


def test_the_screen_says_what_is_learned_and_what_to_try(tmp_path, tokenizer_folder, model_folder, capsys):
    shared = str(model_folder / "token_cache")
    train(
        tmp_path / "more", tokenizer_folder, dataset="sprites-edits", token_cache=shared, edit_dropout=0.0,
        default_image_guidance=1.5,
    )  # fmt: skip
    screen = capsys.readouterr().out
    assert "interleaved rows are learned as edit, of up to" in screen
    assert "next: python scripts/edit.py PICTURE.png" in screen
    vocabulary = MultimodalVocabulary.from_pretrained(tmp_path / "more" / "lm")
    assert vocabulary.formats == ["edit"]
    assert vocabulary.default_guidance == vocabulary.default_image_guidance == 1.0  # nothing to lead away from


@pytest.mark.parametrize("orders", [("iti",) * 20, ("titi", "tii", "iti") * 7])
def test_own_edits_train_as_they_lie(tmp_path, tokenizer_folder, orders):
    folder = own_edits(tmp_path / "data", orders)
    changes = {} if set(orders) == {"iti"} else {"formats": ["edit"]}
    model = train(tmp_path / "model", tokenizer_folder, dataset=str(folder), max_examples=None, **changes)
    assert "edit" in MultimodalVocabulary.from_pretrained(model / "lm").formats
    options = edit.EditOptions(
        picture=str(folder / "0-0.png"), instructions=["make it blue"], model=str(model),
        output=str(tmp_path / "out.png"), num_images_per_prompt=2, seed=1, device="cpu",
    )  # fmt: skip
    assert Image.open(edit.main(options)).width > 3 * 128


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (("ti",) * 20, "--formats edit: the data set has no edits; an edit is the parts picture, text, picture"),
        (("iti",) * 19 + ("iiti",), r"row \d+ has the parts picture, picture, text, picture; an edit is .* mend"),
        (("iti",) * 19 + ("ti",), r"row \d+ has the parts text, picture; an edit is"),
    ],
)
def test_documents_that_are_no_edits(tmp_path, tokenizer_folder, orders, message):
    folder = own_edits(tmp_path / "data", orders)
    settings = {"dataset": str(folder), "max_examples": None, "formats": ["edit"], "seed": 1}
    (folder / "train").mkdir()
    for file in [*folder.glob("*.png"), folder / "documents.jsonl"]:
        file.rename(folder / "train" / file.name)
    own_edits(tmp_path / "validation", ("iti",) * 3).rename(folder / "validation")
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "model", tokenizer_folder, **settings)


def test_other_commands_take_the_built_in_edits(tmp_path, tokenizer_folder, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    cache_tokens.main(
        cache_tokens.Options(
            dataset="sprites-edits", image_tokenizer=str(tokenizer_folder), token_cache=str(tmp_path / "cache"),
            max_examples=30, num_workers=0, splits=["train"], shard_rows=16,
        )
    )  # fmt: skip
    assert TokenCache(tmp_path / "cache" / "train").num_edits == 30
    inspect_data.main(
        inspect_data.InspectionOptions(
            dataset="sprites-edits", max_examples=12, num_workers=0, output=str(tmp_path / "sheet.png")
        )
    )
    assert "sprites-edits, train: 24 pictures" in capsys.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    train_tokenizer.main(
        train_tokenizer.ImageTokenizerOptions(
            dataset="sprites-edits", max_examples=16, max_steps=2, batch_size=8, hidden_sizes=[8, 8],
            codebook_sizes=[8], num_workers=0, cpu_threads=1, output_dir=str(tmp_path / "tokenizer"),
        )
    )  # fmt: skip
    assert (tmp_path / "tokenizer" / "model.safetensors").is_file()


def test_views_are_for_captioned_pictures(tmp_path, tokenizer_folder):
    with pytest.raises(ValueError, match="sprites-edits: --crops and --random_flip are for captioned pictures"):
        train(tmp_path / "model", tokenizer_folder, dataset="sprites-edits", crops=1)


def test_evaluation_of_a_model_of_edits(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sprites_figures, "load_probe", lambda device: SpritesProbe())
    output = tmp_path / "report.json"
    options = dict(
        model=str(model_folder), dataset="sprites-edits", max_examples=10, train_examples=10, num_edits=14,
        output=str(output), report=str(tmp_path / "report"), num_workers=0, cpu_threads=1, device="cpu", batch_size=10,
        image_guidance_scale=1.5,
    )  # fmt: skip
    evaluate.main(EvaluationOptions(**options))
    report = json.loads(output.read_text())
    assert report["edits"]["held_out"]["n"] == 14 and "alignment" not in report
    assert set(report["edits"]["seen"]) == {"changed", "kept", "both", "interval", "n", "kinds"}
    figures = [row.figure for row in figure_rows(report)]
    assert "edits, results, held-out: changed" in figures and "edits, results, held-out, move: kept" in figures
    assert "edits, reconstructed, seen: both" in figures
    for name in ("edits_seen.png", "edits_held_out.png"):
        assert list((tmp_path / "report").rglob(name))


def test_scales_of_edits_for_a_model_without(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    options = EvaluationOptions(model=str(tmp_path / "model"), image_guidance_scale=1.5, device="cpu")
    with pytest.raises(ValueError, match=r"--image_guidance_scale 1.5 is for edits: this model was not trained"):
        evaluate.main(options)


# The command


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline(formats=FORMATS).save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "dog.png")
    return tmp_path / "dog.png"


def run(source: Path, *instructions: str, **settings) -> Path:
    defaults = {"output": str(source.parent / "out"), "num_images_per_prompt": 2, "seed": 3, "device": "cpu"}
    return edit.main(edit.EditOptions(picture=str(source), instructions=[*instructions], **{**defaults, **settings}))


def test_single_results_in_a_folder(tiny_folder, source, capsys):
    run(source, "make it blue", "a dog!", model=str(tiny_folder))
    names = [file.name for file in sorted((source.parent / "out").iterdir())]
    assert names == ["000-make-it-blue-0.png", "000-make-it-blue-1.png", "001-a-dog-0.png", "001-a-dog-1.png"]
    assert "(4 results, seed 3)" in capsys.readouterr().out
    first = Image.open(source.parent / "out" / names[0]).tobytes()
    run(source, "make it blue", model=str(tiny_folder), output=str(source.parent / "again"))
    assert Image.open(source.parent / "again" / names[0]).tobytes() == first


def test_a_picture_of_another_size(tiny_folder, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="the picture is 50x40 .* resize or crop it first"):
        run(tmp_path / "large.png", "make it blue", model=str(tiny_folder))
    run(tmp_path / "large.png", "make it blue", model=str(tiny_folder), resize=True, image_guidance_scale=1.5)


def test_what_the_command_refuses(source, tmp_path):
    other = tmp_path / "cat.png"
    Image.new("RGB", (16, 16)).save(other)
    for arguments, message in [
        (dict(), "no picture: name the file to start from"),
        (dict(picture="dog.png"), 'no instruction: .* for example dog.png "make it blue"'),
        (dict(picture=str(source), instructions=[" "]), "an instruction is empty"),
        (dict(picture=str(source), instructions=[str(other), "swap"]), "are two pictures: an edit starts from one"),
        (dict(picture=str(source), instructions=["a"], output="x.pdf"), "--output x.pdf: unknown kind of picture"),
        (dict(picture=str(source), instructions=["a"], image_guidance_scale=-1.0), "image_guidance_scale"),
    ]:
        with pytest.raises(ValueError, match=message):
            edit.EditOptions(**arguments)
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(ValueError, match="words.png cannot be read as a picture"):
        run(tmp_path / "words.png", "make it blue")


def test_words_on_the_command_line(source):
    from pipelines.options.parser import parse_options

    options = parse_options(
        edit.EditOptions, argv=[str(source), "make it blue", "--seed", "3", "move it"], description="",
        positional=edit.WORDS,
    )  # fmt: skip
    assert options.picture == str(source) and options.instructions == ["make it blue", "move it"] and options.seed == 3
