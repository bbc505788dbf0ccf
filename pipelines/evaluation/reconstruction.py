"""Figures of a tokenizer or a whole model: reconstruction, use of the codebook, likelihood of the codes.

Every figure is over a whole set of pictures (or a stated number of captions), never over a batch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lm.sequences import DRAWING_ALONE, FORMATS
from tokenizer_image.metrics import CodeUsage, mse, psnr, ssim
from tokenizer_image.preprocessing import to_pixel_values


@dataclass
class TokenizerFigures:
    """What `measure_tokenizer` found.

    Attributes:
        figures: `reconstruction` (`mse` on [0, 1], `psnr` in dB, `ssim`: means over pictures; `n`) and
            `codebook` (`usage`, `perplexity` of all codes; `parts`: of each level and depth, if several).
        codes: (n, T) int64, of every picture in its order.
        pictures, reconstructions: (k, C, H, W) uint8, of the first few pictures.
        per_picture: `mse`, `psnr` and `ssim` of each picture, (n,) float32.
    """

    figures: dict[str, Any]
    codes: Tensor
    pictures: Tensor
    reconstructions: Tensor
    per_picture: dict[str, Tensor]


def as_8_bit(pixel_values: Tensor) -> Tensor:
    """Float (B, C, H, W), about [-1, 1] -> uint8, as the picture would be stored."""
    return ((pixel_values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def reconstruct(image_tokenizer: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (B, C, H, W) -> reconstructions, uint8 of the same shape, and codes (B, T) int64."""
    with torch.inference_mode():
        codes = image_tokenizer.encode(to_pixel_values(pictures).to(device_of(image_tokenizer)))
        return as_8_bit(image_tokenizer.decode(codes, tuple(pictures.shape[-2:]))).cpu(), codes.cpu()


def device_of(image_tokenizer: Any) -> torch.device:
    """Where a tokenizer computes; the CPU if it is no module (one made elsewhere need not be)."""
    parameters = image_tokenizer.parameters() if isinstance(image_tokenizer, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def measure_tokenizer(
    image_tokenizer: Any,
    pictures: Any,
    *,
    batch_size: int = 100,
    num_examples: int = 32,
    progress: bool = True,
) -> TokenizerFigures:
    """Reconstruct `pictures`: `DecodedPictures`, or anything with `len` and `batch(indices)` -> uint8."""
    if isinstance(image_tokenizer, torch.nn.Module):
        image_tokenizer.eval()
    usage = CodeUsage(image_tokenizer.num_codes)
    values: dict[str, list[Tensor]] = {"mse": [], "psnr": [], "ssim": []}
    codes, kept = [], []
    for indices in _batches(len(pictures), batch_size, "reconstruction", progress):
        target = torch.from_numpy(np.ascontiguousarray(pictures.batch(indices)))
        found, found_codes = reconstruct(image_tokenizer, target)
        usage.update(found_codes)
        codes.append(found_codes)
        for name, measure in (("mse", mse), ("psnr", psnr), ("ssim", ssim)):
            values[name].append(measure(found / 255, target / 255))
        if indices[0] < num_examples:
            kept.append(torch.stack([target, found]))
    per_picture = {name: torch.cat(parts) for name, parts in values.items()}
    means = {name: float(numbers.double().mean()) for name, numbers in per_picture.items()}
    shown = torch.cat(kept, dim=1)[:, :num_examples]
    return TokenizerFigures(
        figures={
            "reconstruction": {**means, "n": len(pictures)},
            "codebook": _codebook_figures(usage, image_tokenizer.layout(tuple(shown.shape[-2:]))),
        },
        codes=torch.cat(codes),
        pictures=shown[0],
        reconstructions=shown[1],
        per_picture=per_picture,
    )


def _codebook_figures(usage: CodeUsage, layout: Any) -> dict[str, Any]:
    """Usage and perplexity of all codes, and of each level and depth where there are several."""
    figures: dict[str, Any] = {
        "usage": usage.usage,
        "perplexity": usage.perplexity,
        "num_codes": usage.num_codes,
        "tokens_per_image": len(layout),
    }
    columns = (layout.level, layout.depth, layout.low, layout.high)
    parts = sorted({tuple(map(int, place)) for place in zip(*columns, strict=True)})
    if len(parts) > 1:
        figures["parts"] = [
            {
                "level": level,
                "depth": depth,
                "codebook_size": high - low,
                "usage": usage.usage_of(low, high),
                "perplexity": usage.perplexity_of(low, high),
            }
            for level, depth, low, high in parts
        ]
    return figures


def nats_per_code(
    pipeline: Any, codes: Tensor, captions: list[str | None], *, batch_size: int = 100, progress: bool = True
) -> float:
    """Mean negative log-likelihood of the codes of pictures under the language model, in nats.

    As in sampling and training, probabilities are among the codes that are valid at each position. Captions
    that leave no room for the picture lose their end.

    Args:
        codes: (n, T) int64, of the model's own tokenizer.
        captions: one for each picture; None for a picture without its caption.
    """
    from lm.generation.images import longest_prompt
    from lm.sequences import collate, image_prompt, token_sequence
    from lm.training.losses import NextTokenLoss

    model, vocabulary = pipeline.model.eval(), pipeline.vocabulary
    loss = NextTokenLoss(model, vocabulary.id_ranges)
    limit = longest_prompt(model, vocabulary)
    room = None if limit is None else max(0, limit - len(image_prompt(vocabulary, None)))
    lengths = [0 if caption is None else len(caption) for caption in captions]
    by_length = np.argsort(lengths, kind="stable")  # so that little is computed on padding
    nats, count = 0.0, 0
    for indices in _batches(len(captions), batch_size, "likelihood", progress):
        sequences = []
        for row in by_length[indices]:
            caption = captions[row]
            ids = None if caption is None else vocabulary.encode_text(caption)[:room]
            name = "image" if ids is None else "caption_to_image"
            sequences.append(token_sequence(vocabulary, name, ids, codes[row].numpy()))
        batch = {name: tensor.to(pipeline.device) for name, tensor in collate(sequences, vocabulary.pad_id).items()}
        with torch.inference_mode():
            sums = loss(**batch)
        nats += float(sums["image_nats"])
        count += int(sums["image_tokens"])
    return nats / count


def measure_likelihood(
    pipeline: Any, codes: Tensor, captions: list[str | None], *, batch_size: int = 100, progress: bool = True
) -> dict[str, Any]:
    """`nats_per_code` with each picture's caption, and `nats_per_code_without_caption`."""
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    figures: dict[str, Any] = {"n": len(codes), "num_codes": codes.numel()}
    if any(caption is not None for caption in captions):
        figures["nats_per_code"] = nats_per_code(pipeline, codes, captions, **options)
    figures["nats_per_code_without_caption"] = nats_per_code(pipeline, codes, [None] * len(codes), **options)
    figures.setdefault("nats_per_code", figures["nats_per_code_without_caption"])
    return figures


def first_captions(source: Any, rows: Iterable[int]) -> list[str | None]:
    """The first caption of each of `rows`, None where there is none: the same at each evaluation."""
    texts = [source.texts(int(row)) for row in rows]
    return [found[0] if found else None for found in texts]


def draws_from_captions(pipeline: Any) -> bool:
    """Whether a pipeline's model has learned to draw what a caption says."""
    return any(FORMATS[name].drops_captions for name in pipeline.vocabulary.formats)


def sample_rows(pipeline: Any, source: Any, seed: int, sampling: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Four pictures for each of the first few captions of a data set, to look at; where there are none, or none were
    learned, four alone; none where neither is learned."""
    found = first_captions(source, range(min(64, len(source)))) if draws_from_captions(pipeline) else []
    captions = list(dict.fromkeys(caption for caption in found if caption))[:8]
    if not captions and not set(DRAWING_ALONE) & set(pipeline.vocabulary.formats):
        return []
    if not captions:
        images = pipeline(None, num_images_per_prompt=4, seed=seed, **sampling).images
        return [("without a caption", images)]
    images = pipeline(captions, num_images_per_prompt=4, seed=seed, **sampling).images
    return [(caption, images[4 * row : 4 * row + 4]) for row, caption in enumerate(captions)]


def language_model_figures(
    pipeline: Any, source: Any, pictures: Any, found: TokenizerFigures, *, guidance_scale: float | None, batch_size: int
) -> dict[str, Any]:
    """`likelihood` of the codes that `measure_tokenizer` found, and the `guidance_scale` of samples."""
    captions: list[str | None] = [None] * len(pictures)
    if draws_from_captions(pipeline):
        captions = first_captions(source, pictures.rows)
    default = pipeline.vocabulary.default_guidance
    return {
        "likelihood": measure_likelihood(pipeline, found.codes, captions, batch_size=batch_size),
        "guidance_scale": default if guidance_scale is None else guidance_scale,
    }


def figures_table(report: Mapping[str, Any]) -> str:
    """The main figures of a report as lines of text."""
    quality, codebook = report["reconstruction"], report["codebook"]
    lines = [
        f"reconstruction   PSNR {quality['psnr']:.2f} dB, SSIM {quality['ssim']:.4f}, "
        f"MSE {quality['mse']:.6f} ({quality['n']:,} pictures)",
        f"codebook         {codebook['usage']:.1%} of {codebook['num_codes']:,} codes in use, "
        f"perplexity {codebook['perplexity']:.0f}, {codebook['tokens_per_image']} codes a picture",
    ]
    for part in codebook.get("parts", []):
        lines.append(
            f"                 level {part['level']} depth {part['depth']}: {part['usage']:.1%} of "
            f"{part['codebook_size']:,}, perplexity {part['perplexity']:.0f}"
        )
    if "likelihood" in report:
        nats = report["likelihood"]
        lines.append(
            f"language model   {nats['nats_per_code']:.3f} nats a code with captions, "
            f"{nats['nats_per_code_without_caption']:.3f} without"
        )
    if "alignment" in report:
        lines += ["", *_alignment_table(report["alignment"]), *_uses_table(report["alignment"])]
    if "captions" in report:
        lines += ["", *_captions_table(report["captions"])]
    return "\n".join(lines)


def _alignment_table(alignment: Mapping[str, Any]) -> list[str]:
    """What the probe reads right, in percent: one line a kind of picture."""
    lines: list[str] = []
    for names, scores in (
        (("seen", "held_out"), ("thing", "colour", "size", "position", "background", "all")),
        (("relation",), ("things", "colours", "all")),
    ):
        title = "read right, %" if not lines else "two objects, %"
        lines.append(f"{title:28}" + "".join(f"{score:>11}" for score in scores) + f"{'n':>7}")
        for name in names:
            for kind in ("samples", "reconstructed", "real"):
                group = alignment if kind == "samples" else alignment[kind]
                if name in group:
                    numbers = "".join(f"{100 * group[name][score]:11.1f}" for score in scores)
                    lines.append(f"  {name.replace('_', '-') + ', ' + kind:26}{numbers}{group[name]['n']:7}")
    return lines


def _uses_table(alignment: Mapping[str, Any]) -> list[str]:
    """Best of n and completion beside plain drawing (`pipelines/evaluation/drawing_uses.py`): one line a score."""
    lines: list[str] = []
    for use, plain, other, change in (
        ("best_of", "single", "best", "misses_removed"),
        ("completion", "plain", "completed", "difference"),
    ):
        own = alignment.get(use, {"misses_removed": {}, "difference": {}})
        for name, value in own[change].items():
            if name != "interval":
                low, high = own[change]["interval"][name] or (math.nan, math.nan)
                value = math.nan if value is None else value
                lines.append(
                    f"{use.replace('_', ' ')}, {name.replace('_', ' ')}: {plain} {own[plain][name]:.1%}, {other} "
                    f"{own[other][name]:.1%}, {change.replace('_', ' ')} {value:.1%} ({low:.1%} to {high:.1%})"
                )
    return lines


def _captions_table(captions: Mapping[str, Any]) -> list[str]:
    """What captions of pictures state rightly, in percent: one line a kind of scene, and one for its best of n."""
    lines = [
        f"{'captions state rightly, %':28}" + "".join(f"{s:>11}" for s in ("thing", "colour", "both", "no error", "n"))
    ]
    others = ("n", "interval", "examples", "states_colour", "captions_each", "best_of")
    for name, scores in captions.items():
        kind, best = name.replace("_", "-"), scores.get("best_of")
        rows = {kind: scores} | ({f"{kind}, best of {best['captions_each']}": best} if best else {})
        for label, row in rows.items():
            numbers = "".join(f"{100 * row[score]:11.1f}" for score in row if score not in others)
            lines.append(f"  {label:26}{numbers}{row['n']:11}")
    return lines


def _batches(count: int, batch_size: int, what: str, progress: bool) -> Iterator[np.ndarray]:
    """Indices 0 .. count - 1 in arrays of `batch_size`, with a progress bar."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    with tqdm(total=count, desc=what, unit=" pictures", disable=not progress, leave=False) as bar:
        for start in range(0, count, batch_size):
            indices = np.arange(start, min(start + batch_size, count))
            yield indices
            bar.update(len(indices))
