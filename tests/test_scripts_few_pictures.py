"""A run on few pictures through the real command: it resumes exactly, and leaves the guidance that it has found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_tokenizer

from pipelines.options.language_model import LanguageModelOptions
from pipelines.training import guidance_search
from pipelines.training.loop import Loop
from scripts import train_lm


class Interrupted(BaseException):
    """Takes the place of SIGKILL."""


def test_a_run_on_few_pictures_resumes_exactly_and_leaves_its_guidance(tmp_path, monkeypatch, capsys):
    """Through the real command: dropout, noise, captions drawn at validation, the search at the end."""
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(guidance_search, "BUDGET_SHARE", 1.0)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 8)):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / split / f"{index}.png")
            (tmp_path / "pictures" / split / f"{index}.txt").write_text(f"{split} {index}")

    def run(name: str, resume: bool = False) -> Path:
        train_lm.main(
            LanguageModelOptions(
                dataset=str(tmp_path / "pictures"), image_tokenizer=str(tmp_path / "tokenizer"),
                output_dir=str(tmp_path / name), num_layers=1, hidden_size=16, num_heads=2, text_vocab_size=300,
                batch_size=10, max_steps=44, warmup_steps=2, validate_every=11, checkpoint_every=8, sample_every=0,
                log_every=1, cpu_threads=1, num_workers=0, mixed_precision="no", patience=0.0, resume=resume,
            )
        )  # fmt: skip
        return tmp_path / name

    whole = run("whole")
    said = capsys.readouterr().out
    assert "about 22 epochs of 20 pictures are expected: --dropout 0.1 --code_noise 0.1" in said
    assert "by default: of 31 captions, " in said and "% at 1.5" in said
    info = json.loads((whole / "run.json").read_text())
    assert info["recipe"] == {"epochs": 22.0, "dropout": 0.1, "code_noise": 0.1, "weight_decay": 0.3}
    assert info["best_step"] % 11 == 0
    assert {"drawn_right_held_out", "drawn_right_seen", "nats_per_code"} <= info["validation"].keys()

    def interrupt(loop: Loop, *args: torch.Tensor, **figures: torch.Tensor) -> None:
        finish_step(loop, *args, **figures)
        if loop.progress.step == 30:
            raise Interrupted

    finish_step = Loop.finish_step
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Loop, "finish_step", interrupt)
        run("killed")
    killed = run("killed", resume=True)
    for file in ("lm/model.safetensors", "lm/vocabulary.json"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    last = [load_file(folder / "checkpoints" / "checkpoint-44" / "state.safetensors") for folder in (whole, killed)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0] if not name.startswith("random/"))


def test_a_model_of_classes_gets_the_guidance_whose_pictures_are_nearest_to_real_ones(tmp_path, monkeypatch, capsys):
    """Through the real command: class folders, whose captions many pictures share."""
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(guidance_search, "BUDGET_SHARE", 1.0)
    monkeypatch.setattr(guidance_search, "LEAST_SHARED", 20)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for index in range(16):
            folder = tmp_path / "pictures" / split / ("cat", "dog")[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    train_lm.main(
        LanguageModelOptions(
            dataset=str(tmp_path / "pictures"), image_tokenizer=str(tmp_path / "tokenizer"),
            output_dir=str(tmp_path / "model"), num_layers=1, hidden_size=16, num_heads=2, text_vocab_size=300,
            batch_size=10, max_steps=22, warmup_steps=2, sample_every=0, cpu_threads=1, num_workers=0,
            mixed_precision="no", patience=0.0,
        )
    )  # fmt: skip
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("guidance "))
    assert "of 20 pictures, drawn for captions that several share" in line
    distances = {float(part.split(" at ")[1]): float(part.split()[-3]) for part in line.split(" is ")[1].split(", ")}
    assert list(distances) == [1.0, 1.5, 2.0, 3.0, 5.0, 8.0]
    vocabulary = json.loads((tmp_path / "model" / "lm" / "vocabulary.json").read_text())
    assert distances[vocabulary["default_guidance"]] == min(distances.values())
