"""Both stages through their scripts: what they leave, how they resume, and what they refuse."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.data.token_cache import TokenCache
from lm.model import build_configuration, build_model
from lm.vocabulary import MultimodalVocabulary
from pipelines import InterleavedPipeline, TextToImagePipeline
from pipelines.caching import pixel_cache, sources
from pipelines.options.bottlenecks import BottleneckOptions
from pipelines.options.evaluation import EvaluationOptions
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.image_tokenizer_losses import LossOptions
from pipelines.options.training import TrainingOptions
from pipelines.training import image_tokenizer
from pipelines.training.image_tokenizer import load_earlier, training_batches
from pipelines.training.language_model import build_parts, check_parts
from pipelines.training.loop import Loop
from pipelines.training.start import start_accelerator
from scripts import evaluate, train_lm, train_tokenizer
from tokenizer_image import VQVAE
from tokenizer_image.registry import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
# Everything that a recipe could change is said here.
COMMON = dict(
    num_workers=0, cpu_threads=1, mixed_precision="no", batch_size=16, max_steps=6, warmup_steps=2, log_every=3,
    validate_every=4, sample_every=4, checkpoint_every=3, learning_rate=1e-3, muon_learning_rate=5e-3,
    optimizer="muon", weight_decay=0.01, ema_decay=0.9, seed=0, max_examples=64,
)  # fmt: skip
STAGE_1 = dict(
    image_size=16, patch_size=4, hidden_sizes=[8, 16], codebook_sizes=[16, 12], num_res_blocks=1, code_dim=4,
    quantizer="residual",
)  # fmt: skip
STAGE_2 = dict(
    architecture="llama", num_layers=2, hidden_size=32, intermediate_size=64, num_heads=2,
    text_vocab_size=300, max_caption_tokens=48,
    caption_dropout=0.1, default_guidance=2.0,
)  # fmt: skip
TOKENS = 2 * 2 * 2


class Killed(BaseException):
    """Takes the place of SIGKILL where a test stays in its own process."""


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    """Decoded pictures go to a folder of this module's own, and validation sets are small."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(sources, "VALIDATION_PICTURES", 24)
        yield
    torch.set_num_threads(threads)


def stage_1(output_dir: Path, **changes) -> train_tokenizer.ImageTokenizerOptions:
    return train_tokenizer.ImageTokenizerOptions(**{**COMMON, **STAGE_1, "output_dir": str(output_dir), **changes})


def stage_2(output_dir: Path, image_tokenizer: Path, **changes) -> train_lm.LanguageModelOptions:
    settings = {**COMMON, **STAGE_2, "output_dir": str(output_dir), "image_tokenizer": str(image_tokenizer)}
    return train_lm.LanguageModelOptions(**{**settings, **changes})


def train(options: train_tokenizer.ImageTokenizerOptions | train_lm.LanguageModelOptions) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    script = train_lm if isinstance(options, train_lm.LanguageModelOptions) else train_tokenizer
    script.main(options)
    return Path(options.output_dir)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    return train(stage_1(tmp_path_factory.mktemp("stage1") / "tokenizer"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer_folder) -> Path:
    return train(stage_2(tmp_path_factory.mktemp("stage2") / "model", tokenizer_folder))


def own_pictures(folder: Path, count: int = 40, captions: bool = True) -> Path:
    """Discs of three colours, each beside a .txt with its caption."""
    folder.mkdir(parents=True)
    colours = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}
    for number in range(count):
        name = list(colours)[number % 3]
        pixels = np.full((20, 24, 3), 255, np.uint8)
        rows, columns = np.ogrid[:20, :24]
        pixels[(rows - 10) ** 2 + (columns - 8 - number % 7) ** 2 < 36] = colours[name]
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        if captions:
            (folder / f"{number:03d}.txt").write_text(f"a {name} disc\nnumber {number}")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_clock(line: dict) -> dict:
    clock = {"seconds", "mfu"}
    return {name: value for name, value in line.items() if name not in clock and not name.endswith("_per_second")}


def assert_equal_runs(ours: Path, theirs: Path, part: str = "") -> None:
    """Bit for bit: what was saved, the last checkpoint, and the figures on the way."""
    for file in (f"{part}model.safetensors", "checkpoints/checkpoint-6/state.safetensors"):
        first, second = load_file(ours / file), load_file(theirs / file)
        assert first.keys() == second.keys()
        different = [name for name in first if not torch.equal(first[name], second[name])]
        assert not different, f"{file}: {different}"
    assert [without_clock(line) for line in lines(ours)] == [without_clock(line) for line in lines(theirs)]


# What a run leaves


def test_stage_1_leaves_a_tokenizer(tokenizer_folder, capsys):
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.config.image_size == 16 and tokenizer.tokens_per_image == TOKENS and tokenizer.num_codes == 28
    assert tokenizer.config.preprocessing["image_size"] == 16
    names = {path.name for path in tokenizer_folder.iterdir()}
    assert names == {"checkpoints", "config.json", "metrics.jsonl", "model.safetensors", "run.json", "samples"}
    assert sorted(path.name for path in (tokenizer_folder / "checkpoints").iterdir()) == [
        "best",
        "checkpoint-3",
        "checkpoint-6",
    ]
    assert {path.name for path in (tokenizer_folder / "samples").iterdir()} == {
        "step-000004.png", "step-000006.png", "final.png"
    }  # fmt: skip
    steps = {line["step"]: line for line in lines(tokenizer_folder) if "loss" in line}
    assert list(steps) == [3, 6]
    assert all(
        {"loss", "psnr", "batch_usage", "batch_perplexity", "dead", "revived", "latent_norm", "images_per_second"}
        <= line.keys()
        for line in steps.values()
    )
    validated = [line for line in lines(tokenizer_folder) if "validation_psnr" in line]
    assert [line["step"] for line in validated] == [4, 6] and {"validation_mse", "validation_usage"} <= validated[
        0
    ].keys()
    info = json.loads((tokenizer_folder / "run.json").read_text())
    assert info["finished"] and info["steps"] == 6 and info["pictures_seen"] == 96 and info["training_pictures"] == 64
    assert info["parameters"] == sum(parameter.numel() for parameter in tokenizer.parameters())
    assert info["validation"]["psnr"] > 0 and info["options"]["seed"] == 0


def test_the_tokenizer_has_averaged_weights_and_a_codebook_that_fits_them(tokenizer_folder):
    saved = weights(tokenizer_folder)
    checkpoint = load_file(tokenizer_folder / "checkpoints" / "checkpoint-6" / "state.safetensors")
    averaged = {name.removeprefix("averaged/"): t for name, t in checkpoint.items() if name.startswith("averaged/")}
    assert averaged and all(torch.equal(saved[name], tensor) for name, tensor in averaged.items())
    assert any(not torch.equal(tensor, checkpoint[f"model/{name}"]) for name, tensor in averaged.items())
    codebook = "quantizer.depths.0.codebook"
    assert not torch.equal(saved[codebook], checkpoint[f"model/{codebook}"])
    # As many as a batch has latents, so that the codebook goes on learning where the tokenizer is trained further.
    assert float(saved["quantizer.depths.0.ema_counts"].sum()) == pytest.approx(16 * 4)


def test_stage_2_leaves_a_whole_model_folder(model_folder, tokenizer_folder):
    names = {path.name for path in model_folder.iterdir()}
    assert names == {"checkpoints", "image_tokenizer", "lm", "metrics.jsonl", "model_index.json", "run.json", "samples",
                     "token_cache"}  # fmt: skip
    assert weights(model_folder / "image_tokenizer").keys() == weights(tokenizer_folder).keys()
    assert load_tokenizer(model_folder).fingerprint == load_tokenizer(tokenizer_folder).fingerprint
    caches = {split: TokenCache(model_folder / "token_cache" / split) for split in ("train", "validation")}
    assert {split: len(cache) for split, cache in caches.items()} == {"train": 64, "validation": 24}
    assert len(caches["train"].codes(0)) == TOKENS and len(caches["train"].texts(0)) >= 2
    assert {path.name for path in (model_folder / "samples").iterdir()} == {"step-000004.png", "step-000006.png"}
    info = json.loads((model_folder / "run.json").read_text())
    assert info["finished"] and info["steps"] == 6 and info["pictures_seen"] == 96 and info["tokens_seen"] > 96 * TOKENS
    validated = [line for line in lines(model_folder) if "validation_nats_per_code" in line]
    assert [line["step"] for line in validated] == [4, 6]
    learned = [line for line in lines(model_folder) if "loss" in line]
    assert all(line["tokens_per_second"] > 0 and 0 < line["mfu"] < 1 for line in learned)
    best = TextToImagePipeline.from_pretrained(model_folder / "checkpoints" / "best")
    assert best("a dog", seed=0).images[0].size == (16, 16)
    # Random guessing costs (log 16 + log 12) / 2 nats a code.
    assert 0.5 < validated[-1]["validation_nats_per_code"] < 3.2
    checkpoint = load_file(model_folder / "checkpoints" / "checkpoint-6" / "state.safetensors")
    saved = weights(model_folder / "lm")
    averaged = {name.removeprefix("averaged/"): t for name, t in checkpoint.items() if name.startswith("averaged/")}
    assert saved.keys() == averaged.keys() and all(torch.equal(saved[name], averaged[name]) for name in saved)


def test_the_pipeline_and_any_tool_load_the_model_folder(model_folder):
    pipe = TextToImagePipeline.from_pretrained(model_folder)
    output = pipe(["a dog", "a red cat"], num_images_per_prompt=2, seed=0)
    assert [image.size for image in output.images] == [(16, 16)] * 4 and output.codes.shape == (4, TOKENS)
    assert pipe.vocabulary.default_guidance == 2.0
    model = AutoModelForCausalLM.from_pretrained(model_folder / "lm")
    tokenizer = AutoTokenizer.from_pretrained(model_folder / "lm")
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)
    prompt = tokenizer("a dog<|begin_image|>", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert torch.isfinite(model(prompt).logits).all()


def test_a_finished_run_is_left_alone(model_folder, tokenizer_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in model_folder.rglob("*")}
    train(stage_2(model_folder, tokenizer_folder, resume=True))
    assert "is finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in model_folder.rglob("*")} == before
    train(stage_1(tokenizer_folder, resume=True))
    assert "is finished already" in capsys.readouterr().out


def test_the_first_lines_say_what_will_happen(tokenizer_folder, tmp_path, capsys):
    train(stage_2(tmp_path / "model", tokenizer_folder, max_steps=1))
    said = capsys.readouterr().out
    for words in ("M parameters", "28 image codes", f"64 pictures of {TOKENS} tokens", "1 threads", "Only 64 training"):
        assert words in said
    train(stage_1(tmp_path / "tokenizer", max_steps=1))
    said = capsys.readouterr().out
    for words in ("M parameters", "16x16 pictures become 8 codes", "64 training pictures", "next: accelerate launch"):
        assert words in said


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory, tokenizer_folder) -> Path:
    """A model that is learned in both directions, and on text alone."""
    formats = ["caption_to_image=2", "image_to_caption=2", "text=1"]
    return train(stage_2(tmp_path_factory.mktemp("both") / "model", tokenizer_folder, formats=formats))


def test_both_directions_in_one_model(both_ways):
    vocabulary = MultimodalVocabulary.from_pretrained(both_ways / "lm")
    assert vocabulary.formats == ["caption_to_image", "image", "image_to_caption", "text"]
    validated = [line for line in lines(both_ways) if "validation_nats_per_code" in line]
    names = {"nats_per_code", "nats_per_text_token", "nats_per_text_token_image_to_caption", "nats_per_text_token_text"}
    assert all({f"validation_{name}" for name in names} <= line.keys() for line in validated)
    for line in lines(both_ways):
        if "loss" in line:  # means over the logged steps: one part in eight is text
            parts = (line["nats_per_text_token"] + 7 * line["nats_per_code"]) / 8
            assert line["loss"] == pytest.approx(parts, rel=1e-4)


# Resume


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_stage_1_resumed_equals_uninterrupted(tokenizer_folder, tmp_path, monkeypatch, optimizer):
    whole = tokenizer_folder
    if optimizer == "adamw":
        whole = train(stage_1(tmp_path / "whole", optimizer=optimizer))
    interrupt_after(monkeypatch, step=5)
    with pytest.raises(Killed):
        train(stage_1(tmp_path / "run", optimizer=optimizer))
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = train(stage_1(tmp_path / "run", optimizer=optimizer, resume=True))
    assert_equal_runs(resumed, whole)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "formats": ["caption_to_image", "image_to_caption=2"]}])
def test_stage_2_resumed_equals_uninterrupted(tokenizer_folder, model_folder, tmp_path, monkeypatch, changes):
    whole = model_folder
    if changes:
        whole = train(stage_2(tmp_path / "whole", tokenizer_folder, **changes))
    interrupt_after(monkeypatch, step=5)
    with pytest.raises(Killed):
        train(stage_2(tmp_path / "run", tokenizer_folder, **changes))
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model_index.json").exists()
    resumed = train(stage_2(tmp_path / "run", tokenizer_folder, resume=True, **changes))
    assert_equal_runs(resumed, whole, "lm/")
    infos = [json.loads((folder / "run.json").read_text()) for folder in (resumed, whole)]
    assert infos[0]["tokens_seen"] == infos[1]["tokens_seen"], "what was seen before the interruption counts"


def interrupt_after(monkeypatch, step: int) -> None:
    """Stop after `step` steps as a kill would: nothing is cleaned up or saved."""
    original = Loop.finish_step

    def finish_step(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.progress.step == step:
            raise Killed

    monkeypatch.setattr(Loop, "finish_step", finish_step)


def test_accumulated_batches_learn_the_same(tokenizer_folder, model_folder, tmp_path):
    parts = train(stage_2(tmp_path / "parts", tokenizer_folder, gradient_accumulation_steps=4, max_steps=2))
    whole = train(stage_2(tmp_path / "whole", tokenizer_folder, max_steps=2))
    for name, tensor in weights(whole / "lm").items():
        assert torch.allclose(weights(parts / "lm")[name], tensor, atol=2e-3), name
    for ours, theirs in zip(lines(parts), lines(whole), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def two_processes(rank: int, port: int, runs: list) -> None:
    """What each of two spawned processes does: the scripts' main, as torchrun would start it."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"})
    sources.VALIDATION_PICTURES = 24
    for options in runs:
        train(options)


def test_two_processes_learn_what_one_learns(tokenizer_folder, model_folder, tmp_path):
    """Halves of the batches, captions of different lengths, accumulation: the sums must come out the same."""
    # From a codebook that has started (k-means sees a batch's first half on rank 0) and without revival (random).
    started = dict(init_from=str(tokenizer_folder), revival_threshold=0.0, image_size=None, patch_size=None,
                   hidden_sizes=None, codebook_sizes=None)  # fmt: skip
    common = dict(optimizer="adamw", max_steps=3, log_every=1)

    def runs(folder: Path, parts: int) -> list:
        return [
            stage_1(folder / "tokenizer", **common, **started),
            stage_2(
                folder / "model",
                tokenizer_folder,
                **common,
                formats=["caption_and_image", "image_to_caption", "text"],
                gradient_accumulation_steps=parts,
            ),
        ]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_processes, (port, runs(tmp_path / "two", 2)), nprocs=2)
    for options in runs(tmp_path / "one", 1):
        train(options)
    for part in ("tokenizer", "model/lm"):
        ours, theirs = weights(tmp_path / "two" / part), weights(tmp_path / "one" / part)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            apart = (ours[name].double() - theirs[name].double()).norm()
            assert apart < 1e-3 * theirs[name].double().norm() + 1e-5, name
    for part in ("tokenizer", "model"):
        for ours, theirs in zip(lines(tmp_path / "two" / part), lines(tmp_path / "one" / part), strict=True):
            assert ours.keys() == theirs.keys() and ours["step"] == theirs["step"]
            if part == "model" or "loss" not in ours:  # stage 1 logs the loss of rank 0's share
                assert without_clock(ours) == pytest.approx(without_clock(theirs), rel=1e-3)
    infos = [json.loads((tmp_path / folder / "model" / "run.json").read_text()) for folder in ("two", "one")]
    assert infos[0]["pictures_seen"] == infos[1]["pictures_seen"] == 48


def test_a_changed_option_is_named(model_folder, tokenizer_folder, tmp_path):
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    with pytest.raises(ValueError, match="--caption_dropout was 0.1, now 0.2"):
        train(stage_2(copy, tokenizer_folder, resume=True, caption_dropout=0.2))


def test_training_goes_on_from_an_earlier_result(model_folder, tokenizer_folder, tmp_path):
    tokenizer = train(stage_1(tmp_path / "tokenizer", init_from=str(tokenizer_folder), max_steps=1,
                              image_size=None, patch_size=None, hidden_sizes=None, codebook_sizes=None))  # fmt: skip
    model = train(stage_2(tmp_path / "model", tokenizer_folder, init_from=str(model_folder), max_steps=1,
                          text_vocab_size=train_lm.LanguageModelOptions.text_vocab_size))  # fmt: skip
    for ours, start in ((tokenizer, tokenizer_folder), (model / "lm", model_folder / "lm")):
        ours, start = weights(ours), weights(start)
        moved = [float((ours[name] - start[name]).abs().mean() / start[name].abs().mean().clamp(min=1e-3))
                 for name in ours if name.endswith("weight")]  # fmt: skip
        assert 0 < np.median(moved) < 0.3, "near where it started, not another random start"
    with pytest.raises(ValueError, match="--init_from .* fixes --image_size: leave them out"):
        train(stage_1(tmp_path / "other", init_from=str(tokenizer_folder), image_size=32, patch_size=None,
                      hidden_sizes=None, codebook_sizes=None))  # fmt: skip


# The real commands, on a folder of one's own


def test_commands_on_ones_own_pictures(tmp_path):
    """Killed by SIGKILL and resumed in stage 1; then stage 2 as the README starts it; then a grid."""
    pictures = own_pictures(tmp_path / "discs")
    options = stage_1(tmp_path / "tokenizer", dataset=str(pictures), max_examples=None, max_steps=60)
    first = [sys.executable, "scripts/train_tokenizer.py", *flags(options)]
    checkpoints, said = tmp_path / "tokenizer" / "checkpoints", tmp_path / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen(first, cwd=ROOT, env=environment(), stdout=file, stderr=file)
        while (
            not any(path.name.split("-")[1].isdigit() for path in checkpoints.glob("checkpoint-*"))
            and process.poll() is None
        ):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it ended before it was killed: {said.read_text()[-2000:]}"
    assert not (tmp_path / "tokenizer" / "model.safetensors").exists()
    said = command([*first, "--resume"])
    assert "resumed from step" in said and "next: accelerate launch scripts/train_lm.py" in said
    whole = train(replace(options, output_dir=str(tmp_path / "whole")))
    ours, theirs = weights(tmp_path / "tokenizer"), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    model = tmp_path / "model"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no", "--cpu"]  # fmt: skip
    options = stage_2(model, tmp_path / "tokenizer", dataset=str(pictures), max_examples=None)
    said = command([*launcher, "scripts/train_lm.py", *flags(options)])
    assert "38 pictures of 8 tokens" in said and "next: python scripts/generate.py" in said
    cache = TokenCache(model / "token_cache" / "train")
    assert len(cache.texts(0)) == 2 and cache.texts(0)[0].endswith(" disc")
    grid = tmp_path / "grid.png"
    command(
        [
            sys.executable,
            "scripts/generate.py",
            "--model",
            str(model),
            "a red disc",
            "--seed",
            "1",
            "--output",
            str(grid),
        ]
    )
    assert Image.open(grid).size[0] > 4 * 16


def flags(options: train_tokenizer.ImageTokenizerOptions | train_lm.LanguageModelOptions) -> list[str]:
    words: list[str] = []
    for name, value in vars(options).items():
        if value is None or value is False or value == []:
            continue
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(words: list[str]) -> str:
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_whole_way_with_levels(tmp_path):
    """Two levels of different kinds: trained, encoded, learned, drawn; and --init_from knows them again."""
    levels = dict(num_levels=2, quantizer="ema,finite_scalar", codebook_sizes=[16, 240])
    tokenizer = train(stage_1(tmp_path / "tokenizer", max_steps=2, **levels))
    model = train(stage_2(tmp_path / "model", tokenizer, max_steps=2))
    pipe = TextToImagePipeline.from_pretrained(model)
    assert pipe.vocabulary.tokens_per_image == 1 + 4 and pipe.vocabulary.num_codes == 16 + 240
    assert pipe("a dog", seed=0).images[0].size == (16, 16)
    again = stage_1(tmp_path / "again", init_from=str(tokenizer), max_steps=1, revival_threshold=0.2, **levels)
    assert load_tokenizer(train(again)).config.quantizer_options["revival_threshold"] == 0.2
    for change, name in (({"quantizer": "ema,ema"}, "quantizer"), ({"shared_codebook": True}, "shared_codebook")):
        with pytest.raises(ValueError, match=f"fixes --{name}: leave them out"):
            train(replace(again, output_dir=str(tmp_path / "other"), **change))


def test_pictures_without_captions(tokenizer_folder, tmp_path):
    """Stage 1 needs none; stage 2 says how to go on without, and does."""
    pictures = own_pictures(tmp_path / "plain", captions=False)
    train(stage_1(tmp_path / "tokenizer", dataset=str(pictures), max_examples=None, max_steps=1))
    options = stage_2(tmp_path / "model", tokenizer_folder, dataset=str(pictures), max_examples=None, max_steps=1)
    with pytest.raises(ValueError, match="has no captions.*--caption_column.*--unconditional"):
        train(options)
    model = train(replace(options, unconditional=True))
    assert len(TextToImagePipeline.from_pretrained(model)(None, seed=0).images) == 1
    with pytest.raises(ValueError, match="has learned no captions.*--image_tokenizer .*image_tokenizer"):
        evaluate.main(EvaluationOptions(model=str(model), output=str(tmp_path / "report.json")))


def test_flips_do_not_depend_on_the_number_of_processes(tmp_path):
    """Half of the pictures are mirrored, whoever works on them."""
    pictures = np.arange(64 * 2 * 3, dtype=np.uint8).reshape(64, 1, 2, 3)

    class Pictures:
        def __len__(self) -> int:
            return 64

        def batch(self, rows: np.ndarray) -> np.ndarray:
            return pictures[rows]

    def batches(world: int) -> list[list]:
        options = stage_1(tmp_path, random_flip=True)
        ranks = [SimpleNamespace(num_processes=world, process_index=rank) for rank in range(world)]
        streams = [training_batches(Pictures(), options, 0, rank) for rank in ranks]
        return [sorted(picture.tolist() for stream in streams for picture in next(stream).pictures) for _ in range(8)]

    alone = batches(1)
    assert alone == batches(2) == batches(4)
    assert 0.3 < np.mean([picture[0][0][0] > picture[0][0][2] for batch in alone for picture in batch]) < 0.7


def test_ranks_share_a_batch_and_each_epoch_flips_and_orders_anew(tmp_path):
    class Pictures:
        def __len__(self) -> int:
            return 64

        def batch(self, rows: np.ndarray) -> np.ndarray:
            pixels = np.zeros((len(rows), 1, 1, 2), np.uint8)
            pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = rows, 255
            return pixels

    def epochs(rank: int) -> list[dict[int, bool]]:
        """Of two epochs: {row: whether it was mirrored}, in order."""
        processes = SimpleNamespace(num_processes=2, process_index=rank)
        stream = training_batches(Pictures(), stage_1(tmp_path, random_flip=True), 0, processes)
        seen = []
        for _ in range(2):
            pairs = [pair for _ in range(4) for pair in next(stream).pictures[:, 0, 0].tolist()]
            seen.append({min(pair): pair[0] == 255 for pair in pairs})
        return seen

    first, second = epochs(0), epochs(1)
    for mine, others in zip(first, second, strict=True):
        assert len(mine) == len(others) == 32 and not mine.keys() & others.keys(), "each row once, in one process"
    flips = [{**mine, **others} for mine, others in zip(first, second, strict=True)]
    assert sum(flips[0][row] != flips[1][row] for row in range(64)) > 16, "other flips in another epoch"
    assert list(first[0]) != list(first[1]), "and another order"


def test_stage_1_trains_on_the_pictures_of_documents(tmp_path, capsys):
    pictures = own_pictures(tmp_path / "discs")
    lines = [
        [{"text": f"number {n}"}, {"image": f"{n:03d}.png"}, {"image": f"{n + 1:03d}.png"}] for n in range(0, 40, 2)
    ]
    (pictures / "documents.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    folder = train(stage_1(tmp_path / "tokenizer", dataset=str(pictures), max_steps=1, max_examples=None))
    assert load_tokenizer(folder).tokens_per_image == TOKENS and "38 training pictures" in capsys.readouterr().out


def documents(folder: Path, count: int = 30) -> Path:
    """Each a text, a disc, another text, and a wide picture of two."""
    own_pictures(folder / "images", count, captions=False)
    lines = []
    for number in range(count):
        disc = f"images/{number:03d}.png"
        pair = f"images/pair{number:03d}.png"
        with Image.open(folder / disc) as image:
            wide = Image.new("RGB", (48, 20))
            wide.paste(image, (0, 0))
            wide.paste(image, (24, 0))
            wide.save(folder / pair)
        texts = [{"text": f"here is disc {number}"}, {"text": "and here are two of them"}]
        lines.append(json.dumps({"parts": [texts[0], {"image": disc}, texts[1], {"image": pair}]}))
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("changes", [{}, {"pack_length": 160}], ids=["padded", "packed"])
def test_documents_of_two_sizes(tokenizer_folder, tmp_path, capsys, monkeypatch, changes):
    """The chain on interleaved rows, resumed in the middle, and what it leaves goes on from texts and pictures."""
    settings = {"dataset": str(documents(tmp_path / "data")), "image_sizes": ["16x16", "16x32"], "batch_size": 2,
                "token_cache": str(tmp_path / "cache"), "max_length": 120, **changes}  # fmt: skip
    folder = train(stage_2(tmp_path / "model", tokenizer_folder, **settings))
    said = capsys.readouterr().out
    assert "interleaved rows are learned as document, of up to 120 tokens" in said
    assert "nats_per_text_token" in said and "nats_per_code" in said
    pipe = InterleavedPipeline.from_pretrained(folder)
    assert pipe.vocabulary.formats == ["document"] and list(pipe.vocabulary.layouts) == [(16, 16), (16, 32)]
    with Image.open(tmp_path / "data" / "images" / "pair000.png") as image:
        parts = pipe(["here is disc 3", image], max_new_tokens=40, seed=0).parts
    assert parts and all(isinstance(part, (str, Image.Image)) for part in parts)
    interrupt_after(monkeypatch, step=5)
    with pytest.raises(Killed):
        train(stage_2(tmp_path / "killed", tokenizer_folder, **settings))
    monkeypatch.undo()
    resumed = train(stage_2(tmp_path / "killed", tokenizer_folder, resume=True, **settings))
    assert_equal_runs(resumed, folder, "lm/")


def test_one_model_draws_several_sizes(tokenizer_folder, tmp_path):
    options = stage_2(tmp_path / "model", tokenizer_folder, image_sizes=["16x16", "8x24"],
                      formats=["caption_to_image=3", "image_and_caption=1"], caption_dropout=None)  # fmt: skip
    pipe = TextToImagePipeline.from_pretrained(train(options))
    assert (
        pipe.vocabulary.formats == ["caption_to_image", "image_and_caption"] and pipe.vocabulary.default_guidance == 2
    )
    assert pipe("a red dog", height=8).images[0].size == (24, 8) and pipe(None, width=16).images[0].size == (16, 16)
    cached = TokenCache(tmp_path / "model" / "token_cache" / "train")
    assert {cached.image_sizes(row)[0] for row in range(len(cached))} == {(16, 16)}, "sprites are square"
    other = stage_2(tmp_path / "other", tokenizer_folder, image_sizes=["16x16", "24x8"],
                    token_cache=str(tmp_path / "model" / "token_cache"))  # fmt: skip
    with pytest.raises(ValueError, match="image_sizes|sizes"):
        train(other)


def test_a_remote_cache_trains_what_a_local_one_trains(model_folder, tokenizer_folder, tmp_path):
    address = f"file://{model_folder}/token_cache"
    folder = train(stage_2(tmp_path / "model", tokenizer_folder, token_cache=address))
    assert_equal_runs(folder, model_folder, "lm/")
    assert not (folder / "token_cache").exists()
    with pytest.raises(ValueError, match="not a .whole. token cache.*nothing is written to remote.*cache_tokens.py"):
        train(stage_2(tmp_path / "none", tokenizer_folder, token_cache=f"file://{tmp_path}/none"))


def test_a_few_pictures_some_without_captions(tokenizer_folder, tmp_path, capsys):
    pictures = own_pictures(tmp_path / "few", count=20)
    for file in sorted(pictures.glob("*.txt"))[::2]:
        file.unlink()
    options = stage_2(tmp_path / "model", tokenizer_folder, dataset=str(pictures), max_examples=None, max_steps=2)
    model = train(replace(options, batch_size=8))
    assert (model / "samples" / "step-000002.png").is_file()
    rows = len(TokenCache(model / "token_cache" / "train"))
    bare = TokenCache(model / "token_cache" / "train").count(False, True)
    assert 0 < bare < rows
    assert f"formats: caption_to_image=1; {bare} rows without a caption are learned as image" in capsys.readouterr().out


# Bad input


def test_commands_end_with_one_sentence(tmp_path, monkeypatch, capsys):
    for script, words, message in (
        ("train_lm.py", ["--image_tokenizer", str(tmp_path / "none")], "there is no image tokenizer folder"),
        ("train_tokenizer.py", ["--dataset", str(tmp_path / "none")], "does not exist"),
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
        words = ["--output_dir", str(tmp_path / "run"), "--num_workers", "0", "--cpu_threads", "1", *words]
        monkeypatch.setattr(sys, "argv", [script, *words])
        with pytest.raises(SystemExit, match=rf"{script}: .*{message}") as caught:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        assert "\n" not in str(caught.value.code) and not (tmp_path / "run" / "run.json").exists()


def test_no_tokenizer(tmp_path):
    with pytest.raises(
        ValueError, match="no image tokenizer folder .*none: give the --output_dir of scripts/train_tok"
    ):
        train(stage_2(tmp_path / "model", tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is not an image tokenizer"):
        train(stage_2(tmp_path / "model", tmp_path / "empty"))
    assert not (tmp_path / "model").exists()


def test_output_folders_that_hold_another_run(tokenizer_folder, model_folder):
    for options in (stage_1(tokenizer_folder), stage_2(model_folder, tokenizer_folder),
                    stage_2(tokenizer_folder, tokenizer_folder)):  # fmt: skip
        before = sorted(Path(options.output_dir).rglob("*"))
        with pytest.raises(ValueError, match=f"{options.output_dir} already holds a run: pass --resume .*--overwrite"):
            train(options)
        assert sorted(Path(options.output_dir).rglob("*")) == before


def test_a_run_of_the_other_stage_cannot_be_resumed(tokenizer_folder):
    with pytest.raises(ValueError, match="holds a run of another command"):
        train(stage_2(tokenizer_folder, tokenizer_folder, resume=True))


def test_a_mistake_does_not_cost_the_run_that_is_overwritten(tokenizer_folder, tmp_path):
    copy = Path(shutil.copytree(tokenizer_folder, tmp_path / "copy"))
    before = sorted(copy.rglob("*"))
    for changes in ({"dataset": str(tmp_path / "none")}, {"image_size": 18}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError):
            train(stage_1(copy, overwrite=True, **changes))
    assert sorted(copy.rglob("*")) == before


def test_a_cache_of_another_tokenizer_or_data_set(model_folder, tokenizer_folder, tmp_path):
    cache = str(model_folder / "token_cache")
    other = train(stage_1(tmp_path / "tokenizer", seed=1, max_steps=1))
    with pytest.raises(ValueError, match="belongs to another image tokenizer.*--token_cache"):
        train(stage_2(tmp_path / "model", other, token_cache=cache))
    pictures = own_pictures(tmp_path / "discs")
    with pytest.raises(ValueError, match="built from --dataset sprites, not .*discs.*--token_cache"):
        train(stage_2(tmp_path / "model", tokenizer_folder, token_cache=cache, dataset=str(pictures)))
    reused = train(stage_2(tmp_path / "model", tokenizer_folder, token_cache=cache, max_steps=1))
    assert not (reused / "token_cache").exists()


def test_data_sets_that_are_none(tokenizer_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for dataset, message in (("none", "does not exist"), ("empty", "holds no pictures: the folder is empty")):
        for options in (stage_1(tmp_path / "run"), stage_2(tmp_path / "run", tokenizer_folder)):
            with pytest.raises(ValueError, match=f"{dataset}.*{message}"):
                train(replace(options, dataset=str(tmp_path / dataset)))
    pictures = own_pictures(tmp_path / "discs", count=10)
    for number in (2, 4, 5):  # none of them is the one that is kept for validation
        (pictures / f"{number:03d}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read.*(?s:.*)--max_unreadable_share"):
        train(stage_1(tmp_path / "run", dataset=str(pictures), batch_size=4))
    train(stage_1(tmp_path / "run", dataset=str(pictures), batch_size=4, max_unreadable_share=0.5, max_steps=1))


@pytest.mark.parametrize("changes, message", [
    ({"image_size": 18}, "18x18 is not a multiple of the tokenizer's downsampling, 8; choose a multiple of 8"),
    ({"batch_size": 65}, "--batch_size 65 .*at most the number of training pictures, 64"),
    ({"max_minutes": 1.0}, "--max_steps 6 and --max_minutes 1.0: give one of the two"),
])  # fmt: skip
def test_stage_1_settings_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(stage_1(tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "run.json").exists(), "before training where a check of settings can tell"


@pytest.mark.parametrize("changes, message", [
    ({"batch_size": 65}, "batch_size 65 is larger than the data set, 64 rows"),
    ({"formats": ["caption"]}, "--formats: unknown sequence format 'caption': choose among caption_to_image"),
    ({"formats": ["image=0", "text=0"]}, "--formats: the weights of the sequence formats sum to nothing"),
    ({"formats": ["image=-1"]}, "--formats: sequence format image has weight -1.0"),
    ({"formats": ["text"], "unconditional": True}, "--unconditional and --formats text exclude each other"),
    ({"text_loss_weight": 2.0}, "--text_loss_weight 2 has no effect: --formats caption_to_image learns only image"),
    ({"image_loss_weight": 0.0}, "--image_loss_weight 0.0 must be above zero"),
    ({"num_heads": 5}, "--hidden_size 32 is not a multiple of --num_heads 5"),
    ({"gradient_accumulation_steps": 3}, "batch_size 16 is not a multiple of 3"),
])  # fmt: skip
def test_stage_2_settings_that_cannot_be(tokenizer_folder, model_folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(stage_2(tmp_path / "run", tokenizer_folder, token_cache=str(model_folder / "token_cache"), **changes))
    assert not (tmp_path / "run" / "run.json").exists(), "before training where a check of settings can tell"


def test_a_learning_rate_that_breaks_the_loss(tokenizer_folder, model_folder, tmp_path, monkeypatch):
    """Both stages stop, keep the last good checkpoint, and the way out that they name works."""
    cache = str(model_folder / "token_cache")
    for options in (stage_1(tmp_path / "tokenizer"), stage_2(tmp_path / "model", tokenizer_folder, token_cache=cache)):
        original = Loop.finish_step

        def finish_step(self, *args, original=original, **kwargs):
            original(self, *args, **kwargs)
            if self.progress.step == 4:  # as a step that was far too large leaves it
                with torch.no_grad():
                    next(self.state.model.parameters()).fill_(float("nan"))

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "finish_step", finish_step)
            message = "(?s:.*)at step .: stopped. The last good checkpoint is in .*lower --learning_rate .*and --resume"
            with pytest.raises(ValueError, match=message):
                train(options)
        names = {path.name for path in (Path(options.output_dir) / "checkpoints").iterdir()} - {"best"}
        assert names == {"checkpoint-3"}
        train(replace(options, learning_rate=5e-4, muon_learning_rate=1e-3, resume=True))
        assert json.loads((Path(options.output_dir) / "run.json").read_text())["finished"]


def test_a_run_whose_folder_is_removed_writes_a_checkpoint_and_ends(
    tokenizer_folder, model_folder, tmp_path, monkeypatch
):
    cache = str(model_folder / "token_cache")
    for options in (stage_1(tmp_path / "tokenizer"), stage_2(tmp_path / "model", tokenizer_folder, token_cache=cache)):
        whole, original = train(replace(options, output_dir=f"{options.output_dir}-whole")), Loop.finish_step

        def finish_step(self, *args, original=original, **kwargs):
            if self.progress.step == 2:
                shutil.rmtree(self.run.folder)
            original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "finish_step", finish_step)
            with pytest.raises(ValueError, match="was removed .* stopped after step 3; .* --resume goes on from it"):
                train(options)
        resumed = train(replace(options, resume=True))
        part = "lm" if (whole / "lm").is_dir() else "."
        assert all(torch.equal(weights(resumed / part)[name], value) for name, value in weights(whole / part).items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file that is always full")
def test_a_disk_that_has_no_room_for_figures_or_for_the_model(tokenizer_folder, model_folder, tmp_path, monkeypatch):
    """One error names the file, and the run goes on from the very step."""
    cache = str(model_folder / "token_cache")
    for options in (stage_1(tmp_path / "tokenizer"), stage_2(tmp_path / "model", tokenizer_folder, token_cache=cache)):
        folder, original = Path(options.output_dir), Loop.finish_step
        whole = train(replace(options, output_dir=f"{folder}-whole"))
        part = "lm" if (whole / "lm").is_dir() else "."

        def finish_step(self, *args, original=original, folder=folder, **kwargs):
            if self.progress.step == 2:
                (folder / "metrics.jsonl").symlink_to("/dev/full")
            original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "finish_step", finish_step)
            with pytest.raises(OSError, match=r"metrics.jsonl could not be written \(.*No space left on device\): "
                               "stopped after step 3, checkpoint written; .*--resume"):  # fmt: skip
                train(options)
        (folder / "metrics.jsonl").unlink()
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "config.json").symlink_to("/dev/full")
        with pytest.raises(OSError, match=f"{folder.name} could not be written .*: stopped after step 6, checkpoint"):
            train(replace(options, resume=True))
        (folder / part / "config.json").unlink()
        resumed = train(replace(options, resume=True))
        assert all(torch.equal(weights(resumed / part)[name], value) for name, value in weights(whole / part).items())


def test_pictures_that_are_removed_while_a_run_reads_them(tmp_path, monkeypatch):
    """Where they are too many for the pixel cache, a run reads them as it goes."""
    monkeypatch.setattr(pixel_cache, "_fits", lambda *_: False)
    pictures = own_pictures(tmp_path / "discs")
    options = stage_1(tmp_path / "run", dataset=str(pictures), max_examples=None, max_steps=20, checkpoint_every=0)
    original = Loop.finish_step

    def finish_step(self, *args, **kwargs):
        if self.progress.step == 2:
            pictures.rename(tmp_path / "elsewhere")
        original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "finish_step", finish_step)
        with pytest.raises(OSError, match="no such file: .*discs.*: stopped after step .* checkpoint written"):
            train(options)
    (tmp_path / "elsewhere").rename(pictures)
    steps = [int(path.name.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(steps) == 1 and 3 <= steps[0] < 20
    assert json.loads((train(replace(options, resume=True)) / "run.json").read_text())["steps"] == 20


def test_stage_1_that_diverges_before_a_validation_names_the_way_out(tmp_path, monkeypatch):
    """The codebook is fitted before each validation, where latents that are not finite are met first."""
    original = Loop.finish_step

    def finish_step(self, *args, **kwargs):
        with torch.no_grad():
            next(self.state.model.parameters()).fill_(float("nan"))
        original(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "finish_step", finish_step)
    for name, every in (("validation", {"validate_every": 1}), ("sample", {"validate_every": 0, "sample_every": 1})):
        with pytest.raises(ValueError, match="latents with NaN or infinity at step 1: stopped.*lower --learning_rate"):
            train(stage_1(tmp_path / name, ema_decay=0.0, **every))


def test_stage_1_fits_the_codebook_once_for_a_validation_and_its_sample(tmp_path, monkeypatch):
    fitted: list[int] = []
    original = image_tokenizer.refit
    monkeypatch.setattr(image_tokenizer, "refit", lambda *args: (fitted.append(len(args)), original(*args)))
    folder = train(stage_1(tmp_path / "run", max_steps=4, max_minutes=None, validate_every=2, sample_every=2))
    assert len(fitted) == 3, "two validations and the end"
    assert {path.name for path in (folder / "samples").iterdir()} >= {"step-000002.png", "step-000004.png", "final.png"}


# Options of the two commands


def built(options: ImageTokenizerOptions) -> VQVAE:
    """The tokenizer that the options give, for drawings."""
    return load_earlier(options) if options.init_from else VQVAE(options.configuration(photographs=False))


def test_every_option_of_stage_1_is_applied_or_refused_beside_init_from(tokenizer_folder, tmp_path):
    """An option that --init_from cannot follow is named; none is ignored."""
    changes = dict(
        image_size=32, num_channels=1, resize="squash", patch_size=8, network="mlp", hidden_sizes=[8, 8], num_levels=2,
        codebook_sizes=[8, 8], quantizer="ema", encoder_kernel_size=3, num_res_blocks=3, code_dim=5,
        sixteen_bit="data",
        shared_codebook=True, num_groups=3, codebook_dim=3, level_dropout=0.3, commitment_weight=0.5,
        depth_dropout=0.3,
        codebook_decay=0.9, revival_threshold=0.2, kmeans_start=False, rotation_trick=True, code_temperature=0.5,
        entropy_weight=0.2, resampling="overlapping",
    )  # fmt: skip
    own = {field.name for field in fields(ImageTokenizerOptions)} - {field.name for field in fields(TrainingOptions)}
    losses = {field.name for field in fields(LossOptions)} | {field.name for field in fields(BottleneckOptions)}
    others = {"random_flip", "photographs", "train", "decoder_share", "codes_from", "drawn_pictures"}
    of_signals = {
        "signal": "audio", "sample_rate": 8000, "length": 8000, "horizon": 8, "causal": True, "spectral_weight": 0.2,
        "frame_patch": 2,
    }  # fmt: skip
    for name, value in of_signals.items():  # of a tokenizer of pictures
        with pytest.raises(ValueError, match=f"--{name}"):
            built(ImageTokenizerOptions(init_from=str(tokenizer_folder), **{name: value}))
    assert own == changes.keys() | of_signals.keys() | losses | others, (
        "which concern batches, losses and other bottlenecks alone"
    )
    applied = {
        "level_dropout": ("level_dropout", 0.3), "commitment_weight": ("commitment_weight", 0.5),
        "codebook_decay": ("ema_decay", 0.9), "revival_threshold": ("revival_threshold", 0.2),
        "kmeans_start": ("kmeans_start", False), "rotation_trick": ("rotation_trick", True),
        "code_temperature": ("temperature", 0.5), "depth_dropout": ("depth_dropout", 0.3),
    }  # fmt: skip
    for name, value in changes.items():
        options = ImageTokenizerOptions(init_from=str(tokenizer_folder), **{name: value})
        if name in applied:
            config = built(options).config
            inner, expected = applied[name]
            assert {**config.to_dict(), **config.quantizer_options}[inner] == expected, name
        else:
            with pytest.raises(ValueError, match=name if name == "entropy_weight" else f"fixes --{name}: leave"):
                built(options)


def test_sizes_of_ones_own_keep_the_codebooks_of_the_picture_size():
    config = built(ImageTokenizerOptions(patch_size=4, hidden_sizes=[8, 16])).config
    assert config.codebook_sizes == [512, 512] and config.hidden_sizes == [8, 16]
    config = built(ImageTokenizerOptions(image_size=50, patch_size=5, hidden_sizes=[8, 16])).config
    assert config.image_size == 50, "a size that no preset's downsampling divides"


def test_earlier_models_go_on_in_float32(tokenizer_folder, model_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)
    TextToImagePipeline.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    options = stage_2(tmp_path / "out", tokenizer_folder, init_from=str(tmp_path / "model"), **RESET)
    model, _ = build_parts(options, tokenizer, TokenCache(model_folder / "token_cache" / "train"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokenizer.bfloat16().save_pretrained(tmp_path / "tokenizer")
    earlier = built(ImageTokenizerOptions(init_from=str(tmp_path / "tokenizer")))
    assert {parameter.dtype for parameter in earlier.parameters()} == {torch.float32}


RESET = dict(architecture="llama", num_layers=None, hidden_size=None, intermediate_size=None, num_heads=None,
             text_vocab_size=4096)  # fmt: skip


def test_stage_2_takes_the_image_size_of_its_tokenizer(tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)
    check_parts(stage_2(tmp_path, tokenizer_folder, image_size=16), tokenizer)
    check_parts(stage_2(tmp_path, tokenizer_folder, image_size=32, image_sizes=["16x16", "32x32"][1:]), tokenizer)
    with pytest.raises(ValueError, match="--image_size 32: the image tokenizer .* encodes 16x16 pictures; leave"):
        check_parts(stage_2(tmp_path, tokenizer_folder, image_size=32), tokenizer)


def test_a_length_that_the_earlier_model_cannot_take_is_refused(tokenizer_folder, model_folder, tmp_path):
    own = shutil.copytree(model_folder, tmp_path / "model")
    tokenizer, vocabulary = load_tokenizer(tokenizer_folder), MultimodalVocabulary.from_pretrained(own / "lm")
    build_model(build_configuration(vocabulary, architecture="gpt2", max_positions=64)).save_pretrained(own / "lm")
    changes = dict(RESET, architecture="gpt2", max_length=5000)
    with pytest.raises(ValueError, match="--max_length 5000: --init_from .* takes at most 64 tokens; give no more"):
        check_parts(stage_2(tmp_path, tokenizer_folder, init_from=str(own), **changes), tokenizer)
    options = stage_2(tmp_path, tokenizer_folder, init_from=str(model_folder), max_length=5000, **RESET)
    check_parts(options, tokenizer)
    model, _ = build_parts(options, tokenizer, TokenCache(model_folder / "token_cache" / "train"))
    assert model.config.max_position_embeddings >= 5000, "rotary positions have no rows"


def test_validation_of_stage_1_measures_what_would_be_saved(tmp_path):
    """With the codebook fitted to the averaged weights: the last figures in training are those of the saved folder."""
    folder = train(stage_1(tmp_path / "tokenizer"))
    figures = {name: value for line in lines(folder) for name, value in line.items() if line["step"] == 6}
    for name in ("mse", "psnr", "usage", "perplexity"):
        assert figures[f"validation_{name}"] == pytest.approx(figures[f"final_{name}"], rel=1e-5), name


def test_deepspeed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="configured for DeepSpeed, which training does not support: .*fsdp2.yaml"):
        train(stage_1(tmp_path / "tokenizer"))


def test_processes_wait_as_long_as_they_are_told_to(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("pipelines.training.start.InitProcessGroupKwargs", lambda timeout: seen.append(timeout))
    monkeypatch.setattr("pipelines.training.start.Accelerator", lambda **settings: Accelerator(cpu=True))
    start_accelerator(TrainingOptions(output_dir=str(tmp_path), timeout_minutes=90, cpu_threads=1))
    assert [timeout.total_seconds() for timeout in seen] == [5400]
