"""What `scripts/evaluate.py` measures of models of signals: reconstruction by depth, use of codes, captions drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lm.sequences import DRAWING_CAPTIONS
from pipelines.caching.sources import open_source, read_pictures
from pipelines.evaluation.intervals import shares
from pipelines.evaluation.sound_probe import halves_of, train_probe
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
from tokenizer_image.signals.loading import example_of
from tokenizer_image.signals.settings import SignalSettings, signal_settings_of

OPUS_SECONDS = 60  # of the split's sounds in a row, so that Opus's headers do not count
DRAWN_AT_ONCE = 50
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
    if pipe is not None and draws and isinstance(source, DrawnSounds):
        try:
            report["alignment"] = caption_figures(pipe, options)
        except RuntimeError as error:  # a probe that does not read real sounds; the other figures stand
            report["alignment"] = {"left_out": str(error)}
    return report


@torch.inference_mode()
def tokenizer_figures(tokenizer: Any, settings: SignalSettings, signals: Any) -> dict[str, Any]:
    """`SignalErrors` and, of sounds, the mean spectral distance, of reconstructions from one depth of codes up to all,
    with the bits a second of each; usage and perplexity of all codes."""
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
            errors[depth].add(original, decoded)
            if settings.signal == "audio":
                distances[depth] += float(spectral.to(original.device).distances(original, decoded).sum())
    bits = np.log2(layout.high - layout.low)
    seconds = settings.length / (settings.rate or 1)
    rows = [
        {
            "depths": depth + 1,
            ("bits_per_second" if settings.rate else "bits_per_step"): float(
                bits[layout.depth <= depth].sum() / seconds
            ),
            **errors[depth].figures(),
            **({"spectral_distance": distances[depth] / len(signals)} if settings.signal == "audio" else {}),
        }
        for depth in range(depths)
    ]
    codebook = {"usage": usage.usage, "perplexity": usage.perplexity, "num_codes": tokenizer.num_codes}
    return {"reconstruction": rows[-1], "by_depth": rows, "codebook": codebook}


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
    """Shares of drawn sounds in which the probe reads what their captions say, for pairs of events that training had
    and for held-out ones; beside them, shares of the real sounds' reconstructions."""
    settings = pipe.settings
    probe = train_probe(settings.length, settings.rate)
    figures: dict[str, Any] = {"probe_accuracy": probe.accuracy}
    for split in ("validation", "held_out"):
        source = DrawnSounds(split, options.num_captions, options.seed, settings.length, settings.rate)
        wanted = [halves_of(source.events(row)) for row in range(len(source))]
        drawn, rebuilt = [], []
        for rows in index_batches(len(source), DRAWN_AT_ONCE):
            texts = [source.texts(row)[0] for row in rows]
            seeds = [options.seed * len(source) + row for row in rows]
            drawn += probe.read(_drawn(pipe, texts, seeds, options))
            real = torch.from_numpy(np.stack([source[row].values for row in rows]))
            codes = pipe.image_tokenizer.encode(real.to(pipe.device))
            rebuilt += probe.read(pipe.decode_codes(codes)[:, 0].cpu())
        counts = {
            "right": sum(one == other for one, other in zip(drawn, wanted, strict=True)),
            "reconstructions_right": sum(one == other for one, other in zip(rebuilt, wanted, strict=True)),
        }
        figures[split] = {**shares(counts, len(source)), "n": len(source)}
    return figures


def _drawn(
    pipe: TextToSignalPipeline, texts: Sequence[str], seeds: Sequence[int], options: EvaluationOptions
) -> torch.Tensor:
    """(n, time): a sound for each text, each from a stream of its own."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(list(texts), generator=generators, **options.sampling()).values[:, 0].cpu()


def signals_table(report: dict[str, Any]) -> str:
    """The main figures of a report."""
    lines = []
    for row in report["by_depth"]:
        rate = (
            f"{row['bits_per_second']:,.0f} bits a second"
            if "bits_per_second" in row
            else (f"{row['bits_per_step']:.2f} bits a step")
        )
        spectral = f", spectral distance {row['spectral_distance']:.3f}" if "spectral_distance" in row else ""
        lines.append(
            f"{row['depths']} depths         {rate}: SNR {row['snr']:.2f} dB (mean {row['snr_mean']:.2f}){spectral} "
            f"({report['n']:,} signals)"
        )
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
            lines.append(
                f"captions         {split}: {figures['right']:.1%} drawn right, "
                f"{figures['reconstructions_right']:.1%} of reconstructions ({figures['n']:,})"
            )
    return "\n".join(lines)
