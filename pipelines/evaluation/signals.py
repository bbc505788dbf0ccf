"""What `scripts/evaluate.py` measures of models of signals: reconstruction by depth, use of codes, captions drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from lm.sequences import DRAWING_CAPTIONS
from pipelines.caching.sources import open_source, read_pictures
from pipelines.evaluation.intervals import shares
from pipelines.evaluation.sound_probe import halves_of, train_probe
from pipelines.evaluation.video_probe import QUESTIONS, load_video_probe, read_videos
from pipelines.machine.batches import index_batches, pictures_at_once
from pipelines.machine.devices import choose_device
from pipelines.model_folder import named_folder
from pipelines.options.evaluation import EvaluationOptions
from pipelines.text_to_signal import TextToSignalPipeline, drawing_class
from tokenizer_image.layout import example_size
from tokenizer_image.losses.spectral import SpectralLoss
from tokenizer_image.metrics import CodeUsage, SignalErrors
from tokenizer_image.picture_model import size_of
from tokenizer_image.preprocessing import to_pixel_values
from tokenizer_image.registry import load_tokenizer
from tokenizer_image.signals.drawn_series import PERIOD
from tokenizer_image.signals.drawn_sounds import DrawnSounds
from tokenizer_image.signals.loading import drawn_signals, example_of
from tokenizer_image.signals.moving_sprites import MovingSprites
from tokenizer_image.signals.settings import SignalSettings, signal_settings_of

OPUS_SECONDS = 60  # of the split's sounds in a row, so that Opus's headers do not count
DRAWN_AT_ONCE = 50
UNITS = {"audio": "second", "series": "step", "video": "frame"}  # that bits are counted by
FORECASTS = 50  # samples of each series


def is_of_signals(options: EvaluationOptions) -> bool:
    """Whether the options name a model, or a tokenizer, of signals."""
    if options.image_tokenizer is not None:
        return signal_settings_of(load_tokenizer(named_folder(options.image_tokenizer))) is not None
    return drawing_class(options.chosen_model) is TextToSignalPipeline


def evaluate_signals(options: EvaluationOptions) -> dict[str, Any]:
    """The figures of a tokenizer of signals, and of a model those of what it draws, ready for JSON."""
    pipe: TextToSignalPipeline | None = None
    if options.image_tokenizer is not None:
        tokenizer: Any = load_tokenizer(named_folder(options.image_tokenizer)).to(choose_device(options.device))
    else:
        pipe = options.load(TextToSignalPipeline)
        pipe.set_progress_bar_config(disable=True)
        tokenizer = pipe.image_tokenizer
    settings = signal_settings_of(tokenizer)
    assert settings is not None
    source = open_source(options, options.split, settings)
    signals = read_pictures(options, source, settings)
    report: dict[str, Any] = {"signal": settings.to_dict(), "split": options.split, "n": len(signals)}
    report |= tokenizer_figures(tokenizer, settings, signals)
    if settings.signal == "audio":
        report["opus"] = opus_figures(signals, settings)
    elif pipe is not None and settings.horizon:
        report["forecast"] = forecast_figures(pipe, source, options)
    draws = pipe is not None and set(DRAWING_CAPTIONS) & set(pipe.vocabulary.formats)
    if pipe is not None and draws and isinstance(source, DrawnSounds | MovingSprites):
        try:
            report["alignment"] = caption_figures(pipe, options)
        except RuntimeError as error:  # a probe that does not read real examples; the other figures stand
            report["alignment"] = {"left_out": str(error)}
    return report


@torch.inference_mode()
def tokenizer_figures(tokenizer: Any, settings: SignalSettings, signals: Any) -> dict[str, Any]:
    """`SignalErrors` and, of sounds, the mean spectral distance, of reconstructions from one depth of codes up to all,
    with the bits a second (a step, a frame) of each; usage and perplexity of all codes."""
    layout = tokenizer.layout()
    depths = int(layout.depth.max()) + 1
    usage, errors = CodeUsage(tokenizer.num_codes), [SignalErrors() for _ in range(depths)]
    spectral, distances = SpectralLoss(), [0.0] * depths
    for batch in index_batches(len(signals), pictures_at_once(*example_size(tokenizer.config))):
        original = to_pixel_values(signals.batch(batch)).to(tokenizer.device)
        codes = tokenizer.encode(original)
        usage.update(codes.cpu())
        for depth in range(depths):
            decoded = tokenizer.decode(codes, size_of(original), depths=depth + 1)
            errors[depth].add(original.flatten(2), decoded.flatten(2))
            if settings.signal == "audio":
                distances[depth] += float(spectral.to(original.device).distances(original, decoded).sum())
    bits = np.log2(layout.high - layout.low)
    seconds, unit = settings.length / (settings.rate or 1), UNITS[settings.signal]
    rows = [
        {
            "depths": depth + 1,
            f"bits_per_{unit}": float(bits[layout.depth <= depth].sum() / seconds),
            **_quality(errors[depth].figures(), settings),
            **({"spectral_distance": distances[depth] / len(signals)} if settings.signal == "audio" else {}),
        }
        for depth in range(depths)
    ]
    codebook = {"usage": usage.usage, "perplexity": usage.perplexity, "num_codes": tokenizer.num_codes}
    return {"reconstruction": rows[-1], "by_depth": rows, "codebook": codebook}


def _quality(figures: dict[str, float], settings: SignalSettings) -> dict[str, float]:
    """Of videos, the PSNR in dB of all frames together in the place of signal-to-noise ratios."""
    if settings.signal != "video":
        return figures
    return {"mse": figures["mse"], "psnr": 10 * float(np.log10(4 / max(figures["mse"], 1e-10)))}


def opus_figures(signals: Any, settings: SignalSettings) -> dict[str, Any]:
    """The same sounds by Opus at its lowest rate, as libsndfile writes it: bits a second and spectral distance; or why
    there are none."""
    rate, length = settings.rate, settings.length
    count = min(len(signals), -(-OPUS_SECONDS * rate // length))
    original = signals.batch(range(count)).astype(np.float32)[:, 0]
    try:
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, original.ravel(), rate, format="OGG", subtype="OPUS", compression_level=1.0)
        size = file.tell()
        file.seek(0)
        decoded, _ = soundfile.read(file, dtype="float32")
    except (ImportError, RuntimeError, ValueError, TypeError) as error:  # not every libsndfile has Opus, or this rate
        return {"left_out": f"Opus could not be written: {error}"}
    decoded = np.resize(np.pad(decoded, (0, max(0, original.size - len(decoded))))[: original.size], original.shape)
    pair = torch.from_numpy(original)[:, None], torch.from_numpy(decoded)[:, None]
    errors = SignalErrors()
    errors.add(*pair)
    return {
        "bits_per_second": 8 * size / (original.size / rate),
        **errors.figures(),
        "spectral_distance": float(SpectralLoss().distances(*pair).mean()),
    }


def forecast_figures(pipe: TextToSignalPipeline, source: Any, options: EvaluationOptions) -> dict[str, Any]:
    """Forecasts of the last steps of --num_captions series: the median's mean absolute error over that of the seasonal
    naive forecast, the value `PERIOD` steps before, and how often a value lies in the middle 80% of the samples.

    Each series counts in units of its past's deviation; gaps in what is forecast do not count.
    """
    context, horizon = pipe.settings.context, pipe.settings.horizon
    if context < PERIOD:
        return {"left_out": f"the {context} steps before the horizon have no season of {PERIOD}"}
    errors, naive_errors, covered = [], [], []
    for row in range(min(len(source), options.num_captions)):
        example = example_of(source, row)
        known = np.ones(context + horizon, bool) if example.mask is None else example.mask
        values = np.where(known, example.values, np.nan).astype(np.float64)
        past, future = values[:, :context], values[:, context:]
        if not known[:context].any() or not known[context:].any():
            continue
        drawn = pipe.forecast(past, num_samples=FORECASTS, seed=options.seed + row)
        low, high = drawn.interval(0.8)
        naive = np.take(past, context - PERIOD + np.arange(horizon) % PERIOD, axis=1)
        scale = np.nanstd(past, axis=1, keepdims=True)
        judged = np.isfinite(future) & np.isfinite(naive) & (scale > 0)
        errors.append(np.abs(drawn.median - future)[judged] / np.broadcast_to(scale, future.shape)[judged])
        naive_errors.append(np.abs(naive - future)[judged] / np.broadcast_to(scale, future.shape)[judged])
        covered.append(((low <= future) & (future <= high))[judged])
    if not errors:
        return {"left_out": "no series has values before and in the horizon"}
    mean, naive_mean = (float(np.concatenate(one).mean()) for one in (errors, naive_errors))
    return {
        "n": len(errors), "steps": horizon, "mae": mean, "naive_mae": naive_mean, "mae_over_naive": mean / naive_mean,
        "coverage_80": float(np.concatenate(covered).mean()),
    }  # fmt: skip


def caption_figures(pipe: TextToSignalPipeline, options: EvaluationOptions) -> dict[str, Any]:
    """Shares of drawn sounds or videos in which the probe reads what their captions say, for combinations that training
    had and for held-out ones; beside them, shares of the real ones' reconstructions."""
    settings = pipe.settings
    accuracy, read = _trained_reader(settings)
    figures: dict[str, Any] = {"probe_accuracy": accuracy}
    for split in ("validation", "held_out"):
        source = drawn_signals(settings, split, options.num_captions, options.seed)
        wanted = [_stated(source, row) for row in range(len(source))]
        found: dict[str, list[dict[str, Any]]] = {"": [], "reconstructions_": []}
        for rows in index_batches(len(source), DRAWN_AT_ONCE):
            texts = [source.texts(row)[0] for row in rows]
            seeds = [options.seed * len(source) + row for row in rows]
            found[""] += read(_drawn(pipe, texts, seeds, options))
            real = np.stack([source[row].input_values for row in rows])
            pixels = to_pixel_values(real if real.dtype == np.uint8 else real.astype(np.float16))
            found["reconstructions_"] += read(pipe.decode_codes(pipe.image_tokenizer.encode(pixels.to(pipe.device))))
        counts = {
            f"{kind}{name}": sum(one[name] == other[name] for one, other in zip(answers, wanted, strict=True))
            for kind, answers in found.items()
            for name in (wanted[0] if len(wanted[0]) > 1 else ())
        }
        for kind, answers in found.items():
            counts[f"{kind}right"] = sum(one == other for one, other in zip(answers, wanted, strict=True))
        figures[split] = {**shares(counts, len(source)), "n": len(source)}
    return figures


def _trained_reader(settings: SignalSettings) -> tuple[Any, Callable[[torch.Tensor], list[dict[str, Any]]]]:
    """A trained probe's accuracy, and what it reads in sounds (B, 1, time) or videos."""
    if settings.signal == "video":
        video_probe = load_video_probe(settings.length)
        return video_probe.accuracies, partial(read_videos, video_probe)
    probe = train_probe(settings.length, settings.rate)
    return probe.accuracy, lambda values: [{"events": halves} for halves in probe.read(values[:, 0].cpu())]


def _stated(source: Any, row: int) -> dict[str, Any]:
    """What a probe should read in an example of a built-in world."""
    if isinstance(source, DrawnSounds):
        return {"events": halves_of(source.events(row))}
    attributes = source.attributes(row)
    return {name: attributes[name] for name in QUESTIONS}


def _drawn(
    pipe: TextToSignalPipeline, texts: Sequence[str], seeds: Sequence[int], options: EvaluationOptions
) -> torch.Tensor:
    """(n, ...): a signal for each text, each from a stream of its own."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(list(texts), generator=generators, **options.sampling()).values


def signals_table(report: dict[str, Any]) -> str:
    """The main figures of a report."""
    lines = []
    for row in report["by_depth"]:
        unit = UNITS[report["signal"]["signal"]]
        rate = f"{row[f'bits_per_{unit}']:,.{2 if unit == 'step' else 0}f} bits a {unit}"
        quality = (
            f"PSNR {row['psnr']:.2f} dB" if "psnr" in row else f"SNR {row['snr']:.2f} dB (mean {row['snr_mean']:.2f})"
        )
        spectral = f", spectral distance {row['spectral_distance']:.3f}" if "spectral_distance" in row else ""
        lines.append(f"{row['depths']} depths         {rate}: {quality}{spectral} ({report['n']:,} signals)")
    codebook = report["codebook"]
    lines.append(
        f"codebook         {codebook['usage']:.1%} of {codebook['num_codes']:,} codes in use, "
        f"perplexity {codebook['perplexity']:.0f}"
    )
    opus = report.get("opus", {})
    if "left_out" in opus:
        lines.append(f"Opus             {opus['left_out']}")
    elif opus:
        lines.append(
            f"Opus             {opus['bits_per_second']:,.0f} bits a second: SNR {opus['snr']:.2f} dB, spectral "
            f"distance {opus['spectral_distance']:.3f}"
        )
    forecast = report.get("forecast", {})
    if "left_out" in forecast:
        lines.append(f"forecast         {forecast['left_out']}")
    elif forecast:
        lines.append(
            f"forecast         MAE {forecast['mae_over_naive']:.3f} of the seasonal naive one's over "
            f"{forecast['steps']} steps, {forecast['coverage_80']:.1%} in the 80% interval ({forecast['n']:,} series)"
        )
    alignment = report.get("alignment", {})
    if "left_out" in alignment:
        lines.append(f"captions         {alignment['left_out']}")
    for split in ("validation", "held_out"):
        if (figures := alignment.get(split)) is not None:
            names = [name for name in ("thing", "colour", "direction") if name in figures]
            listed = "".join(f"{name} {figures[name]:.1%}, " for name in names)
            rebuilt = "".join(f"{name} {figures[f'reconstructions_{name}']:.1%}, " for name in names)
            lines.append(
                f"captions         {split}: {listed}{'all ' * bool(names)}{figures['right']:.1%} drawn right, of "
                f"reconstructions {rebuilt}{figures['reconstructions_right']:.1%} ({figures['n']:,})"
            )
    return "\n".join(lines)
