"""Every figure of a report as a row: its value, interval, number of pictures, split, and the network that it is by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.evaluation.report.tables import LATENT_FACTS

Report = Mapping[str, Any]
COLUMNS = ["figure", "value", "95% interval", "over", "split", "by"]
SHARE, PLAIN = ".1%", ".4g"
RECONSTRUCTION = {"mse": ".6f", "psnr": ".2f", "ssim": ".4f", "grid_ratio": ".2f"}
MANIFOLD = {"precision": ".3f", "recall": ".3f", "density": ".3f", "coverage": ".3f"}
WORDS = {
    "mse": "MSE on [0, 1]", "psnr": "PSNR, dB", "ssim": "SSIM", "frechet": "Frechet distance", "linear": "linear probe",
    "knn": "nearest neighbours", "compression": "times fewer bits than the picture", "snr": "SNR, dB",
    "snr_mean": "mean SNR, dB", "mae": "MAE, past's deviations", "naive_mae": "MAE of the seasonal naive one",
    "mae_over_naive": "MAE over the seasonal naive one's",
    "coverage_80": "values in the 80% interval", "right": "drawn right", "reconstructions_right": "reconstructed right",
}  # fmt: skip
CLASSES = {"class_first": SHARE, "class_among_five": SHARE}


@dataclass(frozen=True)
class FigureRow:
    """A figure in words.

    Attributes:
        over: how many pictures, or what else, it is over.
        by: name of the network that it depends on, and hash of its weights; empty for none.
    """

    figure: str
    value: str
    interval: str = ""
    over: str = ""
    split: str = ""
    by: str = ""

    @property
    def cells(self) -> list[str]:
        """In the order of `COLUMNS`."""
        return [self.figure, self.value, self.interval, self.over, self.split, self.by]


def figure_rows(report: Report) -> list[FigureRow]:
    """All figures of a report, stage by stage."""
    split, training = report["split"], report.get("training")
    rows = [*_tokenizer_rows(report, split)]
    if training is not None:
        rows += _tokenizer_rows(training, training["split"])
    rows += _perceptual_rows(report.get("perceptual"))
    rows += _probe_rows(report.get("label_efficiency"))
    for figures, name in ((report, split), (training, training and training["split"])):
        if figures is not None and "likelihood" in figures:
            rows += _likelihood_rows(figures["likelihood"], str(name))
    if "text_likelihood" in report:
        text = report["text_likelihood"]
        rows += rows_of("captions", text, {"nats_per_token": ".3f"}, f"{text['n']:,} captions", split)
    rows += _compared_rows(report.get("compared"))
    rows += _accuracy_rows(report.get("classification_accuracy"))
    rows += _copy_rows(report.get("nearest_training"), report)
    rows += _alignment_rows(report.get("alignment"))
    rows += _caption_rows(report.get("captions"))
    rows += _edit_rows(report.get("edits"))
    return rows


def rows_of(
    name: str, figures: Report, formats: Mapping[str, str], over: str, split: str, by: str = ""
) -> Iterator[FigureRow]:
    """A row for each of these figures that there is; None, where a ratio has no value, is shown as a dash."""
    intervals = figures.get("interval", {})
    for figure, form in formats.items():
        if figure not in figures:
            continue
        value, interval = figures[figure], intervals.get(figure)
        words = "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
        shown = "-" if value is None else f"{value:{form}}"
        yield FigureRow(f"{name}: {WORDS.get(figure) or figure.replace('_', ' ')}", shown, words, over, split, by)


def rows_as_text(rows: Sequence[FigureRow]) -> str:
    """The rows for a screen, a line each."""
    width = max(len(row.figure) for row in rows)
    details = ["; ".join(filter(None, (row.interval, row.over, row.split, row.by))) for row in rows]
    return "\n".join(
        f"{row.figure:{width}}  {row.value:>8}  ({detail})" for row, detail in zip(rows, details, strict=True)
    )


def _pictures(count: int) -> str:
    return f"{count:,} pictures"


def _network(figures: Report, role: str) -> str:
    return f"{figures[role]} ({figures[f'{role}_hash']})"


def _tokenizer_rows(figures: Report, split: str) -> Iterator[FigureRow]:
    """Reconstruction, use of codes, and rate, of all and of each level."""
    quality = figures["reconstruction"]
    over = _pictures(quality["n"])
    yield from rows_of("reconstruction", quality, RECONSTRUCTION, over, split)
    if "latents" in figures:
        latents = figures["latents"]
        own = {name: PLAIN for name in latents if name not in LATENT_FACTS}
        yield from rows_of(f"{latents['values']:,} latents of {latents['bottleneck']}", latents, own, over, split)
    if "codebook" not in figures:
        return
    codebook, rate = figures["codebook"], figures["rate"]
    use = {"usage": SHARE, "perplexity": ".1f"}
    yield from rows_of(f"{codebook['num_codes']:,} codes", codebook, use, over, split)
    for part in codebook.get("parts", []):
        yield from rows_of(f"level {part['level']} depth {part['depth']}", part, use, over, split)
    bits = {"bits_per_picture": ".0f", "entropy_bits_per_picture": ".1f", "bits_per_pixel": ".3f", "compression": ".1f"}
    yield from rows_of("rate", rate, bits, over, split)
    if len(rate["levels"]) > 1:
        own = {"bits": ".0f", "entropy_bits": ".1f", "values_per_code": ".1f", "compression": ".1f"}
        for level in rate["levels"]:
            yield from rows_of(f"rate of level {level['level']}", level, own, over, split)


def _perceptual_rows(seen: Report | None) -> Iterator[FigureRow]:
    if seen is not None:
        by = _network(seen, "extractor")
        yield from rows_of("perceptual", seen, {"distance": ".4f"}, _pictures(seen["n"]), seen["split"], by)


def _probe_rows(probes: Report | None) -> Iterator[FigureRow]:
    if probes is None:
        return
    for row in probes["rows"]:
        name = f"{row['features']}, {row['labels_per_class']:,} labels a class of {probes['train_split']}"
        formats = {"linear": SHARE, "knn": SHARE}
        yield from rows_of(name, row, formats, _pictures(row["n"]), probes["split"])


def _likelihood_rows(likelihood: Report, split: str) -> Iterator[FigureRow]:
    over = f"{likelihood['n']:,} pictures, {likelihood['num_captioned']:,} captioned"
    formats = {"nats_per_code": ".3f", "bits_per_code": ".3f", "nats_per_code_without_caption": ".3f"}
    yield from rows_of("language model", likelihood, {**formats, "bits_per_dimension": ".4f"}, over, split)
    if len(likelihood["levels"]) > 1:
        for level in likelihood["levels"]:
            yield from rows_of(f"language model, level {level['level']}", level, formats, over, split)


def _compared_rows(compared: Report | None) -> Iterator[FigureRow]:
    if compared is None:
        return
    for name in ("real", "reconstructed", "drawn"):
        figures = compared.get(name)
        if figures is not None:
            split = compared["split"]
            if "frechet" in figures:
                by = _network(compared, "extractor")
                yield from rows_of(name, figures, {"frechet": ".2f"}, _pictures(figures["n"]), split, by)
                yield from rows_of(name, figures, MANIFOLD, _pictures(figures["n"]), split, by)
            if "class_first" in figures:
                over = f"{figures['num_captioned']:,} captioned pictures"
                yield from rows_of(name, figures, CLASSES, over, split, _network(compared, "classifier"))


def _accuracy_rows(score: Report | None) -> Iterator[FigureRow]:
    for name in ("real", "reconstructed", "drawn"):
        if score is not None and name in score:
            of = f"classifier of {score[name]['num_training']:,} {name} pictures"
            by = f"captions, {score['steps']:,} steps ({score[name]['classifier_hash']})"
            over = _pictures(score["n"])
            yield from rows_of(of, score[name], {"top_1": SHARE, "top_5": SHARE}, over, score["split"], by)
            if "ratio" in score[name]:
                formats = {"top_1": ".3f", "top_5": ".3f"}
                yield from rows_of(
                    f"{of}, over that of real ones", score[name]["ratio"], formats, over, score["split"], by
                )


def _copy_rows(nearest: Report | None, report: Report) -> Iterator[FigureRow]:
    splits = {"drawn": report["split"], "held_out": report["split"]}
    for name in ("drawn", "held_out", "reconstructed"):
        if nearest is not None and name in nearest:
            over = f"{nearest[name]['n']:,} pictures, among {nearest['num_training']:,} training pictures"
            split = splits.get(name) or str(report["training"]["split"])
            yield from rows_of(f"nearest training picture, {name.replace('_', '-')}", nearest[name],
                             {"copies": SHARE, "median_distance": ".4f"}, over, split)  # fmt: skip


def _alignment_rows(alignment: Report | None) -> Iterator[FigureRow]:
    """What the probe reads right in samples, reconstructions and real pictures, and what best of n and completion
    change."""
    if alignment is None:
        return
    for kind in ("samples", "reconstructed", "real"):
        groups = alignment if kind == "samples" else alignment[kind]
        for name in ("seen", "held_out", "relation"):
            if name in groups:
                yield from _score_rows(f"{kind}, {name.replace('_', '-')}", groups[name], "sprites probe")
    for use, parts in (("best_of", ("single", "best", "misses_removed")),
                       ("completion", ("plain", "completed", "difference"))):  # fmt: skip
        for part in parts if use in alignment else ():
            title = f"{use.replace('_', ' ')}, {part.replace('_', ' ')}"
            yield from _score_rows(title, {"n": alignment[use]["n"], **alignment[use][part]}, "sprites probe")


def _caption_rows(captions: Report | None) -> Iterator[FigureRow]:
    for name, scores in (captions or {}).items():
        title = f"captions, {name.replace('_', '-')}"
        yield from _score_rows(title, scores, "grammar of sprites")
        if "best_of" in scores:
            best = scores["best_of"]
            yield from _score_rows(f"{title}, best of {best['captions_each']}", best, "grammar of sprites")


def _edit_rows(edits: Report | None) -> Iterator[FigureRow]:
    """What has changed, and what has not, after edits: results, reconstructions and real pictures; results by kind."""
    if edits is None:
        return
    for kind in ("results", "reconstructed", "real"):
        groups = edits if kind == "results" else edits[kind]
        for name in ("seen", "held_out"):
            if name in groups:
                title = f"edits, {kind}, {name.replace('_', '-')}"
                yield from _score_rows(title, groups[name], "sprites probe")
                for one, scores in groups[name]["kinds"].items() if kind == "results" else ():
                    yield from _score_rows(f"{title}, {one}", scores, "sprites probe")


def _score_rows(title: str, scores: Report, by: str) -> Iterator[FigureRow]:
    """Shares of fresh scenes, for each score that has an interval."""
    names: Sequence[str] = [name for name in scores if name in scores.get("interval", {})]
    yield from rows_of(title, scores, dict.fromkeys(names, SHARE), f"{scores['n']:,} scenes", "fresh scenes", by)
