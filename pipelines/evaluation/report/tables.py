"""The figures of a report as lines of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
LATENT_FACTS = ("bottleneck", "n", "values", "level_values")  # what latents are; the rest is measured


def figures_table(report: Report) -> str:
    """The main figures of a report (`pipelines.evaluation.evaluation.evaluate`)."""
    lines = [*tokenizer_table(report)]
    if "perceptual" in report:
        seen = report["perceptual"]
        lines.append(f"distance         {seen['distance']:.4f} by {seen['extractor']} ({seen['n']:,} pictures)")
    if "label_efficiency" in report:
        lines += probe_lines(report["label_efficiency"]["rows"])
    if "likelihood" in report:
        lines += likelihood_lines(report["likelihood"], report.get("training", {}).get("likelihood"))
    if "text_likelihood" in report:
        text = report["text_likelihood"]
        lines.append(f"captions         {text['nats_per_token']:.3f} nats a token of text ({text['n']:,} captions)")
    if "compared" in report:
        lines += compared_lines(report["compared"])
    if "classification_accuracy" in report:
        lines += accuracy_lines(report["classification_accuracy"])
    if "nearest_training" in report:
        lines += nearest_lines(report["nearest_training"])
    if "alignment" in report:
        lines += ["", *alignment_table(report["alignment"]), *comparison_table(report["alignment"])]
    if "captions" in report:
        lines += ["", *captions_table(report["captions"])]
    if "edits" in report:
        lines += ["", *edits_table(report["edits"])]
    return "\n".join(lines)


def tokenizer_table(report: Report) -> list[str]:
    """Reconstruction, and use of the codebook: of all codes, and of each level and depth where there are several; of an
    autoencoder its latents in their place."""
    quality = report["reconstruction"]
    lines = [
        f"reconstruction   PSNR {quality['psnr']:.2f} dB, SSIM {quality['ssim']:.4f}, "
        f"MSE {quality['mse']:.6f} ({quality['n']:,} pictures)"
    ]
    if "training" in report:
        learned = report["training"]["reconstruction"]
        lines.append(
            f"  of training    PSNR {learned['psnr']:.2f} dB, SSIM {learned['ssim']:.4f}, MSE {learned['mse']:.6f} "
            f"({learned['n']:,} pictures)"
        )
    if "grid_ratio" in quality:
        lines.append(f"grid of tiles    power {quality['grid_ratio']:.2f} of the real pictures' in flat places")
    if "latents" in report:
        latents = report["latents"]
        own = [f", {name} {value:.4g}" for name, value in latents.items() if name not in LATENT_FACTS]
        return [*lines, f"latents          {latents['values']:,} values of {latents['bottleneck']}{''.join(own)}"]
    codebook = report["codebook"]
    lines.append(
        f"codebook         {codebook['usage']:.1%} of {codebook['num_codes']:,} codes in use, "
        f"perplexity {codebook['perplexity']:.0f}, {codebook['tokens_per_image']} codes a picture"
    )
    for part in codebook.get("parts", []):
        lines.append(
            f"                 level {part['level']} depth {part['depth']}: {part['usage']:.1%} of "
            f"{part['codebook_size']:,}, perplexity {part['perplexity']:.0f}"
        )
    return [*lines, *rate_lines(report["rate"])]


def compared_lines(compared: Report) -> list[str]:
    """Frechet distances and classes of reconstructed and drawn pictures: one line for each set."""
    lines = []
    for name in ("real", "reconstructed", "drawn"):
        figures = compared.get(name, {})
        parts = [f"Frechet distance {figures['frechet']:.1f}"] if "frechet" in figures else []
        if "class_first" in figures:
            parts.append(f"class first {figures['class_first']:.1%}, among five {figures['class_among_five']:.1%}")
        if "precision" in figures:
            names = ("precision", "recall", "density", "coverage")
            parts.append(", ".join(f"{one} {figures[one]:.3f}" for one in names))
        if parts:
            lines.append(f"{name:17}{', '.join(parts)} ({figures['n']:,} pictures)")
    return lines


def accuracy_lines(score: Report) -> list[str]:
    """How often classifiers of each kind of picture read real ones right, and that over the classifier of real ones."""
    lines = []
    for name in ("real", "reconstructed", "drawn"):
        if name in score:
            found, ratio = score[name], ""
            if "ratio" in found and found["ratio"]["top_1"] is not None:
                low, high = found["ratio"]["interval"]["top_1"]
                ratio = f", {found['ratio']['top_1']:.3f} of real ({low:.3f} to {high:.3f})"
            label = "classifier of" if name == "real" else ""
            lines.append(
                f"{label:17}{name} pictures: top-1 {found['top_1']:.1%}, top-5 {found['top_5']:.1%}{ratio} "
                f"({score['n']:,} pictures)"
            )
    return lines


def probe_lines(rows: Sequence[Report]) -> list[str]:
    """How often probes read the class, by labels of each class that they have learned from."""
    return [
        f"{'probes' if not place else '':17}{row['features']}, {row['labels_per_class']:,} labels a class: linear "
        f"{row['linear']:.1%}, nearest neighbours {row['knn']:.1%}"
        for place, row in enumerate(rows)
    ]


def nearest_lines(nearest: Report) -> list[str]:
    """The share of copies among drawn pictures, beside what the criterion says of others."""
    names = {"drawn": "copies, drawn", "held_out": "  held-out", "reconstructed": "  reconstructed"}
    return [
        f"{label:17}{nearest[name]['copies']:.1%} of {nearest[name]['n']:,} pictures, among "
        f"{nearest['num_training']:,} training pictures"
        for name, label in names.items()
        if name in nearest
    ]


def likelihood_lines(likelihood: Report, training: Report | None = None) -> list[str]:
    """Nats a code, with captions where the pictures have some that the model was trained to draw from; level by level
    where there are several; the same of training pictures; bits a value of the picture."""
    alone = f"{likelihood['nats_per_code_without_caption']:.3f}"
    if likelihood["num_captioned"]:
        lines = [f"language model   {likelihood['nats_per_code']:.3f} nats a code with captions, {alone} without"]
    else:
        lines = [f"language model   {alone} nats a code, without captions"]
    if len(likelihood["levels"]) > 1:
        lines += [_likelihood_level(level) for level in likelihood["levels"]]
    if training is not None:
        lines.append(f"  of training    {training['nats_per_code']:.3f} nats a code ({training['n']:,} pictures)")
        if len(training["levels"]) > 1:
            lines += [_likelihood_level(level) for level in training["levels"]]
    lines.append(f"                 {likelihood['bits_per_dimension']:.4f} bits a value of the picture")
    return lines


def _likelihood_level(level: Report) -> str:
    return (
        f"                 level {level['level']}: {level['nats_per_code']:.3f} nats, {level['bits_per_code']:.3f} "
        f"bits a code, {level['num_codes']} codes"
    )


def rate_lines(rate: Report) -> list[str]:
    """Bits a picture, and how many times less than the picture's own; of each level where there are several."""
    lines = [
        f"rate             {rate['bits_per_picture']:.0f} bits a picture, {rate['entropy_bits_per_picture']:.0f} under "
        f"the code histogram; {rate['compression']:.1f} times fewer than the picture's"
    ]
    if len(rate["levels"]) > 1:
        lines += [
            f"                 level {level['level']}: {level['bits']:.0f} bits, {level['entropy_bits']:.0f} under the "
            f"histogram, {level['compression']:.1f} times fewer; {level['values_per_code']:.0f} values a code"
            for level in rate["levels"]
        ]
    return lines


def alignment_table(alignment: Report) -> list[str]:
    """What the probe reads right, in percent: one line for each set of scenes and kind of picture."""
    lines: list[str] = []
    for title, names, scores in (
        ("read right, %", ("seen", "held_out"), ("thing", "colour", "size", "position", "background", "all")),
        ("two objects, %", ("relation",), ("things", "colours", "all")),
    ):
        lines.append(f"{title:28}" + "".join(f"{score:>11}" for score in scores) + f"{'n':>7}")
        for name in names:
            for kind in ("samples", "reconstructed", "real"):
                group = alignment if kind == "samples" else alignment[kind]
                if name in group:
                    numbers = "".join(f"{100 * group[name][score]:11.1f}" for score in scores)
                    lines.append(f"  {name.replace('_', '-') + ', ' + kind:26}{numbers}{group[name]['n']:7}")
    return lines


def comparison_table(alignment: Report) -> list[str]:
    """Best of n and completion beside plain drawing (`pipelines.evaluation.drawing_comparison`): one line a score."""
    lines: list[str] = []
    for use, plain, other, change in (
        ("best_of", "single", "best", "misses_removed"),
        ("completion", "plain", "completed", "difference"),
    ):
        if use not in alignment:
            continue
        comparison = alignment[use]
        for score, value in comparison[change].items():
            if score != "interval":
                low, high = comparison[change]["interval"][score] or (math.nan, math.nan)
                value = math.nan if value is None else value
                lines.append(
                    f"{use.replace('_', ' ')}, {score.replace('_', ' ')}: {plain} {comparison[plain][score]:.1%}, "
                    f"{other} {comparison[other][score]:.1%}, {change.replace('_', ' ')} {value:.1%} "
                    f"({low:.1%} to {high:.1%})"
                )
    return lines


def captions_table(captions: Report) -> list[str]:
    """What captions of pictures state rightly, in percent: one line a set of scenes, and one for its best of n."""
    columns = ("thing", "colour", "both", "no error", "n")
    lines = [f"{'captions state rightly, %':28}" + "".join(f"{column:>11}" for column in columns)]
    not_shown = ("n", "interval", "examples", "states_colour", "captions_each", "best_of")
    for name, scores in captions.items():
        label, best = name.replace("_", "-"), scores.get("best_of")
        rows = {label: scores} | ({f"{label}, best of {best['captions_each']}": best} if best else {})
        for label, row in rows.items():
            numbers = "".join(f"{100 * row[score]:11.1f}" for score in row if score not in not_shown)
            lines.append(f"  {label:26}{numbers}{row['n']:11}")
    return lines


def edits_table(edits: Report) -> list[str]:
    """Edits after which all that should change has, all that should stay has, and both, in percent: results of each
    set, then of each kind of held-out edits, and what real pictures and reconstructions of the same edits score."""
    columns = ("changed", "kept", "both", "n")
    lines = [f"{'edits, %':28}" + "".join(f"{column:>11}" for column in columns)]
    rows = {name.replace("_", "-"): edits[name] for name in ("seen", "held_out") if name in edits}
    if "held_out" in edits:
        rows |= {f"  {kind}": scores for kind, scores in edits["held_out"]["kinds"].items()}
    for kind in ("reconstructed", "real"):
        rows |= {f"{kind}, {name.replace('_', '-')}": edits[kind][name] for name in edits[kind]}
    for label, scores in rows.items():
        numbers = "".join(f"{100 * scores[score]:11.1f}" for score in columns[:3])
        lines.append(f"  {label:26}{numbers}{scores['n']:11}")
    return lines
