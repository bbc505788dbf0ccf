"""Videos through the commands and the pipeline: trained, cached, drawn, written, measured."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from lm.data.token_cache import TokenCache
from pipelines import TextToImagePipeline, TextToSignalPipeline
from pipelines.evaluation.probes import video_probe
from pipelines.evaluation.probes.video_probe import QUESTIONS, read_videos, train_video_probe
from pipelines.model_card import model_card
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.text_to_signal import TextToSignalOutput
from tokenizer_image.signals.settings import SignalSettings, signal_settings_of
from tokenizer_image.signals.video_files import read_video

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import evaluate
import generate
import inspect_data
from test_pipelines_signals import cache_folder, train_both  # noqa: F401  # a fixture that every test here uses

SMALL = {
    "signal": "video", "length": 4, "image_size": 16, "frame_patch": 2, "patch_size": 4, "hidden_sizes": [8, 8],
    "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [16, 16], "max_examples": 24, "batch_size": 8, "max_steps": 4,
    "cpu_threads": 1, "validate_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with tokenizer/ and model/, of moving sprites, trained for a few steps by the commands."""
    return train_both(tmp_path_factory.mktemp("videos"), SMALL)


def test_the_language_model_writes_the_codes_of_videos(trained):
    cache = TokenCache(trained / "model" / "token_cache" / "train")
    assert len(cache) == 24 and cache.image_sizes(0) == [(64, 16)] and len(cache.codes(0)) == 2 * 2 * 2 * 2
    pipe = TextToSignalPipeline.from_pretrained(trained / "model")
    drawn = pipe("a red dog moves to the right", num_signals_per_prompt=2, seed=3)
    assert drawn.frames.shape == (2, 4, 16, 16, 3) and drawn.frames.dtype == np.uint8
    assert torch.equal(pipe("a red dog moves to the right", seed=3).codes[0], drawn.codes[0])
    sheet = np.asarray(drawn.images[0])
    assert np.array_equal(sheet, np.concatenate(list(drawn.frames[0]), axis=1))  # the frames in a row
    with pytest.raises(ValueError, match="this model draws video: read the output's .frames"):
        _ = drawn.audio
    with pytest.raises(ValueError, match="this model draws audio: read the output's .audio"):
        _ = TextToSignalOutput(torch.zeros(1, 1, 8), drawn.codes, SignalSettings("audio", 8, 8000)).frames
    with pytest.raises(ValueError, match="draws video with horizon 0: it does not forecast"):
        pipe.forecast(np.zeros(4))


def test_the_tokenizer_says_what_it_has_learned(trained):
    config = json.loads((trained / "tokenizer" / "config.json").read_text())
    assert (config["signal"], config["num_frames"], config["frame_patch"], config["image_size"]) == ("video", 4, 2, 16)
    lines = [json.loads(line) for line in (trained / "tokenizer" / "metrics.jsonl").read_text().splitlines()]
    assert {"psnr", "final_psnr", "final_usage"} <= {name for line in lines for name in line}
    assert (trained / "tokenizer" / "samples" / "final.png").is_file()


def test_generate_writes_gif_files_and_a_sheet(trained, tmp_path):
    options = {"model": str(trained / "model"), "num_images_per_prompt": 2, "seed": 0}
    generate.main(generate.GenerateOptions(prompts=["a dog moves up"], output=str(tmp_path / "sheet.png"), **options))
    assert Image.open(tmp_path / "sheet.png").width > 2 * 4 * 16
    names = sorted(file.name for file in (tmp_path / "sheet").iterdir())
    assert names == ["000-a-dog-moves-up-0.gif", "000-a-dog-moves-up-1.gif"]
    video = read_video(tmp_path / "sheet" / names[0])
    assert video.frames.shape == (4, 16, 16, 3) and video.rate == pytest.approx(8, abs=0.4)


def test_evaluate_reads_what_captions_drew(trained, tmp_path, monkeypatch):
    options = evaluate.EvaluationOptions(
        model=str(trained / "model"), max_examples=4, num_captions=3, output=str(tmp_path / "r.json"), cpu_threads=1
    )
    quick = partial(train_video_probe, videos=64, epochs=1)
    monkeypatch.setattr(video_probe, "train_video_probe", quick)
    report = evaluate.main(options)
    assert "must read 95% of each of real videos right" in report["alignment"]["left_out"]
    assert [row["bits_per_frame"] for row in report["by_depth"]] == [8 * 4 / 4, 16 * 4 / 4]
    assert report["reconstruction"]["psnr"] > 0 and "opus" not in report
    monkeypatch.setattr(video_probe, "train_video_probe", partial(quick, required_accuracy=0.0))
    alignment = evaluate.main(options)["alignment"]
    monkeypatch.setattr(video_probe, "train_video_probe", quick)
    assert evaluate.main(options)["alignment"] == alignment  # the probe was kept
    assert set(alignment["probe_accuracy"]) == set(QUESTIONS)
    for split in ("validation", "held_out"):
        names = {*QUESTIONS, "right"}
        assert set(alignment[split]["interval"]) == names | {f"reconstructions_{name}" for name in names}
        assert alignment[split]["right"] <= min(alignment[split][name] for name in QUESTIONS)


def test_each_pipeline_refuses_the_other_kind_of_model(trained):
    with pytest.raises(ValueError, match="holds a TextToSignalPipeline.*load it by pipelines.TextToSignalPipeline"):
        TextToImagePipeline.from_pretrained(trained / "model")
    videos = TextToSignalPipeline.from_pretrained(trained / "model")
    with pytest.raises(ValueError, match="not for codes of video: use pipelines.TextToSignalPipeline"):
        TextToImagePipeline(videos.image_tokenizer, videos.model, videos.vocabulary)
    pictures = tiny_pipeline()
    with pytest.raises(ValueError, match="not for codes of pictures"):
        TextToSignalPipeline(pictures.image_tokenizer, pictures.model, pictures.vocabulary)


def test_options_of_videos():
    with pytest.raises(ValueError, match="--signal video has no use for --sample_rate"):
        ImageTokenizerOptions(signal="video", sample_rate=8000)
    with pytest.raises(ValueError, match="--frame_patch: for signals; give --signal"):
        ImageTokenizerOptions(frame_patch=2)
    with pytest.raises(ValueError, match="length=1.*a video has two frames or more"):
        ImageTokenizerOptions(signal="video", length=1)
    with pytest.raises(ValueError, match="number is one of|a multiple of"):
        ImageTokenizerOptions(signal="video", length=6, frame_patch=4)
    config = ImageTokenizerOptions(signal="video").configuration(photographs=False)
    assert config.example_size == (8 * 32, 32)


def test_a_probe_reads_frames_in_their_order():
    probe = train_video_probe(4, videos=8, epochs=1, required_accuracy=0.0)
    values = torch.rand(2, 3, 4 * 32, 32) * 2 - 1
    found = read_videos(probe, values)
    assert len(found) == 2 and all(one[name] in QUESTIONS[name] for one in found for name in QUESTIONS)
    channels = values.view(2, 3, 4, 32, 32).transpose(1, 2).flatten(1, 2)
    assert found == probe.read(channels)


def test_a_page_shows_frames_and_a_card_speaks_of_videos(trained, tmp_path):
    given = {"image_tokenizer": str(trained / "tokenizer"), "max_examples": 4, "output": str(tmp_path / "r.json")}
    evaluate.main(evaluate.EvaluationOptions(report=str(tmp_path / "page"), cpu_threads=1, **given))
    page = (tmp_path / "page" / "report.html").read_text()
    assert "Videos and their reconstructions" in page and "bits per frame" in page and "PSNR, dB" in page
    assert Image.open(tmp_path / "page" / "reconstructions.png").width > 4 * 16
    videos = TextToSignalPipeline.from_pretrained(trained / "model")
    settings = signal_settings_of(videos.image_tokenizer)
    card = model_card(videos.model, videos.vocabulary, "me/videos", signals=settings)
    assert "text-to-video" in card and "4 frames of 16x16" in card and ".frames[0]" in card


def test_a_folder_of_videos_is_looked_at_before_training(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(3):
        frames = [Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)) for _ in range(4 + number)]
        frames[0].save(tmp_path / f"{number}.gif", save_all=True, append_images=frames[1:], duration=125)
    sheet = str(tmp_path / "sheet.png")
    given = {"dataset": str(tmp_path), "length": 4, "image_size": 16, "output": sheet}
    options = inspect_data.InspectionOptions(signal="video", unconditional=True, **given)
    inspect_data.main(options)
    shown = capsys.readouterr().out
    assert "an example: 4 frames of 16x16 pixels" in shown and "have a rest that makes no example" in shown
    assert Image.open(sheet).width > 4 * 16
