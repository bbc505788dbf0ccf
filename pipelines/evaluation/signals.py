"""What `scripts/evaluate.py` measures of models of signals: reconstruction by depth, use of codes, forecasts, captions
drawn."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.caching.sources import open_signals, read_pictures
from pipelines.evaluation.metrics.intervals import mean_interval, paired_comparison, ratio_of_means
from pipelines.evaluation.probes.signal_captions import CaptionedSignals, captioned_signals, trained_reader
from pipelines.evaluation.subject import EvaluatedModel, provenance
from pipelines.machine.batches import index_batches, pictures_at_once
from pipelines.options.evaluation import PICTURE_OPTIONS, EvaluationOptions
from pipelines.options.option import given_options
from pipelines.text_to_signal import ForecastOutput, TextToSignalPipeline
from tokenizer_image.layout import example_size
from tokenizer_image.losses.spectral import SpectralLoss
from tokenizer_image.metrics import CodeUsage, SignalErrors
from tokenizer_image.picture_model import size_of
from tokenizer_image.pictures.dataset import print_summary
from tokenizer_image.preprocessing import to_pixel_values
from tokenizer_image.signals.drawn_series import PERIOD
from tokenizer_image.signals.drawn_sounds import DrawnSounds
from tokenizer_image.signals.examples import SignalExample
from tokenizer_image.signals.loading import example_of
from tokenizer_image.signals.moving_sprites import MovingSprites
from tokenizer_image.signals.settings import SignalSettings, signal_settings_of

OPUS_SECONDS = 60  # of the split's sounds in a row, so that Opus's headers do not count
UNITS = {"audio": "second", "series": "step", "video": "frame"}  # that bits are counted by
FORECASTS = 50  # samples of each series
FORECASTS_KEPT = 6  # for the page of a report


@dataclass
class Forecast:
    """A series and the forecast of its last steps.

    Attributes:
        values: (channels, context + horizon), NaN in gaps.
    """

    example: SignalExample
    values: np.ndarray
    forecast: ForecastOutput


@dataclass
class SignalEvaluation:
    """Everything measured of signals, and what a report page shows of it.

    Attributes:
        signals: what was measured on, decoded; `source` has their captions.
        report: the figures, ready for JSON.
        ratios, codes: (n,), each signal's SNR in dB, and (n, T) int64.
        forecasts: the first of them; empty where nothing is forecast.
        captioned: sounds or videos drawn from captions, and what the probe read; empty where there are none.
    """

    model: EvaluatedModel
    settings: SignalSettings
    source: Any
    signals: Any
    report: dict[str, Any]
    ratios: Tensor = field(default_factory=lambda: torch.zeros(0))
    codes: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    forecasts: list[Forecast] = field(default_factory=list)
    captioned: list[CaptionedSignals] = field(default_factory=list)


def evaluate_signals(options: EvaluationOptions, model: EvaluatedModel) -> SignalEvaluation:
    """Measure a tokenizer of signals, and of a model what it draws and forecasts.

    Raises:
        ValueError: options that concern pictures.
    """
    if given := given_options(options, PICTURE_OPTIONS):
        measured = options.image_tokenizer or options.chosen_model
        raise ValueError(f"{', '.join(given)} concern pictures, and {measured} has codes of signals: leave out")
    started = time.monotonic()
    settings = signal_settings_of(model.image_tokenizer)
    assert settings is not None
    source: Any = open_signals(options, options.split, settings, options.max_examples, options.seed)
    print_summary(source)
    signals = read_pictures(options, source, settings)
    report = {
        **provenance(options, model.image_tokenizer, source),
        "dataset": source.name,
        "signal": settings.to_dict(),
    }
    evaluation = SignalEvaluation(model, settings, source, signals, report)
    pipe: Any = model.pipeline
    report |= {"n": len(signals), **tokenizer_figures(evaluation, options.batch_size)}
    if settings.signal == "audio":
        report["opus"] = opus_figures(signals, settings)
    elif pipe is not None and settings.horizon:
        report["forecast"] = forecast_figures(evaluation, pipe, options)
    if model.drawing_from_captions is not None and isinstance(source, DrawnSounds | MovingSprites):
        report["alignment"] = caption_figures(evaluation, pipe, options)
    report["notes"] += [
        f"{name}: {part['left_out']}" for name, part in report.items() if isinstance(part, dict) and "left_out" in part
    ]
    report["seconds"] = round(time.monotonic() - started, 1)
    return evaluation


@torch.inference_mode()
def tokenizer_figures(evaluation: SignalEvaluation, batch_size: int) -> dict[str, Any]:
    """`SignalErrors` and, of sounds, the mean spectral distance, of reconstructions from one depth of codes up to all,
    with the bits a second (a step, a frame) of each; usage and perplexity of all codes."""
    tokenizer: Any = evaluation.model.image_tokenizer
    settings, signals, layout = evaluation.settings, evaluation.signals, tokenizer.layout()
    depths = int(layout.depth.max()) + 1
    usage, errors = CodeUsage(tokenizer.num_codes), [SignalErrors() for _ in range(depths)]
    spectral = SpectralLoss().to(tokenizer.device) if settings.signal == "audio" else None
    distances: list[list[Tensor]] = [[] for _ in range(depths)]
    all_codes: list[Tensor] = []
    at_once = min(batch_size, pictures_at_once(*example_size(tokenizer.config)))
    for batch in index_batches(len(signals), at_once):
        original = to_pixel_values(signals.batch(batch)).to(tokenizer.device)
        codes = tokenizer.encode(original)
        all_codes.append(codes.cpu())
        usage.update(all_codes[-1])
        for depth in range(depths):
            decoded = tokenizer.decode(codes, size_of(original), depths=depth + 1)
            errors[depth].add(original.flatten(2), decoded.flatten(2))
            if spectral is not None:
                distances[depth].append(spectral.distances(original, decoded).cpu())
    bits = np.log2(layout.high - layout.low)
    seconds, unit = settings.length / (settings.rate or 1), UNITS[settings.signal]
    rows = [
        {
            "depths": depth + 1,
            f"bits_per_{unit}": float(bits[layout.depth <= depth].sum() / seconds),
            **_quality(settings, errors[depth], torch.cat(distances[depth]) if spectral is not None else None),
        }
        for depth in range(depths)
    ]
    evaluation.ratios, evaluation.codes = errors[-1].ratios, torch.cat(all_codes)
    codebook = {"usage": usage.usage, "perplexity": usage.perplexity, "num_codes": tokenizer.num_codes}
    return {"reconstruction": rows[-1], "by_depth": rows, "codebook": codebook}


def _quality(settings: SignalSettings, errors: SignalErrors, distances: Tensor | None) -> dict[str, Any]:
    """`quality_figures`; of videos the PSNR in dB of all frames together in their place."""
    if settings.signal != "video":
        return quality_figures(errors, distances)
    error = errors.figures()["mse"]
    return {"mse": error, "psnr": 10 * float(np.log10(4 / max(error, 1e-10)))}


def quality_figures(errors: SignalErrors, distances: Tensor | None) -> dict[str, Any]:
    """The errors of n signals and, where there are some, the mean of their spectral distances (n,), with the intervals
    of means."""
    figures: dict[str, Any] = {**errors.figures(), "interval": {"snr_mean": mean_interval(errors.ratios)}}
    if distances is not None:
        figures["spectral_distance"] = float(distances.mean())
        figures["interval"]["spectral_distance"] = mean_interval(distances)
    return figures


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
    bits = 8 * size / (original.size / rate)
    return {"n": count, "bits_per_second": bits, **quality_figures(errors, SpectralLoss().distances(*pair))}


def forecast_figures(
    evaluation: SignalEvaluation, pipe: TextToSignalPipeline, options: EvaluationOptions
) -> dict[str, Any]:
    """Forecasts of the last steps of --num_captions series: the median's mean absolute error over that of the seasonal
    naive forecast, the value `PERIOD` steps before, and how often a value lies in the middle 80% of the samples.

    Each series counts as much as the others, in units of its past's deviation; gaps in what is forecast do not count.
    """
    context, horizon, source = pipe.settings.context, pipe.settings.horizon, evaluation.source
    if context < PERIOD:
        return {"left_out": f"the {context} steps before the horizon have no season of {PERIOD}"}
    found: list[list[float]] = []
    for row in range(min(len(source), options.num_captions)):
        example = example_of(source, row)
        known = np.ones(context + horizon, bool) if example.mask is None else example.mask
        values = np.where(known, example.values, np.nan).astype(np.float64)
        past, future = values[:, :context], values[:, context:]
        if not known[:context].any() or not known[context:].any():
            continue
        drawn = pipe.forecast(past, num_samples=FORECASTS, seed=options.seed + row)
        if len(evaluation.forecasts) < FORECASTS_KEPT:
            evaluation.forecasts.append(Forecast(example, values, drawn))
        low, high = drawn.interval(0.8)
        naive = np.take(past, context - PERIOD + np.arange(horizon) % PERIOD, axis=1)
        deviation = np.nanstd(past, axis=1, keepdims=True)
        scale = np.where(deviation > 0, deviation, np.nan)
        judged = np.isfinite(future / scale) & np.isfinite(naive)
        if judged.any():
            errors = [np.abs(other - future) / scale for other in (drawn.median, naive)]
            inside = (low <= future) & (future <= high)
            found.append([float(one[judged].mean()) for one in (*errors, inside)])
    if not found:
        return {"left_out": "no series has values before and in the horizon"}
    mae, naive_mae, coverage = np.asarray(found).T
    ratio = paired_comparison(ratio_of_means, {"mae_over_naive": naive_mae}, {"mae_over_naive": mae})
    means = {"mae": mae, "naive_mae": naive_mae, "coverage_80": coverage}
    return {
        "n": len(found), "steps": horizon, "mae_over_naive": ratio["mae_over_naive"],
        **{name: float(one.mean()) for name, one in means.items()},
        "interval": ratio["interval"] | {name: mean_interval(torch.from_numpy(one)) for name, one in means.items()},
    }  # fmt: skip


def caption_figures(evaluation: SignalEvaluation, pipe: Any, options: EvaluationOptions) -> dict[str, Any]:
    """Shares of drawn sounds or videos in which the probe reads what their captions say, for combinations that training
    had and for held-out ones; beside them, shares of the real ones' reconstructions."""
    try:
        accuracy, read = trained_reader(evaluation.settings)
    except RuntimeError as error:  # it does not read real ones; the other figures stand
        return {"left_out": str(error)}
    evaluation.captioned = [captioned_signals(pipe, read, split, options) for split in ("validation", "held_out")]
    return {"probe_accuracy": accuracy, **{one.split: one.figures() for one in evaluation.captioned}}
