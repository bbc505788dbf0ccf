"""Autoencoders without codes through the real script: each bottleneck, resuming, and what does not belong together."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_pipeline

from pipelines import TextToImagePipeline
from pipelines.caching import sources
from pipelines.options.bottlenecks import AUTOENCODERS, BOTTLENECK_OPTIONS
from pipelines.options.evaluation import EvaluationOptions
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.language_model import LanguageModelOptions
from pipelines.training.autoencoders import ActiveUnits, ContinuousModel
from pipelines.training.loop import Loop
from scripts import cache_tokens, evaluate, train_lm, train_tokenizer
from tokenizer_image import Autoencoder, load_autoencoder
from tokenizer_image.bottlenecks.kinds import BOTTLENECKS
from tokenizer_image.configuration import preset

SETTINGS = dict(
    num_workers=0, cpu_threads=1, mixed_precision="no", batch_size=8, max_steps=4, warmup_steps=2, log_every=1,
    validate_every=2, sample_every=0, checkpoint_every=2, ema_decay=0.9, max_examples=32, image_size=16, patch_size=4,
    hidden_sizes=[8], num_res_blocks=1, code_dim=4,
)  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    **{name: {"bottleneck": name} for name in AUTOENCODERS},
    "conditional on captions": {"bottleneck": "conditional", "condition": "caption", "latents": "positions"},
    "mlp": {"bottleneck": "none", "network": "mlp", "hidden_sizes": [16], "tied_weights": True},
    "with everything": {
        "bottleneck": "gaussian", "input_noise": "masking", "capacity": 5.0, "kl_weight": 10.0,
        "reconstruction_loss": "cross_entropy",
    },
    "ladder of three": {"bottleneck": "hierarchical", "num_levels": 3, "kl_warmup": 0.5, "latents": "picture"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(sources, "VALIDATION_PICTURES", 12)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    """Discs in two class folders, each beside a caption that is its class."""
    folder = tmp_path_factory.mktemp("discs")
    for number in range(48):
        name = ("red", "blue")[number % 2]
        pixels = np.full((16, 16, 3), 255, np.uint8)
        rows, columns = np.ogrid[:16, :16]
        inside = (rows - 8) ** 2 + (columns - 5 - number % 5) ** 2 < 20
        pixels[inside] = (220, 30, 30) if name == "red" else (30, 40, 210)
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
        (folder / name / f"{number:03d}.txt").write_text(f"a {name} disc")
    return folder


def options(folder: Path, discs: Path, **changes: Any) -> ImageTokenizerOptions:
    return ImageTokenizerOptions(**{**SETTINGS, "dataset": str(discs), "output_dir": str(folder), **changes})


def train(given: ImageTokenizerOptions) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    train_tokenizer.main(given)
    return Path(given.output_dir)


def figures(folder: Path) -> dict[str, float]:
    return json.loads((folder / "run.json").read_text())["validation"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_each_bottleneck_leaves_an_autoencoder(name, discs, tmp_path, capsys):
    folder = train(options(tmp_path / "run", discs, **RUNS[name]))
    model = load_autoencoder(folder)
    assert model.config.bottleneck == RUNS[name]["bottleneck"]
    found, said = figures(folder), capsys.readouterr().out
    assert {"loss", "mse", "psnr"} <= found.keys() and all(np.isfinite(value) for value in found.values())
    assert f"latents of bottleneck {model.config.bottleneck}, undercomplete" in said
    assert (folder / "samples" / "final.png").is_file()
    wanted = {
        "sparse": {"sparsity", "active_rate"}, "k_sparse": {"sparsity"}, "contractive": {"jacobian"},
        "gaussian": {"kl", "active_units"}, "conditional": {"kl", "active_units"},
        "hierarchical": {"kl", "kl_level0", "kl_level1", "active_units"},
    }  # fmt: skip
    assert wanted.get(model.config.bottleneck, set()) <= found.keys()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("psnr" in line for line in lines)
    command = re.search(r"next: (.*)", said)
    assert command and "sample_latents.py --autoencoder" in command[1]


def test_classes_come_from_labels_and_from_captions(discs, tmp_path):
    by_label = load_autoencoder(train(options(tmp_path / "label", discs, bottleneck="conditional")))
    assert (by_label.config.class_names, by_label.config.condition) == (["blue", "red"], "label")
    given = options(tmp_path / "caption", discs, bottleneck="conditional", condition="caption")
    by_caption = load_autoencoder(train(given))
    assert sorted(by_caption.config.class_names) == ["a blue disc", "a red disc"]
    with pytest.raises(ValueError, match="--condition label: the pictures of --dataset sprites have no labels"):
        train(options(tmp_path / "none", discs, bottleneck="conditional", dataset="sprites"))
    with pytest.raises(
        ValueError, match="--condition caption needs captions that .* Give a --dataset whose captions rep"
    ):
        train(options(tmp_path / "none", discs, bottleneck="conditional", condition="caption", dataset="sprites"))


@pytest.mark.parametrize("name", ["conditional", "contractive", "with everything"])
def test_a_resumed_run_equals_an_uninterrupted_one(name, discs, tmp_path):
    """To the last bit: weights, averages, noise of the input and of the latents, and the schedules."""
    whole = train(options(tmp_path / "whole", discs, **RUNS[name]))
    with pytest.MonkeyPatch.context() as patch:
        killed = stops_after(3, patch)
        with pytest.raises(killed):
            train(options(tmp_path / "half", discs, **RUNS[name]))
    again = train(options(tmp_path / "half", discs, **RUNS[name], resume=True))
    last = Path("checkpoints", "checkpoint-4", "state.safetensors")
    assert same_tensors(whole / last, again / last)
    assert same_tensors(whole / "model.safetensors", again / "model.safetensors")
    assert figures(whole) == figures(again)


STACKS: dict[str, dict[str, Any]] = {
    "conv": {"bottleneck": "denoising", "hidden_sizes": [8, 8]},
    "mlp": {"bottleneck": "sparse", "network": "mlp", "hidden_sizes": [16, 12], "input_noise": "masking"},
}


def stops_after(step: int, patch: pytest.MonkeyPatch) -> type[BaseException]:
    """Have a run end after this step, as a SIGKILL would end it; what it raises."""
    original = Loop.finish_step

    class Killed(BaseException):
        pass

    def dies(self: Loop, *arguments: Any, **measured: Any) -> None:
        original(self, *arguments, **measured)
        if self.progress.step == step:
            raise Killed

    patch.setattr(Loop, "finish_step", dies)
    return Killed


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two safetensors files hold the same, to the last bit."""
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", STACKS)
def test_layers_learn_one_by_one_and_then_together(name, discs, tmp_path):
    """With 3 layers and half of 12 steps: two steps each; resumed in the middle of a layer, to the last bit."""
    given = {**STACKS[name], "stack_layers": True, "max_steps": 12, "checkpoint_every": 1, "validate_every": 1}
    folder = train(options(tmp_path / "run", discs, **given))
    assert load_autoencoder(folder).num_layers == 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["layer"] for line in lines if "layer_error" in line] == [0, 0, 1, 1, 2, 2]
    measured = [line for line in lines if "validation_mse" in line]
    assert [line.get("validation_layer") for line in measured] == [0, 0, 1, 1, 2, 2, *[None] * 6]
    assert json.loads((folder / "run.json").read_text())["best_step"] > 6, "no model of layers alone is the best"
    with pytest.MonkeyPatch.context() as patch:
        killed = stops_after(1, patch)
        with pytest.raises(killed):
            train(options(tmp_path / "parted", discs, **given))
    again = train(options(tmp_path / "parted", discs, **given, resume=True))
    last = Path("checkpoints", "checkpoint-12", "state.safetensors")
    assert same_tensors(folder / last, again / last)


def test_layers_learn_in_one_process(discs, tmp_path):
    processes = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    given = options(tmp_path, discs, bottleneck="none", stack_layers=True)
    with pytest.raises(ValueError, match="--stack_layers trains in one process, not in 2"):
        ContinuousModel(given, Autoencoder(given.autoencoder_configuration(False)), [], [], processes)


def test_the_averaged_weights_are_left(discs, tmp_path):
    folder = train(options(tmp_path / "run", discs, bottleneck="gaussian", keep_best=False))
    state = load_file(folder / "checkpoints" / "checkpoint-4" / "state.safetensors")
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(value, state[f"averaged/{name}"])


def test_a_run_starts_from_an_earlier_one(discs, tmp_path):
    first = train(options(tmp_path / "first", discs, bottleneck="sparse"))
    given = dict(bottleneck="sparse", init_from=str(first), sparse_rate=0.2, input_noise="masking")
    model = load_autoencoder(train(options(tmp_path / "second", discs, max_steps=1, **given)))
    assert model.config.bottleneck_options == {"rate": 0.2} and model.config.input_noise == "masking"
    with pytest.raises(ValueError, match="of --bottleneck sparse, fixes --code_dim, --sparse_penalty: leave them out"):
        train(options(tmp_path / "x", discs, **{**given, "code_dim": 7, "sparse_rate": None, "sparse_penalty": "l1"}))
    with pytest.raises(ValueError, match="fixes --bottleneck: leave"):
        train(options(tmp_path / "x", discs, bottleneck="none", init_from=str(first)))
    with pytest.raises(ValueError, match="whose bottleneck, 'sparse', has no codes"):
        train(options(tmp_path / "x", discs, init_from=str(first)))


def test_a_classs_pictures_stay_in_their_class_in_another_run(discs, tmp_path):
    first = train(options(tmp_path / "first", discs, bottleneck="conditional"))
    again = options(tmp_path / "second", discs, bottleneck="conditional", init_from=str(first), max_steps=1)
    assert load_autoencoder(train(again)).config.class_names == ["blue", "red"]


def test_perceptual_terms_go_with_other_bottlenecks(discs, tmp_path):
    given = dict(bottleneck="gaussian", extractor="captions", dataset=str(discs), max_steps=20)
    assert "perceptual" in figures(train(options(tmp_path / "run", discs, **given)))


def test_active_units_by_hand():
    units = ActiveUnits()
    for part in torch.tensor([[0.0, 1.0, 0.1], [0.0, 2.0, 0.12]]).view(2, 1, 1, 1, 3):
        units.add([part])
    assert units.count() == 1, "variances 0, 0.25 and 0.0001"


# ---- stage 2, which needs codes


def test_what_needs_codes_says_which_models_have_them(discs, tmp_path):
    folder = train(options(tmp_path / "vae", discs, bottleneck="gaussian", max_steps=1))
    words = "'gaussian', has no codes, which a language model could learn: give .* --bottleneck quantizer, of any"
    common = dict(image_tokenizer=str(folder), dataset=str(discs), num_workers=0)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=words):
        train_lm.main(LanguageModelOptions(**common, output_dir=str(tmp_path / "model"), max_steps=1))
    with pytest.raises(ValueError, match=words):
        cache_tokens.main(cache_tokens.Options(**common, token_cache=str(tmp_path / "cache")))
    with pytest.raises(ValueError, match="is an autoencoder without codes: measure it by --autoencoder"):
        evaluate.main(EvaluationOptions(**common, output=str(tmp_path / "report.json")))
    model = tmp_path / "whole"
    tiny_pipeline().save_pretrained(model)
    shutil.rmtree(model / "image_tokenizer")
    shutil.copytree(folder, model / "image_tokenizer")
    with pytest.raises(ValueError, match=words):
        TextToImagePipeline.from_pretrained(model)


# ---- options


def test_the_options_know_the_bottlenecks():
    assert set(AUTOENCODERS) == set(BOTTLENECKS)
    for name, kind in BOTTLENECKS.items():
        assert set(BOTTLENECK_OPTIONS[name].values()) == set(kind.options), name


def test_the_quantizer_is_what_it_was():
    given = ImageTokenizerOptions()
    assert given.is_quantized and given.configuration(False).input_noise is None
    assert given.configuration(False).hidden_sizes == preset(32)["hidden_sizes"]


MISTAKES = {
    "--bottleneck vae": "--bottleneck 'vae': choose quantizer, none, ",
    "--kl_weight 4": "--kl_weight 4.0 is for --bottleneck gaussian, conditional or hierarchical, not for quantizer",
    "--bottleneck sparse --kl_weight 4": "--kl_weight 4.0 is for --bottleneck gaussian, .*, not for sparse: leave",
    "--bottleneck gaussian --sparse_k 4": "--sparse_k 4 is for --bottleneck k_sparse, not for gaussian",
    "--latents picture": "--latents picture is for --bottleneck none, .*, not for quantizer",
    "--bottleneck none --condition label": "--condition label is for --bottleneck conditional, not for none",
    "--bottleneck none --codebook_sizes 8": "--bottleneck none has no codes: leave out --codebook_sizes",
    "--bottleneck none --quantizer ema --rotation_trick": "leave out --quantizer, --rotation_trick, or choose",
    "--bottleneck none --train decoder": "leave out --train, or choose --bottleneck quantizer",
    "--bottleneck none --num_levels 2": "--num_levels 2 is for --bottleneck quantizer or hierarchical, not for none",
    "--bottleneck hierarchical --num_levels 3 --hidden_sizes 8 8 --patch_size 8": "--image_size 32x32|not a multiple",
    "--bottleneck gaussian --tied_weights": "--tied_weights True is for --bottleneck none, .*, not for gaussian",
    "--bottleneck none --tied_weights": "--tied_weights True with --network 'conv'",
    "--bottleneck gaussian --capacity 5 --kl_warmup 0.1": "--capacity 5 and --kl_warmup 0.1 are two schedules",
    "--bottleneck gaussian --capacity_share 0.1": "--capacity_share 0.1 needs --capacity",
    "--bottleneck k_sparse --code_dim 4 --sparse_k 5": "--sparse_k 5 of --code_dim 4 latents cannot be kept",
    "--bottleneck sparse --sparse_rate 1": "--sparse_rate 1.0 must be above zero and below 1",
    "--bottleneck sparse --sparse_penalty l1 --sparse_rate 0.1": "--sparse_rate 0.1 is for --sparse_penalty kl",
    "--noise_amount 0.1": "--noise_amount 0.1 needs --input_noise",
    "--input_noise masking --noise_amount 2": "--noise_amount 2 of --input_noise masking must be at most 1",
    "--reconstruction_loss cross_entropy": "cross_entropy is for --bottleneck none, .*, not for quantizer: ch",
    "--bottleneck none --reconstruction_loss cross_entropy --perceptual_weight 1": "does not go with --perceptual_w",
    "--reconstruction_loss absolute --absolute_share 0.5": "absolute does not go with --absolute_share",
    "--bottleneck gaussian --stack_layers": "--stack_layers True is for --bottleneck none, .*, not for gaussian",
    "--bottleneck none --stack_share 0.3": "--stack_share 0.3 needs --stack_layers",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_options_that_do_not_belong_together(given, capsys):
    """One clear error, that names the options."""
    from pipelines.options.parser import parse_options

    with pytest.raises(SystemExit):
        parse_options(ImageTokenizerOptions, description="test", argv=given.split())
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(MISTAKES[given], message), message


def test_noise_and_absolute_error_are_options_of_the_quantizer_too(discs, tmp_path):
    given = dict(input_noise="salt_and_pepper", noise_amount=0.2, reconstruction_loss="absolute", codebook_sizes=[8])
    folder = train(options(tmp_path / "run", discs, **given))
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["input_noise"], config["noise_amount"]) == (
        "tessera_vqvae", "salt_and_pepper", 0.2,
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("share_pixels" in line for line in lines), "the pixels' error is not the model's own"


def test_overcomplete_is_told(discs, tmp_path, capsys):
    model = load_autoencoder(train(options(tmp_path / "run", discs, bottleneck="denoising", code_dim=64, max_steps=1)))
    assert isinstance(model, Autoencoder) and "1024 latents of bottleneck denoising, overcomplete for 768 values" in (
        capsys.readouterr().out
    )
