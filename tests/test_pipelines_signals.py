"""Sounds through the commands and the pipeline: trained, cached, drawn, written, measured, resumed."""

from __future__ import annotations

import base64
import json
import re
import sys
import wave
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_pipeline, tiny_vocabulary

from lm.data.token_cache import TokenCache
from pipelines import ImageToTextPipeline, TextToImagePipeline, TextToSignalPipeline
from pipelines.caching.signal_cache import decode_signals
from pipelines.drawing.signal_panels import signal_panels
from pipelines.evaluation.probes import signal_captions
from pipelines.evaluation.probes.sound_probe import CLASSES, SoundProbe, halves_of, train_probe
from pipelines.evaluation.report.signal_page import signal_rows
from pipelines.hub_files import write_hub_files
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.language_model import LanguageModelOptions
from pipelines.text_to_signal import drawing_class
from pipelines.training.captions_drawn import CaptionedPicture, CaptionsDrawn, choose_captions
from pipelines.training.guidance_search import settle_defaults
from pipelines.training.sample_pictures import SamplePrompts, next_commands
from tokenizer_image.signals.drawn_sounds import EVENTS, DrawnSounds
from tokenizer_image.signals.folder_signals import SoundFiles
from tokenizer_image.signals.loading import load_signals
from tokenizer_image.signals.series_files import read_series, write_series
from tokenizer_image.signals.settings import SignalSettings
from tokenizer_image.signals.sound_files import write_sound

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import cache_tokens
import evaluate
import export_model
import generate
import inspect_data
import train_lm
import train_tokenizer
from test_tokenizer_signals import sound_tokenizer

SMALL = {
    "signal": "audio", "sample_rate": 8000, "length": 1600, "max_examples": 24, "batch_size": 8, "hidden_sizes": [8, 8],
    "patch_size": 20, "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [16, 16], "depth_dropout": 0.5,
    "max_steps": 4, "cpu_threads": 1, "validate_every": 2, "log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


STAGE_2 = {
    "batch_size": 8, "num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "max_steps": 3,
    "cpu_threads": 1, "text_vocab_size": 300,
}  # fmt: skip


def train_both(folder: Path, small: dict[str, Any]) -> Path:
    """Train tokenizer/ and model/ in a folder for a few steps, by the commands; the folder."""
    train_tokenizer.main(ImageTokenizerOptions(output_dir=str(folder / "tokenizer"), **small))
    given = {"image_tokenizer": str(folder / "tokenizer"), "output_dir": str(folder / "model"), "max_examples": 24}
    train_lm.main(LanguageModelOptions(**given, **STAGE_2))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with tokenizer/ and model/, of sounds, trained for a few steps by the commands."""
    return train_both(tmp_path_factory.mktemp("sounds"), SMALL)


SERIES = {
    "signal": "series", "length": 64, "horizon": 16, "max_examples": 24, "batch_size": 8, "hidden_sizes": [8, 8],
    "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [16, 16], "max_steps": 4, "cpu_threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained_series(tmp_path_factory) -> Path:
    """As `trained`, of series of two channels in files, one of them with a gap."""
    folder = tmp_path_factory.mktemp("series")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 4)):
        (folder / "data" / split).mkdir(parents=True)
        for number in range(count):
            values = 500 + 20 * np.sin(np.arange(64) / 4 + rng.random()) + rng.normal(size=(2, 64))
            file = folder / "data" / split / f"{number}.csv"
            write_series(file, values)
            file.with_suffix(".txt").write_text("a wave")
            if number == 1:
                lines = file.read_text().splitlines()
                lines[60] = "59,,500"
                file.write_text("\n".join(lines))
    data = str(folder / "data")
    train_tokenizer.main(ImageTokenizerOptions(dataset=data, output_dir=str(folder / "tokenizer"), **SERIES))
    train_lm.main(
        LanguageModelOptions(
            dataset=data,
            image_tokenizer=str(folder / "tokenizer"),
            output_dir=str(folder / "model"),
            **STAGE_2,
        )  # fmt: skip
    )
    return folder


def test_series_are_drawn_in_their_units_and_written_as_csv(trained_series, tmp_path):
    pipe = TextToSignalPipeline.from_pretrained(trained_series / "model")
    settings = pipe.settings
    assert settings.num_channels == 2 and settings.context == 48
    assert all(490 < value < 510 for value in settings.location) and all(10 < value < 20 for value in settings.scale)
    drawn = pipe("a wave", num_signals_per_prompt=2, seed=0)
    assert drawn.series.shape == (2, 2, 64)
    assert np.allclose((drawn.series - 500) / 14, drawn.values.numpy(), atol=1.5)
    with pytest.raises(ValueError, match="read the output's .series"):
        _ = drawn.audio
    options = {"model": str(trained_series / "model"), "num_images_per_prompt": 1, "seed": 0}
    generate.main(generate.GenerateOptions(prompts=["a wave"], output=str(tmp_path / "out"), **options))
    assert np.allclose(read_series(tmp_path / "out" / "000-a-wave-0.csv"), drawn.series[0])


def test_forecasts_keep_the_past_and_come_in_its_units(trained_series, tmp_path):
    pipe = TextToSignalPipeline.from_pretrained(trained_series / "model")
    past = 1e6 + 1e3 * np.sin(np.arange(200) / 4) * np.ones((2, 1))
    forecast = pipe.forecast(past, num_samples=8, seed=1)
    assert forecast.samples.shape == (8, 2, 16) and np.abs(forecast.median - 1e6).max() < 1e4
    low, high = forecast.interval(0.8)
    assert (low <= forecast.median).all() and (forecast.median <= high).all() and (low < high).any()
    again = pipe.forecast(past[:, -48:], num_samples=8, seed=1)  # what is further back does not matter
    assert np.array_equal(again.samples, forecast.samples)
    past[:, -3:] = np.nan
    assert np.isfinite(pipe.forecast(past, num_samples=2).samples).all()
    with pytest.raises(ValueError, match="have 2 channels"):
        pipe.forecast(past[:1])
    with pytest.raises(ValueError, match="past without values"):
        pipe.forecast(past * np.nan)
    with pytest.raises(ValueError, match="does not forecast"):
        sound_pipeline().forecast(past)
    report = evaluate.main(
        evaluate.EvaluationOptions(
            model=str(trained_series / "model"),
            dataset=str(trained_series / "data"),
            num_captions=3,
            cpu_threads=1,
            output=str(tmp_path / "report.json"),
        )  # fmt: skip
    )
    assert report["forecast"]["n"] == 3 and report["forecast"]["steps"] == 16
    assert report["forecast"]["mae_over_naive"] > 0 and 0 <= report["forecast"]["coverage_80"] <= 1
    assert report["reconstruction"]["bits_per_step"] == 1.0 and "opus" not in report


def sound_pipeline(**settings: Any) -> TextToSignalPipeline:
    tokenizer = sound_tokenizer()
    vocabulary = tiny_vocabulary(tokenizer, sizes=[(1, 320)])
    return TextToSignalPipeline(tokenizer, tiny_model(vocabulary, **settings), vocabulary)


def test_the_tokenizer_learns_sounds_and_resumes_to_the_last_bit(trained, tmp_path):
    options = {**SMALL, "output_dir": str(tmp_path)}
    train_tokenizer.main(ImageTokenizerOptions(**{**options, "max_steps": 2}, checkpoint_every=2))
    train_tokenizer.main(ImageTokenizerOptions(**options, resume=True, allow_changes=True))
    lines = [json.loads(line) for line in (trained / "tokenizer" / "metrics.jsonl").read_text().splitlines()]
    figures = {name for line in lines for name in line}
    assert {"snr", "spectral", "share_spectral", "final_snr", "final_usage"} <= figures and "psnr" not in figures
    assert (trained / "tokenizer" / "samples" / "final.png").is_file()
    config = json.loads((trained / "tokenizer" / "config.json").read_text())
    assert config["signal"] == "audio" and config["preprocessing"]["rate"] == 8000
    assert config["quantizer_options"]["depth_dropout"] == 0.5


def test_a_trained_tokenizer_goes_on_with_sounds_alone(trained, tmp_path):
    options = {name: SMALL[name] for name in ("max_examples", "batch_size", "cpu_threads")}
    options |= {"init_from": str(trained / "tokenizer"), "output_dir": str(tmp_path), "max_steps": 1}
    with pytest.raises(ValueError, match="has codes of audio: give --signal audio"):
        train_tokenizer.main(ImageTokenizerOptions(**options))
    with pytest.raises(ValueError, match="fixes --length"):
        train_tokenizer.main(ImageTokenizerOptions(**options, signal="audio", length=800))
    train_tokenizer.main(ImageTokenizerOptions(**options, signal="audio"))
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 1600


def test_token_caches_of_sounds_are_written_by_their_own_command(trained, tmp_path):
    options = {"image_tokenizer": str(trained / "tokenizer"), "token_cache": str(tmp_path), "max_examples": 24}
    cache_tokens.main(cache_tokens.Options(**options, cpu_threads=1, splits=["train"]))
    ours, other = TokenCache(tmp_path / "train"), TokenCache(trained / "model" / "token_cache" / "train")
    assert len(ours) == 24 and all(np.array_equal(ours.codes(row), other.codes(row)) for row in range(24))
    assert ours.texts(0) == other.texts(0) and ours.image_sizes(0) == [(1, 1600)]
    with pytest.raises(ValueError, match="--crops concern pictures"):
        cache_tokens.main(cache_tokens.Options(**options, crops=1))


def test_the_language_model_writes_the_codes_of_sounds(trained):
    assert drawing_class(trained / "model") is TextToSignalPipeline
    pipe = TextToSignalPipeline.from_pretrained(trained / "model")
    drawn = pipe("a low rising tone", num_signals_per_prompt=2, seed=3)
    assert drawn.audio.shape == (2, 1600) and np.abs(drawn.audio).max() <= 1 and drawn.codes.shape == (2, 80)
    assert torch.equal(pipe("a low rising tone", seed=3).codes[0], drawn.codes[0])
    assert [image.size for image in drawn.images] == [(192, 144)] * 2
    with pytest.raises(ValueError, match="num_signals_per_prompt must be at least 1, got 0"):
        pipe("a low rising tone", num_signals_per_prompt=0)
    assert (trained / "model" / "samples").is_dir() and any((trained / "model" / "samples").iterdir())


def test_the_next_command_has_the_first_caption_that_there_is():
    commands = [next_commands(Path("m"), SamplePrompts(found, [], [], 1)) for found in ([None, "a drum"], [None, None])]
    assert ["generate.py --model m 'a drum'" in one for (one,) in commands] == [True, False]
    assert "--unconditional" in commands[1][0]


def test_a_drawn_sound_is_right_where_the_nearest_has_its_caption(trained):
    """Nearest by spectrogram: one of another caption is wrong; of pictures, one of other codes whatever its caption."""
    cache = TokenCache(trained / "model" / "token_cache" / "train")
    vocabulary = TextToSignalPipeline.from_pretrained(trained / "model").vocabulary
    assert choose_captions(cache, cache, vocabulary, 4) is None, "several sounds have each caption"
    captions = choose_captions(cache, cache, vocabulary, 4, "audio")
    assert (
        captions is not None and captions.signal == "audio" and (len(captions.held_out), len(captions.seen)) == (4, 4)
    )

    pipe = TextToSignalPipeline.from_pretrained(trained / "model")
    drawn = pipe(["a low tone", "a high tone"], temperature=0.0, guidance_scale=1.0).codes.numpy()
    first, second = (CaptionedPicture("a low tone", codes) for codes in drawn)
    other = CaptionedPicture("a high tone", (drawn[0] + 1) % 16 + 16 * (drawn[0] >= 16))
    found = CaptionsDrawn([second], [other], [first], "audio").drawn(pipe, [0, 1], 1.0, 0.0)
    assert found.right.tolist() == [True, False] and found.distance[1] > 0
    by_codes = CaptionsDrawn([CaptionedPicture("a low tone", other.codes)], [], [first])
    assert by_codes.drawn(pipe, [0], 1.0, 0.0).right.tolist() == [False]


def test_guidance_and_temperature_of_sounds_are_searched(trained):
    folder, said = trained / "model", list[str]()
    cache, pipe = TokenCache(folder / "token_cache" / "train"), TextToSignalPipeline.from_pretrained(folder)
    captions = choose_captions(cache, cache, pipe.vocabulary, 16, "audio")
    settle_defaults(LanguageModelOptions(), pipe, lambda: captions, lambda: None, 10_000, said.append)
    assert "drew what is most like sounds of the same caption" in said[0]
    found = re.match(r"guidance ([\d.]+) and temperature ([\d.]+) by default", said[0])
    settings = pipe.vocabulary.default_guidance, pipe.vocabulary.default_temperature
    assert found and tuple(map(float, found.groups())) == settings


def test_series_of_one_caption_have_no_search(trained_series):
    folder = trained_series / "model"
    cache, pipe = TokenCache(folder / "token_cache" / "train"), TextToSignalPipeline.from_pretrained(folder)
    assert choose_captions(cache, cache, pipe.vocabulary, 16, "series") is None


def test_generate_writes_wav_files_and_a_sheet(trained, tmp_path):
    options = {"model": str(trained / "model"), "num_images_per_prompt": 2, "seed": 0}
    generate.main(generate.GenerateOptions(prompts=["a drum", "a tone"], output=str(tmp_path / "sheet.png"), **options))
    assert Image.open(tmp_path / "sheet.png").width > 2 * 192
    names = sorted(file.name for file in (tmp_path / "sheet").iterdir())
    assert names == ["000-a-drum-0.wav", "000-a-drum-1.wav", "001-a-tone-0.wav", "001-a-tone-1.wav"]
    with wave.open(str(tmp_path / "sheet" / names[0])) as stream:
        assert (stream.getframerate(), stream.getnframes(), stream.getnchannels()) == (8000, 1600, 1)
    for output in (f"{options['model']}.png", options["model"]):
        with pytest.raises(ValueError, match="would go into .*model, which is a model folder: name another"):
            generate.main(generate.GenerateOptions(prompts=["a drum"], output=output, **options))
    with pytest.raises(ValueError, match="no --best_of, --height"):
        generate.main(generate.GenerateOptions(prompts=["a drum"], best_of=2, height=16, **options))


def test_evaluate_measures_depth_by_depth(trained, tmp_path):
    output = tmp_path / "report.json"
    report = evaluate.main(
        evaluate.EvaluationOptions(
            image_tokenizer=str(trained / "tokenizer"), max_examples=12, output=str(output), cpu_threads=1
        )
    )
    assert json.loads(output.read_text()) == report
    rows = report["by_depth"]
    assert [row["bits_per_second"] for row in rows] == [40 * 4 / 0.2, 80 * 4 / 0.2] and len(rows) == 2
    assert report["reconstruction"] == rows[1] and 0 < report["codebook"]["usage"] <= 1
    assert "spectral_distance" in report["opus"] or "left_out" in report["opus"]
    assert report["n"] == 12 and report["dataset"] == "sounds" and report["image_tokenizer_fingerprint"]
    low, high = report["reconstruction"]["interval"]["snr_mean"]
    assert low <= report["reconstruction"]["snr_mean"] <= high
    with pytest.raises(ValueError, match="--extractor, --drawn_per_caption concern pictures"):
        evaluate.main(
            evaluate.EvaluationOptions(
                model=str(trained / "model"), output=str(output), extractor="captions", drawn_per_caption=1
            )
        )


def evaluated_page(folder: Path, **options: Any) -> tuple[dict[str, Any], Path]:
    page = folder / "page"
    report = evaluate.main(
        evaluate.EvaluationOptions(output=str(folder / "report.json"), report=str(page), cpu_threads=1, **options)
    )
    assert json.loads((page / "report.json").read_text()) == report
    return report, page


def test_a_page_of_sounds_can_be_listened_to(trained, tmp_path, monkeypatch):
    quick = partial(train_probe, sounds=64, epochs=1, required_accuracy=0.0)
    monkeypatch.setattr(signal_captions, "train_probe", quick)
    options = {"model": str(trained / "model"), "max_examples": 4, "num_captions": 3}
    report, page = evaluated_page(tmp_path, **options)
    text = (page / "report.html").read_text()
    sounds = [base64.b64decode(one) for one in re.findall(r'<audio controls src="data:audio/wav;base64,([^"]+)"', text)]
    files = sorted(page.glob("*.wav"))
    assert sorted(sounds) == sorted(file.read_bytes() for file in files) and len(files) == 2 * 8 + 2 * 3
    with wave.open(str(files[0])) as stream:
        assert (stream.getframerate(), stream.getnframes()) == (8000, 1600)
    assert not re.search(r'(src|href)="(?!data:)', text)
    markdown = (page / "report.md").read_text()
    assert all(f"]({file.name})" in markdown for file in files) and "![Captions, held-out" in markdown
    rows = {row.figure: row for row in signal_rows(report)}
    assert (
        rows["captions, held-out: drawn right"].over == "3 sounds"
        and " to " in rows["1 depth of codes: mean SNR, dB"].interval
    )
    with pytest.raises(ValueError, match="is not empty"):
        evaluate.EvaluationOptions(output=str(tmp_path / "report.json"), report=str(page), **options)


def test_a_page_of_series_shows_forecasts(trained_series, tmp_path):
    options = {"model": str(trained_series / "model"), "dataset": str(trained_series / "data"), "num_captions": 2}
    report, page = evaluated_page(tmp_path, **options)
    names = {file.name for file in page.iterdir()}
    assert {"forecasts.png", "samples.png", "reconstructions.png", "codebooks.png"} <= names
    low, high = report["forecast"]["interval"]["mae_over_naive"]
    assert low <= report["forecast"]["mae_over_naive"] <= high
    assert "audio" not in (page / "report.html").read_text().split("<h2>Settings")[0]


def test_folders_of_signals_are_inspected(trained_series, tmp_path, capsys):
    (tmp_path / "sounds").mkdir()
    for number in range(6):
        samples = np.zeros(1600) if number == 0 else 0.5 * np.sin(np.arange(1100) / (3 + number // 2))
        write_sound(tmp_path / "sounds" / f"{number}.wav", samples, 8000)
    options: dict[str, Any] = {
        "signal": "audio",
        "dataset": str(tmp_path / "sounds"),
        "sample_rate": 8000,
        "length": 800,
    }
    sheet = tmp_path / "sheet.png"
    with pytest.raises(ValueError, match="has no captions.*beside each file"):
        inspect_data.main(inspect_data.InspectionOptions(output=str(sheet), **options))
    printed = capsys.readouterr().out
    assert (
        "have a rest that makes no example" in printed and "duplicates: " in printed and "0.1 s at 8,000 Hz" in printed
    )
    assert Image.open(sheet).width > 2 * 192
    data = str(trained_series / "data")
    series = inspect_data.InspectionOptions(signal="series", dataset=data, length=64, horizon=16, output=str(sheet))
    inspect_data.main(series)
    assert "channels: 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no use for --image_size, --horizon"):
        inspect_data.InspectionOptions(image_size=64, horizon=3, **options)
    with pytest.raises(ValueError, match="Sounds are read with --signal audio"):
        inspect_data.main(inspect_data.InspectionOptions(dataset=str(tmp_path / "sounds")))
    with pytest.raises(ValueError, match="--dataset seasons has no pictures: give --signal series"):
        inspect_data.main(inspect_data.InspectionOptions(dataset="seasons"))


def test_cards_of_models_speak_of_their_signals(trained, trained_series, tmp_path):
    for folder, tag, call in (
        (trained, "text-to-audio", ".audio[0]"),
        (trained_series, "time-series-forecasting", "forecast(past)"),
    ):
        out = tmp_path / tag
        export_model.main(export_model.ExportOptions(model=str(folder / "model"), output_dir=str(out)))
        card = (out / "README.md").read_text()
        assert f"pipeline_tag: {tag}" in card and call in card and "TextToSignalPipeline.from_pretrained" in card
        assert "picture" not in card and "{" not in card
        pipe = TextToSignalPipeline.from_pretrained(out)
        assert not write_hub_files(out, pipe.image_tokenizer, pipe.model, pipe.vocabulary)


def test_evaluate_reads_what_captions_drew(trained, tmp_path, monkeypatch):
    options = evaluate.EvaluationOptions(
        model=str(trained / "model"),
        max_examples=4,
        num_captions=3,
        output=str(tmp_path / "report.json"),
        cpu_threads=1,
    )
    quick = partial(train_probe, sounds=64, epochs=1)
    monkeypatch.setattr(signal_captions, "train_probe", quick)
    assert "must read 95%" in evaluate.main(options)["alignment"]["left_out"]
    monkeypatch.setattr(signal_captions, "train_probe", partial(quick, required_accuracy=0.0))
    alignment = evaluate.main(options)["alignment"]
    for split in ("validation", "held_out"):
        assert alignment[split]["n"] == 3 and 0 <= alignment[split]["right"] <= 1
        assert set(alignment[split]["interval"]) == {"right", "reconstructions_right"}


def test_each_pipeline_refuses_the_other_kind_of_model(trained, tmp_path):
    with pytest.raises(ValueError, match="holds a TextToSignalPipeline.*load it by pipelines.TextToSignalPipeline"):
        TextToImagePipeline.from_pretrained(trained / "model")
    pictures = tiny_pipeline()
    pictures.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a TextToImagePipeline"):
        TextToSignalPipeline.from_pretrained(tmp_path)
    sounds = sound_pipeline()
    parts = sounds.image_tokenizer, sounds.model, sounds.vocabulary
    for kind in (TextToImagePipeline, ImageToTextPipeline):
        with pytest.raises(ValueError, match="not for codes of audio: use pipelines.TextToSignalPipeline"):
            kind(*parts)
    with pytest.raises(ValueError, match="not for codes of pictures: use pipelines.TextToImagePipeline"):
        TextToSignalPipeline(pictures.image_tokenizer, pictures.model, pictures.vocabulary)
    with pytest.raises(TypeError, match="does not draw"):
        TextToSignalPipeline("a drum")


def test_one_sound_does_not_depend_on_the_others_of_its_call():
    pipe = sound_pipeline(max_positions=96)
    together = pipe(["a red dog", "a blue cat on grass"], seed=1, guidance_scale=1.5)
    alone = pipe("a blue cat on grass", seed=1, guidance_scale=1.5)
    assert torch.equal(together.codes[1:], alone.codes)
    assert torch.allclose(together.values[1:], alone.values, atol=1e-6)
    low, high = (torch.tensor(pipe.vocabulary.layout[name]) for name in ("low", "high"))
    assert ((together.codes >= low) & (together.codes < high)).all()


def test_options_of_signals_and_of_pictures_do_not_mix():
    with pytest.raises(ValueError, match="--sample_rate, --causal: for signals; give --signal"):
        ImageTokenizerOptions(sample_rate=8000, causal=True)
    with pytest.raises(ValueError, match="no use for --image_size, --random_flip"):
        ImageTokenizerOptions(signal="audio", image_size=64, random_flip=True)
    with pytest.raises(ValueError, match="multiple of"):
        ImageTokenizerOptions(signal="audio", length=1000)
    with pytest.raises(ValueError, match="takes.*--depth_dropout|depth_dropout"):
        ImageTokenizerOptions(depth_dropout=0.5)
    with pytest.raises(ValueError, match="--signal series has no use for --sample_rate, --spectral_weight"):
        ImageTokenizerOptions(signal="series", sample_rate=8000, spectral_weight=1.0)
    options = ImageTokenizerOptions(signal="audio")
    config = options.configuration(photographs=False)
    assert options.dataset == "sounds" and config.example_size == (1, 16000)
    assert len(config.grids()) == 1 and config.grids()[0] == (1, 50) and config.codebook_sizes == [1024] * 3


def test_views_of_pictures_are_refused(trained):
    options = {"image_tokenizer": str(trained / "tokenizer"), "output_dir": str(trained / "other"), "max_steps": 1}
    for given in ({"crops": 1}, {"random_flip": True}, {"image_sizes": ["16x16"]}):
        with pytest.raises(ValueError, match="concern pictures"):
            train_lm.main(LanguageModelOptions(**options, overwrite=True, **given))


def test_unreadable_sounds_are_left_out_and_silence_is_told(tmp_path, capsys):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
    write_sound(tmp_path / "validation" / "v.wav", 0.5 * np.sin(np.arange(800)), 8000)
    for number in range(4):
        samples = np.zeros(800) if number == 0 else 0.5 * np.sin(np.arange(800) / (number + 3))
        write_sound(tmp_path / "train" / f"{number}.wav", samples, 8000)
    settings = SignalSettings("audio", 800, rate=8000)
    source = load_signals(settings, str(tmp_path), "train")
    (tmp_path / "train" / "2.wav").write_text("changed after it was listed")
    decoded = decode_signals(source, settings, max_unreadable_share=0.3)
    assert decoded.rows.tolist() == [0, 1, 3] and decoded.batch([1, 2]).shape == (2, 1, 800)
    assert isinstance(source, SoundFiles)
    assert np.allclose(decoded.batch([2])[0], source[3].values, atol=1e-3)
    printed = capsys.readouterr().out
    assert "1 of 4 examples are silent" in printed and "1 of 4 examples cannot be read" in printed
    with pytest.raises(ValueError, match="raise --max_unreadable_share"):
        decode_signals(source, settings, max_unreadable_share=0.0)


def test_panels_show_waveform_and_spectrum():
    time = np.arange(16000) / 16000
    tone = torch.from_numpy(0.5 * np.sin(2 * np.pi * 2000 * time)).float()[None, None]
    panel = np.asarray(signal_panels(tone, SignalSettings("audio", 16000, rate=16000))[0])
    assert panel.shape == (144, 192, 3)
    darkest = panel[49:, 96].sum(axis=1).argmin()  # of the spectrogram's middle column
    assert darkest == pytest.approx(95 - 95 * 0.5, abs=2)  # the square root of 2000 over 8000
    middle = panel[:48, 96].sum(axis=1) < 600
    assert 20 <= middle.sum() <= 28  # half of full scale
    with pytest.raises(ValueError, match="NaN"):
        signal_panels(tone * float("nan"), SignalSettings("audio", 16000, rate=16000))


def test_probe_reads_both_halves():
    assert halves_of(EVENTS[:1]) == ("low steady tone", "low steady tone")
    assert halves_of(EVENTS[1:2]) == ("low rising tone", "rest of low rising tone")
    assert halves_of((EVENTS[0], EVENTS[9])) == (EVENTS[0].label, EVENTS[9].label)
    source = DrawnSounds(num_examples=3, length=4000, rate=8000)
    values = torch.from_numpy(np.stack([source[row].values[0] for row in range(3)]))
    found = SoundProbe().read(values)
    assert len(found) == 3 and all(half in CLASSES for pair in found for half in pair)
