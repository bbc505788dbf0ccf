"""Signals in stage 1: networks along time, depth dropout, gaps, spectral loss, drawn sounds, folders of sounds."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny import with_open_blocks
from torch.nn import functional as F

from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.losses.reconstruction import PART, evened
from tokenizer_image.losses.spectral import SpectralLoss, stft_magnitude
from tokenizer_image.metrics import SignalErrors, snr
from tokenizer_image.networks import CausalConv1d, TimeShuffle
from tokenizer_image.preprocessing import preprocessing_of
from tokenizer_image.quantizers import ResidualQuantizer
from tokenizer_image.signals.chunks import decode_sound, encode_sound, margin_positions
from tokenizer_image.signals.drawn_series import HELD_OUT as HELD_OUT_SERIES
from tokenizer_image.signals.drawn_series import DrawnSeries
from tokenizer_image.signals.drawn_sounds import EVENTS, HELD_OUT, PITCHES, SEEN, DrawnSounds
from tokenizer_image.signals.loading import load_signals
from tokenizer_image.signals.series_files import normalised, read_series, write_series
from tokenizer_image.signals.settings import SignalSettings, signal_settings_of
from tokenizer_image.signals.sound_files import read_sound, write_sound

RATE = 8000


def sound_tokenizer(seed: int = 0, **settings: Any) -> VQVAE:
    """Sounds of 320 samples in 20 positions of two codes each, 16 and 8."""
    torch.manual_seed(seed)
    defaults = {
        "hidden_sizes": [6, 8], "patch_size": 8, "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [16, 8],
        "quantizer": "residual", "encoder_kernel_size": 3, "resampling": "overlapping", "quantizer_options": {
            "kmeans_start": False}, "signal": "audio", "num_channels": 1, "image_size": 320,
        "preprocessing": SignalSettings("audio", 320, rate=RATE).to_dict(),
    }  # fmt: skip
    return with_open_blocks(VQVAE(VQVAEConfig(**{**defaults, **settings})).eval())


def sounds(count: int = 2, length: int = 320, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, length, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1) * 0.5


# ---- networks


def test_causal_convolution_is_a_convolution_with_zeros_before_the_first_sample():
    convolution = CausalConv1d(1, 1, 4, stride=2, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
    found = convolution(torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]]))
    assert found.flatten().tolist() == [3 + 40, 1 + 20 + 300 + 4000]


def test_time_shuffle_lays_channels_in_a_row():
    hidden = torch.arange(12.0).view(1, 4, 3)  # channels 0, 1 of output channel 0
    assert TimeShuffle(2)(hidden)[0].tolist() == [[0, 3, 1, 4, 2, 5], [6, 9, 7, 10, 8, 11]]


@pytest.mark.parametrize("resampling", ["patches", "overlapping"])
@pytest.mark.parametrize("causal", [False, True])
def test_shapes_layout_and_round_trip(resampling, causal, tmp_path):
    tokenizer = sound_tokenizer(resampling=resampling, causal=causal)
    layout = tokenizer.layout()
    assert len(layout) == tokenizer.tokens_per_image == 40
    assert layout.column.tolist() == [place for place in range(20) for _ in range(2)] and not layout.row.any()
    assert layout.depth.tolist() == [0, 1] * 20
    values = sounds()
    codes = tokenizer.encode(values)
    assert codes.shape == (2, 40)
    output = tokenizer(values)
    assert torch.equal(output.codes, codes)
    assert torch.equal(tokenizer.decode(codes), output.reconstruction.clamp(-1, 1))
    assert tokenizer.encode(sounds(length=160)).shape == (2, 20)  # any whole number of positions
    tokenizer.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path).eval()
    assert loaded.fingerprint == tokenizer.fingerprint and torch.equal(loaded.encode(values), codes)
    assert signal_settings_of(loaded) == SignalSettings("audio", 320, rate=RATE)


@pytest.mark.parametrize("resampling", ["patches", "overlapping"])
def test_causal_networks_see_nothing_later(resampling):
    tokenizer, step = sound_tokenizer(resampling=resampling, causal=True), 16
    values = sounds(1).requires_grad_()
    latents = tokenizer.encoder(values)
    (gradient,) = torch.autograd.grad(latents[:, :, 7].sum(), values)
    assert gradient[..., : 8 * step].any() and not gradient[..., 8 * step :].any()
    inputs = torch.randn(1, 4, 20, requires_grad=True)
    (gradient,) = torch.autograd.grad(tokenizer.decoder(inputs)[:, :, 8 * step - 1].sum(), inputs)
    assert gradient[..., 7].any() and not gradient[..., 8:].any()
    other = sound_tokenizer(resampling=resampling)
    (gradient,) = torch.autograd.grad(other.decoder(inputs)[:, :, 8 * step - 1].sum(), inputs)
    assert gradient[..., 8:].any()  # without `causal` it does


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("resampling", ["patches", "overlapping"])
def test_chunks_have_no_seams(resampling, causal):
    tokenizer = sound_tokenizer(resampling=resampling, causal=causal)
    values = sounds(2, 1600 - 5)
    whole = tokenizer.encode(F.pad(values, (0, 5)))
    codes = encode_sound(tokenizer, values, chunk_positions=26)
    assert torch.equal(codes, whole) and margin_positions(tokenizer.config) < 26
    decoded = tokenizer.decode(whole, (1, 1600))
    assert torch.allclose(decode_sound(tokenizer, codes, chunk_positions=26), decoded, atol=1e-6)
    alone = torch.cat([tokenizer.decode(part, (1, 208)) for part in whole[:, : 6 * 26].split(26, dim=1)], dim=2)
    assert not torch.allclose(alone, decoded[..., :1248], atol=1e-3)  # chunks without a margin have them
    with pytest.raises(ValueError, match="no whole number of positions"):
        decode_sound(tokenizer, codes[:, :-1])


def test_hierarchy_along_time():
    tokenizer = sound_tokenizer(num_levels=2, codebook_sizes=[16, 8, 16, 8])
    codes = tokenizer.encode(sounds())
    assert codes.shape == (2, 20 + 40) and tokenizer.decode(codes).shape == (2, 1, 320)
    with pytest.raises(ValueError, match="order of time"):
        encode_sound(tokenizer, sounds())


def test_bad_shapes_and_settings():
    tokenizer = sound_tokenizer()
    with pytest.raises(ValueError, match=r"expected \(B, 1, T\)"):
        tokenizer.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="multiple of the tokenizer's downsampling, 16"):
        tokenizer.encode(torch.zeros(1, 1, 100))
    with pytest.raises(ValueError, match="1xSAMPLES"):
        tokenizer.layout((2, 320))
    with pytest.raises(ValueError, match="unknown signal 'smell'"):
        VQVAEConfig(signal="smell")
    with pytest.raises(ValueError, match="no axis of time"):
        VQVAEConfig(causal=True)
    with pytest.raises(ValueError, match="network='mlp' is for pictures"):
        VQVAEConfig(signal="audio", network="mlp")
    with pytest.raises(ValueError, match="codes of audio, not of pictures"):
        preprocessing_of(tokenizer)
    with pytest.raises(ValueError, match="8000 to 24000"):
        SignalSettings("audio", 320, rate=44100)


def test_pictures_keep_their_fingerprint_fields():
    tokenizer = sound_tokenizer(codebook_sizes=[16], quantizer="ema")
    before = tokenizer.fingerprint
    tokenizer.config.causal = True  # the same weights, other codes
    assert tokenizer.fingerprint != before


# ---- codes


def test_depth_dropout_leaves_out_the_last_depths_of_some_examples():
    torch.manual_seed(0)
    options = {"kmeans_start": False, "revival_threshold": 0.0}
    quantizer = ResidualQuantizer([16, 16, 16], 4, depth_dropout=1.0, **options).train()
    quantizer.freeze()
    latents = torch.randn(64, 5, 4)
    output = quantizer(latents)
    partial = []
    for depths in (1, 2):
        rows = [one.decode(output.codes[..., d : d + 1]) for d, one in enumerate(quantizer.quantizers[:depths])]
        partial.append(torch.stack(rows).sum(0))
    which = [[torch.allclose(output.quantized[row], one[row], atol=1e-6) for one in partial] for row in range(64)]
    counts = np.sum(which, axis=0)
    assert (np.sum(which, axis=1) == 1).all() and counts.min() > 16  # one of the two, about equally often
    assert torch.equal(output.codes, quantizer.encode(latents))  # codes of all depths
    plain = ResidualQuantizer([16, 16, 16], 4, **options)
    plain.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer.eval()(latents).quantized, plain.eval()(latents).quantized)
    with pytest.raises(ValueError, match="depth_dropout"):
        ResidualQuantizer([16], 4, depth_dropout=2.0)


def test_fewer_depths_are_decoded_as_absent_codes():
    tokenizer = sound_tokenizer()
    codes = tokenizer.encode(sounds())
    assert torch.equal(tokenizer.decode(codes, depths=2), tokenizer.decode(codes))
    other = codes.clone()
    other[:, 1::2] = 16 + (other[:, 1::2] - 15) % 8  # another code at the second depth
    assert torch.equal(tokenizer.decode(codes, depths=1), tokenizer.decode(other, depths=1))


def test_gaps_do_not_count_in_the_error():
    tokenizer, values = sound_tokenizer(), sounds()
    known = torch.zeros(2, 1, 320, dtype=torch.bool)
    known[..., :100] = True
    output = tokenizer(values, known=known)
    expected = (output.reconstruction - values)[..., :100].square().mean()
    assert torch.allclose(output.reconstruction_loss, expected)


def test_loss_falls():
    tokenizer = sound_tokenizer(quantizer_options={"kmeans_start": True}).train()
    values = torch.stack([torch.from_numpy(DrawnSounds(num_examples=8, length=320, rate=RATE)[row].values)
                          for row in range(8)])  # fmt: skip
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        output = tokenizer(values)
        output.loss.backward()
        optimizer.step()
        losses.append(output.reconstruction_loss.item())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


# ---- figures and the spectral loss


def test_snr_by_hand():
    target = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    assert torch.allclose(snr(target * 0.9, target), torch.tensor([20.0]), atol=1e-4)
    assert snr(target, target).item() == 100 and snr(target, torch.zeros_like(target)).item() == -100
    errors = SignalErrors()
    errors.add(target, target * 0.9)
    errors.add(target * 0, target * 0)
    figures = errors.figures()
    assert figures["snr"] == pytest.approx(20, abs=1e-4) and figures["mse"] == pytest.approx(0.005)
    with pytest.raises(ValueError, match="of one|must be two tensors"):
        snr(target[0], target[0])


def test_stft_magnitude_equals_a_fourier_transform_of_a_frame():
    time = torch.arange(1024) / RATE
    sine = torch.sin(2 * np.pi * 1000 * time)[None]
    window = torch.hann_window(256)
    found = stft_magnitude(sine, window)[0, :, 8]  # the frame around sample 8 * 64
    frame = sine[0, 512 - 128 : 512 + 128] * window
    expected = np.abs(np.fft.rfft(frame.numpy())) * 2 / float(window.sum())
    assert np.allclose(found.numpy(), expected, atol=1e-4)
    assert found.argmax().item() == 32 and found.max().item() == pytest.approx(1, abs=0.01)


def test_spectral_loss():
    loss, values = SpectralLoss((64, 32)), sounds(3)
    assert loss(values, values).item() < 1e-5
    assert loss(values, torch.zeros_like(values)).item() > loss(values, values * 0.8).item() > 0
    assert torch.allclose(loss(values, values * 0.5), loss.distances(values, values * 0.5).mean())
    silent = torch.zeros(1, 1, 320, requires_grad=True)
    loss(sounds(1), silent).backward()
    assert torch.isfinite(silent.grad).all()


def test_parts_of_sounds_count_alike_as_evenness_grows():
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(3, 1, 2 * PART + 100, generator=generator) * torch.tensor([1.0, 0.1, 0.01])[:, None, None]
    errors.requires_grad_()
    assert torch.allclose(evened(errors[:, :, : 2 * PART], 0.0), errors[:, :, : 2 * PART].mean())
    parts = torch.stack([errors[:, 0, start : start + PART].mean(1) for start in (0, PART, 2 * PART)], 1)
    mean, half = parts.mean(), evened(errors, 0.5)
    assert torch.allclose(half, (mean * (parts / mean).sqrt()).mean(), rtol=2e-3)
    (even,) = torch.autograd.grad(evened(errors, 1.0), errors)
    (of_logs,) = torch.autograd.grad(parts.log().mean(), errors)
    assert torch.cosine_similarity(even.flatten(), of_logs.flatten(), dim=0) > 0.999


# ---- the built-in world


def test_drawn_sounds_depend_on_seed_split_and_row_alone():
    source = DrawnSounds("train", 50, length=4000, rate=RATE)
    first, again = source[7], DrawnSounds("train", 90, length=4000, rate=RATE)[7]
    assert np.array_equal(first.values, again.values) and first.texts == again.texts
    assert first.values.shape == (1, 4000) and first.values.dtype == np.float32 and np.abs(first.values).max() <= 1
    assert not np.array_equal(first.values, DrawnSounds("train", 50, 1, 4000, RATE)[7].values)
    assert source.fingerprint != DrawnSounds("train", 50, 1, 4000, RATE).fingerprint
    with pytest.raises(IndexError, match="outside"):
        source[50]
    with pytest.raises(ValueError, match="no split 'test'"):
        DrawnSounds("test")


def test_held_out_pairs_are_not_learned_but_their_events_are():
    assert not set(HELD_OUT) & set(SEEN) and len(HELD_OUT) > 10
    for place in (0, 1):
        assert {pair[place] for pair in SEEN} == set(range(len(EVENTS)))
    held_out = DrawnSounds("held_out", 40)
    pairs = {tuple(EVENTS.index(event) for event in held_out.events(row)) for row in range(40)}
    assert pairs <= set(HELD_OUT)


def test_sounds_are_what_their_captions_say():
    source = DrawnSounds("train", 300, length=16000, rate=16000)
    seen = set()
    for row in range(300):
        events = source.events(row)
        if len(events) != 1 or events[0].kind != "tone":
            continue
        event, samples = events[0], source[row].values[0]
        ends = [_loudest(samples[:4000]), _loudest(samples[-4000:])]
        low, high = (440 * 2 ** ((note - 69) / 12) for note in PITCHES[event.pitch])
        assert low * 0.9 <= ends[0] <= high * 1.25
        note = 69 + 12 * math.log2(_loudest(samples) / 440)
        assert event.motion != "steady" or abs(note - round(note)) < 0.05, "a note of the scale"
        assert samples[1:5].min() > 0, "a wave from its beginning"
        ratio = ends[1] / ends[0]
        assert {"rising": ratio > 1.15, "falling": ratio < 0.87, "steady": 0.95 < ratio < 1.05}[event.motion]
        assert source.texts(row)[0] == f"a {event.pitch} {event.motion} tone"
        seen.add(event)
    assert len(seen) > 5


def _loudest(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 65536))
    return float(spectrum.argmax() * 16000 / 65536)


# ---- folders


def _tone(seconds: float = 0.1, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def _settings(length: int = 800) -> SignalSettings:
    return SignalSettings("audio", length, rate=RATE)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_wav_of_any_number_format(subtype, tmp_path):
    soundfile.write(tmp_path / "a.wav", _tone(), RATE, subtype=subtype)
    assert np.allclose(read_sound(tmp_path / "a.wav", RATE), _tone(), atol=1e-4)


def test_stereo_is_mixed_and_another_rate_resampled_and_both_are_told(tmp_path):
    _validation(tmp_path)
    folder = tmp_path / "train"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.stack([_tone(1, 16000), 0 * _tone(1, 16000)], 1), 16000)
    soundfile.write(folder / "b.flac", _tone(1), RATE)
    soundfile.write(folder / "c.ogg", _tone(1), RATE)
    source = load_signals(_settings(8000), str(tmp_path), "train")
    rows = [source[row].values for row in range(len(source))]
    assert [values.shape for values in rows] == [(1, 8000)] * 3
    assert np.abs(rows[0][0, 100:-100] - 0.5 * _tone(1)[100:-100]).max() < 0.01
    told = " ".join(source.notes.warnings)
    assert "several channels" in told and "resampled to 8,000 Hz: 1 of 16,000 Hz" in told


def test_captions_of_class_folders_sidecars_and_metadata(tmp_path):
    for kind in ("dog", "cat"):
        (tmp_path / "classes" / kind).mkdir(parents=True)
        for number in range(4):
            write_sound(tmp_path / "classes" / kind / f"{number}.wav", _tone(), RATE)
    source = load_signals(_settings(), str(tmp_path / "classes"), "train")
    assert {source.texts(row)[0] for row in range(len(source))} == {"dog", "cat"}
    (tmp_path / "beside").mkdir()
    (tmp_path / "named").mkdir()
    lines = []
    for number in range(3):
        for folder in ("beside", "named"):
            write_sound(tmp_path / folder / f"{number}.wav", _tone(), RATE)
        (tmp_path / "beside" / f"{number}.txt").write_text(f"tone {number}")
        lines.append(json.dumps({"file_name": f"{number}.wav", "text": f"tone {number}"}))
    (tmp_path / "named" / "metadata.jsonl").write_text("\n".join(lines))
    for folder in ("beside", "named"):
        found = [
            text
            for split in ("train", "validation")
            for source in [load_signals(_settings(), str(tmp_path / folder), split)]
            for row in range(len(source))
            for text in source[row].texts
        ]
        assert sorted(found) == ["tone 0", "tone 1", "tone 2"]


def test_long_sounds_become_several_examples_and_short_ones_end_in_silence(tmp_path):
    (tmp_path / "train").mkdir()
    _validation(tmp_path)
    write_sound(tmp_path / "train" / "long.wav", _tone(0.35), RATE)
    write_sound(tmp_path / "train" / "short.wav", _tone(0.02), RATE)
    source = load_signals(_settings(), str(tmp_path), "train")
    assert len(source) == 5  # three whole parts and a half, and one short sound
    values = [source[row].values[0] for row in range(5)]
    assert np.allclose(np.concatenate(values[:4])[:2800], _tone(0.35), atol=1e-4)
    assert not values[4][160:].any() and values[4][:160].any()
    assert len({source.picture_key(row) for row in range(5)}) == 5
    assert source.key(1) == "train/long.wav from sample 800"


def _validation(folder: Path) -> None:
    """A validation split, so that no training row is held out."""
    (folder / "validation").mkdir()
    write_sound(folder / "validation" / "v.wav", _tone(), RATE)


def _cut_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_sounds_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    _validation(tmp_path)
    for name in ("good", "cut"):
        write_sound(tmp_path / "train" / f"{name}.wav", _tone(), RATE)
    _cut_off(tmp_path / "train" / "cut.wav")
    with wave.open(str(tmp_path / "train" / "empty.wav"), "wb") as stream:
        stream.setparams((1, 2, RATE, 0, "NONE", ""))
    (tmp_path / "train" / "text.wav").write_text("no sound")
    source = load_signals(_settings(), str(tmp_path), "train")
    assert [source.key(row) for row in range(len(source))] == ["train/good.wav"]
    reasons = " ".join(source.notes.left_out_reasons())
    assert "cut off" in reasons and "no samples" in reasons and "cannot be read" in reasons
    (tmp_path / "train" / "good.wav").unlink()
    with pytest.raises(ValueError, match="none of its 3 sounds can be read"):
        load_signals(_settings(), str(tmp_path), "train")


def test_sounds_with_nan_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.asarray([0.0, np.nan, 1.0]), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="NaN or infinity"):
        read_sound(tmp_path / "a.wav", RATE)


def test_folders_of_another_kind_are_refused(tmp_path):
    from PIL import Image

    with pytest.raises(ValueError, match="there is no folder"):
        load_signals(_settings(), str(tmp_path / "nowhere"), "train")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds no sounds.*1 pictures"):
        load_signals(_settings(), str(tmp_path), "train")
    write_sound(tmp_path / "b.wav", _tone(), RATE)
    with pytest.raises(ValueError, match=r"mixes 1 sounds, such as b.wav, and 1 pictures, such as a.png"):
        load_signals(_settings(), str(tmp_path), "train")
    with pytest.raises(ValueError, match="is a file"):
        load_signals(_settings(), str(tmp_path / "b.wav"), "train")


# ---- series


def _series_settings(length: int = 32, horizon: int = 8) -> SignalSettings:
    return SignalSettings("series", length, num_channels=0, horizon=horizon)


def test_normalisation_by_the_past_alone_is_undone():
    values = np.asarray([[9.0, 1.0, 3.0, 7.0, 5.0, 100.0, 50.0]])
    known = np.asarray([True, True, True, False, True, True, True])
    normal, location, scale = normalised(values, known, 5)
    assert location.tolist() == [4.5] and scale[0] == pytest.approx(np.std([9, 1, 3, 5]))
    assert np.allclose(normal * scale[:, None] + location[:, None], [[9, 1, 3, 3, 5, 100, 50]])  # a gap: the last value
    constant, location, scale = normalised(np.full((1, 4), 7.0), np.ones(4, bool), 4)
    assert not constant.any() and (location[0], scale[0]) == (7.0, 1.0)
    late = normalised(values, np.asarray([False] * 5 + [True] * 2), 5)
    assert not late[0].any() and late[2].tolist() == [1.0]
    early = normalised(values, np.asarray([False, False, True, True, True, True, True]), 5)
    assert early[0][0, 0] == early[0][0, 1] == early[0][0, 2]  # a gap at the start: the first value that is known


def test_series_in_csv_and_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    expected = np.asarray([[1.5, np.nan, 3.0], [4.0, 5.0, 6.0]])
    (tmp_path / "a.csv").write_text("date;x;y\n2020-01-01;1.5;4\n2020-01-02;;5\n2020-01-03;3e0;6\n")
    (tmp_path / "b.csv").write_text("when,x,y\nmonday,1.5,4\ntuesday,NA,5\nfriday,3,6\n")
    table = pyarrow.table({"x": [1.5, None, 3.0], "y": [4, 5, 6]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    write_series(tmp_path / "d.csv", np.nan_to_num(expected))
    for name in ("a.csv", "b.csv", "c.parquet"):
        assert np.array_equal(read_series(tmp_path / name), expected, equal_nan=True), name
    assert np.array_equal(read_series(tmp_path / "d.csv"), np.nan_to_num(expected))
    (tmp_path / "e.csv").write_text("x,y\n,1\n2,\n")  # gaps at both ends
    assert np.array_equal(read_series(tmp_path / "e.csv"), [[np.nan, 2], [1, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n3,four\n", r"row 3, column 'y': 'four' is no number"),
        ("1,2\n3,4\n", "first row has numbers"),
        ("x,y\n", "no rows"),
        ("x,y\n1\n", "row 2 has 1 cells"),
        ("date\n2020\n", "no column of values"),
    ],
)
def test_bad_tables_are_named(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_series(tmp_path / "a.csv")


def test_series_of_any_length_become_examples(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "validation").mkdir()
    rng = np.random.default_rng(0)
    series = {"long": rng.normal(size=(2, 45)), "short": rng.normal(size=(2, 20)), "tiny": rng.normal(size=(2, 8)),
              "other": rng.normal(size=(1, 40))}  # fmt: skip
    for name, values in series.items():
        write_series(tmp_path / "train" / f"{name}.csv", values)
    write_series(tmp_path / "validation" / "v.csv", series["long"])
    (tmp_path / "train" / "long.txt").write_text("a long series")
    source = load_signals(_series_settings(), str(tmp_path), "train")
    assert [source.key(row) for row in range(len(source))] == [
        "train/long.csv from step 5", "train/long.csv from step 13", "train/short.csv",
    ]  # fmt: skip
    assert source.settings.num_channels == 2 and source.texts(0) == ["a long series"]
    assert np.allclose(source[1].values, series["long"][:, 13:45], atol=1e-6) and source[1].mask.all()
    assert np.allclose(source[2].values[:, 12:], series["short"], atol=1e-6)
    assert source[2].mask.tolist() == [False] * 12 + [True] * 20
    reasons = " ".join(source.notes.left_out_reasons())
    assert "it has 8 steps" in reasons and "it has 1 columns" in reasons


def test_drawn_series_do_what_their_captions_say():
    source = DrawnSeries("train", 400)
    assert np.array_equal(source[3].values, DrawnSeries("train", 500)[3].values)
    slopes: dict[str, list[float]] = {}
    for row in range(400):
        kind = source.kind(row)
        assert kind not in HELD_OUT_SERIES
        assert ("season" in source.texts(row)[0]) == (kind.season != "no")
        if kind.step == "no" and kind.season != "no":
            values = source[row].values[0]
            normal = (values - values.mean()) / values.std()
            slopes.setdefault(kind.trend, []).append(float(np.polyfit(np.arange(192), normal, 1)[0]))
    assert min(slopes["rising"]) > max(map(abs, slopes["flat"])) > 0 > max(slopes["falling"])
    with pytest.raises(ValueError, match="no split 'test'"):
        DrawnSeries("test")
