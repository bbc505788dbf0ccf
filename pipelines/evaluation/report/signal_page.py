"""What the page of a report shows of models of signals: all figures, reconstructions, what was drawn, forecasts."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.drawing.grids import labelled_grid
from pipelines.drawing.signal_panels import signal_panels
from pipelines.evaluation.probes.signal_captions import CaptionedSignals
from pipelines.evaluation.report.codebook_plot import codebook_views
from pipelines.evaluation.report.contents import (
    SAMPLES_EACH,
    codebook_sheet,
    draw_samples,
    has_plots,
    samples_sheet,
)
from pipelines.evaluation.report.figure_rows import SHARE, FigureRow, rows_as_text, rows_of
from pipelines.evaluation.report.page import Clip, Sheet, write_report
from pipelines.evaluation.report.plots import figure_image
from pipelines.evaluation.report.sheets import image_pairs, side_by_side
from pipelines.evaluation.signals import Forecast, SignalEvaluation
from pipelines.options.evaluation import EvaluationOptions
from tokenizer_image.picture_model import size_of
from tokenizer_image.pictures.reading_notes import counted
from tokenizer_image.preprocessing import to_pixel_values
from tokenizer_image.signals.settings import WORDS, SignalSettings
from tokenizer_image.signals.sound_files import write_sound

COLUMNS, PAIRS = 5, 10  # panels of a row; signals above their reconstructions
CLIPS = 4  # sounds to play below a sheet
QUALITY = {
    "bits_per_second": ",.0f",
    "bits_per_step": ".2f",
    "bits_per_frame": ".0f",
    "psnr": ".2f",
    "snr": ".2f",
    "snr_mean": ".2f",
    "spectral_distance": ".3f",
}
PLOTS = 6  # of forecasts
FORECAST = {"mae_over_naive": ".3f", "mae": ".3f", "naive_mae": ".3f", "coverage_80": SHARE}


def signal_rows(report: dict[str, Any]) -> list[FigureRow]:
    """All figures of a report of signals."""
    split, word, codebook = report["split"], WORDS[report["signal"]["signal"]], report["codebook"]
    over = f"{report['n']:,} {word}"
    rows: list[FigureRow] = []
    for row in report["by_depth"]:
        rows += rows_of(f"{counted(row['depths'], 'depth')} of codes", row, QUALITY, over, split)
    use = {"usage": SHARE, "perplexity": ".1f"}
    rows += rows_of(f"{codebook['num_codes']:,} codes", codebook, use, over, split)
    if opus := report.get("opus"):
        rows += rows_of("Opus at its lowest rate", opus, QUALITY, f"{opus.get('n', 0):,} {word}", split)
    if forecast := report.get("forecast"):
        name = f"forecast of {forecast.get('steps')} steps"
        rows += rows_of(name, forecast, FORECAST, f"{forecast.get('n', 0):,} {word}", split)
    for name in ("validation", "held_out"):
        if scores := report.get("alignment", {}).get(name):
            title, shares = f"captions, {name.replace('_', '-')}", dict.fromkeys(scores["interval"], SHARE)
            rows += rows_of(title, scores, shares, f"{scores['n']:,} {word}", f"fresh {word}", "probe")
    return rows


def signals_table(report: dict[str, Any]) -> str:
    """The figures of a report, and what is missing, for a screen."""
    return "\n".join([rows_as_text(signal_rows(report)), *report["notes"]])


def write_signal_page(options: EvaluationOptions, evaluation: SignalEvaluation, folder: str | Path) -> Path:
    """Draw samples, sheets and plots, and write the report's folder; the path of its page."""
    rows = signal_rows(evaluation.report)
    sheets = [*_tokenizer_sheets(evaluation), *_drawn_sheets(options, evaluation)]
    sheets += _plots(evaluation) if has_plots() else []
    return write_report(folder, evaluation.report, sheets, rows_as_text(rows), rows)


def _tokenizer_sheets(evaluation: SignalEvaluation) -> Iterator[Sheet]:
    """Reconstructions, the worst ones, and codes."""
    split, word = evaluation.report["split"], WORDS[evaluation.settings.signal]
    first, count = range(min(PAIRS, len(evaluation.signals))), len(evaluation.signals)
    yield _pairs(
        evaluation, first, "reconstructions", f"{word.title()} and their reconstructions",
        f"The first {word} of {split}, each above its reconstruction.",
    )  # fmt: skip
    worst = evaluation.ratios.argsort(stable=True)[:PAIRS]
    yield _pairs(
        evaluation, worst.tolist(), "worst_reconstructions", "Worst reconstructions",
        f"The {word} with the lowest SNR of all {count:,} of {split}, the worst first, each above its reconstruction.",
    )  # fmt: skip


def _pairs(evaluation: SignalEvaluation, rows: Sequence[int], name: str, title: str, text: str) -> Sheet:
    """Signals above their reconstructions, under their SNR."""
    settings, ratios = evaluation.settings, evaluation.ratios
    original, decoded = _reconstructed(evaluation, rows)
    decibels = [f"{ratio:.1f}" for ratio in ratios[list(rows)].tolist()]
    labels = [
        f"{', '.join(decibels[start : start + COLUMNS])} dB SNR; below, the reconstructions"
        for start in range(0, len(rows), COLUMNS)
    ]
    panels = [signal_panels(values, settings) for values in (original, decoded)]
    heard = {"original": original, "reconstruction": decoded}
    clips = [
        clip
        for place in range(min(CLIPS, len(rows)))
        for kind, values in heard.items()
        for clip in _clips(settings, f"{name}-{place}-{kind}", values[place : place + 1], [f"{place + 1}: {kind}"])
    ]
    return Sheet(f"{name}.png", title, text, image_pairs(panels[0], panels[1], labels, COLUMNS), clips)


@torch.inference_mode()
def _reconstructed(evaluation: SignalEvaluation, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Signals of these rows, and their reconstructions, (k, C, time)."""
    tokenizer: Any = evaluation.model.image_tokenizer
    original = to_pixel_values(evaluation.signals.batch(rows))
    decoded = tokenizer.decode(tokenizer.encode(original.to(tokenizer.device)), size_of(original))
    return original, decoded.cpu()


def _clips(settings: SignalSettings, name: str, values: Tensor, labels: Sequence[str]) -> list[Clip]:
    """Sounds (k, 1, time) to play; [] of signals that are not heard."""
    if settings.signal != "audio":
        return []
    clips = []
    for number, (samples, label) in enumerate(zip(values[:, 0].numpy(), labels, strict=True)):
        file = io.BytesIO()
        write_sound(file, samples, settings.rate)
        clips.append(Clip(f"{name}-{number}.wav", label, file.getvalue()))
    return clips


def _drawn_sheets(options: EvaluationOptions, evaluation: SignalEvaluation) -> Iterator[Sheet]:
    """What the model draws: beside real signals of the built-in world, else a few samples."""
    settings = evaluation.settings
    for captioned in evaluation.captioned:
        yield _captioned_sheet(captioned, settings)
    if evaluation.model.drawing is not None and not evaluation.captioned:
        samples = draw_samples(evaluation.model, evaluation.source, options.seed, options.sampling())
        if samples is not None:
            labels, drawn = samples
            first = drawn.values[::SAMPLES_EACH].cpu()[:CLIPS]
            yield samples_sheet(labels, drawn, options.seed, _clips(settings, "sample", first, labels[: len(first)]))


def _plots(evaluation: SignalEvaluation) -> Iterator[Sheet]:
    """Forecasts, and how codes are used."""
    if evaluation.forecasts:
        yield Sheet(
            "forecasts.png", "Forecasts",
            f"The first series of {evaluation.report['split']}: their past and what came (lines), and of the last "
            f"{evaluation.settings.horizon} steps the median forecast (dashed) and the interval of the middle 80% of "
            "the samples.",
            forecast_plot(evaluation.forecasts),
        )  # fmt: skip
    codebooks = codebook_views(evaluation.model.image_tokenizer, evaluation.codes, evaluation.signals)
    if codebooks:
        yield codebook_sheet(codebooks)


def _captioned_sheet(captioned: CaptionedSignals, settings: SignalSettings) -> Sheet:
    """Under each caption the real signal, its reconstruction and the drawn one, and what the probe reads in this."""
    title = captioned.split.replace("_", "-")
    panels = {kind: signal_panels(values, settings) for kind, values in captioned.signals.items()}
    rows, labels = [], []
    for number in range(len(panels["drawn"])):
        read, wanted = captioned.read["drawn"][number], captioned.wanted[number]
        answers = ", ".join(map(str, np.ravel([*read.values()])))
        verdict = "right" if read == wanted else f"read as {answers}"
        labels.append(f"{captioned.captions[number]} ({verdict})")
        rows.append((labels[-1], [panels[kind][number] for kind in panels]))
    half = -(-len(rows) // 2)
    columns = [labelled_grid(part, min_side=1, font_size=13) for part in (rows[:half], rows[half:]) if part]
    name, kinds = f"captions_{captioned.split}", ", ".join(panels)
    return Sheet(
        f"{name}.png", f"Captions, {title}: {kinds}",
        f"Under each caption, from the left: {kinds}; behind it what the probe reads in the last one.",
        side_by_side(columns), _clips(settings, name, captioned.signals["drawn"][:CLIPS], labels[:CLIPS]),
    )  # fmt: skip


def forecast_plot(forecasts: Sequence[Forecast]) -> Image.Image:
    """Series with the forecasts of their last steps: a plot for each channel of each series, at most `PLOTS`.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    chosen = [(one, channel) for one in forecasts for channel in range(len(one.values))][:PLOTS]
    figure = Figure(figsize=(11, 2.4 * -(-len(chosen) // 2)), layout="tight")
    axes = figure.subplots(-(-len(chosen) // 2), 2, squeeze=False).ravel()
    for axis in axes[len(chosen) :]:
        axis.remove()
    for axis, (one, channel) in zip(axes, chosen, strict=False):
        steps = np.arange(one.values.shape[1])
        ahead = steps[-one.forecast.median.shape[1] :]
        low, high = one.forecast.interval(0.8)
        axis.plot(steps, one.values[channel], color="tab:blue", linewidth=1)
        axis.fill_between(ahead, low[channel], high[channel], color="tab:orange", alpha=0.3, linewidth=0)
        axis.plot(ahead, one.forecast.median[channel], color="tab:orange", linestyle="--", linewidth=1.5)
        axis.axvline(ahead[0] - 0.5, color="tab:gray", linewidth=0.5)
        axis.set_title(": ".join([one.example.name, *one.example.texts[:1]]), fontsize=9)
        axis.tick_params(labelsize=8)
    return figure_image(figure)
